"""Peers that are not ours, and what viewers see: FFmpeg's WHIP client, plain aiortc, sound in sync, bitrate, sources that die."""

import asyncio
import logging
import subprocess
import sys
import time

import av
import numpy as np
import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription
from live_server import (
    LOCAL,
    Picture,
    Received,
    Taken,
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

from streamfix.errors import InputError, OutputError, UsageError
from streamfix.media.source import open_source
from streamfix.serve.audio import AudioEncoder, Delay
from streamfix.serve.encode import LOWEST_BITRATE, VideoEncoder
from streamfix.serve.rate import RateControl
from streamfix.serve.run import _sinks
from streamfix.serve.sinks import Recording, VirtualCamera, numbered
from streamfix.serve.source import LiveInput, parse_input, shown_name
from streamfix.serve.tls import self_signed

SAMPLE = "samples/webcam.mp4"

FFMPEG = """
import sys, time, av
from fractions import Fraction
url, cert, key, source = sys.argv[1:]
with av.open(url, "w", format="whip", options={"cert_file": cert, "key_file": key}) as sink, av.open(source) as clip:
    video = sink.add_stream("libx264", rate=25, options={"tune": "zerolatency", "preset": "ultrafast"})
    video.width, video.height, video.pix_fmt, video.codec_context.gop_size = 640, 360, "yuv420p", 25
    video.codec_context.profile, video.codec_context.max_b_frames = "Baseline", 0
    audio = sink.add_stream("libopus", rate=48000, layout="stereo")
    began, resampler = time.time(), av.AudioResampler(format="s16", layout="stereo", rate=48000, frame_size=960)
    for frame in clip.decode(video=0, audio=0):
        time.sleep(max(0, began + frame.time - time.time()))
        if isinstance(frame, av.VideoFrame):
            frame.pict_type = 0
            sink.mux(video.encode(frame))
        else:
            for part in resampler.resample(frame):
                sink.mux(audio.encode(part))
"""


def test_ffmpeg_publishes_and_a_plain_client_watches(tmp_path):
    """FFmpeg's own WHIP muxer. Built with GnuTLS it makes itself a certificate on P-224, which OpenSSL 4 refuses: it is given one."""
    certificate, key, _ = self_signed(["localhost"])
    (tmp_path / "cert.pem").write_bytes(certificate)
    (tmp_path / "key.pem").write_bytes(key)

    async def work():
        server = live_server()
        async with serving(server) as (url, http):
            files = (str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"), SAMPLE)
            ffmpeg = await asyncio.create_subprocess_exec(
                sys.executable, "-c", FFMPEG, f"{url}/whip", *files, stderr=asyncio.subprocess.PIPE
            )
            await until(lambda: server.sessions, 15)
            watcher, sdp = await whep_offer(sound=True)
            got = Received(watcher)
            await connect(watcher, http, f"{url}/whep", sdp)
            await until(lambda: len(got.video) > 40 and len(got.audio) > 60, 25)
            _, log = await ffmpeg.communicate()
            assert ffmpeg.returncode == 0, log.decode()
            await until(lambda: all(s.kind == "whep" for s in server.sessions.values()))  # FFmpeg's DELETE
            await watcher.close()
            return got

    got = run(work(), seconds=60)
    with av.open(SAMPLE) as clip:
        truth = next(clip.decode(video=0)).to_ndarray(format="gray").astype(float)
    last = got.video[25][1].to_ndarray(format="gray").astype(float)
    assert last.shape == truth.shape
    assert np.corrcoef(last.ravel(), truth.ravel())[0, 1] > 0.8  # that very clip, a little later


@pytest.mark.parametrize(("setup", "answered"), [("active", "passive"), ("passive", "active")])
def test_a_client_may_take_either_role_in_dtls(setup, answered):
    async def work():
        server = live_server()
        async with serving(server) as (url, http):
            sender, sdp = await whip_offer()
            await connect(sender, http, f"{url}/whip", sdp.replace("a=setup:actpass", f"a=setup:{setup}"))
            assert f"a=setup:{answered}" in sender.remoteDescription.sdp
            await until(lambda: sender.connectionState == "connected")
            await sender.close()

    run(work())


def test_faces_of_a_published_stream_are_restored_for_every_viewer():
    class Clip(Picture):
        frames = None

        async def recv(self):
            pts, time_base = await self.next_timestamp()
            if self.frames is None:
                with open_source(SAMPLE) as source:
                    self.frames = [f.picture for f, _ in zip(source, range(60), strict=False)]
            picture = self.frames[self.number % 60].reformat(format="yuv420p")
            picture.pts, picture.time_base = pts, time_base
            self.number += 1
            return picture

    async def work():
        from streamfix.faces.detect import load_detector

        server = live_server(detector=lambda: load_detector("retinaface", threads=1))
        async with serving(server) as (url, http):
            sender = RTCPeerConnection(LOCAL)
            sender.addTransceiver(Clip(), direction="sendonly")
            await connect(sender, http, f"{url}/whip", await offer_of(sender))
            pairs = []
            for view in ("?view=compare", "", ""):
                watcher, sdp = await whep_offer()
                got = Received(watcher)
                await connect(watcher, http, f"{url}/whep{view}", sdp)
                pairs.append((watcher, got))

            def restored():
                both = [f for _, f in pairs[0][1].video if f.width == 1280]
                if not both:
                    return False
                image = both[-1].to_ndarray(format="gray").astype(int)
                change = np.abs(image[:, 640:] - image[:, :640])
                face, elsewhere = change[100:250, 265:375].mean(), change[:, :120].mean()
                return elsewhere < 3 and face > 2 * elsewhere + 1

            await until(restored, 30)
            await until(lambda: all(len(got.video) > 5 for _, got in pairs))
            assert [got.video[-1][1].width for _, got in pairs] == [1280, 640, 640]
            assert server.main.facts()["viewers"] == 3
            assert len(server.main._rungs) == 2  # one encoder for the two that see the same
            for pc in (sender, *(pc for pc, _ in pairs)):
                await pc.close()

    run(work(), seconds=80)


def test_a_viewer_sees_a_held_frame_and_then_the_next_sender():
    async def work():
        server = live_server()
        async with serving(server) as (url, http):
            one, sdp = await whip_offer()
            headers = await connect(one, http, f"{url}/whip", sdp)
            watcher, sdp = await whep_offer()
            got = Received(watcher)
            await connect(watcher, http, f"{url}/whep", sdp)
            await until(lambda: len(got.video) > 10)
            async with http.delete(url + headers["Location"]):
                pass
            await one.close()
            await until(lambda: server.main.state == "held")
            await until(lambda: got.video[-1][1].to_ndarray(format="gray").std() > 3, 10)  # the words on it
            assert "left" in server.main.notice
            two, sdp = await whip_offer()
            await connect(two, http, f"{url}/whip", sdp)
            await until(lambda: server.main.state == "live")
            await until(lambda: got.video[-1][1].to_ndarray(format="gray").std() < 3)
            stamps = [frame.pts for _, frame in got.video]
            assert stamps == sorted(stamps)
            await asyncio.gather(two.close(), watcher.close())

    run(work())


async def sent_and_gone(http, url: str, *, until_left=None) -> None:
    """A sender comes, and leaves with a good-bye."""
    sender, sdp = await whip_offer()
    headers = await connect(sender, http, f"{url}/whip", sdp)
    if until_left is not None:
        await until_left()
    async with http.delete(url + headers["Location"]) as answer:
        assert answer.status == 200
    await sender.close()


def test_a_viewer_whose_handshake_outlasts_the_sender_sees_the_next_one():
    async def work():
        async with serving(live_server()) as (url, http):
            watcher, sdp = await whep_offer()
            got = Received(watcher)
            answers = []

            async def ask():
                answers.append(await post(http, f"{url}/whep", sdp))

            await sent_and_gone(http, url, until_left=ask)
            await watcher.setRemoteDescription(RTCSessionDescription(sdp=answers[0][1], type="answer"))
            await until(lambda: watcher.connectionState == "connected")
            sender, sdp = await whip_offer()
            await connect(sender, http, f"{url}/whip", sdp)
            await until(lambda: got.video and got.video[-1][1].to_ndarray(format="gray").mean() > 50)  # not held
            await asyncio.gather(sender.close(), watcher.close())

    run(work())


def test_the_server_says_goodbye_and_leaves_nothing_behind():
    async def work():
        server = live_server()
        said = []
        async with serving(server) as (url, http):
            sender, sdp = await whip_offer(sound=True)
            await connect(sender, http, f"{url}/whip", sdp)
            both = RTCPeerConnection(LOCAL)
            channel = both.createDataChannel("control")
            channel.on("message", said.append)
            both.addTransceiver(Picture(), direction="sendrecv")
            got = Received(both)
            await connect(both, http, f"{url}/session", await offer_of(both))
            await until(lambda: said and len(got.video) > 5)
            channel.send('{"type": "settings", "strength": 0.25}')
            channel.send('{"type": "settings", "strength": "much"}')
            channel.send('{"type": "settings", "model": "../../etc"}')
            channel.send("[1, 2")
            channel.send('{"type": "settings", "strength": ' + "9" * 400 + "}")
            channel.send("[" * 3900)
            await until(lambda: any('"strength": 0.25' in m for m in said))
            await until(lambda: sum('"type": "error"' in m for m in said) == 5)
            await server.close()
            await until(lambda: any("going down" in m for m in said))
            assert (await http.get(f"{url}/healthz")).status == 503
            await asyncio.gather(sender.close(), both.close())
        left = [t for t in asyncio.all_tasks() if t.get_name().startswith(("session", "feed", "server"))]
        assert left == []

    run(work())
    import threading

    assert [t.name for t in threading.enumerate() if t.name.startswith("live-")] == []


# --- bitrate ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["H264", "VP8"])
def test_our_encoders_go_beyond_aiortcs_caps_and_follow_the_bitrate_while_they_run(codec):
    rng, now = np.random.default_rng(0), [0.0]
    base = rng.integers(0, 255, (480, 640, 3), dtype=np.uint8)

    def picture(number: int) -> av.VideoFrame:
        image = np.roll(base, 3 * number, axis=1) // 2 + rng.integers(0, 90, base.shape, dtype=np.uint8)
        return av.VideoFrame.from_ndarray(image.astype(np.uint8), format="rgb24")

    encoder, sizes, keys = VideoEncoder(codec, bitrate=6_000_000, clock=lambda: now[0]), [], []
    for number in range(120):
        now[0] = number / 30
        if number == 60:
            encoder.bitrate = 1_500_000
        packets = encoder.encode(picture(number), pts=number * 3000, key=number in (0, 45))
        sizes.append(8 * sum(p.size for p in packets))
        keys += [number for p in packets if p.is_keyframe]
    assert sum(sizes[20:60]) / (40 / 30) > 4_000_000
    assert sum(sizes[90:]) < 0.6 * sum(sizes[20:50])
    assert {0, 45} <= set(keys)


def test_the_target_rises_without_loss_and_falls_with_it_or_with_a_full_queue():
    rate = RateControl(ceiling=8_000_000)
    sent = 0
    for _ in range(30):
        sent += 200
        assert not rate.report(sent=sent, lost=0, round_trip=0.03)
    assert rate.target == 8_000_000
    assert rate.report(sent=sent + 200, lost=60, round_trip=0.03)
    assert rate.target < 7_000_000
    before = rate.target
    for step in range(6):
        rate.report(sent=sent + 400 + 200 * step, lost=60, round_trip=0.8)
    assert rate.target < before
    for step in range(100):
        rate.report(sent=10**6 + 100 * step, lost=10**5 + 90 * step, round_trip=0.03)
    assert rate.target == LOWEST_BITRATE


# --- sound ------------------------------------------------------------------------------------------------------------


def test_sound_leaves_as_late_as_the_picture_and_in_order():
    now = [0.0]
    delay = Delay(clock=lambda: now[0])
    leaves = []
    for number in range(400):
        now[0] = number * 0.02
        leaves.append(now[0] + delay.release(0.2 if number < 200 else 0.05))
    assert leaves[0] == pytest.approx(0.2)
    assert leaves == sorted(leaves)
    assert leaves[-1] - now[0] == pytest.approx(0.05, abs=0.01)


def test_sound_keeps_its_time_stamps_and_jumps_only_after_a_pause():
    now = [0.0]
    encoder = AudioEncoder(clock=lambda: now[0])
    stamps = []
    for number in range(100):
        now[0] = number * 0.01 + (5.0 if number >= 50 else 0.0)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 441), np.int16), format="s16", layout="mono")
        frame.sample_rate = 44100
        stamps += [p.pts for p in encoder.encode(frame)]
    steps = np.diff(stamps)
    assert sorted(set(steps))[0] == 960
    assert sum(steps != 960) == 1
    assert steps.max() == pytest.approx(5 * 48000, rel=0.1)


