"""The HTTP exchange of WHIP (RFC 9725) and WHEP, limits, and who is let in: real requests, real peers."""

import asyncio
import contextlib
import errno
import io
import json
import logging
import random
import re
import socket
from urllib.parse import parse_qs, urlsplit

import aiohttp
import aiohttp.web
import pytest
from aiortc import RTCPeerConnection
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import (
    LOCAL,
    Picture,
    Received,
    connect,
    live_server,
    offer_of,
    post,
    run,
    serving,
    until,
    whep_offer,
    whip_offer,
)
from typer.testing import CliRunner

from streamfix.cli import app
from streamfix.cli.live import address
from streamfix.errors import OutputError, UsageError
from streamfix.serve import run as run_module
from streamfix.serve import server as server_module
from streamfix.serve.config import ServeConfig, is_loopback, parse_ice_server
from streamfix.serve.logs import JsonLines, set_up
from streamfix.serve.run import serve
from streamfix.serve.sdp import OfferError, read_fragment, read_offer, with_bandwidth
from streamfix.serve.tls import own_names, self_signed, server_context

FRAGMENT = {"Content-Type": "application/trickle-ice-sdpfrag"}
TOKEN = "a-token-that-nobody-guesses"


def fragment_of(sdp: str, *, ufrag: str | None = None) -> str:
    name = ufrag or re.search(r"a=ice-ufrag:(\S+)", sdp)[1]
    password = re.search(r"a=ice-pwd:(\S+)", sdp)[1]
    return (
        f"a=ice-ufrag:{name}\r\na=ice-pwd:{password}\r\nm=video 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\n"
        "a=candidate:1 1 udp 2130706431 192.0.2.7 40404 typ host\r\na=end-of-candidates\r\n"
    )


def test_a_whip_session_from_offer_to_goodbye():
    async def work():
        server = live_server()
        async with serving(server) as (url, http):
            pc, sdp = await whip_offer()
            headers = await connect(pc, http, f"{url}/whip", sdp)
            assert headers["Content-Type"].startswith("application/sdp")
            assert re.fullmatch(r'"\w+"', headers["ETag"])
            where, tag = url + headers["Location"], headers["ETag"]

            async def patch(body: str, expected: int, **extra) -> None:
                async with http.patch(where, data=body, headers={**FRAGMENT, **extra}) as answer:
                    assert answer.status == expected, await answer.text()

            await patch(fragment_of(sdp), 204, **{"If-Match": tag})
            await patch(fragment_of(sdp), 428)
            await patch(fragment_of(sdp), 412, **{"If-Match": '"another"'})
            await patch(fragment_of(sdp), 422, **{"If-Match": "*"})  # an ICE restart
            await patch(fragment_of(sdp, ufrag="other"), 422, **{"If-Match": tag})
            await patch("nonsense", 400, **{"If-Match": tag})
            async with http.patch(
                where, data="{}", headers={"Content-Type": "application/json", "If-Match": tag}
            ) as bad:
                assert bad.status == 415
            for method in ("GET", "PUT", "POST", "HEAD"):
                async with http.request(method, where) as answer:
                    assert (answer.status, answer.headers["Allow"]) == (405, "DELETE, OPTIONS, PATCH")
            async with http.delete(url + headers["Location"].replace("whip", "whep")) as answer:
                assert answer.status == 404  # a session has one address
            async with http.delete(where) as answer:
                assert answer.status == 200
            async with http.delete(where) as answer:
                assert answer.status == 404
            assert not server.sessions
            await pc.close()

    run(work())


