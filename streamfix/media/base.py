"""What every source of frames and every sink for them has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

from streamfix.types import Facts, Frame


@dataclass(frozen=True, slots=True, kw_only=True)
class ColorTags:
    """How the numbers of a picture are to be read: code points of ITU-T H.273, which are FFmpeg's (2: unspecified).

    range is FFmpeg's: 0 unspecified, 1 limited ("tv"), 2 full ("pc").
    chroma_location is FFmpeg's name ("left", "center", "topleft" ...) or None where the stream does not say.
    """

    matrix: int = 2
    range: int = 0
    transfer: int = 2
    primaries: int = 2
    chroma_location: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HdrMetadata:
    """Static HDR metadata of SMPTE ST 2086 and CTA-861.3.

    primaries: chromaticities (x, y) of red, green, blue; white: of the white point; luminance: (min, max) in cd/m2;
    content_light: (MaxCLL, MaxFALL) in cd/m2. None where the stream does not say.
    """

    primaries: tuple[tuple[Fraction, Fraction], ...] | None = None
    white: tuple[Fraction, Fraction] | None = None
    luminance: tuple[Fraction, Fraction] | None = None
    content_light: tuple[int, int] | None = None


class Source(ABC):
    """A context manager that yields frames, once, in the order of presentation.

    path: the file or folder. is_still: the frames are independent pictures. width, height: of the stored picture (the
    first one of several pictures). time_base: unit of Frame.pts. frame_rate: average frames a second, > 0, for estimates
    only. frames, duration: estimates within start..end, None where unknown. rotation: 0, 90, 180 or 270 degrees to turn
    the stored picture clockwise so that it stands upright. start, end: the range asked for, in seconds from the start of
    the file. damaged: corrupt packets, frames and time stamps met so far. guessed: frames without any time stamp so far,
    set after the previous one by its distance to the one before.
    """

    path: Path
    is_still: bool
    width: int
    height: int
    time_base: Fraction
    frame_rate: float
    frames: int | None
    duration: float | None
    rotation: int = 0
    start: float | None = None
    end: float | None = None
    damaged: int = 0
    guessed: int = 0

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]: ...

    @abstractmethod
    def facts(self) -> Facts:
        """What the file is: container, streams, tags; plain values that json can write."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file; harmless when called again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Sink(ABC):
    """A context manager that takes frames in order and leaves a whole output or none.

    path: the output. written: frames taken so far. encoder: name of what encodes, for reports.
    """

    path: Path
    encoder: str
    written: int = 0

    @abstractmethod
    def write(self, frame: Frame) -> None:
        """Encode one frame; raises OutputError."""

    @abstractmethod
    def finish(self) -> None:
        """Flush, close and move into place; raises OutputError."""

    @abstractmethod
    def discard(self) -> None:
        """Remove everything written so far; an output that was there before stays."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.discard()
            return
        try:
            self.finish()
        except BaseException:
            self.discard()
            raise
