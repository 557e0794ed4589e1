"""Images in and out: orientation once, depth, alpha, EXIF and colour profile kept."""

import contextlib
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from streamfix.errors import InputError, OutputError, UsageError
from streamfix.inspection import check_sheet
from streamfix.media import find_media, open_sink, open_source
from streamfix.media.images import upright_exif

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def copy(source: Path, target: Path, **options: object) -> Path:
    with open_source(source) as frames, open_sink(target, like=frames, overwrite=True, **options) as sink:
        for frame in frames:
            sink.write(frame)
    return target


def corner(height: int = 24, width: int = 40, channels: int = 3) -> np.ndarray:
    """A picture whose four corners differ, so that every turn of it can be told."""
    image = np.full((height, width, channels), 90, np.uint8)
    image[: height // 2, : width // 2] = 250
    image[: height // 2, width // 2 :] = 170
    image[height // 2 :, : width // 2] = 30
    return image


def smooth() -> np.ndarray:
    """Soft waves of colour, 48x64, with a little grain."""
    y, x = np.mgrid[:48, :64] / 10
    waves = np.stack([128 + 60 * np.sin(x + n) * np.cos(y - n) for n in range(3)], axis=-1)
    return np.clip(waves + np.random.default_rng(0).normal(0, 1, waves.shape), 0, 255).astype(np.uint8)


def write_png(path: Path, samples: np.ndarray, *chunks: tuple[bytes, bytes]) -> None:
    """A PNG with chunks of these types and contents behind its header."""
    data = bytes(cv2.imencode(".png", samples)[1])
    more = (struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks)
    path.write_bytes(data[:33] + b"".join(more) + data[33:])


def exif_with(orientation: int) -> bytes:
    """An EXIF block with a camera's name, a maker note and an orientation, in big-endian order."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "A camera", orientation
    exif.get_ifd(0x8769)[0x927C] = b"secret maker note"
    return exif.tobytes()


TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_orientation_is_applied_once(tmp_path: Path, orientation: int, suffix: str) -> None:
    stored = corner()
    source = tmp_path / f"in{suffix}"
    lossless = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    Image.fromarray(stored).save(source, exif=exif_with(orientation), icc_profile=SRGB, **lossless)
    wanted = TURNS[orientation](stored).astype(int)
    with open_source(source) as frames:
        assert frames.is_still
        assert frames.rotation == 0
        assert (frames.height, frames.width) == wanted.shape[:2]
        (frame,) = frames
    assert frame.picture.format.name == "rgb24"
    assert np.abs(frame.picture.to_ndarray().astype(int) - wanted).mean() < 3
    for target in (
        copy(source, tmp_path / f"out{suffix}"),
        copy(tmp_path / f"out{suffix}", tmp_path / f"again{suffix}"),
    ):
        with Image.open(target) as image:
            assert image.getexif().get(0x0112, 1) == 1
            assert image.getexif()[0x010F] == "A camera"
            assert image.getexif().get_ifd(0x8769)[0x927C] == b"secret maker note"
            assert image.info["icc_profile"] == SRGB
            assert np.abs(np.asarray(image).astype(int) - wanted).mean() < 3


def test_every_byte_of_exif_but_the_orientation_stays() -> None:
    for order in ("<", ">"):
        mark = b"II" if order == "<" else b"MM"
        block = b"Exif\0\0" + mark + struct.pack(order + "HI", 42, 8) + struct.pack(order + "H", 1)
        block += struct.pack(order + "HHIHH", 0x0112, 3, 1, 6, 0) + b"\0\0\0\0" + b"maker note with offsets"
        new = upright_exif(block)
        assert [i for i, (a, b) in enumerate(zip(block, new, strict=True)) if a != b] == [24 if order == "<" else 25]
        assert upright_exif(new) == new
    for junk in (b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"nonsense nonsense"):
        assert upright_exif(junk) == junk


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_alpha_is_kept(tmp_path: Path, suffix: str) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    Image.fromarray(stored).save(tmp_path / "in.png")
    with open_source(tmp_path / "in.png") as frames:
        assert [f.picture.format.name for f in frames] == ["rgba"]
    with Image.open(copy(tmp_path / "in.png", tmp_path / f"out{suffix}")) as image:
        assert np.array_equal(np.asarray(image), stored)


def test_an_alpha_that_hides_nothing_may_go(tmp_path: Path) -> None:
    stored = smooth()
    Image.fromarray(np.dstack([stored, np.full(stored.shape[:2], 255, np.uint8)])).save(tmp_path / "screen.png")
    with Image.open(copy(tmp_path / "screen.png", tmp_path / "out.jpg")) as image:
        assert image.mode == "RGB"
        assert np.abs(np.asarray(image).astype(int) - stored).mean() < 1.5


def test_avif_is_about_as_close_as_jpeg_and_carries_the_tag(tmp_path: Path, astronaut: np.ndarray) -> None:
    stored = astronaut[:256, 100:356]
    Image.fromarray(stored).save(tmp_path / "in.png")
    losses = []
    for suffix in (".avif", ".jpg"):
        with Image.open(copy(tmp_path / "in.png", tmp_path / f"out{suffix}", tags={"enhanced": "by me"})) as image:
            losses.append(np.abs(np.asarray(image).astype(int) - stored).mean())
            assert b"by me" in image.info["xmp" if suffix == ".avif" else "comment"]
    assert losses[0] < 1.2 * losses[1]


def test_modes(tmp_path: Path) -> None:
    grey = Image.fromarray(corner()[..., 0])
    bits = grey.point(lambda v: 255 * (v > 100)).convert("1")
    made = {
        "grey.png": (grey, "gray", "L"),
        "bits.png": (bits, "gray", "L"),
        "palette.png": (Image.fromarray(corner()).convert("P"), "rgb24", "RGB"),
        "la.png": (grey.convert("LA"), "rgba", "LA"),
        "cmyk.jpg": (Image.fromarray(corner()).convert("CMYK"), "rgb24", "RGB"),
        "grey.jpg": (grey, "gray", "L"),
    }
    for name, (image, pix_fmt, mode) in made.items():
        image.save(tmp_path / name)
        with open_source(tmp_path / name) as frames:
            assert [f.picture.format.name for f in frames] == [pix_fmt], name
        with Image.open(copy(tmp_path / name, tmp_path / f"out-{name}")) as out:
            assert out.mode == mode, name
            wanted = np.asarray(image.convert("L")).astype(int)
            assert np.abs(np.asarray(out.convert("L")).astype(int) - wanted).mean() < 20, name


def test_jpeg_loses_almost_nothing_and_carries_the_tag(tmp_path: Path) -> None:
    smooth = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), (0, 0), 3)
    Image.fromarray(smooth).save(tmp_path / "in.jpg", quality=98, dpi=(300, 300))
    target = copy(tmp_path / "in.jpg", tmp_path / "out.jpg", tags={"enhanced": "by a test"})
    with Image.open(target) as image:
        assert b"enhanced: by a test" in image.info["comment"]
        assert image.info["dpi"] == (300, 300)
        assert (
            np.abs(np.asarray(image).astype(int) - np.asarray(Image.open(tmp_path / "in.jpg")).astype(int)).mean() < 1.5
        )


def test_a_folder_keeps_its_names(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for n, name in enumerate(("b.png", "a.jpg", "c.webp")):
        Image.fromarray(corner(20 + n, 30)).save(photos / name)
    (photos / "notes.txt").write_text("x")
    (photos / "broken.png").write_bytes(b"\x89PNG nothing")
    with open_source(photos) as frames:
        assert frames.frames == 4
        got = [(f.index, f.height) for f in frames]
        assert frames.damaged == 1
    assert got == [(0, 21), (1, 20), (3, 22)]
    out = copy(photos, tmp_path / "out")
    assert sorted(p.name for p in out.iterdir()) == ["a.jpg", "b.png", "c.webp"]
    assert [Image.open(out / n).height for n in ("a.jpg", "b.png", "c.webp")] == [21, 20, 22]
    globbed = copy(photos / "[ab].*", tmp_path / "two")
    assert sorted(p.name for p in globbed.iterdir()) == ["a.jpg", "b.png"]


def test_an_interrupted_folder_leaves_nothing(tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for n in range(3):
        Image.fromarray(corner()).save(photos / f"{n}.png")
    with contextlib.suppress(KeyboardInterrupt), open_source(photos) as frames, open_sink(out, like=frames) as sink:
        sink.write(next(iter(frames)))
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["photos"]
    out.mkdir()
    (out / "1.png").write_bytes(b"precious")
    with open_source(photos) as frames, pytest.raises(OutputError, match=r"1\.png exists already"):
        open_sink(out, like=frames)
    with open_source(photos) as frames, pytest.raises(OutputError, match="is the input itself"):
        open_sink(photos, like=frames, overwrite=True)
    assert [p.name for p in out.iterdir()] == ["1.png"]


def test_what_images_cannot_be(tmp_path: Path) -> None:
    Image.fromarray(corner()).save(tmp_path / "in.png")
    Image.fromarray(corner(channels=4)).save(tmp_path / "alpha.png")
    cases = [
        ("in.png", "out.mp4", "no image file and no folder"),
        ("alpha.png", "out.jpg", "cannot hold the transparency"),
    ]
    for source, target, words in cases:
        with pytest.raises(OutputError, match=words):
            copy(tmp_path / source, tmp_path / target)
    for source in ("in.png", "alpha.png"):
        with pytest.raises(OutputError, match=r"the folder of .* does not exist"):
            copy(tmp_path / source, tmp_path / "outside" / "x.jpg")
    Image.fromarray(corner()).save(
        tmp_path / "many.tif", save_all=True, append_images=[Image.fromarray(corner())], compression="tiff_lzw"
    )
    Image.fromarray(corner()[..., 0].astype(np.float32)).save(tmp_path / "float.tif")
    whole = (tmp_path / "in.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    for name, words in (
        ("many.tif", "holds 2 pictures"),
        ("float.tif", "32-bit samples"),
        ("cut.png", "is a damaged image"),
    ):
        with pytest.raises(InputError, match=words):
            open_source(tmp_path / name)
    with pytest.raises(UsageError, match="images have no time"):
        open_source(tmp_path / "in.png", start=1)
    assert not list(tmp_path.glob("out*"))
    assert not list(tmp_path.glob(".*"))


def test_facts_of_images(tmp_path: Path) -> None:
    Image.fromarray(corner()).save(tmp_path / "in.jpg", exif=exif_with(6), icc_profile=SRGB)
    with open_source(tmp_path / "in.jpg") as frames:
        (stream,) = frames.facts()["streams"]
    assert (stream["width"], stream["height"], stream["codec"], stream["orientation"]) == (40, 24, "JPEG", 6)
    assert stream["exif"]
    assert stream["icc"]


def layout_exif() -> bytes:
    """As Photoshop writes it into JPEGs: with tags that say how the pixels of a TIFF would lie."""
    exif = Image.Exif()
    exif.load(exif_with(1))
    exif[0x0100], exif[0x0101], exif[0x0102], exif[0x0103] = 675, 825, (8, 8, 8, 8), 1
    exif[0x0106], exif[0x0115], exif[0x011C], exif[0x9C9B] = 5, 4, 1, "Title".encode("utf-16-le")
    return exif.tobytes()


@pytest.mark.parametrize("deep", [False, True])
def test_exif_does_not_say_how_the_pixels_of_a_tiff_lie(tmp_path: Path, deep: bool) -> None:
    if deep:
        source = tmp_path / "in.png"
        write_png(source, corner().astype(np.uint16) * 257, (b"eXIf", layout_exif()[6:]))
    else:
        source = tmp_path / "in.jpg"
        Image.fromarray(corner()).save(source, exif=layout_exif(), quality=100, subsampling=0)
    target = copy(source, tmp_path / "out.tif")
    with Image.open(target) as image:
        assert (image.size, image.mode) == ((40, 24), "RGB")
        assert image.getexif()[0x010F] == "A camera"
        assert image.getexif()[0x9C9B] == "Title".encode("utf-16-le")
        image.load()
    assert np.abs(cv2.imread(str(target)).astype(int) - corner()).mean() < 2


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp", ".avif"])
@pytest.mark.parametrize(
    "broken",
    [
        b"Exif\0\0MM\x07\x2a" + exif_with(6)[10:],  # the header
        exif_with(6).replace(b"\x01\x0f\0\x02", b"\x01\x0f\0\x0b"),  # the camera's name as a number
    ],
    ids=["header", "type"],
)
def test_broken_exif_costs_nothing_but_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, broken: bytes
) -> None:
    Image.fromarray(corner()).save(tmp_path / "whole.jpg", quality=100, subsampling=0)
    data = (tmp_path / "whole.jpg").read_bytes()
    source = tmp_path / "in.jpg"
    source.write_bytes(data[:2] + b"\xff\xe1" + (len(broken) + 2).to_bytes(2) + broken + data[2:])
    told = [f"{source}: its EXIF is broken and left out"]
    assert len(list(open_source(tmp_path))) == 2
    assert [r.getMessage() for r in caplog.records] == told
    caplog.clear()
    assert not open_source(source).facts()["streams"][0]["exif"]
    caplog.clear()
    with Image.open(copy(source, tmp_path / f"out{suffix}")) as image:
        assert np.abs(np.asarray(image).astype(int) - corner()).mean() < 3
    assert [r.getMessage() for r in caplog.records] == told


def test_a_jpeg_finer_than_ours_keeps_its_own_tables(tmp_path: Path) -> None:
    grain = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    errors = {}
    for quality in (80, 100):
        Image.fromarray(grain).save(tmp_path / f"{quality}.jpg", quality=quality, subsampling=0)
        out = copy(tmp_path / f"{quality}.jpg", tmp_path / f"{quality}-out.jpg")
        with Image.open(tmp_path / f"{quality}.jpg") as one, Image.open(out) as two:
            errors[quality] = np.abs(np.asarray(one).astype(int) - np.asarray(two)).mean()
            finer = np.mean(two.quantization[0]) <= np.mean(one.quantization[0])
            assert finer, quality
    assert errors[100] < 0.7


def test_what_is_not_read_or_not_used_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.fromarray(corner()).save(tmp_path / "a.png")
    for name in ("b.heic", "c.HEIC", "d.dng"):
        (tmp_path / name).write_bytes(b"a picture")
    assert find_media(tmp_path) == [tmp_path / "a.png"]
    assert [r.getMessage() for r in caplog.records] == [
        f"3 pictures of {tmp_path} are skipped (.dng, .heic): convert them to JPEG or PNG first"
    ]
    with pytest.raises(InputError, match=r"b\.heic is a \.heic picture, which is not read; convert it"):
        open_source(tmp_path / "b.heic")
    caplog.clear()
    copy(tmp_path / "a.png", tmp_path / "out.png", crf=20, drop=["audio"])
    assert [r.getMessage() for r in caplog.records] == [
        f"{tmp_path / 'out.png'} is an image, which does without --crf and --drop"
    ]


def test_a_sheet_does_not_replace_an_input(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(corner()).save(tmp_path / name)
    for source in (tmp_path, tmp_path / "*.png"):
        with pytest.raises(UsageError, match=r"a\.png is one of the inputs; choose another name for the contact sheet"):
            check_sheet(tmp_path / "a.png", source=source)
    with pytest.raises(UsageError, match=r"a\.png is the input itself"):
        check_sheet(tmp_path / "a.png", source=tmp_path / "a.png")
    check_sheet(tmp_path / "sheet.png", source=tmp_path)
    check_sheet(tmp_path / "b.png", source=tmp_path / "a.png")


@pytest.mark.parametrize("dots", [(0, 0), (4_000_000_000, 1)])  # the first as some scanners have it
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_an_unknown_resolution_is_left_out(tmp_path: Path, suffix: str, dots: tuple[int, int]) -> None:
    Image.fromarray(corner()).save(tmp_path / "in.tif", dpi=(72, 72))
    whole = (tmp_path / "in.tif").read_bytes()
    (tmp_path / "in.tif").write_bytes(whole.replace(struct.pack("<II", 72, 1), struct.pack("<II", *dots)))
    with Image.open(copy(tmp_path / "in.tif", tmp_path / f"out{suffix}")) as image:
        assert np.abs(np.asarray(image).astype(int) - corner()).mean() < 3
