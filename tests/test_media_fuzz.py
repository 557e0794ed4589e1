"""Damaged files through whole jobs: no crash, no hang, no half output, no growth of memory (tools/fuzz_media.py does the work)."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from media_zoo import make


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = Path(__file__).resolve().parents[1] / "tools/fuzz_media.py"
    spec = importlib.util.spec_from_file_location("fuzz_media", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_media"] = module  # the workers that are spawned find their function by its module's name
    spec.loader.exec_module(module)
    return module


def run(tool: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, names: list[str] | None, **options: int):
    monkeypatch.syspath_prepend(str(Path(tool.__file__).parent))
    for name, value in tool.CALM.items():
        monkeypatch.setenv(name, value)
    (folder / "originals").mkdir()
    if names is None:
        files = tool.originals(None, folder / "originals")
    else:
        files = [make(name, folder / "originals", tool.TIGHT) for name in names]
    outcome = tool.fuzz(files, folder, timeout=120.0, **options)
    assert outcome.failures == []
    assert sum(outcome.kinds.values()) == options["count"]
    assert {p.name for p in folder.iterdir()} == {"originals"}
    return outcome


def test_a_few_damaged_files(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["bt601", "vfr-mkv", "ts", "mpg", "avi", "cover", "subtitles"]
    outcome = run(tool, tmp_path, monkeypatch, names, count=24, seed=3, workers=1)
    assert min(outcome.kinds["restored"], outcome.kinds["refused"]) > 2


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_five_hundred_damaged_files(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = run(tool, tmp_path, monkeypatch, None, count=500, seed=0, workers=2)
    assert min(outcome.kinds["restored"], outcome.kinds["refused"]) > 100
    assert outcome.growth < tool.GROWTH


def test_the_same_seed_makes_the_same_damage_and_all_of_it_differs(tool: ModuleType) -> None:
    data = bytes(range(256)) * 20
    made = [tool.damage(data, np.random.default_rng([0, n])) for n in range(60)]
    assert made == [tool.damage(data, np.random.default_rng([0, n])) for n in range(60)]
    assert len({d for d, _ in made}) == 60
    assert {kind for _, kind in made} == {"flip", "burst", "zeros", "cut", "hole", "double"}
    assert all(d != data for d, _ in made)


def test_a_crash_and_a_hang_are_seen(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch itself, on workers that fall over or never answer: the next inputs are run by a new one."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import fuzz_broken

    monkeypatch.setattr(tool, "work", fuzz_broken.work)
    original = tmp_path / "a.mkv"
    original.write_bytes(bytes(range(256)) * 20)
    outcome = tool.fuzz([original], tmp_path, count=4, seed=0, workers=1, timeout=3.0)
    assert outcome.kinds == {"crashed": 2, "hung": 2}
    assert [kind for _, kind, _ in outcome.failures] == ["crashed", "hung", "crashed", "hung"]
