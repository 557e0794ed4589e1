"""Faces in one picture: the Detector protocol, the embedded backend and the insightface backend."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from streamfix import models
from streamfix.errors import DependencyError, ModelError, UsageError
from streamfix.faces._candidates import Candidates, joined, merged
from streamfix.faces._refine import refine
from streamfix.faces._retinaface import RetinaFaceNet
from streamfix.faces._views import views
from streamfix.faces.align import ramp
from streamfix.faces.embedding import FaceEmbedding, check_norm
from streamfix.types import Face, Image

_log = logging.getLogger(__name__)

LOWEST_SCORE = 0.3
"""Detectors return faces down to this score; what may start or continue a track is the tracker's decision."""
DEFAULT_PACK = "buffalo_l"
_MOST_FACES = 128
"""Of one picture, so that memory is bounded: about 12 MB each while it is restored. A choir has fewer."""
_MOST_IN_VAIN = 16
"""Weak proposals of one picture that may turn out to be no face, or one that is known, until the rest is not looked at."""
_PROPOSAL_SCORE = 0.05
_UNSEEN = 0.2
_SAME_PLACE = 0.25
_LARGE = (40.0, 80.0)
"""Canvas pixels: below the first a weak proposal is what a face gets, from the second on it is a reason for doubt."""


class Detector(Protocol):
    """Finds faces. name: as `load_detector` takes it."""

    name: str

    def detect(self, image: Image) -> list[Face]:
        """Faces of one upright RGB picture (H, W, 3), best first, in its coordinates (pixel centres at integers)."""


def load_detector(
    spec: str = "auto", *, threads: int | None = None, embedding: Path | None = None, embedding_norm: str = "arcface"
) -> Detector:
    """The detector of that name.

    spec: "retinaface" (embedded, no download), "insightface" (the pack buffalo_l), "insightface:NAME" (a pack that
    `streamfix models pull NAME` brought), "insightface:DIRECTORY" (any folder with an SCRFD *.onnx and, for embeddings, an
    ArcFace one), "auto" (insightface where buffalo_l is installed, else retinaface). threads: CPU threads, None for
    the runtime's default. embedding: an ONNX file that tells people apart, whatever the detector, and embedding_norm
    its input scaling (see embedding.py). Raises UsageError for an unknown name of either and for a scaling of no embedding,
    ModelError for missing or broken weights.
    """
    check_norm(embedding_norm)
    if embedding is None and embedding_norm != "arcface":
        raise UsageError(
            f"the input scaling {embedding_norm} is that of a face embedding; name its file with --embedding"
        )
    detector = _load_detector(spec, threads)
    if embedding is None:
        return detector
    return RecognisingDetector(detector, FaceEmbedding(embedding, norm=embedding_norm, threads=threads))


def _load_detector(spec: str, threads: int | None) -> Detector:
    kind, _, rest = spec.partition(":")
    if spec == "auto":
        kind = "insightface" if models.find(DEFAULT_PACK).present else "retinaface"
    if kind == "retinaface" and not rest:
        return EmbeddedDetector(threads=threads)
    if kind == "insightface":
        return InsightFaceDetector(rest or DEFAULT_PACK, threads=threads)
    raise UsageError(
        f"there is no detector {spec!r}; choose auto, retinaface, insightface, insightface:PACK or insightface:DIRECTORY"
    )


def detect_upright(detector: Detector, image: Image, rotation: int) -> list[Face]:
    """Faces of a picture as stored, found in the upright picture and given in stored coordinates.

    image: RGB as stored. rotation: degrees (0, 90, 180, 270) that turn it clockwise into an upright one. Landmarks keep
    their order (the eye on the left of the *upright* picture comes first).
    """
    if rotation % 90:
        raise ValueError(f"a picture is turned by quarter turns, got {rotation = }")
    turns = rotation // 90 % 4
    if turns == 0:
        return detector.detect(image)
    height, width = image.shape[:2]
    upright = np.ascontiguousarray(np.rot90(image, -turns))
    result = []
    for face in detector.detect(upright):
        corners = _stored(face.box.reshape(2, 2), turns, width, height)
        result.append(
            Face(
                box=np.concatenate([corners.min(axis=0), corners.max(axis=0)]).astype(np.float32),
                landmarks=_stored(face.landmarks, turns, width, height),
                score=face.score,
                embedding=face.embedding,
            )
        )
    return result


