import numpy as np
import pytest
import torch

from streamfix import load_restorer
from streamfix.restore.color_fix import keep_grey


def picture(astronaut: np.ndarray) -> torch.Tensor:
    face = torch.from_numpy(astronaut[40:200, 150:310].copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    return torch.nn.functional.interpolate(face, (512, 512), mode="bilinear")


def toned(colour: torch.Tensor, gains: tuple[float, float, float]) -> torch.Tensor:
    luma = (colour * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return (luma + 1) * torch.tensor(gains).view(1, 3, 1, 1) - 1


@pytest.mark.parametrize("gains", [(1.0, 1.0, 1.0), (1.0, 0.85, 0.65)])
def test_grey_and_sepia_take_over_brightness_only(astronaut: np.ndarray, gains: tuple[float, float, float]) -> None:
    crop = toned(picture(astronaut), gains) * 0.8
    restored = crop + torch.tensor([0.1, -0.05, 0.2]).view(1, 3, 1, 1)  # a colour cast, brighter in all
    change = keep_grey(restored, crop) - crop
    assert torch.allclose(change[:, 0], change[:, 1], atol=1e-5)
    assert torch.allclose(change[:, 1], change[:, 2], atol=1e-5)
    assert float(change.mean()) == pytest.approx(0.299 * 0.1 - 0.587 * 0.05 + 0.114 * 0.2, abs=2e-3)


def test_colour_is_left_alone_whoever_shares_the_batch(astronaut: np.ndarray) -> None:
    colour = picture(astronaut)
    crops = torch.cat((colour, toned(colour, (1.0, 1.0, 1.0))))
    restored = (crops + 0.1 * torch.randn(crops.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    fixed = keep_grey(restored, crops)
    assert torch.equal(fixed[0], restored[0])
    assert not torch.allclose(fixed[1], restored[1])


def test_lite_keeps_a_grey_face_grey(astronaut: np.ndarray) -> None:
    crop = toned(picture(astronaut), (1.0, 1.0, 1.0))
    out = load_restorer("lite").restore(crop)
    assert float((out - crop).abs().max()) > 0.02
    assert float((out.max(dim=1).values - out.min(dim=1).values).max()) < 1e-4
