"""Images out: each under its own name, with the EXIF and the colour profile of the one it came from."""

from __future__ import annotations

import logging
import os
import re
import shutil
import struct
import zlib
from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin, TiffImagePlugin, TiffTags

from streamfix._cv2 import cv2
from streamfix.errors import OutputError
from streamfix.media.base import Sink
from streamfix.media.images import IMAGE_SUFFIXES, ImageSource, Picture, describing
from streamfix.media.part import explain, part_of, prepare
from streamfix.types import Frame

_log = logging.getLogger(__name__)

_KEPT = {"gray", "rgb24", "rgba", "gray16le", "rgb48le", "rgba64le"}
_DEEP_SUFFIXES = {".png", ".tif", ".tiff"}
_ALPHA_SUFFIXES = {".png", ".webp", ".tif", ".tiff", ".avif", ".jp2"}
_JPEG = frozenset({".jpg", ".jpeg", ".jpe"})
_ROOM = {"EXIF": 65533, "XMP": 65504, "colour profile": 255 * 65519}  # bytes that a JPEG has for each
_ROOMY = {".png", ".webp", ".tif", ".tiff", ".avif"}  # as much as there is; other formats have none
JPEG_QUALITY = 95
"""Of JPEG outputs, with full colour resolution: no visible loss. An input that was stored finer keeps its own tables."""
_FINEST = 5.7  # mean step of luma at that quality, in codes; a finer input has smaller ones
_OURS = b"</streamfix:note>"
_DESCRIPTION, _XMP = 0x010E, 0x02BC  # tags of TIFF
AVIF_QUALITY = 90  # about as close to its input as a JPEG of 95


