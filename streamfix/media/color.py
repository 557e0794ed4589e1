"""YUV <-> RGB by the stream's own matrix and range, for one face at a time.

A frame is never sent through RGB as a whole. `cut_out` samples every plane of the stored picture on the crop's own grid and turns
the 512x512 result into RGB; `lay_back` goes the other way and writes only where the mask is above zero, so every other sample of
the frame stays what the decoder gave. Matrix and range codes: ITU-T H.273; equations: ITU-R BT.601, BT.709, BT.2020 (non-constant
luminance). HDR code values (PQ, HLG) are treated as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from streamfix._cv2 import cv2
from streamfix.errors import InputError
from streamfix.types import CROP_SIZE, Frame, Image

if TYPE_CHECKING:
    import av

Matrix = npt.NDArray[np.float64]
Samples = npt.NDArray[np.float32]

BORDER_RGB = (132 / 255, 133 / 255, 135 / 255)
"""Grey outside the frame, as in the published alignment (135, 133, 132 in BGR order)."""

_LUMA_WEIGHTS = {  # H.273 matrix code -> (Kr, Kb)
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
    10: (0.2627, 0.0593),
}
_UNSUPPORTED = {8: "YCgCo", 11: "Y'D'zD'x", 12: "chromaticity-derived", 13: "chromaticity-derived", 14: "ICtCp"}

_PACKED = {  # the order of the samples in the one plane; 0 and A are left alone
    **{name: name[:-2].upper() for name in ("rgb24", "bgr24")},
    **{name: name.upper() for name in ("rgba", "bgra", "argb", "abgr", "rgb0", "bgr0", "0rgb", "0bgr")},
    "rgb48le": "RGB",
    "rgba64le": "RGBA",
    "ya8": "YA",
    "ya16le": "YA",
}
_SEMIPLANAR = {"nv12": 0, "nv16": 0, "nv24": 0, "p010le": 6, "p016le": 0, "p210le": 6}  # name -> shift of the sample
_PLAIN = {
    "yuyv422": "yuv422p",
    "uyvy422": "yuv422p",
    "yvyu422": "yuv422p",
    "uyyvyy411": "yuv411p",
    "pal8": "rgba",
    "nv21": "nv12",
}


@dataclass(frozen=True, slots=True)
class _Component:
    """One colour component: a writable view (h, w) of its samples, its place on the luma grid, and its code levels."""

    name: str
    view: npt.NDArray[Any]
    step: tuple[int, int]  # luma pixels per sample, x and y
    origin: tuple[float, float]  # luma position of sample (0, 0)
    zero: float  # code of value 0
    span: float  # codes per unit
    peak: int
    shift: int

    def to_plane(self, matrix: Matrix) -> Matrix:
        """Turn a map frame -> crop (2, 3) into one from this plane's sample grid -> crop."""
        out = np.empty((2, 3))
        out[:, :2] = matrix[:, :2] * np.asarray(self.step, dtype=np.float64)
        out[:, 2] = matrix[:, :2] @ np.asarray(self.origin, dtype=np.float64) + matrix[:, 2]
        return out


def _is_rgb(picture: av.VideoFrame) -> bool:
    return bool(picture.format.is_rgb) or picture.format.name == "pal8"


_UNTAGGED = 2


def usual_matrix(width: int, height: int) -> int:
    """The matrix that a picture of that size which names none is taken to have: 1 (BT.709) in HD, 6 (BT.601) below."""
    return 1 if height > 576 or width > 1024 else 6


def luma_weights(picture: av.VideoFrame) -> tuple[float, float]:
    """(Kr, Kb) of the picture's matrix; untagged pictures follow the usual rule: HD is BT.709, smaller is BT.601.

    Raises InputError for matrices that are not of the Y'CbCr kind.
    """
    code = int(picture.colorspace)
    if code in _UNSUPPORTED:
        raise InputError(f"the colour matrix {_UNSUPPORTED[code]} is not supported; convert the video to BT.709 first")
    return _LUMA_WEIGHTS.get(code, _LUMA_WEIGHTS[usual_matrix(picture.width, picture.height)])


def is_full_range(picture: av.VideoFrame) -> bool:
    """Whether codes run over the whole range (JPEG) rather than 16..235 (video)."""
    name = picture.format.name
    if name.startswith("yuvj") or _is_rgb(picture):
        return True
    if name.startswith(("gray", "ya")):
        return int(picture.color_range) != 1
    return int(picture.color_range) == 2


