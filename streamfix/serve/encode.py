"""Our own encoders for outgoing video: any bitrate, key frames on demand, no waiting.

aiortc's encoders are capped (H.264 at 3 Mb/s, VP8 at 1.5 Mb/s) by constants in its modules. Its sender also takes packets that are
encoded already, from a track whose `recv` gives `av.Packet`: that public way is used here, so one encoder may serve many viewers.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal

import av
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType

from streamfix.serve.colors import STANDARD, Colors, colors_of, even, plain, write_tags
from streamfix.serve.figures import Clock
from streamfix.serve.levels import Receiver, fitted, level_for

Codec = Literal["H264", "VP8"]
CLOCK_RATE = 90_000
TIME_BASE = Fraction(1, CLOCK_RATE)
LOWEST_BITRATE = 150_000
_BITS_A_PIXEL = 0.25
FRAME_RATE = 30
"""Of sources, unless they say otherwise."""
_KEY_SECONDS = 2
_LEAST_CHANGE = 0.1
_HIGHEST = 20_000_000
_BUFFER = 400_000
"""Bits that one picture may take from those that follow: a key frame must not take long on its way."""
_VP8_LEAST_CHANGE = 0.25
_VP8_PATIENCE = 3.0

_OPTIONS = {
    "H264": {"preset": "superfast", "tune": "zerolatency", "forced-idr": "1"},
    "VP8": {
        "deadline": "realtime",
        "cpu-used": "-8",
        "lag-in-frames": "0",
        "error-resilient": "1",
        "static-thresh": "1",
        "undershoot-pct": "95",
        "overshoot-pct": "15",
    },
}
_LIBRARY = {"H264": "libx264", "VP8": "libvpx"}


def useful_bitrate(width: int, height: int) -> int:
    """Bits a second beyond which a picture of that size gains nothing to speak of."""
    return int(_BITS_A_PIXEL * width * height * FRAME_RATE)


class VideoEncoder:
    """Pictures in, packets out, one for one.

    bitrate: bits a second; frame_rate: of the source; both may be set at any time. receiver: larger pictures than it takes are
    scaled down. H.264 says how its samples are to be read, and keeps the picture's; VP8 cannot say it, and is always BT.601.
    """

    def __init__(self, codec: Codec, *, bitrate: int, clock: Clock, receiver: Receiver | None = None) -> None:
        self.codec, self.bitrate = codec, bitrate
        self.frame_rate = FRAME_RATE
        self._clock, self._receiver = clock, receiver or Receiver()
        self._most = _HIGHEST
        self._context: VideoCodecContext | None = None
        self._colors = STANDARD
        self._begun = 0.0
        self._last_pts = -1

    def encode(self, picture: av.VideoFrame, *, pts: int, key: bool = False) -> list[av.Packet[Any]]:
        """Packets of one picture. pts: in ticks of 1/90000 s. key: make it one from which a viewer can begin."""
        size = fitted(picture.width, picture.height, self._receiver, frame_rate=self.frame_rate)
        colors = colors_of(picture) if self.codec == "H264" else STANDARD
        picture = plain(picture, even(*size), colors)
        context = self._ready(picture.width, picture.height, colors)
        # a picture may go to several encoders: the kind of frame and the time are set anew by each
        picture.pts, picture.time_base = max(pts, self._last_pts + 1), TIME_BASE
        self._last_pts = picture.pts
        picture.pict_type = PictureType.I if key else PictureType.NONE
        return list(context.encode(picture))

    def _ready(self, width: int, height: int, colors: Colors) -> VideoCodecContext:
        context = self._context
        bitrate = min(self.bitrate, self._most)
        if context is not None and (context.width, context.height, self._colors) == (width, height, colors):
            change = abs(bitrate - (context.bit_rate or 0)) / max(context.bit_rate or 1, 1)
            if self.codec == "H264":
                if change > _LEAST_CHANGE:
                    context.bit_rate = bitrate  # x264 takes it in its stride
                return context
            if change <= _VP8_LEAST_CHANGE or self._clock() - self._begun < _VP8_PATIENCE:
                return context  # libvpx needs a new encoder, and that is a key frame
        self._colors = colors
        self._context = context = self._open(width, height)
        self._begun = self._clock()
        if self.codec == "H264":
            context.open()
            context.bit_rate = min(self.bitrate, self._most)
        return context

    def _open(self, width: int, height: int) -> VideoCodecContext:
        context = av.CodecContext.create(_LIBRARY[self.codec], "w")
        assert isinstance(context, VideoCodecContext)
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.time_base, context.framerate = TIME_BASE, Fraction(FRAME_RATE)
        context.bit_rate = self.bitrate
        context.gop_size = _KEY_SECONDS * FRAME_RATE
        context.thread_count = 1
        context.options = dict(_OPTIONS[self.codec])
        if self.codec == "H264":
            write_tags(context, self._colors)
            context.profile = "Baseline"
            context.max_b_frames = 0
            # x264 changes its bitrate while it runs only where it was opened for a constant one, and never beyond that: it is
            # opened for the highest, and told the wanted one before the first picture
            level = level_for(width, height, frame_rate=self.frame_rate, bits=useful_bitrate(width, height))
            context.bit_rate = self._most = min(_HIGHEST, level.bits)
            context.options |= {"level": level.name, "maxrate": str(self._most), "bufsize": str(_BUFFER)}
        else:
            rate = str(self.bitrate)
            context.options |= {"minrate": rate, "maxrate": rate, "bufsize": str(self.bitrate // 2)}
        return context
