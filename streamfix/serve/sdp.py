"""What is read from offers and fragments, and written into answers, beyond what aiortc does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from aiortc import RTCIceCandidate
from aiortc.sdp import SessionDescription, candidate_from_sdp

from streamfix.serve.encode import Codec
from streamfix.serve.levels import TAKEN, Receiver, h264_receiver, level_of, vp8_receiver

_CODECS: tuple[Codec, ...] = ("H264", "VP8")


class OfferError(Exception):
    """An offer or fragment that cannot be served. status: of the HTTP answer; the message is for people."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Offer:
    """What a checked offer holds. sections: (kind, direction) of each m= line."""

    sdp: str
    sections: tuple[tuple[str, str], ...]

    def direction(self, kind: str) -> str | None:
        """Of the first section of that kind, None where there is none."""
        return next((direction for found, direction in self.sections if found == kind), None)


def read_offer(text: str, *, sends: bool, receives: bool) -> Offer:
    """Check an offer: one video, at most one sound and one data channel, in the directions the endpoint is for.

    sends, receives: whether the *client* sends and receives. Raises OfferError: 400 for what is no SDP, 406 for another number of
    media or another direction, 422 for a video codec that is not spoken here.
    """
    try:
        parsed = SessionDescription.parse(text)
    except Exception as error:  # the parser raises anything
        raise OfferError(400, "the body is not an SDP offer") from error
    if not text.startswith("v=0") or not parsed.media:
        raise OfferError(400, "the body is not an SDP offer")
    for media in parsed.media:
        if media.kind not in ("audio", "video", "application"):
            raise OfferError(406, "only video, audio and a data channel are served")
        if (
            media.ice is None
            or not media.ice.usernameFragment
            or not media.ice.password
            or not parsed_fingerprint(media)
        ):
            raise OfferError(400, "the offer lacks ICE credentials or a DTLS fingerprint")
    sections = tuple((media.kind, media.direction or "sendrecv") for media in parsed.media)
    offer = Offer(sdp=text, sections=sections)
    kinds = [kind for kind, _ in sections]
    if kinds.count("video") != 1 or kinds.count("audio") > 1 or kinds.count("application") > 1:
        raise OfferError(406, "exactly one video and at most one audio are served")
    allowed = {
        (True, False): {"sendonly", "sendrecv"},
        (False, True): {"recvonly", "sendrecv"},
        (True, True): {"sendrecv"},
    }
    if offer.direction("video") not in allowed[sends, receives]:
        wanted = " and ".join(word for word, yes in (("send", sends), ("receive", receives)) if yes)
        raise OfferError(406, f"the offered video must {wanted}")
    video = next(media for media in parsed.media if media.kind == "video")
    if not any(codec.name.upper() in _CODECS for codec in video.rtp.codecs):
        raise OfferError(422, "no video codec in common; offer H.264 or VP8")
    return offer


def parsed_fingerprint(media: object) -> bool:
    """Whether a media section has a DTLS fingerprint."""
    dtls = getattr(media, "dtls", None)
    return bool(dtls is not None and dtls.fingerprints)


def video_codec(answer: str) -> Codec | None:
    """The codec that the answer puts first for video."""
    section = _video(answer)
    if not section:
        return None
    name = re.search(rf"(?m)^a=rtpmap:{re.escape(_first(section))} ([A-Za-z0-9]+)/", section)
    return next((c for c in _CODECS if name and name[1].upper() == c), None)


def receiver_of(offer: str, answer: str) -> Receiver:
    """What the client takes of the codec that the answer puts first for video, by its offer."""
    section = _video(answer)
    parameters = _parameters(_video(offer), _first(section)) if section else {}
    return vp8_receiver(parameters) if video_codec(answer) == "VP8" else h264_receiver(parameters)


