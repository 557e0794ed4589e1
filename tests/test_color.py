from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamfix.compose import compose, face_mask
from streamfix.errors import InputError
from streamfix.media.color import BORDER_RGB, copy_picture, cut_out, lay_back, side_by_side, to_rgb
from streamfix.types import CROP_SIZE, Crop, Frame, Placement

FORMATS = [
    "yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p12le", "nv12", "p010le", "gray", "gray10le",
    "rgb24", "bgr24", "rgba", "gbrp", "gbrp10le", "rgb48le", "ya8", "yuva420p", "yuv411p",
]  # fmt: skip
REFORMATTED = ["yuyv422", "yuv420p10be", "monow"]
SHOWN = [*FORMATS, *REFORMATTED, "gbrpf32le", "rgb565le", "nv21"]


def smooth_picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 64.0
    parts = [
        128 + 80 * np.sin(x * rng.uniform(0.5, 1.5) + y * rng.uniform(0.5, 1.5) + rng.uniform(0, 6)) for _ in range(3)
    ]
    return np.clip(np.rint(np.stack(parts, axis=-1)), 0, 255).astype(np.uint8)


def frame_of(image: np.ndarray, pixel_format: str, *, colorspace: int | None = None) -> Frame:
    picture = av.VideoFrame.from_ndarray(image, format="rgb24")
    if colorspace is None:
        picture = picture.reformat(format=pixel_format)
    else:
        picture = picture.reformat(format=pixel_format, dst_colorspace=colorspace)
        picture.colorspace = colorspace
    picture.pts = 7
    return Frame(picture=picture, index=0, pts=7, time_base=Fraction(1, 25))


def raw(frame: Frame) -> list[bytes]:
    out = []
    for plane in frame.picture.planes:
        rows = np.frombuffer(plane, np.uint8)[: plane.height * plane.line_size].reshape(plane.height, plane.line_size)
        bits = max(c.bits for c in frame.picture.format.components)
        samples = {"rgb24": 3, "bgr24": 3, "rgba": 4, "rgb48le": 3, "ya8": 2, "nv12": 1, "p010le": 1}
        wide = plane.width * samples.get(frame.picture.format.name, 1) * (2 if bits > 8 else 1)
        out.append(rows[:, :wide].tobytes())
    return out


def placement(matrix: np.ndarray, strength: float = 1.0) -> Placement:
    return Placement(track_id=1, matrix=matrix, strength=strength)


SHIFT = np.array([[1.0, 0.0, -40.0], [0.0, 1.0, -20.0]])
TURNED = np.array([[2.4, 0.7, -120.0], [-0.7, 2.4, 60.0]])


@pytest.mark.parametrize("pixel_format", FORMATS + REFORMATTED)
def test_a_crop_shows_the_colours_of_the_picture(pixel_format: str) -> None:
    image = smooth_picture(640, 560)
    frame = frame_of(image, pixel_format)
    expected = image[20:532, 40:552] / 255.0
    if pixel_format.startswith(("gray", "ya", "monow")):
        expected = np.repeat((expected @ [0.299, 0.587, 0.114])[..., None], 3, axis=-1)
    got = cut_out(frame, SHIFT)
    coarse = pixel_format == "monow"  # two colours, dithered
    assert np.abs(got - expected).mean() < (0.5 if coarse else 0.006)
    assert np.abs(got.mean(axis=(0, 1)) - expected.mean(axis=(0, 1))).max() < (
        0.03 if coarse else 0.008
    )  # swscale rounds down


# H.273 written out for each case: (matrix code, Kr, Kb), independent of the product's table
@pytest.mark.parametrize(
    ("code", "kr", "kb"), [(1, 0.2126, 0.0722), (5, 0.299, 0.114), (7, 0.212, 0.087), (9, 0.2627, 0.0593)]
)
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("name", "bits"), [("yuv444p", 8), ("yuv444p10le", 10)])
def test_matrix_and_range_of_the_stream_are_used(
    code: int, kr: float, kb: float, full: bool, name: str, bits: int
) -> None:
    image = smooth_picture(640, 560, seed=3)
    red, green, blue = (image[..., i] / 255.0 for i in range(3))
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    chroma = [(blue - luma) / 2 / (1 - kb), (red - luma) / 2 / (1 - kr)]
    unit, top = 2 ** (bits - 8), 2**bits - 1
    codes = [luma * top if full else 16 * unit + 219 * unit * luma]
    codes += [128 * unit + c * (top if full else 224 * unit) for c in chroma]
    picture = av.VideoFrame(640, 560, name)
    picture.colorspace, picture.color_range = code, 2 if full else 1
    dtype = np.uint8 if bits == 8 else np.uint16
    for plane, values in zip(picture.planes, codes, strict=True):
        np.frombuffer(plane, dtype).reshape(560, -1)[:, :640] = np.rint(np.clip(values, 0, top))
    frame = Frame(picture=picture, index=0, pts=0, time_base=Fraction(1, 25))
    assert np.abs(cut_out(frame, SHIFT) - image[20:532, 40:552] / 255.0).max() < 2.5 / 255


