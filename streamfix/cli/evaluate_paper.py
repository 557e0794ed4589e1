"""`streamfix evaluate paper`, `ablation` and `steps`: the paper's tables again, its own figures beside ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamfix.cli.common import out, told
from streamfix.cli.interlcm import numbers
from streamfix.cli.measures import bar, left_out, show, with_metrics, with_options
from streamfix.errors import ModelError, UsageError

if TYPE_CHECKING:
    from streamfix.evaluate.metrics import Picture
    from streamfix.evaluate.paper import PaperMetrics
    from streamfix.evaluate.published import PaperSet
    from streamfix.evaluate.report import SetReport
    from streamfix.evaluate.sets import Sample
    from streamfix.evaluate.timing import Timing
    from streamfix.faces.detect import Detector
    from streamfix.restore.base import Restorer

_DATA, _FILES = "Test sets", "Metrics"
_NOTE = "FID of few faces is too high: means and covariances of 2048 features want thousands; compare equal numbers."


def _files(
    landmarks: Annotated[
        Path | None,
        typer.Option(
            help="insightface landmark model (2d106det.onnx) for LMD; default: the detector's 5 points.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    inception: Annotated[
        Path | None, typer.Option(help="pt_inception-2015-12-05-6726825d.pth, for FID.", rich_help_panel=_FILES)
    ] = None,
    fid_stats: Annotated[
        Path | None,
        typer.Option(help="FID's reference as statistics: inception_FFHQ_512.pth, or an .npz.", rich_help_panel=_FILES),
    ] = None,
    fid_reference: Annotated[
        Path | None, typer.Option(help="FID's reference as a folder of clean aligned faces.", rich_help_panel=_FILES)
    ] = None,
    musiq: Annotated[
        Path | None, typer.Option(help="musiq_koniq_ckpt-e95806b9.pth, for MUSIQ by pyiqa.", rich_help_panel=_FILES)
    ] = None,
) -> dict[str, Path | None]:
    return {
        "landmarks": landmarks,
        "inception": inception,
        "fid_stats": fid_stats,
        "fid_reference": fid_reference,
        "musiq": musiq,
    }


def _data(
    set_: Annotated[
        list[str],
        typer.Option("--set", help="celeba, lfw, webphoto or wider; may be repeated.", rich_help_panel=_DATA),
    ],
    data: Annotated[
        list[Path], typer.Option(help="Its folder; once for each --set, in the same order.", rich_help_panel=_DATA)
    ],
    limit: Annotated[int | None, typer.Option(help="How many faces of each set.", min=1, rich_help_panel=_DATA)] = None,
    degradation: Annotated[
        str,
        typer.Option(help="paper, heavy, mild or footage, for clean faces without a folder lq.", rich_help_panel=_DATA),
    ] = "paper",
    degradation_seed: Annotated[int, typer.Option(help="Of that degradation.", min=0, rich_help_panel=_DATA)] = 0,
    photos: Annotated[
        bool,
        typer.Option("--photos", help="Folders hold whole pictures; the largest face is taken.", rich_help_panel=_DATA),
    ] = False,
    detector: Annotated[str, typer.Option(help="As for enhance.", rich_help_panel=_DATA)] = "retinaface",
) -> dict[str, Any]:
    from streamfix.evaluate.published import SETS

    unknown = [s for s in set_ if s not in SETS]
    if unknown:
        raise UsageError(f"there is no test set called {unknown[0]!r}; choose among: {', '.join(SETS)}")
    if len(set_) != len(data) or len(set(set_)) != len(set_):
        raise UsageError("every --set needs one --data, and stands once: --set celeba --data DIR --set lfw --data DIR")
    options = {"limit": limit, "degradation": degradation, "seed": degradation_seed}
    return {"folders": dict(zip(set_, data, strict=True)), "options": options, "photos": photos, "detector": detector}


with_data = with_options("data", _data)
with_files = with_options("files", _files)

Model = Annotated[str, typer.Option(help="As for enhance.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
Precision = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="Folder for Markdown, CSV and PNG.", metavar="DIR")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")]
Shown = Annotated[int, typer.Option(help="How many faces the picture shows.", min=0, max=16)]
Batches = Annotated[str, typer.Option(help="Batch sizes that are timed, beginning with 1; empty: no times.")]


@told
@with_metrics
@with_files
@with_data
def evaluate_paper(
    model: Model = "auto",
    output: Output = Path("evaluation"),
    overwrite: Overwrite = False,
    shown: Shown = 8,
    batches: Batches = "1,2,4,8",
    device: Device = "auto",
    dtype: Precision = "auto",
    data: Any = None,
    files: Any = None,
    metrics: Any = None,
) -> None:
    """Table 1: a model on the paper's test sets, the published figures beside it."""
    from streamfix.evaluate.paper import stacked
    from streamfix.evaluate.published import TABLE_1
    from streamfix.evaluate.report import Method
    from streamfix.evaluate.timing import time_restorer
    from streamfix.restore.base import describe, load_restorer

    sizes = numbers(batches, int) if batches else []
    measures, samples = _prepared(data, files, metrics, output, "table1", overwrite)
    restorer = load_restorer(model, device=device, dtype=dtype)
    timing, notes, reports = None, [describe(restorer)], []
    if sizes:
        timing = time_restorer(restorer, stacked(next(iter(samples.values()))), batch_sizes=sizes)
        notes.append(_said(timing))
    for paper_set, faces in samples.items():
        lines = {"input": None, restorer.name: restorer}
        scores = {name: _scored(name, faces, who, measures, shown) for name, who in lines.items()}
        methods = [Method.measured(n, s, timing if lines[n] is not None else None) for n, s in scores.items()]
        reports.append(_beside(TABLE_1, paper_set, faces, methods, shown))
        notes += _unfound(paper_set, scores)
    _finish(output, "table1", reports, notes, measures, overwrite)