def _plain(picture: av.VideoFrame) -> av.VideoFrame:
    """The picture in a pixel format whose components can be viewed: itself for all usual formats."""
    name, components = picture.format.name, picture.format.components
    planar = len(picture.planes) == len(components) == len({c.plane for c in components})
    if (
        name in _PACKED
        or name in _SEMIPLANAR
        or (planar and all(8 <= c.bits <= 16 for c in components) and not name.endswith("be"))
    ):
        return picture
    deep = max(c.bits for c in components) > 8
    if name in _PLAIN:
        target = _PLAIN[name]
    elif len(components) <= 2:
        target = "gray16le" if deep else "gray"
    elif picture.format.is_rgb:
        target = "rgba64le" if deep else "rgba"
    else:
        target = "yuv444p16le" if deep else "yuv444p"
    return picture.reformat(format=target)


def _siting(frame: Frame, sub: tuple[int, int]) -> tuple[float, float]:
    """Luma position of the first sample of a plane subsampled by that much.

    Untagged chroma is where MPEG-2 and later have it (left), in full range where JPEG has it (centre).
    """
    location = frame.chroma_location or ("center" if is_full_range(frame.picture) else "left")
    x = 0.0 if location.endswith("left") else (sub[0] - 1) / 2
    y = 0.0 if location.startswith("top") else sub[1] - 1.0 if location.startswith("bottom") else (sub[1] - 1) / 2
    return x, y


