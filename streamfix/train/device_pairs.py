"""Faces varied and degraded in whole batches on the device that trains: the published recipes at the pace of a GPU.

What FacePairs does one by one with OpenCV takes a core 30 to 40 ms a face, and a GPU trains on hundreds a second. Pairs
agree with its kinds paper, heavy, mild and none, to within what a bicubic kernel in place of Lanczos' and a JPEG codec in
floating point change. What real encoders do (footage) is theirs to do.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from streamfix.media.color import BORDER_RGB
from streamfix.train.codecs import Rng
from streamfix.train.data import Augmentation, FacePairs, read_face
from streamfix.train.degradations import HEAVY, MILD, PAPER, beyond_the_frame, scratches
from streamfix.train.device_degradations import YCC, published
from streamfix.train.layouts import LAYOUTS
from streamfix.types import CROP_SIZE

_SIDE = max(LAYOUTS)
_KINDS = (PAPER, HEAVY, MILD, MILD)  # the last is not degraded at all


class DevicePairs:
    """All pictures of `pairs` in the memory of a device, 1.2 MB each, and batches of pairs made of them there."""

    def __init__(self, pairs: FacePairs, device: torch.device) -> None:
        self._pairs, self._device = pairs, device
        self._pictures = torch.zeros(len(pairs), 3, _SIDE, _SIDE, dtype=torch.uint8, device=device)
        sides = []
        with ThreadPoolExecutor() as pool:
            for target, picture in zip(self._pictures, pool.map(read_face, pairs.files), strict=True):
                sides.append(side := picture.shape[0])
                target[:, :side, :side] = torch.from_numpy(picture).permute(2, 0, 1)
        self._sides = np.array(sides)
        self._scales, self._margins = np.array([LAYOUTS[side] for side in sides]).T

    def batch(self, seed: int, size: int, count: int, *, calm: float = 0.0) -> dict[str, Tensor]:
        """The batch of a seed, laid out as `count` single frames of FacePairs, cut to size x size; calm: see data.Plan."""
        rng = np.random.default_rng([self._pairs.seed, seed])
        noise = torch.Generator(self._device).manual_seed(int(rng.integers(2**62)))
        clean, degraded = self._degraded(self._clean(count, rng, self._pairs.augmentation.calmed(calm)), rng, noise)
        corners = rng.integers(0, CROP_SIZE - size + 1, (count, 2))
        windows = (
            torch.stack([image[:, y : y + size, x : x + size] for image, (y, x) in zip(images, corners, strict=True)])
            for images in (clean, degraded)
        )
        clean, degraded = (window.mul_(2).sub_(1)[:, None] for window in windows)
        none = torch.zeros(count, device=self._device)
        return {"clean": clean, "degraded": degraded, "origin": self._tensor(corners), "cut": none}

    def _tensor(self, values: npt.ArrayLike) -> Tensor:
        return torch.from_numpy(np.asarray(values, np.float32)).to(self._device)

    def _clean(self, count: int, rng: Rng, a: Augmentation) -> Tensor:
        faces = self._faces(count, rng, a)
        mixed = np.flatnonzero(rng.random(count) < a.compose)
        if len(mixed):
            faces[mixed] = composed(faces[mixed], self._faces(len(mixed), rng, a), rng)
        return faces

    def _faces(self, count: int, rng: Rng, a: Augmentation) -> Tensor:
        """(count, 3, 512, 512) in [0, 1]: faces drawn, and varied as data.augmented does."""
        which = np.array([self._pairs.choose(rng, self._scales.__getitem__) for _ in range(count)])
        scale, margin, side = (v[which] for v in (self._scales, self._margins, self._sides))
        turn, zoom = np.radians(rng.normal(0, a.turn, count)), scale * np.exp(rng.normal(0, a.zoom, count))
        shift = rng.normal(0, a.shift, (count, 2)) * scale[:, None]
        mirror = np.where(rng.random(count) < 0.5, -1.0, 1.0)
        c, s = np.cos(turn) * zoom, np.sin(turn) * zoom
        across, down = (
            self._tensor(v)[:, None, None] for v in (np.stack((c * mirror, s * mirror), -1), np.stack((-s, c), -1))
        )
        centre = self._tensor(((CROP_SIZE * scale - 1) / 2 + margin)[:, None] + shift)[:, None, None]
        line = torch.arange(CROP_SIZE, device=self._device) - (CROP_SIZE - 1) / 2
        at = centre + across * line[None, None, :, None] + down * line[None, :, None, None]
        if a.bend:
            nodes = rng.normal(0, 1, (count, 2, *(CROP_SIZE // 100 + 2,) * 2)) * (a.bend * scale)[:, None, None, None]
            at = at + F.interpolate(self._tensor(nodes), (CROP_SIZE, CROP_SIZE), mode="bicubic").permute(0, 2, 3, 1)
        last = self._tensor(side - 1).view(-1, 1, 1, 1)
        at = last - (last - at.abs()).abs()  # mirrored at the edges
        pictures = self._pictures[torch.from_numpy(which).to(self._device)].float().div_(255)
        x = F.grid_sample(pictures, at * (2 / (_SIDE - 1)) - 1, "bicubic", "border", align_corners=True).clamp_(0, 1)
        gamma, gain = np.exp(rng.normal(0, a.gamma, (count, 1))), np.exp(rng.normal(0, a.tint, (count, 3)))
        return x.pow(self._tensor(gamma)[..., None, None]).mul(self._tensor(gain)[..., None, None]).clamp_(0, 1)

    def _degraded(self, clean: Tensor, rng: Rng, noise: torch.Generator) -> tuple[Tensor, Tensor]:
        # the truth too: greyscale and borders belong to it (see Mixture.degrade)
        mixture, count = self._pairs.mixture, len(clean)
        weights = np.array([mixture.paper, mixture.heavy, mixture.mild, mixture.none])
        kinds = rng.choice(len(weights), count, p=weights / weights.sum())
        grey = rng.random(count) < mixture.grey
        luma = (clean * clean.new_tensor(YCC[0]).view(1, 3, 1, 1)).sum(1, keepdim=True)
        clean = torch.where(self._chosen(grey), luma, clean)
        seen = clean.clone()
        for i in np.flatnonzero(grey & (rng.random(count) < mixture.old)):
            black, white = self._scratched(rng)
            seen[i] = black + (white - black) * seen[i]
        degraded = torch.where(self._chosen(kinds == 3), seen, published([_KINDS[k] for k in kinds], seen, rng, noise))
        for i in np.flatnonzero(rng.random(count) < mixture.border):
            outside = torch.from_numpy(beyond_the_frame((CROP_SIZE, CROP_SIZE), rng)).to(self._device)
            border = clean.new_tensor(BORDER_RGB).view(3, 1, 1)
            for image in (clean[i], degraded[i]):
                image.copy_(torch.where(outside, border, image))
        return clean, degraded

    def _chosen(self, samples: npt.NDArray[np.bool_]) -> Tensor:
        return torch.from_numpy(samples).to(self._device).view(-1, 1, 1, 1)

    def _scratched(self, rng: Rng) -> tuple[Tensor, Tensor]:
        # what becomes of black and of white tells what becomes of everything between
        state = rng.bit_generator.state
        both = []
        for tone in (0, 1):
            rng.bit_generator.state = state
            both.append(
                self._tensor(scratches(np.full((CROP_SIZE, CROP_SIZE, 3), tone, np.float32), rng)).permute(2, 0, 1)
            )
        return both[0], both[1]


def composed(face: Tensor, other: Tensor, rng: Rng) -> Tensor:
    """Pairs (B, 3, H, W) in [0, 1]: one face in places, the other, in its colours, in the rest (see data.composed)."""
    nodes = torch.from_numpy(rng.normal(0, 1, (len(face), 1, 4, 4)).astype(np.float32)).to(face.device)
    where = F.interpolate(nodes, face.shape[-2:], mode="bicubic")
    share = (0.5 + where * (face.shape[-2] / 64)).clamp(0, 1)
    (spread, mean), (its_spread, its_mean) = (torch.std_mean(f, (2, 3), keepdim=True) for f in (face, other))
    gain = ((spread + 0.02) / (its_spread + 0.02)).clamp(0.7, 1.4)
    return (face + share * ((other - its_mean) * gain + mean - face)).clamp_(0, 1)
