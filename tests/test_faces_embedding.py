"""Telling people apart with an ONNX file that the user brings, whatever the detector."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from streamfix import load_pipeline
from streamfix.cli import app
from streamfix.errors import InputError, ModelError, UsageError
from streamfix.faces.align import ARCFACE_TEMPLATE, TEMPLATE, apply, arcface_matrix, fit_similarity, then
from streamfix.faces.detect import load_detector
from streamfix.faces.embedding import FaceEmbedding
from streamfix.faces.select import SelectPeople


def save_embedding(path: Path, *, size: int = 112, flat: bool = False) -> Path:
    """Gives the 7x7 grid of mean colours of the picture it is shown, less their mean: (1, 147), so crops can be told apart."""
    cell = size // 7
    nodes = [
        helper.make_node("AveragePool", ["image"], ["cells"], kernel_shape=[cell, cell], strides=[cell, cell]),
        helper.make_node("Flatten", ["cells"], ["all"]),
        helper.make_node("ReduceMean", ["all"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["all", "mean"], ["vector"]),
        helper.make_node("Mul", ["vector", "zero"], ["nothing"]),
    ]
    graph = helper.make_graph(
        nodes,
        "grid",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info("nothing" if flat else "vector", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.zeros(1, np.float32), "zero")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_embedding(tmp_path_factory.mktemp("onnx") / "grid.onnx")


def test_the_input_is_aligned_as_arcface_is(grid: Path) -> None:
    # the landmarks of a face in a frame land on ArcFace's template, within the misfit of both templates
    landmarks = TEMPLATE * 0.3 + (40, 20)
    points = apply(then(fit_similarity(landmarks), arcface_matrix()), landmarks)
    assert np.abs(points - ARCFACE_TEMPLATE).max() < 2.5
    embedding = FaceEmbedding(grid, norm="imagenet")
    # a picture that has only one bright spot, at the nose: the cell with ArcFace's nose lights up, and no other
    image = np.zeros((200, 220, 3), np.uint8)
    x, y = landmarks[2].round().astype(int)
    image[y - 3 : y + 4, x - 3 : x + 4] = 255
    vector = embedding.of_face(image, landmarks)
    assert vector is not None
    brightest = np.unravel_index(vector.reshape(3, 7, 7).sum(axis=0).argmax(), (7, 7))
    assert brightest == (int(ARCFACE_TEMPLATE[2, 1] // 16), int(ARCFACE_TEMPLATE[2, 0] // 16))


@pytest.mark.parametrize("scale", [0.1, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("angle", [0.0, 0.6, np.pi])
def test_a_face_in_a_frame_is_the_face_in_its_crop(
    grid: Path, astronaut: np.ndarray, scale: float, angle: float
) -> None:
    # the same 512x512 crop, shown as one, and lying in a frame at another size and angle
    crop = cv2.resize(astronaut[20:220, 125:325], (512, 512), interpolation=cv2.INTER_AREA)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    side = int(512 * scale * 1.5)
    matrix = np.concatenate([turn, np.full((2, 1), (side - 1) / 2) - turn @ np.full((2, 1), 255.5)], axis=1)
    blurred = cv2.GaussianBlur(crop, (0, 0), max(0.5 / scale, 0.01))
    frame = cv2.warpAffine(blurred, matrix, (side, side), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    embedding = FaceEmbedding(grid)
    ours, wanted = embedding.of_face(frame, apply(matrix, TEMPLATE)), embedding(crop.astype(np.float32) / 255)
    assert ours is not None
    assert np.linalg.norm(ours) == pytest.approx(1, abs=1e-6)
    assert float(ours @ wanted) > 0.995
    assert float(embedding.of_face(frame, apply(matrix, TEMPLATE) + 40 * scale) @ wanted) < 0.95  # type: ignore[operator]


def test_files_that_are_no_face_embedding(grid: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no input scaling called 'bgr'; choose one of: arcface, imagenet"):
        FaceEmbedding(grid, norm="bgr")
    with pytest.raises(ModelError, match=r"there is no file .*nowhere\.onnx"):
        FaceEmbedding(tmp_path / "nowhere.onnx")
    with pytest.raises(ModelError, match="does not run on") as caught:
        FaceEmbedding(save_embedding(tmp_path / "large.onnx", size=224))
    assert "\n" not in str(caught.value)
    nodes = [helper.make_node("Relu", ["image"], ["out"])]
    tensors = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 112, 112])] for name in ("image", "out")]
    graph = helper.make_graph(nodes, "picture", *tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "p.onnx")
    with pytest.raises(ModelError, match=r"gives \(1, 3, 112, 112\) for one face"):
        FaceEmbedding(tmp_path / "p.onnx")


def test_a_face_without_a_vector_is_nobody(tmp_path: Path, astronaut: np.ndarray) -> None:
    embedding = FaceEmbedding(save_embedding(tmp_path / "flat.onnx", flat=True))
    assert embedding.of_face(astronaut, TEMPLATE / 4) is None
    with pytest.raises(ModelError, match="no finite vector"):
        embedding(astronaut.astype(np.float32) / 255)


def test_the_embedded_detector_tells_people_apart_with_it(grid: Path, face_picture: np.ndarray, tmp_path: Path) -> None:
    detector = load_detector("retinaface", embedding=grid, threads=1)
    assert detector.name == "retinaface"
    mirrored = np.ascontiguousarray(np.concatenate([face_picture, face_picture[:, ::-1]], axis=1))
    faces = sorted((f for f in detector.detect(mirrored) if f.score > 0.9), key=lambda f: f.box[0])
    assert len(faces) == 2
    photo = tmp_path / "someone.png"
    cv2.imwrite(str(photo), face_picture[..., ::-1])
    pipeline = load_pipeline(
        model="passthrough", detector="retinaface", faces=str(photo), embedding=grid, ignore_background=True
    )
    assert isinstance(pipeline.select, SelectPeople)
    assert pipeline.select.ignore_background
    assert pipeline.settings["embedding_norm"] == "arcface"
    likeness = [pipeline.select.people[0].likeness(f.embedding) for f in faces]  # type: ignore[arg-type]
    assert likeness[0] > 0.98
    assert likeness[0] > likeness[1] + 0.02


def test_on_the_command_line(grid: Path, face_picture: np.ndarray, clip: Callable[..., Path], tmp_path: Path) -> None:
    video, photo, out = clip("in.mkv", [face_picture] * 3), tmp_path / "p.png", tmp_path / "out.mkv"
    cv2.imwrite(str(photo), face_picture[..., ::-1])
    call = ["enhance", str(video), "-o", str(out), "--model", "passthrough", "--detector", "retinaface"]
    without = CliRunner().invoke(app, [*call, "--faces", str(photo)])
    assert without.exit_code == 1
    assert "--embedding FILE.onnx" in " ".join(without.stderr.split())
    people = tmp_path / "people.toml"
    people.write_text('[[person]]\nname = "Someone"\nphoto = "p.png"\nstrength = 0.5\n')
    done = CliRunner().invoke(app, [*call, "--faces", str(people), "--embedding", str(grid)])
    assert done.exit_code == 0, done.stderr
    assert "1 person" in done.stdout
    people.write_text('[[person]]\nname = "Someone"\nphoto = "p.png"\nrestore = false\n')
    left = CliRunner().invoke(app, [*call, "--faces", str(people), "--embedding", str(grid), "--overwrite"])
    assert "no face restored" in left.stdout


def test_a_photo_without_a_face_is_told(grid: Path, tmp_path: Path) -> None:
    photo = tmp_path / "empty.png"
    cv2.imwrite(str(photo), np.full((64, 64, 3), 128, np.uint8))
    with pytest.raises(InputError, match="no face is found"):
        load_pipeline(model="passthrough", detector="retinaface", faces=str(photo), embedding=grid)


def test_an_input_scaling_of_no_embedding_is_told() -> None:
    with pytest.raises(UsageError, match="name its file with --embedding"):
        load_detector("retinaface", embedding_norm="imagenet")


def test_a_job_knows_the_files_it_was_told_by_their_contents(tmp_path: Path, face_picture: np.ndarray) -> None:
    photo, network = tmp_path / "person.png", save_embedding(tmp_path / "e.onnx")

    def settings(picture: np.ndarray) -> dict[str, object]:
        cv2.imwrite(str(photo), cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2BGR))
        return load_pipeline(model="passthrough", faces=photo, embedding=network).settings

    first, mirrored = settings(face_picture), settings(face_picture[:, ::-1])
    assert first["faces"] != mirrored["faces"]
    assert first | {"faces": ""} == mirrored | {"faces": ""}
    model = onnx.load(network)
    model.doc_string = "another"
    onnx.save(model, str(network))
    other = settings(face_picture[:, ::-1])
    assert other["embedding"] != mirrored["embedding"]
    assert other | {"embedding": ""} == mirrored | {"embedding": ""}
