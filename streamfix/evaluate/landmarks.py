"""Where the features of a face lie, for the measures of their distances: LMD, AKD, TLME."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from streamfix._cv2 import cv2
from streamfix.errors import DependencyError, ModelError
from streamfix.evaluate.metrics import Picture
from streamfix.faces.detect import Detector
from streamfix.files import check_file
from streamfix.types import CROP_SIZE, Face, Image

Points = npt.NDArray[np.float64]
"""float64 (N, 2): x, y in pixels of the 512x512 crop."""

_RIM = 128
"""An aligned face fills its crop; detectors want to see around a face."""

_COUNTS = (68, 106)
"""Points of insightface's landmark models."""


class Landmarks(Protocol):
    """Points of the face in an aligned crop, float32 (512, 512, 3), RGB in [0, 1]; None where no face is found in it.

    name: for the foot of a table.
    """

    name: str

    def __call__(self, crop: Picture) -> Points | None:
        """See the class."""
        ...


class DetectorLandmarks:
    """The five points of a face detector: eyes, nose, corners of the mouth."""

    def __init__(self, detector: Detector) -> None:
        self.name = f"5 points of {detector.name}"
        self._detector = detector

    def __call__(self, crop: Picture) -> Points | None:
        """See Landmarks."""
        face = _face(self._detector, crop)
        return None if face is None else np.asarray(face.landmarks, np.float64)


class ModelLandmarks:
    """An insightface landmark model, such as 2d106det.onnx (106 points) or 1k3d68.onnx (68), in the box of a detector.

    Raises ModelError for a file that is none, DependencyError where insightface's landmark models cannot be loaded.
    """

    def __init__(self, path: Path, detector: Detector) -> None:
        check_file(path)
        try:
            from insightface.model_zoo.landmark import Landmark
        except ImportError as error:
            raise DependencyError(
                f"insightface's landmark models cannot be loaded ({error}); pip install onnx insightface"
            ) from error
        try:
            self._model: Any = Landmark(model_file=str(path))
            self._model.prepare(-1)
        except Exception as error:  # onnx, onnxruntime and insightface share no base of their exceptions
            raise ModelError(
                f"{path} is no landmark model that insightface can load ({type(error).__name__}); "
                "give one such as 2d106det.onnx"
            ) from error
        if self._model.lmk_num not in _COUNTS:  # insightface takes any vector for points, an embedding's too
            raise ModelError(
                f"{path} gives {self._model.lmk_num} points, and landmark models of insightface give "
                f"{' or '.join(map(str, _COUNTS))}; give one such as 2d106det.onnx"
            )
        self.name = f"{self._model.lmk_num} points of {path.name}"
        self._path, self._detector = path, detector

    def __call__(self, crop: Picture) -> Points | None:
        """See Landmarks."""
        from insightface.app.common import Face as InsightFace

        face = _face(self._detector, crop)
        if face is None:
            return None
        bgr = np.ascontiguousarray(_uint8(crop)[..., ::-1])
        try:
            points = self._model.get(bgr, InsightFace(bbox=face.box.astype(np.float64)))
        except Exception as error:
            raise ModelError(f"the landmark model {self._path} failed while it ran ({error})") from error
        return np.asarray(points, np.float64)[:, :2]


def load_landmarks(detector: Detector, model: Path | None = None) -> Landmarks:
    """Of a model's file, or the five points of the detector."""
    return DetectorLandmarks(detector) if model is None else ModelLandmarks(model, detector)


def landmark_distance(a: Points, b: Points) -> float:
    """Mean Euclidean distance of the points, in pixels of the 512x512 crop.

    LMD of VQFR (Gu et al. 2022, arXiv 2205.06803) and AKD of KEEP (Feng et al. 2024, arXiv 2408.05205); there with 98
    points and more, so that figures by other points do not compare.
    """
    return float(np.linalg.norm(a - b, axis=1).mean())


def _uint8(crop: Picture) -> Image:
    return np.asarray(np.rint(np.clip(crop, 0, 1) * 255), np.uint8)


def _face(detector: Detector, crop: Picture) -> Face | None:
    """The face nearest to the middle of the crop, in its coordinates."""
    wide = cv2.copyMakeBorder(_uint8(crop), _RIM, _RIM, _RIM, _RIM, cv2.BORDER_REPLICATE)
    found = detector.detect(np.asarray(wide, np.uint8))
    middle = (CROP_SIZE - 1) / 2
    faces = [Face(box=f.box - np.float32(_RIM), landmarks=f.landmarks - np.float32(_RIM), score=f.score) for f in found]
    return min(faces, key=lambda f: float(np.hypot(*(f.landmarks.mean(axis=0) - middle))), default=None)
