import hashlib
import http.server
import io
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from streamfix import models
from streamfix.errors import ModelError, UsageError
from streamfix.models import File, Model, pull, verify


class Server(http.server.ThreadingHTTPServer):
    content = b""
    cut_after: int | None = None
    length: str | None = None
    requests: list[str | None]


class Handler(http.server.BaseHTTPRequestHandler):
    """A file server that understands ranges, and can break off."""

    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.requests.append(asked)
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        body = self.server.content[start:]
        if start >= len(self.server.content):
            self.send_error(416)
            return
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", self.server.length or str(len(body)))
        self.end_headers()
        if self.server.cut_after is not None:
            body, self.server.cut_after = body[: self.server.cut_after], None
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.requests = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def pack(tmp_path: Path, server: Server, sha256: str | None = None) -> Model:
    return Model(
        name="pack",
        kind="detector",
        summary="",
        licence="test",
        path=tmp_path / "models" / "pack",
        url=f"http://127.0.0.1:{server.server_port}/pack.zip",
        sha256=sha256,
        members=("a.onnx", "b.onnx"),
    )


def single(tmp_path: Path, server: Server, name: str) -> Model:
    """A model of one file."""
    file = File(path=tmp_path / "models" / "one" / name, url=f"http://127.0.0.1:{server.server_port}/{name}")
    return Model(name="one", kind="part", summary="", licence="test", path=file.path.parent, files=(file,))


def zipped(method: int = zipfile.ZIP_STORED, **files: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(f"nested/{name}.onnx", content)
    return data.getvalue()


def left(model: Model) -> list[str]:
    return sorted(p.name for p in model.path.parent.iterdir()) if model.path.parent.exists() else []


def test_pull_brings_the_members_and_records_their_sums(tmp_path: Path, server: Server) -> None:
    server.content = zipped(a=b"A" * 5000, b=b"B" * 9000, other=b"-")
    model, seen = pack(tmp_path, server), []
    pull(model, lambda done, total: seen.append((done, total)))
    assert (model.path / "a.onnx").read_bytes() == b"A" * 5000
    assert model.size == 14000
    assert model.present
    assert verify(model) is True
    assert seen[-1] == (len(server.content), len(server.content))
    assert left(model) == ["pack"]
    (model.path / "b.onnx").write_bytes(b"changed")
    assert verify(model) is False
    pull(model)
    assert verify(model) is True


def test_a_broken_download_goes_on_where_it_stopped(tmp_path: Path, server: Server) -> None:
    import os

    server.content = zipped(a=os.urandom(300_000), b=os.urandom(10))
    server.cut_after = 120_000
    model = pack(tmp_path, server, hashlib.sha256(server.content).hexdigest())
    with pytest.raises(ModelError, match=r"after 120000 of"):
        pull(model)
    assert not model.present
    pull(model)
    assert server.requests == [None, "bytes=120000-"]
    assert verify(model) is True


def test_a_corrupted_download_is_refused_and_removed(tmp_path: Path, server: Server) -> None:
    server.content = zipped(a=b"x", b=b"y")
    model = pack(tmp_path, server, "0" * 64)
    with pytest.raises(ModelError, match="corrupted"):
        pull(model)
    assert left(model) == []


def test_something_else_than_a_zip_is_refused(tmp_path: Path, server: Server) -> None:
    server.content = b"<html>sorry</html>"
    model = pack(tmp_path, server)
    with pytest.raises(ModelError, match="not a whole zip"):
        pull(model)
    assert left(model) == []


def broken(archive: bytes) -> bytes:
    """A deflated zip whose first stream is none."""
    return archive[:60] + b"\xff" * 100 + archive[160:]


def test_a_zip_damaged_inside_a_stream_is_refused_and_removed(tmp_path: Path, server: Server) -> None:
    noise = bytes(i * i % 251 for i in range(5000))
    whole = zipped(zipfile.ZIP_DEFLATED, a=noise, b=b"y")
    with pytest.raises(zlib.error), zipfile.ZipFile(io.BytesIO(broken(whole))) as archive:
        archive.testzip()
    packed, one = pack(tmp_path, server), single(tmp_path, server, "one.pth")
    for model, words in ((packed, "not a whole zip file and was removed"), (one, "not a whole PyTorch file")):
        server.content = broken(whole)
        with pytest.raises(ModelError, match=words):
            pull(model)
        server.content = whole
        pull(model)
        assert model.present


def test_an_address_without_a_scheme_or_with_a_false_length_is_told(tmp_path: Path, server: Server) -> None:
    packed, one = pack(tmp_path, server), single(tmp_path, server, "one.json")
    bare = "mirror.example.org/one.json"
    for model in (replace(packed, url=bare), replace(one, files=(replace(one.files[0], url=bare),))):
        with pytest.raises(ModelError, match=r"from mirror.example.org/one.json \(an address begins with https://\);"):
            pull(model)
    server.content, server.length = b"{}", "abc"
    for model in (packed, one):
        with pytest.raises(ModelError, match=r"the server says that the file has 'abc' bytes"):
            pull(model)


@pytest.mark.parametrize(
    ("name", "start"), [("one.json", b""), ("one.safetensors", struct.pack("<Q", 100_000))], ids=["json", "safetensors"]
)
def test_json_too_deep_to_read_is_refused_and_removed(tmp_path: Path, server: Server, name: str, start: bytes) -> None:
    model = single(tmp_path, server, name)
    server.content = start + b"[" * 100_000 + b"1"
    with pytest.raises(ModelError, match=r"corrupted .* and was removed; pull again"):
        pull(model)
    assert list(model.path.iterdir()) == []


def test_damaged_lines_of_sums_stand_for_nothing(tmp_path: Path, server: Server) -> None:
    one, packed = single(tmp_path, server, "one.json"), pack(tmp_path, server)
    server.content = b"{}"
    pull(one)
    server.content = zipped(a=b"x", b=b"y")
    pull(packed)
    lines = (packed.path / "SHA256SUMS").read_text().splitlines()
    (one.path / "SHA256SUMS").write_bytes(b"abc\n\n\xff\n")
    (packed.path / "SHA256SUMS").write_text(f"{lines[0]}\nabc\n")
    assert (verify(one), verify(packed)) == (None, False)
    pull(packed)
    server.content = b"{}"
    pull(one)
    assert (verify(one), verify(packed)) == (True, True)


def test_a_pack_without_its_members_is_refused(tmp_path: Path, server: Server) -> None:
    server.content = zipped(a=b"x")
    model = pack(tmp_path, server)
    with pytest.raises(ModelError, match=r"lacks b\.onnx"):
        pull(model)
    assert left(model) == []


def test_a_place_that_cannot_hold_the_pack_is_told(tmp_path: Path, server: Server) -> None:
    server.content = zipped(a=b"x", b=b"y")
    model = pack(tmp_path, server)
    model.path.parent.mkdir()
    (tmp_path / "models" / "pack.part.d").touch()  # a file where the pack is to be unpacked
    with pytest.raises(ModelError, match="cannot be unpacked"):
        pull(model)
    (tmp_path / "models" / "pack.part.d").unlink()
    pull(model)
    assert model.present
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="fetch it by hand"):
        pull(replace(model, path=tmp_path / "file" / "pack"))