class ImageSink(Sink):
    """One image to a file, or many into a folder; the suffix chooses the format, many keep theirs.

    All of them lie in a hidden place beside the output until the end, so that an interrupted run leaves nothing.
    """

    encoder = "image"

    def __init__(self, path: Path, *, like: ImageSource, overwrite: bool, tags: Mapping[str, str]) -> None:
        self.path, self._like, self._tags = path, like, dict(tags)
        several = len(like.files) > 1
        self._folder = several or path.is_dir() or not path.suffix
        if several and path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir():
            raise OutputError(f"{len(like.files)} images do not fit into the one file {path}; name a folder")
        if self._folder:
            self._targets = [path / name for name in like.names]
        else:
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                raise OutputError(f"{path} is no image file and no folder; an image goes to .png, .jpg, .webp or .tif")
            self._targets = [path]
        if path.is_file() and self._folder:
            raise OutputError(f"{path} is a file; name a folder for the images")
        for target, source in zip(self._targets, like.files, strict=True):
            prepare(target, source=source, overwrite=overwrite, touch=False)
        self._fresh = self._folder and not path.exists()
        self._stage = part_of(path)
        try:
            shutil.rmtree(self._stage, ignore_errors=True)
            self._stage.mkdir(parents=self._folder)
        except OSError as error:
            raise OutputError(explain(error, path)) from error

    def write(self, frame: Frame) -> None:
        """Encode one picture into the hidden folder; raises OutputError."""
        target = self._targets[frame.index]
        staged = self._stage / f"{frame.index}{target.suffix}"
        original = self._like.picture(frame.index)
        picture = frame.picture
        pixels = picture.to_ndarray() if picture.format.name in _KEPT else picture.to_ndarray(format="rgb24")
        try:
            self._save(staged, pixels, original, target)
        except (OSError, ValueError, KeyError, RuntimeError, cv2.error) as error:
            raise OutputError(explain(error, target)) from error
        self.written += 1

    def _save(self, staged: Path, pixels: npt.NDArray[Any], like: Picture, target: Path) -> None:
        suffix, like = target.suffix.lower(), _fitting(like, target)
        if pixels.ndim == 3 and pixels.shape[2] == 4 and suffix not in _ALPHA_SUFFIXES:
            if (pixels[..., 3] < np.iinfo(pixels.dtype).max).any():
                raise OutputError(f"{target} cannot hold the transparency of its input; choose .png or .webp")
            pixels = np.ascontiguousarray(pixels[..., :3])  # a screenshot's alpha, which hides nothing
        if pixels.dtype == np.uint16 and suffix not in _DEEP_SUFFIXES:
            _log.warning("%s: 16 bits a channel become 8, which is all that %s holds", target, suffix)
            pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
        if pixels.dtype == np.uint16 and pixels.ndim == 3:
            self._save_deep(staged, pixels, like, suffix)
            return
        image = Image.fromarray(pixels)
        if like.mode == "LA" and image.mode == "RGBA" and suffix in (".png", ".tif", ".tiff"):
            image = image.convert("LA")
        image.save(staged, **self._options(suffix, like))

    def _options(self, suffix: str, like: Picture) -> dict[str, Any]:
        """Arguments of Pillow's save for that format."""
        out: dict[str, Any] = {}
        if like.exif:
            out["exif"] = like.exif
        if like.icc:
            out["icc_profile"] = like.icc
        words = _words(like, self._tags)
        if suffix in _JPEG:
            out |= {"quality": JPEG_QUALITY, "subsampling": 0, "optimize": True}
            if like.tables and np.mean(like.tables[min(like.tables)]) < _FINEST:
                out["qtables"] = like.tables
                del out["quality"]
            if like.comment or words:  # both; of a very long comment its end, as the format has room for 65533 bytes
                out["comment"] = b"\n".join(filter(None, (like.comment, words.encode())))[-65533:]
            if like.xmp:
                out["xmp"] = like.xmp
        elif suffix == ".png":
            out["pnginfo"] = _text(like, self._tags)
        elif suffix == ".webp":
            lossless = like.format in ("PNG", "BMP", "PPM")
            out |= {"quality": JPEG_QUALITY, "method": 4, "lossless": lossless, "exact": True}
            if like.xmp or words:
                out["xmp"] = _xmp(words, like.xmp)
        elif suffix == ".avif":
            out |= {"quality": AVIF_QUALITY, "subsampling": "4:4:4"}
            if like.xmp or words:
                out["xmp"] = _xmp(words, like.xmp)
        elif suffix in (".tif", ".tiff"):
            out["exif"] = _tiff_tags(words, like)
            if not like.exif:  # Pillow writes an EXIF block into uncompressed TIFF only
                out["compression"] = "tiff_lzw"
        if like.dpi and suffix in (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp"):
            out["dpi"] = like.dpi
        return out

    def _save_deep(self, staged: Path, pixels: npt.NDArray[np.uint16], like: Picture, suffix: str) -> None:
        """16 bits for each of several channels: OpenCV encodes, and the chunks or tags it does not know are added."""
        swap = cv2.COLOR_RGBA2BGRA if pixels.shape[2] == 4 else cv2.COLOR_RGB2BGR
        ok, data = cv2.imencode(suffix, cv2.cvtColor(pixels, swap))
        if not ok:
            raise OutputError(f"{suffix} cannot hold this picture; choose .png")
        add = _with_chunks if suffix == ".png" else _with_directory
        staged.write_bytes(add(bytes(data), like, self._tags))

    def finish(self) -> None:
        """Move every picture to its place; raises OutputError."""
        if not self.written:
            raise OutputError(f"none of the images for {self.path} was written")
        try:
            for index, target in enumerate(self._targets):
                staged = self._stage / f"{index}{target.suffix}"
                if staged.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(staged, target)
        except OSError as error:
            raise OutputError(explain(error, self.path)) from error
        shutil.rmtree(self._stage, ignore_errors=True)

    def discard(self) -> None:
        """Remove the hidden folder."""
        shutil.rmtree(self._stage, ignore_errors=True)
        if self._fresh and self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()


def _fitting(like: Picture, target: Path) -> Picture:
    """The picture without the metadata that its format has no room for."""
    suffix = target.suffix.lower()
    found = {"EXIF": like.exif, "XMP": like.xmp, "colour profile": like.icc}
    gone = [n for n, data in found.items() if data and len(data) > (_ROOM[n] if suffix in _JPEG else 0)]
    if suffix in _ROOMY or not gone:
        return like
    _log.warning("%s has no room for the %s of its input; choose .png to keep it", target, ", ".join(gone))
    exif, xmp, icc = (None if name in gone else data for name, data in found.items())
    return replace(like, exif=exif, xmp=xmp, icc=icc)


def _words(like: Picture, tags: Mapping[str, str]) -> str:
    """The text of a PNG, a line each, and the tags, for formats with one place for text; comments go without their name."""
    found = {k: v for k, v in like.text.items() if not k.startswith("Raw profile type ")}  # EXIF in disguise
    lines = [v if k.lower() in ("comment", "description") else f"{k}: {v}" for k, v in found.items()]
    return "\n".join(filter(None, [*lines, "; ".join(f"{key}: {value}" for key, value in tags.items())]))


def _tiff_tags(words: str, like: Picture) -> Image.Exif:
    """EXIF, XMP and text as the tags of a TIFF. Text is bytes there, or Pillow would write a ? for what is not ASCII."""
    stored, out = Image.Exif(), Image.Exif()
    stored.load(like.exif or b"")
    out.load(describing(stored))
    for tag, value in list(out.items()):
        out[tag] = value.encode("latin-1", "replace") if isinstance(value, str) else value
    if words:
        out[_DESCRIPTION] = b"\n".join(filter(None, (out.get(_DESCRIPTION), words.encode())))
    if like.xmp:
        out[_XMP] = like.xmp
    return out


def _xmp(note: str, stored: bytes | None) -> bytes:
    """The stored XMP packet with the note in it as a property of our own; where there is none, a minimal one that has it."""
    note = re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", note)  # what XML cannot say
    escaped = note.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    if stored and not note:
        return stored
    if stored:
        if _OURS in stored:  # restored before: a property may stand there only once
            return stored.replace(_OURS, b"; " + escaped.encode() + _OURS, 1)
        ours = (
            '<rdf:Description xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" rdf:about="" '
            f'xmlns:streamfix="urn:streamfix"><streamfix:note>{escaped}</streamfix:note></rdf:Description>'
        ).encode()
        merged, done = re.subn(rb"(?=</(?:[\w.-]+:)?RDF\s*>)", lambda _: ours, stored, count=1)
        if not done:
            _log.warning("the XMP of the input has no place for the note on its enhancement, which is left out")
        return merged
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:description><rdf:Alt>'
        f'<rdf:li xml:lang="x-default">{escaped}</rdf:li></rdf:Alt></dc:description></rdf:Description></rdf:RDF></x:xmpmeta>'
    ).encode()


