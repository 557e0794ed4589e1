"""A live server in the test's own event loop, and peers that are plain aiortc."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager
from fractions import Fraction
from typing import Any

import aiohttp
import av
import numpy as np
import torch
from aiohttp import web
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription, VideoStreamTrack
from aiortc.mediastreams import AudioStreamTrack, MediaStreamError

from streamfix.serve.config import Limits, ServeConfig
from streamfix.serve.engine import Engine, Settings
from streamfix.serve.models import Models
from streamfix.serve.server import LiveServer

LOCAL = RTCConfiguration(iceServers=[])


def run(work: Coroutine[Any, Any, Any], *, seconds: float = 40.0) -> Any:
    async def limited():
        async with asyncio.timeout(seconds):
            return await work

    return asyncio.run(limited())


class NoFaces:
    """A detector for tests that are about transport."""

    name = "none"

    def detect(self, image):
        return []


class Sharper:
    """A restorer whose work can be seen: fine detail is drawn seven times as strong."""

    name, sha256, device, dtype = "sharper", None, torch.device("cpu"), torch.float32

    def restore(self, crops, noise=None):
        crops = crops.float()
        return (crops + 6 * (crops - torch.nn.functional.avg_pool2d(crops, 9, 1, 4))).clamp(-1, 1)


def live_server(
    config: ServeConfig | None = None, *, detector: Callable[[], Any] = NoFaces, make_sinks=None, **limits
) -> LiveServer:
    config = config or ServeConfig(port=0, limits=Limits(**limits))
    models = Models({"lite": Sharper()})
    return LiveServer(
        config,
        lambda figures: Engine(models=models, detector=detector(), settings=Settings(), figures=figures),
        models=models.names,
        make_sinks=make_sinks or (lambda _dropped: []),
    )


@asynccontextmanager
async def serving(server: LiveServer):
    """(server's URL, HTTP session)."""
    runner = web.AppRunner(server.app(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    async with aiohttp.ClientSession() as http:
        yield f"http://127.0.0.1:{port}", http
    await runner.cleanup()


class Picture(VideoStreamTrack):
    """A grey picture that gets brighter, 30 a second."""

    def __init__(self, size=(320, 240)):
        super().__init__()
        self.size, self.number = size, 0

    async def recv(self):
        pts, time_base = await self.next_timestamp()
        image = np.full((self.size[1], self.size[0], 3), 60 + self.number % 100, np.uint8)
        frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = pts, time_base
        self.number += 1
        return frame


class Tone(AudioStreamTrack):
    """A tone of 440 Hz, 20 ms a frame."""

    number = 0

    async def recv(self):
        began = getattr(self, "_began", None)
        if began is None:
            began = self._began = time.monotonic()
        await asyncio.sleep(max(began + self.number * 0.02 - time.monotonic(), 0))
        t = np.arange(960) + self.number * 960
        samples = (8000 * np.sin(2 * np.pi * 440 * t / 48000)).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, self.number * 960, Fraction(1, 48000)
        self.number += 1
        return frame


async def offer_of(pc: RTCPeerConnection) -> str:
    await pc.setLocalDescription(await pc.createOffer())
    return pc.localDescription.sdp


async def whip_offer(*, sound: bool = False, size=(320, 240)) -> tuple[RTCPeerConnection, str]:
    pc = RTCPeerConnection(LOCAL)
    pc.addTransceiver(Picture(size), direction="sendonly")
    if sound:
        pc.addTransceiver(Tone(), direction="sendonly")
    return pc, await offer_of(pc)


async def whep_offer(*, sound: bool = False) -> tuple[RTCPeerConnection, str]:
    pc = RTCPeerConnection(LOCAL)
    pc.addTransceiver("video", direction="recvonly")
    if sound:
        pc.addTransceiver("audio", direction="recvonly")
    return pc, await offer_of(pc)


async def post(http, url: str, sdp: str, **headers) -> tuple[int, str, Any]:
    async with http.post(url, data=sdp.encode(), headers={"Content-Type": "application/sdp", **headers}) as answer:
        return answer.status, await answer.text(), answer.headers


async def connect(pc: RTCPeerConnection, http, url: str, sdp: str, **headers) -> Any:
    """POST the offer, take the answer; gives the headers."""
    status, text, got = await post(http, url, sdp, **headers)
    assert status == 201, text
    await pc.setRemoteDescription(RTCSessionDescription(sdp=text, type="answer"))
    return got


class Received:
    """What a watching peer got."""

    def __init__(self, pc: RTCPeerConnection) -> None:
        self.video: list[tuple[float, av.VideoFrame]] = []
        self.audio: list[tuple[float, av.AudioFrame]] = []
        self.ended = asyncio.Event()
        self._tasks = []
        pc.on("track", lambda track: self._tasks.append(asyncio.ensure_future(self._take(track))))

    async def _take(self, track):
        store = self.video if track.kind == "video" else self.audio
        try:
            while True:
                store.append((time.monotonic(), await track.recv()))
        except MediaStreamError:
            self.ended.set()


async def until(condition: Callable[[], Any], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        await asyncio.sleep(0.02)


class Taken:
    """What an input gave."""

    def __init__(self):
        self.frames, self.sound, self.notices, self.restarts = [], 0, [], 0

    def show(self, frame):
        self.frames.append((time.monotonic(), frame))

    def hear(self, frame):
        self.sound += 1

    def say(self, notice):
        self.notices.append(notice)

    def restart(self):
        self.restarts += 1

    @property
    def times(self) -> np.ndarray:
        return np.array([frame.time for _, frame in self.frames])

    @property
    def took(self) -> float:
        return self.frames[-1][0] - self.frames[0][0]
