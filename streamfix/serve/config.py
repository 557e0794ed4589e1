"""What a live server is told at its start."""

from __future__ import annotations

import ipaddress
import re
import secrets
from dataclasses import dataclass, field

from streamfix.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class IceServer:
    """One STUN or TURN server. url: stun:HOST[:PORT], turn: or turns:. username, credential: for TURN."""

    url: str
    username: str | None = None
    credential: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much anybody may ask for.

    cameras: people with a camera on the page at once; each costs a whole pipeline. viewers: of the stream. offer: bytes of an SDP
    offer. width, height: pixels of incoming video. bitrate: bits a second of one outgoing video; ingest: of one incoming one.
    connect: seconds in which a session must connect. idle: seconds without a frame after which a sender is let go.
    """

    cameras: int = 4
    viewers: int = 32
    offer: int = 64 * 1024
    width: int = 1920
    height: int = 1920
    pixels: int = 1920 * 1088
    bitrate: int = 8_000_000
    ingest: int = 12_000_000
    connect: float = 20.0
    idle: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Where and how a live server listens.

    token: what every call must carry; None for none, which is allowed on loopback alone. allowed_hosts: further names by
    which it may be called without a token (against DNS rebinding). tls: whether it answers by HTTPS.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    token: str | None = field(default=None, repr=False)
    tls: bool = False
    ice_servers: tuple[IceServer, ...] = ()
    limits: Limits = field(default_factory=Limits)
    allowed_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and not self.token:
            raise UsageError(f"listening on {self.host} needs a token; leave it to be chosen, or give --token")
        if self.token is not None and len(self.token) < 16:
            raise UsageError("the token is too short to keep anybody out; give at least 16 characters")
        if self.token is not None and not (
            self.token.isascii() and self.token.isprintable() and self.token == self.token.strip()
        ):
            raise UsageError(
                "a header cannot carry this token; use printable ASCII characters, with no blanks around them"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address or name."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def new_token() -> str:
    """A random token of 192 bits."""
    return secrets.token_urlsafe(24)


def parse_ice_server(spec: str) -> IceServer:
    """`stun:HOST[:PORT]` or `turn:[USER:PASSWORD@]HOST[:PORT][?transport=udp|tcp]`. Raises UsageError."""
    scheme, _, rest = spec.partition(":")
    user, at, host = rest.rpartition("@")
    # as aiortc reads it, which leaves IPv6 addresses out
    address = re.fullmatch(r"[^\s:?/\[\]]+(?::([0-9]{1,5}))?(\?transport=(?:udp|tcp))?", host)
    fits = address is not None and 0 < int(address[1] or 3478) < 65536
    if not fits or scheme not in ("stun", "turn", "turns") or (scheme == "stun" and (at or "?" in host)):
        raise UsageError(
            f"{spec.split('@')[-1]!r} is no ICE server; write stun:HOST:PORT or turn:USER:PASSWORD@HOST:PORT"
        )
    if scheme == "stun":
        return IceServer(url=spec)
    name, _, credential = user.partition(":")
    if not name or not credential:
        raise UsageError(f"the TURN server {host} needs a name and a password; write turn:USER:PASSWORD@{host}")
    return IceServer(url=f"{scheme}:{host}", username=name, credential=credential)
