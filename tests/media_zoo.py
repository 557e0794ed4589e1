"""One real file for each thing that media can be: the matrix test restores them, the fuzzer damages them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from media_files import add_cover, make_video, portrait

PQ, HLG = (9, 1, 16, 9), (9, 1, 18, 9)  # matrix, range, transfer, primaries of ITU-T H.273
MASTERING = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50):max-cll=1000,400"
SIZE = (128, 96)


@dataclass(frozen=True)
class Case:
    """make: writes the file, takes its path and the size of its pictures. suffix: of the file. out: of the output, if another.

    options: for enhance. says: a pattern of the one warning that the job must give, None for none. refused: a pattern of the
    one sentence with which the job must be refused. damaged: whether the report must count damage.
    psnr: least PSNR of the output against the input, dB over all samples. faces: whether faces must be found.
    """

    suffix: str
    make: Callable[[Path, tuple[int, int]], Any]
    out: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    says: str | None = None
    refused: str | None = None
    damaged: bool = False
    psnr: float = 36.0
    faces: bool = True


def video(**options: Any) -> Callable[[Path, tuple[int, int]], Path]:
    """A maker by `make_video`, of head and shoulders."""
    return lambda path, size: make_video(path, **{"size": size, "frames": 6, "scene": portrait, **options})


def combed(number: int, *, size: tuple[int, int], pix_fmt: str) -> av.VideoFrame:
    """Two fields of different times in one picture."""
    first, second = (portrait(2 * number + n, size=size, pix_fmt=pix_fmt) for n in (0, 1))
    for one, two in zip(first.planes, second.planes, strict=True):
        rows = np.frombuffer(memoryview(one), np.uint8).reshape(one.height, -1)
        rows[1::2] = np.frombuffer(memoryview(two), np.uint8).reshape(one.height, -1)[1::2]
    return first


def remux(source: Path, target: Path, *, keep: Callable[[Any, int], bool] = lambda packet, number: True) -> Path:
    """The packets of `source` in another file, those only that are to be kept (packet, number of it)."""
    with av.open(str(source)) as one, av.open(str(target), "w") as two:
        targets = {s.index: two.add_stream_from_template(s) for s in one.streams}
        number = 0
        for packet in one.demux():
            if packet.size and packet.dts is not None:
                if keep(packet, number):
                    packet.stream = targets[packet.stream_index]
                    two.mux(packet)
                number += 1
    source.unlink()
    return target


def first_group_gone(path: Path, size: tuple[int, int]) -> Path:
    """An open GOP whose first pictures refer to a group that is not there, as recordings from the air begin."""
    whole = path.with_name(f"{path.stem}-whole{path.suffix}")
    make_video(whole, size=size, frames=18, scene=portrait, bframes=2,
               options={"x264-params": "open-gop=1:keyint=6:min-keyint=6:scenecut=0:b-adapt=0:bframes=2", "preset": "fast"})  # fmt: skip
    keys = 0

    def keep(packet: Any, number: int) -> bool:
        nonlocal keys
        keys += packet.is_keyframe
        return keys > 1

    return remux(whole, path, keep=keep)


def two_sizes(path: Path, size: tuple[int, int]) -> Path:
    """A transport stream that changes its size half way, as channels do."""
    parts = [path.with_name(f"{path.stem}-{number}.ts") for number in (0, 1)]
    for number, (part, shape) in enumerate(zip(parts, (size, (192, 144)), strict=True)):
        stamps = list(range(6 * number, 6 * number + 6))
        make_video(part, pts=stamps, size=shape, scene=portrait, bframes=0, container_options={"mpegts_copyts": "1"})
    with av.open(str(path), "w", container_options={"mpegts_copyts": "1"}) as out:
        target = None
        for part in parts:
            with av.open(str(part)) as one:
                target = target or out.add_stream_from_template(one.streams.video[0])
                for packet in one.demux():
                    if packet.size:
                        packet.stream = target
                        out.mux(packet)
            part.unlink()
    return path


def holes(path: Path, size: tuple[int, int]) -> Path:
    """Stretches of zeros where packets were."""
    make_video(path, size=size, frames=32, scene=portrait, bframes=0, options={"g": "8", "crf": "18"}, audio=["aac"])
    data = bytearray(path.read_bytes())
    for at in (len(data) // 3, len(data) // 2):
        data[at : at + 400] = bytes(400)
    path.write_bytes(data)
    return path


def with_cover(path: Path, size: tuple[int, int]) -> Path:
    """A film with its poster."""
    make_video(path, size=size, frames=6, scene=portrait, audio=["aac"], metadata={"title": "A title"})
    add_cover(path, portrait(0, size=(32, 32), pix_fmt="yuvj420p"))
    return path


DEEP: dict[str, Any] = {"codec": "libx265", "pix_fmt": "yuv420p10le"}
CASES: dict[str, Case] = {
    # depth, range, HDR
    "hdr10": Case(".mp4", video(**DEEP, color=PQ, options={"x265-params": MASTERING}, audio=["aac"])),
    "hdr10-mkv": Case(".mkv", video(**DEEP, color=PQ, options={"x265-params": MASTERING})),
    "hlg": Case(".mkv", video(**DEEP, color=HLG)),
    "deep-h264": Case(".mp4", video(pix_fmt="yuv420p10le", color=(1, 1, 1, 1))),
    "deep-422": Case(".mov", video(codec="prores_ks", pix_fmt="yuv422p10le", color=(1, 1, 1, 1))),
    "deep-12": Case(".mkv", video(codec="libx265", pix_fmt="yuv420p12le")),
    "full-range": Case(".mkv", video(pix_fmt="yuvj420p", color=(1, 2, 1, 1))),
    "bt601": Case(".mp4", video(color=(6, 1, 6, 6))),
    # shapes
    "422": Case(".mkv", video(pix_fmt="yuv422p")),
    "444": Case(".mp4", video(pix_fmt="yuv444p")),
    "411": Case(".mkv", video(codec="ffv1", pix_fmt="yuv411p")),
    "grey": Case(".mkv", video(codec="ffv1", pix_fmt="gray")),
    "rgb": Case(".mkv", video(codec="ffv1", pix_fmt="bgr0"), psnr=33),
    "odd-size": Case(".mkv", video(codec="ffv1", size=(129, 97))),
    "alpha-mov": Case(
        ".mov", video(codec="prores_ks", pix_fmt="yuva444p10le"), says="12 bits a sample become 10; --codec ffv1"
    ),
    "alpha-mkv": Case(".mkv", video(codec="ffv1", pix_fmt="yuva420p")),
    "alpha-mp4": Case(".mkv", video(codec="ffv1", pix_fmt="yuva420p"), out=".mp4", says="its transparency is left out"),
    "alpha-webm": Case(".webm", video(codec="libvpx-vp9", pix_fmt="yuva420p")),
    "rotation-90": Case(".mp4", video(rotation=90), faces=False),
    "rotation-180": Case(".mov", video(rotation=180), faces=False),
    "rotation-270": Case(".mkv", video(rotation=270), faces=False),
    "sample-aspect": Case(".mp4", video(sar=Fraction(128, 117))),
    "interlaced-mpeg2": Case(
        ".mpg",
        video(codec="mpeg2video", rate=25, time_base=Fraction(1, 25), interlaced=True, scene=combed),
        says="is interlaced: it comes out progressive",
    ),
    "interlaced-h264": Case(
        ".ts", video(interlaced=True, scene=combed, rate=25, time_base=Fraction(1, 25)), says="is interlaced"
    ),
    "rotation-ts": Case(".mp4", video(rotation=90), out=".ts", refused=r"\.ts cannot hold the rotation .*choose \.mp4"),
    # time
    "vfr": Case(".mp4", video(pts=[0, 40, 80, 133, 200, 210, 400, 433, 1000], time_base=Fraction(1, 1000))),
    "vfr-mkv": Case(".mkv", video(pts=[0, 40, 80, 133, 200, 210, 400, 433, 1000], time_base=Fraction(1, 1000))),
    "one-frame": Case(".mp4", video(frames=1)),
    "open-gop": Case(".ts", first_group_gone),
    "trimmed-start": Case(".mp4", video(pts=[*range(-3, 6)], bframes=2)),
    "delayed-start": Case(
        ".mp4", video(pts=[*range(45, 51)], bframes=2, container_options={"avoid_negative_ts": "disabled"})
    ),
    "negative-dts": Case(
        ".mkv", video(bframes=3, options={"preset": "fast"}, container_options={"avoid_negative_ts": "disabled"})
    ),
    "negative-cts": Case(
        ".mp4", video(bframes=3, options={"preset": "fast"}, container_options={"movflags": "negative_cts_offsets"})
    ),
    "two-sizes": Case(
        ".ts", two_sizes, says=r"changes its size from 128x96 to 192x144 .* scaled to the first", psnr=30
    ),
    "corrupt": Case(".mkv", holes, damaged=True),
    # what lies beside
    "sounds": Case(".mkv", video(audio=["aac", "libmp3lame", "libopus"], frames=8)),
    "subtitles": Case(".mkv", video(subtitles=["eng", "deu"], frames=8)),
    "chapters": Case(".mp4", video(chapters=[(0, 0.1, "one"), (0.1, 0.26, "two")], frames=8)),
    "cover": Case(".mp4", with_cover),
    "attachment": Case(".mkv", video(attachment=b"a font" * 30, metadata={"title": "A title", "MOOD": "calm"})),
    # containers
    "ts": Case(".ts", video(audio=["aac"])),
    "mov": Case(".mov", video(audio=["aac"], metadata={"title": "A title"})),
    "webm": Case(".webm", video(codec="libvpx-vp9", audio=["libopus"])),
    "avi": Case(".avi", video(codec="mpeg4", bframes=0, audio=["libmp3lame"], options={"qscale": "3"})),
    "avi-mjpeg": Case(".avi", video(codec="mjpeg", pix_fmt="yuvj422p")),
    "mpg": Case(".mpg", video(codec="mpeg2video", rate=25, time_base=Fraction(1, 25), audio=["mp2"])),
    "flv": Case(".flv", video(bframes=0, audio=["aac"])),
    "wmv": Case(".wmv", video(codec="wmv2", bframes=0), out=".mkv"),
    "wmv-wmv": Case(
        ".wmv", video(codec="wmv2", bframes=0), refused=r"\.wmv \(asf\) does not keep the time .*choose \.mp4"
    ),
    "3gp": Case(".3gp", video(codec="h263", size=(176, 144))),
    "raw-h264": Case(".h264", video(bframes=0, form="h264"), out=".mp4"),
    "raw-raw": Case(".h264", video(bframes=0, form="h264"), refused=r"\.h264 \(h264\) does not keep the time"),
    "y4m": Case(".y4m", video(codec="wrapped_avframe", form="yuv4mpegpipe"), out=".mp4"),
    "gif": Case(
        ".gif",
        video(codec="gif", pix_fmt="rgb8", time_base=Fraction(1, 100), pts=[*range(0, 48, 8)]),
        out=".mp4",
        says="its transparency is left out",
        psnr=24,
    ),
}


def make(name: str, folder: Path, size: tuple[int, int] = SIZE) -> Path:
    """Write the file of that name; where the size is not the point it is this one."""
    case = CASES[name]
    path = folder / f"{name}{case.suffix}"
    case.make(path, size)
    return path
