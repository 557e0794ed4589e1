"""What stage 2 learns from: every face, and its mirror image, encoded once."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from streamfix.errors import ModelError
from streamfix.restore.interlcm.checkpoint import load_vae
from streamfix.restore.interlcm.networks import ClipTokens, encode
from streamfix.train.data import Item, SmallFaces
from streamfix.train.nano.release import LCM, WEIGHTS, whole


def read_vae(release: Path, device: torch.device) -> Any:
    """The autoencoder of stage 1, frozen; ModelError where there is none."""
    if not (release / LCM / "vae" / WEIGHTS).is_file():
        raise ModelError(f"{release} holds no autoencoder; train one with `streamfix train nano-autoencoder`")
    return load_vae(folder=release, device=device, dtype=torch.float32)


class Latents(Dataset[dict[str, Tensor]]):
    """Item (i, ...): draw i of this seed among the faces of a folder and their mirror images.

    Gives `latent` (4, h, w) float32, scaled as the UNet knows them, and `face`, float32 (3, s, s) in [-1, 1], at the size that
    the image tower looks at. All are encoded when the first is asked for, and kept in the file `kept` for the next time;
    2,000 faces take two minutes of one core and 110 MB.
    """

    def __init__(self, folder: Path, vae: Any, *, face: int, tower: ClipTokens, seed: int, kept: Path) -> None:
        self.faces = SmallFaces(folder, seed=seed, face=face)
        self.vae, self.seed, self.kept = vae, seed, kept
        self.side = int(tower.tower.config.image_size)
        self._encoded: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return 2 * len(self.faces)

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        if self._encoded is None:
            self._encoded = self._kept() or self._keep(self._encode())
        which = int(np.random.default_rng([self.seed, item[0]]).integers(len(self)))
        latents, faces = self._encoded
        return {"latent": latents[which], "face": faces[which].float() / 127.5 - 1}

    def _of(self) -> str:
        """What the latents were made of: the autoencoder, the files and the sizes."""
        digest = hashlib.sha256(f"{self.faces.face} {self.side} {[f.name for f in self.faces.files]}".encode())
        for value in self.vae.encoder.state_dict().values():
            digest.update(value.cpu().numpy().tobytes())
        return digest.hexdigest()

    def _kept(self) -> tuple[Tensor, Tensor] | None:
        try:
            with safe_open(self.kept, framework="pt") as opened:
                same = (opened.metadata() or {}).get("of") == self._of()
                return (opened.get_tensor("latents"), opened.get_tensor("faces")) if same else None
        except (OSError, SafetensorError):
            return None  # not there yet, or broken: made again

    def _keep(self, encoded: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with whole(self.kept) as part:
            save_file({"latents": encoded[0], "faces": encoded[1]}, part, metadata={"of": self._of()})
        return encoded

    @torch.no_grad()
    def _encode(self, at_once: int = 8) -> tuple[Tensor, Tensor]:
        latents, small = [], []
        device = next(self.vae.parameters()).device
        for start in range(0, len(self.faces), at_once):
            files = range(start, min(start + at_once, len(self.faces)))
            upright = torch.stack([self._middle(i) for i in files])
            for faces in (upright, upright.flip(-1)):
                latents.append(encode(self.vae, faces.to(device)).cpu())
                # as ClipTokens.prepare makes them small
                size = (self.side, self.side)
                seen = F.interpolate(faces, size=size, mode="bicubic", align_corners=False, antialias=False)
                small.append(((seen + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))
        return torch.cat(latents).contiguous(), torch.cat(small).contiguous()

    def _middle(self, index: int) -> Tensor:
        picture, face = self.faces.picture(index), self.faces.face
        margin = (picture.shape[0] - face) // 2
        inner = picture[margin : margin + face, margin : margin + face]
        return torch.from_numpy(inner.astype(np.float32)).permute(2, 0, 1) / 127.5 - 1
