"""A viewer's queues as aiortc's tracks: packets that are encoded already go straight to RTP."""

from __future__ import annotations

import asyncio

from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from streamfix.serve.viewers import Packet, Viewer


class PacketTrack(MediaStreamTrack):
    """Encoded packets of one viewer, "video" or "audio"."""

    def __init__(self, viewer: Viewer, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self._queue: asyncio.Queue[Packet | None] = viewer.video if kind == "video" else viewer.audio

    async def recv(self) -> Packet:
        """The next packet, as soon as there is one."""
        packet = await self._queue.get() if self.readyState == "live" else None
        if packet is None:
            self.stop()
            raise MediaStreamError
        return packet
