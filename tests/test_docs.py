"""Every `streamfix ...` that README and docs show is a command that exists, with options that it has."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from interlcm_small import smallest_modules
from media_files import make_video

from streamfix.cli import app

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    page
    for page in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("weights/*.md"),
        *ROOT.glob("tools/**/*.md"),
    )
)
COMMAND = typer.main.get_command(app)


def shown(text: str) -> Iterator[tuple[str, bool]]:
    """The command lines of a page, and whether each is whole: those in code blocks are, a mention in a sentence may end early."""
    text = re.sub(r"\\\n\s*", "", text)
    fenced = False
    for line in text.splitlines():
        fenced ^= line.lstrip().startswith("```")
        if fenced or line.startswith("    "):
            for part in re.split(r"&&|\|\||[|;]", line.split(" # ")[0]):
                words = part.split()
                while words and "=" in words[0]:  # VARIABLE=value streamfix ...
                    words.pop(0)
                if "-m" in words and words[words.index("-m") + 1 :][:1] == [
                    "streamfix"
                ]:  # accelerate launch -m streamfix ...
                    words = words[words.index("-m") + 1 :]
                if words and re.fullmatch(r"(\S*/)?streamfix", words[0]):
                    yield " ".join(words[1:]), True
        else:
            for mention in re.findall(r"`streamfix ([^`]+)`", line):
                yield mention, False


def parse(line: str, whole: bool) -> None:
    """Raises where the command line would refuse it before it does anything."""
    words, command = shlex.split(line), COMMAND
    while words and hasattr(command, "commands"):
        if words[0].startswith("-"):
            break
        for name in words[0].split("|"):  # faces|video: either
            assert name in command.commands, f"there is no command {name!r} in {command.name}"
        command = command.commands[words.pop(0).split("|")[0]]
    if whole:
        context: Any = command.make_context(command.name, list(words))  # converts and checks, runs nothing
        context.close()
        return
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"-h", "--help"}
    for word in words:
        if word.startswith("-") and not word[1:2].isdigit():
            assert word.split("=")[0] in known, f"{command.name} has no option {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_commands_of_a_page_are_real(page: Path) -> None:
    wrong = []
    for line, whole in shown(page.read_text()):
        try:
            parse(line, whole)
        except Exception as error:  # typer's parser raises what click would
            wrong.append(f"streamfix {line}: {getattr(error, 'message', error)}")
    assert not wrong, "\n".join(wrong)


def test_most_pages_show_commands_and_wrong_ones_are_seen() -> None:
    assert sum(bool(list(shown(page.read_text()))) for page in PAGES) >= 3
    assert len(list(shown((ROOT / "README.md").read_text()))) > 20
    page = "```\n.venv/bin/pip install . && .venv/bin/streamfix enhance a.mp4 \\\n  -o b.mp4  # text --none\n```\n`streamfix evaluate`"
    assert list(shown(page)) == [("enhance a.mp4 -o b.mp4", True), ("evaluate", False)]
    for line, whole in shown(page):
        parse(line, whole)
    for line, whole in (
        ("enhanse a.mp4 -o b.mp4", True),
        ("enhance a.mp4", True),  # -o is missing
        ("enhance a.mp4 -o b.mp4 --no-such", True),
        ("enhance a.mp4 -o b.mp4 --crf many", True),
        ("train nothing", False),
        ("enhance --no-such", False),
    ):
        with pytest.raises(Exception, match=r"."):
            parse(line, whole)


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("in", "a", "b"):
        make_video(tmp_path / f"{name}.mp4", frames=2, size=(32, 32))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    networks = smallest_modules()
    given = {
        "crops": torch.zeros(1, 3, 512, 512),
        "lq": torch.zeros(1, 3, 64, 64),
        "clip_tokens": torch.zeros(1, 197, 768),
        "controlnet": networks["spatial_encoder"],
        "ve": networks["visual_encoder"],
        **networks,
    }
    for block in blocks:  # a quick restorer and a small face: names, arguments and shapes are what is looked at
        exec(block.replace('"lite"', '"passthrough"').replace("64, 64)", "8, 8)"), given)
    assert {p.name for p in tmp_path.iterdir()} >= {"out.mp4", "restored-a.mp4", "restored-b.mp4", "again.mp4"}
    assert given["restored"].shape == given["crops"].shape
    assert given["face"].shape == given["lq"].shape
