"""Images as frames: orientation applied once, depth, alpha, EXIF and ICC kept."""

from __future__ import annotations

import logging
import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from streamfix._cv2 import cv2
from streamfix.errors import InputError
from streamfix.media.base import Source
from streamfix.types import Facts, Frame

_log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".jp2", ".avif"}
)

_ORIENTATION = 0x0112
_SYCC = b"colr\1\0\0\0\0\0\x12"  # of JPEG 2000: the colour space box that says YCC
_DESCRIPTIVE = (0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x4746, 0x8298, 0x8769, 0x8825, *range(0x9C9B, 0x9CA0))
"""Tags of TIFF and EXIF that say something of the picture, the last ones as Windows writes them."""
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, TypeError, KeyError, struct.error)
"""What Pillow raises at files that are broken."""
_FORMATS = {("u1", 1): "gray", ("u1", 3): "rgb24", ("u1", 4): "rgba"}
_FORMATS |= {("u2", 1): "gray16le", ("u2", 3): "rgb48le", ("u2", 4): "rgba64le"}
_MOVES: dict[int, Any] = {  # EXIF orientation -> what makes the picture stand upright
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
    8: lambda a: np.rot90(a, 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A decoded image: pixels (H, W) or (H, W, 3|4), uint8 or uint16, upright, and what travels with them.

    mode: Pillow's name of the stored mode. exif: the stored bytes with orientation 1. icc: the colour profile of `pixels`.
    text: the text chunks of a PNG, XMP aside. comment: of a JPEG. tables: the quantisation tables of a JPEG.
    cut: the file has more than the 8 bits a sample that could be read.
    """

    pixels: npt.NDArray[Any]
    format: str
    mode: str
    exif: bytes | None = None
    icc: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    text: dict[str, str] = field(default_factory=dict)
    comment: bytes | None = None
    tables: dict[int, list[int]] | None = None
    cut: bool = False

    def frame(self) -> av.VideoFrame:
        """The pixels as gray, rgb24, rgba, gray16le, rgb48le or rgba64le."""
        channels = 1 if self.pixels.ndim == 2 else self.pixels.shape[2]
        name = _FORMATS[self.pixels.dtype.str[1:], channels]
        return av.VideoFrame.from_ndarray(np.ascontiguousarray(self.pixels), format=name)


def images_in(files: Iterable[Path]) -> list[Path]:
    """Those with an image's suffix."""
    return [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]


def upright_exif(exif: bytes) -> bytes:
    """The same EXIF block with orientation 1 (upright); every other byte, maker notes included, stays."""
    head = 6 if exif.startswith(b"Exif\0\0") else 0
    order = {b"II": "<", b"MM": ">"}.get(exif[head : head + 2])
    if order is None or len(exif) < head + 8:
        return exif
    out = bytearray(exif)
    try:
        at = head + struct.unpack_from(order + "I", exif, head + 4)[0]
        (count,) = struct.unpack_from(order + "H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            if struct.unpack_from(order + "HHI", exif, entry) == (_ORIENTATION, 3, 1):
                struct.pack_into(order + "H", out, entry + 8, 1)
    except struct.error:  # a block that ends early has no readable orientation either
        return exif
    return bytes(out)


def read_picture(path: Path) -> Picture:
    """Decode one image. Raises InputError with one sentence when that is impossible or would lose pages or depth."""
    if not os.path.exists(path):
        raise InputError(f"there is no file {path}; check the path")
    try:
        data = path.read_bytes()
        if not data:
            raise InputError(f"{path} is empty (0 bytes); copy it again")
        with Image.open(BytesIO(data)) as image:
            return _read(path, data, image)
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: permission denied; change its permissions") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not an image, whatever its name says; give a real one") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} has too many pixels to be decoded safely; scale it down first") from error
    except _BROKEN as error:
        raise InputError(f"{path} is a damaged image ({error}); copy it again") from error


def _read(path: Path, data: bytes, image: Image.Image) -> Picture:
    pages = getattr(image, "n_frames", 1)
    if pages > 1 and image.format != "MPO":  # an MPO is a JPEG with previews behind it
        raise InputError(f"{path} holds {pages} pictures; split it, or convert an animation to a video first")
    mode, info = image.mode, image.info
    peak = _peak(data, image)
    cut = not peak and _is_cut(data, image)
    tables = dict(getattr(image, "quantization", None) or {})
    broken, orientation = _leave_out_broken_exif(image), _orientation(image)
    exif, icc, xmp = info.get("exif"), info.get("icc_profile"), info.get("xmp")
    if image.format == "TIFF":
        exif = _described(image.getexif())
        broken = exif is None
    if broken:
        _log.warning("%s: its EXIF is broken and left out", path)
    pixels: Any
    if peak:
        image.load()  # which tells what is damaged, where OpenCV only fails
        pixels = _MOVES.get(orientation, lambda a: a)(_read_deep(path, data, peak))
    else:
        pixels, icc = _pixels(path, ImageOps.exif_transpose(image), icc)
    dpi = info.get("dpi")
    if dpi and not all(1 <= d <= 65535 for d in dpi):
        dpi = None  # scanners write 0/0 where they do not know it
    return Picture(
        pixels=pixels,
        format=str(image.format),
        mode=mode,
        exif=upright_exif(exif) if exif else None,
        icc=icc or None,
        xmp=xmp if isinstance(xmp, bytes) and orientation == 1 else None,  # XMP may repeat the orientation
        dpi=(float(dpi[0]), float(dpi[1])) if dpi else None,
        text=_text(image, upright=orientation == 1),
        comment=info.get("comment") if image.format in ("JPEG", "MPO") else None,
        tables=tables,
        cut=cut,
    )


def _pixels(path: Path, image: Image.Image, icc: bytes | None) -> tuple[npt.NDArray[Any], bytes | None]:
    """Pixels of what Pillow holds at full depth, and the profile that still fits them."""
    mode = image.mode
    if mode.startswith("I;16"):
        return np.asarray(image).astype("<u2"), icc
    if mode in ("I", "F"):
        raise InputError(f"{path} has 32-bit samples; convert it to 16 bits per channel first")
    if mode in ("L", "RGB", "RGBA"):
        if mode != "RGBA" and "transparency" in image.info:
            return np.asarray(image.convert("RGBA")), icc
        return np.asarray(image), icc
    if mode == "1":
        return np.asarray(image.convert("L")), icc
    if mode == "P":
        return np.asarray(image.convert("RGBA" if "transparency" in image.info else "RGB")), icc
    if mode in ("LA", "La", "PA", "RGBa"):
        return np.asarray(image.convert("RGBA")), icc
    # CMYK, LAB, YCbCr: the profile describes the old numbers, so they are carried over to sRGB with it
    srgb = ImageCms.createProfile("sRGB")
    if icc and mode in ("CMYK", "LAB"):
        try:
            turned = ImageCms.profileToProfile(image, ImageCms.ImageCmsProfile(BytesIO(icc)), srgb, outputMode="RGB")
            assert turned is not None
            return np.asarray(turned), ImageCms.ImageCmsProfile(srgb).tobytes()
        except ImageCms.PyCMSError:
            _log.warning("%s: its colour profile cannot be used; converted without it", path)
    return np.asarray(image.convert("RGB")), None


def _text(image: Image.Image, *, upright: bool) -> dict[str, str]:
    """The text chunks of a PNG, without XMP and, where it was turned, without EXIF in disguise, which has the orientation."""
    if image.format != "PNG":
        return {}
    text: dict[str, str] = image.text  # type: ignore[attr-defined]
    left_out = ("XML:com.adobe.xmp",) if upright else ("XML:com.adobe.xmp", "Raw profile type ")
    return {key: value for key, value in text.items() if not key.startswith(left_out)}


def _peak(data: bytes, image: Image.Image) -> int:
    """The largest sample that a file can have where Pillow would cut it to 8 bits in silence and OpenCV does not; else 0."""
    if image.format == "PNG":
        deep = len(data) >= 26 and data[24] == 16 and data[25] != 0  # bit depth; colour type 0 is grey
        return 65535 if deep else 0
    if image.format == "TIFF":
        bits = image.tag_v2.get(258, (8,))  # type: ignore[attr-defined]  # BitsPerSample
        return 65535 if len(bits) > 1 and max(bits) > 8 else 0
    if image.format == "PPM":
        words = re.sub(rb"#[^\n]*", b"", data[:4096]).split(maxsplit=4)  # magic, width, height, largest sample
        deep = len(words) > 3 and words[0] in (b"P2", b"P3", b"P5", b"P6") and int(words[3]) > 255
        return int(words[3]) if deep else 0
    if image.format == "JPEG2000":
        bits = _jpeg2000_bits(data)
        return 2**bits - 1 if 8 < bits <= 16 and _SYCC not in data else 0  # OpenCV turns deep YCC into wrong colours
    return 0


def _is_cut(data: bytes, image: Image.Image) -> bool:
    """Whether Pillow reads 8 bits of samples that have more."""
    if image.format == "AVIF":
        at = data.find(b"av1C")  # AV1 codec configuration box: two bytes, then the flags
        return 0 <= at < len(data) - 6 and bool(data[at + 6] & 0x40)  # high_bitdepth
    return image.format == "JPEG2000" and image.mode in ("RGB", "RGBA") and _jpeg2000_bits(data) > 8


def _jpeg2000_bits(data: bytes) -> int:
    """Bits a sample of the first component (ISO 15444-1, A.5.1); 8 where a damaged file does not say."""
    start = data.find(b"\xff\x4f\xff\x51")  # SOC and SIZ; 38 bytes of sizes and a count come before the components
    return (data[start + 42] & 0x7F) + 1 if 0 <= start < len(data) - 42 else 8


def _read_deep(path: Path, data: bytes, peak: int) -> npt.NDArray[Any]:
    # IMREAD_UNCHANGED also leaves the orientation alone; a PNM in plain text may end in a digit, where OpenCV reads on
    stored = cv2.imdecode(np.frombuffer(data + b"\n", np.uint8), cv2.IMREAD_UNCHANGED)
    if stored is None or stored.dtype != np.uint16 or stored.ndim not in (2, 3):
        raise InputError(f"{path} has a sample format that cannot be kept; convert it to 16 bits per channel first")
    if peak != 65535:
        stored = ((np.minimum(stored, peak).astype(np.uint32) * 65535 + peak // 2) // peak).astype(np.uint16)
    if stored.ndim == 2:
        return stored
    swap = cv2.COLOR_BGRA2RGBA if stored.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return cv2.cvtColor(stored, swap)


def describing(stored: Image.Exif) -> bytes:
    """An EXIF block of the tags that describe a picture, camera and place included, without those that say how its pixels lie."""
    out = Image.Exif()
    for tag in _DESCRIPTIVE:
        if tag in stored:
            value = stored.get_ifd(tag) if tag in (0x8769, 0x8825) else stored[tag]
            out[tag] = value.encode("latin-1", "replace") if isinstance(value, str) else value  # as it was in the file
    return out.tobytes() if len(out) else b""


def _described(exif: Image.Exif | bytes) -> bytes | None:
    """What `describing` gives of tags, or of a block; None where it cannot be read to its end and written again."""
    try:
        if isinstance(exif, bytes):
            stored = Image.Exif()
            stored.load(exif)
            stored.tobytes()
            exif = stored
        return describing(exif)
    except Exception:  # Pillow raises what its parts happen to raise
        return None


def _leave_out_broken_exif(image: Image.Image) -> bool:
    """Take an EXIF block that is broken from a picture before Pillow stumbles over it; whether there was one."""
    if image.format == "PNG" and "exif" not in image.info:
        image.load()  # it may come behind the pixels
    exif = image.info.get("exif")
    if not exif or _described(exif) is not None:
        return False
    del image.info["exif"]
    image.getexif().clear()  # what was read of it
    return True


def _orientation(image: Image.Image) -> int:
    """How a picture is to be turned, from 1 to 8."""
    found = image.getexif().get(_ORIENTATION)
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


class ImageSource(Source):
    """One image, or several in the order of their names; Frame.index is the number of the file.

    An unreadable file among several is counted in `damaged` and skipped; alone it raises InputError.
    files: the images. names: where each goes inside an output folder.
    """

    is_still = True
    rotation = 0

    def __init__(self, path: Path, files: list[Path]) -> None:
        self.path, self.files = path, files
        root = Path(os.path.commonpath([f.parent for f in files]))
        self.names = [f.relative_to(root) for f in files]
        self.time_base, self.frame_rate = Fraction(1, 25), 25.0  # images have no time: 25 a second
        self.frames, self.duration = len(files), None
        if len(files) == 1:
            self._only: Picture | None = read_picture(files[0])
            self.height, self.width = self._only.pixels.shape[:2]
        else:
            self._only = None
            self.width, self.height = self._first_size()

    def _first_size(self) -> tuple[int, int]:
        for file in self.files:
            try:
                with Image.open(file) as image:
                    _leave_out_broken_exif(image)
                    turned = _orientation(image) >= 5
                    return (image.height, image.width) if turned else (image.width, image.height)
            except (*_BROKEN, Image.DecompressionBombError):
                continue
        raise InputError(f"none of the {len(self.files)} images of {self.path} can be read")

    def picture(self, index: int) -> Picture:
        """One of the images; read anew where there are several."""
        return self._only or read_picture(self.files[index])

    def __iter__(self) -> Iterator[Frame]:
        for index, file in enumerate(self.files):
            try:
                picture = self.picture(index)
            except InputError as error:
                _log.warning("skipped: %s", error)
                self.damaged += 1
                continue
            if picture.cut:
                _log.warning("%s: more than 8 bits a channel become 8, which is all that is read of this format", file)
            frame = picture.frame()
            frame.pts, frame.time_base = index, self.time_base
            yield Frame(picture=frame, index=index, pts=index, time_base=self.time_base)

    def facts(self) -> Facts:
        """Path, number of images, and for each its format, size, mode, orientation, EXIF and ICC."""
        streams = []
        for index, file in enumerate(self.files):
            try:
                with Image.open(file) as image:
                    found: Facts = {"index": index, "type": "image", "codec": str(image.format), "file": str(file)}
                    found |= {"width": image.width, "height": image.height, "mode": image.mode}
                    _leave_out_broken_exif(image)
                    found |= {"exif": "exif" in image.info, "icc": "icc_profile" in image.info}
                    found["orientation"] = _orientation(image)
            except (*_BROKEN, Image.DecompressionBombError) as error:
                found = {"index": index, "type": "image", "codec": "unreadable", "file": str(file), "error": str(error)}
            streams.append(found)
        return {
            "path": str(self.path),
            "kind": "images",
            "frames": len(self.files),
            "damaged": self.damaged,
            "streams": streams,
        }

    def close(self) -> None:
        """Let go of the decoded picture."""
        self._only = None
