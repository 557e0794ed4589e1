"""The identity, adversarial and grid terms: each against its definition, and all of them in a run that is cut in two."""

from __future__ import annotations

import csv
import dataclasses
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from streamfix.errors import DependencyError, ModelError, UsageError
from streamfix.faces.embedding import FaceEmbedding
from streamfix.restore.lite.network import LiteConfig
from streamfix.train.adversary import Adversary, discriminator_gradients, generator_loss, score
from streamfix.train.config import Stage, TrainConfig
from streamfix.train.identity import IdentityLoss
from streamfix.train.lite import Trainer, train
from streamfix.train.losses import grid_amplitude
from streamfix.train.onnx_net import OnnxNet

TINY = LiteConfig(widths=(8, 8, 8, 8), encoder=(1, 1, 1), middle=1, decoder=(1, 1, 1), head=(8, 4))


def _save(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], batch: int | str = 1) -> Path:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [batch, 3, 112, 112])],
        [helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def _embedding(path: Path, batch: int | str = 1) -> Path:
    """A small network of every operator that is known, ending in a vector of 8."""
    rng = np.random.default_rng(0)

    def floats(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    weights = {
        "w1": floats(8, 3, 3, 3),
        "b1": floats(8),
        "wd": floats(8, 1, 3, 3),
        "scale": floats(8) + 1,
        "shift": floats(8),
        "mean": floats(8),
        "var": np.abs(floats(8)) + 0.5,
        "slope": floats(8, 1, 1),
        "low": np.array(-1.5, np.float32),
        "high": np.array(1.5, np.float32),
        "pads": np.array([0, 0, 1, 2, 0, 0, 3, 1]),
        "two": np.array(2, np.float32),
        "shape": np.array([0, 8, -1]),
        "axes": np.array([2]),
        "wg": floats(8, 8),
        "bg": floats(8),
        "wm": floats(8, 8),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "w1", "b1"], ["a"], kernel_shape=[3, 3], strides=[4, 4], pads=[0, 1, 1, 0]),
        node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["b"], epsilon=1e-3),
        node("PRelu", ["b", "slope"], ["c"]),
        node("Conv", ["c", "wd"], ["d"], kernel_shape=[3, 3], group=8, pads=[2, 2, 2, 2], dilations=[2, 2]),
        node("Clip", ["d", "low", "high"], ["e"]),
        node("Add", ["c", "e"], ["f"]),
        node("Pad", ["f", "pads"], ["g"], mode="reflect"),
        node("Pad", ["g", "pads", "two"], ["h"]),
        node("LeakyRelu", ["h"], ["i"], alpha=0.2),
        node("Sigmoid", ["i"], ["j"]),
        node("Mul", ["i", "j"], ["k"]),
        node("Div", ["k", "two"], ["l"]),
        node("Sub", ["l", "j"], ["m"]),
        node("Relu", ["m"], ["n"]),
        node("GlobalAveragePool", ["n"], ["o"]),
        node("ReduceMean", ["m"], ["p"], axes=[2, 3], keepdims=1),
        node("Add", ["o", "p"], ["q"]),
        node("Reshape", ["q", "shape"], ["r"]),
        node("Transpose", ["r"], ["s"], perm=[0, 2, 1]),
        node("MatMul", ["s", "wm"], ["t"]),
        node("Transpose", ["t"], ["u"], perm=[0, 2, 1]),
        node("Squeeze", ["u", "axes"], ["v"]),
        node("Dropout", ["v"], ["w"]),
        node("Identity", ["w"], ["x"]),
        node("Flatten", ["x"], ["y"], axis=1),
        node("Gemm", ["y", "wg", "bg"], ["out"], transB=1, alpha=0.5, beta=2.0),
    ]
    return _save(path, nodes, weights, batch)


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network whose vectors tell faces apart."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(0, 0.1, (8, 3, 8, 8)).astype(np.float32),
        "slope": np.full((8, 1, 1), 0.25, np.float32),
        "g": rng.normal(0, 0.1, (8 * 14 * 14, 16)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["a"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("PRelu", ["a", "slope"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "g"], ["out"]),
    ]
    return _save(tmp_path_factory.mktemp("onnx") / "embedding.onnx", nodes, weights)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two made-up faces."""
    path = tmp_path_factory.mktemp("faces")
    for i in range(2):
        coarse = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
        cv2.imwrite(str(path / f"{i}.png"), cv2.resize(coarse, (512, 512), interpolation=cv2.INTER_CUBIC))
    return path


def _images(count: int, side: int = 512, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, side // 16, side // 16, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")


@pytest.mark.parametrize("batch", [1, "B"])
def test_an_onnx_graph_computes_what_onnxruntime_computes(tmp_path: Path, batch: int | str) -> None:
    path = _embedding(tmp_path / "net.onnx", batch)
    net = OnnxNet(path)
    assert net.batch == (1 if batch == 1 else None)
    image = torch.randn(1 if batch == 1 else 3, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"image": image.numpy()})[0]
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(net(image).numpy(), expected, atol=1e-4)


def test_a_graph_that_takes_one_face_at_a_time_embeds_a_batch_as_it_would_each(tmp_path: Path) -> None:
    loss = IdentityLoss(_embedding(tmp_path / "net.onnx", 1))
    faces = torch.rand(3, 3, 512, 512, generator=torch.Generator().manual_seed(0), requires_grad=True)
    together, alone = loss.embed(faces), torch.cat([loss.embed(face[None]) for face in faces])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    gradients = [torch.autograd.grad(e[:, 0].sum(), faces)[0] for e in (together, alone)]
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-3)


def test_what_is_no_usable_onnx_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    with pytest.raises(ModelError, match="no ONNX network"):
        OnnxNet(broken)
    with pytest.raises(ModelError, match=r"there is no file .*missing\.onnx"):
        OnnxNet(tmp_path / "missing.onnx")
    with pytest.raises(ModelError, match="operator Erf"):
        OnnxNet(_save(tmp_path / "erf.onnx", [helper.make_node("Erf", ["image"], ["out"])], {}))
    with pytest.raises(ModelError, match=r"\(1, D\)"):
        IdentityLoss(_save(tmp_path / "relu.onnx", [helper.make_node("Relu", ["image"], ["out"])], {}))
    with pytest.raises(UsageError, match="input scaling"):
        IdentityLoss(broken, norm="none")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(DependencyError, match=r"streamfix\[train\]"):
        OnnxNet(broken)


@pytest.mark.parametrize("norm", ["arcface", "imagenet"])
def test_the_loss_embeds_as_the_metric_does(embedding: Path, norm: str) -> None:
    loss, metric = IdentityLoss(embedding, norm=norm), FaceEmbedding(embedding, norm=norm)
    images = _images(2)
    ours = loss.embed(images)
    for image, vector in zip(images, ours, strict=True):
        expected = metric((image.permute(1, 2, 0).numpy() + 1) / 2)
        assert float(vector @ torch.from_numpy(expected)) > 0.9999
    a, b = images[:1].clone().requires_grad_(True), images[1:]
    assert float(loss(b, b)) == pytest.approx(0, abs=1e-5)
    before = loss(a, b)
    assert 0.1 < before.item() < 2, "these two are different"
    (gradient,) = torch.autograd.grad(before.sum(), a)
    nearer = a.detach() - 20 * gradient / gradient.norm()
    assert before.item() - float(loss(nearer, b)) > 0.05


def test_grid_amplitude_sees_patterns_and_not_what_else_differs() -> None:
    image = _images(1, 256)
    line = torch.arange(256, dtype=torch.float32)
    for period, wave in ((2, (-1.0) ** line), (4, 2**0.5 * torch.cos(line * torch.pi / 2 + 0.3))):
        for pattern in (wave.expand(256, 256), wave[:, None] * wave, wave[:, None].expand(256, 256)):
            assert float(grid_amplitude(image + 0.01 * pattern, image)) == pytest.approx(0.01, rel=0.05), period
    assert float(grid_amplitude(image, image)) < 2e-4
    ramp = line.expand(256, 256) / 256
    assert float(grid_amplitude(image + ramp, image)) < 1e-3  # a shift of colour of half the range
    noise = 0.01 * torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    assert float(grid_amplitude(image + noise, image)) < 0.15 * 0.01
    small = image[..., :36, :36]  # smaller than a window
    assert float(grid_amplitude(small + 0.01 * ((-1.0) ** line[:36]), small)) == pytest.approx(0.01, rel=0.05)


def test_the_discriminator_learns_and_its_gradient_leads_to_what_it_takes_for_real() -> None:
    torch.manual_seed(0)
    adversary = Adversary(rate=1e-3, device=torch.device("cpu"), dtype=torch.bfloat16)
    real = _images(4, 64)
    fake = real + 0.3 * ((-1.0) ** torch.arange(64))
    losses = []
    for _ in range(25):
        weights = adversary.begin()
        gradients, parts = discriminator_gradients(fake, real, weights)
        adversary.update([g.float() for g in gradients])
        losses.append(parts["d_real"] + parts["d_fake"])
    assert losses[0] > 1.5
    assert losses[-1] < 0.5
    weights = adversary.begin()
    assert score(real, weights).mean().item() > score(fake, weights).mean().item() + 1
    moved = fake.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(generator_loss(moved, weights), moved)
    assert float((gradient * (fake - real)).sum()) > 0, "downhill leads away from the pattern"


def test_discriminator_gradients_pass_through_the_spectral_norm() -> None:
    """What `update` takes back through the normalisation is the gradient of the whole, by finite differences."""
    torch.manual_seed(0)
    adversary = Adversary(rate=1e-3, device=torch.device("cpu"), dtype=torch.bfloat16)
    adversary.net.eval()  # the power iteration stands still, so that the loss is a function of the weights
    adversary.begin()
    weights = [w.detach().requires_grad_() for w in adversary._exact]  # float32: bfloat16 is too coarse to difference
    real, fake = _images(2, 64), _images(2, 64, seed=1)
    gradients, _ = discriminator_gradients(fake, real, weights)
    master = adversary.net.layers[2].parametrizations.weight.original
    torch.autograd.backward(adversary._exact, gradients)
    direction = master.grad / master.grad.norm()
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            master.add_(sign * 0.01 * direction)
        _, parts = discriminator_gradients(
            fake, real, [w.detach().requires_grad_() for w in adversary.net.normalised()]
        )
        values.append(0.5 * (parts["d_real"] + parts["d_fake"]))
        with torch.no_grad():
            master.sub_(sign * 0.01 * direction)
    assert (values[0] - values[1]) / 0.02 == pytest.approx(float(master.grad.norm()), rel=0.05)


def config(folder: Path, run: Path, **changes: object) -> TrainConfig:
    base = TrainConfig(
        data=folder,
        run=run,
        steps=6,
        stages=(
            Stage(until=0.3, size=64, batch=2, vgg=64, gan=64),
            Stage(until=1.0, size=512, batch=2, vgg=64, gan=64),
        ),
        alex=0.0,
        vgg=0.0,
        network=TINY,
        recurrent=0.0,
        device="cpu",
        workers=0,
        threads=1,
        log_every=1,
        save_every=1e9,
        warmup=2,
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "log.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


class CutOffError(Exception):
    pass


def test_a_run_of_all_terms_cut_in_two_goes_on_as_if_it_had_not(folder: Path, embedding: Path, tmp_path: Path) -> None:
    terms = {"identity": embedding, "id": 0.2, "gan": 0.1, "gan_start": 0.5, "grid": 0.2}
    train(config(folder, tmp_path / "whole", **terms))

    def cut(step: int, done: float, means: dict[str, float]) -> None:
        if step == 6:  # after the adversary began (step 4) and was saved with step 5
            raise CutOffError

    with pytest.raises(CutOffError):
        train(config(folder, tmp_path / "parts", **terms, save_every=0.0), report=cut)
    train(config(folder, tmp_path / "parts", **terms))
    expected, got = rows(tmp_path / "whole"), rows(tmp_path / "parts")
    assert [row["step"] for row in got] == ["1", "2", "3", "4", "5", "6", "6"]
    assert got[:6] == expected
    assert got[6] == expected[5]
    states = [
        torch.load(tmp_path / n / "checkpoint.pt", weights_only=True)["adversary"]["net"] for n in ("whole", "parts")
    ]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    # what a step did not have is an empty cell
    assert [bool(row["id"]) for row in expected] == [False, False, True, True, True, True]
    assert [bool(row["d_real"] and row["d_fake"] and row["gan"]) for row in expected] == [False] * 3 + [True] * 3
    assert all(float(row["grid"]) > 0 for row in expected)


def test_the_total_is_the_weighted_sum_and_every_term_moves_the_network(
    folder: Path, embedding: Path, tmp_path: Path
) -> None:
    whole = (Stage(until=1.0, size=512, batch=2, vgg=64, gan=64),)
    terms = {"identity": embedding, "id": 0.5, "gan": 0.3, "gan_start": 0.0, "grid": 0.25, "l1": 0.75}
    train(config(folder, tmp_path / "all", stages=whole, steps=2, **terms))
    trainer = Trainer(config(folder, tmp_path / "all", stages=whole, steps=2, **terms))
    assert trainer.weights() == {"l1": 0.75, "grid": 0.25, "id": 0.5, "gan": 0.3}
    first, second = rows(tmp_path / "all")
    assert float(first["total"]) == pytest.approx(
        0.75 * float(first["l1"]) + 0.25 * float(first["grid"]) + 0.5 * float(first["id"]), abs=1e-4
    ), "the adversarial term rises from 0"
    assert float(second["total"]) == pytest.approx(
        sum(w * float(second[name]) for name, w in trainer.weights().items()), abs=1e-4
    )
    results = {}
    for name in ("none", "id", "gan", "grid"):
        changes = {**terms, **{k: 0.0 for k in ("id", "gan", "grid") if k != name}}
        if name != "id":
            changes["identity"] = None
        train(config(folder, tmp_path / name, stages=whole, steps=3, **changes))
        results[name] = torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["net"]
    for name in ("id", "gan", "grid"):
        assert any(not torch.equal(results[name][k], results["none"][k]) for k in results["none"]), name


def test_shards_on_threads_train_with_all_terms(folder: Path, embedding: Path, tmp_path: Path) -> None:
    terms = {"identity": embedding, "id": 0.2, "gan": 0.1, "gan_start": 0.0}
    stages = (Stage(until=1.0, size=512, batch=3, vgg=64, gan=64),)
    for threads in (1, 2):
        train(config(folder, tmp_path / str(threads), stages=stages, steps=2, threads=threads, **terms))
    one, two = (rows(tmp_path / n)[0] for n in "12")
    # the first step computes the same, on whatever threads; windows are drawn by shard, so only whole-crop terms agree
    for name in ("l1", "id", "grid"):
        assert float(one[name]) == pytest.approx(float(two[name]), rel=2e-2), name


def test_a_run_may_be_given_terms_later(folder: Path, tmp_path: Path) -> None:
    train(config(folder, tmp_path, steps=2, gan=0.0))
    train(config(folder, tmp_path, steps=4, gan=0.1, gan_start=0.0))
    assert [row["step"] for row in rows(tmp_path)] == ["3", "4"]
    assert (tmp_path / "log-until-2.csv").read_text().startswith("step,seconds,rate,total,l1,grid\n1,")
    trainer = Trainer(config(folder, tmp_path, steps=4, gan=0.1, gan_start=0.0))
    assert trainer.step == 4


def test_options_that_contradict_each_other(folder: Path, embedding: Path, tmp_path: Path) -> None:
    for changes, words in (
        ({"id": 0.1}, "--identity FILE"),
        ({"identity": embedding}, "--id 0.1"),
        ({"id": 0.1, "identity": embedding, "stages": (Stage(until=1.0, size=64, batch=1, vgg=64),)}, "whole crops"),
        ({"gan": 0.1, "gan_start": 1.0}, "--gan-start"),
        ({"gan": 0.1, "stages": (Stage(until=1.0, size=32, batch=1, vgg=32),)}, "64 pixels"),
    ):
        with pytest.raises(UsageError, match=words):
            train(config(folder, tmp_path, **changes))
