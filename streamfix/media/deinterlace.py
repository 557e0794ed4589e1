"""Interlaced pictures to whole ones, by FFmpeg's own filter."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from fractions import Fraction

import av
import av.filter


class Deinterlacer:
    """FFmpeg's bwdif, one frame for each frame; begins with the first interlaced frame and then keeps all in order.

    every: deinterlace every frame, whatever its flag says.
    """

    def __init__(self, time_base: Fraction, *, every: bool) -> None:
        self._time_base, self._every = time_base, every
        self._graph: av.filter.Graph | None = None
        self._shape: tuple[int, int, str] | None = None
        self._waiting: deque[int] = deque()

    def __call__(self, picture: av.VideoFrame, pts: int) -> Iterator[tuple[av.VideoFrame, int]]:
        """Take one frame in, give those out that are ready, each with its own pts."""
        shape = (picture.width, picture.height, picture.format.name)
        if self._graph is not None and shape != self._shape:
            yield from self.flush()
        if self._graph is None:
            small = picture.width < 3 or picture.height < 4  # less than the filter works on
            if small or not (self._every or picture.interlaced_frame):
                yield picture, pts
                return
            self._graph, self._shape = self._build(picture), shape
        picture.pts, picture.time_base = pts, self._time_base
        self._waiting.append(pts)
        self._graph.vpush(picture)
        yield from self._pull()

    def flush(self) -> Iterator[tuple[av.VideoFrame, int]]:
        """The frames still inside; the filter begins anew with the next one."""
        if self._graph is not None:
            self._graph.vpush(None)
            yield from self._pull()
            self._graph = None
            self._waiting.clear()

    def _pull(self) -> Iterator[tuple[av.VideoFrame, int]]:
        assert self._graph is not None
        while self._waiting:
            try:
                picture = self._graph.vpull()
            except (BlockingIOError, EOFError):
                return
            pts = self._waiting.popleft()  # the filter counts in half ticks; one out for one in keeps the exact ones
            picture.pts, picture.time_base = pts, self._time_base
            yield picture, pts

    def _build(self, picture: av.VideoFrame) -> av.filter.Graph:
        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=picture.width, height=picture.height, format=picture.format, time_base=self._time_base
        )
        bwdif = graph.add("bwdif", f"mode=send_frame:deint={'all' if self._every else 'interlaced'}")
        graph.link_nodes(source, bwdif, graph.add("buffersink")).configure()
        return graph
