"""A face parsing network that the user brings: what is not face stays as it was."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from streamfix import load_pipeline, load_restorer
from streamfix.cli import app
from streamfix.errors import ModelError, UsageError
from streamfix.faces.parsing import CLASSES, FaceParser
from streamfix.restraint import Guard
from streamfix.serve.models import Models
from streamfix.types import Crop, Placement


def save_parser(path: Path, *, classes: int = CLASSES, side: int = 64) -> Path:
    """Red above 0.5 is skin (1), else green above 0.5 is hair (17), else background: scores linear in the input's scaling."""
    weight, bias = np.zeros((classes, 3, 1, 1), np.float32), np.zeros(classes, np.float32)
    for name, channel, mean, std, gain in ((1, 0, 0.485, 0.229, 2.0), (min(17, classes - 1), 1, 0.456, 0.224, 1.0)):
        weight[name, channel], bias[name] = gain * std, gain * (mean - 0.5)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "weight", "bias"], ["scores"], kernel_shape=[1, 1]),
            helper.make_node("Neg", ["scores"], ["aux"]),
        ],
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("scores", "aux")],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


@pytest.fixture(scope="module")
def parser_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_parser(tmp_path_factory.mktemp("onnx") / "colours.onnx")


@pytest.mark.parametrize("side", [64, 512])
def test_skin_is_face_and_hair_is_not(tmp_path: Path, side: int) -> None:
    crop = np.zeros((512, 512, 3), np.float32)
    crop[:, :256, 0] = 0.9  # skin on the left
    crop[:128, :256] = (0.1, 0.9, 0.1)  # hair above it
    mask = FaceParser(save_parser(tmp_path / "p.onnx", side=side))(crop)
    assert mask.shape == (512, 512)
    assert mask.dtype == np.float32
    assert mask[300:, :200].min() > 0.99
    assert mask[:90].max() < 0.01
    assert mask[:, 300:].max() < 0.01
    edge = mask[400, 200:312]
    assert (np.diff(edge) <= 1e-6).all(), "falls without steps"
    assert np.abs(np.diff(edge)).max() < 0.08


def test_the_guard_keeps_the_restored_face_within_it(parser_file: Path) -> None:
    rng = np.random.default_rng(0)
    crop = np.full((512, 512, 3), (0.8, 0.2, 0.2), np.float32)
    crop[:200] = (0.2, 0.8, 0.2)
    restored = np.clip(crop + rng.normal(0, 0.05, crop.shape), 0, 1).astype(np.float32)
    without, within = (Guard(p).restrain(0, 0, crop, restored) for p in (None, FaceParser(parser_file)))
    assert without.weight.min() == 1
    assert within.weight[300:].min() > 0.99
    assert within.weight[:150].max() < 0.01
    assert within.covered > 0.1


def test_hair_comes_out_as_it_went_in(
    clip: Callable[..., Path], astronaut: np.ndarray, parser_file: Path, tmp_path: Path
) -> None:
    """Through the command line: with a network that calls next to nothing of this picture face, hardly anything changes."""
    from conftest import decode, degraded, planes

    source = clip("in.mkv", [degraded(astronaut, 2)] * 2, codec="ffv1")
    changed = {}
    for name, options in (("with", ["--parsing", str(parser_file)]), ("without", [])):
        out = tmp_path / f"{name}.mkv"
        done = CliRunner().invoke(app, ["enhance", str(source), "-o", str(out), "--codec", "ffv1", *options])
        assert done.exit_code == 0, done.output
        pairs = zip(decode(source), decode(out), strict=True)
        changed[name] = sum(int((a[0] != b[0]).sum()) for a, b in ((planes(i), planes(o)) for i, o in pairs))
    assert 0 < changed["with"] < 0.9 * changed["without"]


def test_live_keeps_the_restored_face_within_it_too(parser_file: Path, astronaut: np.ndarray) -> None:
    from conftest import degraded

    close = cv2.resize(astronaut[20:220, 125:325], (512, 512), interpolation=cv2.INTER_CUBIC)
    image = degraded(close, 2).astype(np.float32) / 255
    parser = FaceParser(parser_file)
    elsewhere = parser(image) < 0.001
    assert 0.05 < elsewhere.mean() < 0.9
    face = Crop(frame_index=0, placement=Placement(track_id=0, matrix=np.eye(2, 3), strength=1.0), image=image)
    changed = []
    for given in (None, parser):
        models = Models({"lite": load_restorer("lite")}, parser=given)
        (answer,) = models.restore("lite", [face], models.memory())
        changed.append(np.abs(answer - image)[elsewhere].max())
    assert changed[0] > 0.1
    assert changed[1] < 0.001


def test_live_tells_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    done = CliRunner().invoke(app, ["live", "--parsing", str(tmp_path / "text.onnx"), "--port", "0"])
    assert done.exit_code == 1
    assert "no ONNX face parsing network" in " ".join(done.output.split())


def test_files_that_are_none(tmp_path: Path, parser_file: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ModelError, match=r"no ONNX face parsing network"):
        FaceParser(tmp_path / "text.onnx")
    with pytest.raises(ModelError, match=r"gives \(1, 11, 64, 64\).*gives \(1, 19, H, W\)"):
        FaceParser(save_parser(tmp_path / "few.onnx", classes=11))
    with pytest.raises(UsageError, match="leave it out"):
        load_pipeline(model="passthrough", parsing=parser_file, protect=False)