def test_an_endpoint_says_what_it_takes():
    async def work():
        async with serving(live_server()) as (url, http):
            for path in ("whip", "whep", "session"):
                for method in ("GET", "PUT", "DELETE", "PATCH", "HEAD"):
                    async with http.request(method, f"{url}/{path}") as answer:
                        assert (answer.status, answer.headers["Allow"]) == (405, "OPTIONS, POST")
                async with http.options(f"{url}/{path}") as answer:
                    assert (answer.status, answer.headers["Accept-Post"]) == (204, "application/sdp")
                    assert not any(name.startswith("Access-Control") for name in answer.headers)
                assert (await post(http, f"{url}/{path}", "v=0", **{"Content-Type": "text/plain"}))[0] == 415
                assert (await post(http, f"{url}/{path}", "v=0", Accept="text/html"))[0] == 406
                assert (await post(http, f"{url}/{path}", "no sdp"))[0] == 400
                assert (await post(http, f"{url}/{path}", "v=0\r\n" + "a=x\r\n" * 20000))[0] == 413
            async with http.get(f"{url}/nothing/here") as answer:
                assert answer.status == 404

    run(work())


def test_offers_that_cannot_be_served_are_told_apart():
    async def work():
        async with serving(live_server()) as (url, http):
            watcher, watch = await whep_offer()
            sender, send = await whip_offer()
            assert (await post(http, f"{url}/whip", watch))[0] == 406  # the wrong direction
            assert (await post(http, f"{url}/whep", send))[0] == 406
            assert (await post(http, f"{url}/whep", watch))[0] == 409  # nothing is being sent
            two = RTCPeerConnection(LOCAL)
            two.addTransceiver("video", direction="sendonly")
            two.addTransceiver("video", direction="sendonly")
            await two.setLocalDescription(await two.createOffer())
            assert (await post(http, f"{url}/whip", two.localDescription.sdp))[0] == 406
            foreign = send.replace("VP8/90000", "VP9/90000").replace("H264/90000", "AV1/90000")
            assert (await post(http, f"{url}/whip", foreign))[0] == 422
            bare = re.sub(r"a=fingerprint.*\r\n", "", send)
            assert (await post(http, f"{url}/whip", bare))[0] == 400
            for pc in (watcher, sender, two):
                await pc.close()

    run(work())


def test_one_sends_and_places_are_limited():
    async def work():
        server = live_server(viewers=1, cameras=0)
        async with serving(server) as (url, http):
            sender, send = await whip_offer()
            await connect(sender, http, f"{url}/whip", send)
            again, more = await whip_offer()
            status, text, headers = await post(http, f"{url}/whip", more)
            assert (status, headers["Retry-After"]) == (409, "5")
            assert "sending already" in text
            one, sdp = await whep_offer()
            await connect(one, http, f"{url}/whep", sdp)
            two, sdp = await whep_offer()
            assert (await post(http, f"{url}/whep", sdp))[0] == 503
            both = send.replace("a=sendonly", "a=sendrecv")
            assert (await post(http, f"{url}/session", both))[0] == 503
            for pc in (sender, again, one, two):
                await pc.close()

    run(work())


def test_who_comes_at_once_with_others_takes_one_place():
    async def work():
        async with serving(live_server(viewers=3)) as (url, http):
            sender, send = await whip_offer()
            await connect(sender, http, f"{url}/whip", send)
            offers = [await whep_offer() for _ in range(4)]
            answers = await asyncio.gather(*(post(http, f"{url}/whep", sdp) for _, sdp in offers))
            assert sorted(status for status, _, _ in answers) == [201, 201, 201, 503]
            for pc in (sender, *(pc for pc, _ in offers)):
                await pc.close()

    run(work())


def test_who_is_saying_goodbye_has_given_up_the_place():
    async def work():
        server = live_server(cameras=1)
        async with serving(server) as (url, http):
            one, two = RTCPeerConnection(LOCAL), RTCPeerConnection(LOCAL)
            for pc in (one, two):
                pc.addTransceiver(Picture(), direction="sendrecv")
            channel = one.createDataChannel("control")
            headers = await connect(one, http, f"{url}/session", await offer_of(one))
            await until(lambda: channel.readyState == "open")
            leaving = asyncio.create_task(http.delete(url + headers["Location"]))
            await until(lambda: any(s.closing for s in server.sessions.values()))
            await connect(two, http, f"{url}/session", await offer_of(two))
            assert (await leaving).status == 200
            await asyncio.gather(one.close(), two.close())

    run(work())


