"""What images say in words: the text of PNG, the comment of JPEG, XMP, the description of TIFF."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from test_media_images import SRGB, copy, corner, exif_with, write_png

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<r:Description r:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" dc:source="a camera"/></r:RDF></x:xmpmeta>'
)


@pytest.mark.parametrize("deep", [False, True])
def test_the_text_of_a_png_is_kept(tmp_path: Path, deep: bool) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Copyright", "M\xfcller")
    text.add_itxt("parameters", "a photo, \u4e8c steps", "en", "p")
    text.add_itxt("XML:com.adobe.xmp", XMP.decode())
    samples = corner().astype(np.uint16 if deep else np.uint8)
    write_png(tmp_path / "in.png", samples, *((kind, content) for kind, content, _ in text.chunks))
    with Image.open(copy(tmp_path / "in.png", tmp_path / "out.png", tags={"enhanced": "by me"})) as image:
        assert image.text == {
            "Copyright": "M\xfcller",
            "parameters": "a photo, \u4e8c steps",
            "XML:com.adobe.xmp": XMP.decode(),
            "enhanced": "by me",
        }


@pytest.mark.parametrize("suffix", [".webp", ".avif"])
def test_the_note_stands_beside_the_xmp_of_the_input(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(corner()).save(tmp_path / "in.jpg", xmp=XMP)
    once = copy(tmp_path / "in.jpg", tmp_path / f"once{suffix}", tags={"enhanced": "by <me>"})
    with Image.open(copy(once, tmp_path / f"twice{suffix}", tags={"enhanced": "by you"})) as image:
        root = ElementTree.fromstring(image.info["xmp"])
    assert [e.text for e in root.iter("{urn:streamfix}note")] == ["enhanced: by <me>; enhanced: by you"]
    assert any("a camera" in e.attrib.values() for e in root.iter())


def test_xmp_without_a_place_for_the_note_stays_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.fromarray(corner()).save(tmp_path / "in.jpg", xmp=b"<x:xmpmeta/>")
    with Image.open(copy(tmp_path / "in.jpg", tmp_path / "out.webp", tags={"enhanced": "by me"})) as image:
        assert image.info["xmp"] == b"<x:xmpmeta/>"
    assert "no place for the note" in caplog.text


def test_the_comment_of_a_jpeg_is_kept(tmp_path: Path) -> None:
    Image.fromarray(corner()).save(tmp_path / "in.jpg", comment=b"my comment")
    for tags, wanted in (({}, b"my comment"), ({"enhanced": "by me"}, b"my comment\nenhanced: by me")):
        with Image.open(copy(tmp_path / "in.jpg", tmp_path / "out.jpg", tags=tags)) as image:
            assert image.info["comment"] == wanted
    Image.fromarray(corner()).save(tmp_path / "in.jpg", comment=b"x" * 65533)  # the longest there can be
    with Image.open(copy(tmp_path / "in.jpg", tmp_path / "out.jpg", tags={"enhanced": "by me"})) as image:
        assert image.info["comment"].endswith(b"xx\nenhanced: by me")


def described(path: Path) -> Path:
    """A PNG with text, some of it not of Latin letters, and XMP."""
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "M\xfcller & Co")
    text.add_itxt("Comment", "two steps, \u4e8c")
    text.add_text("Raw profile type exif", "not text, really")
    Image.fromarray(corner()).save(path, pnginfo=text)
    return path


@pytest.mark.parametrize("tags", [{}, {"enhanced": "by me"}])
@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".webp", ".avif"])
def test_the_text_of_a_png_goes_where_another_format_has_room(
    tmp_path: Path, suffix: str, tags: dict[str, str]
) -> None:
    wanted = "Title: M\xfcller & Co\ntwo steps, \u4e8c" + "".join(f"\n{k}: {v}" for k, v in tags.items())
    with Image.open(copy(described(tmp_path / "in.png"), tmp_path / f"out{suffix}", tags=tags)) as image:
        if suffix == ".jpg":
            found = image.info["comment"].decode()
        elif suffix == ".tif":
            found = image.getexif()[0x010E].encode("latin-1").decode()
        else:
            (line,) = ElementTree.fromstring(image.info["xmp"]).iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li")
            found = line.text
    assert found == wanted


@pytest.mark.parametrize(("suffix", "gone"), [(".jpg", "XMP"), (".bmp", "XMP, colour profile"), (".png", "")])
def test_what_a_format_has_no_room_for_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, gone: str
) -> None:
    long = XMP.replace(b"a camera", b"x" * 70_000)  # with its history, as editors write it
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", long.decode())
    Image.fromarray(corner()).save(tmp_path / "in.png", pnginfo=text, icc_profile=SRGB)
    with Image.open(copy(tmp_path / "in.png", tmp_path / f"out{suffix}")) as image:
        assert np.abs(np.asarray(image).astype(int) - corner()).mean() < 2
        assert image.info.get("xmp") == (long if suffix == ".png" else None)
        assert image.info.get("icc_profile") == (None if suffix == ".bmp" else SRGB)
    told = f"{tmp_path / f'out{suffix}'} has no room for the {gone} of its input; choose .png to keep it"
    assert [r.getMessage() for r in caplog.records] == ([told] if gone else [])


def test_text_that_xml_cannot_say_does_not_spoil_it(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "a\x01b <c>")
    Image.fromarray(corner()).save(tmp_path / "in.png", pnginfo=text)
    with Image.open(copy(tmp_path / "in.png", tmp_path / "out.webp")) as image:
        assert "ab <c>" in "".join(ElementTree.fromstring(image.info["xmp"]).itertext())


@pytest.mark.parametrize("exif", [False, True])
def test_a_tiff_takes_xmp_text_and_the_note_along(tmp_path: Path, exif: bool) -> None:
    more = {"exif": exif_with(1)} if exif else {}
    Image.fromarray(corner()).save(tmp_path / "in.jpg", xmp=XMP, **more)
    once = copy(tmp_path / "in.jpg", tmp_path / "once.tif", tags={"enhanced": "by M\xfcller"})
    with Image.open(copy(once, tmp_path / "twice.tif", tags={"enhanced": "by you"})) as image:
        assert image.info["xmp"] == XMP
        found = image.getexif()
        assert found[0x010E].encode("latin-1").decode() == "enhanced: by M\xfcller\nenhanced: by you"
        assert found.get(0x010F) == ("A camera" if exif else None)
        assert found.get_ifd(0x8769).get(0x927C) == (b"secret maker note" if exif else None)
