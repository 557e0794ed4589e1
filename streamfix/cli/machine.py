"""`streamfix models` and `streamfix doctor`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Column, Table

from streamfix.cli.common import err, out, plain, told
from streamfix.errors import UsageError

models_app = typer.Typer(help="Weights: list, pull, verify.", no_args_is_help=True)


@models_app.command("list")
@told
def models_list() -> None:
    """List every model with its size, licence, and place."""
    from streamfix.models import catalogue

    # names and paths are of use only whole
    table = Table(Column("name", no_wrap=True), "kind", "size", "licence", Column("where", overflow="fold"))
    for model in catalogue():
        size = f"{model.size / 1e6:.1f} MB" if model.present else "-"
        where = str(model.path) if model.present else f"not here; streamfix models pull {model.name}"
        table.add_row(model.name, model.kind, size, model.licence, plain(where))
    out.print(table)


@models_app.command("pull")
@told
def models_pull(
    name: Annotated[str, typer.Argument(help="A name from `streamfix models list`.")],
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Folder of files brought by hand, such as weights/InterLCM/*.pth.", metavar="DIR"),
    ] = None,
    mirror: Annotated[
        str | None, typer.Option(help="Download from this address instead; also $STREAMFIX_MIRROR.", metavar="URL")
    ] = None,
) -> None:
    """Download a model; an interrupted download goes on where it broke off."""
    from streamfix.models import find, pull

    if mirror is not None:
        os.environ["STREAMFIX_MIRROR"] = mirror
    if source is not None and not source.is_dir():
        raise UsageError(f"there is no folder {source}; name the one with the files")
    model = find(name)
    if model.url is not None:
        err.print(f"licence of {model.name}: {model.licence}", highlight=False, soft_wrap=True)
    if model.terms:
        err.print(model.terms, highlight=False, soft_wrap=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(model.name, total=None)
        pull(
            model,
            lambda done, total: bar.update(task, completed=done, total=total or None),
            source=source,
            announce=lambda file: bar.reset(task, description=plain(file), total=None),
        )
    out.print(f"{model.name} is in {model.path}", highlight=False, markup=False, soft_wrap=True)


@models_app.command("verify")
@told
def models_verify() -> None:
    """Compare every model on this machine with its sha256."""
    from streamfix.errors import ModelError
    from streamfix.models import catalogue, verify

    broken = []
    for model in catalogue():
        if not model.present:
            continue
        result = verify(model)
        word = {True: "[green]ok[/]", False: "[red]differs[/]", None: "[yellow]no sha256 recorded[/]"}[result]
        out.print(f"{model.name}: {word}", highlight=False)
        if result is False:
            broken.append(model.name)
    if broken:
        raise ModelError(
            f"{', '.join(broken)} differ from what was shipped; pull them again or install streamfix again"
        )


@told
def doctor() -> None:
    """Say what runs where on this machine, with a remedy for each problem."""
    from streamfix.doctor import examine

    checks = examine()
    table = Table("", "what", "state", "remedy")
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "bad": "[red]bad[/]"}
    for check in checks:
        table.add_row(marks[check.level], check.what, plain(check.state), plain(check.remedy))
    out.print(table)
    if any(check.level == "bad" for check in checks):
        raise typer.Exit(1)
