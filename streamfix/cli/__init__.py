"""The command line: every command parses its options, calls the library, and tells errors in one sentence.

Exit codes: 0 done, 1 the job failed, 2 the call was wrong, 130 interrupted. Heavy modules are imported inside the commands, so that
`--help` answers at once.
"""

from __future__ import annotations

import io
import signal
import sys
from typing import Annotated

import typer

from streamfix import __version__
from streamfix.cli.common import out, show_warnings
from streamfix.cli.evaluate import evaluate_app
from streamfix.cli.evaluate_paper import evaluate_ablation, evaluate_paper, evaluate_steps
from streamfix.cli.interlcm import compare_params
from streamfix.cli.learn import train_app
from streamfix.cli.live import live
from streamfix.cli.machine import doctor, models_app
from streamfix.cli.media import enhance, inspect
from streamfix.cli.prepare import prepare_faces
from streamfix.cli.train_interlcm import train_interlcm
from streamfix.cli.train_nano import nano_autoencoder, nano_consistency, tiny_decoder

app = typer.Typer(
    name="streamfix",
    help="Faces in video and live streams, restored without flicker.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(enhance)
app.command()(inspect)
app.command()(live)
app.command()(compare_params)
app.command()(prepare_faces)
train_app.command("interlcm")(train_interlcm)
train_app.command("nano-autoencoder")(nano_autoencoder)
train_app.command("nano-consistency")(nano_consistency)
train_app.command("decoder")(tiny_decoder)
app.add_typer(models_app, name="models")
app.command()(doctor)
app.add_typer(train_app, name="train")
evaluate_app.command("paper")(evaluate_paper)
evaluate_app.command("ablation")(evaluate_ablation)
evaluate_app.command("steps")(evaluate_steps)
app.add_typer(evaluate_app, name="evaluate")


@app.callback(invoke_without_command=True)
def common(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Faces in video and live streams, restored without flicker."""
    show_warnings()
    if version:
        out.print(f"streamfix {__version__}", highlight=False)
        raise typer.Exit


def main() -> None:
    """Entry point. SIGTERM, and the end of the terminal, unwind like Ctrl-C, so that no half file stays behind."""

    def leave(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        signal.signal(signal.SIGHUP, leave)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names that the terminal's encoding lacks must not end a job
            stream.reconfigure(errors="backslashreplace")
    app()
