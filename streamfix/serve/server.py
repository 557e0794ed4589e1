"""The live server: its feeds, its sessions, and the HTTP exchange of WHIP (RFC 9725) and WHEP (draft-ietf-wish-whep)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from importlib import resources
from typing import Any

import av
from aiohttp import web

from streamfix import __version__
from streamfix.serve.config import ServeConfig
from streamfix.serve.engine import FACES, Engine
from streamfix.serve.feed import Feed, Sink
from streamfix.serve.figures import Figures
from streamfix.serve.guard import middlewares, refuse
from streamfix.serve.metrics import CONTENT_TYPE, Metrics
from streamfix.serve.sdp import OfferError, read_fragment, read_offer
from streamfix.serve.session import Kind, Session
from streamfix.serve.source import LiveInput
from streamfix.types import Frame

_log = logging.getLogger(__name__)

SDP = "application/sdp"
FRAGMENT = "application/trickle-ice-sdpfrag"
MakeEngine = Callable[[Figures], Engine]
MakeSinks = Callable[[Callable[[str], None]], list[Sink]]
_BODY_TIME = 10.0
"""Seconds in which the few kilobytes of a request have to come."""
_PATHS: dict[str, Kind] = {"session": "camera", "whip": "whip", "whep": "whep"}


class LiveServer:
    """Everything behind the page.

    make_engine: a new engine for each stream. models: names for the page, the default first. choose_faces: whether the page may.
    make_sinks: where the main stream goes besides its viewers, made anew with each; it is given what counts dropped pictures.
    Runs in one event loop: `app()` gives the aiohttp application, `close` ends all sessions with a good-bye.
    """

    def __init__(
        self,
        config: ServeConfig,
        make_engine: MakeEngine,
        *,
        models: list[str],
        choose_faces: bool = True,
        make_sinks: MakeSinks = lambda _dropped: [],
    ) -> None:
        self.config, self.metrics = config, Metrics()
        self._make_engine, self._models, self._choose_faces = make_engine, models, choose_faces
        self._make_sinks = make_sinks
        self.sessions: dict[str, Session] = {}
        self._main: Feed | None = None
        self._publisher: Session | None = None
        self.input_name: str | None = None
        self._stopping = False
        self._work: set[asyncio.Task[Any]] = set()

    # --- feeds ---

    @property
    def main(self) -> Feed:
        """The stream that WHEP viewers watch: of a WHIP sender, or of the server's own input. Made when first asked for."""
        if self._main is None:
            sinks = self._make_sinks(self.metrics.dropped)  # first: where it raises no stream stays that lacks them
            self._main = self.new_feed(self._main_ended)
            for sink in sinks:
                self._main.add(sink)
        return self._main

    @property
    def main_if_any(self) -> Feed | None:
        """The main stream where there is one."""
        return self._main

    def new_feed(self, on_end: Callable[[str], None]) -> Feed:
        """A stream of its own."""
        metrics = self.metrics
        figures = Figures(observe=metrics.observe, latency=metrics.delivered, drop=metrics.dropped)
        return Feed(
            self._make_engine(figures),
            figures=figures,
            metrics=metrics,
            ceiling=self.config.limits.bitrate,
            on_end=on_end,
        )

    def read(self, spec: str) -> LiveInput:
        """Have the main stream come from an input of the server's own; the reader is yet to be started."""
        reader = LiveInput(spec, _MainTaker(self), reconnected=self.metrics.reconnects.inc)
        self.input_name = reader.name
        self.main.say("waiting for the camera")
        return reader

    def _main_ended(self, reason: str) -> None:
        feed, self._main = self._main, None
        for session in list(self.sessions.values()):
            if session.feed is feed:
                session.end(reason)
        if feed is not None:
            self._spawn(feed.close())

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work, name="server-work")
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    # --- the application ---

    def app(self) -> web.Application:
        """The aiohttp application; closing it closes this server."""
        app = web.Application(
            middlewares=middlewares(self.config, self.metrics), client_max_size=self.config.limits.offer
        )
        app.router.add_get("/", self._page)
        app.router.add_get("/page/{name}", self._file)
        app.router.add_get("/api/about", self._about)
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/metrics", self._metrics_text)
        for path in _PATHS:
            app.router.add_route("*", f"/{path}", self._endpoint)
            app.router.add_route("*", f"/{path}/{{id}}", self._resource)
        app.on_shutdown.append(self._on_shutdown)
        return app

    async def _on_shutdown(self, _app: web.Application) -> None:
        await self.close()

    async def close(self) -> None:
        """Say good-bye to everybody and end everything."""
        self._stopping = True
        await asyncio.gather(*(s.close("the server is going down") for s in list(self.sessions.values())))
        feed, self._main = self._main, None
        if feed is not None:
            await feed.close()
        while self._work:
            await asyncio.gather(*self._work, return_exceptions=True)

    # --- pages and facts ---

    async def _page(self, _request: web.Request) -> web.Response:
        return _static("index.html")

    async def _file(self, request: web.Request) -> web.Response:
        return _static(request.match_info["name"])

    async def _about(self, _request: web.Request) -> web.Response:
        return web.json_response(
            {
                "version": __version__,
                "models": self._models,
                "faces": list(FACES) if self._choose_faces else [],
                "live": self._publisher is not None,
                "input": self.input_name is not None,
                "limits": {"width": self.config.limits.width, "height": self.config.limits.height},
                "ice_servers": [
                    {"urls": s.url, **({"username": s.username, "credential": s.credential} if s.username else {})}
                    for s in self.config.ice_servers
                ],
            }
        )

    async def _health(self, _request: web.Request) -> web.Response:
        if self._stopping:
            return refuse(503, "going down")
        return web.json_response({"status": "ok", "version": __version__, "sessions": len(self.sessions)})

    async def _metrics_text(self, _request: web.Request) -> web.Response:
        feeds = {id(s.feed): s.feed for s in self.sessions.values()}
        self.metrics.bitrate.set(sum(feed.bitrate for feed in feeds.values()))
        for kind in _PATHS.values():
            self.metrics.sessions.labels(kind).set(sum(s.kind == kind for s in self.sessions.values()))
        self.metrics.tasks.set(len(asyncio.all_tasks()))
        return web.Response(body=self.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    # --- WHIP and WHEP ---

    async def _endpoint(self, request: web.Request) -> web.Response:
        """POST of an offer; what else a client may try is answered as the RFC says."""
        if request.method == "OPTIONS":
            return web.Response(status=204, headers={"Accept-Post": SDP, "Allow": "OPTIONS, POST"})
        if request.method != "POST":
            return refuse(405, "only POST of an SDP offer is served here", Allow="OPTIONS, POST")
        if request.content_type != SDP:
            return refuse(415, f"an offer is {SDP}", **{"Accept-Post": SDP})
        if not _accepts(request, SDP):
            return refuse(406, f"the answer is {SDP}, which the Accept header rules out")
        body = await _body(request)
        name = request.path.strip("/")
        kind = _PATHS[name]
        try:
            offer = read_offer(body, sends=kind != "whep", receives=kind != "whip")
        except OfferError as error:
            return refuse(error.status, str(error))
        if (refusal := self._no_room(kind)) is not None:
            return refusal
        session = self._open(kind, compare=request.query.get("view") == "compare")
        try:
            answer = await session.answer(offer)
        except OfferError as error:
            await session.close("offer refused")
            return refuse(error.status, str(error))
        except BaseException:
            await session.close("offer failed")
            raise
        headers = {"Location": f"/{name}/{session.id}", "ETag": session.etag, "Accept-Patch": FRAGMENT}
        response = web.Response(status=201, body=answer.encode(), headers=headers, content_type=SDP)
        for server in self.config.ice_servers:
            response.headers.add("Link", _link(server.url, server.username, server.credential))
        return response

    async def _resource(self, request: web.Request) -> web.Response:
        """PATCH of ICE candidates and DELETE of a session."""
        session = self.sessions.get(request.match_info["id"])
        if session is None or _PATHS[request.path.split("/")[1]] != session.kind:
            return refuse(404, "there is no such session; it may have ended")
        match request.method:
            case "DELETE":
                await session.close("the client said good-bye")
                return web.Response(status=200)
            case "PATCH":
                return await self._patch(request, session)
            case "OPTIONS":
                return web.Response(status=204, headers={"Accept-Patch": FRAGMENT, "Allow": "DELETE, OPTIONS, PATCH"})
            case _:
                return refuse(405, "a session takes PATCH and DELETE", Allow="DELETE, OPTIONS, PATCH")

    async def _patch(self, request: web.Request, session: Session) -> web.Response:
        if request.content_type != FRAGMENT:
            return refuse(415, f"candidates are {FRAGMENT}", **{"Accept-Patch": FRAGMENT})
        match = request.headers.get("If-Match")
        if match is None:
            return refuse(428, "a PATCH needs If-Match with the session's ETag")
        body = await _body(request)
        if match.strip() == "*":
            return refuse(422, "an ICE restart is not supported; open a new session")
        if session.etag not in [tag.strip() for tag in match.split(",")]:
            return refuse(412, "the ETag is of another ICE session")
        try:
            await session.trickle(read_fragment(body))
        except OfferError as error:
            return refuse(error.status, str(error))
        return web.Response(status=204)

    def _no_room(self, kind: Kind) -> web.Response | None:
        limits = self.config.limits
        if self._stopping:
            return refuse(503, "the server is going down")
        # who is closing has given up the place: the page comes back at once when its settings change
        count = sum(s.kind == kind and not s.closing for s in self.sessions.values())
        later = {"Retry-After": "5"}
        if kind == "camera" and count >= limits.cameras:
            return refuse(503, "all places are taken; try again in a moment", **later)
        if kind == "whep":
            if count >= limits.viewers:
                return refuse(503, "all places are taken; try again in a moment", **later)
            if self._publisher is None and self.input_name is None:
                return refuse(409, "nothing is being sent at the moment", **later)
        if kind == "whip" and (count or self.input_name is not None):
            return refuse(409, "somebody is sending already", **later)
        return None

    def _open(self, kind: Kind, *, compare: bool) -> Session:
        feed = self.new_feed(lambda reason: session.end(reason)) if kind == "camera" else self.main
        session = Session(
            kind, feed, config=self.config, on_close=self._closed, view="compare" if compare else "result"
        )
        self.sessions[session.id] = session
        if kind == "whip":
            self._publisher = session
            feed.say("waiting for the sender")
        self.metrics.opened.labels(kind).inc()
        session.log.info("opened")
        return session

    async def _closed(self, session: Session, reason: str) -> None:
        self.sessions.pop(session.id, None)
        known = reason if len(reason) < 40 and not any(c.isdigit() for c in reason) else "other"
        self.metrics.closed.labels(session.kind, known).inc()
        if session.kind == "camera":
            self._spawn(session.feed.close())  # the server waits for it, whoever asked for the end
        if self._publisher is session:
            self._publisher = None
            session.feed.say("the sender has left; waiting for it to come back")
            session.feed.restart()
        # whoever is on the main stream, connected or about to be, waits for the next sender; after the last one it is over
        feed, used = self._main, any(s.feed is self._main for s in self.sessions.values())
        if feed is not None and not used and self.input_name is None and not self._stopping:
            self._main = None
            self._spawn(feed.close())


class _MainTaker:
    """Hands an input's pictures to the main stream, whichever that is at the moment."""

    def __init__(self, server: LiveServer) -> None:
        self._server, self._loop = server, asyncio.get_running_loop()

    def show(self, frame: Frame) -> None:
        """See Taker."""
        if (feed := self._feed()) is not None:
            feed.show(frame)

    def hear(self, frame: av.AudioFrame) -> None:
        """See Taker."""
        if (feed := self._feed()) is not None:
            feed.hear(frame)

    def say(self, notice: str) -> None:
        """See Taker."""
        if (feed := self._feed()) is not None:
            feed.say(notice)

    def restart(self) -> None:
        """See Taker."""
        if (feed := self._feed()) is not None:
            feed.restart()

    def _feed(self) -> Feed | None:
        return self._server.main_if_any


async def _body(request: web.Request) -> str:
    try:
        async with asyncio.timeout(_BODY_TIME):
            return (await request.read()).decode("utf-8")  # more than the limit raises 413
    except TimeoutError as error:
        raise web.HTTPRequestTimeout(reason="the body did not come") from error
    except UnicodeDecodeError as error:
        raise web.HTTPBadRequest(reason="the body is not UTF-8 text") from error
    except web.RequestPayloadError as error:
        raise web.HTTPBadRequest(reason="the body is not what its Content-Encoding says") from error


def _accepts(request: web.Request, kind: str) -> bool:
    accept = request.headers.get("Accept", "*/*")
    offered = {part.split(";")[0].strip().lower() for part in accept.split(",")}
    return bool(offered & {"*/*", f"{kind.split('/')[0]}/*", kind, ""})


def _link(url: str, username: str | None, credential: str | None) -> str:
    """An ICE server as WHIP's Link header has it."""
    parts = [f'<{url}>; rel="ice-server"']
    if username and credential:
        parts.append(f'username="{username}"; credential="{credential}"; credential-type="password"')
    return "; ".join(parts)


_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}


def _static(name: str) -> web.Response:
    """One of the page's own files."""
    kind = _TYPES.get(name[name.rfind(".") :])
    # looked up among them: a name that somebody sends never becomes a path
    files = resources.files("streamfix.serve").joinpath("page").iterdir()
    file = next((file for file in files if file.name == name), None)
    if kind is None or file is None:
        return refuse(404, "there is no such page")
    response = web.Response(body=file.read_bytes(), content_type=kind)
    if kind != "image/png":
        response.charset = "utf-8"
    response.headers["Cache-Control"] = "no-cache"
    return response