def _text(like: Picture, tags: Mapping[str, str]) -> PngImagePlugin.PngInfo:
    """The text and the XMP of the input, and the tags behind them."""
    out = PngImagePlugin.PngInfo()
    for key, value in like.text.items():
        out.add_text(key, value)
    if like.xmp:
        out.add_itxt("XML:com.adobe.xmp", like.xmp.decode("utf-8", "replace"))
    for key, value in tags.items():
        out.add_itxt(key, value)
    return out


def _with_chunks(png: bytes, like: Picture, tags: Mapping[str, str]) -> bytes:
    """A PNG with profile, EXIF and text added right after its header (PNG specification, third edition, 11.3)."""
    chunks = b""
    if like.icc:
        chunks += _chunk(b"iCCP", b"icc\0\0" + zlib.compress(like.icc))
    if like.dpi:
        chunks += _chunk(b"pHYs", struct.pack(">IIB", *(round(d / 0.0254) for d in like.dpi), 1))
    if like.exif:
        chunks += _chunk(b"eXIf", like.exif.removeprefix(b"Exif\0\0"))
    for kind, data, _ in _text(like, tags).chunks:
        chunks += _chunk(kind, data)
    return png[:33] + chunks + png[33:]  # 8 bytes of signature and the 25 of IHDR


def _with_directory(tiff: bytes, like: Picture, tags: Mapping[str, str]) -> bytes:
    """A TIFF with profile, EXIF, XMP and text: its directory once more with these, and it itself behind that (TIFF 6.0, section 2)."""
    directory = TiffImagePlugin.ImageFileDirectory_v2(tiff[:8])
    stream = BytesIO(tiff)
    stream.seek(directory.next)
    directory.load(stream)
    list(directory.items())  # a tag is decoded when it is read first, and those that are not are not written
    if directory[TiffImagePlugin.SAMPLESPERPIXEL] == 4:
        directory[TiffImagePlugin.EXTRASAMPLES] = 2  # transparency that is not multiplied in, which OpenCV leaves open
    told = _tiff_tags(_words(like, tags), like)
    for tag, value in told.items():
        directory[tag] = told.get_ifd(tag) if tag in TiffTags.TAGS_V2_GROUPS else value
    if like.icc:
        directory[TiffImagePlugin.ICCPROFILE] = like.icc
    if like.dpi:
        directory[TiffImagePlugin.X_RESOLUTION], directory[TiffImagePlugin.Y_RESOLUTION] = like.dpi
        directory[TiffImagePlugin.RESOLUTION_UNIT] = 2  # inch
    # offsets of pixels are moved by Pillow, by as much as is written before them
    return tiff[:4] + struct.pack("<I", 8) + directory.tobytes(8) + tiff


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
