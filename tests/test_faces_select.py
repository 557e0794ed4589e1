import cv2
import numpy as np
import pytest
from face_scenes import FPS, by_id, face, placed, scene, similarity

from streamfix.errors import InputError, ModelError, UsageError
from streamfix.faces.detect import EmbeddedDetector
from streamfix.faces.select import SelectPerson, parse_select, size_of
from streamfix.types import Face, Placement

A, B = (1.0, 0.0), (0.0, 1.0)


class Recogniser:
    """A detector that finds one face wherever the picture is not black, with the mean colour as its embedding."""

    name = "recogniser"
    has_embeddings = True

    def detect(self, image):
        if image.max() < 40:
            return []
        colour = image.reshape(-1, 3).mean(axis=0).astype(np.float32)
        found = face(50, 50)
        return [Face(box=found.box, landmarks=found.landmarks, score=0.9, embedding=colour / np.linalg.norm(colour))]


def select(spec, **options):
    return parse_select(spec, Recogniser(), **options)


def placement(x, y, size, number=0):
    return Placement(track_id=number, matrix=similarity(x, y, size).matrix(), strength=1.0)


def frame():
    return scene([[]])[0].frame  # 640 x 480


def chosen(selector, placements, current=()):
    return [p.track_id for p in selector.choose(frame(), placements, current=frozenset(current))]


def test_sizes_are_those_of_the_detected_boxes():
    found = face(200, 200, 90)
    (placements,) = placed(scene([[found]]))
    assert size_of(placements[0]) == pytest.approx(found.size, rel=1e-4)


def test_everybody_of_a_minimum_size():
    three = [placement(100, 100, 30, 0), placement(200, 100, 50, 1), placement(300, 100, 80, 2)]
    assert chosen(select("all"), three) == [0, 1, 2]
    assert chosen(select("all", min_size=50.0), three) == [1, 2]
    assert chosen(select("all", min_size=53.0), three, current=[1]) == [1, 2]


def test_the_largest_with_hysteresis():
    two = [placement(100, 100, 60, 0), placement(300, 100, 70, 1)]
    assert chosen(select("largest"), two) == [1]
    assert chosen(select("largest"), two, current=[0]) == [0]
    assert chosen(select("largest"), [placement(100, 100, 50, 0), two[1]], current=[0]) == [1]
    assert chosen(select("largest"), []) == []
    assert chosen(select("largest", min_size=100.0), two) == []


def test_the_central_one_with_hysteresis():
    two = [placement(340, 240, 60, 0), placement(200, 240, 90, 1)]
    assert chosen(select("center"), two) == [0]
    assert chosen(select("centre"), two, current=[1]) == [0]
    close = [placement(330, 240, 60, 0), placement(305, 240, 90, 1)]
    assert chosen(select("center"), close, current=[0]) == [0]
    assert chosen(select("center"), close, current=[1]) == [1]


def test_a_person_by_a_photo(tmp_path):
    path = tmp_path / "red.png"
    cv2.imwrite(str(path), np.full((64, 64, 3), (0, 0, 255), np.uint8))  # BGR
    selector = parse_select(str(path), Recogniser())
    assert isinstance(selector, SelectPerson)
    np.testing.assert_allclose(selector.embedding, (1, 0, 0), atol=1e-6)


def test_only_the_person_of_the_photo_is_restored():
    selector = SelectPerson(np.array(A, np.float32))
    people = [
        [face(150, 200, embedding=A), face(400, 200, embedding=B)] if i not in (20, 21) else [] for i in range(50)
    ]
    frames = placed(scene(people), select=selector)
    tracks = by_id(frames)
    assert len(tracks) == 1
    (track,) = tracks.values()
    assert len(track) == 50  # interpolated frames have no embedding
    assert all(p.face is None or tuple(p.face.embedding) == A for p in track.values())
    nobody = placed(scene([[face(400, 200, embedding=B)]] * 30), select=selector)
    assert not any(nobody)


def test_the_choice_does_not_flip_and_changes_by_fading():
    # sizes waver about each other by 10 %, then one clearly wins
    sizes = [(100 + 10 * (-1) ** (i // 3), 100) if i < 40 else (70, 100) for i in range(80)]
    frames = placed(scene([[face(150, 200, a), face(400, 200, b)] for a, b in sizes]), select=select("largest"))
    tracks = by_id(frames)
    assert sorted(tracks[0]) == list(range(max(tracks[0]) + 1))
    assert max(tracks[0]) > 39 > 0
    assert min(tracks[1]) >= 30
    step = 1 / FPS / 0.25
    for track in tracks.values():
        values = [track[i].strength for i in sorted(track)]
        assert np.abs(np.diff(values)).max() <= step + 1e-9
    assert tracks[0][max(tracks[0])].strength <= step + 1e-9
    assert tracks[1][min(tracks[1])].strength <= step + 1e-9
    assert tracks[1][79].strength == 1


def test_what_cannot_be_selected(tmp_path):
    with pytest.raises(UsageError, match="no file 'biggest'"):
        select("biggest")
    for size in (-1.0, float("nan")):
        with pytest.raises(UsageError, match="0 or more"):
            select("all", min_size=size)
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"")
    with pytest.raises(InputError, match="not a picture"):
        select(str(photo))
    photo.write_text("no picture either")
    with pytest.raises(InputError, match="not a picture"):
        select(str(photo))
    black = tmp_path / "black.png"
    cv2.imwrite(str(black), np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(InputError, match="no face is found"):
        select(str(black))
    with pytest.raises(ModelError, match="streamfix models pull buffalo_l"):
        parse_select(str(black), EmbeddedDetector())