def test_the_page_is_told_of_a_sender_that_nobody_watches():
    async def work():
        async with serving(live_server()) as (url, http):

            async def live() -> bool:
                async with http.get(f"{url}/api/about") as answer:
                    return (await answer.json())["live"]

            assert not await live()
            sender, sdp = await whip_offer()
            headers = await connect(sender, http, f"{url}/whip", sdp)
            assert await live()
            async with http.delete(url + headers["Location"]):
                pass
            assert not await live()
            await sender.close()

    run(work())


def test_a_session_that_never_connects_and_one_that_goes_silent_are_let_go():
    async def work():
        server = live_server(connect=0.3)
        async with serving(server) as (url, http):
            pc, sdp = await whip_offer()
            status, _, headers = await post(http, f"{url}/whip", sdp)  # the answer is never taken
            assert status == 201
            await until(lambda: not server.sessions, 5)
            async with http.delete(url + headers["Location"]) as answer:
                assert answer.status == 404
            await pc.close()
        text = server.metrics.text().decode()
        assert 'streamfix_sessions_closed_total{kind="whip",reason="never connected"} 1.0' in text

    run(work())


def test_video_that_is_too_large_ends_the_session():
    async def work():
        server = live_server(width=200)
        async with serving(server) as (url, http):
            pc, sdp = await whip_offer()
            await connect(pc, http, f"{url}/whip", sdp)
            await until(lambda: not server.sessions)
            await pc.close()

    run(work())


# --- who is let in ----------------------------------------------------------------------------------------------------


def test_without_the_token_nothing_is_served_but_the_page():
    async def work():
        server = live_server(ServeConfig(token=TOKEN))
        async with serving(server) as (url, http):
            pc, sdp = await whip_offer()
            good = {"Authorization": f"Bearer {TOKEN}"}
            for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
                status, _, headers = await post(http, f"{url}/whip", sdp, **wrong)
                assert (status, headers["WWW-Authenticate"].split()[0]) == (401, "Bearer")
                for path in ("/api/about", "/metrics", "/whep"):
                    async with http.get(url + path, headers=wrong) as answer:
                        assert answer.status == 401
            assert (await post(http, f"{url}/whip?token={TOKEN}", sdp))[0] == 401  # never in a URL
            for path in ("/", "/healthz", "/page/app.js"):
                async with http.get(url + path) as answer:
                    assert answer.status == 200
            headers = await connect(pc, http, f"{url}/whip", sdp, **good)
            async with http.delete(url + headers["Location"]) as answer:
                assert answer.status == 401
            async with http.delete(url + headers["Location"], headers=good) as answer:
                assert answer.status == 200
            await pc.close()

    run(work())


def test_pages_of_other_origins_and_rebound_names_are_refused():
    async def work():
        async with serving(live_server()) as (url, http):
            pc, sdp = await whip_offer()
            for foreign in ("https://evil.example", "null", url.replace("127.0.0.1", "localhost")):
                status, _, headers = await post(http, f"{url}/whip", sdp, Origin=foreign)
                assert status == 403
                assert "Access-Control-Allow-Origin" not in headers
            async with http.options(f"{url}/whip", headers={"Origin": "https://evil.example"}) as answer:
                assert answer.status == 403
            async with http.get(f"{url}/api/about", headers={"Host": "evil.example:80"}) as answer:
                assert answer.status == 421  # DNS rebinding: origin and host agree, and neither is this machine
            status, _, _ = await post(http, f"{url}/whip", sdp, Origin=url)
            assert status == 201
            await pc.close()

    run(work())


