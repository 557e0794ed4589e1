"""From files on disk to networks: pickles by tensors alone, kept as safetensors after the first load."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from streamfix.errors import ModelError
from streamfix.models import File, Model, find, record, recorded, sha256_of
from streamfix.restore.interlcm import networks
from streamfix.restore.interlcm.options import Options
from streamfix.restore.interlcm.pipeline import InterLCM
from streamfix.restore.interlcm.visual_encoder import VisualEncoder
from streamfix.types import CROP_SIZE

_log = logging.getLogger(__name__)
State = dict[str, Tensor]
_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Names of the VAE's attention in older files."""
FACE_SIZE = "face_size"
"""Where a release says for which size of faces it is: in the configuration of its UNet, whose own `sample_size` is that of another
training."""
_ENCODERS = ("visual_encoder", "spatial_encoder")


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What InterLCM stands on, as released: in evaluation mode and frozen. clip: None where it was not asked for.

    face_size: side in pixels of the faces that the networks were trained on; published 512.
    """

    unet: Any
    vae: Any
    scheduler: Any
    clip: networks.ClipTokens | None
    face_size: int = CROP_SIZE


def load_networks(name: str, options: Options, *, device: torch.device, dtype: torch.dtype) -> InterLCM:
    """The networks of a released model that these options need. Raises ModelError where a file is missing or does not fit."""
    files = _files(name, options)
    require(find(name), [f for role, f in files.items() if _is_needed(role, options)])
    folder = Path(options.base) if options.base else None
    base = load_base(options.vae, clip=options.prompt is None, device=device, dtype=dtype, folder=folder, name=name)
    spatial = visual = None
    if options.spatial:
        with torch.device("meta"):
            spatial = networks.spatial_encoder(base.unet.config)
        fill(spatial, state_of(files["spatial_encoder"]), files["spatial_encoder"].path)
        _place(spatial, device, dtype)
    if options.prompt is None:
        assert base.clip is not None
        with torch.device("meta"):
            visual = VisualEncoder.of(base.clip.tower.config)
        fill(visual, state_of(files["visual_encoder"]), files["visual_encoder"].path)
        _place(visual, device, dtype)
    return InterLCM(
        unet=base.unet,
        spatial_encoder=spatial,
        vae=base.vae,
        visual_encoder=visual,
        scheduler=base.scheduler,
        clip=base.clip,
        face_size=base.face_size,
    )


def load_base(
    vae: str = "full",
    *,
    clip: bool = True,
    device: torch.device,
    dtype: torch.dtype,
    folder: Path | None = None,
    name: str = "interlcm",
) -> Base:
    """The networks that all released models share. Raises ModelError where a file is missing or does not fit.

    vae: "full" or "tiny". folder: with the release, laid out as `streamfix.models.find` says, where it is not in the
    models folder. name: the model that needs them.
    """
    with _quiet():
        from diffusers import LCMScheduler, UNet2DConditionModel

    model = find(name, folder)
    files = {_role(f): f for f in model.files}
    needed = Options(vae="tiny" if vae == "tiny" else "full", prompt=None if clip else "", spatial=False)
    require(model, [f for role, f in files.items() if role not in _ENCODERS and _is_needed(role, needed)])
    unet_config = read_json(files["unet/config.json"])
    face_size = int(unet_config.pop(FACE_SIZE, CROP_SIZE))
    unet = build(UNet2DConditionModel, unet_config, state_of(files["unet/diffusion_pytorch_model.safetensors"]))
    autoencoder = load_vae(vae, device=device, dtype=dtype, folder=folder, name=name)
    tokens = _clip(files) if clip else None
    for network in (unet, tokens):
        if network is not None:
            _place(network, device, dtype)
    scheduler = LCMScheduler.from_config(  # type: ignore[no-untyped-call]
        read_json(files["scheduler/scheduler_config.json"])
    )
    return Base(unet=unet, vae=autoencoder, scheduler=scheduler, clip=tokens, face_size=face_size)


def load_vae(
    vae: str = "full",
    *,
    device: torch.device,
    dtype: torch.dtype,
    folder: Path | None = None,
    name: str = "interlcm",
) -> Any:
    """The VAE alone: arguments and errors as for `load_base`; AutoencoderTiny where its configuration says so."""
    with _quiet():
        from diffusers import AutoencoderKL, AutoencoderTiny

    model = find("taesd" if vae == "tiny" else name, folder)
    files = {f.path.name: f for f in model.files if vae == "tiny" or _role(f).startswith("vae/")}
    require(model, list(files.values()))
    config = read_json(files["config.json"])
    kind = AutoencoderTiny if vae == "tiny" or config.get("_class_name") == "AutoencoderTiny" else AutoencoderKL
    network = build(kind, config, renamed(state_of(files["diffusion_pytorch_model.safetensors"])))
    _place(network, device, dtype)
    return network


def _place(network: Any, device: torch.device, dtype: torch.dtype) -> None:
    nn.Module.to(network.eval().requires_grad_(False), device, dtype)  # diffusers' own `to` warns of nothing
    if not isinstance(network, networks.ClipTokens | VisualEncoder):  # the others are convolutions over pictures
        network.to(memory_format=torch.channels_last)


def digest_of(name: str, options: Options) -> str:
    """The sha256 of a model's spatial encoder, its largest file of its own; recorded where that was not done yet.

    Of the visual encoder where there is no other, and of the UNet without either.
    """
    files = _files(name, options)
    own = [role for role in ("spatial_encoder", "visual_encoder") if _is_needed(role, options)]
    file = files[own[0] if own else "unet/diffusion_pytorch_model.safetensors"]
    path = file.path if file.path.is_file() or file.converted is None else file.converted
    known = recorded(path.parent).get(file.path.name) or recorded(path.parent).get(path.name)
    if known is None:
        known = sha256_of(path)
        try:
            record(path, known)
        except OSError:  # a folder that others look after
            _log.warning("the sha256 of %s cannot be recorded in %s", path.name, path.parent)
    return known


def _files(name: str, options: Options) -> dict[str, File]:
    """The files of a model by what they are for, in the folders that the options name."""
    files = {_role(f): f for f in find(name, Path(options.base) if options.base else None).files}
    if options.encoders:
        folder = Path(options.encoders)
        for what in _ENCODERS:
            wanted = files[what].path.name
            found = [*folder.glob(f"{what}_*.pth"), *folder.glob(f"InterLCM/{what}_*.pth")]
            path = next((p for p in found if p.name == wanted), found[0] if len(found) == 1 else folder / wanted)
            files[what] = replace(files[what], path=path, converted=path.with_suffix(".safetensors"))
    return files


def require(model: Model, files: list[File]) -> None:
    """ModelError unless these files are here: which is missing, from where it comes, and how to place it."""
    missing = [f for f in files if not f.present]
    if not missing:
        return
    first = missing[0]
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    raise ModelError(
        f"{model.name} lacks {first.path.name}{more}; run `streamfix models pull {model.name}`, or bring {first.url} by hand "
        f"to {first.path} (`streamfix models pull {model.name} --from DIR` places a folder of such files)"
    )


def state_of(file: File) -> State:
    """The tensors of a file; those of a pickle are kept in safetensors beside it, and read from there the next time."""
    path, kept = file.path, file.converted
    if kept is None:
        return _safetensors(path)
    if kept.is_file() and (not path.is_file() or _made_from(kept) == _stamp(path)):
        return _safetensors(kept)
    digest = sha256_of(path)
    if recorded(path.parent).get(path.name, digest) != digest:
        raise ModelError(
            f"{path} is not the file that was pulled (its sha256 differs); pull the model again, with --from DIR to take "
            "files of your own"
        )
    state = _unpickled(path)
    part = kept.with_name(kept.name + ".part")
    try:
        record(path, digest)
        save_file({k: v.contiguous() for k, v in state.items()}, part, metadata={"made_from": _stamp(path)})
        shutil.copymode(path, part)
        os.replace(part, kept)
        record(kept, sha256_of(kept))
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        _log.warning("%s is read as a pickle every time: %s", path.name, error.strerror or error)
    return state


def _stamp(path: Path) -> str:
    """Size and time of a file: a cheap sign that it was replaced."""
    facts = path.stat()
    return f"{facts.st_size} {facts.st_mtime_ns}"


def _made_from(path: Path) -> str:
    try:
        with safe_open(path, framework="pt") as opened:
            return str((opened.metadata() or {}).get("made_from", ""))
    except (SafetensorError, OSError):
        return ""  # broken: made again


def _safetensors(path: Path) -> State:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"the weights {path} are corrupted; remove them and pull the model again") from error


def _unpickled(path: Path) -> State:
    """The tensors of a torch file, without running any code that it may hold; of CLIP the vision tower alone."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ModelError(
            f"the weights {path} cannot be read as plain tensors; remove the file and pull the model again"
        ) from error
    state: Any = loaded
    if isinstance(loaded, Mapping):
        state = next((loaded[k] for k in ("params_ema", "params") if k in loaded), loaded)
    if isinstance(state, Mapping):
        if any(k.startswith("vision_model.") for k in state):
            state = {k: v for k, v in state.items() if k.startswith("vision_model.") and not k.endswith("position_ids")}
        if state and all(isinstance(v, Tensor) for v in state.values()):
            return {str(k): v.detach().clone() for k, v in state.items()}
    raise ModelError(f"{path} holds no weights as InterLCM publishes them (params_ema); pull the model again")


