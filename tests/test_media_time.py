"""Every frame keeps its place in time: through containers, B frames, variable rates, ranges and damage."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from media_files import make_video, packets, pictures, planes, times

from streamfix.errors import InputError, OutputError, UsageError
from streamfix.media import open_sink, open_source
from streamfix.media.timeline import Timeline


def copy(source: Path, target: Path, **options: object) -> Path:
    opened = {k: options.pop(k) for k in ("start", "end", "deinterlace") if k in options}
    with open_source(source, **opened) as frames, open_sink(target, like=frames, overwrite=True, **options) as sink:
        for frame in frames:
            sink.write(frame)
    return target


CLOCKS = [Fraction(1, 90000), Fraction(1, 12288), Fraction(1001, 30000), Fraction(1, 600), Fraction(1, 1000)]


@st.composite
def clocks_and_stamps(draw: st.DrawFn) -> tuple[Fraction, list[int]]:
    clock = draw(st.sampled_from(CLOCKS))
    longest = max(int(Fraction(1, 5) / clock), 2)
    first = draw(st.integers(0, longest * 4))
    steps = draw(st.lists(st.integers(1, longest), min_size=1, max_size=14))
    return clock, [first, *(first + sum(steps[: n + 1]) for n in range(len(steps)))]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=clocks_and_stamps(), suffix=st.sampled_from([".mp4", ".mov"]), bframes=st.sampled_from([0, 3]))
def test_variable_rate_survives_to_the_tick(
    tmp_path: Path, made: tuple[Fraction, list[int]], suffix: str, bframes: int
) -> None:
    clock, stamps = made
    source = make_video(tmp_path / f"in{suffix}", pts=stamps, time_base=clock, bframes=bframes)
    wanted = [stamp * clock for stamp in stamps]
    assert times(source) == wanted
    with open_source(source) as frames:
        assert [frame.pts * frame.time_base for frame in frames] == wanted
    assert times(copy(source, tmp_path / f"out{suffix}", preset="faster")) == wanted  # this preset has B frames


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=clocks_and_stamps())
def test_matroska_rounds_to_its_own_clock_only(tmp_path: Path, made: tuple[Fraction, list[int]]) -> None:
    clock, stamps = made
    source = make_video(tmp_path / "in.mp4", pts=stamps, time_base=clock)
    got = times(copy(source, tmp_path / "out.mkv"))
    assert len(got) == len(stamps)
    assert all(abs(a - b * clock) <= Fraction(1, 2000) for a, b in zip(got, stamps, strict=True))


def test_transport_stream_keeps_the_ticks(tmp_path: Path) -> None:
    stamps = [45000, 48000, 51001, 60000, 60500, 70000]
    source = make_video(tmp_path / "in.mp4", pts=stamps, time_base=Fraction(1, 90000))
    assert times(copy(source, tmp_path / "out.ts")) == [s * Fraction(1, 90000) for s in stamps]


def test_program_stream_keeps_the_ticks_of_a_constant_rate(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mpg", codec="mpeg2video", rate=25, time_base=Fraction(1, 25), audio=["mp2"])
    with open_source(source) as frames, open_sink(tmp_path / "out.mpg", like=frames) as sink:
        assert sink.encoder == "mpeg2video"  # H.264 in a program stream comes back without its times
        for frame in frames:
            sink.write(frame)
    assert times(tmp_path / "out.mpg") == times(source)
    assert packets(tmp_path / "out.mpg", "audio") == packets(source, "audio")


@pytest.mark.parametrize("suffix", [".mpg", ".avi"])
def test_a_container_of_constant_rate_refuses_what_it_cannot_hold(tmp_path: Path, suffix: str) -> None:
    source = make_video(tmp_path / "in.mp4", pts=[0, 40, 80, 133, 200], time_base=Fraction(1, 1000), rate=25)
    with pytest.raises(OutputError, match=r"constant frame rate only.*\.mp4"):
        copy(source, tmp_path / f"out{suffix}")
    assert [p.name for p in tmp_path.iterdir()] == ["in.mp4"]


def test_avi_is_read_by_its_frame_numbers(tmp_path: Path) -> None:
    # FFmpeg generates time stamps for H.264 in AVI that are one frame late
    source = make_video(tmp_path / "in.avi", frames=6, bframes=0)
    with open_source(source) as frames:
        assert [f.pts * f.time_base for f in frames] == [Fraction(n, 30) for n in range(6)]


def test_priming_of_the_sound_does_not_shift_the_frames_of_an_avi(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", frames=30, audio=["aac"])
    with open_source(copy(source, tmp_path / "out.avi")) as frames:
        assert [f.pts * f.time_base for f in frames] == [Fraction(n, 30) for n in range(30)]


@pytest.mark.parametrize(("suffix", "tick"), [(".flv", Fraction(1, 1000)), (".nut", Fraction(0))])
@pytest.mark.parametrize("audio", [[], ["aac"]])
def test_neither_priming_nor_b_frames_shift_a_file_without_time_before_zero(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, tick: Fraction, audio: list[str]
) -> None:
    source = make_video(tmp_path / "in.mp4", frames=30, audio=audio, bframes=2)
    target = copy(source, tmp_path / f"out{suffix}", preset="faster")  # this preset has B frames
    assert all(abs(a - b) <= tick / 2 for a, b in zip(times(source), times(target), strict=True))
    assert [r.getMessage() for r in caplog.records] == [
        f"{suffix} has no time before zero: stream 1 of {source} begins 0.021 s late" for _ in audio
    ]
    for (_, before), (_, after) in zip(packets(source, "audio").items(), packets(target, "audio").items(), strict=True):
        assert [h for h, _ in after] == [h for h, _ in before]
        assert before[0][1] < after[0][1] == 0
        assert all(abs(a - b) <= Fraction(1, 1000) for (_, a), (_, b) in zip(before[1:], after[1:], strict=True))
    again = copy(target, tmp_path / "again.mkv")
    assert all(abs(a - b) <= Fraction(1, 1000) for a, b in zip(times(source), times(again), strict=True))


def test_sound_that_begins_well_before_zero_is_not_put_into_a_flv(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "whole.mkv", frames=30, audio=["aac"])
    early = tmp_path / "early.mkv"
    remux(whole, early, later=Fraction(-1, 5), container_options={"avoid_negative_ts": "disabled"})
    words = r"\.flv has no time before zero, and stream 1 of .* begins 0\.22 s before it; write \.mp4 .* --drop 1"
    with pytest.raises(OutputError, match=words):
        copy(early, tmp_path / "out.flv")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["early.mkv", "whole.mkv"]


def remux(source: Path, target: Path, *, later: Fraction, **options: object) -> None:
    """The same packets, the sound moved by some seconds."""
    with av.open(str(source)) as read, av.open(str(target), "w", **options) as out:
        targets = [out.add_stream_from_template(s) for s in read.streams]
        for packet in read.demux():
            if packet.size:
                moved = round(later / packet.time_base) if packet.stream.type == "audio" else 0
                packet.pts, packet.dts = packet.pts + moved, packet.dts + moved
                packet.stream = targets[packet.stream_index]
                out.mux_one(packet)


def test_sound_that_begins_late_is_not_put_into_an_avi(tmp_path: Path) -> None:
    # AVI has no time stamps for sound: it would begin with the picture
    whole = make_video(tmp_path / "whole.mkv", frames=60, audio=["libmp3lame"])
    late = tmp_path / "late.mkv"
    remux(whole, late, later=Fraction(1))
    with pytest.raises(
        OutputError, match=r"silent until \d\.\d\d s; write \.mp4 or \.mkv, or leave it out with --drop 1"
    ):
        copy(late, tmp_path / "out.avi")
    assert not [p.name for p in tmp_path.iterdir() if "out" in p.name]
    assert times(copy(late, tmp_path / "out.mp4")) == times(late)


def test_the_last_frame_keeps_its_duration(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", pts=[0, 100, 200, 300], time_base=Fraction(1, 1000), rate=10)
    with av.open(str(source)) as one, av.open(str(copy(source, tmp_path / "out.mp4"))) as two:
        a, b = one.streams.video[0], two.streams.video[0]
        assert a.duration * a.time_base == b.duration * b.time_base


def test_a_range_begins_at_zero_and_takes_its_sound_along(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", frames=60, audio=["aac"], chapters=[(0, 0.6, "one"), (0.6, 2, "two")])
    with open_source(source, start=0.5, end=1.5) as frames:
        assert frames.frames == 30
        taken = [f.pts * f.time_base for f in frames]
    assert taken == [t for t in times(source) if Fraction(1, 2) <= t < Fraction(3, 2)]
    target = copy(source, tmp_path / "out.mp4", start=0.5, end=1.5)
    assert times(target) == [t - taken[0] for t in taken]
    sound = [(h, t) for h, t in packets(source, "audio")[1] if taken[0] <= t < Fraction(3, 2)]
    copied = packets(target, "audio")[1]
    assert [h for h, _ in copied] == [h for h, _ in sound]
    assert all(abs(a - (b - taken[0])) <= Fraction(1, 48000) for (_, a), (_, b) in zip(copied, sound, strict=True))
    with av.open(str(target)) as container:
        chapters = [(c["start"] * c["time_base"], c["end"] * c["time_base"]) for c in container.chapters()]
    assert [(round(float(a), 3), round(float(b), 3)) for a, b in chapters] == [(0, 0.1), (0.1, 1.0)]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".mpg"])
def test_a_range_is_the_same_frames_as_in_the_whole(tmp_path: Path, suffix: str) -> None:
    codec = "mpeg2video" if suffix == ".mpg" else "libx264"
    options = {} if suffix == ".mpg" else {"g": "25"}
    source = make_video(
        tmp_path / f"in{suffix}", frames=80, rate=25, time_base=Fraction(1, 25), codec=codec, options=options, bframes=2
    )
    with open_source(source) as whole:
        first = whole.origin
        wanted = [
            (f.pts, f.picture.to_ndarray(format="gray").tobytes())
            for f in whole
            if Fraction(3, 2) <= f.pts * f.time_base - first < Fraction(5, 2)
        ]
    assert len(wanted) == 25
    with open_source(source, start=1.5, end=2.5) as part:
        assert [(f.pts, f.picture.to_ndarray(format="gray").tobytes()) for f in part] == wanted
        assert part.damaged == 0


def test_impossible_ranges(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4")
    with pytest.raises(UsageError, match="the end must come after the start"):
        open_source(source, start=1, end=1)
    with pytest.raises(InputError, match="no frame between"), open_source(source, start=1e17) as frames:
        next(iter(frames))
    with open_source(source, start=7) as frames, pytest.raises(InputError, match="no frame between"):
        next(iter(frames))


def test_interlaced_frames_are_deinterlaced_one_for_one(tmp_path: Path) -> None:
    stamps = [0, 40, 80, 130, 160, 200, 240, 290]
    source = make_video(
        tmp_path / "in.mkv", pts=stamps, time_base=Fraction(1, 1000), rate=25, interlaced=True, size=(64, 64)
    )
    with open_source(source) as frames:
        assert frames.interlaced
        assert frames.deinterlaced
        automatic = [(f.pts, f.picture.interlaced_frame, f.picture.to_ndarray(format="gray")) for f in frames]
    assert [(pts, flag) for pts, flag, _ in automatic] == [(s, False) for s in stamps]
    with open_source(source, deinterlace=False) as frames:
        untouched = [f.picture.to_ndarray(format="gray") for f in frames]
    assert any(not np.array_equal(a[2], b) for a, b in zip(automatic, untouched, strict=True))
    assert times(copy(source, tmp_path / "out.mkv")) == [Fraction(s, 1000) for s in stamps]


def test_progressive_frames_pass_unless_told(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", codec="ffv1", frames=4)
    for told, same in ((None, True), (False, True), (True, False)):
        with open_source(source, deinterlace=told) as frames:
            got = [planes(f.picture)[0] for f in frames]
        assert len(got) == 4
        assert all(np.array_equal(a, b[0]) for a, b in zip(got, pictures(source), strict=True)) is same


def test_interlaced_video_stays_interlaced_when_left_alone(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", interlaced=True, size=(64, 64))
    target = copy(source, tmp_path / "out.mkv", deinterlace=False)
    with av.open(str(target)) as container:
        assert all(f.interlaced_frame for f in container.decode(video=0))


def test_a_time_line_rises_and_counts_what_it_changed() -> None:
    clock = Timeline(Fraction(1, 1000))
    assert [clock(s) for s in (0, 40, 40, 80, 70, 120)] == [0, 40, 41, 80, 81, 120]
    assert clock.changed == 2
    joined = Timeline(Fraction(1, 1000))
    assert [joined(s) for s in (5000, 5040, 0, 40, 80)] == [5000, 5040, 5080, 5120, 5160]
    assert joined.changed == 1
    loose = Timeline(Fraction(1, 1000), strict=False)
    assert [loose(s) for s in (0, 0, 10)] == [0, 0, 10]
    assert loose.changed == 0


def test_frames_that_stand_still_in_time_are_refused(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4")
    frames = list(open_source(source))
    sink = open_sink(tmp_path / "out.mp4", like=open_source(source))
    sink.write(frames[0])
    with pytest.raises(OutputError, match="does not come after"):
        sink.write(frames[0])
    sink.discard()
    assert not (tmp_path / "out.mp4").exists()


def test_a_source_is_read_once(tmp_path: Path) -> None:
    with open_source(make_video(tmp_path / "in.mp4")) as frames:
        assert len(list(frames)) == 12
        with pytest.raises(RuntimeError, match="taken already"):
            next(iter(frames))


def test_the_picture_handed_in_comes_back_as_it_was(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", frames=60)
    with open_source(source, start=1) as frames, open_sink(tmp_path / "out.mkv", like=frames) as sink:
        for frame in frames:
            before = frame.picture.to_ndarray(format="gray")
            sink.write(frame)
            assert (frame.picture.pts, frame.picture.time_base) == (frame.pts, frame.time_base)
            assert np.array_equal(frame.picture.to_ndarray(format="gray"), before)
