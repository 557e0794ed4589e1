"""Everything that media can be (media_zoo.CASES), through a whole job: all of it comes out as it went in, or one sentence says why not.

The restorer changes nothing, so that whatever differs is the fault of the media layer.
"""

import logging
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from media_files import packets, planes, times
from media_zoo import CASES, Case, make

from streamfix import enhance, load_pipeline
from streamfix.errors import StreamfixError
from streamfix.media import open_source
from streamfix.media.base import HdrMetadata
from streamfix.pipeline import Pipeline

NEW_TAGS = {
    "enhanced",
    "comment",
    "encoder",
    "major_brand",
    "minor_version",
    "compatible_brands",
    "duration",
    "handler_name",
    "vendor_id",
}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline(model="passthrough", detector="retinaface", protect=False)


@pytest.mark.parametrize("name", CASES)
def test_what_goes_in_comes_out(
    name: str, tmp_path: Path, pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    case, source = CASES[name], make(name, tmp_path)
    target = tmp_path / f"out{case.out or case.suffix}"
    caplog.set_level(logging.WARNING, "streamfix")
    if case.refused is not None:
        with pytest.raises(StreamfixError, match=case.refused) as caught:
            enhance(source, target, pipeline=pipeline, **case.options)
        assert not re.search(r"\n|\.$", str(caught.value))
        assert [p.name for p in tmp_path.iterdir()] == [source.name]
        return
    report = enhance(source, target, pipeline=pipeline, **case.options)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([source.name, target.name])
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == (case.says is not None), said
    assert case.says is None or re.search(case.says, said[0])
    assert bool(report.damaged) == case.damaged
    assert report.faces >= report.frames * case.faces
    same_times(source, target, report.frames)
    same_pictures(source, target, case)
    assert beside(target) == beside(source)


def same_times(source: Path, target: Path, written: int) -> None:
    with av.open(str(target)) as container:
        tick = container.streams.video[0].time_base
        exact = container.format.name.startswith("mov")
    before, after = when(source), when(target)
    assert len(before) == len(after) == written
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) <= (0 if exact else tick / 2)


def when(path: Path) -> list[Fraction]:
    """Times of the decoded frames, by FFmpeg alone but for what has no pts: AVI (by its frame numbers) and raw streams."""
    if path.suffix not in (".avi", ".h264"):
        return times(path)
    with open_source(path) as frames:
        return [f.pts * f.time_base for f in frames]


def same_pictures(source: Path, target: Path, case: Case) -> None:
    """Size, depth, chroma, alpha, tags, HDR, rotation, sample aspect; and the samples themselves."""
    with open_source(source) as one, open_source(target) as two:
        first = None
        error, count = 0.0, 0
        for before, after in zip(one, two, strict=True):
            a, b = before.picture, after.picture
            first = first or (a, b)
            name = "rgb24" if a.format.is_rgb else a.format.name
            a, b = (p if p.format.name == name else p.reformat(format=name) for p in (a, b))
            if (a.width, a.height) != (b.width, b.height):
                b = b.reformat(a.width, a.height)
            peak = 2 ** a.format.components[0].bits - 1
            for x, y in zip(samples(a), samples(b), strict=True):
                error += float((((x - y) / peak) ** 2).sum())
                count += x.size
        assert first is not None
        a, b = first
        assert 10 * np.log10(count / max(error, 1e-9)) > case.psnr
        assert (b.width, b.height) == (a.width, a.height)
        if case.says is None:
            assert all(y >= x for x, y in zip(layout(a), layout(b), strict=True))
        for tag in ("matrix", "transfer", "primaries", "range"):
            known = getattr(one.color, tag)
            unknown = 0 if tag == "range" else 2
            assert getattr(two.color, tag) == known or known == unknown or a.format.is_rgb, tag
        same_hdr(one.hdr, two.hdr)
        assert one.display_matrix == two.display_matrix
        assert one.rotation == two.rotation
        assert (one.sample_aspect_ratio or 1) == (two.sample_aspect_ratio or 1)


def layout(picture: av.VideoFrame) -> tuple[int, bool, int]:
    """Bits of a sample, whether there is alpha, samples of the second component (of 256; luma's where there is none)."""
    form = av.VideoFormat(picture.format.name, 16, 16)
    parts = form.components
    chroma = 0 if len(parts) < 3 else parts[1].width * parts[1].height
    return parts[0].bits, any(c.is_alpha for c in parts), chroma


def samples(picture: av.VideoFrame) -> list[np.ndarray]:
    deep = picture.format.components[0].bits > 8
    return [p.view("<u2" if deep else np.uint8).astype(np.float64) for p in planes(picture)]


def same_hdr(one: HdrMetadata | None, two: HdrMetadata | None) -> None:
    if one is None:
        assert two is None
        return
    assert two is not None
    assert two.content_light == one.content_light
    assert numbers(two) == pytest.approx(numbers(one), rel=2e-2)


def numbers(hdr: HdrMetadata) -> list[float]:
    assert hdr.primaries is not None
    assert hdr.white is not None
    assert hdr.luminance is not None
    return [float(v) for pair in (*hdr.primaries, hdr.white, hdr.luminance) for v in pair]


def beside(path: Path) -> dict[str, Any]:
    """All that is not the restored video: tags, chapters, streams with their packets and, to the hundredth, their times."""
    with av.open(str(path)) as container:
        chapters = [
            (round(float(c["start"] * c["time_base"]), 3), round(float(c["end"] * c["time_base"]), 3), c["metadata"])
            for c in container.chapters()
        ]
        streams = [
            (s.type, s.name, s.language, s.disposition) if s.type != "attachment" else (s.type, s.metadata)
            for s in container.streams
            if s is not container.streams.video[0]
        ]
        tags = {k.lower(): v for k, v in container.metadata.items() if k.lower() not in NEW_TAGS}
        found: dict[str, Any] = {"chapters": chapters, "streams": streams, "tags": tags}
    for kind in ("audio", "subtitle"):
        found[kind] = [
            [(digest, round(float(at), 2)) for digest, at in stream]
            for _, stream in sorted(packets(path, kind).items())
        ]
    return found


def test_the_output_tells_that_it_was_restored(tmp_path: Path, pipeline: Pipeline) -> None:
    for name in ("ts", "mov", "webm", "avi", "cover"):
        source = make(name, tmp_path)
        target = tmp_path / f"restored{source.suffix}"
        enhance(source, target, pipeline=pipeline, overwrite=True, end=0.1)
        with av.open(str(target)) as container:
            told = " ".join(container.metadata.values())
        assert "faces restored by streamfix" in told or name in ("ts", "avi"), name


def test_a_high_dynamic_range_goes_through_every_codec_that_holds_it(tmp_path: Path, pipeline: Pipeline) -> None:
    source = make("hdr10", tmp_path)
    for codec in ("h264", "hevc", "av1"):
        target = tmp_path / f"{codec}.mp4"
        enhance(source, target, pipeline=pipeline, codec=codec)
        with open_source(source) as one, open_source(target) as two:
            same_hdr(one.hdr, two.hdr)
            assert (two.color.transfer, two.color.primaries, two.color.matrix) == (16, 9, 9)
            assert two.pixels == "yuv420p10le"
