"""Recordings put together byte by byte: time stamps start again in the middle, and everything stays in step."""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
from media_files import make_video, packets, pattern, pictures, times
from test_media_time import copy, remux

from streamfix.media import joins, open_source

RATE = 25


def recording(path: Path, number: int, **options: object) -> Path:
    """Two seconds of pictures and tone that differ by their number."""
    made = {
        "frames": 50,
        "rate": RATE,
        "time_base": Fraction(1, RATE),
        "options": {"g": "10"},
        "audio": ["mp2"],
        **options,
    }
    made |= {"codec": "mpeg2video"} if path.suffix == ".mpg" else {"bframes": 2}
    return make_video(path, scene=lambda n, **shape: pattern(n + 11 * number, **shape), **made)


def joined(path: Path, parts: list[Path]) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.mark.parametrize("suffix", [".ts", ".mpg"])
def test_a_join_is_no_damage(tmp_path: Path, suffix: str) -> None:
    parts = [recording(tmp_path / f"{n}{suffix}", n) for n in range(2)]
    with open_source(joined(tmp_path / f"in{suffix}", parts)) as frames:
        assert len(list(frames)) == 100
        assert frames.damaged == 0


def test_damage_between_joins_is_counted(tmp_path: Path) -> None:
    parts = [recording(tmp_path / f"{n}.ts", n, audio=[]) for n in range(2)]
    data = parts[1].read_bytes()
    middle = len(data) // 2 // 188 * 188
    parts[1].write_bytes(data[:middle] + data[middle + 188 :])
    with open_source(joined(tmp_path / "in.ts", parts)) as frames:
        assert len(list(frames)) > 90
        assert frames.damaged > 0


@pytest.mark.parametrize("suffix", [".ts", ".mpg"])
@pytest.mark.parametrize(("start", "end"), [(0.4, 1.2), (1.5, 2.6), (2.6, 3.4), (4.4, None), (None, 3.0)])
def test_a_range_of_joined_recordings_takes_its_sound_along(
    tmp_path: Path, suffix: str, start: float | None, end: float | None
) -> None:
    parts = [recording(tmp_path / f"{n}{suffix}", n) for n in range(3)]
    source = joined(tmp_path / f"in{suffix}", parts)
    target = copy(source, tmp_path / "out.mkv", start=start, end=end, codec="ffv1")
    first = round((start or 0) * RATE)
    last = round((end or 6) * RATE)
    whole = [picture for part in parts for picture in pictures(part)]
    got = pictures(target)
    assert len(got) == last - first
    assert all((a[0] == b[0]).all() for a, b in zip(got, whole[first:last], strict=True))

    # each packet of sound lies where it did beside the pictures, but at a join, where the sound of the one before may reach further
    wanted: dict[str, list[Fraction]] = {}
    for n, part in enumerate(parts):
        begin = times(part)[0] + Fraction(first, RATE) - 2 * n
        for digest, at in next(iter(packets(part, "audio").values())):
            wanted.setdefault(digest, []).append(at - begin)
    zero = times(target)[0]
    (sound,) = packets(target, "audio").values()
    assert abs(sound[0][1] - zero) < 0.06
    assert sound[-1][1] - zero > Fraction(last - first, RATE) - Fraction(6, 100)
    off = [min(abs(at - zero - w) for w in wanted[digest]) for digest, at in sound]
    assert max(off) < 0.05
    assert sum(o > Fraction(1, 1000) for o in off) <= 4


def test_sound_that_reaches_further_than_its_pictures_is_not_overlaid(tmp_path: Path) -> None:
    parts = [recording(tmp_path / "0.ts", 0, pts=[*range(49), 124]), recording(tmp_path / "1.ts", 1)]
    with av.open(str(parts[0])) as whole, av.open(str(tmp_path / "cut.ts"), "w") as cut:
        targets = [cut.add_stream_from_template(s) for s in whole.streams]
        for packet in whole.demux():
            if packet.size and (packet.stream.type == "audio" or packet.pts * packet.time_base < 3):
                packet.stream = targets[packet.stream_index]
                cut.mux_one(packet)
    source = joined(tmp_path / "in.ts", [tmp_path / "cut.ts", parts[1]])
    with open_source(source) as frames:
        stamps = [f.pts * f.time_base for f in frames]
        assert frames.duration == pytest.approx(7, abs=0.1)
    assert stamps[49] - stamps[48] == Fraction(77, RATE)  # whole frames, up to the end of 5 s of sound
    target = copy(source, tmp_path / "out.mkv")
    (sound,) = packets(target, "audio").values()
    steps = [float(b - a) for (_, a), (_, b) in pairwise(sound)]
    assert sum(step < 0.02 for step in steps) <= 2
    assert max(steps) < 0.08


