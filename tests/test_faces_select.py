from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from face_scenes import FPS, by_id, centre, face, placed, scene, similarity

from streamfix.errors import InputError, ModelError, UsageError
from streamfix.faces.detect import EmbeddedDetector
from streamfix.faces.select import SAME, Choice, Person, SelectAll, SelectPeople, parse_select, size_of
from streamfix.pipeline import Pipeline
from streamfix.restore.base import load_restorer
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
    return list(selector.choose(frame(), placements, current={track: Choice() for track in current}))


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
    assert isinstance(selector, SelectPeople)
    (person,) = selector.people
    assert (person.name, person.strength, selector.others) == ("red", 1.0, 0.0)
    np.testing.assert_allclose(person.embeddings, [(1, 0, 0)], atol=1e-6)


def somebody(name, embedding, strength=1.0):
    return Person(name=name, embeddings=[np.array(embedding, np.float32)], strength=strength)


def test_only_the_person_of_the_photo_is_restored():
    selector = SelectPeople([somebody("Anna", A)])
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
    with pytest.raises(ModelError, match=r"--embedding FILE\.onnx.*streamfix models pull buffalo_l"):
        parse_select(str(black), EmbeddedDetector())


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that is there and cannot be read")
def test_a_photo_that_the_system_does_not_give(tmp_path):
    with pytest.raises(InputError, match=r"/proc/self/mem cannot be read \(.*\); give a photo"):
        select("/proc/self/mem")
    with pytest.raises(UsageError, match="no file"):
        select(str(tmp_path))
    with pytest.raises(UsageError, match="no file"):
        select("x" * 5000 + ".jpg")


def test_photos_that_leave_a_doubt_are_told(tmp_path, caplog):
    class Two(Recogniser):
        def detect(self, image):
            (one,) = super().detect(image)
            return [one, replace(one, box=one.box + 200), replace(one, box=one.box * 0.2)]

    red = tmp_path / "red.png"
    cv2.imwrite(str(red), np.full((64, 64, 3), (0, 0, 255), np.uint8))
    cv2.imwrite(str(tmp_path / "blue.png"), np.full((64, 64, 3), (255, 0, 0), np.uint8))
    both = tmp_path / "both.toml"
    both.write_text("\n".join(f'[[person]]\nname = "{n}"\nphoto = "{n}.png"' for n in ("red", "blue")))
    select(str(both))
    assert not caplog.messages
    parse_select(str(red), Two())
    assert caplog.messages == [f"{red} shows 2 faces; the largest of them is taken for the person"]
    both.write_text(both.read_text().replace('"blue.png"', '"red.png"'))
    caplog.clear()
    select(str(both))
    assert caplog.messages == [
        "red and blue look like one person in their photos; each face is taken for one of them only"
    ]


def test_embeddings_of_two_models_are_refused():
    with pytest.raises(ModelError, match=r"different length \(2, 3\)"):
        SelectPeople([somebody("Anna", A), somebody("Bert", (*B, 0.0))])


# --- the background ---


def test_faces_much_smaller_than_the_largest_are_left():
    sizes = {0: 100, 1: 51, 2: 45, 3: 30}
    crowd = [placement(100 * i, 100, size, i) for i, size in sizes.items()]
    selector = select("all", ignore_background=True)
    assert chosen(selector, crowd) == [0, 1]
    assert chosen(selector, crowd, current=[0, 1, 2, 3]) == [0, 1, 2]
    assert chosen(selector, crowd[1:]) == [1, 2, 3]  # nobody is before them
    assert chosen(selector, []) == []
    assert chosen(select("all", ignore_background=True, min_size=60.0), crowd) == [0]
    assert chosen(select("center", ignore_background=True), [crowd[0], placement(320, 240, 30, 3)]) == [0]


def test_a_face_between_fore_and_background_does_not_pop():
    # it wavers about the line by 8 %, then the main face leaves and comes back
    small = 45 * (1 + 0.08 * np.sin(np.arange(120) * 0.3))
    people = [[face(400, 200, s)] + ([face(150, 200)] if not 50 <= i < 80 else []) for i, s in enumerate(small)]
    tracks = by_id(placed(scene(people), select=SelectAll(ignore_background=True)))
    background = next(t for t in tracks.values() if abs(centre(next(iter(t.values())))[0] - 400) < 20)
    strength = np.array([background[i].strength if i in background else 0.0 for i in range(120)])
    assert np.abs(np.diff(strength)).max() <= 1 / FPS / 0.25 + 1e-9
    assert strength[:40].max() == 0
    assert strength[62:70].min() == 1
    assert 1 <= (np.diff(np.sign(strength)) != 0).sum() <= 2  # comes, and goes at most once


