"""Restorers that can do with less work: the same model, a little worse, for streams that it does not keep up with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from streamfix.restore.base import Restorer


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """One way to run a model.

    restorer: answers like any other. share: of the time that the model takes in full, as far as that can be told
    beforehand. words: what is left out, for people; empty for nothing.
    """

    restorer: Restorer
    share: float = 1.0
    words: str = ""


@runtime_checkable
class Adjustable(Protocol):
    """A restorer with cheaper ways to run."""

    def cheaper(self) -> Sequence[Effort]:
        """These ways, from the best to the cheapest; they share the weights."""
        ...


@runtime_checkable
class Preparable(Protocol):
    """A restorer whose first answer takes longer unless it was told to get ready."""

    def prepare(self) -> None:
        """Do now what the first call would do; may take seconds. Raises ModelError."""
        ...


def efforts(restorer: Restorer) -> tuple[Effort, ...]:
    """The restorer as it is, and its cheaper ways, from the best to the cheapest."""
    full = Effort(restorer=restorer)
    return (full, *restorer.cheaper()) if isinstance(restorer, Adjustable) else (full,)
