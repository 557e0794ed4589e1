"""Who somebody is: a face embedding that the user brings, as an ONNX file of the kind that ArcFace made common."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from streamfix._cv2 import cv2
from streamfix.errors import ModelError, UsageError
from streamfix.faces._onnx import open_session, told
from streamfix.faces._refine import close_up
from streamfix.faces.align import ARCFACE_BLUR, ARCFACE_SIZE, arcface_matrix, fit_similarity, then
from streamfix.types import FloatArray, Image

NORMS = {"arcface": ((0.5,) * 3, (0.5,) * 3), "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
"""Input scalings of face embeddings by name: mean and standard deviation of RGB in [0, 1]."""


def check_norm(name: str) -> None:
    """UsageError for an input scaling that there is not."""
    if name not in NORMS:
        raise UsageError(f"there is no input scaling called {name!r}; choose one of: {', '.join(NORMS)}")


Embedding = npt.NDArray[np.float32]
"""float32 (D,), of unit length: the cosine of two of them is their scalar product."""

_TWICE = np.array([[2.0, 0.0, 0.5], [0.0, 2.0, 0.5]])
_TWICE.flags.writeable = False


class FaceEmbedding:
    """Face embedding by an ONNX model.

    path: ONNX with input (1 or any, 3, 112, 112), RGB, ArcFace alignment, and output (1, D). norm: a key of NORMS. threads:
    of the CPU, None for the runtime's default. Raises UsageError for another norm, ModelError for a file that is no such
    network.
    """

    def __init__(self, path: Path, *, norm: str = "arcface", threads: int | None = None) -> None:
        check_norm(norm)
        self._session = open_session(path, what="face embedding", threads=threads)
        self.path = path
        self._input = self._session.get_inputs()[0].name
        self._mean, self._std = (np.array(v, np.float32) for v in NORMS[norm])
        self._matrix = arcface_matrix()
        shape = self._raw(np.zeros((ARCFACE_SIZE, ARCFACE_SIZE, 3), np.float32)).shape
        if len(shape) != 2 or shape[0] != 1 or shape[1] < 2:
            raise ModelError(f"{path} gives {shape} for one face; a face embedding gives (1, D)")

    def __call__(self, crop: npt.NDArray[np.float32]) -> Embedding:
        """Of an aligned crop, float32 (512, 512, 3), RGB in [0, 1]."""
        small = cv2.GaussianBlur(crop, (0, 0), ARCFACE_BLUR)  # 512 -> 112 without aliasing
        size = (ARCFACE_SIZE, ARCFACE_SIZE)
        face = cv2.warpAffine(small, self._matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        vector = self._unit(np.asarray(face, np.float32))
        if vector is None:
            raise ModelError(
                f"the face embedding {self.path} gives no finite vector; is its input scaling another one?"
            )
        return vector

    def of_face(self, image: Image, landmarks: FloatArray) -> Embedding | None:
        """Of the face with these landmarks (5, 2) in an upright RGB picture; None where they are no face, or it gives no vector."""
        try:
            to_crop = fit_similarity(landmarks)
        except ValueError:
            return None
        # at twice the size and halved, so that faces larger than the input are averaged and not skipped through
        twice = close_up(image, then(then(to_crop, self._matrix), _TWICE), size=2 * ARCFACE_SIZE)
        face = cv2.resize(twice, (ARCFACE_SIZE, ARCFACE_SIZE), interpolation=cv2.INTER_AREA)
        return self._unit(np.asarray(face, np.float32) / np.float32(255))

    def _unit(self, face: npt.NDArray[np.float32]) -> Embedding | None:
        vector = np.asarray(self._raw(face)[0], np.float32)
        norm = float(np.linalg.norm(vector))
        return vector / np.float32(norm) if norm > 0 and np.isfinite(norm) else None

    def _raw(self, face: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """face: float32 (112, 112, 3), RGB in [0, 1]."""
        tensor = ((face - self._mean) / self._std).transpose(2, 0, 1)[None]
        try:
            return np.asarray(self._session.run(None, {self._input: np.ascontiguousarray(tensor)})[0])
        except Exception as error:
            raise ModelError(
                f"{self.path} does not run on (1, 3, {ARCFACE_SIZE}, {ARCFACE_SIZE}) pictures of a face ({told(error)})"
            ) from error
