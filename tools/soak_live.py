"""Soak: viewers come and go, offers are broken, and nothing grows: memory, tasks, sockets, threads.

    python tools/soak_live.py CLIP [--minutes 20] [--viewers 3] [--model passthrough]

Serves CLIP in a loop through `streamfix live` in a process of its own; each viewer watches for a few seconds and leaves, properly or
by vanishing; broken requests go in between. Prints a line every half minute and fails when the server's memory has grown by
more than 50 MB over the second half, or descriptors, threads or tasks have grown at all once everybody has left.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import signal
import sys
import time
from pathlib import Path

import aiohttp
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

LOCAL = RTCConfiguration(iceServers=[])
SDP = {"Content-Type": "application/sdp"}
MOST_GROWTH = 50.0


async def tasks_of(url: str) -> int:
    """Tasks in the server's event loop, as its metrics say; by a connection of its own, for each is a task there."""
    async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as answer:
        return int(float(re.search(r"^streamfix_tasks (\S+)", await answer.text(), re.M)[1]))


def state(pid: int) -> tuple[float, int, int]:
    """(resident MB, open descriptors, threads) of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    resident = int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024
    return resident, len(list(Path(f"/proc/{pid}/fd").iterdir())), int(re.search(r"Threads:\s+(\d+)", text)[1])


async def drain(track, counts: dict[str, int]) -> None:
    try:
        while True:
            await track.recv()
            counts["frames"] += 1
    except MediaStreamError:
        pass


async def viewer(url: str, http, rng: random.Random, counts: dict[str, int], until: float) -> None:
    """One person who watches, leaves, and comes back."""
    while time.monotonic() < until:
        pc, tasks = RTCPeerConnection(LOCAL), []
        pc.on("track", lambda track, tasks=tasks: tasks.append(asyncio.ensure_future(drain(track, counts))))
        for kind in ("video", "audio"):
            pc.addTransceiver(kind, direction="recvonly")
        await pc.setLocalDescription(await pc.createOffer())
        view = rng.choice(["", "?view=compare"])
        async with http.post(f"{url}/whep{view}", data=pc.localDescription.sdp, headers=SDP) as answer:
            if answer.status != 201:
                counts["refused"] += 1
                await pc.close()
                await asyncio.sleep(1)
                continue
            where = answer.headers["Location"]
            await pc.setRemoteDescription(RTCSessionDescription(sdp=await answer.text(), type="answer"))
        counts["joined"] += 1
        await asyncio.sleep(rng.uniform(1.5, 5))
        if rng.random() < 0.6:
            async with http.delete(url + where) as answer:
                counts["left"] += answer.status == 200
        await pc.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def vandal(url: str, http, rng: random.Random, counts: dict[str, int], number: int, until: float) -> None:
    """So many broken requests, spread over the time."""
    pc = RTCPeerConnection(LOCAL)
    pc.addTransceiver("video", direction="recvonly")
    await pc.setLocalDescription(await pc.createOffer())
    good = pc.localDescription.sdp.split("\r\n")
    await pc.close()
    began = time.monotonic()
    for count in range(number):
        await asyncio.sleep(max(began + (until - began) * count / number - time.monotonic(), 0))
        lines = list(good)
        for _ in range(rng.randint(1, 8)):
            at = rng.randrange(len(lines))
            lines[at] = rng.choice(
                [
                    "",
                    lines[at][: len(lines[at]) // 2],
                    "a=" + "x" * rng.randrange(3000),
                    lines[rng.randrange(len(lines))],
                ]
            )
        method, path = (
            rng.choice(["POST"] * 8 + ["PATCH", "DELETE", "GET"]),
            rng.choice(["whip", "whep", "session", "whep/none"]),
        )
        async with http.request(method, f"{url}/{path}", data="\r\n".join(lines), headers=SDP) as answer:
            counts["broken"] += 1
            if answer.status >= 500 and answer.status != 503:
                counts["wrong status"] += 1
            if answer.status == 201:
                await http.delete(url + answer.headers["Location"])


async def soak(args: argparse.Namespace) -> int:
    command = ["-m", "streamfix", "live", "--port", "0", "--input", str(args.clip), "--model", args.model]
    server = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    url = (await server.stdout.readline()).decode().split()[-1].rstrip("/")
    rng = random.Random(args.seed)
    counts = dict.fromkeys(("frames", "joined", "left", "refused", "broken", "wrong status"), 0)
    samples: list[tuple[float, float]] = []
    async with aiohttp.ClientSession() as http:
        warm = dict(counts)  # the first viewer starts what stays: pools of threads, libraries
        await viewer(url, http, rng, warm, time.monotonic() + 5)
        await asyncio.sleep(40)
        began = time.monotonic()
        until = began + 60 * args.minutes
        quiet, tasks = state(server.pid), await tasks_of(url)
        print(f"at rest: {quiet[0]:.0f} MB, {quiet[1]} descriptors, {quiet[2]} threads, {tasks} tasks", flush=True)
        work = [asyncio.ensure_future(viewer(url, http, rng, counts, until)) for _ in range(args.viewers)]
        work.append(asyncio.ensure_future(vandal(url, http, rng, counts, args.broken, until)))
        shown = 0.0
        while time.monotonic() < until:
            await asyncio.sleep(2)
            now = time.monotonic() - began
            memory, files, threads = state(server.pid)
            samples.append((now, memory))
            if now - shown > 30:
                shown = now
                print(
                    f"{now / 60:5.1f} min  {memory:6.0f} MB  {files} descriptors  {threads} threads  "
                    f"{await tasks_of(url)} tasks  {counts}",
                    flush=True,
                )
        await asyncio.gather(*work)
        await asyncio.sleep(45)  # who vanished is missed by ICE after half a minute
        rest, tasks_left = state(server.pid), await tasks_of(url)
        async with http.get(f"{url}/healthz") as answer:
            sessions = (await answer.json())["sessions"]
    server.send_signal(signal.SIGTERM)
    ended = await asyncio.wait_for(server.wait(), 30)
    half = [m for t, m in samples if t > 30 * args.minutes]
    edge = max(len(half) // 4, 1)
    growth = sum(half[-edge:]) / edge - sum(half[:edge]) / edge
    print(
        f"after everybody left: {rest[0]:.0f} MB, {rest[1]} descriptors, {rest[2]} threads, {tasks_left} tasks, "
        f"{sessions} sessions; exit {ended}"
    )
    print(f"{counts}; memory over the second half: {growth:+.1f} MB")
    wrong = [
        word
        for word, bad in (
            ("memory", growth > MOST_GROWTH),
            ("descriptors", rest[1] > quiet[1] + 2),
            ("threads", rest[2] > quiet[2] + 4),  # the pool of the event loop grows to its size and stays
            ("tasks", tasks_left > tasks),
            ("sessions", sessions > 0),
            ("status", counts["wrong status"] > 0),
            ("exit", ended != 0),
            ("nobody watched", counts["frames"] == 0),
        )
        if bad
    ]
    print(f"FAILED: {', '.join(wrong)}" if wrong else "fine")
    return 1 if wrong else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", type=Path)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--viewers", type=int, default=3)
    parser.add_argument("--broken", type=int, default=1000)
    parser.add_argument("--model", default="passthrough")
    parser.add_argument("--seed", type=int, default=0)
    sys.exit(asyncio.run(soak(parser.parse_args())))


if __name__ == "__main__":
    main()
