"""Where the restored stream goes besides the network: a file, and a virtual camera for Zoom, Teams and the like."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import av.error
from av.video.stream import VideoStream

from streamfix import __version__
from streamfix.errors import DependencyError, OutputError, UsageError
from streamfix.media.color import copy_picture
from streamfix.media.part import explain, part_of, prepare, release
from streamfix.serve.colors import STANDARD, colors_of, even, plain, write_tags
from streamfix.serve.encode import CLOCK_RATE, TIME_BASE
from streamfix.serve.viewers import Packet

_log = logging.getLogger(__name__)

SUFFIXES = (".mkv", ".mp4")
_WAITING = 30
_QUALITY = {"crf": "20", "preset": "veryfast"}


class Recording:
    """The stream as a file, H.264 and Opus, with the time stamps it was sent with.

    It grows in a part file beside `path` and appears there when it is closed; where this process is killed, the part file can be
    played all the same. dropped: called for each picture that the disk or the encoder was too slow for. Raises UsageError for another
    suffix than .mkv and .mp4, OutputError where nothing can be written.
    """

    def __init__(self, path: Path, *, dropped: Callable[[str], None], note: str, overwrite: bool = False) -> None:
        if path.suffix.lower() not in SUFFIXES:
            raise UsageError(f"a recording ends in {' or '.join(SUFFIXES)}, and {path.name} does not")
        prepare(path, source=path.with_name(path.name + ".none"), overwrite=overwrite)
        self.path = path
        self._dropped, self._note = dropped, note
        self._items: queue.Queue[tuple[av.VideoFrame, float] | tuple[Packet, float, int] | None] = queue.Queue(_WAITING)
        self._container: av.container.OutputContainer | None = None
        self._video: VideoStream | None = None
        self._audio: av.AudioStream | None = None
        self._began: float | None = None
        self._colors = STANDARD
        self._last = {"video": -1, "audio": -1}
        self._thread = threading.Thread(target=self._work, name="live-record", daemon=True)
        self._thread.start()

    def show(self, picture: av.VideoFrame, stamp: float) -> None:
        """Take a picture, from any thread; stamp: seconds on the stream's clock."""
        try:
            self._items.put_nowait((copy_picture(picture), stamp))
        except queue.Full:
            self._dropped("recording too slow")

    def hear(self, packet: Packet, stamp: float) -> None:
        """Take a packet of Opus."""
        try:
            self._items.put_nowait((packet, stamp, 0))
        except queue.Full:
            self._dropped("recording too slow")

    def close(self) -> None:
        """Write what is left and put the file in its place."""
        self._items.put(None)
        self._thread.join()

    def _work(self) -> None:
        try:
            while (item := self._items.get()) is not None:
                self._take(item)
        except (OSError, av.error.FFmpegError) as error:
            _log.error("the recording ends: %s", explain(error, self.path))
            while self._items.get() is not None:  # whoever shows must not wait
                pass
            return
        try:
            self._finish()
        except (OSError, av.error.FFmpegError) as error:  # the last item has been taken: there is none to wait for
            _log.error("the recording cannot be finished: %s", explain(error, self.path))

    def _take(self, item: tuple[av.VideoFrame, float] | tuple[Packet, float, int]) -> None:
        if len(item) == 2:
            picture, stamp = item
            container, video = self._open(picture)
            if self._began is None:
                self._began = stamp
            picture = plain(picture, (video.width, video.height), self._colors)
            picture.pts, picture.time_base = self._next("video", stamp, CLOCK_RATE), TIME_BASE
            container.mux(video.encode(picture))
        elif self._container is not None and self._began is not None and self._audio is not None:
            packet, stamp, _ = item
            if stamp >= self._began:
                own = av.Packet(bytes(packet))  # the packet itself goes to viewers
                own.pts = own.dts = self._next("audio", stamp, 48_000)
                own.time_base, own.stream = Fraction(1, 48_000), self._audio
                self._container.mux(own)

    def _next(self, kind: str, stamp: float, rate: int) -> int:
        pts = max(round((stamp - (self._began or 0.0)) * rate), self._last[kind] + 1)
        self._last[kind] = pts
        return pts

    def _open(self, picture: av.VideoFrame) -> tuple[av.container.OutputContainer, VideoStream]:
        if self._container is None or self._video is None:
            # fragments: what is on the disk can be played, whatever happens next
            options = (
                {"movflags": "frag_keyframe+empty_moov+use_metadata_tags"} if self.path.suffix.lower() == ".mp4" else {}
            )
            container = av.open(str(part_of(self.path)), "w", options=options)
            container.metadata["enhanced"] = self._note
            video = container.add_stream("libx264", rate=30, options=dict(_QUALITY))
            video.width, video.height = even(picture.width, picture.height)
            self._colors = colors_of(picture)
            write_tags(video.codec_context, self._colors)
            video.pix_fmt, video.codec_context.time_base = "yuv420p", TIME_BASE
            video.time_base, video.codec_context.gop_size = TIME_BASE, 60
            audio = container.add_stream("libopus", rate=48_000)
            audio.codec_context.layout = "stereo"
            self._container, self._video, self._audio = container, video, audio
        return self._container, self._video

    def _finish(self) -> None:
        part = part_of(self.path)
        try:
            if self._container is None or self._video is None:
                part.unlink(missing_ok=True)
                _log.info("nothing was recorded")
                return
            self._container.mux(self._video.encode(None))
            self._container.close()
            os.replace(part, self.path)
            _log.info("recorded %s", self.path.name)
        finally:
            release(self.path)


