"""Which pixels are face: a face parsing network that the user brings, as an ONNX file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from streamfix._cv2 import cv2
from streamfix.errors import ModelError
from streamfix.faces._onnx import open_session, told
from streamfix.faces.embedding import NORMS
from streamfix.types import CROP_SIZE

CLASSES = 19
FACE = tuple(range(1, 14))
"""Of CelebAMask-HQ (Lee et al., CVPR 2020) in the order of face-parsing.PyTorch: skin, brows, eyes, glasses, ears, earrings,
nose, mouth and lips. Not background (0), neck (14), necklace (15), cloth (16), hair (17) and hat (18). The same choice as
in facexlib, with which GFPGAN and CodeFormer paste their faces."""
FEATHER = 8.0
"""Sigma in crop pixels by which the edge of the mask is softened."""


class FaceParser:
    """Face parsing by an ONNX model: BiSeNet trained on CelebAMask-HQ, in any of its exports.

    path: ONNX with input (1 or any, 3, S, S), RGB in ImageNet's scaling, and first output (1, 19, S', S'), a score per
    class. threads: of the CPU, None for the runtime's default. Raises ModelError for a file that is no such network.
    """

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        self.path = path
        self._session = open_session(path, what="face parsing network", threads=threads)
        first = self._session.get_inputs()[0]
        self._input = first.name
        side = first.shape[-1] if len(first.shape) == 4 else None
        self._side = side if isinstance(side, int) else CROP_SIZE
        self._mean, self._std = (np.array(v, np.float32) for v in NORMS["imagenet"])
        shape = self._scores(np.zeros((CROP_SIZE, CROP_SIZE, 3), np.float32)).shape
        if len(shape) != 4 or shape[:2] != (1, CLASSES):
            raise ModelError(f"{path} gives {shape} for one face; a face parsing network gives (1, {CLASSES}, H, W)")

    def __call__(self, crop: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Of an aligned crop, float32 (512, 512, 3), RGB in [0, 1]: float32 (512, 512), 1 on the face, 0 elsewhere."""
        classes = self._scores(crop)[0].argmax(axis=0)
        face = np.isin(classes, FACE).astype(np.float32)
        whole = cv2.resize(face, (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_LINEAR)
        return np.asarray(cv2.GaussianBlur(whole, (0, 0), FEATHER), np.float32)

    def _scores(self, crop: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if crop.shape[0] != self._side:
            crop = np.asarray(cv2.resize(crop, (self._side, self._side), interpolation=cv2.INTER_AREA), np.float32)
        tensor = ((crop - self._mean) / self._std).transpose(2, 0, 1)[None]
        try:
            return np.asarray(self._session.run(None, {self._input: np.ascontiguousarray(tensor)})[0])
        except Exception as error:
            raise ModelError(
                f"{self.path} does not run on (1, 3, {self._side}, {self._side}) pictures of a face ({told(error)})"
            ) from error
