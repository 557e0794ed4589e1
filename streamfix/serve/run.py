"""From options to a running server, and its orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import ssl
from collections.abc import Callable
from itertools import count
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from streamfix.errors import OutputError
from streamfix.faces.detect import Detector, load_detector
from streamfix.faces.parsing import FaceParser
from streamfix.faces.select import parse_select
from streamfix.restore.base import load_restorer
from streamfix.serve.config import ServeConfig
from streamfix.serve.engine import FACES, Engine, Settings
from streamfix.serve.feed import Sink
from streamfix.serve.figures import Figures
from streamfix.serve.models import Models
from streamfix.serve.server import LiveServer, MakeSinks
from streamfix.serve.sinks import Recording, VirtualCamera, numbered, provenance
from streamfix.serve.source import LiveInput

_log = logging.getLogger(__name__)
_PATIENCE = 20.0
"""Seconds that a connection may stay without a request."""


def load_server(
    config: ServeConfig,
    *,
    model: str = "auto",
    detector: str = "auto",
    device: str = "auto",
    faces: str = "all",
    min_size: float = 0.0,
    strength: float = 1.0,
    threads: int | None = None,
    ignore_background: bool = False,
    embedding: Path | None = None,
    embedding_norm: str = "arcface",
    parsing: Path | None = None,
    record: Path | None = None,
    overwrite: bool = False,
    virtual_camera: bool = False,
) -> LiveServer:
    """Load the models and make the server. The options are those of `enhance`. Raises a StreamfixError.

    record: a file for the main stream; each further stream gets a number before the suffix. virtual_camera: have it appear as a
    camera of this machine too.
    """
    restorer = load_restorer(model, device=device, threads=threads)
    parser = FaceParser(parsing, threads=1) if parsing is not None else None
    models = Models({restorer.name: restorer, "passthrough": load_restorer("passthrough")}, parser=parser)

    def load() -> Detector:
        # one core searches, or two streams would trip over each other's threads
        return load_detector(detector, threads=1, embedding=embedding, embedding_norm=embedding_norm)

    finder = load()
    settings = Settings(strength=strength, model=models.names[0], faces=faces)
    fixed = None
    if faces not in FACES or min_size > 0 or ignore_background:
        fixed = parse_select(faces, finder, min_size=min_size, ignore_background=ignore_background)

    def make_engine(figures: Figures) -> Engine:
        return Engine(
            models=models,
            detector=load(),
            settings=settings,
            figures=figures,
            select=fixed,
        )

    sinks = _sinks(record, overwrite, virtual_camera, provenance(restorer.name, restorer.sha256))
    return LiveServer(config, make_engine, models=models.names, choose_faces=fixed is None, make_sinks=sinks)


def _sinks(record: Path | None, overwrite: bool, virtual_camera: bool, note: str) -> MakeSinks:
    numbers = count()
    if record is not None:  # what cannot work is told at the start, not when somebody sends
        Recording(record, dropped=lambda _: None, note=note, overwrite=overwrite).close()
    if virtual_camera:
        VirtualCamera().close()

    def make(dropped: Callable[[str], None]) -> list[Sink]:
        sinks: list[Sink] = []
        if record is not None:
            names = (numbered(record, number) for number in numbers)
            path = next(path for path in names if overwrite or not path.exists())  # a file of another day stays
            sinks.append(Recording(path, dropped=dropped, note=note, overwrite=overwrite))
        if virtual_camera:
            sinks.append(VirtualCamera())
        return sinks

    return make


async def serve(
    server: LiveServer,
    *,
    source: str | None = None,
    tls: ssl.SSLContext | None = None,
    ready: Callable[[int], None] = lambda _port: None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, or until `stop` is set. source: as `LiveInput` takes it. ready: called with the port."""
    config, loop = server.config, asyncio.get_running_loop()
    ended = stop or asyncio.Event()
    reader = server.read(source) if source is not None else None
    app, spoken = server.app(), set[object]()

    @web.middleware
    async def noted(request: web.Request, handler: Handler) -> web.StreamResponse:
        spoken.add(request.protocol)
        return await handler(request)

    app.middlewares.append(noted)  # the innermost: who is refused has not spoken
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=5.0)
    await runner.setup()
    sweeper = asyncio.create_task(_end_silent(runner, spoken))
    try:
        site = web.TCPSite(runner, config.host, config.port, ssl_context=tls)
        try:
            await site.start()
            if not runner.addresses:  # asyncio passes over what this machine does not speak: IPv6
                raise OSError(errno.EADDRNOTAVAIL, "")
        except (OSError, UnicodeError) as error:  # UnicodeError: a name with an empty or endless part
            raise OutputError(_why_not(config.host, config.port, error)) from error
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C raises KeyboardInterrupt instead
                loop.add_signal_handler(number, ended.set)
        if reader is not None:
            reader.start()
        ready(int(runner.addresses[0][1]))
        await ended.wait()
        _log.info("going down: saying good-bye to %d sessions", len(server.sessions))
    finally:
        sweeper.cancel()
        if reader is not None:
            await loop.run_in_executor(None, reader.stop)
        await runner.cleanup()


async def _end_silent(runner: web.AppRunner, spoken: set[object]) -> None:
    """Close connections without an accepted request: aiohttp keeps them for ever, until there are no more to be had."""
    since: dict[object, float] = {}
    while True:
        await asyncio.sleep(_PATIENCE / 4)
        now = asyncio.get_running_loop().time()
        open_ = runner.server.connections if runner.server is not None else []
        spoken.intersection_update(open_)
        since = {c: since.get(c, now) for c in open_ if c not in spoken}
        for connection in open_:
            if now - since.get(connection, now) > _PATIENCE:
                connection.force_close()


def _why_not(host: str, port: int, error: OSError | UnicodeError) -> str:
    """What keeps this machine from listening there, and what to do about it."""
    instead = "127.0.0.1 (for this machine alone) or 0.0.0.0 (for its networks)"
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return f"the name {host} leads to no address; give --host an address of this machine, {instead}"
    if error.errno in (errno.EADDRNOTAVAIL, None):  # None: of an error that Python 3.13 sums up
        return f"{host} is no address of this machine; give --host one that is, {instead}"
    if isinstance(error, PermissionError):
        return f"this user may not take port {port} of {host}; choose another --port, as a rule from 1024 on"
    return f"port {port} of {host} cannot be taken ({error.strerror or error}); choose another --port"


__all__ = ["LiveInput", "load_server", "serve"]
