"""A stream that needs no browser: a file in a loop, RTSP, HTTP, or a camera of this machine, opened again whenever it dies."""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import av
import av.error
import numpy as np

from streamfix._cv2 import cv2
from streamfix.errors import InputError, UsageError
from streamfix.media import facts
from streamfix.serve.encode import CLOCK_RATE
from streamfix.types import Frame

_log = logging.getLogger(__name__)

_FIRST_WAIT = 0.5
_LONGEST_WAIT = 15.0
_SETTLED = 10.0
"""Seconds of pictures after which the next failure waits shortly again."""
_TIMEOUT = 5.0
_LATE = 0.25
"""Seconds by which a file may fall behind its clock before the clock gives in."""
_SCHEMES = ("rtsp", "rtsps", "http", "https", "rtmp", "srt", "udp")
_OPTIONS = {"rtsp": {"rtsp_transport": "tcp"}, "rtsps": {"rtsp_transport": "tcp"}}


class Taker(Protocol):
    """Where pictures and sound go: a Feed."""

    def show(self, frame: Frame) -> None:
        """The newest picture."""

    def hear(self, frame: av.AudioFrame) -> None:
        """The newest sound."""

    def say(self, notice: str) -> None:
        """What viewers are told while no picture comes."""

    def restart(self) -> None:
        """A new time line begins."""


