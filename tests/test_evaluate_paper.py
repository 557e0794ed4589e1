"""The paper's tables on small sets, how time is measured, landmarks, and the measures over a track."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import degraded, moved
from typer.testing import CliRunner

from streamfix.cli import app
from streamfix.errors import InputError, ModelError, UsageError
from streamfix.evaluate.ablation import variants
from streamfix.evaluate.frechet import Moments, load_moments
from streamfix.evaluate.inception import Inception
from streamfix.evaluate.landmarks import DetectorLandmarks, ModelLandmarks, landmark_distance
from streamfix.evaluate.metrics import Metrics
from streamfix.evaluate.paper import PaperMetrics, load_paper_metrics, score_method
from streamfix.evaluate.published import SETS, TABLE_1, TABLE_2
from streamfix.evaluate.quality import Musiq
from streamfix.evaluate.sets import Sample, samples_of
from streamfix.evaluate.temporal import FaceTrace, summary
from streamfix.evaluate.timing import time_restorer
from streamfix.evaluate.video import evaluate_video
from streamfix.faces.detect import load_detector
from streamfix.restore.interlcm.options import split_spec
from streamfix.types import Face


@pytest.fixture
def faces(tmp_path: Path, astronaut: np.ndarray) -> Path:
    folder = tmp_path / "faces"
    folder.mkdir()
    face = cv2.resize(astronaut[20:220, 125:325], (512, 512), interpolation=cv2.INTER_LANCZOS4)[..., ::-1]
    cv2.imwrite(str(folder / "a.png"), face)
    cv2.imwrite(str(folder / "b.png"), face[:, ::-1])
    return folder


def test_the_command_writes_table_csv_and_figure(faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call = ["evaluate", "paper", "--set", "celeba", "--data", str(faces), "--set", "lfw", "--data", str(faces)]
    call += ["--model", "passthrough", "--batches", "1,2", "-o", str(out)]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    text = (out / "table1.md").read_text()
    assert "| InterLCM | paper | 0.223 | 45.38 | 76.58 | 33.64 | 25.19 | 0.718 |" in text
    assert "Left out: FID" in text
    assert "Left out: MUSIQ" in text
    rows = list(csv.DictReader((out / "table1.csv").open()))
    ours = {(r["set"], r["method"]): r for r in rows if r["figures"] == "ours"}
    assert set(ours) == {(s, m) for s in ("celeba", "lfw") for m in ("input", "passthrough")}
    assert ours["celeba", "passthrough"]["PSNR"] == ours["celeba", "input"]["PSNR"] != ""
    assert float(ours["celeba", "passthrough"]["s/face"]) > 0
    assert ours["lfw", "input"]["FID"] == "", "what cannot be measured stays empty"
    figure = cv2.imread(str(out / "table1.png"))
    assert figure is not None
    assert figure.shape[1] > 1000
    assert CliRunner().invoke(app, call).exit_code == 1, "nothing is overwritten unasked"


def test_pairs_of_folders_and_degraded_faces(faces: Path, tmp_path: Path) -> None:
    clean = samples_of(SETS["celeba"], faces)
    low, truth = clean[0].load()
    assert truth is not None
    again, _ = samples_of(SETS["celeba"], faces, limit=1)[0].load()
    assert np.array_equal(low, again), "one seed, one result, whoever else is there"
    for name, image in (("lq", low), ("gt", truth)):
        (tmp_path / "pairs" / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "pairs" / name / "x.png"), np.rint(image * 255)[..., ::-1])
    (pair,) = samples_of(SETS["celeba"], tmp_path / "pairs")
    assert np.abs(pair.load()[0] - low).max() < 1 / 255
    assert np.array_equal(pair.load()[1], truth)
    cv2.imwrite(str(tmp_path / "pairs" / "lq" / "y.png"), np.zeros((512, 512, 3)))
    with pytest.raises(InputError, match="y"):
        samples_of(SETS["celeba"], tmp_path / "pairs")
    assert samples_of(SETS["lfw"], faces)[0].load()[1] is None


def test_photos_without_a_face_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b", "c"):
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((8, 8, 3)))
    found = np.zeros((512, 512, 3), np.float32)

    def cut(path: Path) -> np.ndarray:
        if path.stem == "b":
            raise InputError(f"there is no face in {path}; give another picture")
        return found

    assert sorted(s.name for s in samples_of(SETS["lfw"], tmp_path, cut=cut)) == ["a", "c"]
    assert len(samples_of(SETS["lfw"], tmp_path, cut=cut, limit=2)) == 2
    assert "b.png is left out: there is no face in" in caplog.text
    for name in ("a", "c"):
        (tmp_path / f"{name}.png").unlink()
    with pytest.raises(InputError, match="none of the pictures"):
        samples_of(SETS["lfw"], tmp_path, cut=cut)


def test_fid_is_of_the_whole_set_and_ids_an_angle() -> None:
    class Brightness:
        """Two features of a picture."""

        def __call__(self, pictures: torch.Tensor) -> np.ndarray:
            return torch.stack([pictures.mean((1, 2, 3)), pictures.std((1, 2, 3))], 1).double().numpy()

    class Angled:
        def __call__(self, crop: np.ndarray) -> np.ndarray:
            angle = math.radians(60) * float(crop.mean() > 0.5)
            return np.array([math.cos(angle), math.sin(angle)], np.float32)

    rng = np.random.default_rng(0)
    low = [rng.random((64, 64, 3)).astype(np.float32) * 0.2 + s for s in (0.6, 0.7)]
    high = [rng.random((64, 64, 3)).astype(np.float32) * 0.2 for _ in range(2)]
    samples = [Sample(str(i), lambda i=i: (low[i], high[i])) for i in range(2)]
    metrics = PaperMetrics(pair=Metrics(identity=Angled()), inception=Brightness())  # type: ignore[arg-type]
    scores = score_method(samples, None, metrics)
    assert scores.means["IDS"] == pytest.approx(60, abs=1e-4)
    assert scores.means["identity"] == pytest.approx(0.5)
    # nearly all of that distance lies between the means
    wanted = (np.mean(low) - np.mean(high)) ** 2
    assert scores.means["FID-GT"] == pytest.approx(wanted, rel=0.03)
    assert "FID" not in scores.means, "without clean faces to compare with there is none"


class Clock:
    """A restorer that takes a second a call and a tenth a face, except for its first call; and the clock that says so."""

    name, sha256, device, dtype = "clock", None, torch.device("cpu"), torch.float32

    def __init__(self) -> None:
        self.now, self.calls = 0.0, 0

    def restore(self, crops: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        self.calls += 1
        self.now += 1.0 + 0.1 * len(crops) + (50.0 if self.calls == 1 else 0.0)
        return crops


def test_time_is_told_after_a_warm_up_by_batch_size() -> None:
    clock = Clock()
    faces = torch.zeros(3, 3, 8, 8)
    timing = time_restorer(clock, faces, budget=3, clock=lambda: clock.now)
    assert timing.seconds == pytest.approx({1: 1.1, 2: 0.6, 4: 0.35, 8: 0.225})
    assert timing.single == pytest.approx(1.1)
    assert timing.best == (8, pytest.approx(0.225))
    slow = Clock()
    cut = time_restorer(slow, faces, longest=1.5, clock=lambda: slow.now)
    assert list(cut.seconds) == [1]
    assert "a batch of 2" in str(cut.stopped)
    with pytest.raises(UsageError):
        time_restorer(clock, faces, batch_sizes=(2, 4), clock=lambda: clock.now)


def test_landmarks_of_the_detector_move_with_the_face(faces: Path) -> None:
    truth = samples_of(SETS["celeba"], faces)[0].load()[1]
    assert truth is not None
    landmarks = DetectorLandmarks(load_detector("retinaface"))
    points = landmarks(truth)
    moved = landmarks(np.roll(truth, (0, 12), (0, 1)))
    assert points is not None
    assert moved is not None
    assert landmark_distance(points, moved) == pytest.approx(12, abs=1.5)
    assert landmarks(np.zeros((512, 512, 3), np.float32)) is None


def landmark_model(path: Path, points: np.ndarray) -> Path:
    """One that answers with these points, in [-1, 1] of its 192x192 input, whatever it sees."""
    onnx = pytest.importorskip("onnx")
    helper, kind, size = onnx.helper, onnx.TensorProto.FLOAT, (1, points.size)
    nodes = [
        helper.make_node("ReduceMean", ["data"], ["mean"], keepdims=0, axes=[1, 2, 3]),
        helper.make_node("Reshape", ["mean", "shape"], ["one"]),
        helper.make_node("Gemm", ["one", "none", "points"], ["fc1"]),
    ]
    initial = [
        helper.make_tensor("shape", onnx.TensorProto.INT64, (2,), [1, 1]),
        helper.make_tensor("none", kind, size, [0.0] * points.size),
        helper.make_tensor("points", kind, size, points.ravel().tolist()),
    ]
    ends = [helper.make_tensor_value_info(n, kind, s) for n, s in (("data", (1, 3, 192, 192)), ("fc1", size))]
    graph = helper.make_graph(nodes, "points", ends[:1], ends[1:], initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


def test_a_landmark_model_of_insightface(tmp_path: Path) -> None:
    wanted = np.random.default_rng(0).uniform(-0.5, 0.5, (106, 2)).astype(np.float32)

    class Whole:
        name = "whole"

        def detect(self, image: np.ndarray) -> list[Face]:
            box = np.array([256, 256, 512, 512], np.float32)  # 256 wide, its middle at that of the crop
            return [Face(box=box, landmarks=np.full((5, 2), 384, np.float32), score=1.0)]

    landmarks = ModelLandmarks(landmark_model(tmp_path / "many.onnx", wanted), Whole())
    assert landmarks.name == "106 points of many.onnx"
    # the model sees the box enlarged by half: 384 pixels across about (256, 256)
    assert landmarks(np.zeros((512, 512, 3), np.float32)) == pytest.approx(256 + wanted * 192, abs=2.1)
    (tmp_path / "x.onnx").write_bytes(b"no network")
    with pytest.raises(ModelError, match=r"x\.onnx"):
        ModelLandmarks(tmp_path / "x.onnx", Whole())
    with pytest.raises(ModelError, match="gives 64 points"):  # a face embedding of 128 numbers loads as well
        ModelLandmarks(landmark_model(tmp_path / "embedding.onnx", np.zeros((64, 2), np.float32)), Whole())
    with pytest.raises(ModelError, match=r"there is no file .*none\.onnx"):
        ModelLandmarks(tmp_path / "none.onnx", Whole())


def test_measures_over_a_track_are_their_formulas() -> None:
    rng = np.random.default_rng(0)
    truth = {n: rng.normal(0, 1, (5, 2)) + 3 * n for n in (0, 1, 2, 5)}
    away = {0: (0, 0), 1: (3, 4), 2: (3, 4), 5: (0, 1)}
    trace = FaceTrace(points={n: (truth[n] + np.array(away[n]), truth[n]) for n in truth})
    turn = {0: 0.0, 1: 60.0, 2: 90.0, 5: 0.0}
    unit = {n: np.array([math.cos(math.radians(a)), math.sin(math.radians(a))], np.float32) for n, a in turn.items()}
    trace.embeddings = {n: (unit[n], unit[0]) for n in unit}
    values = summary([trace])
    assert values["AKD"] == pytest.approx((0 + 5 + 5 + 1) / 4)
    assert values["sigma-AKD"] == pytest.approx(np.std([0, 5, 5, 1]))
    assert values["TLME"] == pytest.approx((5 + 0) / 2), "frames 2 and 5 are no neighbours"
    assert values["sigma-IDS"] == pytest.approx(np.std([1, 0.5, 0, 1]), abs=1e-6)
    assert values["VIDD"] == pytest.approx(((1 - 0.5) + (1 - math.cos(math.radians(30)))) / 2, abs=1e-6)
    assert summary([FaceTrace()]) == {}


def test_variants_are_what_the_table_compares() -> None:
    lines = variants("interlcm")
    assert set(TABLE_2) < set(lines)
    assert next(iter(lines)) == "VE + SE, start at the 2nd step"
    options = {label: split_spec(spec)[1] for label, spec in lines.items()}  # type: ignore[index]
    assert sorted(o.start_step for o in options.values() if o.visual and o.spatial and o.prompt is None) == [1, 2, 3, 4]
    assert not options["SE with null text"].visual
    assert not options["VE alone"].spatial
    assert options["SE with a text prompt"].prompt
    assert len(variants("interlcm-1step:guidance=6")) == 2 + 4
    with pytest.raises(UsageError, match="InterLCM"):
        variants("lite")


def test_published_figures_stand_at_their_sets() -> None:
    ours = next(row for row in TABLE_1 if row.method == "InterLCM")
    assert ours.values["celeba"] == {
        "LPIPS": 0.223,
        "FID": 45.38,
        "MUSIQ": 76.58,
        "IDS": 33.64,
        "PSNR": 25.19,
        "SSIM": 0.718,
    }
    assert ours.values["wider"] == {"FID": 35.43, "MUSIQ": 76.29}
    assert ours.seconds == 0.421


def test_statistics_are_read_as_others_publish_them(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(9, 3))
    moments = Moments.of(x)
    np.savez(tmp_path / "a.npz", mu=moments.mean, sigma=moments.covariance)
    torch.save({"mean": moments.mean, "cov": moments.covariance}, tmp_path / "b.pth")
    for name in ("a.npz", "b.pth"):
        read = load_moments(tmp_path / name)
        assert read.mean == pytest.approx(x.mean(0))
        assert read.covariance == pytest.approx(np.cov(x, rowvar=False))
    (tmp_path / "c.pth").write_bytes(b"nothing")
    for reader in (load_moments, Inception):
        with pytest.raises(ModelError, match=r"c\.pth"):
            reader(tmp_path / "c.pth")
        with pytest.raises(ModelError, match="there is no file"):
            reader(tmp_path / "nowhere.pth")
    with pytest.raises(ModelError, match="bring"):
        Musiq(tmp_path / "nowhere.pth")


def test_a_reference_that_is_not_there_is_told_without_the_network_too(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no file .*none\.npz"):
        load_paper_metrics(Metrics.load(), fid_stats=tmp_path / "none.npz")
    with pytest.raises(InputError, match=r"there is no folder .*nowhere"):
        load_paper_metrics(Metrics.load(), fid_reference=tmp_path / "nowhere")


def test_wrong_calls_are_told(faces: Path) -> None:
    call = ["evaluate", "paper", "--set", "celeba", "--data", str(faces)]
    assert CliRunner().invoke(app, [*call, "--set", "lfw"]).exit_code == 2
    assert CliRunner().invoke(app, ["evaluate", "paper", "--set", "imdb", "--data", str(faces)]).exit_code == 2
    assert CliRunner().invoke(app, [*call, "--photos"]).exit_code == 2


def test_a_video_has_the_measures_of_landmarks_where_they_are_asked_for(
    clip: Callable[..., Path], face_picture: np.ndarray
) -> None:
    truth = [moved(face_picture, 0.5 * n, 0) for n in range(4)]
    clean, noisy = clip("clean.mkv", truth), clip("noisy.mkv", [degraded(image, n) for n, image in enumerate(truth)])
    detector = load_detector("retinaface")
    scores = evaluate_video(
        clean, noisy, clean, detector=detector, metrics=Metrics.load(), landmarks=DetectorLandmarks(detector)
    )
    for name in ("AKD", "sigma-AKD", "TLME"):
        assert scores.degraded[name] > scores.restored[name] == 0
    assert scores.degraded["E_warp"] > scores.restored["E_warp"] > 0
    # the mean of squares is never below the square of the mean
    assert scores.degraded["E_warp"] >= 1000 * (scores.degraded["warping"] / 255) ** 2
    assert "VIDD" not in scores.degraded, "without an embedding there is none"