class VirtualCamera:
    """The stream as a camera of this machine, through pyvirtualcam (extra `virtualcam`).

    Raises DependencyError where that is not installed. The device is opened with the first picture; where there is none it is
    told once in the log.
    """

    def __init__(self, *, fps: float = 30.0) -> None:
        try:
            import pyvirtualcam
        except ImportError as error:
            raise DependencyError(
                f"a virtual camera needs pyvirtualcam ({error}); install streamfix[virtualcam]"
            ) from error
        self._module, self._fps = pyvirtualcam, fps
        self._newest: queue.Queue[av.VideoFrame | None] = queue.Queue(1)
        self._thread = threading.Thread(target=self._work, name="live-virtualcam", daemon=True)
        self.error: OutputError | None = None
        self._thread.start()

    def show(self, picture: av.VideoFrame, _stamp: float) -> None:
        """Take the newest picture; one that still waits is replaced."""
        if self.error is not None:
            return
        own = copy_picture(picture)
        while True:
            try:
                return self._newest.put_nowait(own)
            except queue.Full:
                try:
                    self._newest.get_nowait()
                except queue.Empty:
                    continue

    def hear(self, _packet: Packet, _stamp: float) -> None:
        """A camera has no sound."""

    def close(self) -> None:
        """Let go of the device."""
        with contextlib.suppress(queue.Empty):
            self._newest.get_nowait()
        self._newest.put(None)
        self._thread.join(10.0)

    def _work(self) -> None:
        camera = None
        try:
            while (picture := self._newest.get()) is not None:
                if camera is None:
                    camera = self._module.Camera(width=picture.width, height=picture.height, fps=self._fps)
                    _log.info("virtual camera: %s", camera.device)
                camera.send(picture.to_ndarray(format="rgb24", width=camera.width, height=camera.height))
        except RuntimeError as error:
            self.error = OutputError(f"there is no virtual camera here: {str(error).splitlines()[0]}")
            _log.error("%s", self.error)
        finally:
            if camera is not None:
                camera.close()
            with contextlib.suppress(queue.Empty):
                self._newest.get_nowait()  # nobody waits for a place


def provenance(model: str, sha256: str | None) -> str:
    """Where restored faces come from, for the file's metadata: detail is synthesised, people must be able to tell."""
    return f"faces restored live by streamfix {__version__}; model {model}" + (
        f" sha256:{sha256[:16]}" if sha256 else ""
    )


def numbered(path: Path, number: int) -> Path:
    """The name of the n-th recording: the first has the plain one."""
    return path if number == 0 else path.with_name(f"{path.stem}-{number + 1}{path.suffix}")
