import cv2
import numpy as np
import pytest

from streamfix.faces import CutDetector


def textured(seed: int, hue: tuple[float, float, float]) -> np.ndarray:
    """A large picture with structure at every scale."""
    rng = np.random.default_rng(seed)
    result = np.zeros((400, 700, 3))
    for size in (4, 9, 20, 60):
        coarse = rng.normal(0, 35, (400 // size + 2, 700 // size + 2)).astype(np.float32)
        result += cv2.resize(coarse, (700, 400), interpolation=cv2.INTER_CUBIC)[..., None]
    return np.clip(result + np.array(hue), 0, 255).astype(np.uint8)


A, B = textured(1, (150, 110, 90)), textured(2, (80, 120, 160))


def shots(*pictures) -> list[bool]:
    detector = CutDetector()
    return [detector.is_cut(np.ascontiguousarray(p)) for p in pictures]


def window(picture, x=0.0, y=0.0, zoom=1.0, size=(320, 180)):
    matrix = np.array([[zoom, 0, -x * zoom], [0, zoom, -y * zoom]])
    return cv2.warpAffine(picture, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def test_a_cut_is_found_at_its_frame_and_nowhere_else():
    found = shots(*[window(A, i) for i in range(10)], *[window(B, 2 * i) for i in range(10)])
    assert [i for i, cut in enumerate(found) if cut] == [10]


def test_every_one_of_many_cuts_is_found():
    pictures = [textured(i, (60 + 40 * (i % 4), 100, 200 - 40 * (i % 3))) for i in range(6)]
    found = shots(*[window(p, j) for p in pictures for j in range(6)])
    assert [i for i, cut in enumerate(found) if cut] == [6, 12, 18, 24, 30]


def test_the_astronaut_and_something_else(astronaut):
    found = shots(*[astronaut] * 3, *[np.ascontiguousarray(A[:300])] * 3, *[astronaut[:, ::-1]] * 3)
    assert [i for i, cut in enumerate(found) if cut] == [3, 6]


@pytest.mark.parametrize(("width", "height"), [(100, 180), (160, 90)])
def test_black_bars_do_not_hide_a_cut(width, height):
    def barred(picture):
        left, top = (320 - width) // 2, (180 - height) // 2
        return np.pad(picture, ((top, 180 - height - top), (left, 320 - width - left), (0, 0)))

    found = shots(*[barred(window(p, i, size=(width, height))) for p in (A, B) for i in range(5)])
    assert [i for i, cut in enumerate(found) if cut] == [5]


@pytest.mark.parametrize("light", [0.1, 0.25])
def test_a_cut_in_the_dark_is_found(light):
    rng = np.random.default_rng(0)
    dark = [window(p, 3 * i) * light + rng.normal(0, 2, (180, 320, 3)) for p in (A, B) for i in range(6)]
    found = shots(*[np.clip(p, 0, 255).astype(np.uint8) for p in dark])
    assert [i for i, cut in enumerate(found) if cut] == [6]


@pytest.mark.parametrize(
    "motion",
    [
        lambda i: window(A, 8 * i, 40),  # a pan of a fortieth of the width a frame
        lambda i: window(A, 100 + 25 * (-1) ** i, 60 + 12 * (-1) ** (i // 2)),  # a shaking hand
        lambda i: window(A, 60, 40, 1 + 0.03 * i),  # a zoom
        lambda i: np.clip(window(A).astype(float) * (0.3 + 0.06 * i), 0, 255).astype(np.uint8),  # a fade from dark
        lambda i: np.full((90, 160, 3), 16 * (i % 2), np.uint8),  # nearly black, flickering
    ],
)
def test_motion_and_light_are_no_cuts(motion):
    assert not any(shots(*[motion(i) for i in range(12)]))


def test_one_jolt_to_another_part_of_a_colourful_scene_is_no_cut():
    colourful = A.copy()
    colourful[:, :60, 0] //= 4
    colourful[:, 320:, 2] //= 4
    found = shots(*[window(colourful)] * 5, *[window(colourful, 50)] * 5)
    assert not any(found)


def test_noise_is_no_cut():
    rng = np.random.default_rng(0)
    assert not any(
        shots(*[np.clip(window(A) + rng.normal(0, 25, (180, 320, 3)), 0, 255).astype(np.uint8) for _ in range(10)])
    )


def test_the_end_of_a_flash_is_no_cut():
    white = np.full((180, 320, 3), 250, np.uint8)
    found = shots(*[window(A, i) for i in range(5)], white, *[window(A, 6 + i) for i in range(5)])
    assert not any(found[6:])


def test_from_black_into_a_scene_is_a_cut():
    black = np.zeros((180, 320, 3), np.uint8)
    assert shots(black, black, black, black, window(A), window(A, 1)) == [False, False, False, False, True, False]


@pytest.mark.filterwarnings("error")
def test_the_same_colours_at_other_places_are_no_warning():
    picture = np.random.default_rng(0).integers(0, 255, (36, 64, 3), dtype=np.uint8)
    assert shots(picture, picture[::-1]) == [False, False]


def test_any_size_will_do():
    for size in ((1, 1), (3, 200), (176, 144), (1920, 1080)):
        picture = cv2.resize(A, size, interpolation=cv2.INTER_AREA)
        assert shots(picture, picture) == [False, False]


@pytest.mark.parametrize(
    ("gain", "lift"), [(1.5, 60), (2, 80), (2.5, 120), (3, 150), (1, 200), (1, 230), (4, 100), (6, 0)]
)
@pytest.mark.parametrize("length", [1, 2])
def test_a_flash_is_no_cut_whether_it_saturates_or_not(gain, lift, length, astronaut):
    for scene in (lambda i: window(A, 2 * i), lambda i: window(B, 40, i), lambda i: astronaut[i : 300 + i]):
        pictures = [scene(i) for i in range(14)]
        for i in range(6, 6 + length):
            pictures[i] = np.clip(pictures[i].astype(float) * gain + lift, 0, 255).astype(np.uint8)
        assert not any(shots(*pictures))


def test_a_cut_under_a_flash_is_found_when_the_flash_is_over():
    white = np.clip(window(B).astype(float) + 230, 0, 255).astype(np.uint8)
    found = shots(*[window(A, i) for i in range(6)], white, *[window(B, i) for i in range(6)])
    assert [i for i, cut in enumerate(found) if cut] == [7]


def test_a_white_page_is_a_scene_after_three_frames():
    page = np.full((180, 320, 3), 255, np.uint8)
    page[20:60, 30:200:7] = 0
    page[100:140, 60:250:5] = 0
    found = shots(*[window(A, i) for i in range(6)], *[page] * 8)
    assert [i for i, cut in enumerate(found) if cut] == [9]


def test_through_black_into_the_same_scene_is_no_cut_and_into_another_is_one():
    black = np.zeros((180, 320, 3), np.uint8)
    assert not any(shots(*[window(A, i) for i in range(6)], *[black] * 5, *[window(A, i) for i in range(6)]))
    found = shots(*[window(A, i) for i in range(6)], *[black] * 5, *[window(B, i) for i in range(6)])
    assert [i for i, cut in enumerate(found) if cut] == [11]


def test_a_slow_dissolve_ends_in_the_new_scene_without_a_series_of_cuts():
    mixed = [window(A).astype(float) * (1 - i / 20) + window(B).astype(float) * i / 20 for i in range(21)]
    pictures = [window(A)] * 6 + [m.astype(np.uint8) for m in mixed] + [window(B)] * 6
    assert sum(shots(*pictures)) <= 1


def test_another_size_is_a_cut():
    assert shots(window(A), window(A), window(A, size=(480, 270)), window(A, size=(480, 270))) == [
        False,
        False,
        True,
        False,
    ]


def test_the_sample_has_no_cut():
    import av
    from test_sample import WEBCAM

    detector = CutDetector()
    with av.open(str(WEBCAM)) as container:
        assert not any(detector.is_cut(f.to_ndarray(format="rgb24")) for f in container.decode(video=0))
