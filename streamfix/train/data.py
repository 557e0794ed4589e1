"""Folders of aligned faces as training pairs; sample number i of a seed is always the same pair, so runs can resume.

Three layouts are told apart by the size of the picture: 512x512 is the FFHQ template itself; 640x640 is the template
with a margin of 64 pixels for motion; 400x400 is the template scaled to 320 with a margin of 40. Other sizes are
refused.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from streamfix.errors import InputError, StreamfixError
from streamfix.train.codecs import Clip, Picture, Rng
from streamfix.train.degradations import Mixture
from streamfix.train.layouts import LAYOUTS
from streamfix.train.motion import Motion
from streamfix.types import CROP_SIZE

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
_MARGIN = 32
"""Pixels around a training window that are degraded along with it, so that blur sees real surroundings."""


def face_files(folder: Path) -> list[Path]:
    """The pictures of a folder in a fixed order; InputError when there are none."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; check the path")
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in _SUFFIXES)
    if not files:
        raise InputError(f"{folder} holds no pictures of aligned faces (jpg, png or webp)")
    return files


def checked_faces(folder: Path) -> list[Path]:
    """The same, each of a known layout by its header; InputError else.

    A training draws at random, in other processes: what read_face says would come late, within their traceback.
    """
    files = face_files(folder)
    for file in files:
        try:
            with Image.open(file) as picture:
                size = picture.size
        except (OSError, Image.DecompressionBombError) as error:
            raise _unreadable(file) from error
        _check_layout(file, *size)
    return files


def _weight(name: str, draw: Mapping[str, float]) -> float:
    return next((weight for pattern, weight in draw.items() if fnmatch.fnmatchcase(name, pattern)), 1.0)


def read_face(path: Path) -> npt.NDArray[np.uint8]:
    """RGB uint8 of one of the known layouts; InputError else."""
    bgr = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    if bgr is None:
        raise _unreadable(path)
    _check_layout(path, bgr.shape[1], bgr.shape[0])
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def _unreadable(path: Path) -> InputError:
    return InputError(f"{path} is not a picture that can be read; remove or replace it")


def _check_layout(path: Path, width: int, height: int) -> None:
    if width != height or width not in LAYOUTS:
        raise InputError(f"{path} is {width}x{height}; aligned faces are 512x512, 640x640 or 400x400")