def test_a_matrix_that_is_not_ycbcr_is_refused() -> None:
    frame = frame_of(smooth_picture(64, 64), "yuv444p")
    frame.picture.colorspace = 8
    with pytest.raises(InputError, match="YCgCo"):
        cut_out(frame, SHIFT)


def test_outside_the_frame_the_crop_is_the_published_grey() -> None:
    frame = frame_of(smooth_picture(64, 64), "yuv420p")
    far = np.array([[1.0, 0.0, 5000.0], [0.0, 1.0, 0.0]])
    assert np.abs(cut_out(frame, far) - np.array(BORDER_RGB, dtype=np.float32)).max() < 1e-3


@pytest.mark.parametrize("pixel_format", FORMATS)
def test_nothing_outside_the_mask_changes_and_inside_it_does(pixel_format: str) -> None:
    frame, untouched = (
        frame_of(smooth_picture(640, 560), pixel_format),
        frame_of(smooth_picture(640, 560), pixel_format),
    )
    crop = cut_out(frame, TURNED)
    mask = np.zeros((CROP_SIZE, CROP_SIZE), np.float32)
    mask[200:312, 200:312] = 1.0
    out = lay_back(frame, restored=1.0 - crop, crop=crop, mask=mask, matrix=TURNED)
    inverse = np.linalg.inv(TURNED[:, :2])
    corners = (np.array([[198, 198], [198, 313], [313, 198], [313, 313]]) - TURNED[:, 2]) @ inverse.T
    low, high = np.floor(corners.min(0)).astype(int) - 3, np.ceil(corners.max(0)).astype(int) + 4
    before, after = to_rgb(untouched), to_rgb(out)
    # in the stored samples: planes compared outside the box, as far as RGB can show it
    keep = np.ones(before.shape[:2], bool)
    keep[low[1] : high[1], low[0] : high[0]] = False
    assert np.array_equal(before[keep], after[keep])
    assert np.abs(before[~keep].astype(int) - after[~keep].astype(int)).mean() > 5


@pytest.mark.parametrize("pixel_format", FORMATS)
def test_strength_zero_leaves_every_sample(pixel_format: str) -> None:
    frame, untouched = (
        frame_of(smooth_picture(320, 240), pixel_format),
        frame_of(smooth_picture(320, 240), pixel_format),
    )
    crop = Crop(frame_index=0, placement=placement(TURNED, 0.0), image=cut_out(frame, TURNED))
    assert raw(compose(frame, crop, np.ones_like(crop.image))) == raw(untouched)


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "yuv420p10le", "nv12", "rgb24", "gray"])
@pytest.mark.parametrize("scale", [0.4, 0.9, 1.7, 4.0])
def test_laying_back_what_was_cut_out_hardly_changes_the_picture(pixel_format: str, scale: float) -> None:
    image = smooth_picture(640, 560, seed=1)
    frame, untouched = frame_of(image, pixel_format), frame_of(image, pixel_format)
    angle = 0.3
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.hstack([turn, (np.array([256, 256]) - turn @ np.array([300, 280]))[:, None]])
    crop = Crop(frame_index=0, placement=placement(matrix), image=cut_out(frame, matrix))
    out = compose(frame, crop, crop.image)
    assert np.abs(to_rgb(out).astype(int) - to_rgb(untouched).astype(int)).max() <= 6


def test_ten_bits_stay_ten_bits() -> None:
    ramp = (np.arange(640)[None, :] * 0.5 + 300).repeat(480, axis=0)
    picture = av.VideoFrame(640, 480, "yuv420p10le")
    for plane, value in zip(picture.planes, (ramp, 512, 512), strict=True):
        view = np.frombuffer(plane, "<u2").reshape(plane.height, -1)
        view[:, : plane.width] = value if np.isscalar(value) else value.astype(np.uint16)
    frame = Frame(picture=picture, index=0, pts=0, time_base=Fraction(1, 25))
    crop = Crop(frame_index=0, placement=placement(SHIFT), image=cut_out(frame, SHIFT))
    out = compose(frame, crop, crop.image)
    luma = np.frombuffer(out.picture.planes[0], "<u2").reshape(480, -1)[:, :640]
    assert np.abs(luma.astype(int) - ramp.astype(np.uint16).astype(int)).max() <= 1
    assert len(np.unique(luma[240])) > 300  # an 8-bit detour would leave a quarter of the steps


