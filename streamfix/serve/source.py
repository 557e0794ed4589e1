"""A stream that needs no browser: a file in a loop, RTSP, HTTP, or a camera of this machine, opened again whenever it dies."""

from __future__ import annotations

import logging
import os
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
from streamfix.media.opening import open_container, picture_stream
from streamfix.serve.colors import STANDARD, plain, turned
from streamfix.serve.encode import CLOCK_RATE
from streamfix.types import Frame

_log = logging.getLogger(__name__)

_FIRST_WAIT = 0.5
_LONGEST_WAIT = 15.0
_SETTLED = 10.0
"""Seconds of pictures after which the next failure waits shortly again."""
_TIMEOUT = 5.0
_FRAME = 0.04
"""Seconds of a picture that does not say how long it is shown."""
_BACK, _AHEAD = 1.0, 10.0
"""Seconds by which a picture may come before its time or after it; beyond that the source's clock has been set."""
_LONGEST_STILL = 1.0
"""Seconds that a picture from afar may be waited for."""
_LATE = 0.25
"""Seconds by which a file may fall behind its clock before the clock gives in."""
_SCHEMES = ("rtsp", "rtsps", "http", "https", "rtmp", "srt", "udp")
_WITH_HOST = ("rtsp", "rtsps", "http", "https")
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
    Raises what `parse_input` raises.
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
        self._shown: tuple[float, float] | None = None  # when the first picture of this attempt came, and the last
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
            self.attempts, self._shown = self.attempts + 1, None
            try:
                self._taker.restart()
                self._play()
                reason = "has ended"
            except (av.error.FFmpegError, cv2.error, OSError, InputError, ValueError) as error:
                # FFmpeg's text may hold the address with its password
                told = f": {error}" if isinstance(error, InputError) else f" ({type(error).__name__})"
                reason = f"cannot be read{told}"
            if self._stopped.is_set():
                return
            if self._shown is not None and self._shown[1] - self._shown[0] > _SETTLED:
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
                # turned here, as it is shown: viewers and recordings know of no rotation
                picture = turned(picture, facts.clockwise(picture.rotation))
                pts, time_base = round(seconds * CLOCK_RATE), Fraction(1, CLOCK_RATE)
                self._taker.show(Frame(picture=picture, index=self._index, pts=pts, time_base=time_base))
                self._index += 1
                now = time.monotonic()
                self._shown = (self._shown[0] if self._shown else now), now


Entry = tuple[av.VideoFrame, float] | av.AudioFrame
Opener = Callable[[threading.Event], Iterator[Entry]]


def parse_input(spec: str) -> Opener:
    """How to open an input, which may be away at the moment: a camera, an address.

    Raises UsageError for what none can be, InputError for a file that is not there or of which no picture can be decoded: to try
    that again would bring nothing.
    """
    if match := re.fullmatch(r"webcam:([0-9]{1,4})", spec):
        number = int(match[1])
        return lambda stopped: _webcam(number, stopped)
    if "://" in spec:
        scheme = _scheme(spec)
        return lambda stopped: _network(spec, scheme, stopped)
    path = Path(spec)
    if not os.path.isfile(spec):  # unlike Path's own, False for a name that is too long
        raise InputError(
            f"there is no file {spec or 'without a name'}; give a video, an rtsp:// or http:// address, or webcam:0"
        )
    try:
        with open_container(path) as container:
            if not any(isinstance(frame, av.VideoFrame) for frame, _ in _decoded(container)):
                raise _no_picture(path)
    except (av.error.FFmpegError, OSError) as error:
        raise _no_picture(path) from error
    return lambda stopped: _loop(path, stopped)


def _scheme(url: str) -> str:
    """UsageError for an address that leads nowhere; the message must not hold its password."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise UsageError(
            "the address of the input makes no sense; write rtsp://USER:PASSWORD@HOST:PORT/PATH, signs in a password as %23"
        ) from error
    if parts.scheme not in _SCHEMES:
        raise UsageError(f"{parts.scheme}:// is no input; give one of {', '.join(_SCHEMES)}, webcam:N or a file")
    if parts.scheme in _WITH_HOST and not parts.hostname:  # the others may listen
        raise UsageError(f"the address of the input names no host; write {parts.scheme}://HOST/PATH")
    return parts.scheme


def _no_picture(path: Path) -> InputError:
    return InputError(f"no picture of {path.name} can be decoded; give a video")


def shown_name(spec: str) -> str:
    """An input's name for logs: an address without its password, path and query."""
    if "://" not in spec:
        return spec if spec.startswith("webcam:") else Path(spec).name
    parts = urlsplit(spec)
    return f"{parts.scheme}://{parts.hostname or ''}"


