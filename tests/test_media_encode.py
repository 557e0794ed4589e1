"""Pixel formats, colour tags and HDR metadata on their way through the encoders."""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import make_video, pattern, pictures, planes, times
from test_media_time import copy

from streamfix.errors import OutputError, UsageError
from streamfix.media import open_sink, open_source
from streamfix.media.containers import default_codec
from streamfix.media.video_sink import VideoSink
from streamfix.types import Frame

PQ = (9, 1, 16, 9)  # BT.2020, limited range, SMPTE ST 2084
MASTERING = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50):max-cll=1000,400"


def first(path: Path) -> av.VideoFrame:
    with av.open(str(path)) as container:
        return next(container.decode(video=0))


def tags(path: Path) -> tuple[int, int, int, int]:
    f = first(path)
    return f.colorspace, f.color_range, f.color_trc, f.color_primaries


LOSSLESS = ["yuv420p", "yuv422p", "yuv444p", "yuv411p", "yuv440p", "yuv420p10le", "yuv422p10le", "yuv444p12le"]


@pytest.mark.parametrize("pix_fmt", [*LOSSLESS, "gray", "gray10le", "bgr0", "yuva420p", "gbrp10le"])
def test_ffv1_keeps_every_sample(tmp_path: Path, pix_fmt: str) -> None:
    source = make_video(tmp_path / "in.mkv", codec="ffv1", pix_fmt=pix_fmt, frames=4)
    target = copy(source, tmp_path / "out.mkv", codec="ffv1")
    assert first(target).format.name == first(source).format.name
    for one, two in zip(pictures(source), pictures(target), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1", "libx264rgb"])
def test_the_same_pictures_give_the_same_stream(tmp_path: Path, codec: str) -> None:
    """x264's AVX-512 code did not: here 7 runs of 8 wrote a file of their own, where the CPU has it."""
    source = make_video(tmp_path / "in.mkv", codec="ffv1", size=(312, 176), frames=24)
    streams = set()
    for _ in range(5):
        with av.open(str(copy(source, tmp_path / "out.mkv", codec=codec))) as container:
            streams.add(b"".join(bytes(packet) for packet in container.demux(video=0)))
    assert len(streams) == 1


class Timeless:
    """An encoder whose packets have decoding times out of nowhere."""

    def __init__(self, context: av.VideoCodecContext) -> None:
        self.context = context

    def encode(self, frame: av.VideoFrame | None) -> list[av.Packet]:
        packets = self.context.encode(frame)
        for packet in packets:
            packet.dts = 1 << 40
        return packets


@pytest.mark.parametrize("frames", [1, 2, 3, 12])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_hevc_keeps_its_times_whatever_x265_says(
    tmp_path: Path, frames: int, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one or two frames its times come out of nowhere: half of the files of one frame could not be written."""
    begin = VideoSink._begin

    def begun(self: VideoSink, frame: Frame) -> None:
        begin(self, frame)
        self._encoder = Timeless(self._encoder)  # type: ignore[assignment, arg-type]

    monkeypatch.setattr(VideoSink, "_begin", begun)
    source = make_video(
        tmp_path / "in.mkv", codec="ffv1", frames=frames, rate=25, time_base=Fraction(1, 25), size=(96, 64)
    )
    assert times(copy(source, tmp_path / f"out{suffix}", codec="hevc")) == times(source)


@pytest.mark.skipif(sys.platform != "linux", reason="the policies are Linux's")
def test_no_thread_becomes_a_real_time_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SVT-AV1 makes them so for root: a whole machine stood still, as the programs that were started later inherited it."""

    def policies() -> set[int]:
        return {os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")}

    seen, before, encode = [], policies(), VideoSink.write

    def write(self: VideoSink, frame: Frame) -> None:
        encode(self, frame)
        seen.append(policies())

    monkeypatch.setattr(VideoSink, "write", write)
    source = make_video(tmp_path / "in.mkv", codec="ffv1", frames=6)
    copy(source, tmp_path / "out.mkv", codec="av1")
    assert len(seen) == 6
    assert set().union(*seen, policies()) == before


@pytest.mark.parametrize("codec", ["ffv1", "av1"])
def test_full_range_is_not_squeezed(tmp_path: Path, codec: str) -> None:
    """H.264 in full range decodes to yuvj420p, which neither encoder has: the samples must not be scaled on the way."""
    source = make_video(tmp_path / "in.mkv", pix_fmt="yuvj420p", color=(1, 2, 1, 1), frames=4, options={"crf": "10"})
    assert first(source).format.name == "yuvj420p"
    target = copy(source, tmp_path / "out.mkv", codec=codec, crf=5 if codec == "av1" else None)
    assert tags(target) == (1, 2, 1, 1)
    worst = 0 if codec == "ffv1" else 3
    for one, two in zip(pictures(source), pictures(target), strict=True):
        for a, b in zip(one, two, strict=True):
            assert abs(int(a.min()) - int(b.min())) <= worst
            assert np.abs(a.astype(int) - b.astype(int)).mean() <= worst / 2


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1", "ffv1"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("color", [(1, 1, 1, 1), (6, 1, 6, 6), (1, 2, 13, 1), PQ])
def test_colour_tags_survive(tmp_path: Path, codec: str, suffix: str, color: tuple[int, int, int, int]) -> None:
    deep = color == PQ
    source = make_video(
        tmp_path / "in.mkv",
        codec="ffv1",
        pix_fmt="yuv420p10le" if deep else "yuv420p",
        color=color,
        size=(64, 64),
        frames=4,
    )
    target = copy(source, tmp_path / f"out{suffix}", codec=codec)
    assert tags(target) == color
    assert first(target).format.components[0].bits == (10 if deep else 8)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mpg"])
def test_the_range_survives_where_nothing_else_is_tagged(tmp_path: Path, suffix: str) -> None:
    source = make_video(tmp_path / "in.mpg", codec="mpeg2video", rate=25, time_base=Fraction(1, 25))
    assert tags(source) == (2, 1, 2, 2)
    assert tags(copy(source, tmp_path / f"out{suffix}")) == (2, 1, 2, 2)


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1"])
def test_hdr_metadata_survives(tmp_path: Path, codec: str) -> None:
    source = make_video(
        tmp_path / "in.mp4",
        codec="libx265",
        pix_fmt="yuv420p10le",
        size=(64, 64),
        color=PQ,
        options={"x265-params": MASTERING, "chroma_sample_location": "topleft"},
    )
    with open_source(source) as frames:
        hdr, color = frames.hdr, frames.color
    assert hdr is not None
    assert hdr.content_light == (1000, 400)
    assert hdr.luminance == (Fraction(1, 200), Fraction(1000))
    target = copy(source, tmp_path / "out.mkv", codec=codec)
    with open_source(target) as frames:
        again = frames.hdr
        assert frames.color.chroma_location == color.chroma_location == "topleft"
        assert frames.facts()["streams"][0]["hdr"]["max_cll"] == 1000
    assert again is not None
    assert again.content_light == hdr.content_light
    for one, two in zip((*hdr.primaries, hdr.white), (*again.primaries, again.white), strict=True):
        assert [float(v) for v in two] == pytest.approx([float(v) for v in one], abs=2e-5)
    assert [float(v) for v in again.luminance] == pytest.approx([float(v) for v in hdr.luminance], rel=2e-2)
    assert tags(target) == PQ


def test_chroma_at_half_resolution_is_widened_for_odd_sizes_only(tmp_path: Path) -> None:
    for size, kept in (((65, 49), "yuv444p"), ((64, 49), "yuv422p"), ((64, 48), "yuv420p"), ((1, 1), "yuv444p")):
        source = make_video(tmp_path / "in.mkv", codec="ffv1", size=size, frames=3)
        target = copy(source, tmp_path / "out.mp4", crf=4)
        assert (first(target).width, first(target).height) == size
        assert first(target).format.name == kept
        luma = [(a[0].astype(int), b[0].astype(int)) for a, b in zip(pictures(source), pictures(target), strict=True)]
        assert max(np.abs(a - b).mean() for a, b in luma) < 1.5


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 2), (33, 48), (63, 80)])
def test_what_an_encoder_cannot_hold_is_one_sentence(tmp_path: Path, width: int, height: int) -> None:
    source = make_video(tmp_path / "in.mkv", codec="ffv1", size=(width, height), frames=2)
    with pytest.raises(OutputError, match=r"libx265 cannot encode .*; choose"):
        copy(source, tmp_path / "out.mkv", codec="hevc")
    if width < 4:
        with pytest.raises(OutputError, match=r"libsvtav1 cannot encode .*; choose"):
            copy(source, tmp_path / "out.mkv", codec="av1")
    assert [p.name for p in tmp_path.iterdir()] == ["in.mkv"]


