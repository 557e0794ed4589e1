"""Real media for the tests, made with PyAV: a moving pattern, tones, subtitles, chapters, attachments."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from skimage import data

INTERLACED = (1 << 18) | (1 << 29)  # AV_CODEC_FLAG_INTERLACED_DCT | AV_CODEC_FLAG_INTERLACED_ME


def pattern(number: int, *, size: tuple[int, int] = (64, 48), pix_fmt: str = "yuv420p") -> av.VideoFrame:
    """A diagonal pattern that moves with the number; every plane filled at the format's full depth."""
    picture = av.VideoFrame(*size, pix_fmt)
    bits = picture.format.components[0].bits
    for index, plane in enumerate(picture.planes):
        width = plane.line_size // (1 if bits == 8 else 2)
        ramp = np.add.outer(np.arange(plane.height) * 3, np.arange(width) * 2) + number * 7 + index * 40
        values = ramp % 160 + 40
        if bits > 8:
            plane.update((values * 2 ** (bits - 8) + ramp % 2 ** (bits - 8)).astype("<u2").tobytes())
        else:
            plane.update(values.astype(np.uint8).tobytes())
    return picture


def portrait(number: int, *, size: tuple[int, int] = (160, 120), pix_fmt: str = "yuv420p") -> av.VideoFrame:
    """Head and shoulders (scikit-image's astronaut, a face a third of the width) that move by a pixel a frame, at full depth."""
    width, height = size
    tall = min(240, 320 * height // width)
    left = 60 + 2 * (number % 20)
    picture = cv2.resize(data.astronaut()[:tall, left : left + 300], size, interpolation=cv2.INTER_AREA)
    deep = picture.astype(np.uint16) * 256 + np.arange(width, dtype=np.uint16)[None, :, None] % 256  # low bits too
    out = av.VideoFrame.from_ndarray(deep, format="rgb48le").reformat(format=pix_fmt, interpolation="BICUBIC")
    return out


def make_video(
    path: Path,
    *,
    frames: int = 12,
    pts: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 30),
    rate: Fraction | int = 30,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: Mapping[str, str] | None = None,
    bframes: int | None = None,
    color: tuple[int, int, int, int] = (2, 0, 2, 2),
    rotation: int = 0,
    sar: Fraction | None = None,
    interlaced: bool = False,
    audio: Sequence[str] = (),
    subtitles: Sequence[str] = (),
    chapters: Sequence[tuple[float, float, str]] = (),
    attachment: bytes | None = None,
    metadata: Mapping[str, str] | None = None,
    container_options: Mapping[str, str] | None = None,
    form: str | None = None,
    scene: Callable[..., av.VideoFrame] = pattern,
) -> Path:
    """Write a clip and return its path.

    pts: in units of time_base, 0, 1, 2 ... by default. color: matrix, range, transfer, primaries. rotation: degrees clockwise that
    stand it upright. audio: an encoder for each tone. subtitles: languages of SubRip streams with a line at the very beginning and one
    near the end. chapters: begin, end (seconds), title. form: FFmpeg's name of the container, by the suffix else. scene: what
    the pictures are, called as `pattern` is.
    """
    stamps = list(range(frames)) if pts is None else list(pts)
    scale = {"movie_timescale": str(time_base.denominator)} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", format=form, container_options={**scale, **(container_options or {})}) as out:
        video = out.add_stream(codec, rate=Fraction(rate))
        context = video.codec_context
        video.width, video.height, video.pix_fmt = *size, pix_fmt
        context.time_base = video.time_base = time_base
        context.colorspace, context.color_range, context.color_trc, context.color_primaries = color
        context.options = {**({"preset": "ultrafast"} if codec.startswith("libx26") else {}), **(options or {})}
        if codec == "libx265":
            context.options = {
                **context.options,
                "x265-params": f"log-level=none:{(options or {}).get('x265-params', '')}",
            }
        if bframes is not None:
            context.max_b_frames = bframes
        if sar is not None:
            context.sample_aspect_ratio = sar
        if interlaced:
            context.flags |= INTERLACED
        if rotation:
            video.set_display_rotation(-rotation)
        sounds = [_add_tone(out, name) for name in audio]
        texts = [_add_text(out, language) for language in subtitles]
        if attachment is not None:
            out.add_attachment("note.ttf", "font/ttf", attachment)
        for key, value in (metadata or {}).items():
            out.metadata[key] = value
        if chapters:
            out.set_chapters([
                {"id": n, "start": int(a * 1000), "end": int(b * 1000), "time_base": Fraction(1, 1000), "metadata": {"title": t}}
                for n, (a, b, t) in enumerate(chapters)
            ])  # fmt: skip
        end = float((stamps[-1] + 1) * time_base)
        for number, stamp in enumerate(stamps):
            picture = scene(number, size=size, pix_fmt=pix_fmt)
            picture.pts, picture.time_base = stamp, time_base
            out.mux(video.encode(picture))
        out.mux(video.encode(None))
        for number, sound in enumerate(sounds):
            _tone(out, sound, 220 * (number + 1), end)
        for number, text in enumerate(texts):
            for at, line in ((0.0, "first"), (max(end - 0.1, 0.05), "last")):
                packet = av.Packet(f"{line} {number}".encode())
                packet.stream, packet.time_base = text, Fraction(1, 1000)
                packet.pts = packet.dts = int(at * 1000)
                packet.duration = 80
                out.mux_one(packet)
    return path


