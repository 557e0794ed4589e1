"""A job that was broken off and goes on gives what one run gives."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import decode, degraded, moved, planes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from media_files import hashes, make_video, pictures, times

from streamfix import Pipeline, Report, enhance, jobs
from streamfix.enlarge import EnlargingPipeline
from streamfix.errors import InputError, OutputError
from streamfix.faces.align import template
from streamfix.media import open_sink, open_source, segments, video_sink
from streamfix.media.segments import Segments
from streamfix.types import Face, Image


class Counting:
    """A face in the middle, which jitters as the picture's light does, with an embedding every other time; counts its calls."""

    name = "counting"

    def __init__(self) -> None:
        self.calls = 0

    def detect(self, image: Image) -> list[Face]:
        self.calls += 1
        height, width = image.shape[:2]
        side, at = height / 2, image.mean() % 1
        box = np.array([width / 2 - side / 2, side / 2, width / 2 + side / 2, 3 * side / 2], np.float32)
        points = template(round(side)) + box[:2] + at
        vector = np.full(4, 0.5, np.float32) if int(image[0, 0, 0]) % 2 else None
        return [Face(box=box, landmarks=points.astype(np.float32), score=0.9 + at / 20, embedding=vector)]


class Sharper:
    """Detail made stronger, the more the more the frames before were; it tells how many crops it saw."""

    name, sha256, device, dtype, recurrent = "sharper", "0" * 64, torch.device("cpu"), torch.float32, False

    def __init__(self) -> None:
        self.crops = 0

    def restore(self, crops: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        self.crops += len(crops)
        return (crops + 2 * (crops - crops.roll(1, -1))).clamp(-1, 1)

    def restore_next(
        self, crops: torch.Tensor, states: list[torch.Tensor | None]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        restored = self.restore(crops)
        for face, state in zip(restored, states, strict=True):
            if state is not None:
                face.lerp_(state, 0.7)
        return restored, list(restored)


def pipeline(*, recurrent: bool = False) -> Pipeline:
    return Pipeline(restorer=Sharper(), detector=Counting(), recurrent=recurrent)  # type: ignore[arg-type]


@pytest.fixture
def stretch(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many frames a stretch has."""

    def patch(frames: int) -> None:
        for module in (segments, video_sink, jobs):
            monkeypatch.setattr(module, "SEGMENT", frames)

    return patch


def broken_off(at: int) -> Callable[[Report], None]:
    def stop(report: Report) -> None:
        if report.frames == at:
            raise KeyboardInterrupt

    return stop


def kept(output: Path) -> list[str]:
    return sorted(p.name for p in output.parent.glob(f".{output.name}.job/*"))


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
    there = subprocess.run(command("out.mp4"), check=True, capture_output=True, text=True).stdout
    assert "there already, left as it is" in there.replace("\n", " ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mp4", "out.mp4", "whole.mp4"]


def copied(source: Path, output: Path, *, stop: int | None = None, **options: object) -> Path:
    folder = output.with_name(f".{output.name}.job")
    parts = Segments(folder, {})
    with (
        open_source(source) as frames,
        open_sink(output, like=frames, overwrite=True, segments=parts, **options) as sink,
    ):
        for frame in frames:
            if frame.index == stop:
                raise KeyboardInterrupt
            sink.write(frame)
    parts.remove()
    return output


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


def test_a_job_of_other_settings_is_not_mixed_in(stretch: Callable[[int], None], tmp_path: Path) -> None:
    stretch(64)
    source = make_video(tmp_path / "in.mp4", frames=100)
    output = tmp_path / "out.mp4"
    for stop in (100, 90):  # as it was broken off, so it may be again
        with pytest.raises(KeyboardInterrupt):
            enhance(source, output, model="passthrough", resume=True, crf=20, progress=broken_off(stop))
    for options, words in (({"crf": 21}, "crf: 20 then, 21 now"), ({"crf": 20, "strength": 0.5}, "strength: 1.0 then")):
        with pytest.raises(
            OutputError, match=rf"\.out\.mp4\.job keeps .* another job \(.*{words}.*\); call it as then"
        ):
            enhance(source, output, model="passthrough", resume=True, **options)
    assert kept(output)
    make_video(source, frames=101)
    with pytest.raises(OutputError, match=r"input: in\.mp4, .* bytes"):
        enhance(source, output, model="passthrough", resume=True, crf=20)
    # without resume nothing is kept, and nothing is asked
    assert enhance(source, output, model="passthrough", crf=21).frames == 101


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "manifest"])
def test_a_broken_stretch_is_done_again(damage: str, stretch: Callable[[int], None], tmp_path: Path) -> None:
    stretch(64)
    source = make_video(tmp_path / "in.mp4", frames=200)
    output = tmp_path / "out.mp4"
    with pytest.raises(KeyboardInterrupt):
        enhance(source, output, model="passthrough", resume=True, progress=broken_off(199))
    folder = tmp_path / ".out.mp4.job"
    assert kept(output) == ["000000.packets", "000001.packets", "000002.packets", "job.json"]
    file = folder / "000001.packets"
    data = file.read_bytes()
    if damage == "flip":
        file.write_bytes(data[:500] + bytes([data[500] ^ 4]) + data[501:])
    elif damage == "manifest":
        (folder / "job.json").write_text("[]")
    else:
        file.write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
    if damage == "flip":  # what came after it was found in other company
        with pytest.raises(KeyboardInterrupt):
            enhance(source, output, model="passthrough", resume=True, progress=broken_off(130))
        assert kept(output) == ["000000.packets", "000001.packets", "job.json"]
        file.write_bytes(data)
    report = enhance(source, output, model="passthrough", resume=True)
    if damage == "flip":
        assert report.resumed == 128
    else:
        assert report.resumed == (0 if damage == "manifest" else 64)
    assert report.frames == 200
    whole = tmp_path / "whole.mp4"
    enhance(source, whole, model="passthrough", resume=True)
    assert output.read_bytes() == whole.read_bytes()


def test_nothing_is_left_of_what_hardly_began(stretch: Callable[[int], None], tmp_path: Path) -> None:
    stretch(64)
    source = make_video(tmp_path / "in.mp4", frames=100)
    with pytest.raises(KeyboardInterrupt):
        enhance(source, tmp_path / "out.mp4", model="passthrough", resume=True, progress=broken_off(63))
    assert [p.name for p in tmp_path.iterdir()] == ["in.mp4"]
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(InputError):
        enhance(tmp_path / "empty.mp4", tmp_path / "out.mp4", model="passthrough", resume=True)
    assert not list(tmp_path.glob(".*"))


def test_every_frame_may_be_done(stretch: Callable[[int], None], tmp_path: Path) -> None:
    stretch(64)
    source = make_video(tmp_path / "in.mp4", frames=128, audio=["aac"])
    output = tmp_path / "out.mp4"
    with pytest.raises(KeyboardInterrupt):
        enhance(source, output, model="passthrough", resume=True, progress=broken_off(128))
    report = enhance(source, output, model="passthrough", resume=True)
    assert (report.frames, report.resumed) == (128, 128)
    assert times(output) == times(source)


def test_a_second_run_leaves_the_first_ones_alone(stretch: Callable[[int], None], tmp_path: Path) -> None:
    stretch(64)
    source = make_video(tmp_path / "in.mp4", frames=150)
    output = tmp_path / "out.mp4"

    def beside(report: Report) -> None:
        if report.frames in (40, 100):
            with pytest.raises(OutputError, match="being written by another run"):
                enhance(source, output, model="passthrough", resume=True)

    enhance(source, output, model="passthrough", resume=True, progress=beside)
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


def test_transparency_beside_the_packets_is_refused(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", codec="ffv1", pix_fmt="yuva420p", frames=3)
    with pytest.raises(OutputError, match=r"leave --resume out, or write \.mov or \.mkv"):
        enhance(source, tmp_path / "out.webm", model="passthrough", resume=True)
    assert enhance(source, tmp_path / "out.mkv", model="passthrough", resume=True).frames == 3


def test_a_sidecar_says_where_the_faces_come_from(
    stretch: Callable[[int], None], clip: Callable[..., Path], face_picture: np.ndarray, tmp_path: Path
) -> None:
    stretch(32)
    small = np.ascontiguousarray(face_picture[::2, ::2])
    source = clip("in.mkv", [degraded(small, n) for n in range(50)])
    output, beside = tmp_path / "out.mkv", tmp_path / "out.mkv.json"
    options = {"resume": True, "sidecar": True, "codec": "ffv1"}
    with pytest.raises(KeyboardInterrupt):
        enhance(source, output, pipeline=pipeline(), progress=broken_off(40), **options)
    assert not beside.exists()
    enhance(source, output, pipeline=pipeline(), **options)
    facts = json.loads(beside.read_text())
    for key, path in (("input", source), ("output", output)):
        whole = path.read_bytes()
        assert facts[key] == {"name": path.name, "bytes": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}
    assert facts["model"] == {"name": "sharper", "sha256": "0" * 64, "device": "cpu", "dtype": "float32"}
    assert "not evidence" in facts["notice"]
    assert facts["settings"]["codec"] == "ffv1"
    assert (facts["frames"], facts["frames_with_faces"], facts["faces"]) == (50, 50, 50)
    (track,) = facts["tracks"]
    assert (track["frames"], track["first_s"], track["last_s"]) == (50, 0.0, 1.96)
    assert track["face_px"] == pytest.approx(36, rel=0.1)  # of a crop of 60
    assert 0.9 < track["used_mean"] <= track["used_most"] <= 1
    # a face that is sharp already is left, and the file says so
    enhance(source, output, model="passthrough", sidecar=True, overwrite=True, codec="ffv1")
    (track,) = json.loads(beside.read_text())["tracks"]
    assert (track["used_mean"], track["used_most"]) == (0, 0)


def test_a_sidecar_is_not_overwritten_unasked(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", frames=3)
    (tmp_path / "out.mp4.json").write_text("mine")
    with pytest.raises(OutputError, match=r"out\.mp4\.json exists already"):
        enhance(source, tmp_path / "out.mp4", model="passthrough", sidecar=True)
    assert not (tmp_path / "out.mp4").exists()
    enhance(source, tmp_path / "out.mp4", model="passthrough", sidecar=True, overwrite=True)
    assert json.loads((tmp_path / "out.mp4.json").read_text())["tracks"] == []