@contextlib.contextmanager
def as_on_a_terminal():
    """Logs as the command sets them up; gives what is written."""
    loggers = [logging.getLogger(name) for name in ("", "streamfix", "aiohttp.server")]
    before = [(logger, logger.handlers[:], logger.level, logger.filters[:]) for logger in loggers]
    written = io.StringIO()
    try:
        with contextlib.redirect_stderr(written):
            set_up(as_json=False)
            yield written
    finally:
        for logger, handlers, level, filters in before:
            logger.handlers[:], logger.filters[:] = handlers, filters
            logger.setLevel(level)


async def first_line(url: str, request: bytes) -> bytes:
    """Of the answer to bytes that no HTTP client would send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
    writer.write(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
    line = await reader.readline()
    writer.close()
    return line


def test_requests_that_make_no_sense_are_refused_and_leave_no_trace_in_the_log(caplog):
    async def work():
        async with serving(live_server(ServeConfig(token=TOKEN))) as (url, _):
            for status, request in (
                (401, b"GET /api/about HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xe4bc\r\n\r\n"),
                (403, b"GET / HTTP/1.1\r\nHost: x\r\nOrigin: http://[\r\n\r\n"),
                (404, b"GET /page/" + 300 * b"a" + b".js HTTP/1.1\r\nHost: x\r\n\r\n"),
                (404, b"GET /page/a%00.js HTTP/1.1\r\nHost: x\r\n\r\n"),
            ):
                assert (await first_line(url, request)).split()[1] == str(status).encode(), request
        async with serving(live_server()) as (url, _):
            for host in (b"[", b"[::1", b"\xff"):
                line = await first_line(url, b"GET /api/about HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
                assert line.split()[1] == b"421"
            head = b"POST /whip HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/sdp\r\n"
            line = await first_line(url, head + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd")
            assert line.split()[1] == b"400"

    run(work())
    assert not [r for r in caplog.records if r.name.startswith("streamfix")]


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (400, b"POST /whip HTTP/1.1\r\nContent-Encoding: gzip\r\n"),
        (400, b"POST /whip HTTP/1.1\r\nContent-Encoding: deflate\r\n"),
        (200, b"GET / HTTP/1.1\r\nContent-Encoding: gzip\r\n"),  # nobody reads that body
        (400, b"GET / HTTP/1.1\r\nContent-Length: secret\r\n"),
        (400, b"GET / HTTP/1.1\r\nAuthorization: Bearer secret" + 9000 * b"x" + b"\r\n"),
    ],
    ids=["gzip", "deflate", "gzip for nobody", "length", "long header"],
)
def test_what_is_no_http_is_one_line_in_the_log_without_its_bytes(status, request_):
    rest = b"Host: localhost\r\nContent-Type: application/sdp\r\nContent-Length: 4\r\n\r\nabcd"

    async def work():
        async with serving(live_server()) as (url, _):
            line = await first_line(url, request_ + rest)
            assert line.split()[1] == str(status).encode()
            await asyncio.sleep(0.05)  # it is logged after the answer

    with as_on_a_terminal() as written:
        run(work())
    assert "a request cannot be read" in written.getvalue()
    assert written.getvalue().count("\n") == 1
    assert "secret" not in written.getvalue()


def test_who_says_nothing_or_stops_halfway_does_not_keep_the_connection(monkeypatch):
    monkeypatch.setattr(run_module, "_PATIENCE", 0.2)
    monkeypatch.setattr(server_module, "_BODY_TIME", 0.2)
    ready, stop = asyncio.Queue(), asyncio.Event()
    whole = b"GET /api/about HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = b"POST /whip HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/sdp\r\nContent-Length: 99\r\n\r\nv=0"

    async def work():
        serving_ = asyncio.create_task(serve(live_server(), ready=ready.put_nowait, stop=stop))
        port = await ready.get()
        ends = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
        for (_, writer), sent in zip(ends, (b"", whole[:20], head, whole), strict=True):
            writer.write(sent)
        silent, half, slow, good = (reader for reader, _ in ends)
        assert await asyncio.wait_for(silent.read(), 5) == b""
        assert await asyncio.wait_for(half.read(), 5) == b""
        assert b"408" in await asyncio.wait_for(slow.readline(), 5)
        await asyncio.sleep(0.5)
        assert not good.at_eof()
        stop.set()
        await serving_

    run(work())


def test_a_fault_of_the_server_keeps_its_trace():
    with as_on_a_terminal() as written:
        try:
            raise RuntimeError("ours")
        except RuntimeError:
            logging.getLogger("aiohttp.server").exception("Unhandled exception")
    assert "Traceback" in written.getvalue()


def test_the_token_is_never_logged_and_answers_tell_nothing_of_the_inside(caplog):
    caplog.set_level(logging.DEBUG)

    async def work():
        server = live_server(ServeConfig(token=TOKEN))

        async def broken(_request):
            raise RuntimeError("/home/somebody/secret.py")

        server._health = broken
        async with serving(server) as (url, http):
            good = {"Authorization": f"Bearer {TOKEN}"}
            async with http.get(f"{url}/healthz", headers=good) as answer:
                text = await answer.text()
                assert answer.status == 500
                assert "secret" not in text
                assert "Traceback" not in text
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
            pc, sdp = await whip_offer()
            await connect(pc, http, f"{url}/whip", sdp, **good)
            for name in ("/page/../server.py", "/page/..%2fserver.py", "/page/%2e%2e/config.py"):
                async with http.get(aiohttp.client.URL(url + name, encoded=True)) as answer:
                    assert answer.status in (401, 404)
            await pc.close()

    run(work())
    own = [r for r in caplog.records if r.name.startswith(("streamfix", "aiohttp"))]
    assert own
    assert not any(TOKEN in JsonLines().format(record) for record in own)
    assert any(json.loads(JsonLines().format(record)).get("session") for record in own)
    assert TOKEN not in repr(ServeConfig(token=TOKEN))


def test_beyond_loopback_a_token_is_needed():
    with pytest.raises(UsageError, match="token"):
        ServeConfig(host="0.0.0.0")
    with pytest.raises(UsageError, match="16 characters"):
        ServeConfig(host="0.0.0.0", token="short")
    for wrong in ("pässwörter-sind-lang", f" {TOKEN}", f"{TOKEN}\n"):
        with pytest.raises(UsageError, match="ASCII"):
            ServeConfig(token=wrong)
    ServeConfig(host="0.0.0.0", token=TOKEN)
    assert all(is_loopback(h) for h in ("localhost", "127.0.0.1", "127.8.9.1", "[::1]", "::1"))
    assert not any(is_loopback(h) for h in ("0.0.0.0", "example.org", "192.168.1.4", "localhost.evil.org"))


def test_the_printed_address_can_be_opened():
    assert address("127.0.0.1", 8080, tls=False, token=None) == "http://127.0.0.1:8080/"
    url = urlsplit(address("0.0.0.0", 1, tls=True, token="kVh2+Zq9/0aB+cD3&eF4"))
    assert (url.scheme, parse_qs(url.fragment)) == (
        "https",
        {"token": ["kVh2+Zq9/0aB+cD3&eF4"]},
    )  # as the page reads it
    assert ":" in urlsplit(address("::", 8080, tls=False, token=TOKEN)).hostname  # nobody listens on IPv4


@pytest.mark.parametrize("networks", [("192.0.2.7", "2001:db8::7"), ("192.0.2.7",), ("2001:db8::7",), ()])
def test_the_first_name_is_one_that_is_listened_on(networks, monkeypatch):
    class Probe(socket.socket):
        """Of a machine on these networks alone."""

        def connect(self, address):
            self.own = next((n for n in networks if (":" in n) == (":" in address[0])), None)
            if self.own is None:
                raise OSError("no route")

        def getsockname(self):
            return self.own, 0

    monkeypatch.setattr(socket, "socket", Probe)
    for host, loopback in (("::", "::1"), ("0.0.0.0", "127.0.0.1"), ("", "127.0.0.1")):
        names = own_names(host)
        mine = [n for n in networks if not host or (":" in n) == (":" in host)]
        assert names[: len(mine)] == mine
        assert mine or names[0] == ("::1" if host == "::" else socket.gethostname())
        assert loopback in names
        numbers = [n for n in names if n[0].isdigit() or ":" in n]
        assert not host or all((":" in n) == (":" in host) for n in numbers)
    assert own_names("192.0.2.9")[0] == "192.0.2.9"


def listen(host: str, port: int = 0) -> str:
    """What the server says where it cannot listen."""
    with pytest.raises(OutputError) as error:
        run(serve(live_server(ServeConfig(host=host, port=port, token=TOKEN))))
    return str(error.value)


def test_an_address_of_another_machine_is_told_as_such():
    for host in ("1.2.3.4", "2001:db8::1234"):
        assert f"{host} is no address of this machine; give --host" in listen(host)
    assert "the name a..b leads to no address; give --host" in listen("a..b")


def test_a_port_in_use_asks_for_another():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = listen("127.0.0.1", taken.getsockname()[1])
    assert "cannot be taken" in said
    assert said.endswith("choose another --port")


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (
            PermissionError(errno.EACCES, "permission denied"),
            "may not take port 80 of 127.0.0.1; choose another --port",
        ),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "leads to no address; give --host"),
        (OSError("could not bind on any address out of []"), "is no address of this machine; give --host"),
        (None, "is no address of this machine; give --host"),
    ],
    ids=["privileged", "no such name", "Python 3.13", "no IPv6"],
)
def test_what_keeps_from_listening_is_told_with_its_remedy(error, advice, monkeypatch):
    async def start(_site):
        if error is not None:
            raise error

    monkeypatch.setattr(aiohttp.web.TCPSite, "start", start)
    assert advice in listen("127.0.0.1", 80)


@pytest.mark.parametrize("wrong", ["inf", "nan"])
def test_a_bitrate_is_a_number(wrong):
    done = CliRunner().invoke(app, ["live", "--model", "passthrough", "--port", "0", "--bitrate", wrong])
    assert done.exit_code == 2
    assert "--bitrate" in done.output


def test_ice_servers_are_read_and_their_passwords_kept_out_of_messages():
    turn = parse_ice_server("turn:me:secret:word@turn.example:3478?transport=tcp")
    assert (turn.url, turn.username, turn.credential) == ("turn:turn.example:3478?transport=tcp", "me", "secret:word")
    assert "secret" not in repr(turn)
    assert parse_ice_server("stun:stun.example:19302").url == "stun:stun.example:19302"
    for wrong in (
        *("example.org", "stun:", "turn:host", "turn:me@host", "ftp:me:secret@host"),
        *("stun:host:abc", "stun:[::1]:9", "stun:host:0", "stun:host:65536", "turn:me:secret@host:1?transport=smoke"),
    ):
        with pytest.raises(UsageError) as error:
            parse_ice_server(wrong)
        assert "secret" not in str(error.value)


def test_a_certificate_is_made_for_any_name():
    certificate, _, _ = self_signed(["büro", "a..b", "fe80::1%eth0", "::1"])
    names = x509.load_pem_x509_certificate(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == ["xn--bro-hoa"]


def test_https_with_a_certificate_of_its_own():
    context, fingerprint = server_context(None, None, hosts=["localhost", "127.0.0.1"])
    assert re.fullmatch(r"([0-9A-F]{2}:){31}[0-9A-F]{2}", fingerprint)

    async def work():
        runner = aiohttp.web.AppRunner(live_server().app())
        await runner.setup()
        await aiohttp.web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        pinned = aiohttp.Fingerprint(bytes.fromhex(fingerprint.replace(":", "")))
        url = f"https://127.0.0.1:{runner.addresses[0][1]}/healthz"
        async with aiohttp.ClientSession() as http, http.get(url, ssl=pinned) as answer:
            assert (await answer.json())["status"] == "ok"
        await runner.cleanup()

    run(work())


# --- parsers ----------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="vosmtac=0 1:\r\nudpIN4-/RTPvideoaudio", max_size=300))
def test_no_text_breaks_the_readers(text):
    for reader in (lambda t: read_offer(t, sends=True, receives=False), read_fragment):
        with contextlib.suppress(OfferError):  # anything else is a failure
            reader(text)


def test_a_thousand_broken_offers_do_no_harm():
    async def work():
        server = live_server()
        async with serving(server) as (url, http):
            pc, sdp = await whip_offer(sound=True)
            await pc.close()
            rng, seen = random.Random(7), set()
            lines = sdp.split("\r\n")
            for number in range(1000):
                broken = list(lines)
                for _ in range(rng.randint(1, 6)):
                    at = rng.randrange(len(broken))
                    match rng.randrange(4):
                        case 0:
                            del broken[at]
                        case 1:
                            broken[at] = broken[at][: rng.randrange(len(broken[at]) + 1)]
                        case 2:
                            broken[at] = "".join(chr(rng.randrange(32, 300)) for _ in range(20))
                        case _:
                            broken.insert(at, broken[rng.randrange(len(broken))])
                path = rng.choice(["whip", "whep", "session"])
                status, text, headers = await post(http, f"{url}/{path}", "\r\n".join(broken))
                assert status in (201, 400, 406, 409, 422, 503), (number, status, text)
                seen.add(status)
                if status == 201:  # what was broken did not matter
                    async with http.delete(url + headers["Location"]) as answer:
                        assert answer.status in (200, 404)
            assert {400, 406} <= seen
            await until(lambda: not server.sessions)
            async with http.get(f"{url}/healthz") as answer:
                assert answer.status == 200

    run(work(), seconds=120)


def test_the_answer_bounds_the_senders_bitrate_and_keeps_one_fmtp_line_a_codec():
    answer = (
        "v=0\r\nm=audio 9 X 96\r\nc=IN IP4 0.0.0.0\r\na=rtpmap:96 opus/48000/2\r\nm=video 9 X 97 99\r\nc=IN IP4 0.0.0.0\r\n"
        "a=rtpmap:97 VP8/90000\r\na=rtpmap:99 H264/90000\r\na=fmtp:99 packetization-mode=1\r\n"
    )
    got = with_bandwidth(answer, start=1_500_000, most=4_000_000).split("\r\n")
    assert got.count("b=AS:4000") == 1
    assert got.index("b=AS:4000") > got.index("m=video 9 X 97 99")
    assert "a=fmtp:99 packetization-mode=1;x-google-start-bitrate=1500" in got
    assert sum(line.startswith("a=fmtp:99") for line in got) == 1
    assert "a=fmtp:97 x-google-start-bitrate=1500" in got


def test_health_and_metrics():
    async def work():
        server = live_server()
        async with serving(server) as (url, http):
            sender, sdp = await whip_offer()
            await connect(sender, http, f"{url}/whip", sdp)
            watcher, sdp = await whep_offer()
            got = Received(watcher)
            await connect(watcher, http, f"{url}/whep", sdp)
            await until(lambda: len(got.video) > 5)
            async with http.get(f"{url}/metrics") as answer:
                text = await answer.text()
                assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            for line in (
                'streamfix_sessions{kind="whep"} 1.0',
                'streamfix_stage_seconds_bucket{le="0.01",stage="follow"}',
                "streamfix_latency_seconds_count",
                "streamfix_send_bitrate_bps",
                'streamfix_sent_bytes_total{kind="video"}',
            ):
                assert line in text
            async with http.get(f"{url}/healthz") as answer:
                assert (await answer.json())["sessions"] == 2
            await asyncio.gather(sender.close(), watcher.close())

    run(work())
