"""InterLCM at its published size with random weights: one face end to end, in float32 and in bfloat16, each in a process of its own.

    python tools/check_interlcm.py [--face FACE.png] [--steps 3]

Checks the parameter counts (859.6 M UNet, 361.3 M spatial encoder, 12.96 M visual encoder), peak memory (14 GB and 8 GB)
and how near the two precisions are (35 dB). Weights are drawn from the crc32 of their names, as in the golden tests.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "time_cond_proj_dim": 256,
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
MILLIONS = {"unet": 859.6, "spatial_encoder": 361.3, "visual_encoder": 12.96}
MEMORY = {"float32": 14.0, "bfloat16": 8.0}
NEAR = 35.0


def drawn(module: Any, prefix: str, dtype: torch.dtype) -> Any:
    """A module from the meta device, with random weights in that precision: drawn in float32, one tensor at a time."""
    state = {}
    for key, value in module.state_dict().items():
        r = torch.randn(value.shape, generator=torch.Generator().manual_seed(zlib.crc32((prefix + key).encode())))
        around = 1 if key.endswith("weight") else 0
        r = r / math.sqrt(math.prod(value.shape[1:])) if value.ndim >= 2 else 0.05 * r + around
        state[key] = r.to(dtype)
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)


def networks(dtype: torch.dtype) -> dict[str, Any]:
    from diffusers import AutoencoderKL, LCMScheduler, UNet2DConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModel

    from streamfix.restore.interlcm.networks import ClipTokens, spatial_encoder
    from streamfix.restore.interlcm.visual_encoder import VisualEncoder

    with torch.device("meta"):
        made = {
            "unet": UNet2DConditionModel(**UNET),
            "spatial_encoder": spatial_encoder(UNET),
            "vae": AutoencoderKL(**VAE),
            "visual_encoder": VisualEncoder(),
        }
    for name, network in made.items():
        made[name] = drawn(network, f"{name}.", dtype)
        if name != "visual_encoder":
            made[name] = made[name].to(memory_format=torch.channels_last)
    tower = CLIPVisionModel(CLIPVisionConfig(patch_size=16))  # not on meta: its positions are no weights
    clip = ClipTokens(drawn(tower, "clip.", dtype)).to(dtype)
    return {**made, "clip": clip, "scheduler": LCMScheduler(**SCHEDULER)}


def run(dtype: str, face: Path | None, steps: int, out: Path) -> None:
    """One face in one precision; facts on standard output, the face in `out`."""
    from streamfix.restore.interlcm.options import Options
    from streamfix.restore.interlcm.pipeline import InterLCM
    from streamfix.restore.interlcm.restorer import InterLCMRestorer

    began = time.monotonic()
    parts = networks(getattr(torch, dtype))
    millions = {name: sum(p.numel() for p in parts[name].parameters()) / 1e6 for name in MILLIONS}
    model = InterLCM(**parts)
    restorer = InterLCMRestorer("interlcm", Options(steps=steps), model=model)
    crop = torch.from_numpy(picture(face)).permute(2, 0, 1)[None] * 2 - 1
    built, began = time.monotonic() - began, time.monotonic()
    restored = restorer.restore(crop)
    took = time.monotonic() - began
    np.save(out, restored.numpy())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # kilobytes on Linux
    print(json.dumps({"dtype": dtype, "millions": millions, "peak_gb": peak, "build_s": built, "face_s": took}))


def picture(face: Path | None) -> np.ndarray:
    """Float32 (512, 512, 3) in [0, 1]: the file, or the public-domain portrait that the samples are made from."""
    import cv2

    if face is None:
        from skimage import data

        image = data.astronaut()[40:200, 150:310]
    else:
        image = cv2.imread(str(face))[..., ::-1]
    return cv2.resize(image, (512, 512), interpolation=cv2.INTER_LINEAR).astype(np.float32) / 255


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--face", type=Path, help="an aligned face; default: the astronaut of scikit-image")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", choices=sorted(MEMORY), help="one precision, its facts as JSON")
    parser.add_argument("--out", type=Path, help="with --only: where the restored face goes (.npy)")
    given = parser.parse_args()
    if given.only:
        run(given.only, given.face, given.steps, given.out or Path(f"{given.only}.npy"))
        return 0
    failures, faces = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for dtype, limit in MEMORY.items():
            out = Path(folder) / f"{dtype}.npy"
            command = [sys.executable, __file__, "--only", dtype, "--out", str(out), "--steps", str(given.steps)]
            command += ["--face", str(given.face)] if given.face else []
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            facts = json.loads(done.stdout.splitlines()[-1])
            print(facts, flush=True)
            faces[dtype] = np.load(out)
            if facts["peak_gb"] > limit:
                failures.append(f"{dtype} took {facts['peak_gb']:.1f} GB, more than {limit:g}")
            for name, expected in MILLIONS.items():
                if abs(facts["millions"][name] - expected) > 0.06:
                    failures.append(f"{name} has {facts['millions'][name]:.2f} M parameters, not {expected}")
    error = float(np.square((faces["float32"] - faces["bfloat16"]) / 2).mean())
    psnr = -10 * math.log10(max(error, 1e-12))
    print(f"bfloat16 against float32: {psnr:.1f} dB")
    if psnr < NEAR:
        failures.append(f"the precisions are {psnr:.1f} dB apart, less than {NEAR:g}")
    for failure in failures:
        print(f"failed: {failure}")
    return bool(failures)


if __name__ == "__main__":
    raise SystemExit(main())
