"""One peer: its connection, what it sends, what it gets, and its end."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import av
from aiortc import (
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from aiortc.stats import RTCOutboundRtpStreamStats, RTCRemoteInboundRtpStreamStats

from streamfix.errors import UsageError
from streamfix.serve.config import ServeConfig
from streamfix.serve.feed import Feed, as_frame, settings_from
from streamfix.serve.rate import START_BITRATE
from streamfix.serve.sdp import Fragment, Offer, OfferError, receiver_of, video_codec, with_bandwidth, with_levels
from streamfix.serve.tracks import PacketTrack
from streamfix.serve.viewers import View, Viewer

_log = logging.getLogger(__name__)

Kind = Literal["camera", "whip", "whep"]
"""camera: the page's two-way session; whip: sends only; whep: watches only."""
_REPORT_EVERY = 1.0
_TELL_EVERY = 0.5
_MESSAGE = 4096
_ANSWER_SECONDS = 15.0


class Session:
    """One peer connection between offer and good-bye.

    id: unguessable, part of its URL. etag: of its ICE session. feed: what it sends to or watches. on_close: called once, with
    the session and the reason, when it has ended for whatever cause.
    """

    def __init__(
        self,
        kind: Kind,
        feed: Feed,
        *,
        config: ServeConfig,
        on_close: Callable[[Session, str], Awaitable[None]],
        view: View = "result",
    ) -> None:
        self.kind, self.feed = kind, feed
        self.id = secrets.token_urlsafe(16)
        self.etag = f'"{secrets.token_hex(8)}"'
        self.log = logging.LoggerAdapter(_log, {"session": self.id[:8], "kind": kind})
        self._config, self._on_close, self._view = config, on_close, view
        servers = [RTCIceServer(urls=s.url, username=s.username, credential=s.credential) for s in config.ice_servers]
        self._pc = RTCPeerConnection(
            RTCConfiguration(iceServers=servers)
        )  # an empty list: aiortc asks a public one else
        self._viewer: Viewer | None = None
        self._sender: RTCRtpSender | None = None
        self._channel: RTCDataChannel | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._remote: tuple[str, str] = ("", "")
        self._closing: asyncio.Task[None] | None = None
        self._frames = 0
        self._last_frame = 0.0
        self._connected = False
        self._pc.on("track", self._on_track)
        self._pc.on("datachannel", self._on_channel)
        self._pc.on("connectionstatechange", self._on_state)

    @property
    def closing(self) -> bool:
        """Whether its end has begun."""
        return self._closing is not None

    # --- the handshake ---

    async def answer(self, offer: Offer) -> str:
        """The SDP answer. Raises OfferError."""
        sends, receives = self.kind != "whep", self.kind != "whip"
        direction = {(True, True): "sendrecv", (True, False): "recvonly", (False, True): "sendonly"}[sends, receives]
        tracks: dict[str, PacketTrack] = {}
        try:
            video = self._pc.addTransceiver("video", direction=direction)
            video.setCodecPreferences(_preferred())
            audio = None
            if (wanted := offer.direction("audio")) is not None:
                both = {"sendonly": "recvonly", "recvonly": "sendonly"}.get(wanted, "sendrecv")
                audio = self._pc.addTransceiver("audio", direction=_common(direction, both))
            await self._pc.setRemoteDescription(RTCSessionDescription(sdp=offer.sdp, type="offer"))
            if receives:
                # the codec is known only now, and the viewer's packets must be in it
                self._viewer = self.feed.new_viewer("H264", self._view)
                tracks["video"] = PacketTrack(self._viewer, "video")
                video.sender.replaceTrack(tracks["video"])
                self._sender = video.sender
                if audio is not None:
                    tracks["audio"] = PacketTrack(self._viewer, "audio")
                    audio.sender.replaceTrack(tracks["audio"])
            async with asyncio.timeout(_ANSWER_SECONDS):
                await self._pc.setLocalDescription(await self._pc.createAnswer())
        except TimeoutError as error:
            raise OfferError(503, "gathering ICE candidates took too long; check the ICE servers") from error
        except Exception as error:  # aiortc raises whatever a hostile offer leads to
            self.log.info("offer refused: %s", type(error).__name__)
            raise OfferError(422, "the offer cannot be answered; offer H.264 or VP8 video in one bundle") from error
        sdp = self._pc.localDescription.sdp
        codec = video_codec(sdp)
        if codec is None:
            raise OfferError(422, "no video codec in common; offer H.264 or VP8")
        if self._viewer is not None:
            self._viewer.codec, self._viewer.receiver = codec, (receiver := receiver_of(offer.sdp, sdp))
            self._viewer.rate.ceiling = min(self._viewer.rate.ceiling, receiver.bits or self._viewer.rate.ceiling)
        self._remote = _credentials(offer.sdp)
        self._start(self._watchdog(), "watchdog")
        if sends:
            sdp = with_bandwidth(sdp, start=START_BITRATE, most=self._config.limits.ingest)
        return with_levels(sdp, offer.sdp, receives=sends)

    async def trickle(self, fragment: Fragment) -> None:
        """Take candidates of the running ICE session. Raises OfferError where they belong to another."""
        if fragment.credentials != self._remote:
            raise OfferError(422, "an ICE restart is not supported; open a new session")
        for candidate in fragment.candidates:
            try:
                await self._pc.addIceCandidate(candidate)
            except Exception as error:
                raise OfferError(400, "a candidate of the fragment does not fit the session") from error
        if fragment.end:
            await self._pc.addIceCandidate(None)

    # --- what it sends ---

    def _on_track(self, track: MediaStreamTrack) -> None:
        if self.kind == "whep":
            return
        self._start(self._take_video(track) if track.kind == "video" else self._take_audio(track), f"take-{track.kind}")

    async def _take_video(self, track: MediaStreamTrack) -> None:
        limits, loop = self._config.limits, asyncio.get_running_loop()
        self.feed.restart()
        while True:
            try:
                picture = await track.recv()
            except MediaStreamError:
                break
            if not isinstance(picture, av.VideoFrame):
                continue
            if (
                picture.width > limits.width
                or picture.height > limits.height
                or picture.width * picture.height > limits.pixels
            ):
                self.end(f"video of {picture.width}x{picture.height} is larger than this server takes")
                break
            self._last_frame = loop.time()
            self.feed.show(as_frame(picture, index=self._frames))
            self._frames += 1
        if self._connected:
            self.end("the camera ended")

    async def _take_audio(self, track: MediaStreamTrack) -> None:
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                break
            if isinstance(frame, av.AudioFrame):
                self.feed.hear(frame)

    # --- the page's control channel ---

    def _on_channel(self, channel: RTCDataChannel) -> None:
        if channel.label != "control" or self._channel is not None:
            channel.close()
            return
        self._channel = channel
        channel.on("message", self._on_message)
        self._start(self._tell(), "tell")

    def _on_message(self, text: object) -> None:
        try:
            if not isinstance(text, str) or len(text) > _MESSAGE:
                raise ValueError("a message is a short text")
            message = json.loads(text)
            if not isinstance(message, dict):
                raise ValueError("a message is an object")
            match message.get("type"):
                case "settings" if self.kind == "camera":
                    settings_from(self.feed.engine, message)
                    if self._viewer is not None and isinstance(message.get("compare"), bool):
                        self.feed.view(self._viewer, "compare" if message["compare"] else "result")
                case "view" if self._viewer is not None:
                    self.feed.view(self._viewer, "compare" if message.get("compare") is True else "result")
                case "keyframe" if self._viewer is not None:
                    self.feed.key_frame(self._viewer)
                case kind:
                    raise ValueError(f"unknown message {str(kind)[:20]!r}")
        except (ValueError, TypeError, OverflowError, RecursionError, UsageError) as error:
            self._say({"type": "error", "message": str(error)[:200]})

    def _say(self, message: dict[str, Any]) -> None:
        channel = self._channel
        if channel is not None and channel.readyState == "open" and channel.bufferedAmount < 65536:
            channel.send(json.dumps(message))

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(_TELL_EVERY)
            settings = self.feed.engine.settings
            self._say(
                {
                    "type": "stats",
                    **self.feed.facts(),
                    "bitrate": self.feed.bitrate_of(self._viewer) if self._viewer else 0,
                    "compare": self._viewer is not None and self._viewer.view == "compare",
                    "strength": settings.strength,
                    "model": settings.model,
                }
            )

    # --- its life ---

    def _on_state(self) -> None:
        state = self._pc.connectionState
        self.log.info("connection %s", state)
        if state == "connected":
            self._connected = True
            self._last_frame = asyncio.get_running_loop().time()
            if self._viewer is not None:
                self.feed.watch(self._viewer)
                self._start(self._follow_reports(), "reports")
        elif state in ("failed", "closed"):
            self.end("connection lost" if state == "failed" else "the peer left")

    async def _watchdog(self) -> None:
        """Nobody holds a place without using it."""
        limits, loop = self._config.limits, asyncio.get_running_loop()
        await asyncio.sleep(limits.connect)
        if not self._connected:
            self.end("never connected")
            return
        while self.kind != "whep":
            await asyncio.sleep(1.0)
            if loop.time() - self._last_frame > limits.idle:
                self.end("no picture came")
                return

    async def _follow_reports(self) -> None:
        """Bitrate and key frames by what the receiver reports."""
        while self._sender is not None and self._viewer is not None:
            await asyncio.sleep(_REPORT_EVERY)
            sent = lost = 0
            round_trip = None
            for stats in (await self._sender.getStats()).values():
                if isinstance(stats, RTCOutboundRtpStreamStats):
                    sent = stats.packetsSent
                elif isinstance(stats, RTCRemoteInboundRtpStreamStats):
                    lost, round_trip = stats.packetsLost, stats.roundTripTime
            if self._viewer.rate.report(sent=sent, lost=lost, round_trip=round_trip):
                self.feed.key_frame(self._viewer)
            self.feed.reports()

    def _start(self, work: Any, name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"session-{name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def end(self, reason: str) -> None:
        """Close soon, from a callback or task of the session itself."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close(reason), name="session-close")

    async def close(self, reason: str) -> None:
        """Close now: say good-bye, end every task, let go of everything. Safe to call twice."""
        self.end(reason)
        assert self._closing is not None
        await asyncio.shield(self._closing)

    async def _close(self, reason: str) -> None:
        self.log.info("closing: %s", reason)
        self._say({"type": "bye", "reason": reason})
        if self._channel is not None and self._channel.readyState == "open":
            await asyncio.sleep(0.1)  # the good-bye is on its way
        if self._viewer is not None:
            self.feed.leave(self._viewer)
        current = asyncio.current_task()
        tasks = [task for task in self._tasks if task is not current]
        for task in tasks:
            task.cancel()
        self._pc.remove_all_listeners()
        try:
            await self._pc.close()
        except Exception as error:  # aiortc cannot close what a broken offer left half made; nothing of it has begun
            self.log.info("the peer connection did not close cleanly: %s", type(error).__name__)
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._on_close(self, reason)


def _preferred() -> list[Any]:
    """H.264 first: its bitrate changes without a key frame, and phones decode it in hardware."""
    codecs = RTCRtpSender.getCapabilities("video").codecs
    order = {"H264": 0, "VP8": 1}
    return sorted(codecs, key=lambda c: order.get(c.name.upper(), 2))


def _common(one: str, other: str) -> str:
    """The direction that both allow."""
    sends = all(d in ("sendrecv", "sendonly") for d in (one, other))
    receives = all(d in ("sendrecv", "recvonly") for d in (one, other))
    return {(True, True): "sendrecv", (True, False): "sendonly", (False, True): "recvonly", (False, False): "inactive"}[
        sends, receives
    ]


def _credentials(sdp: str) -> tuple[str, str]:
    found: dict[str, str] = {}
    for line in sdp.splitlines():
        name, _, value = line.partition(":")
        if name in ("a=ice-ufrag", "a=ice-pwd"):
            found.setdefault(name, value.strip())
    return found.get("a=ice-ufrag", ""), found.get("a=ice-pwd", "")