def _stored(points: npt.NDArray[np.float32], turns: int, width: int, height: int) -> npt.NDArray[np.float32]:
    """Points (N, 2) of the picture turned clockwise by quarter turns, in the stored picture of that width and height."""
    x, y = points[:, 0], points[:, 1]
    match turns:
        case 1:
            mapped = (y, (height - 1) - x)
        case 2:
            mapped = ((width - 1) - x, (height - 1) - y)
        case _:
            mapped = ((width - 1) - y, x)
    return np.stack(mapped, axis=1).astype(np.float32)


def _check(image: Image) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"a detector takes uint8 RGB pictures (H, W, 3), got {image.dtype} {image.shape}")


class _Limit:
    """Tells, once, of pictures with more faces than are looked at."""

    def __init__(self) -> None:
        self._told = False

    def __call__(self, found: Candidates) -> None:
        beyond = int((found.scores[_MOST_FACES:] >= LOWEST_SCORE).sum())
        if beyond and not self._told:
            self._told = True
            words = "a picture has more than %d faces: those found least certainly, here %d, are left as they are"
            _log.warning(words, _MOST_FACES, beyond)


class EmbeddedDetector:
    """RetinaFace with its landmarks refined in close-ups: what streamfix uses out of the box. No embeddings."""

    name = "retinaface"

    def __init__(self, *, threads: int | None = None) -> None:
        self._net, self._limit = RetinaFaceNet(threads=threads), _Limit()

    def detect(self, image: Image) -> list[Face]:
        """See Detector."""
        _check(image)
        shown = views(image)
        found = merged(
            joined(
                [
                    self._net.candidates(view.canvas[None], threshold=_PROPOSAL_SCORE)[0].mapped(view.to_frame)
                    for view in shown
                ]
            )
        )
        zoom = max(1 / float(view.to_frame[0, 0]) for view in shown)
        self._limit(found)
        result: list[Face] = []
        in_vain = 0
        for box, landmarks, score in zip(found.boxes[:_MOST_FACES], found.landmarks, found.scores, strict=False):
            if score < LOWEST_SCORE and in_vain == _MOST_IN_VAIN:
                break
            better, sure = refine(self._net, image, landmarks)
            face = _face(box, better, float(score))
            face = replace(face, score=_confidence(face.score, sure, zoom * face.size))
            in_vain += score < LOWEST_SCORE and (face.score < LOWEST_SCORE or any(_same(face, one) for one in result))
            if face.score >= LOWEST_SCORE:
                result.append(face)
        return _distinct(sorted(result, key=lambda face: -face.score))


class RecognisingDetector:
    """Any detector, with the embeddings of a FaceEmbedding on its faces."""

    has_embeddings = True

    def __init__(self, detector: Detector, embedding: FaceEmbedding) -> None:
        self.name = detector.name
        self._detector, self._embedding = detector, embedding

    def detect(self, image: Image) -> list[Face]:
        """See Detector."""
        found = self._detector.detect(image)
        return [replace(face, embedding=self._embedding.of_face(image, face.landmarks)) for face in found]


def _distinct(faces: list[Face]) -> list[Face]:
    """Faces, best first, without those whose close-up led to a better one: stray proposals beside a face do."""
    kept: list[Face] = []
    for face in faces:
        if not any(_same(face, other) for other in kept):
            kept.append(face)
    return kept


def _same(face: Face, other: Face) -> bool:
    """Whether two proposals led to one face."""
    offset = np.hypot(*(face.landmarks - other.landmarks).T).mean() / max(face.size, other.size, 1.0)
    return bool(offset <= _SAME_PLACE)


def _confidence(proposed: float, seen: float, side: float) -> float:
    """The score of a face from that of its proposal in the frame and that in its close-up.

    side: of the proposal, canvas pixels. Small faces are proposed weakly and seen clearly: 24 px at 1080p get 0.05 to
    0.5, then 0.9 and more, while on 42 faceless pictures no proposal was seen with more than 0.75. A large one that is proposed
    weakly must be seen beyond doubt: badges, printed shirts and hair of 60 to 130 px reach 0.85 and once 0.92, faces 0.94
    and more, unless a codec has melted them. A face that is proposed clearly and vanishes in its close-up may go on with a
    track, but begins none.
    """
    doubt = 1 + 2 * float(ramp(side, *_LARGE))
    return max(float(np.sqrt(proposed * max(seen, _UNSEEN))), float(seen**doubt * proposed**0.125))


def _face(
    box: npt.NDArray[np.float64],
    landmarks: npt.NDArray[np.float64],
    score: float,
    embedding: npt.NDArray[np.float32] | None = None,
) -> Face:
    return Face(
        box=box.astype(np.float32), landmarks=landmarks.astype(np.float32), score=min(score, 1.0), embedding=embedding
    )


