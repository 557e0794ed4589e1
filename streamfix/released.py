"""The models that others have released, file by file: InterLCM, the networks it stands on, and what may replace a part.

Downloads lie in `models_dir()`, in folders named as upstream names them, so that files which several models need are there once.
"""

from __future__ import annotations

from streamfix.models import File, Model, mirrored, models_dir

_LICENCE = "CC BY-NC 4.0 (InterLCM), CreativeML OpenRAIL-M / MIT (LCM), MIT (CLIP)"
_TERMS = (
    "InterLCM's weights are CC BY-NC 4.0: free to use, share and change for non-commercial purposes, with credit to "
    "sen-mao/InterLCM; any commercial use of them, or of a service built on them, needs the authors' permission"
)
_RELEASE = "https://github.com/sen-mao/InterLCM/releases/download/v0.1.0"
_LCM, _CLIP, _TAESD = "SimianLuo/LCM_Dreamshaper_v7", "openai/clip-vit-base-patch16", "madebyollin/taesd"
_UNET_AND_VAE = (
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
)
_TEXT = (
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
)
ENCODERS = {
    "interlcm": "3step",
    "interlcm-1step": "1step",
    "interlcm-colorize": "colorization_1step",
    "interlcm-inpaint": "inpainting_1step",
}
"""The models with the suffix of their pair of encoders in the release."""
_SUMMARIES = {
    "interlcm": "the published face restorer, 3 steps (5.9 GB with the networks that all four share)",
    "interlcm-1step": "the same in 1 step: faster, a little softer",
    "interlcm-colorize": "colours for grey faces, 1 step",
    "interlcm-inpaint": "fills what is painted white in a face, 1 step",
}


def released() -> tuple[Model, ...]:
    """Every one of them."""
    shared = (*(_from_hub(_LCM, name) for name in _UNET_AND_VAE), *_clip())
    folder = models_dir() / "InterLCM"
    restorers = tuple(
        Model(
            name=name,
            kind="restorer",
            summary=_SUMMARIES[name],
            licence=_LICENCE,
            terms=_TERMS,
            path=folder,
            url=mirrored(_RELEASE),
            files=(_encoder("visual_encoder", pair), _encoder("spatial_encoder", pair), *shared),
        )
        for name, pair in ENCODERS.items()
    )
    taesd = Model(
        name="taesd",
        kind="part",
        summary="a tiny VAE for --vae tiny: faster, less exact around the eyes",
        licence="MIT",
        path=models_dir() / "taesd",
        url=mirrored(f"https://huggingface.co/{_TAESD}"),
        files=tuple(_from_hub(_TAESD, n) for n in ("config.json", "diffusion_pytorch_model.safetensors")),
    )
    text = Model(
        name="lcm-text",
        kind="part",
        summary="the text encoder, needed by --prompt only",
        licence="CreativeML OpenRAIL-M / MIT",
        path=models_dir() / "LCM_Dreamshaper_v7" / "text_encoder",
        url=mirrored(f"https://huggingface.co/{_LCM}"),
        files=tuple(_from_hub(_LCM, name) for name in _TEXT),
    )
    return (*restorers, taesd, text)


def _encoder(what: str, pair: str) -> File:
    name = f"{what}_{pair}.pth"
    path = models_dir() / "InterLCM" / name
    return File(
        path=path,
        url=mirrored(f"{_RELEASE}/{name}"),
        by_hand=(f"weights/InterLCM/{name}", f"InterLCM/{name}", name),
        converted=path.with_suffix(".safetensors"),
    )


def _clip() -> tuple[File, ...]:
    # the vision tower comes in one file with the text tower; what is kept of it after the first load is the former alone
    weights = _from_hub(_CLIP, "pytorch_model.bin")
    converted = weights.path.with_name("vision_tower.safetensors")
    kept = File(path=weights.path, url=weights.url, by_hand=weights.by_hand, converted=converted)
    return (_from_hub(_CLIP, "config.json"), kept)


def _from_hub(repository: str, name: str) -> File:
    folder = repository.split("/")[1]
    return File(
        path=models_dir() / folder / name,
        url=mirrored(f"https://huggingface.co/{repository}/resolve/main/{name}"),
        by_hand=(f"{repository}/{name}", f"{folder}/{name}", f"weights/{folder}/{name}"),
    )
