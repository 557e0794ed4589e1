"""Bad inputs and outputs: one sentence each, and nothing is left behind."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import make_video, pattern, pictures, planes, times
from test_media_time import copy

from streamfix.errors import DependencyError, InputError, OutputError, StreamfixError, UsageError
from streamfix.media import find_media, open_sink, open_source
from streamfix.media.repair import limit


def sentence(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    assert not text.endswith(".")
    return text


def refused(spec: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        open_source(spec)
    return sentence(caught.value)


def cut(source: Path, target: Path, share: float) -> Path:
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


def test_missing_and_empty_files(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.mp4") == f"there is no file {tmp_path / 'none.mp4'}; check the path"
    assert "there is no file" in refused(tmp_path / "none.png")
    for name in ("empty.mp4", "empty.jpg"):
        (tmp_path / name).touch()
        assert "is empty (0 bytes)" in refused(tmp_path / name)


def test_text_is_not_media(tmp_path: Path) -> None:
    for name in ("notes.mp4", "notes.mkv", "notes.txt"):
        (tmp_path / name).write_text("These are notes, not a film.\n" * 200)
        assert "not media" in refused(tmp_path / name) or "not a media file" in refused(tmp_path / name)
    (tmp_path / "notes.png").write_text("no picture")
    assert "not an image" in refused(tmp_path / "notes.png")
    (tmp_path / "noise.avi").write_bytes(np.random.default_rng(0).bytes(5000))
    assert "not a media file" in refused(tmp_path / "noise.avi")


def test_sound_without_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "sound.m4a"
    with av.open(str(path), "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    assert "has no video that can be decoded (it holds audio)" in refused(path)


def test_an_mp4_without_its_index(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "whole.mp4", frames=60, codec="ffv1")
    assert "its index (moov) is missing" in refused(cut(whole, tmp_path / "cut.mp4", 0.6))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mpg", ".ts", ".avi"])
@pytest.mark.parametrize("share", [0.45, 0.8])
def test_a_cut_file_is_decoded_as_far_as_it_goes(tmp_path: Path, suffix: str, share: float) -> None:
    codec = {".mpg": "mpeg2video", ".avi": "mpeg4"}.get(suffix, "libx264")
    options = {} if codec != "libx264" else {"g": "12"}
    moov = {"movflags": "faststart"} if suffix == ".mp4" else {}
    whole = make_video(
        tmp_path / f"whole{suffix}",
        frames=90,
        rate=25,
        time_base=Fraction(1, 25),
        codec=codec,
        options=options,
        bframes=0,
        size=(160, 120),
        audio=["mp2"] if suffix == ".mpg" else [],
        container_options=moov,
    )
    path = cut(whole, tmp_path / f"cut{suffix}", share)
    with open_source(path) as frames:
        got = [(f.pts * f.time_base, f.picture.to_ndarray(format="gray")) for f in frames]
        damaged = frames.damaged
    assert 90 * share * 0.5 < len(got) < 90
    if suffix not in (".mpg", ".ts"):  # these declare no length: what is cut between two packets cannot be known
        assert damaged > 0
    reference = dict(zip(times(whole), pictures(whole), strict=True))
    assert [t for t, _ in got] == times(whole)[: len(got)]
    assert len(reference) == 90
    assert times(copy(path, tmp_path / f"out{suffix if suffix != '.avi' else '.mkv'}"))


def test_holes_are_counted_and_decoding_goes_on(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "whole.mkv", frames=90, options={"g": "10", "crf": "18"}, size=(160, 120), bframes=0)
    data = bytearray(whole.read_bytes())
    for at in (len(data) // 3, len(data) // 2):
        data[at : at + 300] = bytes(300)
    holed = tmp_path / "holed.mkv"
    holed.write_bytes(data)
    with open_source(holed) as frames:
        assert frames.damaged == 0
        stamps = [f.pts for f in frames]
        assert frames.damaged > 0
    assert len(stamps) > 60
    assert stamps == sorted(set(stamps))
    assert stamps[-1] == 2967


@pytest.mark.parametrize("place", [-1, -2, -3])
@pytest.mark.parametrize(("bframes", "suffix"), [(0, ".mkv"), (2, ".mkv"), (0, ".avi"), (2, ".avi")])
def test_damage_at_the_very_end_costs_one_picture_only(tmp_path: Path, place: int, bframes: int, suffix: str) -> None:
    """Decoding in several threads must neither lose the whole pictures behind the broken one, nor give any twice."""
    whole = make_video(tmp_path / f"whole{suffix}", frames=40, bframes=bframes)
    with av.open(str(whole)) as container:
        tail = [bytes(p) for p in container.demux(video=0) if p.size][place]
    data = whole.read_bytes()
    broken = tmp_path / f"broken{suffix}"
    broken.write_bytes(data.replace(tail, b"\xff" * 4 + tail[4:]))  # the length of its first unit
    with open_source(broken) as frames:
        got = [f.pts for f in frames]
        assert frames.damaged > 0
    assert len(got) == 39


def test_a_whole_avi_is_not_called_damaged(tmp_path: Path) -> None:
    # it has dts alone, from which alone can be told how far it reaches
    with open_source(make_video(tmp_path / "in.avi", frames=60, bframes=0)) as frames:
        assert len(list(frames)) == 60
        assert frames.damaged == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    # two demuxers would share its bytes: frames were lost without a word
    pipe = tmp_path / "in.ts"
    os.mkfifo(pipe)
    assert "pipe" in refused(pipe)


def test_folders_and_globs_without_media(tmp_path: Path) -> None:
    assert "holds no video and no image" in refused(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    assert "holds no video and no image" in refused(tmp_path)
    assert "nothing matches" in refused(str(tmp_path / "*.jpg"))
    make_video(tmp_path / "a.mp4")
    assert "holds no image; give its videos one by one" in refused(tmp_path)
    assert find_media(tmp_path) == find_media(str(tmp_path / "*.mp4")) == find_media(tmp_path / "a.mp4")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_permissions(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4")
    source.chmod(0)
    assert "permission denied" in refused(source)


def test_an_output_that_exists_is_left_alone(tmp_path: Path) -> None:
    source, target = make_video(tmp_path / "in.mp4"), tmp_path / "out.mp4"
    target.write_bytes(b"precious")
    with open_source(source) as frames, pytest.raises(OutputError, match=r"exists already.*--overwrite"):
        open_sink(target, like=frames)
    with (
        contextlib.suppress(ZeroDivisionError),
        open_source(source) as frames,
        open_sink(target, like=frames, overwrite=True) as sink,
    ):
        sink.write(next(iter(frames)))
        assert len(list(tmp_path.iterdir())) == 3
        raise ZeroDivisionError
    assert target.read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]
    assert len(times(copy(source, target))) == 12


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    source, target = make_video(tmp_path / "in.mkv", frames=3), tmp_path / "out.mp4"
    script = "import sys; from test_media_time import copy; from pathlib import Path; copy(*map(Path, sys.argv[1:]))"
    other = [sys.executable, "-c", script, source, target]
    with open_source(source) as frames, open_sink(target, like=frames) as sink:
        said = subprocess.run(other, capture_output=True, text=True, cwd=Path(__file__).parent, check=False).stderr
        assert "is being written by another run" in said
        for frame in frames:
            sink.write(frame)
    assert times(target) == times(source)
    assert copy(source, target) == target  # and it is free again


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "link.mp4").symlink_to(source)
    cases = {
        "in.mp4": "is the input itself",
        "link.mp4": "is the input itself",
        "folder.mp4": "is a folder",
        "missing/out.mp4": "does not exist; create it first",
        "out.xyz": "not the suffix of a container that FFmpeg writes",
        "out": "no suffix to choose a container by",
        "out.png": "would be an image, but the input is a video",
        f"{'x' * 300}.mp4": "too long",
    }
    before = sorted(p.name for p in tmp_path.iterdir())
    for name, words in cases.items():
        with open_source(source) as frames, pytest.raises(OutputError, match=words) as caught:
            open_sink(tmp_path / name, like=frames, overwrite=True)
        sentence(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs Linux's /sys, where not even root may create files")
def test_a_read_only_folder(tmp_path: Path) -> None:
    with open_source(make_video(tmp_path / "in.mp4")) as frames, pytest.raises(OutputError) as caught:
        open_sink(Path("/sys/kernel/out.mp4"), like=frames)
    assert sentence(caught.value) == "/sys/kernel/out.mp4 cannot be written: permission denied; choose another folder"


def test_names_that_ffmpeg_would_misread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = make_video(tmp_path / "in.mp4").rename(tmp_path / "at 12:30 é %03d.mp4")
    target = copy(Path(source.name), Path("pipe:1 [x].mkv"))
    assert len(times(tmp_path / target.name)) == 12
    assert find_media("pipe:1 [x].mkv") == [target]


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4")
    with open_source(source) as frames, pytest.raises(OutputError, match="no frame was written"):  # noqa: SIM117
        with open_sink(tmp_path / "out.mp4", like=frames):
            pass
    assert [p.name for p in tmp_path.iterdir()] == ["in.mp4"]


COPY = (
    "import sys, streamfix.errors\nfrom streamfix.media import open_source, open_sink\n"
    "try:\n"
    "    with open_source(sys.argv[1]) as s, open_sink(sys.argv[2], like=s, codec='ffv1') as k:\n"
    "        for f in s: k.write(f)\n"
    "except streamfix.errors.OutputError as error: sys.exit('told: ' + str(error))\n"
)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".avi"])
@pytest.mark.parametrize("room", [600, 200_000])
def test_a_full_disk(tmp_path: Path, suffix: str, room: int) -> None:
    """The system refuses to let the file grow: while writing, or only when the rest is flushed at the end."""
    source = make_video(tmp_path / "in.mkv", codec="ffv1", frames=60, size=(160, 120))
    done = subprocess.run(
        [sys.executable, "-c", COPY, source, tmp_path / f"out{suffix}"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("told: there is no space left to write")
    assert done.stderr.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["in.mkv"]


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", codec="ffv1", frames=10)
    script = COPY.replace("k.write(f)", "k.write(f); print(1, flush=True); __import__('time').sleep(1)")
    process = subprocess.Popen(
        [sys.executable, "-c", script, source, tmp_path / "out.mp4"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    assert (tmp_path / ".out.part.mp4").exists()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in said
    assert [p.name for p in tmp_path.iterdir()] == ["in.mkv"]


def test_opencv_without_libgl_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')\n")
    done = subprocess.run(
        [sys.executable, "-c", "import streamfix.media"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        check=False,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"{DependencyError.__module__}.DependencyError: OpenCV cannot be loaded (libGL.so.1")
    assert "install the system packages libgl1 and libglib2.0-0" in last


def test_every_error_is_a_streamfix_error() -> None:
    assert all(issubclass(kind, StreamfixError) for kind in (InputError, OutputError, DependencyError))


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv444p12le", "gray10le"])
def test_samples_beyond_their_depth_are_brought_back(pix_fmt: str) -> None:
    """As decoders leave them in pictures that they could not finish; x264 ends the process on meeting one."""
    picture = pattern(3, pix_fmt=pix_fmt)
    before = [p.copy() for p in planes(picture)]
    assert not limit(picture)
    peak = 2 ** picture.format.components[0].bits - 1
    rows = np.frombuffer(memoryview(picture.planes[0]), "<u2").reshape(48, -1)
    rows[7, 5:9] = 0xFFFF
    assert limit(picture)
    after = planes(picture)
    assert after[0].view("<u2")[7, 5:9].tolist() == [peak] * 4
    after[0].view("<u2")[7, 5:9] = before[0].view("<u2")[7, 5:9]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert not limit(picture)
    assert not limit(pattern(0))


def test_a_source_closed_while_its_frames_are_taken_is_told(tmp_path: Path) -> None:
    source = open_source(make_video(tmp_path / "in.mkv", frames=40))
    taken = iter(source)
    next(taken)
    source.close()
    with pytest.raises(RuntimeError, match="was closed before all of its frames were taken"):
        list(taken)  # FFmpeg would crash


def test_a_source_closed_while_another_thread_decodes_is_told(tmp_path: Path) -> None:
    source = open_source(make_video(tmp_path / "in.mkv", frames=400))
    begun, said = threading.Event(), []

    def take() -> None:
        try:
            for _ in source:
                begun.set()
        except RuntimeError as error:
            said.append(str(error))

    thread = threading.Thread(target=take)
    thread.start()
    assert begun.wait(10)
    source.close()
    thread.join(10)
    assert not said or "was closed before" in said[0]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are listed under /proc on Linux")
@pytest.mark.parametrize("fails", [False, True])
def test_the_part_file_is_let_go_of_when_a_job_ends(tmp_path: Path, fails: bool) -> None:
    source = make_video(tmp_path / "in.mkv", frames=4)
    with (
        contextlib.suppress(KeyError),
        open_source(source) as frames,
        open_sink(tmp_path / "o.mp4", like=frames) as sink,
    ):
        for frame in frames:
            sink.write(frame)
            if fails:
                raise KeyError
    held = [
        os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if n.isdecimal() and _is_open(int(n))
    ]
    assert not [name for name in held if str(tmp_path) in name]  # a deleted file keeps its space while it is open


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:  # the descriptor of the listing itself
        return False
    return True


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_times_that_are_none(tmp_path: Path, value: float) -> None:
    source = make_video(tmp_path / "in.mkv", frames=4)
    for name in ("start", "end"):
        with pytest.raises(UsageError, match="a start and an end are seconds"):
            open_source(source, **{name: value})
