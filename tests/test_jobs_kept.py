"""What a job keeps beside its output: by what it knows itself again, and what becomes of damage."""

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_jobs import broken_off, copied, kept, pipeline
from media_files import make_video, times

from streamfix import Report, enhance
from streamfix.aligned import AlignedPipeline
from streamfix.errors import InputError, OutputError
from streamfix.faces.select import SelectLargest
from streamfix.media import open_source
from streamfix.media.segments import Segments
from streamfix.restore.passthrough import Passthrough


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


def test_of_a_mask_the_pixels_count() -> None:
    masks = [np.zeros((512, 512), bool) for _ in range(3)]
    masks[2][9] = True
    same, again, other = (AlignedPipeline(restorer=Passthrough(), mask=m).settings for m in masks)
    assert same == again != other
    assert AlignedPipeline(restorer=Passthrough()).settings["mask"] is None


@pytest.mark.parametrize("text", ["[]", "3", "null", '"job"', "[" * 100_000])
def test_a_manifest_of_something_else_begins_anew(text: str, stretch: Callable[[int], None], tmp_path: Path) -> None:
    stretch(8)
    source = make_video(tmp_path / "in.mp4", frames=20)
    with pytest.raises(KeyboardInterrupt):
        copied(source, tmp_path / "out.mp4", stop=10)
    (tmp_path / ".out.mp4.job" / "job.json").write_text(text)
    assert Segments(tmp_path / ".out.mp4.job", {}).done == 0


def test_a_full_disk_is_told_and_what_is_done_stays(
    stretch: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stretch(64)
    source = make_video(tmp_path / "in.mp4", frames=150)
    output = tmp_path / "out.mp4"

    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None:  # as a buffered file that still holds something
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    opened = Path.open

    def full(path: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        return Full() if path.name == "000001.part" else opened(path, mode, *more, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        for _ in range(2):
            with pytest.raises(OutputError, match="there is no space left"):
                enhance(source, output, model="passthrough", resume=True)
            assert kept(output) == ["000000.packets", "job.json"]
    assert enhance(source, output, model="passthrough", resume=True).resumed == 64


def test_the_manifest_of_kept_stretches_is_not_touched(stretch: Callable[[int], None], tmp_path: Path) -> None:
    """Killed while it is written anew, it would be empty, and all that is kept be thrown away."""
    stretch(64)
    source = make_video(tmp_path / "in.mp4", frames=150)
    manifest = tmp_path / ".out.mp4.job" / "job.json"
    stamps = set()
    for stop in (70, 140):
        with pytest.raises(KeyboardInterrupt):
            enhance(source, tmp_path / "out.mp4", model="passthrough", resume=True, progress=broken_off(stop))
        stamps.add(manifest.stat().st_mtime_ns)
    assert len(stamps) == 1


def test_a_job_knows_what_callers_made_by_hand(stretch: Callable[[int], None], tmp_path: Path) -> None:
    stretch(16)
    source = make_video(tmp_path / "in.mp4", frames=40)
    output = tmp_path / "out.mp4"
    with pytest.raises(KeyboardInterrupt):
        enhance(open_source(source), output, pipeline=pipeline(), resume=True, progress=broken_off(30))
    with pytest.raises(OutputError, match="deinterlace: None then, True now"):
        enhance(open_source(source, deinterlace=True), output, pipeline=pipeline(), resume=True)
    other = pipeline()
    other.select = SelectLargest()
    with pytest.raises(OutputError, match="select: None then, SelectLargest now"):
        enhance(open_source(source), output, pipeline=other, resume=True)
    assert enhance(open_source(source), output, pipeline=pipeline(), resume=True).resumed == 16


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
