"""One optimiser step of InterLCM's training at full size: does it fit, and do the gradients reach what they should?

    python tools/train_full_step.py [--precision float32|bfloat16] [--size 512] [--device cpu|cuda]

The networks have the published sizes and random weights (no download), the face is made up, and the losses are all there: L1,
LPIPS over VGG16 and the discriminator, through three steps of the network, with gradient checkpointing. Prints the peak of memory
and checks that every tensor of both encoders has a gradient and has moved, and that no frozen tensor has either. Exit code 1 where
that does not hold or --limit is exceeded. On a CPU it takes about five minutes of two cores and 15 GB.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from check_interlcm import SCHEDULER, UNET, VAE
from diffusers import AutoencoderKL, LCMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from streamfix.restore.interlcm.checkpoint import Base
from streamfix.restore.interlcm.networks import ClipTokens
from streamfix.train.interlcm import Trainer
from streamfix.train.interlcm_config import InterLCMConfig
from streamfix.train.settings import read_settings
from streamfix.train.tasks import TaskPairs

GB = 1e9
VGG = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
VGG_AT = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


def base_of_random_weights(device: torch.device, dtype: torch.dtype) -> Base:
    """UNet, VAE and image tower as published in size."""
    tower = CLIPVisionConfig(hidden_act="quick_gelu", patch_size=16)  # the rest is ViT-B's by default
    networks: list[Any] = [UNet2DConditionModel(**UNET), AutoencoderKL(**VAE), ClipTokens(CLIPVisionModel(tower))]
    for network in networks:
        nn.Module.to(network.eval().requires_grad_(False), device, dtype)
    for network in networks[:2]:
        network.to(memory_format=torch.channels_last)
    return Base(unet=networks[0], vae=networks[1], clip=networks[2], scheduler=LCMScheduler(**SCHEDULER))


def lpips_of_random_weights(path: Path) -> Path:
    """A weight file of LPIPS over VGG16."""
    state, before = {}, 3
    for at, width in zip(VGG_AT, VGG, strict=True):
        state[f"features.{at}.weight"] = torch.randn(width, before, 3, 3) * (2 / (9 * before)) ** 0.5
        state[f"features.{at}.bias"] = torch.zeros(width)
        before = width
    for k, width in enumerate((64, 128, 256, 512, 512)):
        state[f"lin{k}.model.1.weight"] = torch.rand(1, width, 1, 1)
    torch.save(state, path)
    return path


def peak(device: torch.device) -> float:
    """Most memory in use so far, in GB: of the device, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / GB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB  # KiB on Linux


def size_of(*tensors: Any) -> float:
    """GB of tensors."""
    return sum(t.numel() * t.element_size() for t in tensors) / GB


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-checkpointing", action="store_true")
    parser.add_argument("--limit", type=float, default=24.0, help="GB that the peak must stay below")
    args = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        coarse = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
        cv2.imwrite(str(folder / "face.png"), cv2.resize(coarse, (512, 512), interpolation=cv2.INTER_CUBIC))
        config = InterLCMConfig.of(
            {**read_settings("interlcm-3step"), "loss": {"gan_from": 1}, "faces": {"size": args.size}},
            data=str(folder),
            run=str(folder / "run"),
            lpips=str(lpips_of_random_weights(folder / "vgg.pth")),
            precision=args.precision,
            checkpointing=not args.no_checkpointing,
            device=args.device,
        )
        step(config, device, args.limit)


def step(config: InterLCMConfig, device: torch.device, limit: float) -> None:
    started = time.monotonic()
    base = base_of_random_weights(device, getattr(torch, config.precision))
    trainer = Trainer(config, base=base)
    frozen = [p for m in (base.unet, base.vae, base.clip) for p in m.parameters()]
    spatial: Any = trainer.encoders["spatial_encoder"]
    with torch.no_grad():  # a ControlNet's outputs begin at zero, and gradients stop there until its first step
        outputs = [
            *spatial.controlnet_down_blocks,
            spatial.controlnet_mid_block,
            spatial.controlnet_cond_embedding.conv_out,
        ]
        for layer in outputs:
            layer.weight.normal_(0, layer.weight[0].numel() ** -0.5)
    sums = [float(p.double().sum()) for p in frozen]
    before = [float(p.detach().double().sum()) for p in trainer.trained]
    names = [name for name, _ in trainer.encoders.named_parameters()]
    batch = {k: v[None] for k, v in TaskPairs(config)[(0, trainer.size, 1)].items()}
    print(f"ready after {time.monotonic() - started:.0f} s, peak so far {peak(device):.1f} GB")

    started = time.monotonic()
    losses = trainer.train_step(batch)
    print(f"one step: {time.monotonic() - started:.0f} s, " + ", ".join(f"{k} {v:.4f}" for k, v in losses.items()))
    moments = [v for s in trainer.optimizer.state.values() for v in s.values() if torch.is_tensor(v) and v.ndim]
    count = sum(p.numel() for p in trainer.trained) / 1e6
    print(f"trained: {count:.1f} M parameters in {len(trainer.trained)} tensors; frozen: {len(frozen)} tensors")
    rows = {
        "frozen weights": size_of(*frozen),
        "trained weights": size_of(*trainer.trained),
        "their gradients": size_of(*(p.grad for p in trainer.trained if p.grad is not None)),
        "their averages": size_of(*trainer.average.values()),
        "Adam's moments": size_of(*moments),
    }
    if trainer.workers is not trainer.encoders:
        rows["copies that compute"] = 2 * size_of(*trainer.workers.parameters())
    for name, size in rows.items():
        print(f"  {name:20} {size:6.2f} GB")
    most = peak(device) + size_of(*moments)
    print(f"  {'peak of this step':20} {peak(device):6.2f} GB")
    print(f"  {'from the next on':20} {most:6.2f} GB at most: Adam's moments are there from the beginning then")

    problems = []
    for name, parameter, was in zip(names, trainer.trained, before, strict=True):
        gradient = parameter.grad
        if gradient is None or not bool(torch.isfinite(gradient).all()) or not bool(gradient.any()):
            problems.append(f"{name} has no gradient")
        elif float(parameter.detach().double().sum()) == was:
            problems.append(f"{name} has not moved")
    for parameter, total in zip(frozen, sums, strict=True):
        if parameter.requires_grad or parameter.grad is not None or float(parameter.double().sum()) != total:
            problems.append("a frozen tensor has a gradient or has moved")
    if most > limit:
        problems.append(f"the peak is above {limit:g} GB")
    for problem in problems:
        print(problem)
    print("gradients reach every trained tensor and no frozen one" if not problems else f"{len(problems)} problems")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