def test_two_reasons_at_once_are_no_faster_than_one():
    # in frame 40 the face is left for another that comes, becomes doubtful, and its landmarks begin to waver
    rng = np.random.default_rng(4)
    people = []
    for i in range(80):
        late = i >= 40
        small = face(400, 200, 30 * (1 + (rng.uniform(-0.2, 0.2) if late else 0)), score=0.45 if late else 0.98)
        people.append([small, face(150, 200)] if late else [small])
    tracks = by_id(placed(scene(people), select=SelectAll(ignore_background=True)))
    strength = np.array([tracks[0][i].strength if i in tracks[0] else 0.0 for i in range(80)])
    assert strength[:30].min() == 1
    assert strength[60:].max() == 0
    assert np.abs(np.diff(strength)).max() <= 1 / FPS / 0.25 + 1e-9


# --- several people ---

C = (-1.0, 0.0)


def of(track_id, embedding, size=100.0):
    known = None if embedding is None else np.array(embedding, np.float32) / np.linalg.norm(embedding)
    return Placement(track_id=track_id, matrix=similarity(200, 200, size).matrix(), strength=1.0, embedding=known)


def test_each_person_has_a_strength_and_everybody_else_another():
    people = [somebody("Anna", A, 0.7), somebody("Bert", B, 0.0)]
    seen = [of(5, B), of(6, A), of(7, C)]
    assert SelectPeople(people).choose(frame(), seen) == {5: Choice(0.0, "Bert"), 6: Choice(0.7, "Anna")}
    assert SelectPeople(people, others=0.4).choose(frame(), seen)[7] == Choice(0.4)
    assert SelectPeople(people, min_size=150).choose(frame(), seen) == {}
    two = Person(name="Anna", embeddings=[np.array(A, np.float32), np.array(C, np.float32)])
    assert SelectPeople([two]).choose(frame(), [of(7, C)]) == {7: Choice(1.0, "Anna")}
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="Anna"):
            SelectPeople([somebody("Anna", A, strength)])
        with pytest.raises(UsageError, match="everybody else"):
            SelectPeople([somebody("Anna", A)], others=strength)


def at(cosine, towards=B):
    """A direction whose cosine with A is that, the rest of it towards another."""
    return tuple(cosine * np.array(A) + np.sqrt(1 - cosine**2) * np.array(towards))


def test_nobody_is_in_two_places_and_a_face_is_of_one_person():
    anna, bert = somebody("Anna", A), somebody("Bert", B)
    close = [of(0, at(0.8)), of(1, at(0.9)), of(2, at(0.7, towards=(0.0, -1.0)))]
    assert SelectPeople([anna]).choose(frame(), close) == {1: Choice(1.0, "Anna")}
    # at(0.8) is 0.6 like Bert: what is left of the two goes to him
    result = SelectPeople([anna, bert]).choose(frame(), close)
    assert result == {1: Choice(1.0, "Anna"), 0: Choice(1.0, "Bert")}


def test_who_somebody_is_does_not_flip():
    selector = SelectPeople([somebody("Anna", A)])
    low, high = (SAME[1] + 0.02, SAME[0] - 0.02)
    was = {3: Choice(1.0, "Anna")}
    for cosine in (low, high):
        assert selector.choose(frame(), [of(3, at(cosine))]) == {}
        assert selector.choose(frame(), [of(3, at(cosine))], current=was) == was
    assert selector.choose(frame(), [of(3, at(SAME[1] - 0.02))], current=was) == {}
    assert selector.choose(frame(), [of(3, None)], current=was) == was
    # a rival must be clearly likelier
    assert selector.choose(frame(), [of(3, at(0.5)), of(4, at(0.6))], current=was) == was
    assert list(selector.choose(frame(), [of(3, at(0.5)), of(4, at(0.8))], current=was)) == [4]


def test_a_doubtful_frame_does_not_change_who_somebody_is():
    # every third frame is blurred beyond recognition; the neighbours know
    people = [[face(200, 200, embedding=B if i % 3 == 1 else A)] for i in range(40)]
    (track,) = by_id(placed(scene(people), select=SelectPeople([somebody("Anna", A)]))).values()
    assert [p.strength for p in track.values()] == [1.0] * 40


def test_strengths_of_people_come_by_fading():
    # two people side by side, one of whom is known from frame 30 on only
    people = [[face(150, 200, embedding=A), face(400, 200, embedding=C if i < 30 else B)] for i in range(80)]
    selector = SelectPeople([somebody("Anna", A, 0.5), somebody("Bert", B, 0.8)], others=0.2)
    left, right = (t for _, t in sorted(by_id(placed(scene(people), select=selector)).items()))
    assert {p.strength for p in left.values()} == {0.5}
    strength = np.array([right[i].strength for i in range(80)])
    assert strength[:20] == pytest.approx(0.2)
    assert strength[50:] == pytest.approx(0.8)
    assert 0 < np.diff(strength).max() <= 1 / FPS / 0.25 + 1e-9
    assert np.diff(strength).min() >= 0


def test_pictures_that_stand_alone_have_the_strengths_too():
    pipeline = Pipeline(
        restorer=load_restorer("passthrough"),
        detector=Recogniser(),
        select=SelectPeople([somebody("Anna", A, 0.5)], others=0.25),
        strength=0.5,
    )
    both = [face(150, 200, embedding=A), face(400, 200, embedding=B)]
    ((_, found),) = pipeline.place_still(scene([both]))
    assert [p.strength for p in found] == [0.25, 0.125]
