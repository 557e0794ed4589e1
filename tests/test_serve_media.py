"""Live media that is not as one would have it: colours, sizes, clocks, rotations and sound that change, disks that fail."""

import asyncio
import functools
import http.server
import shutil
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from live_server import NoFaces, Received, Taken, connect, live_server, run, serving, until, whep_offer
from test_serve_browser import CHROMIUM, REQUIRED, sync_playwright
from typer.testing import CliRunner

from streamfix.cli import app
from streamfix.errors import InputError
from streamfix.serve import feed as feed_module
from streamfix.serve import run as run_module
from streamfix.serve import source as source_module
from streamfix.serve.audio import AudioEncoder
from streamfix.serve.encode import VideoEncoder
from streamfix.serve.feed import as_frame
from streamfix.serve.notice import held_picture
from streamfix.serve.sinks import Recording
from streamfix.serve.source import LiveInput, parse_input
from streamfix.types import Frame

LEFT, RIGHT = (200, 40, 30), (30, 190, 60)
BT709, BT601, UNTAGGED = 1, 6, 2


def colored(matrix: int, full: bool, *, size=(64, 48), pixel_format="yuv420p", tagged: bool = True) -> av.VideoFrame:
    """One colour on the left, another on the right."""
    image = np.empty((size[1], size[0], 3), np.uint8)
    image[:, : size[0] // 2], image[:, size[0] // 2 :] = LEFT, RIGHT
    picture = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
        format=pixel_format, dst_colorspace={BT709: 1, BT601: 5}[matrix], dst_color_range=2 if full else 1
    )
    if not tagged:
        picture.colorspace, picture.color_range = UNTAGGED, 0
    return picture


def shown(picture: av.VideoFrame, codec: str = "H264", width: int = 0) -> list[list[int]]:
    """The two colours as a browser shows them: untagged H.264 is BT.709 to it, VP8 BT.601, both in 16..235."""
    if codec == "VP8":
        picture.colorspace, picture.color_range = BT601, 1
    elif picture.colorspace == UNTAGGED:
        picture.colorspace, picture.color_range = BT709, 1
    rgb = picture.to_ndarray(format="rgb24")
    return [rgb[rgb.shape[0] // 2, (width or rgb.shape[1]) * part // 4].tolist() for part in (1, 3)]


def decoded(packets, codec: str = "H264") -> list[av.VideoFrame]:
    decoder = av.CodecContext.create({"H264": "h264", "VP8": "vp8"}[codec], "r")
    return [picture for packet in [*packets, None] for picture in decoder.decode(packet)]


def near(colors) -> bool:
    return np.abs(np.array(colors) - np.array([LEFT, RIGHT])).max() <= 12  # lossy; the wrong matrix makes 20 and more


# --- colours ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["H264", "VP8"])
@pytest.mark.parametrize("matrix", [BT601, BT709])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "full yuv420p", "yuvj420p", "untagged yuv420p", "rgb24"])
def test_colours_arrive_as_they_were_sent(codec, matrix, pixel_format):
    *how, name = pixel_format.split()
    size = (1280, 720) if how == ["untagged"] and matrix == BT709 else (64, 48)  # HD is taken for BT.709
    full = name == "yuvj420p" or how == ["full"]
    picture = colored(matrix, full, size=size, pixel_format=name, tagged=how != ["untagged"])
    packets = VideoEncoder(codec, bitrate=3_000_000, clock=lambda: 0.0).encode(picture, pts=0, key=True)
    assert near(shown(decoded(packets, codec)[0], codec))


def test_colours_may_change_while_a_stream_runs():
    encoder = VideoEncoder("H264", bitrate=1_000_000, clock=lambda: 0.0)
    packets = []
    for number, (matrix, full) in enumerate([(BT601, False), (BT709, False), (BT709, True)]):
        packets += encoder.encode(colored(matrix, full), pts=3000 * number)
    assert [near(shown(picture)) for picture in decoded(packets)] == [True] * 3


def test_a_held_picture_has_the_colours_of_the_last_one():
    last = colored(BT709, True, size=(640, 360))
    held = held_picture(last, "")
    assert (held.colorspace, held.color_range) == (last.colorspace, last.color_range)  # else encoders begin anew
    assert np.allclose(shown(held), np.array([LEFT, RIGHT]) * 0.35, atol=6)


