"""A job that was broken off and goes on gives what one run gives."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_jobs import broken_off, copied, kept, pipeline
from conftest import decode, degraded, moved, planes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from media_files import hashes, make_video, pictures, times

from streamfix import enhance
from streamfix.enlarge import EnlargingPipeline
from streamfix.errors import OutputError
from streamfix.media import open_sink, open_source


@pytest.mark.parametrize(("recurrent", "frames", "length"), [(False, 75, 32), (True, 140, 64)])
def test_what_goes_on_is_what_one_run_gives(
    recurrent: bool,
    frames: int,
    length: int,
    stretch: Callable[[int], None],
    clip: Callable[..., Path],
    face_picture: np.ndarray,
    tmp_path: Path,
) -> None:
    stretch(length)
    small = np.ascontiguousarray(face_picture[::2, ::2])
    source = clip("in.mkv", [degraded(moved(small, 9 * np.sin(n / 9), n / 40), n) for n in range(frames)], sound=True)
    output, whole, plain = (tmp_path / name for name in ("out.mp4", "whole.mp4", "plain.mp4"))
    expected = enhance(source, whole, pipeline=pipeline(recurrent=recurrent), resume=True, codec="ffv1")
    enhance(source, plain, pipeline=pipeline(recurrent=recurrent), codec="ffv1")
    done = 0
    for at in (length + 3, frames - 1):
        with pytest.raises(KeyboardInterrupt):
            enhance(
                source,
                output,
                pipeline=pipeline(recurrent=recurrent),
                resume=True,
                codec="ffv1",
                progress=broken_off(at),
            )
        done = at // length
        assert kept(output) == [*(f"{k:06d}.packets" for k in range(done)), "job.json"]
    assert not output.exists()
    last = pipeline(recurrent=recurrent)
    report = enhance(source, output, pipeline=last, resume=True, codec="ffv1")
    assert (report.frames, report.resumed) == (frames, done * length)
    for name in ("faces", "frames_with_faces", "figures", "damaged"):
        assert getattr(report, name) == getattr(expected, name)
    assert output.read_bytes() == whole.read_bytes()
    for one, two in zip(decode(output), decode(plain), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(planes(one), planes(two), strict=True))
    assert hashes(output, "audio") == hashes(plain, "audio")
    assert not kept(output)
    # nothing is done twice but for a warm-up, and the first frame
    left = frames - done * length
    assert last.detector.calls <= left  # type: ignore[attr-defined]
    assert last.restorer.crops <= left + 4 + (88 + 3 * 8 if recurrent else 16)  # type: ignore[attr-defined]


def test_a_killed_process_goes_on(clip: Callable[..., Path], face_picture: np.ndarray, tmp_path: Path) -> None:
    small = np.ascontiguousarray(face_picture[::2, ::2])
    source = clip("in.mp4", [moved(small, n % 9, 0) for n in range(150)], codec="libx264")

    def command(output: str) -> list[str]:
        options = ["--model", "passthrough", "--resume"]
        return [sys.executable, "-m", "streamfix", "enhance", str(source), "-o", str(tmp_path / output), *options]

    whole = subprocess.run(command("whole.mp4"), check=True, capture_output=True, text=True).stdout
    assert "150 frames, 150 faces of 1 person" in whole.replace("\n", " ")
    job = subprocess.Popen(command("out.mp4"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (tmp_path / ".out.mp4.job" / "000000.packets").exists():
        assert job.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert not (tmp_path / "out.mp4").exists()
    again = subprocess.run(command("out.mp4"), check=True, capture_output=True, text=True).stdout
    assert "of them before), 150 faces of 1 person" in again.replace("\n", " ")
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    there = subprocess.run([*command("out.mp4"), "--sidecar"], check=True, capture_output=True, text=True).stdout
    assert "there already, left as it is, without a sidecar; --overwrite writes both" in there.replace("\n", " ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mp4", "out.mp4", "whole.mp4"]


STEPS = st.lists(st.integers(1, 4000), min_size=1, max_size=30)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, codec=st.sampled_from(["h264", "hevc"]), stop=st.integers(1, 30))
def test_times_are_exact_across_stretches(
    steps: list[int], codec: str, stop: int, stretch: Callable[[int], None], tmp_path: Path
) -> None:
    """With B frames, whose encoder counts back from its own first frames."""
    stretch(5)
    stamps = [7, *(7 + sum(steps[: n + 1]) for n in range(len(steps)))]
    clock = Fraction(1, 12800)
    source = make_video(tmp_path / "in.mkv", pts=stamps, time_base=clock, codec="ffv1", size=(96, 64))
    with open_source(source) as frames:
        wanted = [frame.pts * frame.time_base for frame in frames]
    output = tmp_path / "out.mp4"
    output.unlink(missing_ok=True)
    try:
        copied(source, output, stop=stop, codec=codec, preset="faster")
    except KeyboardInterrupt:
        assert not output.exists()
        copied(source, output, codec=codec, preset="faster")
    assert times(output) == wanted
    whole = copied(source, tmp_path / "whole.mp4", codec=codec, preset="faster")
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("name", "codec", "sound"),
    [
        ("out.mkv", "av1", "aac"),
        ("out.mov", "prores_ks", "aac"),
        ("out.avi", "mpeg4", "mp2"),
        ("out.mpg", "auto", "mp2"),
        ("out.ts", "h264", "mp2"),
    ],
)
def test_containers_take_stretches(
    name: str, codec: str, sound: str, stretch: Callable[[int], None], tmp_path: Path
) -> None:
    stretch(8)
    source = make_video(
        tmp_path / "in.mp4", frames=30, rate=25, time_base=Fraction(1, 25), size=(96, 64), audio=[sound]
    )
    plain = tmp_path / f"plain{Path(name).suffix}"
    with open_source(source) as frames, open_sink(plain, like=frames, codec=codec) as sink:
        for frame in frames:
            sink.write(frame)
    with pytest.raises(KeyboardInterrupt):
        copied(source, tmp_path / name, stop=20, codec=codec)
    output = copied(source, tmp_path / name, codec=codec)
    assert times(output) == times(plain)
    assert hashes(output, "audio") == hashes(plain, "audio")
    for one, two in zip(pictures(output), pictures(plain), strict=True):
        assert np.abs(one[0].astype(int) - two[0]).mean() < 0.01 * np.ptp(two[0])


def test_numbers_of_every_kind_may_be_given(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", frames=40)
    given: dict[str, Any] = {"start": Fraction(1, 2), "end": np.float32(1), "crf": np.int64(20)}
    output = tmp_path / "out.mp4"
    enhance(source, output, model="passthrough", resume=True, sidecar=True, **given)
    stored = json.loads((tmp_path / "out.mp4.json").read_text())["settings"]
    assert (stored["from"], stored["to"], stored["crf"]) == (0.5, 1, 20)


def test_every_frame_may_be_done(stretch: Callable[[int], None], tmp_path: Path) -> None:
    stretch(64)
    source = make_video(tmp_path / "in.mp4", frames=128, audio=["aac"])
    output = tmp_path / "out.mp4"
    with pytest.raises(KeyboardInterrupt):
        enhance(source, output, model="passthrough", resume=True, progress=broken_off(128))
    report = enhance(source, output, model="passthrough", resume=True)
    assert (report.frames, report.resumed) == (128, 128)
    assert times(output) == times(source)


def test_a_range_goes_on(stretch: Callable[[int], None], tmp_path: Path) -> None:
    stretch(64)
    source = make_video(tmp_path / "in.mp4", frames=200, audio=["aac"])
    for name in ("out.mp4", "whole.mp4"):
        if name == "out.mp4":
            with pytest.raises(KeyboardInterrupt):
                enhance(
                    source,
                    tmp_path / name,
                    model="passthrough",
                    start=1,
                    end=6,
                    resume=True,
                    progress=broken_off(100),
                )
        report = enhance(source, tmp_path / name, model="passthrough", start=1, end=6, resume=True)
        assert report.frames == 150
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_what_is_enlarged_and_compared_goes_on(
    stretch: Callable[[int], None], clip: Callable[..., Path], face_picture: np.ndarray, tmp_path: Path
) -> None:
    """Frames that are done come by as they were: of another size, and without the comparison."""
    stretch(32)
    small = np.ascontiguousarray(face_picture[::2, ::2])
    source = clip("in.mkv", [degraded(small, n) for n in range(70)])
    for name in ("out.mp4", "whole.mp4"):
        options = {"resume": True, "compare": True}
        if name == "out.mp4":
            large = EnlargingPipeline(pipeline(), factor=1.5)
            with pytest.raises(KeyboardInterrupt):
                enhance(source, tmp_path / name, pipeline=large, progress=broken_off(69), **options)
        report = enhance(source, tmp_path / name, pipeline=EnlargingPipeline(pipeline(), factor=1.5), **options)
        assert (report.faces, report.frames) == (70, 70)
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert {(f.width, f.height) for f in decode(tmp_path / "out.mp4")} == {(480, 180)}


@pytest.mark.parametrize(("name", "codec"), [("out.webm", "auto"), ("out.mkv", "libvpx-vp9"), ("out.mkv", "libvpx")])
def test_transparency_beside_the_packets_is_refused(name: str, codec: str, tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", codec="ffv1", pix_fmt="yuva420p", frames=3)
    with pytest.raises(OutputError, match=r"leave --resume out, or write \.mov or \.mkv"):
        enhance(source, tmp_path / name, model="passthrough", resume=True, codec=codec)
    assert enhance(source, tmp_path / "out.mkv", model="passthrough", resume=True).frames == 3
