"""Glass to glass: a counter is drawn into the camera's picture and read back in the page, from the preview and from the result.

    python tools/live_latency.py CLIP [--seconds 30] [--size 640x480] [-- OPTIONS OF streamfix live]

Starts `streamfix live` and a headless Chromium whose fake camera plays CLIP with a counter as a bar code below it, and prints p50 and
p95 of the time between a frame's appearance in a plain preview of the camera and its appearance in the restored video, and
the frames a second that were shown. Needs Chromium and the Python package playwright.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from playwright.sync_api import sync_playwright

BITS, CELL = 12, 24
"""The counter: so many cells of that many pixels in the bottom row, lightest bit first; a white and a black cell lead."""

READ = """([bits, cell, seconds, compare]) => new Promise((done) => {
  const local = document.createElement('video');
  local.muted = true;
  const remote = document.getElementById('video');
  const seen = new Map(), delays = [], shown = [];
  const reader = (video, offset, got) => {
    const canvas = new OffscreenCanvas((bits + 2) * cell, cell), context = canvas.getContext('2d', { willReadFrequently: true });
    const step = (now) => {
      const left = offset ? video.videoWidth / 2 : 0;
      context.drawImage(video, left, video.videoHeight - cell, (bits + 2) * cell, cell, 0, 0, (bits + 2) * cell, cell);
      const row = context.getImageData(0, cell / 2, (bits + 2) * cell, 1).data;
      const at = (n) => row[4 * Math.round((n + 0.5) * cell)];
      if (at(0) - at(1) > 80) {
        const middle = (at(0) + at(1)) / 2;
        let number = 0;
        for (let n = 0; n < bits; n += 1) if (at(n + 2) > middle) number += 2 ** n;
        got(number, performance.now());
      }
      video.requestVideoFrameCallback(step);
    };
    video.requestVideoFrameCallback(step);
  };
  navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 }, height: { ideal: 480 } } }).then((stream) => {
    local.srcObject = stream;
    local.play();
    reader(local, false, (number, now) => { if (!seen.has(number) || now - seen.get(number) > 5000) seen.set(number, now); });
    let last = -1;
    reader(remote, compare, (number, now) => {
      if (number === last) return;
      last = number;
      shown.push(now);
      if (seen.has(number) && now - seen.get(number) < 5000) delays.push(now - seen.get(number));
    });
    setTimeout(() => done([delays, shown.length / seconds, seen.size / seconds]), 1000 * seconds);
  });
})"""


def camera(clip: Path, out: Path, width: int, height: int, rate: int = 30) -> None:
    """An MJPEG file of the clip, scaled to fit, with the counter in its lowest rows; as long as the counter counts."""
    with av.open(str(clip)) as source:
        pictures = [f.to_ndarray(format="rgb24", width=width, height=height) for f in source.decode(video=0)]
    pictures += pictures[-2:0:-1]  # forth and back: no jump
    with av.open(str(out), "w", format="mjpeg") as sink:
        stream = sink.add_stream("mjpeg", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p"
        stream.codec_context.qmin, stream.codec_context.qmax = 2, 5
        for number in range(900):
            image = pictures[number % len(pictures)].copy()
            bits = [1, 0, *((number >> n) & 1 for n in range(BITS))]
            for place, bit in enumerate(bits):
                image[-CELL:, place * CELL : (place + 1) * CELL] = 235 * bit + 10
            picture = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuvj420p")
            picture.pts, picture.time_base = number, Fraction(1, rate)
            sink.mux(stream.encode(picture))
        sink.mux(stream.encode(None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", type=Path)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--warm-up", type=float, default=8)
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--compare", action="store_true", help="with input and result side by side, as the page begins")
    own = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    args, options = parser.parse_args(own), sys.argv[len(own) + 2 :]
    width, height = (int(n) for n in args.size.split("x"))
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no Chromium here; apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        film = Path(folder) / "camera.mjpeg"
        camera(args.clip, film, width, height)
        command = [sys.executable, "-m", "streamfix", "live", "--port", "0", *options]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            url = server.stdout.readline().split()[-1]
            browser = playwright.chromium.launch(
                executable_path=chromium,
                args=[
                    "--no-sandbox",
                    "--disable-background-networking",
                    "--use-fake-device-for-media-stream",
                    "--use-fake-ui-for-media-stream",
                    f"--use-file-for-fake-video-capture={film}",
                ],
            )
            page = browser.new_page(viewport={"width": 900, "height": 700})
            page.goto(url)
            if not args.compare:
                page.evaluate("document.getElementById('compare').setAttribute('aria-pressed', 'false')")
            page.locator("#start").click()
            page.locator("#cover").wait_for(state="hidden", timeout=60_000)
            page.wait_for_timeout(1000 * args.warm_up)
            delays, shown, taken = page.evaluate(READ, [BITS, CELL, args.seconds, args.compare])
            plan, stages = page.inner_text("#f-plan"), page.locator("#f-plan").get_attribute("title")
            drops = page.locator("#f-drops").get_attribute("title")
            estimate, restored = page.inner_text("#f-delay"), page.inner_text("#f-restorations")
            browser.close()
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(20)
    if not delays:
        sys.exit("no counter was read: the picture never came")
    p50, p95 = np.percentile(delays, [50, 95])
    print(
        f"glass to glass: p50 {p50:.0f} ms, p95 {p95:.0f} ms over {len(delays)} frames; the page estimated {estimate}"
    )
    print(f"frames a second: {shown:.1f} shown of {taken:.1f} of the camera; {restored} restorations a second")
    print(f"{plan}\nstages: {stages}\ndropped: {drops or 'none'}")


if __name__ == "__main__":
    main()
