"""Sound beside the picture: encoded once, and held back as long as the picture takes."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
from av.audio.codeccontext import AudioCodecContext
from av.audio.format import AudioFormat
from av.audio.layout import AudioLayout
from av.audio.resampler import AudioResampler

from streamfix.serve.figures import Clock

SAMPLE_RATE = 48_000
_TIME_BASE = Fraction(1, SAMPLE_RATE)
_FRAME = 960
_BITRATE = 96_000
_JUMP = SAMPLE_RATE // 5
"""Samples by which sound and clock may differ before the time stamps jump: after a source was away."""
_SLEW = 0.02
"""Share by which the delay follows that of the picture at each packet: never heard."""


class AudioEncoder:
    """Any sound in, Opus packets of 20 ms out, with time stamps that follow the clock."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._format: tuple[str, str, int] | None = None
        self._resampler = _resampler()
        context = av.CodecContext.create("libopus", "w")
        assert isinstance(context, AudioCodecContext)
        context.bit_rate, context.format, context.layout = _BITRATE, AudioFormat("s16"), AudioLayout("stereo")
        context.sample_rate, context.time_base = SAMPLE_RATE, _TIME_BASE
        context.options = {"application": "audio"}
        self._context = context
        self._origin = clock()
        self._next = 0

    def encode(self, frame: av.AudioFrame) -> list[av.Packet[Any]]:
        """Packets with pts in 1/48000 s."""
        now = round((self._clock() - self._origin) * SAMPLE_RATE)
        if abs(now - self._next) > _JUMP:
            self._next = now
        if (form := (frame.format.name, frame.layout.name, frame.sample_rate)) != self._format:
            self._format, self._resampler = form, _resampler()  # one takes one kind of sound for its whole life
        packets = []
        frame.pts = None
        for part in self._resampler.resample(frame):
            part.pts = None
            for packet in self._context.encode(part):
                packet.pts, packet.time_base = self._next, _TIME_BASE
                self._next += _FRAME
                packets.append(packet)
        return packets


def _resampler() -> AudioResampler:
    return AudioResampler(format="s16", layout="stereo", rate=SAMPLE_RATE, frame_size=_FRAME)


class Delay:
    """When a packet of sound may leave: the picture's latency after it came, in order."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._delay: float | None = None
        self._last = 0.0

    def release(self, latency: float) -> float:
        """Seconds from now at which the packet leaves. latency: of the picture, seconds."""
        self._delay = latency if self._delay is None else self._delay + _SLEW * (latency - self._delay)
        now = self._clock()
        self._last = max(now + self._delay, self._last)
        return self._last - now