def test_what_a_picture_leaves_open_is_settled_before_it_is_shown_beside_another():
    async def work():
        server = live_server()
        async with serving(server):
            feed = server.new_feed(print)
            viewer = feed.new_viewer("H264", "compare")
            feed.watch(viewer)
            number = 0
            while viewer.video.empty():  # together they are wider than 1024, which alone is taken for HD
                picture = colored(BT601, False, size=(640, 360), tagged=False)
                feed.show(Frame(picture=picture, index=number, pts=number, time_base=Fraction(1, 30)))
                await asyncio.sleep(1 / 30)
                number += 1
            (picture, *_) = decoded([viewer.video.get_nowait()])
            assert picture.width == 1280
            assert near(shown(picture, width=640))
            facts = feed.facts()
            assert (facts["width"], facts["height"]) == (640, 360)
            await feed.close()

    run(work())
    peers = as_frame(colored(BT601, False, size=(1280, 720), tagged=False), index=0)
    assert peers.picture.colorspace == BT601  # a browser's camera, whatever its size


def test_a_recording_has_the_colours_of_its_first_picture(tmp_path):
    recording = Recording(tmp_path / "a.mkv", dropped=print, note="")
    for number in range(6):
        recording.show(colored(BT709, True) if number < 3 else colored(BT601, False), number / 30)
    recording.close()
    with av.open(str(tmp_path / "a.mkv")) as container:
        pictures = list(container.decode(video=0))
    assert [near(shown(picture)) for picture in pictures] == [True] * 6


@pytest.mark.parametrize("codec", ["H264", "VP8"])
@pytest.mark.parametrize(("size", "sent"), [((321, 241), (320, 240)), ((101, 330), (100, 330)), ((1, 1), (2, 2))])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p10le"])
def test_pictures_of_any_size_are_sent(codec, size, sent, pixel_format):
    picture = colored(BT601, False, size=(max(size[0], 2), max(size[1], 2))).reformat(*size, format=pixel_format)
    packets = VideoEncoder(codec, bitrate=1_000_000, clock=lambda: 0.0).encode(picture, pts=0, key=True)
    (got,) = decoded(packets, codec)
    assert (got.width, got.height) == sent


# --- recordings -------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(30)
def test_a_recording_that_cannot_be_finished_is_told_and_keeps_nobody(tmp_path, caplog):
    folder = tmp_path / "folder"
    folder.mkdir()
    recording = Recording(folder / "a.mkv", dropped=print, note="")
    recording.show(colored(BT601, False), 0.0)
    end = time.monotonic() + 10
    while not list(folder.iterdir()) and time.monotonic() < end:
        time.sleep(0.02)
    shutil.rmtree(folder)
    closing = threading.Thread(target=recording.close, daemon=True)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()
    assert "the recording cannot be finished" in caplog.text


# --- sources ----------------------------------------------------------------------------------------------------------