class LiveInput:
    """Reads a source in a thread of its own until `stop`.

    spec: `webcam:N`, a URL, or the path of a video file, which is played in a loop at its own pace. reconnected: called each time
    it is opened again. wait: seconds to the first new attempt; each further one waits twice as long, up to `longest`.
    """

    def __init__(
        self,
        spec: str,
        taker: Taker,
        *,
        reconnected: Callable[[], None] = lambda: None,
        wait: float = _FIRST_WAIT,
        longest: float = _LONGEST_WAIT,
    ) -> None:
        self._open = parse_input(spec)
        self.name = shown_name(spec)
        self._taker, self._reconnected = taker, reconnected
        self._wait, self._longest = wait, longest
        self._stopped = threading.Event()
        self._index = 0
        self.attempts = 0
        self._thread = threading.Thread(target=self._run, name="live-input", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(2 * _TIMEOUT)

    def _run(self) -> None:
        wait = self._wait
        while not self._stopped.is_set():
            began, self.attempts = time.monotonic(), self.attempts + 1
            try:
                self._taker.restart()
                self._play()
                reason = "has ended"
            except (av.error.FFmpegError, OSError, InputError, ValueError) as error:
                # FFmpeg's text may hold the address with its password
                reason = str(error) if isinstance(error, InputError) else f"cannot be read ({type(error).__name__})"
            if self._stopped.is_set():
                return
            if time.monotonic() - began > _SETTLED:
                wait = self._wait
            pause = wait * random.uniform(0.8, 1.2)  # many servers must not come back at one moment
            _log.warning("the input %s %s; trying again in %.1f s", self.name, reason, pause)
            self._taker.say("the camera is away; reconnecting")
            self._stopped.wait(pause)
            wait = min(2 * wait, self._longest)
            self._reconnected()

    def _play(self) -> None:
        for entry in self._open(self._stopped):
            if self._stopped.is_set():
                return
            if isinstance(entry, av.AudioFrame):
                self._taker.hear(entry)
            else:
                picture, seconds = entry
                self._taker.show(
                    Frame(
                        picture=picture,
                        index=self._index,
                        pts=round(seconds * CLOCK_RATE),
                        time_base=Fraction(1, CLOCK_RATE),
                        rotation=facts.clockwise(picture.rotation),
                    )
                )
                self._index += 1


Entry = tuple[av.VideoFrame, float] | av.AudioFrame
Opener = Callable[[threading.Event], Iterator[Entry]]


def parse_input(spec: str) -> Opener:
    """How to open an input. Raises UsageError for what none can be, InputError for a file that is not there."""
    if match := re.fullmatch(r"webcam:(\d+)", spec):
        number = int(match[1])
        return lambda stopped: _webcam(number, stopped)
    scheme = urlsplit(spec).scheme if "://" in spec else ""
    if scheme:
        if scheme not in _SCHEMES:
            raise UsageError(f"{scheme}:// is no input; give one of {', '.join(_SCHEMES)}, webcam:N or a file")
        return lambda stopped: _network(spec, scheme)
    path = Path(spec)
    if not path.is_file():
        raise InputError(f"there is no file {path}; give a video, an rtsp:// or http:// address, or webcam:0")
    return lambda stopped: _loop(path, stopped)


def shown_name(spec: str) -> str:
    """An input's name for logs: an address without its password, path and query."""
    if "://" not in spec:
        return spec if spec.startswith("webcam:") else Path(spec).name
    parts = urlsplit(spec)
    return f"{parts.scheme}://{parts.hostname or ''}"


def _network(url: str, scheme: str) -> Iterator[Entry]:
    """Pictures and sound as they arrive."""
    with av.open(url, timeout=(_TIMEOUT, _TIMEOUT), options=_OPTIONS.get(scheme, {})) as container:
        base: float | None = None
        for picture, seconds in _decoded(container):
            if seconds is None:
                yield picture  # type: ignore[misc]  # sound
                continue
            if base is None:
                base = seconds
            yield picture, seconds - base  # type: ignore[misc]


def _loop(path: Path, stopped: threading.Event) -> Iterator[Entry]:
    """A file again and again, each picture at its moment."""
    began, offset, last = time.monotonic(), 0.0, 0.0
    while not stopped.is_set():
        before = last
        with av.open(str(path.absolute())) as container:
            start = (container.start_time or 0) / av.time_base
            for entry, seconds in _decoded(container):
                moment = offset + ((seconds - start) if seconds is not None else 0.0)
                if seconds is None:
                    stamp = entry.pts * entry.time_base if entry.pts is not None and entry.time_base else None
                    moment = offset + float(stamp) - start if stamp is not None else last
                late = time.monotonic() - began - moment
                if late > _LATE:
                    began += late
                elif stopped.wait(max(-late, 0.0)):
                    return
                if seconds is None:
                    yield entry  # type: ignore[misc]
                else:
                    last = moment
                    yield entry, moment  # type: ignore[misc]
        if last <= before:
            raise InputError(f"no picture of {path.name} can be decoded; give a video")
        offset = last + 0.04


def _decoded(container: av.container.InputContainer) -> Iterator[tuple[av.VideoFrame | av.AudioFrame, float | None]]:
    """Frames in the order of the container: pictures with their seconds, sound with None."""
    video = container.streams.best("video")
    if video is None:
        raise InputError("the input has no video")
    assert isinstance(video, av.VideoStream)
    video.thread_type = "SLICE" if container.format.name in ("rtsp", "rtp") else "AUTO"  # frame threads add delay
    audio = container.streams.best("audio")
    last = 0.0
    for packet in container.demux([s for s in (video, audio) if s is not None]):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            continue  # a damaged packet costs its picture only
        for frame in frames:
            if isinstance(frame, av.AudioFrame):
                yield frame, None
            elif isinstance(frame, av.VideoFrame):
                last = frame.time if frame.time is not None else last + 0.04
                yield frame, last


def _webcam(number: int, stopped: threading.Event) -> Iterator[Entry]:
    """Pictures of a camera of this machine."""
    capture = cv2.VideoCapture(number)
    try:
        if not capture.isOpened():
            raise InputError(
                f"camera {number} cannot be opened; check that it is connected and no other program uses it"
            )
        began = time.monotonic()
        while not stopped.is_set():
            there, image = capture.read()
            if not there:
                raise InputError(f"camera {number} gives no picture any more")
            picture = av.VideoFrame.from_ndarray(np.asarray(image, dtype=np.uint8), format="bgr24").reformat(
                format="yuv420p"
            )
            yield picture, time.monotonic() - began
    finally:
        capture.release()
