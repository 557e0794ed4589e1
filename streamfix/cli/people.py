"""The options that choose people, the same for every command that has them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_PANEL = "Choosing people"
Faces = Annotated[
    str,
    typer.Option(help="all, largest, center, a reference photo, or a TOML file of people.", rich_help_panel=_PANEL),
]
MinSize = Annotated[
    float, typer.Option(help="Leave faces smaller than this many source pixels.", min=0, rich_help_panel=_PANEL)
]
IgnoreBackground = Annotated[
    bool,
    typer.Option(
        "--ignore-background",
        help="Leave faces of less than about half the size of the frame's largest.",
        rich_help_panel=_PANEL,
    ),
]
Embedding = Annotated[
    Path | None,
    typer.Option(
        help="ONNX face embedding that tells people apart (1x3x112x112, RGB, ArcFace alignment).",
        metavar="FILE",
        rich_help_panel=_PANEL,
    ),
]
EmbeddingNorm = Annotated[str, typer.Option(help="Its input scaling: arcface or imagenet.", rich_help_panel=_PANEL)]
