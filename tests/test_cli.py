"""The command line as a user meets it: a process of its own, real files, exit codes, one sentence for each mistake."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from conftest import decode, degraded, moved, write_clip
from PIL import Image
from typer.testing import CliRunner

import streamfix
from streamfix.cli import app
from streamfix.cli.common import out, seconds
from streamfix.cli.media import made, plan
from streamfix.errors import OutputError, StreamfixError, UsageError
from streamfix.prefetch import prefetch

ROOT = Path(streamfix.__file__).resolve().parent.parent
runner = CliRunner()


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "streamfix", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        **options,  # type: ignore[call-overload]
    )


def call(*arguments: object) -> tuple[int, str]:
    """The same inside this process: quicker."""
    result = runner.invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def one_sentence(text: str) -> str:
    text = text.strip()
    assert text.startswith("error: "), text
    assert "Traceback" not in text
    assert "\n" not in text
    return text


FRAMES = 8
FAST = ("--model", "passthrough")
"""For what does not depend on the network, which takes most of the time."""


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory, face_picture: np.ndarray) -> Path:
    plain = face_picture.copy()
    plain[170:, 60:150] = (200, 84, 50)  # without the badge, which may look like a second face when it is coded
    images = [degraded(moved(plain, 0.4 * n, 0.2 * n), n) for n in range(FRAMES)]
    return write_clip(tmp_path_factory.mktemp("made") / "in.mp4", images, codec="libx264", sound=True)


@pytest.fixture
def video(encoded: Path, tmp_path: Path) -> Path:
    """A face in FRAMES frames, with sound."""
    return Path(shutil.copy(encoded, tmp_path / "in.mp4"))


def test_a_video_in_a_video_out(video: Path, tmp_path: Path) -> None:
    done = run("enhance", video, "-o", tmp_path / "out.mp4")
    assert done.returncode == 0, done.stderr
    assert f"{FRAMES} frames, {FRAMES} faces of 1 person," in done.stdout
    assert "model lite" in done.stdout
    assert len(decode(tmp_path / "out.mp4")) == FRAMES
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [s.type for s in container.streams] == ["video", "audio"]
        assert "streamfix" in container.metadata.get("enhanced", "") + container.metadata.get("comment", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


def test_an_image_in_an_image_out(face_picture: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(degraded(face_picture, 0)).save(tmp_path / "in.png")
    code, said = call("enhance", tmp_path / "in.png", "-o", tmp_path / "out.png")
    assert code == 0, said
    before, after = (np.asarray(Image.open(tmp_path / n)) for n in ("in.png", "out.png"))
    assert before.shape == after.shape
    assert (before != after).any()
    assert np.array_equal(before[-10:], after[-10:])


def test_compare_puts_input_and_output_side_by_side(video: Path, tmp_path: Path) -> None:
    code, said = call("enhance", video, "-o", tmp_path / "both.mkv", "--compare", "--codec", "ffv1")
    assert code == 0, said
    both = decode(tmp_path / "both.mkv")
    first = decode(video)[0].to_ndarray(format="gray")
    assert (both[0].width, both[0].height) == (2 * first.shape[1], first.shape[0])
    picture = both[0].to_ndarray(format="gray")
    assert np.array_equal(picture[:, : first.shape[1]], first)
    assert (picture[:, first.shape[1] :] != first).any()


def test_only_a_part(video: Path, tmp_path: Path) -> None:
    code, said = call("enhance", video, "-o", tmp_path / "part.mp4", *FAST, "--start", "0.08", "--end", "0:00.24")
    assert code == 0, said
    assert len(decode(tmp_path / "part.mp4")) == 4


def test_many_inputs_go_into_a_folder_and_one_failure_stops_no_other(
    video: Path, face_picture: np.ndarray, tmp_path: Path
) -> None:
    folder = tmp_path / "inputs"
    folder.mkdir()
    shutil.copy(video, folder / "a.mp4")
    (folder / "b.mp4").write_text("not a video")
    Image.fromarray(face_picture).save(folder / "c.jpg")
    (folder / "notes.txt").write_text("left alone")
    done = run("enhance", folder, "-o", tmp_path / "out", *FAST)
    assert done.returncode == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.mp4", "c.jpg"]
    assert "b.mp4" in done.stderr
    assert "1 of 3 inputs failed" in done.stderr


def test_strength_zero_is_the_input(video: Path, tmp_path: Path) -> None:
    code, said = call("enhance", video, "-o", tmp_path / "out.mkv", "--strength", "0", "--codec", "ffv1")
    assert code == 0, said
    for old, new in zip(decode(video), decode(tmp_path / "out.mkv"), strict=True):
        assert np.array_equal(old.to_ndarray(), new.to_ndarray())


def test_existing_outputs_are_kept_unless_told(video: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    out.write_bytes(b"precious")
    code, said = call("enhance", video, "-o", out)
    assert code == 1
    assert "--overwrite" in one_sentence(said)
    assert out.read_bytes() == b"precious"
    assert call("enhance", video, "-o", out, "--overwrite", *FAST)[0] == 0
    assert len(decode(out)) == FRAMES


def test_the_input_is_never_its_own_output(video: Path) -> None:
    before = video.read_bytes()
    code, said = call("enhance", video, "-o", video, "--overwrite")
    assert code == 1
    one_sentence(said)
    assert video.read_bytes() == before


def bad_inputs(folder: Path, video: Path) -> dict[str, Path]:
    files = {name: folder / name for name in ("missing.mp4", "zero.mp4", "text.mp4", "cut.mp4", "sound.m4a", "empty")}
    files["zero.mp4"].touch()
    files["text.mp4"].write_text("this is a text and no video\n" * 50)
    files["cut.mp4"].write_bytes(video.read_bytes()[:3000])
    files["empty"].mkdir()
    with av.open(str(files["sound.m4a"]), "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return files


@pytest.mark.parametrize("name", ["missing.mp4", "zero.mp4", "text.mp4", "cut.mp4", "sound.m4a", "empty"])
def test_bad_inputs_get_one_sentence(name: str, video: Path, tmp_path: Path) -> None:
    source = bad_inputs(tmp_path, video)[name]
    before = sorted(tmp_path.rglob("*"))
    code, said = call("enhance", source, "-o", tmp_path / "out.mp4")
    assert code == 1
    assert name in one_sentence(said)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_video_of_one_pixel_comes_out_as_one_pixel_or_is_refused(clip: Callable[..., Path], tmp_path: Path) -> None:
    source = clip("dot.mkv", [np.full((1, 1, 3), 90, np.uint8)] * 3, pixel_format="yuv444p")
    code, said = call("enhance", source, "-o", tmp_path / "out.mkv")
    if code == 0:
        assert [(f.width, f.height) for f in decode(tmp_path / "out.mkv")] == [(1, 1)] * 3
    else:
        one_sentence(said)
        assert not (tmp_path / "out.mkv").exists()


def test_an_unknown_name_is_told_with_the_known_ones(video: Path, tmp_path: Path) -> None:
    for option, known in (
        ("--model", "lite"),
        ("--detector", "retinaface"),
        ("--codec", "h264"),
        ("--embedding-norm", "arcface"),
    ):
        code, said = call("enhance", video, "-o", tmp_path / "out.mp4", option, "magic")
        assert code == 2, option
        assert known in one_sentence(said)
    code, said = call("models", "pull", "magic")
    assert code == 2
    assert "lite" in one_sentence(said)


@pytest.mark.parametrize("option", ["--embedding", "--parsing"])
def test_a_missing_network_is_told_as_missing(option: str, video: Path, tmp_path: Path) -> None:
    code, said = call("enhance", video, "-o", tmp_path / "out.mp4", option, tmp_path / "none.onnx")
    assert code == 1
    assert one_sentence(said) == f"error: there is no file {tmp_path / 'none.onnx'}; check the path"


@pytest.mark.parametrize(
    "options",
    [["--strength", "2"], ["--start", "soon"], ["--start", "3", "--end", "2"], ["--nonsense"], ["--crf", "-4"]],
)
def test_a_wrong_call_leaves_with_2(options: list[str], video: Path, tmp_path: Path) -> None:
    code, _ = call("enhance", video, "-o", tmp_path / "out.mp4", *options)
    assert code == 2
    assert not (tmp_path / "out.mp4").exists()


def test_a_full_disk_leaves_nothing(video: Path, tmp_path: Path) -> None:
    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = run("enhance", video, "-o", tmp_path / "out.mkv", "--codec", "ffv1", *FAST, preexec_fn=small_files)
    assert done.returncode == 1, done.stdout
    one_sentence(done.stderr)
    assert [p.name for p in tmp_path.iterdir()] == ["in.mp4"]


def test_a_place_that_cannot_be_written(video: Path) -> None:
    code, said = call("enhance", video, "-o", "/proc/out.mp4")
    assert code == 1
    assert "/proc" in one_sentence(said)


def test_corrupted_weights_are_told(video: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "streamfix", copy / "streamfix", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "weights", copy / "weights")
    weights = copy / "weights" / "lite.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 255
    weights.write_bytes(data)
    done = run("enhance", video, "-o", tmp_path / "out.mp4", cwd=copy)
    assert done.returncode == 1
    assert "corrupted" in one_sentence(done.stderr)
    assert not (tmp_path / "out.mp4").exists()
    done = run("doctor", cwd=copy, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 1
    assert "lite differs from its sha256" in done.stdout
    assert "models pull lite" not in done.stdout  # embedded weights cannot be pulled


def test_a_missing_libgl_is_told_in_one_sentence(video: Path, tmp_path: Path) -> None:
    broken = tmp_path / "site" / "cv2"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    environment = {**os.environ, "PYTHONPATH": str(broken.parent)}
    done = run("enhance", video, "-o", tmp_path / "out.mp4", env=environment, cwd=ROOT)
    assert done.returncode == 1
    said = one_sentence(done.stderr)
    assert "libgl1" in said
    assert "libglib2.0-0" in said
    assert run("doctor", env=environment, cwd=ROOT).returncode == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_job_leaves_no_half_file(
    number: int, clip: Callable[..., Path], face_picture: np.ndarray, tmp_path: Path
) -> None:
    # no two alike, so that each is restored, which takes long enough on any machine
    source = clip("long.mp4", [degraded(face_picture, n) for n in range(80)], codec="mpeg4")
    job = subprocess.Popen(
        [sys.executable, "-m", "streamfix", "enhance", str(source), "-o", str(tmp_path / "out.mp4")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while job.poll() is None and len(list(tmp_path.iterdir())) == 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(list(tmp_path.iterdir())) == 2  # the part file is there: the job is under way
    job.send_signal(number)
    job.communicate(timeout=60)
    assert job.returncode not in (0, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["long.mp4"]


def test_inspect_shows_streams_people_and_a_sheet(video: Path, tmp_path: Path) -> None:
    code, said = call("inspect", video, "--sheet", tmp_path / "sheet.png")
    assert code == 0, said
    assert "h264" in said
    assert "aac" in said
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet is not None
    assert sheet.shape[1] > 128 * FRAMES
    code, said = call("inspect", video, "--json")
    facts = json.loads(said)
    assert facts["frames"] == FRAMES
    assert [t["frames"] for t in facts["tracks"]] == [FRAMES]


def test_models_and_doctor_speak() -> None:
    code, said = call("models", "list")
    assert code == 0
    assert "lite" in said
    assert "Apache-2.0" in said
    code, said = call("models", "verify")
    assert code == 0
    assert "lite: ok" in said
    code, said = call("doctor")
    assert code == 0, said
    assert "faces/s" in said
    code, said = call("models", "pull", "nonesuch")
    assert code == 2
    one_sentence(said)


def test_version_and_help() -> None:
    assert call("--version") == (0, f"streamfix {streamfix.__version__}\n")
    assert call("--help")[0] == 0
    done = run("enhance", "--help")
    assert done.returncode == 0
    for option in ("--model", "--detector", "--faces", "--strength", "--start", "--end", "--compare", "--overwrite"):
        assert option in done.stdout


@pytest.mark.parametrize(("text", "value"), [("12.5", 12.5), ("1:02.5", 62.5), ("01:02:03", 3723.0), (None, None)])
def test_times(text: str | None, value: float | None) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "soon", "-1", "1:2:3:4", "1e3", "nan", "1:"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError):
        seconds(text)


def test_names_that_would_collide_are_refused(face_picture: np.ndarray, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        Image.fromarray(face_picture).save(tmp_path / folder / "a.png")
    with pytest.raises(UsageError, match=r"a\.png"):
        plan([str(tmp_path / "one"), str(tmp_path / "two")], str(tmp_path / "out"))


def test_the_api_of_the_readme(video: Path, tmp_path: Path) -> None:
    report = streamfix.enhance(video, tmp_path / "out.mp4", model="lite")
    assert (report.frames, report.faces) == (FRAMES, FRAMES)
    with pytest.raises(StreamfixError, match="strength"):
        streamfix.enhance(video, tmp_path / "other.mp4", strength=3)
    assert not (tmp_path / "other.mp4").exists()


def test_where_outputs_go(face_picture: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        Image.fromarray(face_picture).save(name)
    a, b, out = Path("a.png"), Path("b.png"), Path("out")
    assert plan(["a.png"], "x.png") == ([(a, Path("x.png"))], None)
    assert plan(["[a].png"], "x.png") == ([(a, Path("x.png"))], None)
    for folder in ("out", "out/"):
        assert plan(["a.png"], folder) == ([(a, out / a)], out)
        assert plan(["*.png"], folder) == ([(a, out / a), (b, out / b)], out)
    assert plan(["a.png"], "v1.5/") == ([(a, Path("v1.5/a.png"))], Path("v1.5"))
    for name in ("x.png", "x.mp4", "a.png"):
        with pytest.raises(UsageError, match="one file"):
            plan(["a.png", "b.png"], name)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "a.png", tmp_path / "b.png"]  # a plan makes nothing
    Path("file").touch()
    for inputs in (["a.png"], ["a.png", "b.png"]):
        with pytest.raises(UsageError, match="not a folder"):
            plan(inputs, "file")
    for inputs, output, error in (([""], "out", StreamfixError), (["a.png"], "", UsageError)):
        with pytest.raises(error, match="empty"):
            plan(inputs, output)


def test_a_folder_into_which_nothing_came_is_not_left(face_picture: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(face_picture).save(tmp_path / "a.png")
    (tmp_path / "kept").mkdir()
    for folder in (tmp_path / "deep" / "er", tmp_path / "kept"):
        with made(folder):
            assert folder.is_dir()
    with made(tmp_path / "used" / "out"):
        (tmp_path / "used" / "out" / "x").touch()
    with pytest.raises(OutputError), made(tmp_path / "a.png" / "out"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "kept", "used"]
    code, said = call("enhance", tmp_path, "-o", tmp_path / "out", "--model", "magic")
    assert code == 2
    one_sentence(said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["n" * 300, "n" * 300 + "*", ""])
def test_names_that_no_disk_holds(name: str, tmp_path: Path) -> None:
    for command in (["enhance", name, "-o", tmp_path / "out.mp4"], ["inspect", name]):
        code, said = call(*command)
        assert code == 1
        one_sentence(said)


def test_what_the_system_answers_is_told_and_not_traced(video: Path, tmp_path: Path) -> None:
    code, said = call("enhance", video, "-o", tmp_path / ("n" * 300 + ".mp4"))
    assert code == 1
    assert "too long" in one_sentence(said)


def test_names_are_shown_as_they_are(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out, "width", 300)
    names = [":smile:[red].mp4", "h:m:s [x].mp4"]
    for name in names:
        code, said = call("enhance", video, "-o", tmp_path / name, "--end", "0.1", "--model", "passthrough")
        assert (code, name in said) == (0, True), said
    assert names[0] in one_sentence(call("enhance", video, "-o", tmp_path / names[0])[1])
    assert names[1] in call("inspect", tmp_path / names[1])[1]


def test_help_shows_times_and_no_emoji() -> None:
    said = call("enhance", "--help")[1]
    assert "\u24c2" not in said  # what rich makes of ":m:"


def test_facts_reach_any_pipe(video: Path, tmp_path: Path) -> None:
    source = tmp_path / "h\u00fclle \u65e5\u672c.mp4"
    shutil.copy(video, source)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    for form in (["--json"], []):
        done = run("inspect", source, "--end", "0.1", *form, env=environment)
        assert done.returncode == 0, done.stderr
        assert not form or json.loads(done.stdout)["path"] == str(source)


def test_a_sheet_is_a_png_beside_the_input_and_refused_before_the_work(
    face_picture: np.ndarray, tmp_path: Path
) -> None:
    source = tmp_path / "in.png"
    Image.fromarray(face_picture).save(source)
    before = source.read_bytes()
    for sheet, code in ((tmp_path / "s.jpg", 2), (source, 2), (tmp_path / "none" / "s.png", 1)):
        found, said = call("inspect", source, "--sheet", sheet)
        assert found == code
        one_sentence(said)
    assert source.read_bytes() == before
    assert list(tmp_path.iterdir()) == [source]


def test_warnings_look_like_warnings(face_picture: np.ndarray, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "deep.png"), face_picture.astype(np.uint16) * 257)
    code, said = call("enhance", tmp_path / "deep.png", "-o", tmp_path / "out.jpg", "--model", "passthrough")
    assert code == 0
    assert "warning: " in said
    assert "16 bits" in said


def test_without_restoration_nothing_is_said_about_faces_in_the_input(video: Path, tmp_path: Path) -> None:
    said = call("enhance", video, "-o", tmp_path / "out.mp4", "--strength", "0", "--end", "0.1")[1]
    assert "no face restored" in said


def test_each_face_of_each_picture_is_someone(face_picture: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(face_picture).save(tmp_path / "in" / name)
    report = streamfix.enhance(tmp_path / "in", tmp_path / "out", model="passthrough")
    assert (report.faces, len(report.tracks)) == (2, 2)


def test_pulling_what_is_embedded() -> None:
    code, said = call("models", "pull", "lite")
    assert code == 1
    assert "embedded" in one_sentence(said)


def test_the_list_of_models_shows_whole_paths() -> None:
    said = call("models", "list")[1]
    assert "\u2026" not in said


def test_a_thread_that_cannot_begin_says_so() -> None:
    with pytest.raises(TypeError):
        next(prefetch(3, 1))  # type: ignore[arg-type]


def test_an_output_that_exists_is_told_before_a_model_is_loaded(video: Path, tmp_path: Path) -> None:
    (tmp_path / "there.mp4").write_bytes(b"mine")
    code, said = call("enhance", video, "-o", tmp_path / "there.mp4", "--model", tmp_path / "no-such-model")
    assert (code, "exists already" in said) == (1, True), said


def test_a_picture_of_an_inspection_replaces_nothing_unasked(video: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.png"
    mine.write_bytes(b"mine")
    for option in ("--sheet", "--curves"):
        code, said = call("inspect", video, option, mine)
        assert (code, "exists already" in said) == (1, True), said
        assert mine.read_bytes() == b"mine"
    assert call("inspect", video, "--sheet", mine, "--overwrite")[0] == 0
    assert mine.read_bytes() != b"mine"


def test_a_sheet_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    for name in ("there.png", "broken.png"):
        (tmp_path / name).write_bytes(b"no picture")
    for sheet, code, told in (("sheet.jpg", 2, "call it .png"), ("there.png", 1, "exists already")):
        # what is wrong with the picture would be told next
        found, said = call("compare-params", tmp_path / "broken.png", "-o", tmp_path / sheet)
        assert (found, told in said) == (code, True), said


def test_seeds_of_trainings_begin_at_0(tmp_path: Path) -> None:
    for kind in ("lite", "interlcm", "nano-autoencoder", "nano-consistency", "decoder"):
        code, said = call("train", kind, "--data", tmp_path, "--seed", -1)
        assert (code, "greater than" in said) == (2, True), said
