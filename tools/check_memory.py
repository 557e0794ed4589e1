"""Peak memory against length: `python tools/check_memory.py CLIP --minutes 1 10`.

Loops the clip (packets copied, time stamps shifted) to each length, restores it in a process of its own, and prints the peak RSS.
Leaves with 1 when the longest needs over 60 MB more than the shortest.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import av


def loop(clip: Path, target: Path, seconds: float) -> None:
    """Copy the packets of video and sound over and over."""
    with av.open(str(target), "w") as out:
        streams, shift, length = {}, 0.0, 0.0
        while shift < seconds:
            with av.open(str(clip)) as source:
                kept = [s for s in source.streams if s.type in ("video", "audio")]
                length = max(float(s.duration * s.time_base) for s in kept if s.duration)
                start = min(float(s.start_time * s.time_base) for s in kept if s.start_time is not None)
                for stream in kept:
                    if stream.index not in streams:
                        streams[stream.index] = out.add_stream_from_template(stream)
                for packet in source.demux(kept):
                    if packet.dts is None or packet.pts is None:
                        continue
                    ticks = round((shift - start) / packet.time_base)
                    packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
                    packet.stream = streams[packet.stream.index]
                    out.mux(packet)
            shift += length + 0.2  # B frames reach back in decoding time


def peak(source: Path, target: Path) -> tuple[float, str]:
    """(peak RSS in MB, what the job said)."""
    job = subprocess.Popen(
        [sys.executable, "-m", "streamfix", "enhance", str(source), "-o", str(target)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert job.stdout is not None
    said = job.stdout.read().strip()
    _, status, usage = os.wait4(job.pid, 0)
    if status:
        sys.exit(f"the job failed: {said}")
    return usage.ru_maxrss / 1024, said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0, 10.0])
    options = parser.parse_args()
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for minutes in sorted(options.minutes):
            source = Path(folder) / "long.mkv"
            loop(options.clip, source, 60 * minutes)
            megabytes, said = peak(source, Path(folder) / "out.mkv")
            peaks.append(megabytes)
            print(f"{minutes:g} min: peak {megabytes:.1f} MB; {said.split(': ', 1)[-1]}", flush=True)
            (Path(folder) / "out.mkv").unlink()
    print(f"the longest needs {peaks[-1] - peaks[0]:+.1f} MB against the shortest")
    return int(peaks[-1] - peaks[0] > 60)


if __name__ == "__main__":
    sys.exit(main())