def write(path: Path, frames: int, *, begin: int = 0, sound: bool = False, codec="libx264", turn: int = 0) -> Path:
    """25 pictures a second of 64x48, bright on the left; begin: the first one's time stamp."""
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream(codec, rate=25, options={"preset": "ultrafast", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if turn:
            stream.set_display_rotation(-turn)
        audio = sink.add_stream("mp2", rate=48_000) if sound else None
        image = np.full((48, 64, 3), 30, np.uint8)
        image[:, :32] = 200
        for number in range(frames):
            picture = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            picture.pts, picture.time_base = begin + number, Fraction(1, 25)
            sink.mux(stream.encode(picture))
            if audio is not None:
                for half in range(2):
                    quiet = av.AudioFrame.from_ndarray(np.zeros((1, 1920), np.int16), format="s16", layout="stereo")
                    quiet.sample_rate, quiet.time_base = 48_000, Fraction(1, 48_000)
                    quiet.pts = 1920 * (begin + number) + 960 * half
                    sink.mux(audio.encode(quiet))
        for track in (stream, audio):
            if track is not None:
                sink.mux(track.encode(None))
    return path


def read(spec, until_frames: int, *, seconds: float = 15.0) -> Taken:
    taken = Taken()
    reader = LiveInput(str(spec), taken, wait=0.1)
    reader.start()
    end = time.monotonic() + seconds
    while len(taken.frames) < until_frames:
        assert time.monotonic() < end, f"only {len(taken.frames)} pictures came"
        time.sleep(0.01)
    reader.stop()
    return taken


@pytest.mark.parametrize("second", [0, 25 * 3600], ids=["back", "ahead"])
@pytest.mark.parametrize("sound", [False, True], ids=["silent", "sound"])
def test_a_sources_clock_that_jumps_does_not_stop_it(tmp_path, second, sound):
    both = tmp_path / "both.ts"
    parts = [write(tmp_path / f"{n}.ts", 50, begin=n * second, sound=sound) for n in range(2)]
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    taken = read(both, 95)
    assert np.all(np.diff(taken.times) > 0)
    assert np.diff(taken.times).max() < 0.3
    assert taken.took == pytest.approx(taken.times[-1] - taken.times[0], abs=0.5)  # at its own pace all through
    assert bool(taken.sound) == sound


def test_a_file_behind_http_plays_at_its_own_pace(tmp_path):
    write(tmp_path / "a.ts", 100)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        taken = read(f"http://127.0.0.1:{server.server_port}/a.ts", 40)
    finally:
        server.shutdown()
        server.server_close()
    assert taken.took > 1.2  # 40 pictures are 1.6 s


def test_a_source_that_shows_nothing_never_counts_as_settled(monkeypatch):
    monkeypatch.setattr(source_module, "_SETTLED", 0.0)  # any picture at all would do
    reader = LiveInput("rtsp://127.0.0.1:9/", Taken(), wait=0.1)
    reader.start()
    time.sleep(1.5)
    reader.stop()
    assert reader.attempts <= 5  # pauses of 0.1, 0.2, 0.4, 0.8 s


def test_a_file_of_one_picture_is_a_still(tmp_path):
    taken = read(write(tmp_path / "one.mp4", 1), 5)
    assert not taken.notices


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_rotated_file_is_served_upright(tmp_path, turn):
    frame = read(write(tmp_path / "turned.mp4", 3, turn=turn), 1).frames[0][1]
    assert frame.rotation == 0
    assert (frame.picture.width, frame.picture.height) == ((64, 48) if turn == 180 else (48, 64))
    luma = frame.picture.to_ndarray(format="gray").astype(int)
    bright = {"left": luma[:, :16], "right": luma[:, -16:], "top": luma[:16], "bottom": luma[-16:]}
    assert max(bright, key=lambda side: bright[side].mean()) == {90: "top", 180: "right", 270: "bottom"}[turn]


def test_a_slow_source_is_live_all_the_time(monkeypatch):
    monkeypatch.setattr(feed_module, "_SILENCE", 0.2)
    monkeypatch.setattr(feed_module, "_HELD_EVERY", 0.02)

    async def work():
        server = live_server(detector=NoFaces)
        async with serving(server):
            feed = server.new_feed(print)
            feed.watch(feed.new_viewer("H264"))
            states = []
            for number in range(10):
                feed.show(as_frame(colored(BT601, False), index=number, time=0.3 * number))
                for _ in range(15):
                    await asyncio.sleep(0.02)
                    states += [feed.state] if number >= 2 else []
            assert set(states) == {"live"}
            await until(lambda: feed.state == "held", 5)  # it has ended
            await feed.close()

    run(work())


def unreadable(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.mkv"
    if kind == "sound":
        with av.open(str(path), "w") as sink:
            audio = sink.add_stream("mp2", rate=48_000)
            quiet = av.AudioFrame.from_ndarray(np.zeros((1, 2304), np.int16), format="s16", layout="stereo")
            quiet.sample_rate, quiet.pts = 48_000, 0
            for packet in (*audio.encode(quiet), *audio.encode(None)):
                sink.mux(packet)
    elif kind == "unknown codec":
        write(path, 3)
        path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_XXXX4/ISO/AVC"))
    elif kind == "empty":
        path.touch()
    else:
        path.write_text("a text\n" * 100)
    return path


@pytest.mark.parametrize("kind", ["text", "empty", "sound", "unknown codec"])
def test_a_file_that_can_never_be_shown_is_told_at_once(kind, tmp_path):
    with pytest.raises(InputError, match=r"not a media file|is empty|no video|no picture"):
        parse_input(str(unreadable(kind, tmp_path)))


def test_the_command_ends_at_such_a_file_before_it_loads_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "load_server", lambda *_, **__: pytest.fail("the models are loaded"))
    done = CliRunner().invoke(app, ["live", "--port", "0", "--input", str(unreadable("sound", tmp_path))])
    assert done.exit_code == 1
    assert "error: the input has no video" in done.output
    assert done.output.count("\n") == 1


def test_sound_that_no_decoder_knows_is_left_out(tmp_path):
    path = write(tmp_path / "odd.mkv", 10, sound=True)
    path.write_bytes(path.read_bytes().replace(b"A_MPEG/L2", b"A_XXXX/L2"))
    taken = read(path, 5)  # PyAV would crash
    assert not taken.sound


def test_a_webcam_that_fails_is_opened_again_with_one_line_each(monkeypatch, capfd, caplog):
    reader = LiveInput("webcam:99", Taken(), wait=0.02)  # there is none
    reader.start()
    for attempts in (2, 4):
        end = time.monotonic() + 10
        while reader.attempts < attempts and time.monotonic() < end:
            time.sleep(0.01)
        monkeypatch.setattr(source_module.cv2, "VideoCapture", broken_camera)
    reader.stop()
    assert reader.attempts >= 4
    assert len(caplog.records) in (reader.attempts, reader.attempts - 1)
    assert "camera 99 cannot be opened" in caplog.text
    assert "OpenCV" not in capfd.readouterr().err


def broken_camera(_number):
    raise source_module.cv2.error("the driver is gone")


def test_a_picture_that_was_at_work_while_the_source_came_back_does_not_set_its_clock():
    class Stamps:
        def __init__(self):
            self.all = []

        def show(self, _picture, stamp):
            self.all.append(stamp)

        def close(self):
            pass

    async def work():
        server, stamps, back = live_server(), Stamps(), threading.Event()
        async with serving(server):
            feed = server.new_feed(print)
            feed.add(stamps)
            finish = feed.engine.finish

            def late(looked):
                assert back.wait(10)
                return finish(looked)

            feed.engine.finish = late
            feed.show(as_frame(colored(BT601, False), index=0, time=5000.0))
            await until(lambda: feed._scheduler._finishing_since is not None)
            feed.restart()
            back.set()
            await until(lambda: stamps.all)
            for number in range(4):
                feed.show(as_frame(colored(BT601, False), index=number + 1, time=0.1 * number))
                await asyncio.sleep(0.1)
            await until(lambda: len(stamps.all) >= 4)
            assert np.diff(stamps.all)[1:].min() > 0.05
            await feed.close()

    run(work())


def test_sound_may_change_its_format(tmp_path):
    encoder = AudioEncoder(clock=time.monotonic)
    for layout, rate in (("stereo", 48_000), ("mono", 8_000), ("5.1", 48_000), ("stereo", 48_000)):
        packets = []
        channels = len(av.AudioLayout(layout).channels)
        for _ in range(10):
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, rate // 50 * channels), np.int16), format="s16", layout=layout
            )
            frame.sample_rate = rate
            packets += encoder.encode(frame)
        assert len(packets) >= 8


def test_an_odd_file_reaches_a_viewer(tmp_path):
    path = tmp_path / "odd.webm"
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream("libvpx-vp9", rate=25, options={"deadline": "realtime", "cpu-used": "8"})
        stream.width, stream.height, stream.pix_fmt = 161, 121, "yuv420p"
        for number in range(25):
            picture = colored(BT601, False, size=(161, 121))
            picture.pts, picture.time_base = number, Fraction(1, 25)
            sink.mux(stream.encode(picture))
        sink.mux(stream.encode(None))

    async def work():
        server = live_server()
        async with serving(server) as (url, session):
            reader = server.read(str(path))
            reader.start()
            watcher, sdp = await whep_offer()
            got = Received(watcher)
            await connect(watcher, session, f"{url}/whep", sdp)
            await until(lambda: len(got.video) > 5)
            assert (got.video[-1][1].width, got.video[-1][1].height) == (160, 120)
            reader.stop()
            await watcher.close()

    run(work())


# --- the page ---------------------------------------------------------------------------------------------------------

STAGE = """([wide, high, shape]) => {
  const part = () => document.createElement("div");
  const stage = new window.Stage({
    video: { videoWidth: wide, videoHeight: high, readyState: 4, requestVideoFrameCallback: () => {} },
    canvas: document.createElement("canvas"), box: part(), split: document.createElement("input"),
    divider: part(), before: part(), after: part() });
  stage.context.drawImage = () => {};
  stage.single = 1280;
  stage.shape = shape;
  stage.draw();
  return [stage.double, stage.canvas.width];
}"""


@pytest.mark.timeout(120)
@pytest.mark.skipif(not REQUIRED and (CHROMIUM is None or sync_playwright is None), reason="needs Chromium")
def test_the_page_tells_two_pictures_from_one_although_they_are_scaled_down():
    source = Path("streamfix/serve/page/stage.js").read_text()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.add_script_tag(content=source + "\nwindow.Stage = Stage;", type="module")
        page.wait_for_function("() => window.Stage !== undefined")
        assert page.evaluate(STAGE, [1792, 504, 1280 / 720]) == [True, 896]
        assert page.evaluate(STAGE, [2560, 720, 1280 / 720]) == [True, 1280]
        assert page.evaluate(STAGE, [640, 360, 1280 / 720]) == [False, 640]
        assert page.evaluate(STAGE, [576, 512, 720 / 1280]) == [True, 288]
        browser.close()