def read_json(file: File) -> dict[str, Any]:
    """A configuration; ModelError when it cannot be read."""
    try:
        content = json.loads(file.path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{file.path} is not a readable configuration; pull the model again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file.path} is not a configuration; pull the model again")
    return content


def build(kind: Any, config: dict[str, Any], state: State) -> Any:
    """A diffusers network of that configuration with these weights, without drawing random ones first."""
    with torch.device("meta"):
        network = kind.from_config(config)
    fill(network, state, kind.__name__)
    return network


def fill(network: Any, state: State, what: Path | str) -> None:
    """Give a network (on the meta device) its weights; ModelError unless every name and shape fits."""
    wanted = network.state_dict()
    wrong = [k for k, v in wanted.items() if k not in state or state[k].shape != v.shape]
    wrong += [k for k in state if k not in wanted]
    if wrong:
        raise ModelError(
            f"the weights {what} do not fit the network: {len(wrong)} tensors are missing, too many or of another shape, such "
            f"as {wrong[0]}; pull the model again"
        )
    network.load_state_dict(state, assign=True)


def renamed(state: State) -> State:
    """A VAE's tensors by today's names and shapes."""
    if not any(".attentions.0.query." in k for k in state):
        return state
    result = {}
    for key, value in state.items():
        for old, new in _ATTENTION.items():
            if ".attentions." in key and old in key:
                key = key.replace(old, new)
                value = value.flatten(1) if value.ndim > 2 else value  # 1x1 convolutions were used at first
        result[key] = value
    return result


