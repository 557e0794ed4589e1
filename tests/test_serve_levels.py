"""Outgoing pictures are no larger than the receiver takes, and answers say the levels that hold (RFC 6184, H.264 Annex A)."""

import asyncio
import re

import av
import numpy as np
import pytest
from aiortc import RTCPeerConnection
from hypothesis import given
from hypothesis import strategies as st
from live_server import (
    Received,
    connect,
    live_server,
    run,
    serving,
    until,
    whep_offer,
    whip_offer,
)

from streamfix.serve.encode import VideoEncoder, useful_bitrate
from streamfix.serve.levels import (
    LEVELS,
    Receiver,
    fitted,
    h264_receiver,
    level_for,
    level_of,
    vp8_receiver,
)
from streamfix.serve.sdp import receiver_of, with_levels

SECTION = (
    "v=0\r\nm=audio 9 X 111\r\na=rtpmap:111 opus/48000/2\r\n"
    "m=video 9 UDP/TLS/RTP/SAVPF 102 97\r\na=rtpmap:102 H264/90000\r\n"
    "a=fmtp:102 level-asymmetry-allowed={asymmetric};packetization-mode=1;profile-level-id={level}\r\n"
    "a=rtpmap:97 VP8/90000\r\na=fmtp:97 max-fs=1200;max-fr=30\r\n"
)


def blocks(width: int, height: int) -> int:
    return -(-width // 16) * -(-height // 16)


def test_levels_are_read_and_the_lowest_that_has_room_is_taken():
    assert level_of("42e01f").name == "3.1"
    assert level_of("640034").name == "5.2"
    assert level_of(None).name == level_of("what?!").name == "3.1"
    assert level_of("42e005") == LEVELS[0]
    for size, name in (
        ((640, 480), "3.0"),
        ((1280, 720), "3.1"),
        ((1920, 1080), "4.0"),
        ((2560, 720), "4.0"),
        ((3840, 1080), "5.0"),
    ):
        assert level_for(*size, frame_rate=30, bits=useful_bitrate(*size)).name == name
    assert level_for(1280, 720, frame_rate=60, bits=1).name == "3.2"
    beyond = h264_receiver({"profile-level-id": "42e01f", "max-fs": "8192", "max-mbps": "245760"})
    assert (beyond.size, beyond.rate) == (8192, 245760)
    assert vp8_receiver({"max-fs": "1200", "max-fr": "30"}) == Receiver(size=1200, rate=36000)
    assert vp8_receiver({}) == Receiver()


@given(st.integers(16, 4000), st.integers(16, 4000), st.sampled_from(LEVELS), st.sampled_from([30, 60]))
def test_what_is_too_large_is_scaled_to_what_fits_and_no_further(width, height, level, rate):
    receiver = Receiver(size=level.size, rate=level.rate)
    wide, high = fitted(width, height, receiver, frame_rate=rate)
    most = min(level.size, level.rate // rate)
    longest = -(-max(width, height) // 16)
    fits = blocks(width, height) <= most and longest**2 <= 8 * most
    assert ((wide, high) == (width, height)) == fits or (wide, high) == (width, height) == (2, 2)
    assert blocks(wide, high) <= most
    assert (-(-max(wide, high) // 16)) ** 2 <= 8 * most
    if not fits:
        assert wide % 2 == high % 2 == 0
        assert wide / high == pytest.approx(width / height, rel=0.02 + 3 / min(wide, high)) or min(wide, high) == 2
        if 0.5 < width / height < 2 and most > 300:
            assert blocks(wide, high) > 0.75 * most  # no smaller than it need be


def test_offers_and_answers_name_the_levels_that_hold():
    offer = SECTION.format(asymmetric=1, level="42e028")
    answer = SECTION.format(asymmetric=1, level="42e01f")
    assert receiver_of(offer, answer) == h264_receiver({"profile-level-id": "42e028"})
    levels = re.compile("profile-level-id=(......)")
    assert levels.findall(with_levels(answer, offer, receives=False)) == ["42e028"]  # what is sent: up to what is taken
    assert levels.findall(with_levels(answer, offer, receives=True)) == ["42e02a"]  # what is taken: 1080p
    tied = SECTION.format(asymmetric=0, level="42e01e")
    assert levels.findall(with_levels(answer, tied, receives=True)) == ["42e01e"]
    assert with_levels(answer, offer, receives=True).replace("2a\r\n", "1f\r\n") == answer  # nothing else has changed
    vp8 = answer.replace("SAVPF 102 97", "SAVPF 97 102")
    assert receiver_of(offer, vp8) == Receiver(size=1200, rate=36000)


@pytest.mark.parametrize(
    ("size", "level", "width"),
    [((1280, 720), 31, 1280), ((1920, 1080), 31, 1280), ((1920, 1080), 40, 1920), ((2560, 720), 31, 1792)],
)
def test_the_stream_itself_names_the_level_of_its_pictures(size, level, width):
    receiver = h264_receiver({"profile-level-id": f"42e0{level:02x}"})
    encoder = VideoEncoder("H264", bitrate=2_000_000, clock=lambda: 0.0, receiver=receiver)
    image = np.random.default_rng(0).integers(0, 255, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    picture = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(*size, format="yuv420p")
    (packet,) = encoder.encode(picture, pts=0, key=True)
    data = bytes(packet)
    sps = data[data.index(b"\0\0\1\x67") + 4 :]
    assert sps[0] == 66  # Baseline
    assert sps[2] <= level
    (shown,) = av.CodecContext.create("h264", "r").decode(packet) or [None]
    assert abs(shown.width - width) <= 8
    assert blocks(shown.width, shown.height) <= receiver.size
    assert shown.width / shown.height == pytest.approx(size[0] / size[1], rel=0.02)


def test_a_viewer_gets_the_size_that_its_offer_takes():
    async def work():
        server = live_server()
        async with serving(server) as (url, http):
            sender, sdp = await whip_offer(size=(1280, 720))
            assert "profile-level-id=42e02a" in await answer_to(sender, http, f"{url}/whip", sdp)
            got = []
            for level in ("1f", "33"):
                watcher, sdp = await whep_offer()
                sdp = re.sub("(profile-level-id=42..)1f", rf"\g<1>{level}", sdp)
                got.append((watcher, Received(watcher)))
                assert f"profile-level-id=42e0{level}" in await answer_to(
                    watcher, http, f"{url}/whep?view=compare", sdp
                )
            await until(lambda: all(len(r.video) > 2 for _, r in got), 25)
            small, large = (r.video[-1][1] for _, r in got)
            assert (large.width, large.height) == (2560, 720)
            assert blocks(small.width, small.height) <= 3600
            assert small.width > 1700
            await asyncio.gather(sender.close(), *(pc.close() for pc, _ in got))

    async def answer_to(pc: RTCPeerConnection, http, url: str, sdp: str) -> str:
        await connect(pc, http, url, sdp)
        return pc.remoteDescription.sdp

    run(work(), seconds=60)
