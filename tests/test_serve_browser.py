"""The page in a real browser: Chromium with a fake camera that shows the sample, against `streamfix live` as a user starts it.

Skipped where there is no Chromium (Debian: apt-get install chromium), unless STREAMFIX_REQUIRE_BROWSER is set, as it is in CI.
STREAMFIX_SCREENSHOTS names a folder for pictures of the page.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
REQUIRED = bool(os.environ.get("STREAMFIX_REQUIRE_BROWSER"))
try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sync_playwright = None
pytestmark = [
    pytest.mark.skipif(
        not REQUIRED and (CHROMIUM is None or sync_playwright is None),
        reason="needs Chromium (apt-get install chromium) and the Python package playwright",
    ),
    pytest.mark.timeout(240),
]

SAMPLE = Path("samples/webcam.mp4")
FACE = (265, 100, 110, 150)
"""Left, top, width and height of the sample's face, and of what is far from it."""
ELSEWHERE = (0, 0, 130, 340)

CHANGE = """(regions) => {
  const video = document.getElementById('video'), half = video.videoWidth / 2;
  const context = new OffscreenCanvas(video.videoWidth, video.videoHeight).getContext('2d');
  context.drawImage(video, 0, 0);  // both halves out of one decoded frame
  const grey = (x, y, w, h) => {
    const data = context.getImageData(x, y, w, h).data, out = new Float32Array(data.length / 4);
    for (let i = 0; i < out.length; i += 1) out[i] = (data[4 * i] * 77 + data[4 * i + 1] * 151 + data[4 * i + 2] * 28) / 256;
    return out;
  };
  return regions.map(([x, y, w, h]) => {
    const before = grey(x, y, w, h), after = grey(x + half, y, w, h);
    return before.reduce((sum, value, i) => sum + Math.abs(after[i] - value), 0) / before.length;
  });
}"""
"""Mean change between input and result, in regions. Worked out in the page: half a million numbers take the driver a second."""

THUMBNAIL = """() => {
  const context = new OffscreenCanvas(32, 18).getContext('2d');
  context.drawImage(video, 0, 0, 32, 18);
  return [...context.getImageData(0, 0, 32, 18).data];
}"""


@pytest.fixture(scope="module")
def camera(tmp_path_factory) -> Path:
    """The sample as the endless MJPEG file that Chromium takes for a camera."""
    path = tmp_path_factory.mktemp("camera") / "camera.mjpeg"
    with av.open(str(SAMPLE)) as source, av.open(str(path), "w", format="mjpeg") as sink:
        stream = sink.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuvj420p"
        stream.codec_context.qmin, stream.codec_context.qmax = 1, 3
        for number, picture in enumerate(source.decode(video=0)):
            picture = picture.reformat(format="yuvj420p")
            picture.pts, picture.time_base = number, Fraction(1, 25)
            sink.mux(stream.encode(picture))
        sink.mux(stream.encode(None))
    return path


