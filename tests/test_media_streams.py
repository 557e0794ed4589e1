"""What lies beside the picture: sound, text, data, attachments, chapters, tags, rotation, aspect ratio."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import add_cover, hashes, make_video, packets, pattern, times
from test_media_time import copy

from streamfix.errors import OutputError, UsageError
from streamfix.media import open_sink, open_source


def kinds(path: Path) -> list[tuple[str, str | None]]:
    with av.open(str(path)) as container:
        return [(s.type, s.language) for s in container.streams]


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    """A Matroska file with two tones, two subtitles, chapters, a font and tags."""
    return make_video(
        tmp_path / "all.mkv",
        frames=40,
        audio=["aac", "libmp3lame"],
        subtitles=["eng", "deu"],
        chapters=[(0, 0.5, "one"), (0.5, 1.3, "two")],
        attachment=bytes(range(256)) * 4,
        metadata={"title": "A title", "location": "somewhere"},
        bframes=2,
    )


def test_every_other_stream_is_copied_packet_for_packet(tmp_path: Path, everything: Path) -> None:
    target = copy(everything, tmp_path / "out.mkv", tags={"enhanced": "by a test"})
    assert kinds(target) == kinds(everything)
    for kind in ("audio", "subtitle"):
        assert packets(target, kind) == packets(everything, kind)
        assert len(packets(target, kind)) == 2
    with av.open(str(everything)) as one, av.open(str(target)) as two:
        assert two.streams.attachments[0].data == one.streams.attachments[0].data == bytes(range(256)) * 4
        assert two.streams.attachments[0].metadata == one.streams.attachments[0].metadata
        assert [(c["start"], c["end"], c["metadata"]) for c in two.chapters()] == [
            (c["start"], c["end"], c["metadata"]) for c in one.chapters()
        ]
        tags = {k.lower(): v for k, v in two.metadata.items()}
        assert (tags["title"], tags["location"], tags["enhanced"]) == ("A title", "somewhere", "by a test")
        assert [s.disposition for s in two.streams] == [s.disposition for s in one.streams]


def test_the_order_of_the_streams_is_kept(tmp_path: Path) -> None:
    # remux so that the sound comes first, as phones write it
    made = make_video(tmp_path / "made.mp4", audio=["aac"])
    source = tmp_path / "in.mp4"
    with av.open(str(made)) as one, av.open(str(source), "w") as two:
        targets = {s.index: two.add_stream_from_template(s) for s in (one.streams.audio[0], one.streams.video[0])}
        for packet in one.demux():
            if packet.size:
                packet.stream = targets[packet.stream_index]
                two.mux(packet)
    assert [k for k, _ in kinds(copy(source, tmp_path / "out.mp4"))] == ["audio", "video"]


def test_tags_without_a_name_in_itunes_survive_in_mp4(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", metadata={"title": "A title", "camera": "seven"})
    with av.open(str(copy(source, tmp_path / "out.mp4", tags={"enhanced": "yes"}))) as container:
        found = {k.lower(): v for k, v in container.metadata.items()}
    assert (found["title"], found["camera"], found["enhanced"]) == ("A title", "seven", "yes")


def test_tags_without_a_name_in_avi_go_into_its_comment(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", metadata={"title": "A title", "camera": "seven", "comment": "mine"})
    once = copy(source, tmp_path / "once.avi", tags={"enhanced": "yes"})
    for target in (once, copy(once, tmp_path / "again.avi")):  # which takes what it finds for known
        with av.open(str(target)) as container:
            found = container.metadata
        assert found["title"] == "A title"
        assert sorted(found["comment"].lower().split("\n")) == ["camera: seven", "enhanced: yes", "mine"]


@pytest.mark.parametrize(("suffix", "other"), [(".mp4", ".mkv"), (".mkv", ".mp4"), (".mp4", ".mov"), (".mp4", ".ts")])
def test_sound_survives_a_change_of_container(tmp_path: Path, suffix: str, other: str) -> None:
    source = make_video(tmp_path / f"in{suffix}", frames=60, audio=["aac", "aac"], bframes=2)
    target = copy(source, tmp_path / f"out{other}")
    assert times(target) == pytest.approx([float(t) for t in times(source)], abs=0.0006)
    before, after = packets(source, "audio"), packets(target, "audio")
    if other != ".ts":  # which wraps each packet in an ADTS header
        assert hashes(source, "audio") == hashes(target, "audio")
    for (_, one), (_, two) in zip(sorted(before.items()), sorted(after.items()), strict=True):
        assert len(one) == len(two)
        assert all(abs(a - b) <= Fraction(1, 1000) for (_, a), (_, b) in zip(one, two, strict=True))


def test_sparse_subtitles_hold_nothing_back(tmp_path: Path) -> None:
    """Lines at the very start and end only: the output grows all the while, so nothing waits for them in memory."""
    source = make_video(
        tmp_path / "in.mkv", frames=600, audio=["aac"], subtitles=["eng"], codec="ffv1", size=(160, 120)
    )
    sizes = []
    with open_source(source) as frames, open_sink(tmp_path / "out.mkv", like=frames, codec="ffv1") as sink:
        for frame in frames:
            sink.write(frame)
            sizes.append((tmp_path / ".out.part.mkv").stat().st_size)
    whole = (tmp_path / "out.mkv").stat().st_size
    assert sizes[150] > 0.1 * whole
    assert sizes[450] > 0.6 * whole
    assert packets(tmp_path / "out.mkv", "subtitle") == packets(source, "subtitle")
    assert hashes(tmp_path / "out.mkv", "audio") == hashes(source, "audio")


def test_packets_lie_in_the_order_of_time(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", frames=300, audio=["aac"], bframes=2)
    behind, latest = 0.0, {}
    with av.open(str(copy(source, tmp_path / "out.mkv"))) as container:
        for packet in container.demux():
            if packet.size:
                stamp = packet.dts if packet.dts is not None else packet.pts
                latest[packet.stream_index] = float(stamp * packet.time_base)
                behind = max(behind, max(latest.values()) - min(latest.values()))
    assert len(latest) == 2
    assert behind < 0.5  # seconds that a player has to buffer


@pytest.mark.parametrize(
    ("suffix", "words"),
    [
        (
            ".mp4",
            r"stream 3 \(subtitle, subrip\).*stream 5 \(attachment, font/ttf\).*--drop attachments --drop subtitles",
        ),
        (".webm", r"cannot hold .*stream 1 \(audio, aac\).*write \.mkv instead, or leave them out with --drop"),
        (".ts", r"stream 3 \(subtitle, subrip\)"),
        (".mpg", r"cannot hold .*stream 1 \(audio, aac\)"),
    ],
)
def test_what_cannot_live_in_the_container_is_named(tmp_path: Path, everything: Path, suffix: str, words: str) -> None:
    with pytest.raises(OutputError, match=words):
        copy(everything, tmp_path / f"out{suffix}", codec="av1" if suffix == ".webm" else "auto")
    assert [p.name for p in tmp_path.iterdir()] == ["all.mkv"]


@pytest.mark.parametrize("suffix", [".ts", ".flv"])
def test_chapters_that_cannot_be_kept_are_told(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    source = make_video(tmp_path / "in.mkv", chapters=[(0, 0.2, "one")])
    copy(source, tmp_path / f"out{suffix}")
    assert "cannot hold the chapters" in caplog.text


def test_a_lossless_codec_says_that_it_takes_no_quality(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    copy(make_video(tmp_path / "in.mkv", frames=2), tmp_path / "out.mkv", codec="ffv1", crf=20)
    assert "does without --crf" in caplog.text


def test_sound_that_comes_back_broken_from_nut_is_refused(tmp_path: Path) -> None:
    # FFmpeg leaves out what the headers of its packets have in common, and reads them back without it
    source = make_video(tmp_path / "in.mp4", frames=30, audio=["libmp3lame"])
    with pytest.raises(OutputError, match=r"\.nut \(nut\) cannot hold stream 1 \(audio, mp3\); write \.mkv instead"):
        copy(source, tmp_path / "out.nut")


def test_dropping(tmp_path: Path, everything: Path) -> None:
    target = copy(everything, tmp_path / "out.mp4", drop=["subtitles", "attachments", 2])
    assert [k for k, _ in kinds(target) if k != "data"] == ["video", "audio"]  # MP4 stores the chapters in a data track
    assert hashes(target, "audio") == hashes(everything, "audio")[:1]
    assert kinds(copy(everything, tmp_path / "silent.mkv", drop=["audio"]))[1] == ("subtitle", "eng")
    assert kinds(copy(everything, tmp_path / "also_silent.mkv", drop="audio"))[1] == ("subtitle", "eng")
    with pytest.raises(UsageError, match="cannot drop 'sound': name audio, subtitles"):
        copy(everything, tmp_path / "x.mkv", drop=["sound"])
    with pytest.raises(UsageError, match="stream from 0 to 5"):
        copy(everything, tmp_path / "x.mkv", drop=["17"])
    with pytest.raises(UsageError, match="stream 0 is the video to restore"):
        copy(everything, tmp_path / "x.mkv", drop=["0"])
    assert not list(tmp_path.glob("*x*"))


@pytest.fixture
def with_cover(tmp_path: Path) -> tuple[Path, bytes]:
    """An MP4 with a cover picture, and the bytes of that picture."""
    path = make_video(tmp_path / "cover.mp4", frames=20, audio=["aac"])
    return path, add_cover(path, pattern(0, size=(32, 32), pix_fmt="yuvj420p"))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_cover_art_is_kept(tmp_path: Path, with_cover: tuple[Path, bytes], suffix: str) -> None:
    source, cover = with_cover
    once = copy(source, tmp_path / f"out{suffix}", tags={"enhanced": "by a test"})
    again = copy(once, tmp_path / f"again{suffix}")
    with av.open(str(again)) as container:
        attached = [s for s in container.streams if s.disposition & av.stream.Disposition.attached_pic]
        assert [next(bytes(p) for p in container.demux(s)) for s in attached] == [cover]
        assert "by a test" in " ".join(
            container.metadata.values()
        )  # as a comment where only iTunes tags go with a cover
    assert times(again) == pytest.approx([float(t) for t in times(source)], abs=0.0006)
    dropped = copy(source, tmp_path / f"bare{suffix}", drop=["attachments"])
    assert [k for k, _ in kinds(dropped)] == ["video", "audio"]


def test_cover_art_that_cannot_be_kept_is_named(tmp_path: Path, with_cover: tuple[Path, bytes]) -> None:
    with pytest.raises(OutputError, match=r"cannot hold stream 2 \(video, mjpeg\).*--drop attachments"):
        copy(with_cover[0], tmp_path / "out.ts")


@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_rotation_is_kept_and_not_applied(tmp_path: Path, degrees: int, suffix: str) -> None:
    source = make_video(tmp_path / "in.mp4", rotation=degrees)
    with open_source(source) as frames:
        assert frames.rotation == degrees
        assert {f.rotation for f in frames} == {degrees}
    with open_source(copy(source, tmp_path / f"out{suffix}")) as again:
        assert again.rotation == degrees
        assert (again.width, again.height) == (64, 48)


def test_a_mirrored_display_matrix_is_kept_exactly(tmp_path: Path) -> None:
    source = tmp_path / "in.mp4"
    with av.open(str(source), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(90, hflip=True)
        for n in range(3):
            picture = pattern(n)
            picture.pts, picture.time_base = n, Fraction(1, 25)
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
    with open_source(source) as one, open_source(copy(source, tmp_path / "out.mp4")) as two:
        assert one.display_matrix == two.display_matrix is not None


def test_a_container_without_rotation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"\.ts cannot hold the rotation"):
        copy(make_video(tmp_path / "in.mp4", rotation=90), tmp_path / "out.ts")


@pytest.mark.parametrize("codec", ["h264", "ffv1", "av1"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("ratio", [Fraction(128, 117), Fraction(4, 3), Fraction(1)])
def test_sample_aspect_ratio(tmp_path: Path, codec: str, suffix: str, ratio: Fraction) -> None:
    source = make_video(tmp_path / "in.mp4", sar=ratio, audio=["aac"], frames=30)
    target = copy(source, tmp_path / f"out{suffix}", codec=codec)
    with av.open(str(target)) as container:
        assert (container.streams.video[0].sample_aspect_ratio or 1) == ratio
        container.seek(500_000)
        assert sum(1 for _ in container.decode(video=0)) > 0
    assert len(times(target)) == 30
    assert hashes(target, "audio") == hashes(source, "audio")


def test_facts_are_plain_and_complete(everything: Path) -> None:
    import json

    with open_source(everything) as frames:
        facts = frames.facts()
    assert json.loads(json.dumps(facts)) == facts
    assert [(s["type"], s["codec"], s["language"]) for s in facts["streams"]] == [
        ("video", "h264", None),
        ("audio", "aac", None),
        ("audio", "mp3", None),
        ("subtitle", "subrip", "eng"),
        ("subtitle", "subrip", "deu"),
        ("attachment", "font/ttf", None),
    ]
    video = facts["streams"][0]
    assert (video["width"], video["height"], video["pix_fmt"]) == (64, 48, "yuv420p")
    assert (video["rotation"], video["interlaced"], video["color"]["matrix"]) == (0, False, "unknown")
    assert facts["chapters"] == 2
    assert facts["metadata"]["title"] == "A title"


def test_side_by_side_frames_are_taken_as_they_come(tmp_path: Path) -> None:
    from dataclasses import replace

    source = make_video(tmp_path / "in.mp4", rotation=90)
    with open_source(source) as frames, open_sink(tmp_path / "out.mp4", like=frames) as sink:
        for frame in frames:
            sink.write(replace(frame, picture=pattern(frame.index, size=(128, 48))))
    with open_source(tmp_path / "out.mp4") as out, open_source(source) as before:
        assert (out.width, out.height, out.rotation) == (128, 48, 90)
        assert out.duration == before.duration == 0.4
    assert times(tmp_path / "out.mp4") == times(source)


def test_a_second_video_stream_is_copied(tmp_path: Path) -> None:
    one, two, source = (
        make_video(tmp_path / "1.mkv"),
        make_video(tmp_path / "2.mkv", size=(32, 32)),
        tmp_path / "both.mkv",
    )
    with av.open(str(one)) as a, av.open(str(two)) as b, av.open(str(source), "w") as out:
        targets = [out.add_stream_from_template(c.streams.video[0], opaque=True) for c in (a, b)]
        for target, container in zip(targets, (a, b), strict=True):
            for packet in container.demux():
                if packet.size:
                    packet.stream = target
                    out.mux(packet)
    with av.open(str(source)) as before, av.open(str(copy(source, tmp_path / "out.mkv"))) as after:
        assert [(s.width, s.height) for s in after.streams.video] == [(64, 48), (32, 32)]
        first = [bytes(p) for p in before.demux(before.streams.video[1]) if p.size]
        assert [bytes(p) for p in after.demux(after.streams.video[1]) if p.size] == first
    assert np.all(np.diff([float(t) for t in times(tmp_path / "out.mkv")]) > 0)


def clip_with(path: Path, *, timecode: str | None = None, klv: int = 0) -> Path:
    """Thirty frames with a timecode track or a stream of metadata packets."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        if timecode is not None:
            video.metadata["timecode"] = timecode
        data = out.add_data_stream("klv") if klv else None
        for number in range(30):
            picture = pattern(number)
            picture.pts, picture.time_base = number, Fraction(1, 25)
            out.mux(video.encode(picture))
            if data is not None:
                packet = av.Packet(bytes([number]) * klv)
                packet.stream, packet.time_base, packet.pts, packet.dts = data, Fraction(1, 25), number, number
                out.mux(packet)
        out.mux(video.encode(None))
    return path