# --- sources ----------------------------------------------------------------------------------------------------------


def wait(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def test_a_file_is_a_camera_that_never_ends(tmp_path):
    from fractions import Fraction

    path = tmp_path / "short.mp4"
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(10):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * number, np.uint8), format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, 25)
            sink.mux(stream.encode(picture))
        sink.mux(stream.encode(None))
    taken = Taken()
    reader = LiveInput(str(path), taken)
    reader.start()
    wait(lambda: len(taken.frames) > 35)
    reader.stop()
    times = [frame.time for _, frame in taken.frames]
    assert np.all(np.diff(times) > 0)
    assert np.median(np.diff(times)) == pytest.approx(0.04, abs=0.001)
    pace = (taken.frames[-1][0] - taken.frames[0][0]) / (times[-1] - times[0])
    assert 0.8 < pace < 2.0  # its own pace, not the disk's


def test_a_source_that_is_not_there_is_tried_again_with_longer_and_longer_pauses(caplog):
    caplog.set_level(logging.WARNING, logger="streamfix")
    taken = Taken()
    reader = LiveInput("rtsp://user:secret@127.0.0.1:9/stream?key=hidden", taken, wait=0.1, longest=0.5)
    reader.start()
    wait(lambda: reader.attempts >= 4)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.4  # it waits, it does not spin
    assert reader.attempts <= 6
    reader.stop()
    assert "the camera is away; reconnecting" in taken.notices
    assert "secret" not in caplog.text
    assert "hidden" not in caplog.text
    assert shown_name("rtsp://user:secret@cam.local:554/a?b=c") == "rtsp://cam.local"


