"""The training curves of one or more runs, in a row: `python tools/plot_training.py RUN... --out docs/training.png`.

Reads log.csv of each run folder (and the log-until-STEP.csv that it was split into); a run goes on where the one before it ended. A panel
per loss term: every logged mean as a dot, their running median as a line, and the learning rate.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import numpy as np

Curve = dict[str, list[tuple[float, float]]]
WINDOW = 15
"""Logged values under one running median."""


def read(run: Path) -> Curve:
    """Column -> (step, value), empty cells left out; steps logged twice (after a resume) count once, the later."""
    files = [*sorted(run.glob("log-until-*.csv"), key=lambda p: int(p.stem.rsplit("-", 1)[1])), run / "log.csv"]
    found: dict[str, dict[float, float]] = {}
    for file in files:
        if not file.is_file():
            sys.exit(f"there is no {file}; give folders that `streamfix train` wrote")
        with file.open(newline="") as lines:
            for row in csv.DictReader(lines):
                for column, cell in row.items():
                    if column not in ("step", "seconds") and cell:
                        found.setdefault(column, {})[float(row["step"])] = float(cell)
    return {column: sorted(values.items()) for column, values in found.items()}


def smooth(values: np.ndarray) -> np.ndarray:
    half = WINDOW // 2
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves = [read(run) for run in options.runs]
    starts = np.cumsum([0.0, *(max(step for step, _ in c["rate"]) for c in curves)])
    columns = [*dict.fromkeys(column for c in curves for column in c if column != "rate"), "rate"]
    across = min(4, len(columns))
    down = -(-len(columns) // across)
    figure, axes = pyplot.subplots(
        down, across, figsize=(3.2 * across, 2.3 * down), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(columns) :]:
        axis.set_visible(False)
    for column, axis in zip(columns, axes.flat, strict=False):
        for number, (curve, start) in enumerate(zip(curves, starts, strict=False)):
            if column not in curve:
                continue
            steps, values = np.array(curve[column]).T
            if column != "rate":
                axis.plot(steps + start, values, ".", markersize=2, alpha=0.3, color=f"C{number}")
            axis.plot(steps + start, values if column == "rate" else smooth(values), color=f"C{number}")
        for start in starts[1:-1]:
            axis.axvline(start, color="0.8", linewidth=0.8, zorder=0)
        axis.set_xlim(0, starts[-1])
        axis.set_title(column, fontsize=9)
        axis.tick_params(labelsize=7)
    figure.supxlabel("step", fontsize=8)
    figure.savefig(options.out, dpi=110)
    print(f"{options.out}: {int(starts[-1])} steps of {len(curves)} runs")


if __name__ == "__main__":
    main()