def _clip(files: Mapping[str, File]) -> networks.ClipTokens:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    folder = "clip-vit-base-patch16"
    config = read_json(files[f"{folder}/config.json"])
    tower = CLIPVisionModel(CLIPVisionConfig.from_dict(config.get("vision_config", config)))
    if tower.config.hidden_act != "quick_gelu":
        raise ModelError(f"InterLCM needs OpenAI's CLIP with quick_gelu, not with {tower.config.hidden_act}")
    weights = files[f"{folder}/pytorch_model.bin"]
    state = {k.removeprefix("vision_model."): v for k, v in state_of(weights).items()}
    if hasattr(tower, "vision_model"):  # transformers before 5
        state = {f"vision_model.{k}": v for k, v in state.items()}
    fill(tower, state, weights.path)
    return networks.ClipTokens(tower)


@contextmanager
def _quiet() -> Iterator[None]:
    """Transformers tells every import that torchvision is missing, which nothing here needs."""
    from transformers.utils import logging

    talk: Any = logging
    before = talk.get_verbosity()
    talk.set_verbosity_error()
    try:
        yield
    finally:
        talk.set_verbosity(before)


def _role(file: File) -> str:
    """What a file is for: "visual_encoder", "spatial_encoder", or such as "unet/config.json"."""
    encoder = next((what for what in _ENCODERS if file.path.name.startswith(f"{what}_")), None)
    return encoder or f"{file.path.parent.name}/{file.path.name}"


def _is_needed(role: str, options: Options) -> bool:
    if role == "visual_encoder" or role.startswith("clip-"):
        return options.prompt is None
    if role == "spatial_encoder":
        return options.spatial
    return options.vae == "full" or not role.startswith("vae/")