@told
@with_metrics
@with_files
@with_data
def evaluate_ablation(
    model: Model = "interlcm",
    prompt: Annotated[str | None, typer.Option(help="Text of the variant that has one.")] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="LABEL=MODEL, one more line, such as a network of your own; may be repeated."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Lines to compute, by a part of their label; may be repeated.")
    ] = None,
    output: Output = Path("evaluation"),
    overwrite: Overwrite = False,
    shown: Shown = 8,
    device: Device = "auto",
    dtype: Precision = "auto",
    data: Any = None,
    files: Any = None,
    metrics: Any = None,
) -> None:
    """Table 2: where the loop starts, and which encoder speaks, the published figures beside it."""
    from streamfix.evaluate.ablation import PROMPT, Loader, variants
    from streamfix.evaluate.published import TABLE_2, Row
    from streamfix.evaluate.report import Method

    lines = variants(model, prompt=prompt or PROMPT)
    for text in variant or ():
        label, equals, spec = text.partition("=")
        if not equals or not label or not spec:
            raise UsageError(f"{text!r} is no line of a table; write LABEL=MODEL")
        lines[label] = spec
    if only:
        lines = {label: spec for label, spec in lines.items() if any(word in label for word in only)}
        if not lines:
            raise UsageError(f"no line is called {', '.join(only)}; leave --only out to see all")
    measures, samples = _prepared(data, files, metrics, output, "table2", overwrite)
    loader = Loader(device=device, dtype=dtype)
    methods: dict[str, list[Method]] = {s.key: [] for s in samples}
    notes = ["The paper trained a network for each line; ours switch parts of the given weights off."]
    absent = []
    for label, spec in lines.items():
        try:
            with loader.restorer(spec) as restorer:
                for paper_set, faces in samples.items():
                    scores = _scored(label, faces, restorer, measures, shown)
                    methods[paper_set.key].append(Method.measured(label, scores))
        except ModelError as error:
            absent.append(f"{label} ({error})")
    if not any(methods.values()):
        raise ModelError(f"none of the variants could be computed: {'; '.join(absent)}")
    rows = [Row(label, row.values) for label, row in TABLE_2.items()]
    reports = [_beside(rows, s, faces, methods[s.key], shown) for s, faces in samples.items()]
    _finish(output, "table2", reports, notes, measures, overwrite, absent)


@told
@with_metrics
@with_files
@with_data
def evaluate_steps(
    model: Model = "interlcm",
    steps: Annotated[str, typer.Option(help="Steps to compare.")] = "2,3,4",
    guidance: Annotated[str, typer.Option(help="Guidance scales to compare.")] = "6,8,12",
    output: Output = Path("evaluation"),
    overwrite: Overwrite = False,
    shown: Shown = 3,
    size: Annotated[int, typer.Option(help="Side of each face on the sheets, in pixels.", min=64, max=512)] = 320,
    device: Device = "auto",
    data: Any = None,
    files: Any = None,
    metrics: Any = None,
) -> None:
    """Steps by guidance: every setting measured, and sheets of the first few faces under all of them."""
    import numpy as np

    from streamfix.evaluate.paper import stacked
    from streamfix.evaluate.report import Method, SetReport, check_free, png
    from streamfix.evaluate.timing import time_restorer
    from streamfix.media.part import write_whole
    from streamfix.parameters import settings_of, sheet_of

    wanted = numbers(steps, int), numbers(guidance, float)
    measures, samples = _prepared(data, files, metrics, output, "steps", overwrite)
    sheets = {s: [output / f"steps-{s.key}-{n + 1}.png" for n in range(min(shown, len(f)))] for s, f in samples.items()}
    check_free([path for paths in sheets.values() for path in paths], overwrite=overwrite)
    restorers = settings_of(model, *wanted, device=device)
    crops = stacked(next(iter(samples.values())), 1)
    reports = []
    for paper_set, faces in samples.items():
        scores = {}
        for (s, g), restorer in restorers.items():
            scores[s, g] = _scored(f"steps {s}, guidance {g:g}", faces, restorer, measures, shown)
        timings = {k: time_restorer(r, crops, batch_sizes=(1,), budget=3) for k, r in restorers.items()}
        methods = [Method.measured(f"{s} steps, guidance {g:g}", v, timings[s, g]) for (s, g), v in scores.items()]
        reports.append(SetReport(paper_set, len(faces), methods))
        for number, path in enumerate(sheets[paper_set]):
            results = {setting: s.pictures[number] for setting, s in scores.items()}
            write_whole(path, png(np.asarray(sheet_of(faces[number].load()[0], results, size=size))))
            out.print(f"{path}", highlight=False, markup=False, soft_wrap=True)
    _finish(output, "steps", reports, [], measures, overwrite)