class Served:
    """`streamfix live` in a process of its own, on its way."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "streamfix", "live", "--port", "0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.asked = False
        self.log: str | None = None

    @cached_property
    def url(self) -> str:
        """Waits until it serves."""
        return self.process.stdout.readline().split()[-1]

    def ask(self) -> None:
        """Press Ctrl-C, once."""
        if not self.asked and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.asked = True

    def stop(self) -> str:
        """End it as Ctrl-C does; gives its log."""
        if self.log is None:
            self.ask()
            _, self.log = self.process.communicate(timeout=30)
            assert self.process.returncode == 0, self.log
        return self.log


TOKEN = "correct+horse&battery/staple"  # the printed URL must carry it whole


@pytest.fixture(scope="module")
def servers():
    """All that are needed, begun at once: each takes seconds to load."""
    served = {
        "lite": Served("--model", "lite"),
        "guarded": Served("--model", "passthrough", "--token", TOKEN, "--cameras", "0"),
        "one": Served("--model", "passthrough", "--cameras", "1"),
        "input": Served("--model", "passthrough", "--input", str(SAMPLE)),
    }
    yield served
    for server in served.values():
        server.ask()
    for server in served.values():
        assert "Traceback" not in server.stop()


@pytest.fixture(scope="module")
def browser(camera, servers):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--disable-background-networking",
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
                f"--use-file-for-fake-video-capture={camera}",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1280, "height": 860}, accept_downloads=True)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert not errors


def difference(page) -> tuple[float, float]:
    """Mean change of the face, and of what is far from it."""
    face, elsewhere = page.evaluate(CHANGE, [FACE, ELSEWHERE])
    return face, elsewhere


NEARER = """async () => {
  await new Promise(requestAnimationFrame);
  const shown = canvas.getContext('2d').getImageData(300, 150, 24, 24).data;
  const part = (x) => {
    const context = new OffscreenCanvas(24, 24).getContext('2d');
    context.drawImage(video, x, 150, 24, 24, 0, 0, 24, 24);
    return context.getImageData(0, 0, 24, 24).data;
  };
  const distance = (data) => data.reduce((sum, value, i) => sum + Math.abs(value - shown[i]), 0);
  return distance(part(300)) < distance(part(940)) ? 'input' : 'result';
}"""


def nearer(page) -> str:
    """Which half of the video the canvas shows at the face."""
    return page.evaluate(NEARER)


def wait_for(condition, seconds: float = 60.0):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.25)
    return value


def shot(page, name: str) -> None:
    folder = os.environ.get("STREAMFIX_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=name.startswith("phone"))


def test_a_person_opens_the_page_and_sees_the_restored_face(page, servers, tmp_path):
    server = servers["lite"]
    page.goto(server.url)
    page.get_by_role("button", name="Start camera").wait_for()
    shot(page, "start")
    page.get_by_role("button", name="Start camera").click()
    page.locator("#cover").wait_for(state="hidden", timeout=60_000)
    wait_for(lambda: page.evaluate("video.videoWidth") == 1280)  # input and result side by side in one video

    def restored():
        face, elsewhere = difference(page)
        return face > max(2 * elsewhere, 1.5) and (face, elsewhere)

    face, elsewhere = wait_for(restored)
    assert elsewhere < 3.0, "what is no face is the input, up to the encoder"
    wait_for(lambda: re.fullmatch(r"≈ \d+ ms", page.inner_text("#f-delay")))
    wait_for(lambda: re.fullmatch(r"[\d.]*[1-9][\d.]*", page.inner_text("#f-fps")))  # a dash until it is known
    wait_for(lambda: page.inner_text("#f-faces") == "1")
    assert "searched every" in page.inner_text("#f-plan")  # what the governor chose
    if os.environ.get("STREAMFIX_SCREENSHOTS"):
        page.wait_for_timeout(2500)
    shot(page, "desktop")

    # the slider, by keyboard: all input, then all result
    split = page.get_by_role("slider", name=re.compile("Before and after"))
    split.focus()
    page.keyboard.press("End")
    assert split.get_attribute("aria-valuetext") == "100 % input, 0 % restored"
    wait_for(lambda: nearer(page) == "input", 20)
    page.keyboard.press("Home")
    wait_for(lambda: nearer(page) == "result", 20)

    # strength 0 is the input
    page.locator("#strength").fill("0")
    wait_for(lambda: difference(page)[0] < max(0.5 * face, 1.5 * elsewhere + 0.5))
    page.locator("#strength").fill("100")

    # a snapshot and a recording of the result
    with page.expect_download() as download:
        page.get_by_role("button", name="Snapshot").click()
    download.value.save_as(tmp_path / "snapshot.png")
    assert Image.open(tmp_path / "snapshot.png").size == (640, 360)
    page.get_by_role("button", name="Record").click()
    page.wait_for_timeout(1500)
    with page.expect_download() as download:
        page.locator("#record").click()
    recording = tmp_path / download.value.suggested_filename
    download.value.save_as(recording)
    with av.open(str(recording)) as container:
        assert next(container.decode(video=0)).width == 640

    # comparison off: one picture; a phone in the dark; good-bye
    page.get_by_role("button", name="Compare").click()
    wait_for(lambda: page.evaluate("video.videoWidth") == 640)
    page.get_by_role("button", name="Mirror").click()
    assert page.locator("#mirror").get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="Compare").click()
    wait_for(lambda: page.evaluate("video.videoWidth") == 1280)
    page.locator("#split").fill("45")
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(400)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    shot(page, "phone")
    server.ask()  # what it says stands until the page tries again
    page.get_by_role("heading", name="The server says good-bye").wait_for(timeout=20_000)


def test_states_that_go_wrong_are_told_in_words(page, servers):
    server = servers["guarded"]
    page.goto(server.url.split("#")[0])
    page.get_by_role("heading", name="This server needs a token").wait_for()
    shot(page, "token")
    page.get_by_label("Access token").fill("not the right one at all")
    page.get_by_role("button", name="Continue").click()
    page.get_by_role("heading", name="That token is not right").wait_for()
    page.goto("about:blank")
    page.goto(server.url)
    page.get_by_role("button", name="Start camera").wait_for()
    assert "token" not in page.url
    for error, words in (
        ("NotAllowedError", "The camera is blocked"),
        ("NotFoundError", "No camera found"),
        ("NotReadableError", "The camera is busy"),
    ):
        page.evaluate(
            f"void (navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', '{error}')))"
        )
        page.locator("#start").click()
        page.get_by_role("heading", name=words).wait_for()
        assert words in page.locator("[role=status]").text_content()  # a screen reader hears it too
    page.evaluate("void (delete navigator.mediaDevices.getUserMedia)")
    page.locator("#start").click()
    page.get_by_role("heading", name="All places are taken").wait_for(timeout=20_000)
    server.stop()
    page.locator("#start").click()
    page.get_by_role("heading", name="The server does not answer").wait_for(timeout=20_000)


def test_a_viewer_watches_the_servers_own_input(page, servers):
    page.goto(servers["input"].url)
    page.get_by_role("button", name="Watch").click()
    page.locator("#cover").wait_for(state="hidden", timeout=60_000)
    wait_for(lambda: page.evaluate("video.videoWidth") == 1280)
    assert page.inner_text("#pill-text") == "Watching"
    assert page.locator("#strength").is_disabled()  # the stream is everybody's
    before = np.array(page.evaluate(THUMBNAIL))
    wait_for(lambda: np.abs(np.array(page.evaluate(THUMBNAIL)) - before).mean() > 0.3)  # it moves


def test_a_source_that_was_chosen_before_the_server_has_answered_stays(page, servers):
    held = []
    page.route("**/api/about", lambda route: held.append(route))
    page.goto(servers["input"].url)
    page.locator("#source").select_option("camera")
    wait_for(lambda: page.wait_for_timeout(50) or held)
    held[0].continue_()
    page.locator("#model option").first.wait_for(state="attached")
    page.wait_for_timeout(200)
    assert page.locator("#source").input_value() == "camera"
    assert page.get_by_role("button", name="Start camera").is_visible()


PROMPT = """() => {
  const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  window.given = []; window.asked = []; window.answer = null;
  navigator.mediaDevices.getUserMedia = async (wanted) => {
    window.asked.push(wanted);
    await new Promise((resolve) => { const before = window.answer; window.answer = () => { before?.(); resolve(); }; });
    const stream = await ask(wanted);
    window.given.push(...stream.getTracks());
    return stream;
  };
}"""
"""A person who thinks before allowing the camera: `answer()` allows all that was asked."""


def sessions(url: str) -> int:
    with urllib.request.urlopen(f"{url}healthz") as answer:
        return json.load(answer)["sessions"]


def on(page) -> int:
    """How many camera tracks are on."""
    return page.evaluate("given.filter((track) => track.readyState === 'live').length")


def test_a_camera_that_is_allowed_too_late_is_switched_off(page, servers):
    server = servers["input"]
    wait_for(lambda: sessions(server.url) == 0)
    page.goto(server.url)
    page.locator("#model option").first.wait_for(state="attached")
    page.evaluate(PROMPT)
    page.locator("#source").select_option("camera")
    page.locator("#start").click()
    page.locator("#size").select_option("1280x720")  # while the browser asks: it asks again
    wait_for(lambda: page.evaluate("asked.length") == 2)
    page.evaluate("answer()")
    page.locator("#cover").wait_for(state="hidden", timeout=60_000)
    wait_for(lambda: page.evaluate("given.length") == 2)
    wait_for(lambda: sessions(server.url) == 1)
    assert on(page) == 1
    page.locator("#stop").click()
    assert on(page) == 0
    wait_for(lambda: sessions(server.url) == 0)
    page.locator("#start").click()
    wait_for(lambda: page.evaluate("asked.length") == 3)
    page.locator("#source").select_option("stream")  # another source while the browser asks: that one it is
    page.locator("#cover").wait_for(state="hidden", timeout=60_000)
    page.evaluate("answer()")
    wait_for(lambda: page.evaluate("given.length") == 3)
    page.wait_for_timeout(500)
    assert on(page) == 0
    assert page.inner_text("#pill-text") == "Watching"
    assert sessions(server.url) == 1


def test_settings_that_change_quickly_leave_one_session_in_the_only_place(page, servers):
    server = servers["one"]
    wait_for(lambda: sessions(server.url) == 0)
    page.goto(server.url)
    page.evaluate(PROMPT)
    page.get_by_role("button", name="Start camera").click()
    wait_for(lambda: page.evaluate("answer && (answer(), true)"))
    page.locator("#cover").wait_for(state="hidden", timeout=60_000)
    page.evaluate(
        """() => {
          for (const value of ["1280x720", "640x480"]) { size.value = value; size.dispatchEvent(new Event("change")); }
          answer();
        }"""
    )
    wait_for(lambda: page.evaluate("given.length") == 3)
    page.locator("#cover").wait_for(state="hidden", timeout=60_000)
    wait_for(lambda: sessions(server.url) == 1)
    assert on(page) == 1
    page.locator("#stop").click()
    assert on(page) == 0


def test_a_change_while_the_server_answers_waits_for_the_place(page, servers):
    held = []

    def answer_late(route):
        if held:
            route.continue_()
        else:
            held.append((route, route.fetch()))

    server = servers["one"]
    wait_for(lambda: sessions(server.url) == 0)
    page.goto(server.url)
    page.route("**/session", answer_late)
    page.get_by_role("button", name="Start camera").click()
    wait_for(lambda: page.wait_for_timeout(50) or held)
    page.locator("#size").select_option("1280x720")
    page.wait_for_timeout(300)
    route, answer = held[0]
    route.fulfill(response=answer)
    page.locator("#cover").wait_for(state="hidden", timeout=20_000)
    wait_for(lambda: sessions(server.url) == 1)
    page.unroute_all(behavior="wait")


def test_what_the_server_says_later_is_heard(page, servers):
    """The first answer is lost on the way, and a sender comes later."""
    state = {"lost": True, "live": False}

    def about(route):
        if state["lost"]:
            route.abort()
            return
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "live": state["live"]})

    wait_for(lambda: sessions(servers["one"].url) == 0)
    page.route("**/api/about", about)
    page.goto(servers["one"].url)
    page.get_by_role("heading", name="The server does not answer").wait_for()
    state["lost"] = False
    page.get_by_role("button", name="Try again").click()
    page.locator("#cover").wait_for(state="hidden", timeout=60_000)
    assert page.locator("#model option").count() > 0
    page.locator("#stop").click()
    stream = page.locator("#source option[value=stream]")
    assert stream.is_disabled()
    state["live"] = True
    wait_for(lambda: page.wait_for_timeout(50) or stream.is_enabled(), 10)
    page.unroute_all(behavior="wait")


def test_everything_has_a_name_and_can_be_reached_by_keyboard(page, servers):
    page.goto(servers["input"].url)
    page.locator("#source").select_option("camera")
    page.get_by_role("button", name="Start camera").click()
    page.locator("#cover").wait_for(state="hidden", timeout=60_000)
    page.locator("#split").wait_for(timeout=30_000)
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select')]
             .filter(e => !e.closest('[hidden]') && !(e.ariaLabel || e.labels?.length || e.textContent.trim())).map(e => e.id)"""
    )
    assert nameless == []
    page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"split", "stop", "compare", "mirror", "snapshot", "record", "full", "strength", "model", "faces"} <= reached
    assert {"source", "camera", "size", "sound", "listen"} <= reached