def test_inputs_that_cannot_be_are_told_at_once():
    with pytest.raises(UsageError, match="gopher"):
        parse_input("gopher://somewhere")
    with pytest.raises(InputError, match="there is no file"):
        parse_input("missing.mp4")
    for wrong in ("http://[", "rtsp://", "rtsp://me:secret@cam:99999/", "rtsp://me:secret[@cam/"):
        with pytest.raises(UsageError, match="the address") as error:
            parse_input(wrong)
        assert "secret" not in str(error.value)
    with pytest.raises(InputError, match="there is no file"):
        parse_input("a" * 5000)
    assert all(parse_input(away) for away in ("rtsp://me:secret@127.0.0.1:9/x", "udp://@:1234", "webcam:99"))


RTSP_SERVER = """
import sys, gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server = GstRtspServer.RTSPServer(service=sys.argv[1], address="127.0.0.1")
factory = GstRtspServer.RTSPMediaFactory(shared=True)
factory.set_launch("( videotestsrc is-live=true pattern=ball ! video/x-raw,width=320,height=240,framerate=25/1 "
                   "! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=25 ! rtph264pay name=pay0 pt=96 )")
server.get_mount_points().add_factory("/cam", factory)
server.attach(None)
print("ready", flush=True)
GLib.MainLoop().run()
"""