def _components(frame: Frame) -> Iterator[_Component]:
    """Writable views of the colour components of a frame that went through `_plain`; alpha is left out."""
    picture = frame.picture
    name, parts = picture.format.name, picture.format.components
    full, rgb = is_full_range(picture), _is_rgb(picture)
    samples = []
    for plane in picture.planes:
        dtype = np.dtype(np.uint8 if parts[0].bits == 8 else "<u2")
        rows = np.frombuffer(memoryview(plane), dtype, count=plane.height * plane.line_size // dtype.itemsize)
        samples.append(rows.reshape(plane.height, plane.line_size // dtype.itemsize))
    for part, letter in zip(parts, "RGBA" if rgb else "YA" if len(parts) <= 2 else "YUVA", strict=False):
        if letter == "A":
            continue
        first, step = 0, 1
        if name in _PACKED:
            first, step = _PACKED[name].index(letter), len(_PACKED[name])
        elif name in _SEMIPLANAR and letter != "Y":
            first, step = "UV".index(letter), 2
        view = samples[part.plane][: part.height, first : first + part.width * step : step]
        sub = tuple(
            2 ** round(math.log2(n / m)) for n, m in ((picture.width, part.width), (picture.height, part.height))
        )
        origin = _siting(frame, (sub[0], sub[1]))
        unit = 2 ** (part.bits - 8)
        if letter in "UV":
            zero, span = 128.0 * unit, (2**part.bits - 1.0 if full else 224.0 * unit)
        else:
            zero, span = (0.0, 2**part.bits - 1.0) if full else (16.0 * unit, 219.0 * unit)
        yield _Component(letter, view, (sub[0], sub[1]), origin, zero, span, 2**part.bits - 1, _SEMIPLANAR.get(name, 0))


def _from_rgb(rgb: Samples | tuple[float, float, float], weights: tuple[float, float]) -> dict[str, Any]:
    """R, G, B in [0, 1] as every component that a format may ask for: Y in [0, 1], U and V in [-0.5, 0.5]."""
    kr, kb = weights
    luma = np.array([kr, 1 - kr - kb, kb])
    red, _, blue = np.eye(3)
    matrix = np.stack([luma, (blue - luma) / (2 * (1 - kb)), (red - luma) / (2 * (1 - kr))])
    parts: tuple[Any, ...]
    if isinstance(rgb, np.ndarray):  # a fifth of the time of the same sums in numpy
        parts = (*(rgb[..., i] for i in range(3)), *cv2.split(cv2.transform(rgb, matrix)))
    else:
        parts = (*rgb, *(matrix @ rgb))
    return dict(zip("RGBYUV", parts, strict=True))


def _scale(matrix: Matrix) -> float:
    return math.sqrt(abs(float(np.linalg.det(matrix[:, :2]))))


def _antialias(samples: Samples, ratio: float) -> Samples:
    """Blur before taking every `ratio`-th sample; nothing to do when sampling finer than the source."""
    if ratio <= 1.0:
        return samples
    sigma = 0.5 * math.sqrt(ratio * ratio - 1.0)
    return cast(Samples, cv2.GaussianBlur(samples, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE))


def _box(corners: Matrix, shape: tuple[int, ...], margin: int) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the whole samples around the corners, inside a plane of that shape."""
    low, high = np.floor(corners.min(axis=0)) - margin, np.ceil(corners.max(axis=0)) + margin + 1
    x0, y0 = (int(max(v, 0)) for v in low)
    x1, y1 = int(min(high[0], shape[1])), int(min(high[1], shape[0]))
    return x0, y0, max(x1, x0), max(y1, y0)


_CORNERS = np.array(
    [[0, 0, 1], [CROP_SIZE - 1, 0, 1], [0, CROP_SIZE - 1, 1], [CROP_SIZE - 1, CROP_SIZE - 1, 1]], dtype=np.float64
)


def _inverse(matrix: Matrix) -> Matrix:
    linear = np.linalg.inv(matrix[:, :2])
    return np.hstack([linear, -(linear @ matrix[:, 2:])])


def _sample(component: _Component, matrix: Matrix, border: float) -> Samples:
    """One component on the crop's grid, as value (not code), float32 (512, 512)."""
    to_crop = component.to_plane(matrix)
    ratio = 1.0 / _scale(to_crop)
    x0, y0, x1, y1 = _box(_CORNERS @ _inverse(to_crop).T, component.view.shape, 3 + math.ceil(2 * max(ratio, 1.0)))
    if x1 == x0 or y1 == y0:
        return np.full((CROP_SIZE, CROP_SIZE), border, dtype=np.float32)
    codes = (component.view[y0:y1, x0:x1] >> component.shift).astype(np.float32)
    values = _antialias((codes - np.float32(component.zero)) / np.float32(component.span), ratio)
    to_crop[:, 2] += to_crop[:, :2] @ (x0, y0)
    return cast(
        Samples,
        cv2.warpAffine(
            values,
            to_crop,
            (CROP_SIZE, CROP_SIZE),
            flags=cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=border,
        ),
    )


def cut_out(frame: Frame, matrix: Matrix) -> Samples:
    """The aligned crop of a frame: float32 (512, 512, 3), RGB in [0, 1]; grey where it reaches over the frame's edge.

    matrix: float64 (2, 3), stored frame -> crop. Raises InputError for colour matrices that are not Y'CbCr.
    """
    frame = replace(frame, picture=_plain(frame.picture))
    kr, kb = weights = luma_weights(frame.picture)
    border = _from_rgb(BORDER_RGB, weights)
    got = {c.name: _sample(c, matrix, border[c.name]) for c in _components(frame)}
    if "R" in got:
        rgb = np.stack([got["R"], got["G"], got["B"]], axis=-1)
    elif "U" in got:
        red = got["Y"] + 2 * (1 - kr) * got["V"]
        blue = got["Y"] + 2 * (1 - kb) * got["U"]
        green = (got["Y"] - kr * red - kb * blue) / (1 - kr - kb)
        rgb = np.stack([red, green, blue], axis=-1)
    else:
        rgb = np.repeat(got["Y"][..., None], 3, axis=-1)
    return cast(Samples, np.clip(rgb, 0.0, 1.0, dtype=np.float32))


def _spread(crop: Samples, matrix: Matrix, box: tuple[int, int, int, int], flags: int) -> Samples:
    """Values on the crop's grid carried to the samples of a plane inside the box; matrix: plane -> crop."""
    x0, y0, x1, y1 = box
    to_crop = matrix.copy()
    to_crop[:, 2] += to_crop[:, :2] @ (x0, y0)
    return cast(
        Samples,
        cv2.warpAffine(
            crop,
            to_crop,
            (x1 - x0, y1 - y0),
            flags=flags | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=0.0,
        ),
    )


def lay_back(frame: Frame, *, restored: Samples, crop: Samples, mask: Samples, matrix: Matrix) -> Frame:
    """Write a restored crop into the frame where the mask says so; everything else keeps its samples bit for bit.

    restored, crop: float32 (512, 512, 3), RGB in [0, 1]: what the restorer gave and what it was given.
    mask: float32 (512, 512) in [0, 1], zero along the rim. matrix: as for `cut_out`.
    The frame's picture is made writable and changed in place (the decoder's own reference is copied first); the frame is returned.
    A face larger than its crop keeps the detail that the crop could not carry: there only the *difference* made by the restorer is added.
    """
    frame = replace(frame, picture=_plain(frame.picture))
    picture = frame.picture
    picture.make_writable()
    weights = luma_weights(picture)
    after = _from_rgb(restored, weights)
    carried = _carried(_scale(matrix))
    before = _from_rgb(crop, weights) if carried < 1.0 else {}
    for component in _components(frame):
        to_crop = component.to_plane(matrix)
        box = _box(_CORNERS @ _inverse(to_crop).T, component.view.shape, 0)
        x0, y0, x1, y1 = box
        if x1 == x0 or y1 == y0:
            continue
        ratio = _scale(to_crop)  # crop pixels per sample
        weight = _spread(mask, to_crop, box, cv2.INTER_LINEAR)
        flags = cv2.INTER_CUBIC if ratio < 1.0 else cv2.INTER_LINEAR
        target = _spread(_antialias(np.ascontiguousarray(after[component.name]), ratio), to_crop, box, flags)
        region = component.view[y0:y1, x0:x1]
        old = (region >> component.shift).astype(np.float32)
        base = (old - np.float32(component.zero)) / np.float32(component.span)
        if carried < 1.0:
            seen = _spread(np.ascontiguousarray(before[component.name]), to_crop, box, flags)
            base = carried * base + (1.0 - carried) * seen
        new = old + weight * (target - base) * np.float32(component.span)
        codes = np.clip(np.rint(new), 0, component.peak).astype(region.dtype) << component.shift
        np.copyto(region, codes, where=weight > 0)
    return frame


def _carried(scale: float) -> float:
    """How much of the frame's detail the crop carries: 1 while the crop is the finer grid, 0 when it is 1.5 times coarser."""
    x = min(max((1.0 / scale - 1.0) / 0.5, 0.0), 1.0)
    return 1.0 - x * x * (3.0 - 2.0 * x)


def to_rgb(frame: Frame) -> Image:
    """The whole stored picture as RGB uint8 (H, W, 3): for detectors and contact sheets, never for the output."""
    picture = frame.picture
    try:
        return cast(Image, picture.to_ndarray(format="rgb24"))
    except OSError:  # colour tags that swscale refuses; faces are found without them
        picture = copy_picture(picture)
        picture.colorspace, picture.color_primaries, picture.color_trc = _UNTAGGED, _UNTAGGED, _UNTAGGED
        return cast(Image, picture.to_ndarray(format="rgb24"))


def side_by_side(left: av.VideoFrame, right: av.VideoFrame, *, rotation: int = 0) -> av.VideoFrame:
    """Two pictures of one size and format as one, side by side as they are *shown* after that clockwise rotation.

    The result is in the plain format that `cut_out` and `lay_back` work in.
    """
    left, right = _plain(left), _plain(right)
    stacked = rotation in (90, 270)
    if rotation in (90, 180):  # turned this way, what is stored first is shown last
        left, right = right, left
    width, height = (left.width, 2 * left.height) if stacked else (2 * left.width, left.height)
    both = type(left)(width, height, left.format.name)
    for tag in ("colorspace", "color_range", "color_primaries", "color_trc"):
        setattr(both, tag, getattr(left, tag))
    for first, second, out in zip(_planes(left), _planes(right), _planes(both), strict=True):
        rows, columns = first.shape
        out[:rows, :columns] = first
        room = out[rows:] if stacked else out[:, columns:]  # an odd size in 4:2:0 leaves one chroma sample less
        room[:] = second[: room.shape[0], : room.shape[1]]
    _time_like(left, both)
    return both


def _planes(picture: av.VideoFrame) -> list[npt.NDArray[np.uint8]]:
    """The bytes of every plane of a plain picture without its padding, as a writable view (rows, bytes of a row)."""
    out = []
    parts = picture.format.components
    for index, plane in enumerate(picture.planes):
        inside = [c for c in parts if c.plane == index]
        order = _PACKED.get(picture.format.name)
        samples = len(order) * inside[0].width if order else sum(c.width for c in inside)
        row = samples * (2 if inside[0].bits > 8 else 1)
        flat = np.frombuffer(memoryview(plane), np.uint8, count=plane.height * plane.line_size)
        out.append(flat.reshape(plane.height, plane.line_size)[:, :row])
    return out


def copy_picture(picture: av.VideoFrame) -> av.VideoFrame:
    """A picture of its own memory with the same samples and tags (not the side data), in the plain format."""
    picture = _plain(picture)
    own = type(picture)(picture.width, picture.height, picture.format.name)
    for tag in ("colorspace", "color_range", "color_primaries", "color_trc"):
        setattr(own, tag, getattr(picture, tag))
    for source, target in zip(_planes(picture), _planes(own), strict=True):
        target[:] = source
    _time_like(picture, own)
    return own


def _time_like(picture: av.VideoFrame, other: av.VideoFrame) -> None:
    other.pts = picture.pts
    if picture.time_base is not None:
        other.time_base = picture.time_base