def test_a_face_larger_than_its_crop_keeps_its_detail() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1400, 1400, 3), dtype=np.uint8)
    matrix = np.array([[0.4, 0.0, 0.0], [0.0, 0.4, 0.0]])
    frame = frame_of(image, "yuv444p")
    before = to_rgb(frame)
    crop = Crop(frame_index=0, placement=placement(matrix), image=cut_out(frame, matrix))
    after = to_rgb(compose(frame, crop, crop.image))
    assert np.abs(before.astype(int) - after.astype(int)).max() <= 1


def test_laying_back_never_touches_the_decoders_own_reference() -> None:
    frame = frame_of(smooth_picture(320, 240), "yuv420p")
    alias = frame.picture.reformat(format="yuv420p")  # the same buffer where the format is the same
    before = bytes(alias.planes[0])
    crop = cut_out(frame, TURNED)
    lay_back(frame, restored=1.0 - crop, crop=crop, mask=np.asarray(face_mask()), matrix=TURNED)
    if alias is not frame.picture:
        assert bytes(alias.planes[0]) == before


def test_the_mask_is_feathered_and_zero_at_the_rim() -> None:
    mask = face_mask()
    assert mask[256, 256] == 1.0
    assert mask[0].max() == mask[-1].max() == mask[:, 0].max() == mask[:, -1].max() == 0.0
    assert np.abs(np.diff(mask, axis=0)).max() < 0.05
    eyes_and_mouth = [(240, 193), (240, 319), (371, 201), (371, 313)]
    assert all(mask[point] == 1.0 for point in eyes_and_mouth)


@settings(max_examples=25, deadline=None)
@given(
    scale=st.floats(0.15, 20),
    angle=st.floats(-3.2, 3.2),
    cx=st.floats(-50, 130),
    cy=st.floats(-50, 110),
    pixel_format=st.sampled_from(["yuv420p", "yuv411p", "nv12", "rgb24"]),
)
def test_any_placement_gives_a_finite_crop_and_a_whole_frame(
    scale: float, angle: float, cx: float, cy: float, pixel_format: str
) -> None:
    frame = frame_of(smooth_picture(81, 63), pixel_format)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.hstack([turn, (np.array([256, 256]) - turn @ np.array([cx, cy]))[:, None]])
    crop = Crop(frame_index=0, placement=placement(matrix), image=cut_out(frame, matrix))
    assert crop.image.shape == (512, 512, 3)
    assert np.isfinite(crop.image).all()
    out = compose(frame, crop, crop.image)
    assert (out.picture.width, out.picture.height, out.picture.format.name) == (81, 63, pixel_format)


@pytest.mark.parametrize("pixel_format", [*SHOWN, "pal8"])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_side_by_side_shows_both_pictures_whole(pixel_format: str, rotation: int) -> None:
    left, right = smooth_picture(64, 48, 1), smooth_picture(64, 48, 2)
    if pixel_format == "pal8":
        palette = np.random.default_rng(0).integers(0, 256, (256, 4), dtype=np.uint8)
        palette[:, 0] = 255  # alpha
        pair = [av.VideoFrame.from_ndarray((i[..., 0], palette), format="pal8") for i in (left, right)]
    else:
        pair = [frame_of(i, pixel_format).picture for i in (left, right)]
    shown = np.rot90(
        side_by_side(copy_picture(pair[0]), pair[1], rotation=rotation).to_ndarray(format="rgb24"), -(rotation // 90)
    )
    parts = np.split(shown, 2, axis=1)
    for part, picture in zip(parts, pair, strict=True):
        expected = np.rot90(picture.to_ndarray(format="rgb24"), -(rotation // 90)).astype(int)
        assert part.shape == expected.shape
        # some formats are converted on their way, and FFmpeg widens their chroma in another manner then
        assert np.abs(part.astype(int) - expected).mean() < 2


@pytest.mark.parametrize("tag", ["colorspace", "color_trc"])
def test_faces_are_looked_for_whatever_the_colour_tags(tag: str) -> None:
    picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 200, np.uint8), format="rgb24").reformat(format="yuv420p")
    setattr(picture, tag, {"colorspace": 8, "color_trc": 9}[tag])  # YCgCo, a logarithm: swscale refuses either
    with pytest.raises(OSError, match="not supported"):
        picture.to_ndarray(format="rgb24")
    seen = to_rgb(Frame(picture=picture, index=0, pts=0, time_base=Fraction(1, 25)))
    assert np.abs(seen.astype(int) - 200).max() <= 3