def gstreamer() -> str | None:
    """The system's Python where it has GStreamer's RTSP server (Debian: gir1.2-gst-rtsp-server-1.0, python3-gi)."""
    probe = (
        "import gi; gi.require_version('GstRtspServer', '1.0'); gi.require_version('Gst', '1.0'); "
        "from gi.repository import Gst, GstRtspServer; Gst.init(None); assert Gst.ElementFactory.find('x264enc')"
    )
    try:
        found = subprocess.run(["/usr/bin/python3", "-c", probe], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return "/usr/bin/python3" if found.returncode == 0 else None


def rtsp_server(python: str, port: int) -> subprocess.Popen:
    process = subprocess.Popen([python, "-c", RTSP_SERVER, str(port)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "ready"
    return process


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_real_rtsp_camera_dies_and_comes_back():
    python = gstreamer()
    if python is None:
        pytest.skip("needs GStreamer's RTSP server: apt-get install python3-gi gir1.2-gst-rtsp-server-1.0 "
                    "gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly")  # fmt: skip
    port = free_port()

    async def work():
        server = live_server()
        camera = rtsp_server(python, port)
        reader = server.read(f"rtsp://127.0.0.1:{port}/cam")
        reader._wait, reader._longest = 0.3, 1.0
        async with serving(server) as (url, http):
            reader.start()
            watcher, sdp = await whep_offer()
            got = Received(watcher)
            await connect(watcher, http, f"{url}/whep", sdp)
            await until(lambda: server.main.state == "live" and len(got.video) > 20, 25)
            camera.kill()
            camera.wait()
            await until(lambda: server.main.state == "held", 25)
            held = len(got.video)
            await until(lambda: len(got.video) > held + 1, 10)  # the held frame goes on being sent
            assert server.main.notice == "the camera is away; reconnecting"
            camera = rtsp_server(python, port)
            try:
                await until(lambda: server.main.state == "live", 25)
                back = len(got.video)
                await until(lambda: len(got.video) > back + 15, 15)
            finally:
                camera.kill()
            stamps = [frame.pts for _, frame in got.video]
            assert stamps == sorted(stamps)
            await asyncio.get_running_loop().run_in_executor(None, reader.stop)
            await watcher.close()
        assert "streamfix_input_reconnects_total 0.0" not in server.metrics.text().decode()

    run(work(), seconds=110)


# --- other sinks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_stream_is_recorded_beside_serving_with_picture_and_sound_in_sync(tmp_path, suffix):
    path = tmp_path / f"recorded{suffix}"

    async def work():
        server = live_server(
            make_sinks=lambda dropped: [Recording(path, dropped=dropped, note="faces restored live, says the test")]
        )
        async with serving(server) as (url, http):
            sender, sdp = await whip_offer(sound=True)
            await connect(sender, http, f"{url}/whip", sdp)
            await until(lambda: server.main.figures.frames > 45)  # nobody watches: it is recorded all the same
            assert not path.exists()
            await sender.close()

    run(work())
    with av.open(str(path)) as container:
        notes = {name.lower(): value for name, value in container.metadata.items()}
        assert notes["enhanced"].startswith("faces restored")
        seconds = {"video": [], "audio": []}
        for frame in container.decode(video=0, audio=0):
            seconds["video" if isinstance(frame, av.VideoFrame) else "audio"].append(frame.time)
    assert len(seconds["video"]) > 40
    assert np.all(np.diff(seconds["video"]) > 0)
    assert abs(seconds["video"][-1] - seconds["audio"][-1]) < 0.5
    assert not list(tmp_path.glob(".*"))


def test_a_recording_ends_when_the_sender_and_then_the_last_viewer_have_left(tmp_path):
    path = tmp_path / "recorded.mkv"

    async def work():
        server = live_server(make_sinks=lambda dropped: [Recording(path, dropped=dropped, note="")])
        async with serving(server) as (url, http):
            watcher, sdp = await whep_offer()
            got = Received(watcher)

            async def watch():
                await connect(watcher, http, f"{url}/whep", sdp)
                await until(lambda: len(got.video) > 5)

            await sent_and_gone(http, url, until_left=watch)
            assert server.main_if_any is not None  # the viewer waits for the next sender
            await watcher.close()
            await until(path.exists)
            assert server.main_if_any is None

    run(work())


def test_a_recording_of_another_day_stays_and_every_sender_is_recorded(tmp_path):
    (tmp_path / "x-2.mkv").write_bytes(b"precious")

    async def work():
        server = live_server(make_sinks=_sinks(tmp_path / "x.mkv", False, False, "note"))
        async with serving(server) as (url, http):
            for name in ("x.mkv", "x-3.mkv"):

                async def seen():
                    await until(lambda: server.main.figures.frames > 3)

                await sent_and_gone(http, url, until_left=seen)
                await until((tmp_path / name).exists)
        assert (tmp_path / "x-2.mkv").read_bytes() == b"precious"

    run(work())


def test_where_nothing_can_be_recorded_no_sender_is_taken():
    def fail(_dropped):
        raise OutputError("the disk is full")

    async def work():
        async with serving(live_server(make_sinks=fail)) as (url, http):
            for _ in range(2):  # the second would go unrecorded
                sender, sdp = await whip_offer()
                assert (await post(http, f"{url}/whip", sdp))[0] == 500
                await sender.close()

    run(work())


def test_recordings_that_cannot_be_are_told_at_the_start(tmp_path):
    with pytest.raises(UsageError, match="mkv"):
        Recording(tmp_path / "a.avi", dropped=print, note="")
    with pytest.raises(OutputError, match="does not exist"):
        Recording(tmp_path / "none" / "a.mkv", dropped=print, note="")
    (tmp_path / "there.mkv").write_bytes(b"precious")
    with pytest.raises(OutputError, match="exists already"):
        Recording(tmp_path / "there.mkv", dropped=print, note="")
    assert numbered(tmp_path / "a.mkv", 2).name == "a-3.mkv"


def test_a_machine_without_a_virtual_camera_is_told_so():
    pytest.importorskip("pyvirtualcam", reason="needs the extra virtualcam")
    camera = VirtualCamera()
    for number in range(5):
        camera.show(av.VideoFrame(64, 48, "yuv420p"), number / 30)
    camera.close()
    assert camera.error is None or "virtual camera" in str(camera.error)