class InsightFaceDetector:
    """An SCRFD detector and, where the pack has one, an ArcFace embedding, both run by insightface.

    pack: name of a pack under `models.models_dir()`, or a directory with ONNX files. has_embeddings: whether faces carry one.
    """

    def __init__(self, pack: str = DEFAULT_PACK, *, threads: int | None = None) -> None:
        self._limit = _Limit()
        self.name = f"insightface:{pack}"
        folder = _folder(pack)
        self._scrfd, self._arcface = _load(folder, threads)
        self.has_embeddings = self._arcface is not None
        self._fixed: tuple[int, int] | None = self._scrfd.static_input_size

    def detect(self, image: Image) -> list[Face]:
        """See Detector."""
        _check(image)
        parts = []
        for view in views(image, fixed=self._fixed):
            size = view.canvas.shape[1], view.canvas.shape[0]
            bgr = np.ascontiguousarray(view.canvas[..., ::-1])
            try:
                boxes, points = self._scrfd.detect(bgr, input_size=size, det_thresh=LOWEST_SCORE)
            except Exception as error:  # insightface lets anything through
                raise ModelError(f"the face detector {self.name} failed while it ran ({error})") from error
            found = Candidates(
                boxes=boxes[:, :4].astype(np.float64),
                landmarks=points.astype(np.float64),
                scores=boxes[:, 4].astype(np.float64),
            )
            parts.append(found.mapped(view.to_frame))
        faces = merged(joined(parts))
        self._limit(faces)
        result = []
        for box, landmarks, score in zip(faces.boxes[:_MOST_FACES], faces.landmarks, faces.scores, strict=False):
            result.append(_face(box, landmarks, float(score), self._embedding(image, landmarks)))
        return result

    def _embedding(self, image: Image, landmarks: npt.NDArray[np.float64]) -> npt.NDArray[np.float32] | None:
        if self._arcface is None:
            return None
        from insightface.app.common import Face as InsightFace

        try:
            vector = self._arcface.get(
                np.ascontiguousarray(image[..., ::-1]), InsightFace(kps=landmarks.astype(np.float32))
            )
        except Exception as error:
            raise ModelError(f"the face embedding of {self.name} failed while it ran ({error})") from error
        vector = np.asarray(vector, dtype=np.float32).ravel()
        norm = float(np.linalg.norm(vector))
        return vector / norm if norm > 0 and np.isfinite(norm) else None


def _folder(pack: str) -> Path:
    """The directory of a pack or ModelError that says how to get it."""
    for folder in (models.models_dir() / pack, Path(pack).expanduser()):
        if folder.is_dir():
            if not any(folder.glob("*.onnx")):
                raise ModelError(f"the directory {folder} has no *.onnx file; put an SCRFD detector there")
            return folder
    if pack in {model.name for model in models.catalogue() if model.kind == "detector" and model.members}:
        raise ModelError(
            f"the insightface pack {pack} is not installed; run `streamfix models pull {pack}` or give a directory"
        )
    raise ModelError(
        f"there is no insightface pack or directory {pack!r}; "
        f"run `streamfix models pull {DEFAULT_PACK}` or give a directory with an SCRFD *.onnx"
    )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _load(folder: Path, threads: int | None) -> tuple[Any, Any]:
    """(SCRFD, ArcFace or None) of a folder, the first of each kind by file name."""
    try:
        import onnxruntime
        from insightface.model_zoo import model_zoo
    except ImportError as error:
        raise DependencyError(f"insightface cannot be loaded ({error}); install it again") from error
    # one warning a face about scikit-image's future, from inside insightface
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"insightface\..*")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.onnx")):
        try:
            with _silence():
                model = model_zoo.get_model(str(path), sess_options=options)
        except Exception as error:  # insightface and onnxruntime raise anything, a bare AssertionError included
            raise ModelError(
                f"insightface cannot load {path} ({error or type(error).__name__}); remove it or fetch it again"
            ) from error
        kind = getattr(model, "taskname", None)
        if kind == "detection" and not getattr(model, "use_kps", False):
            continue  # a detector without landmarks cannot align a face
        if kind in ("detection", "recognition") and kind not in found:
            found[kind] = model
    if "detection" not in found:
        raise ModelError(
            f"no *.onnx file in {folder} is an SCRFD detector with landmarks; put one there or choose retinaface"
        )
    found["detection"].nms_thresh = 0.4
    return found["detection"], found.get("recognition")