def test_a_clock_that_starts_anew_much_lower_did_not_run_over(tmp_path: Path) -> None:
    # FFmpeg takes it for one of 33 bits that did, and leaves a gap of a day
    parts = [recording(tmp_path / f"{n}.ts", n, pts=range(at, at + 50), audio=[]) for n, at in enumerate((125_000, 0))]
    with open_source(joined(tmp_path / "in.ts", parts)) as frames:
        stamps = [f.pts * f.time_base for f in frames]
    assert [b - a for a, b in pairwise(stamps)] == [Fraction(1, RATE)] * 99


def test_sound_that_overlaps_at_a_join_goes_into_a_transport_stream(tmp_path: Path) -> None:
    parts = [recording(tmp_path / f"{n}.ts", n, audio=["aac"]) for n in range(2)]
    source = joined(tmp_path / "in.ts", parts)
    (before,), (after,) = (packets(p, "audio").values() for p in (source, copy(source, tmp_path / "out.ts")))
    assert [digest for digest, _ in after] == [digest for digest, _ in before]
    assert all(b > a for (_, a), (_, b) in pairwise(after))


def test_video_alone_that_steps_back_takes_no_sound_with_it(tmp_path: Path) -> None:
    parts = [recording(tmp_path / f"{n}.ts", n) for n in range(2)]
    remux(parts[1], tmp_path / "later.ts", later=Fraction(2))
    source = joined(tmp_path / "in.ts", [parts[0], tmp_path / "later.ts"])
    target = copy(source, tmp_path / "out.mkv")
    (before,), (after,) = (packets(p, "audio").values() for p in (source, target))
    assert [digest for digest, _ in after] == [digest for digest, _ in before]
    assert all(abs(a - b) <= Fraction(1, 1000) for (_, a), (_, b) in zip(before, after, strict=True))
    assert [b - a for a, b in pairwise(times(target))] == [Fraction(1, RATE)] * 99


def test_a_recording_without_sound_may_follow_one_with_it(tmp_path: Path) -> None:
    parts = [recording(tmp_path / "0.ts", 0), recording(tmp_path / "1.ts", 1, audio=[])]
    target = copy(joined(tmp_path / "in.ts", parts), tmp_path / "out.mkv", start=2.4, codec="ffv1")
    wanted = pictures(parts[1])[10:]
    assert all((a[0] == b[0]).all() for a, b in zip(pictures(target), wanted, strict=True))


@pytest.mark.parametrize("suffix", [".ts", ".mpg"])
def test_a_large_file_is_read_whole_only_where_a_look_here_and_there_finds_a_join(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joins, "_LARGE", 0)
    monkeypatch.setattr(joins, "_LOOK", 2**15)
    parts = [recording(tmp_path / f"{n}{suffix}", n) for n in range(2)]
    with open_source(joined(tmp_path / f"in{suffix}", parts)) as frames:
        assert frames.duration == pytest.approx(4, abs=0.1)
        assert frames.joins
    monkeypatch.setattr(joins, "_starts", lambda *_: pytest.fail("the whole file is read"))
    with open_source(parts[1]) as frames:
        assert len(list(frames)) == 50


def test_the_first_picture_after_a_join_may_bear_the_decoding_time_of_the_recording_before() -> None:
    """As FFmpeg gives it of program streams whose packets of video hold no whole pictures."""
    stamps = (
        [(n, 3600 * n, 3600 * n) for n in range(50)] + [(50, 0, 50 * 3600)] + [(51 + n, 3600 * n, 0) for n in range(9)]
    )
    video = SimpleNamespace(type="video")
    read = [SimpleNamespace(stream=video, stream_index=0, pos=1000 * n, pts=pts, dts=dts) for n, pts, dts in stamps]
    assert joins._starts(SimpleNamespace(demux=lambda: iter(read)), 0) == [0, 50_000]  # type: ignore[arg-type]
