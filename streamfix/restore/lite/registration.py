"""Where the answer to the frame before lies now: alignment holds the head, not the mouth, the eyes and a turn.

What is carried from frame to frame is a state, float32 (B, 4, H, W): the answer, in [-1, 1], and the brightness of the crops
seen lately, laid over each other where the answer is. Each new crop is compared with that mean, not with the crop before:
codecs and noise shift features by fractions of a pixel, back and forth. A sample of zeros is none.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from streamfix.restore.color_fix import LUMA

_UNSURE, _SURE = 2.0, 5.5
"""Pixels of displacement up to which nothing is moved, and from which all of it is made up for at once. What is less than the
former is more often a codec's doing than the face's, and every move costs sharpness; real motion adds up until it counts."""
_SMOOTH = 4.0
"""Sigma in pixels of the half-size grid over which displacements are judged together."""
_CUBIC = 0.9
"""OpenCV's cubic (a = -0.75) sharpens, and frame after frame that grows into dots; with some linear it keeps detail as it is, at
a third of Lanczos' time."""
_KEPT = 0.85
"""Share of what was seen before in the mean of what was seen, where it is alike."""
_UNLIKE = 0.3
"""Difference of 8x8 patches in [-1, 1] from which the mean begins anew."""


def registered(states: Tensor, now: Tensor) -> Tensor:
    """The states of the frames before, moved along dense optical flow to where each face is now.

    states: (B, 4, H, W). now: (B, 3, H, W) in [-1, 1], the crops of this frame. Returns (B, 4, H, W); computed on the CPU.
    """
    luma = _luma(now)
    moved = [_moved(*pair) if bool(pair[0].any()) else pair[0] for pair in zip(states, luma, strict=True)]
    return torch.stack(moved).contiguous(memory_format=torch.channels_last)


def remembered(answers: Tensor, now: Tensor, moved: Tensor | None) -> Tensor:
    """The states to carry on: (B, 4, H, W).

    answers, now: (B, 3, H, W), this frame's. moved: what `registered` gave for it, or None for faces that are all new.
    """
    luma = _luma(now)
    if moved is not None:
        change = moved[:, 3:] - luma
        unlike = F.avg_pool2d(change, 8).abs()
        keep = _KEPT * (2 - 2 * unlike / _UNLIKE).clamp(0, 1) * moved.flatten(1).any(1).view(-1, 1, 1, 1)
        luma = luma + F.interpolate(keep, scale_factor=8.0, mode="bilinear", align_corners=False) * change
    return torch.cat((answers, luma.to(answers)), dim=1)


def _moved(state: Tensor, luma: Tensor) -> Tensor:
    # DIS (Kroeger et al., ECCV 2016) at half size: noise and blocks count less, and it takes 3 ms. Without propagation
    # between patches no answer depends on how threads share the rows
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    dis.setUseSpatialPropagation(False)
    now, seen = (_half(t) for t in (luma, state[3:]))
    flow = 2 * np.asarray(dis.calc(now, seen, None), np.float32)  # type: ignore[call-overload]
    distance = np.linalg.norm(cv2.GaussianBlur(flow, (0, 0), _SMOOTH), axis=-1, keepdims=True)
    flow *= np.clip((distance - _UNSURE) / (_SURE - _UNSURE), 0, 1)
    if not flow.any():
        return state
    picture = state.permute(1, 2, 0).cpu().contiguous().numpy()
    height, width = picture.shape[:2]
    shift = cv2.resize(flow, (width, height), interpolation=cv2.INTER_LINEAR)
    x = shift[..., 0] + np.arange(width, dtype=np.float32)
    y = shift[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    cubic, linear = (
        cv2.remap(picture, x, y, how, borderMode=cv2.BORDER_REPLICATE) for how in (cv2.INTER_CUBIC, cv2.INTER_LINEAR)
    )
    moved = cv2.addWeighted(cubic, _CUBIC, linear, 1 - _CUBIC, 0)
    return torch.from_numpy(moved).permute(2, 0, 1).to(state)


def _luma(crops: Tensor) -> Tensor:
    return torch.einsum("bchw,c->bhw", crops.float(), crops.new_tensor(LUMA, dtype=torch.float32))[:, None]


def _half(luma: Tensor) -> np.ndarray:
    half = F.avg_pool2d(luma, 2)[0].cpu().numpy()
    return np.clip((half + 1) * 127.5, 0, 255).round().astype(np.uint8)
