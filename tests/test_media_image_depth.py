"""Images of more than 8 bits a sample, in and out."""

import io
import zlib
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from PIL import Image
from test_media_image_text import XMP
from test_media_images import SRGB, copy, exif_with, write_png

from streamfix.media import open_source
from streamfix.media.encoder import open_encoder


@pytest.mark.parametrize(("channels", "name"), [(1, "gray16le"), (3, "rgb48le"), (4, "rgba64le")])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_stay_sixteen(tmp_path: Path, channels: int, name: str, suffix: str) -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (20, 30, channels), dtype=np.uint16)
    source = tmp_path / f"in{suffix}"
    cv2.imwrite(str(source), samples[..., 0] if channels == 1 else samples)
    with open_source(source) as frames:
        assert [f.picture.format.name for f in frames] == [name]
    again = cv2.imread(str(copy(source, tmp_path / f"out{suffix}")), cv2.IMREAD_UNCHANGED)
    assert again.dtype == np.uint16
    assert np.array_equal(again.reshape(samples.shape), samples)


def test_deep_png_keeps_exif_and_profile(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    write_png(tmp_path / "in.png", samples, (b"eXIf", exif_with(6)[6:]))
    Image.new("RGB", (1, 1)).save(tmp_path / "icc.png", icc_profile=SRGB)
    target = copy(tmp_path / "in.png", tmp_path / "out.png", tags={"enhanced": "by a test"})
    with Image.open(target) as image:
        image.load()
        assert (image.width, image.height) == (20, 30)
        assert image.getexif()[0x0112] == 1
        assert image.getexif()[0x010F] == "A camera"
        assert image.info["enhanced"] == "by a test"
    assert np.array_equal(cv2.imread(str(target), cv2.IMREAD_UNCHANGED), np.rot90(samples, -1))


@pytest.mark.parametrize("channels", [3, 4])
def test_a_deep_tiff_keeps_exif_profile_xmp_text_and_resolution(tmp_path: Path, channels: int) -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (21, 33, channels), dtype=np.uint16)
    write_png(
        tmp_path / "in.png",
        samples,
        (b"eXIf", exif_with(1)[6:]),
        (b"iCCP", b"icc\0\0" + zlib.compress(SRGB)),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        (b"pHYs", (11811).to_bytes(4) * 2 + b"\1"),  # dots a metre
        (b"tEXt", b"Comment\0a walk"),
    )
    once = copy(tmp_path / "in.png", tmp_path / "once.tif", tags={"enhanced": "by me"})
    twice = copy(once, tmp_path / "twice.tif", tags={"enhanced": "by you"})
    for path, note in ((once, ""), (twice, "\nenhanced: by you")):
        assert np.array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), samples)
        with Image.open(path) as image:
            found = image.getexif()
            assert image.info["icc_profile"] == SRGB
            assert image.info["xmp"] == XMP
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)
            assert found[0x010F] == "A camera"
            assert found.get_ifd(0x8769)[0x927C] == b"secret maker note"
            assert found[0x010E] == "a walk\nenhanced: by me" + note


@pytest.mark.parametrize("magic", ["P2", "P3", "P5", "P6"])
@pytest.mark.parametrize("peak", [1023, 65535])
def test_a_deep_pnm_keeps_its_depth(tmp_path: Path, magic: str, peak: int) -> None:
    samples = np.random.default_rng(0).integers(0, peak + 1, (5, 7, 3) if magic in ("P3", "P6") else (5, 7))
    plain = " ".join(map(str, samples.ravel())).encode()
    data = plain if magic in ("P2", "P3") else samples.astype(">u2").tobytes()
    (tmp_path / "in.ppm").write_bytes(f"{magic}\n# 9 9 9\n7 5\n{peak}\n".encode() + data)
    stored = cv2.imread(str(copy(tmp_path / "in.ppm", tmp_path / "out.png")), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(stored if stored.ndim == 2 else stored[..., ::-1], np.rint(samples * (65535 / peak)))


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3), (40, 50, 4)])
def test_a_deep_jpeg_2000_keeps_its_depth(tmp_path: Path, shape: tuple[int, ...]) -> None:
    samples = np.random.default_rng(0).integers(0, 65536, shape, dtype=np.uint16)
    assert cv2.imwrite(str(tmp_path / "in.jp2"), samples, [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])  # lossless
    copy(tmp_path / "in.jp2", tmp_path / "out.png")
    assert np.array_equal(cv2.imread(str(tmp_path / "out.png"), cv2.IMREAD_UNCHANGED), samples)


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "told"),
    [
        ("in.avif", "libsvtav1", "yuv420p10le", 1),
        ("in.avif", "libsvtav1", "yuv420p", 0),
        ("in.jp2", "jpeg2000", "yuv444p12le", 1),
    ],
)
def test_depth_that_is_not_read_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, codec: str, pixels: str, told: int
) -> None:
    with av.open(str(tmp_path / name), "w", format="avif" if name == "in.avif" else "image2") as container:
        stream = container.add_stream(codec, rate=1)
        stream.width = stream.height = 64
        stream.pix_fmt = pixels
        open_encoder(stream.codec_context)
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8), format="rgb24").reformat(format=pixels)
        container.mux([*stream.encode(frame), *stream.encode(None)])
    copy(tmp_path / name, tmp_path / "out.png")
    assert [r.getMessage() for r in caplog.records] == told * [
        f"{tmp_path / name}: more than 8 bits a channel become 8, which is all that is read of this format"
    ]


@pytest.mark.parametrize(("suffix", "channels"), [(".jp2", 3), (".png", 3), (".ppm", 3), (".avif", 3), (".jpg", 1)])
def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, channels: int) -> None:
    source = tmp_path / f"in{suffix}"
    if suffix == ".avif":
        Image.new("RGB", (40, 30)).save(source)
    else:
        cv2.imwrite(str(source), np.zeros((40, 50, channels), np.uint8 if suffix == ".jpg" else np.uint16))
    opened: list[str] = []

    def counted(file: Any, *args: Any, **options: Any) -> Any:
        opened.append(str(file))
        return whole(file, *args, **options)

    whole = io.open
    for place in ("io.open", "builtins.open"):
        monkeypatch.setattr(place, counted)
    copy(source, tmp_path / "out.png")
    assert opened.count(str(source)) == 1
