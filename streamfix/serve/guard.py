"""Who may call: tokens, origins, host names, and what every answer carries."""

from __future__ import annotations

import hmac
import logging
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from streamfix.serve.config import ServeConfig, is_loopback
from streamfix.serve.metrics import Metrics

_log = logging.getLogger(__name__)

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(self), fullscreen=(self)",
}
"""No header of CORS among them: pages of other origins read nothing here."""


def refuse(status: int, sentence: str, **headers: str) -> web.Response:
    """An answer with one sentence and nothing about the inside."""
    return web.json_response({"error": sentence}, status=status, headers=headers)


def middlewares(config: ServeConfig, metrics: Metrics) -> list[Middleware]:
    """What stands before every handler, outermost first."""

    @web.middleware
    async def covered(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every answer has the headers, and no trace leaves the house."""
        try:
            response = await handler(request)
        except web.HTTPException as error:
            allow = error.headers.get("Allow")
            response = refuse(error.status, error.reason, **({"Allow": allow} if allow else {}))
        except ConnectionError:
            raise
        except Exception:
            _log.exception("a request failed")  # the trace is for the log alone
            response = refuse(500, "the server failed at this; its log says why")
        if response.status >= 400:
            metrics.refused.labels(str(response.status)).inc()
        response.headers.update(HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Only the own page, only by a known name, and only with the token."""
        host = request.host
        if config.token is None and not _known(host, config):
            return refuse(421, "this server is not called by that name; use localhost, or give --allow-host")
        origin = request.headers.get("Origin")
        if origin is not None and not _same(origin, host):
            return refuse(403, "pages of other origins may not call this server")
        if request.headers.get("Sec-Fetch-Site") == "cross-site" and request.method != "GET":
            return refuse(403, "pages of other origins may not call this server")
        if config.token is not None and not _public(request) and not _has_token(request, config.token):
            return refuse(401, "a token is needed", **{"WWW-Authenticate": 'Bearer realm="streamfix"'})
        return await handler(request)

    return [covered, guarded]


def _same(origin: str, host: str) -> bool:
    try:
        return urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:  # "http://["
        return False


def _known(host: str, config: ServeConfig) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return is_loopback(name) or name.lower() in {h.lower() for h in config.allowed_hosts}


def _public(request: web.Request) -> bool:
    """The page's own files hold no secret, and a health check has no token."""
    return request.method in ("GET", "HEAD") and (
        request.path in ("/", "/healthz") or request.path.startswith("/page/")
    )


def _has_token(request: web.Request, token: str) -> bool:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    # only in a header: what stands in a URL ends up in logs and histories
    given_bytes = given.strip().encode("utf-8", "surrogateescape")  # headers may hold any bytes
    return scheme.lower() == "bearer" and hmac.compare_digest(given_bytes, token.encode())