@pytest.mark.parametrize("suffix", [".mov", ".mp4", ".mkv"])
def test_a_timecode_survives(tmp_path: Path, suffix: str) -> None:
    source = clip_with(tmp_path / "in.mov", timecode="01:02:03:04")
    assert [k for k, _ in kinds(source)] == ["video", "data"]
    target = copy(source, tmp_path / f"out{suffix}")
    with av.open(str(target)) as container:
        tags = {k.lower(): v for k, v in container.streams.video[0].metadata.items()}
    assert tags["timecode"] == "01:02:03:04"
    assert [k for k, _ in kinds(target)] == (["video"] if suffix == ".mkv" else ["video", "data"])


def test_data_packets_survive_where_they_can(tmp_path: Path) -> None:
    source = clip_with(tmp_path / "in.ts", klv=17)
    target = copy(source, tmp_path / "out.ts")
    assert packets(target, "data") == packets(source, "data")
    assert times(target) == times(source)
    for suffix in (".mkv", ".mp4", ".avi"):
        with pytest.raises(
            OutputError, match=r"stream 1 \(data, klv\); write \.mov instead, or leave it out with --drop data$"
        ):
            copy(source, tmp_path / f"out{suffix}")
    assert hashes(copy(source, tmp_path / "out.mov"), "data") == hashes(source, "data")  # as the message promises
