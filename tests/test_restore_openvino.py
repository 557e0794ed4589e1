"""lite through OpenVINO: the answers of torch, for any number of inputs, and nothing sent to anyone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from streamfix import doctor
from streamfix.errors import ModelError
from streamfix.models import embedded
from streamfix.restore.base import load_restorer
from streamfix.restore.lite import openvino_engine
from streamfix.restore.lite.checkpoint import read_checkpoint, write_weights
from streamfix.restore.lite.network import LiteConfig, LiteNet
from streamfix.restore.lite.restorer import LiteRestorer

pytestmark = pytest.mark.skipif(not openvino_engine.available(), reason="OpenVINO is not installed")


@pytest.fixture(scope="module")
def crops() -> torch.Tensor:
    return torch.rand(3, 3, 512, 512, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def pair() -> tuple[LiteRestorer, LiteRestorer]:
    return tuple(LiteRestorer(dtype=torch.float32, openvino=o) for o in (True, False))  # type: ignore[return-value]


def test_it_answers_as_torch_does(pair: tuple[LiteRestorer, LiteRestorer], crops: torch.Tensor) -> None:
    ours, theirs = (r.restore(crops) for r in pair)
    assert float((ours - theirs).abs().max()) < 1e-4
    assert float((ours - crops).abs().max()) > 0.02
    assert ours.dtype == torch.float32


def test_a_restorer_with_a_memory_too(tmp_path: Path, crops: torch.Tensor) -> None:
    state, config = read_checkpoint(embedded("lite.safetensors"))
    shape = LiteConfig.from_dict({**config.to_dict(), "memory": 16})
    fresh = LiteNet(shape).state_dict()
    state = {**state, **{k: v for k, v in fresh.items() if k.startswith("memory.")}}
    write_weights(tmp_path / "memory.safetensors", state, shape, {})
    ours, theirs = (
        LiteRestorer(tmp_path / "memory.safetensors", dtype=torch.float32, openvino=o) for o in (True, False)
    )
    states = [torch.cat((torch.flip(crops[0], (-1,)), crops[0, :1])), None]
    a, kept = ours.restore_next(crops[:2], states)
    b, _ = theirs.restore_next(crops[:2], states)
    assert float((a - b).abs().max()) < 1e-4
    assert len(kept) == 2
    without = ours.restore(crops[:2])
    assert float((a[0] - without[0]).abs().max()) > 1e-3, "the memory is not looked at"
    assert torch.equal(a[1], without[1])


def test_several_threads_may_call_it(pair: tuple[LiteRestorer, LiteRestorer], crops: torch.Tensor) -> None:
    wanted = [pair[0].restore(crops[i : i + 1]) for i in range(2)]
    got: dict[int, torch.Tensor] = {}
    threads = [threading.Thread(target=lambda i=i: got.update({i: pair[0].restore(crops[i : i + 1])})) for i in (0, 1)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(torch.equal(got[i], wanted[i]) for i in (0, 1))


def test_a_network_that_it_cannot_take_is_one_sentence(monkeypatch: pytest.MonkeyPatch, crops: torch.Tensor) -> None:
    restorer = LiteRestorer(dtype=torch.float32, openvino=True)

    def refuse(self: object, inputs: int) -> None:
        raise RuntimeError("no such operation\nand a long trace")

    monkeypatch.setattr(openvino_engine.OpenVinoNet, "_convert", refuse)
    with pytest.raises(ModelError, match="no such operation") as error:
        restorer.restore(crops[:1])
    assert "\n" not in str(error.value)


def test_it_is_taken_by_what_is_installed_never_by_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_restorer("lite", device="cpu", dtype="float32").engine.startswith("OpenVINO")  # type: ignore[attr-defined]
    assert load_restorer("lite", device="cpu", dtype="bfloat16").engine == "packed weights"  # type: ignore[attr-defined]
    monkeypatch.setattr("streamfix.restore.lite.restorer.available", lambda: False)
    assert load_restorer("lite", device="cpu", dtype="float32").engine == "packed weights"  # type: ignore[attr-defined]


def test_the_doctor_says_what_would_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamfix.restore.base.fast_bfloat16", lambda: None)
    monkeypatch.setattr("streamfix.restore.lite.restorer.fast_bfloat16", lambda: None)
    monkeypatch.setattr("streamfix.restore.base.device_of", lambda name: torch.device("cpu"))
    assert [c.level for c in doctor._restorer()] == ["ok"]
    for module in ("restore.lite.restorer", "restore.lite.openvino_engine"):
        monkeypatch.setattr(f"streamfix.{module}.available", lambda: False)
    found = list(doctor._restorer())
    assert "packed weights" in found[0].state
    assert found[1].level == "note"
    assert "streamfix[openvino]" in found[1].remedy


QUIET = """
import socket
def refuse(*a, **k):
    print("looked up", a); raise OSError
socket.getaddrinfo = refuse
import torch
from streamfix.restore.lite.restorer import LiteRestorer
LiteRestorer(dtype=torch.float32, openvino=True).restore(torch.zeros(1, 3, 512, 512))
"""


def test_nothing_is_sent_and_the_home_folder_stays_empty(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "CI"} | {"HOME": str(tmp_path)}  # it is quiet under CI
    done = subprocess.run(
        [sys.executable, "-c", QUIET], capture_output=True, text=True, env=environment, cwd=Path(__file__).parent.parent
    )
    assert done.returncode == 0, done.stderr
    assert "looked up" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_signals_are_handled_after_networks_were_freed() -> None:
    """OpenVINO leaves a freed signal stack behind when networks are freed in the order in which they were made."""
    script = """
import faulthandler, os, signal, torch
from streamfix.restore.lite.restorer import LiteRestorer

faulthandler.enable()
restorers = [LiteRestorer(dtype=torch.float32, openvino=True) for _ in range(3)]
for restorer in restorers:
    restorer.restore(torch.zeros(1, 3, 512, 512))
del restorer
while restorers:
    del restorers[0]
seen = []
signal.signal(signal.SIGCHLD, lambda number, frame: seen.append(number))
os.kill(os.getpid(), signal.SIGCHLD)
assert seen
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