def _network(url: str, scheme: str, stopped: threading.Event) -> Iterator[Entry]:
    """Pictures and sound as they arrive; over HTTP each picture at its moment, since what lies there comes as fast as the line."""
    began, base = 0.0, 0.0
    with av.open(url, timeout=(_TIMEOUT, _TIMEOUT), options=_OPTIONS.get(scheme, {})) as container:
        # the formats of HTTP cameras have no clock of their own, and a made-up one must not hold them up
        paced = scheme in ("http", "https") and container.format.name not in ("mpjpeg", "mjpeg")
        for entry, seconds in _decoded(container):
            if isinstance(entry, av.AudioFrame):
                yield entry
                continue
            now = time.monotonic()
            if not began:
                began, base = now, seconds
            moment = seconds - base
            ahead = moment - (now - began)
            if paced and ahead > 0:
                began -= max(ahead - _LONGEST_STILL, 0.0)
                if stopped.wait(min(ahead, _LONGEST_STILL)):
                    return
            yield entry, moment


def _loop(path: Path, stopped: threading.Event) -> Iterator[Entry]:
    """A file again and again, each picture at its moment."""
    began, offset, last = time.monotonic(), 0.0, 0.0
    while not stopped.is_set():
        seen = False
        with open_container(path) as container:
            start = (container.start_time or 0) / av.time_base
            for entry, seconds in _decoded(container):
                moment = offset + seconds - start
                late = time.monotonic() - began - moment
                if late > _LATE:
                    began += late
                elif stopped.wait(max(-late, 0.0)):
                    return
                if isinstance(entry, av.AudioFrame):
                    yield entry
                else:
                    last, seen = moment, True
                    yield entry, moment
        if not seen:
            raise _no_picture(path)
        offset = last + _FRAME


def _decoded(container: av.container.InputContainer) -> Iterator[tuple[av.VideoFrame | av.AudioFrame, float]]:
    """Frames in the order of the container with their seconds, which go on where the source's clock jumps."""
    video = picture_stream(container)
    if video is None:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise InputError(f"the input has no video that can be decoded (it holds {kinds}); give one with a picture")
    video.thread_type = "SLICE" if container.format.name in ("rtsp", "rtp") else "AUTO"  # frame threads add delay
    # PyAV crashes where it decodes a stream that FFmpeg knows no decoder for
    sounds = [s for s in container.streams.audio if s.codec_context is not None]
    best = container.streams.best("audio")
    audio = best if best in sounds else next(iter(sounds), None)
    last: float | None = None
    offset, step = 0.0, _FRAME
    for packet in container.demux([s for s in (video, audio) if s is not None]):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            continue  # a damaged packet costs its picture only
        for frame in frames:
            if not isinstance(frame, (av.VideoFrame, av.AudioFrame)):
                continue
            seconds = None if frame.time is None else frame.time + offset
            jumped = last is not None and seconds is not None and not -_BACK < seconds - last - step < _AHEAD
            if isinstance(frame, av.AudioFrame):
                # sound on the other side of a jump than the picture belongs to the picture's moment
                yield frame, (last or 0.0) if seconds is None or jumped else seconds
            else:
                if jumped and last is not None and frame.time is not None:
                    offset = last + step - frame.time
                    seconds = last + step
                last = seconds if seconds is not None else (last or 0.0) + step
                step = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else _FRAME
                yield frame, last


def _webcam(number: int, stopped: threading.Event) -> Iterator[Entry]:
    """Pictures of a camera of this machine."""
    # the page that OpenCV prints at each attempt would hide the sentence below
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
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
            picture = av.VideoFrame.from_ndarray(np.asarray(image, dtype=np.uint8), format="bgr24")
            yield plain(picture, (picture.width, picture.height), STANDARD), time.monotonic() - began
    finally:
        capture.release()