def with_levels(answer: str, offer: str, *, receives: bool) -> str:
    """The answer with the H.264 levels that hold, where aiortc writes 3.1 always.

    receives: whether this server takes video. Then a level is what it takes (RFC 6184, 8.2.2), which is bounded by the offered
    one unless the client allows them to differ. Else it is the offered one: more is not sent.
    """
    offered = _video(offer)

    def level(match: re.Match[str]) -> str:
        parameters = _parameters(offered, match[1])
        idc = level_of(parameters.get("profile-level-id")).idc
        if receives:
            idc = TAKEN if parameters.get("level-asymmetry-allowed") == "1" else min(idc, TAKEN)
        return f"{match[0][:-2]}{idc:02x}"

    section = _video(answer)
    changed = re.sub(r"(?mi)^a=fmtp:(\d+) [^\r\n]*?profile-level-id=[0-9a-f]{6}", level, section)
    return answer.replace(section, changed) if section else answer


def _video(sdp: str) -> str:
    return next((s for s in re.split(r"(?m)^(?=m=)", sdp) if s.startswith("m=video")), "")


def _first(section: str) -> str:
    return section.splitlines()[0].split()[3]


def _parameters(section: str, payload_type: str) -> dict[str, str]:
    """Of a=fmtp, names in lower case."""
    line = re.search(rf"(?m)^a=fmtp:{re.escape(payload_type)} ([^\r\n]*)", section)
    pairs = (part.strip().partition("=") for part in line[1].split(";")) if line else ()
    return {name.lower(): value.strip() for name, _, value in pairs}


def with_bandwidth(answer: str, *, start: int, most: int) -> str:
    """The answer with a ceiling for the video the client sends, and where Chromium is to begin.

    start, most: bits a second. Chromium begins at 300 kb/s and takes seconds to dare more; other clients pass the
    x-google parameter over. b=AS (RFC 4566) and b=TIAS (RFC 3890) are the standard's ceiling.
    """
    out: list[str] = []
    inside = False
    for line in answer.split("\r\n"):
        if line.startswith("m="):
            inside = line.startswith("m=video")
        out.append(line)
        if inside and line.startswith("c="):
            out += [f"b=AS:{most // 1000}", f"b=TIAS:{most}"]
        if inside and (match := re.match(r"a=rtpmap:(\d+) (VP8|H264)/", line)):
            out.append(f"a=fmtp:{match[1]} x-google-start-bitrate={start // 1000}")
    return "\r\n".join(_joined_fmtp(out))


def _joined_fmtp(lines: list[str]) -> Iterator[str]:
    """A payload type has one a=fmtp line: join ours to the codec's own, which follows."""
    ours: dict[str, str] = {}
    last = {m[1]: n for n, line in enumerate(lines) if (m := re.match(r"a=fmtp:(\d+) ", line))}
    for number, line in enumerate(lines):
        match = re.match(r"a=fmtp:(\d+) (.*)", line)
        if match is None:
            yield line
        elif last[match[1]] != number:
            ours[match[1]] = match[2]
        elif match[1] in ours:
            yield f"a=fmtp:{match[1]} {match[2]};{ours[match[1]]}"
        else:
            yield line


@dataclass(frozen=True, slots=True)
class Fragment:
    """A trickle ICE fragment (RFC 8840). credentials: (ufrag, pwd). candidates: with their m= section."""

    credentials: tuple[str, str]
    candidates: tuple[RTCIceCandidate, ...]
    end: bool


def read_fragment(text: str) -> Fragment:
    """Parse a fragment. Raises OfferError (400)."""
    ufrag = pwd = ""
    section, mid = -1, None
    candidates = []
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if line.startswith("m="):
            section, mid = section + 1, None
        elif name == "a=ice-ufrag":
            ufrag = value
        elif name == "a=ice-pwd":
            pwd = value
        elif name == "a=mid":
            mid = value
        elif name == "a=candidate":
            try:
                candidate = candidate_from_sdp(value)
                candidate.sdpMid, candidate.sdpMLineIndex = mid, max(section, 0)
            except Exception as error:  # the parser raises anything
                raise OfferError(400, "a candidate of the fragment cannot be read") from error
            candidates.append(candidate)
        elif line and not re.match(r"[a-z]=", line):
            raise OfferError(400, "the body is not an SDP fragment")
    if not ufrag or not pwd:
        raise OfferError(400, "the fragment lacks a=ice-ufrag and a=ice-pwd")
    return Fragment((ufrag, pwd), tuple(candidates), "a=end-of-candidates" in text)
