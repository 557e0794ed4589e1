"""`streamfix live`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from streamfix.cli import people
from streamfix.cli.common import Detector, Device, Model, Overwrite, Parsing, Strength, out, told
from streamfix.errors import UsageError


@told
def live(
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond this machine it takes a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8080,
    input_: Annotated[
        str | None,
        typer.Option(
            "--input",
            help="rtsp://, http://, webcam:0 or a video file (in a loop); else the browser's camera.",
            metavar="SOURCE",
        ),
    ] = None,
    model: Model = "auto",
    detector: Detector = "auto",
    device: Device = "auto",
    faces: people.Faces = "all",
    min_size: people.MinSize = 0.0,
    ignore_background: people.IgnoreBackground = False,
    embedding: people.Embedding = None,
    embedding_norm: people.EmbeddingNorm = "arcface",
    parsing: Parsing = None,
    strength: Strength = 1.0,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the model; else half the cores.", min=1)] = None,
    token: Annotated[
        str | None,
        typer.Option(
            help="Access token; else a random one where one is needed.", envvar="STREAMFIX_TOKEN", show_envvar=True
        ),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain (PEM): serve HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
    self_signed: Annotated[
        bool, typer.Option("--self-signed", help="HTTPS with a certificate made now; browsers ask once.")
    ] = False,
    ice_server: Annotated[
        list[str] | None, typer.Option(help="stun:HOST:PORT or turn:USER:PASSWORD@HOST:PORT; may be repeated.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Further name by which this machine may be called without a token.")
    ] = None,
    cameras: Annotated[int, typer.Option(help="People with a camera on the page at once.", min=0)] = 4,
    viewers: Annotated[int, typer.Option(help="Viewers of the stream at once.", min=0)] = 32,
    bitrate: Annotated[float, typer.Option(help="Ceiling of one outgoing video, Mb/s.", min=0.2)] = 8.0,
    record: Annotated[
        Path | None, typer.Option(help="Record the stream that /whip or --input gives (.mkv or .mp4).")
    ] = None,
    overwrite: Overwrite = False,
    virtual_camera: Annotated[
        bool, typer.Option("--virtual-camera", help="Offer that stream as a camera of this machine (extra virtualcam).")
    ] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Logs as one JSON object a line.")] = False,
) -> None:
    """Restore a camera live: a page for the browser, WHIP in, WHEP out.

    The page takes the browser's camera and shows the result; OBS, GStreamer and FFmpeg send to /whip, any WHEP player watches
    /whep. /healthz and /metrics tell how it does. Ctrl-C says good-bye to everybody.
    """
    import math
    import os

    from streamfix.allocator import share_arenas

    share_arenas()  # before the imports below start threads of their own

    from streamfix.serve.config import Limits, ServeConfig, is_loopback, new_token, parse_ice_server
    from streamfix.serve.logs import set_up
    from streamfix.serve.run import load_server, serve
    from streamfix.serve.source import parse_input
    from streamfix.serve.tls import own_names, server_context

    if input_ is not None:
        parse_input(input_)  # what can never be shown is told before the models are loaded
    if self_signed and tls_cert is not None:
        raise UsageError("--self-signed and --tls-cert exclude each other; give one of them")
    if not math.isfinite(bitrate):
        raise UsageError("--bitrate takes a number of Mb/s, like 8")
    context = fingerprint = None
    if self_signed or tls_cert is not None or tls_key is not None:
        context, fingerprint = server_context(tls_cert, tls_key, hosts=own_names(host))
    if token is None and not is_loopback(host):
        token = new_token()
    config = ServeConfig(
        host=host,
        port=port,
        token=token,
        tls=context is not None,
        ice_servers=tuple(parse_ice_server(spec) for spec in ice_server or ()),
        limits=Limits(cameras=cameras, viewers=viewers, bitrate=round(bitrate * 1e6)),
        allowed_hosts=tuple(allow_host or ()),
    )
    set_up(as_json=log_json)

    def ready(actual: int) -> None:
        url = address(host, actual, tls=context is not None, token=token)
        out.print(f"streamfix live: {url}", highlight=False, markup=False, soft_wrap=True)
        if fingerprint:
            out.print(f"certificate SHA-256: {fingerprint}", highlight=False, markup=False, soft_wrap=True)
        elif context is None and not is_loopback(host):
            out.print(
                "browsers give the camera to secure pages only: add --self-signed or --tls-cert for cameras of other machines",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )

    async def main() -> None:
        server = load_server(
            config,
            model=model,
            detector=detector,
            device=device,
            faces=faces,
            min_size=min_size,
            ignore_background=ignore_background,
            embedding=embedding,
            embedding_norm=embedding_norm,
            parsing=parsing,
            strength=strength,
            record=record,
            overwrite=overwrite,
            virtual_camera=virtual_camera,
            threads=threads or max((os.cpu_count() or 2) // 2, 1),
        )
        await serve(server, source=input_, tls=context, ready=ready)

    asyncio.run(main())


def address(host: str, port: int, *, tls: bool, token: str | None) -> str:
    """The URL to open for a server that listens there."""
    from streamfix.serve.tls import own_names

    name = own_names(host)[0]
    secret = f"#token={quote(token, safe='')}" if token else ""  # behind the #: browsers keep it to themselves
    return f"{'https' if tls else 'http'}://{f'[{name}]' if ':' in name else name}:{port}/{secret}"
