"""A text in place of the visual encoder, as in the ablation; nobody else needs a text encoder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from streamfix.errors import ModelError
from streamfix.models import find
from streamfix.restore.interlcm.checkpoint import require


@torch.no_grad()
def embed_prompt(prompt: str, folder: Path | None = None) -> Tensor:
    """The LCM's own embedding of a text, (1, 77, 768) float32 on the CPU; "" gives null text. The encoder is let go again.

    folder: with the release, where it is not in the models folder. Raises ModelError where its files are missing or cannot be read.
    """
    model = find("lcm-text", folder)
    require(model, list(model.files))
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = model.files[0].path.parent
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder.with_name("tokenizer"), local_files_only=True)
        encoder = CLIPTextModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"the text encoder in {folder} cannot be read ({error}); pull lcm-text again") from error
    encoder.requires_grad_(False)
    length = encoder.config.max_position_embeddings
    ids = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    embeds: Tensor = encoder(ids).last_hidden_state
    return embeds.float()