def _add_tone(out: Any, codec: str) -> Any:
    stream = out.add_stream(codec, rate=48000 if codec in ("aac", "libopus") else 44100)
    stream.codec_context.layout = "mono"
    if codec != "aac":
        stream.codec_context.format = "s16"
    return stream


def _add_text(out: Any, language: str) -> Any:
    stream = out.add_mux_stream("subrip")
    stream.time_base = Fraction(1, 1000)
    stream.metadata["language"] = language
    return stream


def _tone(out: Any, stream: Any, pitch: float, seconds: float) -> None:
    context = stream.codec_context
    rate, size = context.sample_rate, {"aac": 1024, "libopus": 960}.get(context.name, 1152)
    for start in range(0, int(rate * seconds), size):
        wave = 0.3 * np.sin(2 * np.pi * pitch * np.arange(start, start + size) / rate)
        if context.format.name.startswith("flt"):
            samples, layout = wave.astype(np.float32)[None], "fltp"
        else:
            samples, layout = (wave * 32767).astype(np.int16)[None], "s16p"
        frame = av.AudioFrame.from_ndarray(samples, format=layout, layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        if layout != context.format.name:
            frame = av.AudioResampler(context.format.name, "mono", rate).resample(frame)[0]
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def times(path: Path) -> list[Fraction]:
    """Presentation times of the decoded frames of the (first) video stream, exact."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [frame.pts * stream.time_base for frame in container.decode(stream)]


def planes(picture: av.VideoFrame) -> list[np.ndarray]:
    """The samples of every plane, without padding, as bytes (rows, bytes of a row)."""
    out = []
    for index, plane in enumerate(picture.planes):
        parts = [c for c in picture.format.components if c.plane == index]
        packed = (
            max(1, picture.format.padded_bits_per_pixel // 8)
            if len(picture.planes) == 1
            else len(parts) * -(-parts[0].bits // 8)
        )
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, -1)
        out.append(rows[:, : parts[0].width * packed].copy())
    return out


def pictures(path: Path) -> list[list[np.ndarray]]:
    """Planes of every decoded frame."""
    with av.open(str(path)) as container:
        return [planes(frame) for frame in container.decode(video=0)]


def packets(path: Path, kind: str) -> dict[int, list[tuple[str, Fraction]]]:
    """Hash and time of every packet of that kind of stream, by the stream's index."""
    out: dict[int, list[tuple[str, Fraction]]] = {}
    with av.open(str(path)) as container:
        for packet in container.demux():
            if packet.stream.type == kind and packet.size:
                stamp = (packet.pts if packet.pts is not None else packet.dts) * packet.time_base
                out.setdefault(packet.stream_index, []).append((hashlib.sha256(bytes(packet)).hexdigest(), stamp))
    return out


def hashes(path: Path, kind: str) -> list[list[str]]:
    """Hashes of the packets of each stream of that kind, in the order of the streams."""
    return [[h for h, _ in found] for _, found in sorted(packets(path, kind).items())]


def add_cover(path: Path, picture: av.VideoFrame) -> bytes:
    """Give a clip a cover; returns the JPEG that it was given. picture: full-range YUV 4:2:0."""
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, picture.format.name
    encoder.time_base = Fraction(1, 25)
    cover = bytes(encoder.encode(picture)[0])
    bare = path.rename(path.with_name(f"bare-{path.name}"))
    with av.open(str(bare)) as one, av.open(str(path), "w") as two:
        targets = {s.index: two.add_stream_from_template(s) for s in one.streams}
        two.metadata.update({k: v for k, v in one.metadata.items() if k == "title"})
        attached = two.add_mux_stream("mjpeg", width=picture.width, height=picture.height)
        attached.disposition = av.stream.Disposition.attached_pic
        for packet in one.demux():
            if packet.size:
                packet.stream = targets[packet.stream_index]
                two.mux(packet)
        packet = av.Packet(cover)
        packet.stream, packet.time_base, packet.pts, packet.dts = attached, Fraction(1, 25), 0, 0
        two.mux(packet)
    bare.unlink()
    return cover