def template_crop(picture: npt.NDArray[np.uint8]) -> Picture:
    """The 512x512 face of a picture in any of the layouts: float32 in [0, 1]."""
    scale, margin = LAYOUTS[picture.shape[0]]
    inner = picture[margin : margin + round(CROP_SIZE * scale), margin : margin + round(CROP_SIZE * scale)]
    if scale != 1.0:
        inner = np.asarray(cv2.resize(inner, (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_CUBIC), np.uint8)
    return inner.astype(np.float32) / np.float32(255)


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How a clean face is varied before it is degraded.

    turn: degrees, zoom: log of a factor, shift: pixels, gamma: log, tint: relative gain of a channel; all are sigmas of
    normal distributions. They stand for what alignment and light leave over. soft: chance with which a file smaller
    than the template is used when drawn, because upscaled truth teaches softness. bend: pixels, a sigma of what moves
    features apart, smoothly over about 100 pixels. compose: chance that some parts of the face are another's. These two
    make faces that nobody has, against learning the training set by heart.
    """

    turn: float = 2.0
    zoom: float = 0.03
    shift: float = 5.0
    gamma: float = 0.12
    tint: float = 0.03
    soft: float = 0.5
    bend: float = 0.0
    compose: float = 0.0

    def calmed(self, share: float) -> Augmentation:
        """With this share of what bends and composes faces gone."""
        return replace(self, bend=self.bend * (1 - share), compose=self.compose * (1 - share))


class Plan(NamedTuple):
    """What a batch is made of: `samples` clips of `frames` frames, cut to size x size, of faces `calmed` by `calm`."""

    size: int
    samples: int
    frames: int = 1
    calm: float = 0.0


class Item(NamedTuple):
    """A clip of a batch, by its number; see Plan."""

    number: int
    size: int
    frames: int = 1
    calm: float = 0.0


class FacePairs(Dataset[dict[str, Tensor]]):
    """Item (i, size, count, calm): clip i of this seed, cut to size x size, count frames long.

    Gives `clean` and `degraded`, float32 (count, 3, size, size) in [-1, 1], `origin`, float32 (2,), y and x of the
    window's corner in the template, and `cut`, float32 (), 1 where the frames before the last show another face.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        mixture: Mixture | None = None,
        augmentation: Augmentation | None = None,
        motion: Motion | None = None,
        draw: Mapping[str, float] | None = None,
    ) -> None:
        self.files = checked_faces(folder)
        self.seed = seed
        weights = np.array([_weight(file.name, draw or {}) for file in self.files])
        if not weights.any():
            raise InputError(f"no face of {folder} would ever be drawn; give some of its files a weight in [draw]")
        self._chances = weights / weights.sum()
        self.mixture = mixture or Mixture()
        self.augmentation = augmentation or Augmentation()
        self.motion = motion or Motion()
        self._pictures: dict[int, npt.NDArray[np.uint8]] = {}

    def choose(self, rng: Rng, scale: Callable[[int], float]) -> int:
        """Number of the file to draw next; scale: of the template in each, as LAYOUTS has it."""
        index = self._drawn(rng)
        for _ in range(8):
            if scale(index) == 1.0 or rng.random() < self.augmentation.soft:
                break
            index = self._drawn(rng)
        return index

    def _picture(self, rng: Rng) -> npt.NDArray[np.uint8]:
        return self._read(self.choose(rng, lambda index: LAYOUTS[self._read(index).shape[0]][0]))

    def _drawn(self, rng: Rng) -> int:
        return int(rng.choice(len(self.files), p=self._chances))

    def _read(self, index: int) -> npt.NDArray[np.uint8]:
        # kept decoded: 2,000 faces of 640x640 are 2.4 GB, and decoding costs as much as degrading
        if index not in self._pictures:
            self._pictures[index] = read_face(self.files[index])
        return self._pictures[index]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        index, size, count, calm = Item(*item)
        rng = np.random.default_rng([self.seed, index])
        picture, augmentation = self._picture(rng), self.augmentation.calmed(calm)
        # what moves needs real surroundings, even around a whole crop
        edge = _MARGIN if count > 1 else min(_MARGIN, (CROP_SIZE - size) // 2)
        y, x = (int(rng.integers(0, CROP_SIZE - size + 1)) for _ in range(2))
        inside = min(edge, (CROP_SIZE - size) // 2)
        y, x = (min(max(v, inside), CROP_SIZE - size - inside) for v in (y, x))
        corner, side = (y - edge, x - edge), size + 2 * edge
        window = self._clean(picture, corner, side, rng, augmentation)
        cut = count > 1 and rng.random() < self.motion.cut
        before = self._clean(self._picture(rng), corner, side, rng, augmentation) if cut else window
        poses = self.motion.draw(count, rng) if count > 1 else []
        stills = [before] * (count - 1) + [window]
        clip = [pose.face(w) for pose, w in zip(poses, stills, strict=True)] if poses else stills
        clean, degraded = self.mixture.degrade(clip, rng, poses)
        inner = slice(edge, edge + size)
        return {
            "clean": _tensor([f[inner, inner] for f in clean]),
            "degraded": _tensor([f[inner, inner] for f in degraded]),
            "origin": torch.tensor([y, x], dtype=torch.float32),
            "cut": torch.tensor(float(cut)),
        }

    def _clean(
        self, picture: npt.NDArray[np.uint8], corner: tuple[int, int], size: int, rng: Rng, augmentation: Augmentation
    ) -> Picture:
        def face(picture: npt.NDArray[np.uint8]) -> Picture:
            scale, margin = LAYOUTS[picture.shape[0]]
            return augmented(picture, corner, size, rng, augmentation, scale=scale, margin=margin)

        clean = face(picture)
        if augmentation.compose and rng.random() < augmentation.compose:
            return composed(clean, face(self._picture(rng)), rng)
        return clean


def composed(face: Picture, other: Picture, rng: Rng) -> Picture:
    """One face in places, the other, in its colours, in the rest; float32 (H, W, 3) in [0, 1], both of the same template."""
    height, width = face.shape[:2]
    where = cv2.resize(rng.normal(0, 1, (4, 4)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    share = np.clip(0.5 + where * (height / 64), 0, 1)[..., None]  # seams of some 20 pixels
    (mean, spread), (its_mean, its_spread) = (cv2.meanStdDev(f) for f in (face, other))
    gain = np.clip((spread + 0.02) / (its_spread + 0.02), 0.7, 1.4)
    toned = cv2.transform(other, np.hstack([np.diag(gain[:, 0]), mean - gain * its_mean]).astype(np.float32))
    return np.asarray(np.clip(face + share * (toned - face), 0, 1), np.float32)


def augmented(
    picture: npt.NDArray[np.uint8],
    corner: tuple[int, int],
    size: int,
    rng: Rng,
    a: Augmentation,
    *,
    scale: float,
    margin: int,
    template: int = CROP_SIZE,
) -> Picture:
    """A window of `size` pixels of a face of `template` pixels, varied: float32 (size, size, 3) in [0, 1].

    corner: y and x of the window in the template. scale, margin: of the template in the picture.
    """
    turn, zoom = math.radians(rng.normal(0, a.turn)), scale * math.exp(rng.normal(0, a.zoom))
    shift = rng.normal(0, a.shift, 2) * scale * (template / CROP_SIZE)
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    # window pixel -> template (about its centre) -> file, pixel centres at integers
    half = (template - 1) / 2
    c, s = math.cos(turn) * zoom, math.sin(turn) * zoom
    linear = np.array([[c * mirror, -s], [s * mirror, c]])
    centre = np.array([(template * scale - 1) / 2 + margin] * 2) + shift
    offset = centre + linear @ (np.array([corner[1], corner[0]]) - half)
    matrix = np.hstack([linear, offset[:, None]])
    if a.bend:
        nodes = rng.normal(0, a.bend * scale, (size // 100 + 2, size // 100 + 2, 2)).astype(np.float32)
        at = cv2.resize(nodes, (size, size), interpolation=cv2.INTER_CUBIC)
        along, across = matrix[:, :2].T.astype(np.float32)[:, None] * np.arange(size, dtype=np.float32)[:, None]
        at += along + (across + matrix[:, 2].astype(np.float32))[:, None]
        warped = cv2.remap(picture, at[..., 0], at[..., 1], cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REFLECT_101)
    else:
        warped = cv2.warpAffine(
            picture,
            matrix,
            (size, size),
            flags=cv2.INTER_LANCZOS4 | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        )
    gain = np.exp(rng.normal(0, a.tint, 3)).astype(np.float32)
    gamma = np.float32(math.exp(rng.normal(0, a.gamma)))
    curve = np.clip(np.power(np.arange(256, dtype=np.float32) / 255, gamma)[:, None] * gain, 0, 1)
    return np.asarray(cv2.LUT(warped, curve[None]), np.float32)


class SmallFaces(Dataset[dict[str, Tensor]]):
    """Item (i, size, _): clean face i of this seed, scaled to a template of `face` pixels, cut to size x size.

    Gives `clean`, float32 (3, size, size) in [-1, 1]. The pictures are kept in memory at that scale.
    """

    def __init__(self, folder: Path, *, seed: int, face: int, augmentation: Augmentation | None = None) -> None:
        self.files = checked_faces(folder)
        self.seed, self.face = seed, face
        self.augmentation = augmentation or Augmentation()
        self._pictures: dict[int, npt.NDArray[np.uint8]] = {}

    def picture(self, index: int) -> npt.NDArray[np.uint8]:
        """A file with the template at `face` pixels in its middle, and as much margin as the file has."""
        if index not in self._pictures:
            picture = read_face(self.files[index])
            scale, margin = LAYOUTS[picture.shape[0]]
            side = self.face + 2 * round(margin / scale * self.face / CROP_SIZE)
            how = cv2.INTER_AREA if side < picture.shape[0] else cv2.INTER_CUBIC
            self._pictures[index] = np.asarray(cv2.resize(picture, (side, side), interpolation=how), np.uint8)
        return self._pictures[index]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        index, size, *_ = item
        rng = np.random.default_rng([self.seed, index])
        picture = self.picture(int(rng.integers(len(self.files))))
        y, x = (int(v) for v in rng.integers(0, self.face - size + 1, 2))
        margin = (picture.shape[0] - self.face) // 2
        window = augmented(picture, (y, x), size, rng, self.augmentation, scale=1.0, margin=margin, template=self.face)
        return {"clean": _tensor([window])[0]}


def _tensor(clip: Clip) -> Tensor:
    return torch.from_numpy(np.stack([f.transpose(2, 0, 1) for f in clip])).mul_(2).sub_(1)


class Batches(Sampler[list[Item]]):
    """Endless batches of items, numbered on.

    `plan(batch number)` gives what each is made of when it is due. share: (k, n), every n-th sample of a batch from the
    k-th.
    """

    def __init__(
        self,
        plan: Callable[[int], Plan],
        *,
        batch: int = 0,
        sample: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self._plan, self._batch, self._sample, self._share = plan, batch, sample, share

    def __iter__(self) -> Iterator[list[Item]]:
        batch, sample = self._batch, self._sample
        while True:
            size, count, frames, calm = self._plan(batch)
            yield [Item(sample + i, size, frames, calm) for i in range(self._share[0], count, self._share[1])]
            batch, sample = batch + 1, sample + count


def _single_thread(_: int) -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def loader(
    pairs: Dataset[dict[str, Tensor]], batches: Iterable[list[Item]], *, workers: int
) -> Iterator[dict[str, Tensor]]:
    """Batches as dicts of stacked tensors, prepared by `workers` processes (0: in this one). Raises what `pairs` does."""
    # spawned, not forked: a fork copies the locks of OpenCV and OpenMP threads, and then waits for them for ever
    options: dict[str, Any] = {"prefetch_factor": 4, "multiprocessing_context": "spawn"} if workers else {}
    try:
        yield from DataLoader(
            pairs, batch_sampler=batches, num_workers=workers, worker_init_fn=_single_thread, **options
        )
    except StreamfixError as error:
        kind = type(error)  # torch has put the worker's traceback before the sentence
        raise kind(str(error).rpartition(f"{kind.__name__}: ")[2].strip()) from None