def test_offline_says_where_to_place_the_files(tmp_path: Path, server: Server) -> None:
    model = pack(tmp_path, server)
    server.shutdown()
    server.server_close()
    with pytest.raises(ModelError, match=r"fetch it by hand and place a\.onnx, b\.onnx in"):
        pull(model)


def test_unknown_and_embedded_names() -> None:
    with pytest.raises(UsageError, match="choose one of: lite"):
        models.find("nonesuch")
    with pytest.raises(ModelError, match="embedded"):
        pull(models.find("lite"))


def test_embedded_weights_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "weights_dir", lambda: tmp_path)
    with pytest.raises(ModelError, match="missing"):
        models.embedded("x.bin")
    (tmp_path / "x.bin").write_bytes(b"one")
    (tmp_path / "SHA256SUMS").write_text(f"{hashlib.sha256(b'one').hexdigest()}  x.bin\n")
    assert models.embedded("x.bin") == tmp_path / "x.bin"
    (tmp_path / "x.bin").write_bytes(b"two")
    with pytest.raises(ModelError, match="corrupted"):
        models.embedded("x.bin")


def test_every_embedded_model_is_whole() -> None:
    assert {m.name for m in models.catalogue() if m.url is None} == {"lite", "retinaface"}
    assert [verify(models.find(name)) for name in ("lite", "retinaface")] == [True, True]


def test_the_folder_of_models_may_lie_under_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMFIX_HOME", "~/faces")  # as a .env file or a container hands it on: no shell has seen it
    assert models.models_dir() == Path.home() / "faces" / "models"