def _prepared(
    data: Any, files: Any, metrics: Any, output: Path, name: str, overwrite: bool
) -> tuple[PaperMetrics, dict[PaperSet, list[Sample]]]:
    """Metrics and samples; what would fail at the end is told before anything is computed."""
    import torch

    from streamfix.evaluate.landmarks import load_landmarks
    from streamfix.evaluate.paper import load_paper_metrics
    from streamfix.evaluate.published import SETS
    from streamfix.evaluate.report import check_free, check_plotting
    from streamfix.evaluate.sets import samples_of
    from streamfix.faces.detect import load_detector

    check_plotting()
    check_free([output / f"{name}{suffix}" for suffix in (".md", ".csv", ".png")], overwrite=overwrite)
    detector = load_detector(data["detector"])
    cut = _cutter(detector) if data["photos"] else None
    samples = {SETS[key]: samples_of(SETS[key], d, cut=cut, **data["options"]) for key, d in data["folders"].items()}
    points = load_landmarks(detector, files.pop("landmarks"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return load_paper_metrics(metrics, landmarks=points, device=device, **files), samples


def _cutter(detector: Detector) -> Callable[[Path], Picture]:
    from streamfix.parameters import face_of

    return lambda path: face_of(path, aligned=False, detector=detector)


def _scored(label: str, faces: Sequence[Sample], restorer: Restorer | None, metrics: PaperMetrics, keep: int) -> Any:
    from streamfix.evaluate.paper import score_method

    with bar() as progress:
        task = progress.add_task(label, total=len(faces))
        return score_method(faces, restorer, metrics, keep=keep, progress=lambda: progress.advance(task))


def _beside(rows: Any, paper_set: PaperSet, faces: Sequence[Sample], methods: Any, shown: int) -> SetReport:
    from streamfix.evaluate.report import SetReport

    report = SetReport.beside(rows, paper_set, len(faces), methods)
    if paper_set.paired:
        report.truths = [t for s in faces[:shown] if (t := s.load()[1]) is not None]
    return report


def _said(timing: Timing) -> str:
    sizes = ", ".join(f"{size}: {seconds:.4f}" for size, seconds in timing.seconds.items())
    stopped = f"; {timing.stopped}" if timing.stopped else ""
    return f"Median seconds a face by batch size, after a warm-up: {sizes}; best {timing.best[0]}{stopped}."


def _unfound(paper_set: PaperSet, scores: Any) -> list[str]:
    """Faces that landmark distances leave out."""
    return [
        f"LMD of {name} on {paper_set.name} leaves out {s.unfound} of {s.faces} faces in which none was found."
        for name, s in scores.items()
        if s.unfound
    ]


def _finish(
    output: Path,
    name: str,
    reports: list[SetReport],
    notes: list[str],
    metrics: PaperMetrics,
    overwrite: bool,
    absent: Sequence[str] = (),
) -> None:
    from streamfix.evaluate.report import save_report

    if any("FID" in column for r in reports for m in r.methods if not m.published for column in m.values):
        notes.append(_NOTE)
    if metrics.landmarks is not None and any("LMD" in m.values for r in reports for m in r.methods):
        notes.append(f"LMD by {metrics.landmarks.name}, in pixels of the 512x512 crop.")
    with_truth = any(r.paper_set.paired for r in reports)
    missing = [*(metrics.pair.missing if with_truth else ()), *metrics.missing, *absent]
    for report in reports:
        table = report.table()
        show(table.turned() if len(table.columns) > len(table.rows) else table)
    for note in notes:
        out.print(note, highlight=False, markup=False, soft_wrap=True)
    left_out(missing)
    save_report(output, name, reports, [*notes, *(f"Left out: {m}" for m in missing)], overwrite=overwrite)
    out.print(f"{output / name}.md, .csv, .png", highlight=False, markup=False, soft_wrap=True)