def test_rgb_video_is_tagged_for_what_it_became(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", codec="ffv1", pix_fmt="bgr0", frames=2)
    target = copy(source, tmp_path / "out.mp4", crf=4)
    assert first(target).format.name == "yuv444p"
    assert tags(target)[:2] == (1, 1)
    one, two = (first(p).to_ndarray(format="rgb24").astype(int) for p in (source, target))
    assert np.abs(one - two).mean() < 3


def test_grey_stays_grey_with_its_range(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", codec="ffv1", pix_fmt="gray", frames=2)
    one, two = first(source), first(copy(source, tmp_path / "out.mkv", codec="av1", crf=5))
    assert np.abs(planes(one)[0].astype(int) - planes(two)[0].astype(int)).mean() < 2
    assert np.unique(planes(two)[1]).tolist() == [128]
    assert two.color_range == 2


def test_a_change_of_size_within_the_video_is_scaled(tmp_path: Path) -> None:
    from dataclasses import replace

    source = make_video(tmp_path / "in.mp4")
    with open_source(source) as frames, open_sink(tmp_path / "out.mp4", like=frames) as sink:
        for frame in frames:
            sink.write(frame if frame.index < 6 else replace(frame, picture=pattern(frame.index, size=(32, 24))))
    assert times(tmp_path / "out.mp4") == times(source)
    assert {p[0].shape for p in pictures(tmp_path / "out.mp4")} == {(48, 64)}


def test_crf_and_preset_reach_the_encoder(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", codec="ffv1", size=(160, 120))
    small = copy(source, tmp_path / "a.mp4", crf=45).stat().st_size
    large = copy(source, tmp_path / "b.mp4", crf=8).stat().st_size
    assert small < 0.5 * large
    slow = copy(source, tmp_path / "c.mp4", crf=8, preset="slow").stat().st_size
    assert slow != large
    for options, words in (
        ({"crf": 60}, "crf from 0"),
        ({"preset": "lightning"}, "no preset 'lightning'; choose one of: ultrafast"),
    ):
        with pytest.raises(UsageError, match=words):
            copy(source, tmp_path / "d.mp4", **options)
    copy(source, tmp_path / "e.mkv", codec="av1", crf=60, preset="12")


def test_unknown_and_absent_encoders(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv")
    with pytest.raises(UsageError, match=r"no video encoder called 'h269'.*choose h264, hevc, av1, ffv1"):
        copy(source, tmp_path / "out.mp4", codec="h269")
    with pytest.raises(UsageError, match="no video encoder called 'aac'"):
        copy(source, tmp_path / "out.mp4", codec="aac")
    with pytest.raises(OutputError, match=r"\.mkv \(matroska\) cannot hold gif; choose another codec$"):
        copy(source, tmp_path / "out.mkv", codec="gif")
    with pytest.raises(OutputError, match=r"\.webm \(webm\) cannot hold libx264; choose another codec, or write .mkv"):
        copy(source, tmp_path / "out.webm", codec="h264")
    with pytest.raises(OutputError, match=r"\.mpg does not keep the time of frames of libx264; leave out --codec"):
        copy(source, tmp_path / "out.mpg", codec="h264")
    assert [p.name for p in tmp_path.iterdir()] == ["in.mkv"]


@pytest.mark.parametrize("suffix", [".m4v", ".3gp", ".3g2", ".f4v"])
def test_the_kin_of_mp4_hold_more_than_8_bits(tmp_path: Path, suffix: str) -> None:
    source = make_video(tmp_path / "in.mp4", pix_fmt="yuv420p10le", size=(96, 96), frames=4)
    assert first(copy(source, tmp_path / f"out{suffix}")).format.name == "yuv420p10le"


@pytest.mark.parametrize(
    ("form", "pixels", "codec"),
    [
        ("mp4", "yuv420p", "h264"),
        ("matroska", "yuvj444p", "h264"),
        ("mp4", "yuv420p10le", "hevc"),
        ("mpegts", "yuv422p10le", "hevc"),
        ("ipod", "yuv420p10le", "h264"),
        ("3gp", "yuv420p10le", "h264"),
        ("flv", "yuv420p10le", "h264"),
        ("mov", "yuva444p12le", "prores_ks"),
        ("matroska", "yuva420p", "ffv1"),
        ("mp4", "yuva420p", "h264"),
        ("webm", "yuv420p10le", "av1"),
        ("webm", "yuv444p", "libvpx-vp9"),
        ("webm", "yuva420p", "libvpx-vp9"),
        ("vob", "yuv420p", "mpeg2video"),
    ],
)
def test_the_codec_that_is_chosen(form: str, pixels: str, codec: str) -> None:
    assert default_codec(form, pixels, 640, 480) == codec
    assert default_codec("mp4", "yuv420p10le", 640, 48) == "h264"  # too small for x265


def test_grey_with_alpha_of_16_bits_does_not_become_floating_point(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = make_video(tmp_path / "in.mov", codec="png", pix_fmt="ya16be", frames=2)
    target = copy(source, tmp_path / "out.mkv")
    assert first(target).format.name == "gbrap16le"
    before, after = (planes(first(path)) for path in (source, target))
    grey, alpha = np.moveaxis(before[0].view(">u2").reshape(48, 64, 2), -1, 0)
    assert [np.array_equal(p.view("<u2"), q) for p, q in zip(after, (grey, grey, grey, alpha), strict=True)] == [
        True
    ] * 4
    assert not caplog.records


def test_a_hardware_encoder_works_or_says_so_before_any_frame(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", size=(256, 256), frames=5)
    try:
        copy(source, tmp_path / "out.mp4", codec="h264_nvenc")
    except OutputError as error:
        said = str(error)
    else:
        assert times(tmp_path / "out.mp4") == times(source)
        return
    assert said == "the hardware encoder h264_nvenc cannot be opened on this machine; choose h264, hevc or av1"
    assert [p.name for p in tmp_path.iterdir()] == ["in.mkv"]


def test_encoders_write_nothing_to_the_terminal(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", size=(64, 64))
    script = (
        "import sys\nfrom streamfix.media import open_source, open_sink\n"
        "for codec in ('h264', 'hevc', 'av1', 'ffv1'):\n"
        "    with open_source(sys.argv[1]) as s, open_sink(sys.argv[2] + codec + '.mkv', like=s, codec=codec) as k:\n"
        "        for f in s: k.write(f)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, source, tmp_path / "out"], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
