"""Small InterLCM networks with weights by a rule, for tests: a few channels, the real structure."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import math
import threading
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, LCMScheduler, UNet2DConditionModel
from safetensors.torch import save

from streamfix.restore.interlcm.checkpoint import _ATTENTION
from streamfix.restore.interlcm.networks import ClipTokens, spatial_encoder
from streamfix.restore.interlcm.pipeline import InterLCM
from streamfix.restore.interlcm.visual_encoder import VisualEncoder

DATA = Path(__file__).parent / "data"
CONFIGS: dict[str, Any] = json.loads((DATA / "interlcm_configs.json").read_text())
CLIP_CONFIG = {
    "hidden_size": 768,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "quick_gelu",
}


def by_rule(module: torch.nn.Module, prefix: str) -> Any:
    """The module with weights drawn from the crc32 of their names, ready to run."""
    state = module.state_dict()
    for key, value in state.items():
        if value.is_floating_point():
            seed = zlib.crc32((prefix + key).encode())
            r = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed))
            if value.ndim >= 2:
                state[key] = r / math.sqrt(math.prod(value.shape[1:]))
            else:
                state[key] = 0.05 * r + (1 if key.endswith("weight") else 0)
    module.load_state_dict(state)
    return module.eval().requires_grad_(False)


def small_clip() -> ClipTokens:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return ClipTokens(by_rule(CLIPVisionModel(CLIPVisionConfig(**CLIP_CONFIG)), "clip."))


def small_modules(*, clip: bool = False, tiny_vae: bool = False) -> dict[str, Any]:
    vae: Any = AutoencoderTiny() if tiny_vae else AutoencoderKL(**CONFIGS["vae"])
    return {
        "unet": by_rule(UNet2DConditionModel(**CONFIGS["unet"]), "unet."),
        "spatial_encoder": by_rule(spatial_encoder(CONFIGS["unet"]), "se."),
        "vae": by_rule(vae, "vae."),
        "visual_encoder": by_rule(VisualEncoder(), "ve."),
        "scheduler": LCMScheduler(**CONFIGS["scheduler"]),
        "clip": small_clip() if clip else None,
    }


def smallest_modules() -> dict[str, Any]:
    """For 512x512 on two busy cores, CLIP and all; the same weights as in release_files."""
    return {
        "unet": by_rule(UNet2DConditionModel(**SMALLEST_UNET), "unet."),
        "spatial_encoder": by_rule(spatial_encoder(SMALLEST_UNET), "3step.se."),
        "vae": by_rule(AutoencoderKL(**SMALLEST_VAE), "vae."),
        "visual_encoder": by_rule(VisualEncoder(), "3step.ve."),
        "scheduler": LCMScheduler(**CONFIGS["scheduler"]),
        "clip": small_clip(),
    }


def install(home: Path) -> None:
    """All four models in a models folder, placed as if by hand."""
    places = {LCM: "LCM_Dreamshaper_v7/", CLIP: "clip-vit-base-patch16/", RELEASE: "InterLCM/"}
    for path, content in release_files().items():
        start, folder = next((s, f) for s, f in places.items() if path.startswith(s))
        target = home / "models" / folder / path.removeprefix(start)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def small_interlcm(*, clip: bool = False, tiny_vae: bool = False) -> InterLCM:
    return InterLCM(**small_modules(clip=clip, tiny_vae=tiny_vae))


class Release(http.server.ThreadingHTTPServer):
    """A file server in the layout of the release and of the hubs, which can break off once, damage, and say sha256.

    files: path on the server -> content. cut: paths that break off after half, once. damaged: paths whose content is
    changed. served: what was asked for, with its range. sums: whether it publishes sha256 as Hugging Face does.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.cut, self.damaged = files, set[str](), set[str]()
        self.served: list[tuple[str, str | None]] = []
        self.sums = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Release:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Release

    def do_GET(self) -> None:
        path, asked = self.path, self.headers.get("Range")
        if path.startswith("/moved"):  # as the hub sends large files to another host
            path = path.removeprefix("/moved")
        elif self.server.sums and path.endswith((".safetensors", ".bin")):
            self.send_response(302)
            self.send_header("Location", f"/moved{path}")
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(self.server.files[path]).hexdigest()}"')
            self.end_headers()
            return
        self.server.served.append((path, asked))
        if path not in self.server.files:
            self.send_error(404)
            return
        content = bytearray(self.server.files[path])
        if path in self.server.damaged:
            content[len(content) // 2] ^= 1
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        if start >= len(content):
            self.send_error(416)
            return
        body = bytes(content[start:])
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if path in self.server.cut:
            self.server.cut.discard(path)
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


LCM, CLIP = "/SimianLuo/LCM_Dreamshaper_v7/resolve/main/", "/openai/clip-vit-base-patch16/resolve/main/"
RELEASE = "/sen-mao/InterLCM/releases/download/v0.1.0/"
PAIRS = ("3step", "1step", "colorization_1step", "inpainting_1step")


@cache
def release_files() -> dict[str, bytes]:
    """Everything that upstream serves, with small random networks: path on the server -> content."""
    unet = by_rule(UNet2DConditionModel(**SMALLEST_UNET), "unet.")
    # a VAE for 512x512 on two busy cores, by the names that its attention had at first
    vae = by_rule(AutoencoderKL(**SMALLEST_VAE), "vae.")
    old = {v: k for k, v in _ATTENTION.items()}
    vae_state = {}
    for key, value in vae.state_dict().items():
        name = next((key.replace(new, was) for new, was in old.items() if ".attentions." in key and new in key), key)
        vae_state[name] = value.contiguous()
    clip = by_rule(_clip_model(), "clip.")
    files = {
        LCM + "unet/config.json": _json(SMALLEST_UNET | {"_class_name": "UNet2DConditionModel"}),
        LCM + "unet/diffusion_pytorch_model.safetensors": save(dict(unet.state_dict())),
        LCM + "vae/config.json": _json(SMALLEST_VAE | {"_class_name": "AutoencoderKL"}),
        LCM + "vae/diffusion_pytorch_model.safetensors": save(vae_state),
        LCM + "scheduler/scheduler_config.json": _json(CONFIGS["scheduler"]),
        CLIP + "config.json": _json({"vision_config": CLIP_CONFIG, "text_config": {}, "projection_dim": 8}),
        CLIP + "pytorch_model.bin": _pickled(clip),
    }
    visual, spatial = VisualEncoder(), spatial_encoder(SMALLEST_UNET)
    for pair in PAIRS:
        for name, network, prefix in (("visual_encoder", visual, "ve."), ("spatial_encoder", spatial, "se.")):
            state = by_rule(network, f"{pair}.{prefix}").state_dict()
            files[f"{RELEASE}{name}_{pair}.pth"] = _pickled({"params_ema": state})
    return files


# for 512x512 on two busy cores: attention at half the size of the latents
SMALLEST_UNET = CONFIGS["unet"] | {
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
}
SMALLEST_VAE = CONFIGS["vae"] | {"block_out_channels": [8, 16, 16, 16]}


def _clip_model() -> torch.nn.Module:
    """The vision tower with the text tower beside it, named as in the published file."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    tower = CLIPVisionModel(CLIPVisionConfig(**CLIP_CONFIG))
    whole = torch.nn.Module()
    whole.vision_model = getattr(tower, "vision_model", tower)
    whole.text_model = torch.nn.Linear(3, 3)
    return whole


def _json(config: dict[str, Any]) -> bytes:
    return json.dumps(config).encode()


def _pickled(content: Any) -> bytes:
    data = io.BytesIO()
    torch.save(content.state_dict() if isinstance(content, torch.nn.Module) else content, data)
    return data.getvalue()
