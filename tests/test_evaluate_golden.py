"""Our metrics against the numbers of the libraries that papers use, on pictures and weights that a seed makes.

The numbers were computed once, with torch 2.13.0, by lpips 0.1.4, pytorch-fid 0.3.0, torch-fidelity 0.4.0, torchmetrics 1.9.0,
scikit-image 0.26.0 and pyiqa 0.1.15, none of which but torchmetrics imports beside a torch without its torchvision.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from streamfix.evaluate.frechet import Moments, frechet_distance
from streamfix.evaluate.inception import Inception, InceptionNet
from streamfix.evaluate.metrics import psnr, ssim, tensor
from streamfix.train.losses import Lpips

TAPS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
ALEX = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
VGG_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
VGG_PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


def by_name(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Weights from the crc32 of their names, of a scale at which signals neither die nor explode."""
    state = {}
    for key, shape in shapes.items():
        r = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
        if len(shape) >= 2:
            r = r * math.sqrt(2 / math.prod(shape[1:]))
        elif key.endswith("running_var"):
            r = 1 + 0.1 * r.abs()
        else:
            r = 1 + 0.05 * r if key.endswith("weight") else 0.05 * r
        state[key] = r
    return state


def pictures(count: int, side: int, seed: int) -> np.ndarray:
    """uint8 (count, side, side, 3): waves and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    result = []
    for _ in range(count):
        a, b, c, d = rng.uniform(1, 9, 4)
        base = np.stack([np.sin(a * x + b * y), np.cos(c * x * y + d), np.sin(b * x - d * y)], -1)
        noise = rng.normal(0, 0.15, base.shape)
        result.append(np.clip(np.rint(127.5 + 90 * base + 127.5 * noise), 0, 255).astype(np.uint8))
    return np.stack(result)


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    """A picture and a mixture of it with another: float32 (96, 96, 3)."""
    a, b = pictures(2, 96, 1)
    mix = np.clip(np.rint(0.7 * a.astype(float) + 0.3 * b), 0, 255).astype(np.uint8)
    return mix.astype(np.float32) / np.float32(255), a.astype(np.float32) / np.float32(255)


def test_psnr_is_that_of_scikit_image_and_pyiqa(pair: tuple[np.ndarray, np.ndarray]) -> None:
    assert psnr(*pair) == pytest.approx(22.650411476520702, abs=1e-4)


def test_ssim_is_that_of_torchmetrics_and_within_its_rim_that_of_scikit_image(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    a, b = tensor(pair[0]), tensor(pair[1])
    assert ssim(a, b) == pytest.approx(0.8825280666351318, abs=1e-5)
    # scikit-image 0.8847899188048549 and pyiqa 0.8847899398354222 leave out the 5 pixels at which the window is cut
    assert ssim(a, b) == pytest.approx(0.8847899188048549, abs=3e-3)


@pytest.mark.parametrize(("kind", "golden"), [("alex", 0.015869056805968285), ("vgg", 0.014379382133483887)])
def test_lpips_is_that_of_its_authors(
    kind: str, golden: float, pair: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    layers = ALEX
    if kind == "vgg":
        inputs = (3, *VGG_WIDTHS[:-1])
        layers = {i: (o, n, 3, 3) for i, o, n in zip(VGG_PLACES, VGG_WIDTHS, inputs, strict=True)}
    shapes: dict[str, tuple[int, ...]] = {}
    for i, shape in layers.items():
        shapes[f"features.{i}.weight"], shapes[f"features.{i}.bias"] = shape, shape[:1]
    linear = {f"lin{k}.model.1.weight": (1, width, 1, 1) for k, width in enumerate(TAPS[kind])}
    state = by_name(shapes) | {k: v.abs() for k, v in by_name(linear).items()}
    torch.save(state, tmp_path / "lpips.pth")
    net = Lpips(tmp_path / "lpips.pth")
    assert net.kind == kind
    with torch.inference_mode():
        assert float(net(tensor(pair[0]) * 2 - 1, tensor(pair[1]) * 2 - 1)) == pytest.approx(golden, rel=1e-4)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in InceptionNet().state_dict().items() if v.is_floating_point()}
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(by_name(shapes), path)
    return path


def test_inception_features_are_those_of_pytorch_fid_and_torch_fidelity(inception_file: Path) -> None:
    net = Inception(inception_file)
    large = torch.from_numpy(pictures(1, 512, 3).transpose(0, 3, 1, 2).copy())
    (features,) = net(large / 255)
    assert features.shape == (2048,)
    golden = [1.0099412202835083, 0.011791177093982697, 0.00024301164376083761, 0.03469909727573395]
    assert features[:4] == pytest.approx(golden, rel=1e-3, abs=1e-5)
    assert np.linalg.norm(features) == pytest.approx(13.505829811096191, rel=1e-4)
    # torch-fidelity scales 8 bits by (v - 128) / 128, and resizes otherwise; fed alike, both are one network
    small = torch.from_numpy(pictures(1, 299, 2).transpose(0, 3, 1, 2).copy()).float()
    (theirs,) = net((small - 128) / 256 + 0.5)
    golden = [1.0222008228302002, 0.01061650924384594, 0.0006738077499903738, 0.030669257044792175]
    assert theirs[:4] == pytest.approx(golden, rel=1e-3, abs=1e-5)
    assert np.linalg.norm(theirs) == pytest.approx(13.651514053344727, rel=1e-4)


@pytest.fixture(scope="module")
def two_sets() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    a = rng.normal(0, 1, (40, 16)) @ rng.normal(0, 1, (16, 16)) + 1
    return a, rng.normal(0, 1, (60, 16)) @ rng.normal(0, 1, (16, 16))


def test_frechet_distance_is_that_of_three_libraries(two_sets: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = (Moments.of(x) for x in two_sets)
    # torch-fidelity 188.68432738484887, torchmetrics ...836, pytorch-fid ...853
    assert frechet_distance(a, b) == pytest.approx(188.68432738484853, rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(188.68432738484853, rel=1e-10)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    compute = pytest.importorskip("torchmetrics.image.fid")._compute_fid
    theirs = compute(*(torch.from_numpy(x) for m in (a, b) for x in (m.mean, m.covariance)))
    assert frechet_distance(a, b) == pytest.approx(float(theirs), rel=1e-8)


@pytest.mark.parametrize(("n", "m"), [(5, 9), (40, 9), (5, 60)])
def test_fewer_pictures_than_features_take_the_same_formula(
    n: int, m: int, two_sets: tuple[np.ndarray, np.ndarray]
) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    x, y = two_sets[0][:n], two_sets[1][:m]
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.real(linalg.sqrtm(linalg.sqrtm(s).real @ t @ linalg.sqrtm(s).real))
    textbook = float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * np.trace(root))
    assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(textbook, rel=1e-4)


def test_gaussians_on_a_line_are_as_far_as_the_textbook_says() -> None:
    a, b = (Moments(np.array([m]), np.array([[s * s]])) for m, s in ((1.0, 2.0), (4.0, 0.5)))
    assert frechet_distance(a, b) == pytest.approx((1 - 4) ** 2 + (2 - 0.5) ** 2)
