"""The distance of two sets of pictures by the mean and covariance of their features (Heusel et al. 2017, arXiv 1706.08500)."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from streamfix.errors import ModelError
from streamfix.files import check_file

Features = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean (D,) and unbiased covariance (D, D) of features, float64.

    root: (D, K) with root @ root.T the covariance, for fewer pictures than features: a small matrix in place of a large one.
    """

    mean: Features
    covariance: Features
    root: Features | None = None

    @classmethod
    def of(cls, features: npt.NDArray[np.floating]) -> Moments:
        """Of features (N, D); N at least 2, else ValueError."""
        x = np.asarray(features, np.float64)
        if x.ndim != 2 or len(x) < 2:
            raise ValueError(f"moments need at least two rows of features, got {x.shape}")
        root = (x - x.mean(axis=0)).T / np.sqrt(len(x) - 1)
        return cls(x.mean(axis=0), root @ root.T, root if root.shape[1] < root.shape[0] else None)


def frechet_distance(a: Moments, b: Moments) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), never negative.

    The trace of the root is the sum of the roots of the eigenvalues of R S2 R with R the root of S1, which is symmetric:
    no complex rounding errors as in the root of S1 S2 itself, for singular matrices (fewer pictures than features) too.
    """
    if a.root is None and b.root is not None:
        a, b = b, a
    difference = a.mean - b.mean
    root = _root(a.covariance) if a.root is None else a.root
    middle = np.linalg.eigvalsh(root.T @ b.covariance @ root)
    trace = float(np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sqrt(np.clip(middle, 0, None)).sum())
    return max(float(difference @ difference) + trace, 0.0)


def _root(covariance: Features) -> Features:
    values, vectors = np.linalg.eigh(covariance)
    kept = values > max(float(values[-1]), 0.0) * len(values) * np.finfo(np.float64).eps
    return np.asarray(vectors[:, kept] * np.sqrt(values[kept]))


def load_moments(path: Path) -> Moments:
    """Published statistics of a set: pytorch-fid's .npz (`mu`, `sigma`) or BasicSR's .pth (`mean`, `cov`).

    The latter is how the face restorers publish those of FFHQ (inception_FFHQ_512.pth). ModelError for other files.
    """
    check_file(path)
    try:
        if path.suffix == ".npz":
            with np.load(path) as file:
                mean, covariance = file["mu"], file["sigma"]
        else:
            with torch.serialization.safe_globals(_numpy_parts()):
                state = torch.load(path, map_location="cpu", weights_only=True)
            mean, covariance = np.asarray(state["mean"]), np.asarray(state["cov"])
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, EOFError) as error:
        raise ModelError(_no_statistics(path)) from error
    except (pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise ModelError(_no_statistics(path)) from error
    mean, covariance = np.asarray(mean, np.float64).ravel(), np.asarray(covariance, np.float64)
    if covariance.shape != (len(mean), len(mean)):
        raise ModelError(_no_statistics(path))
    return Moments(mean, covariance)


def _no_statistics(path: Path) -> str:
    return f"{path} holds no feature statistics; give an .npz with mu and sigma, or a .pth with mean and cov"


def _numpy_parts() -> list[Any]:
    # a pickled array names these, and nothing else: BasicSR saves arrays, not tensors
    reconstruct = np.ndarray.__reduce__(np.zeros(1))[0]
    return [np.ndarray, np.dtype, reconstruct, *(type(np.dtype(t)) for t in (np.float32, np.float64))]
