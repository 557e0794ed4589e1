"""The live way to drive the stages: latency under load, order, drops, failures, carried detail, the engine."""

import asyncio
import threading
import time
from fractions import Fraction
from types import SimpleNamespace

import av
import av.error
import numpy as np
import pytest
import torch

from streamfix.errors import ModelError, UsageError
from streamfix.faces.detect import load_detector
from streamfix.media.source import open_source
from streamfix.restore.base import Restorer, load_restorer
from streamfix.restore.effort import Effort
from streamfix.serve import detail as detail_module
from streamfix.serve.detail import Detail
from streamfix.serve.encode import VideoEncoder
from streamfix.serve.engine import Engine, Settings
from streamfix.serve.figures import Figures
from streamfix.serve.governor import Governor, Plan
from streamfix.serve.levels import Receiver
from streamfix.serve.models import Memory, Models
from streamfix.serve.scheduler import Scheduler
from streamfix.serve.viewers import Rung
from streamfix.types import Crop, Frame, Placement

SAMPLE = "samples/webcam.mp4"


def frame(number: int, rate: int = 30) -> Frame:
    return Frame(picture=av.VideoFrame(16, 16, "gray"), index=number, pts=number, time_base=Fraction(1, rate))


class Timed:
    """Stages that take the time they are told to."""

    def __init__(self, look: float, finish: float) -> None:
        self.times = look, finish
        self.flying = self.most = 0
        self.lock = threading.Lock()

    def look(self, frame):
        with self.lock:
            self.flying += 1
            self.most = max(self.most, self.flying)
        time.sleep(self.times[0])
        return frame

    def finish(self, looked):
        time.sleep(self.times[1])
        with self.lock:
            self.flying -= 1
        return looked


def drive(stages, *, frames: int, rate: float = 30.0):
    """Feed frames in real time; gives (frame, latency) in order of delivery, and the figures.

    A stall of the machine delays the frames after it: made up for, they would come all at once, and be dropped rightly.
    """
    figures, out, errors = Figures(), [], []
    scheduler = Scheduler(
        stages,
        deliver=lambda done, arrived: out.append((done, time.monotonic() - arrived)),
        fail=errors.append,
        figures=figures,
    )
    for number in range(frames):
        scheduler.submit(frame(number))
        time.sleep(1 / rate)
    time.sleep(2.5 * sum(stages.times) + 0.1)
    scheduler.stop()
    assert not errors
    return out, figures


def test_a_slow_restorer_does_not_make_latency_grow_and_drops_are_counted():
    stages = Timed(0.015, 0.2)
    out, figures = drive(stages, frames=180)
    latencies = [latency for _, latency in out]
    half = len(latencies) // 2
    assert np.median(latencies[half:]) <= 1.2 * np.median(latencies[1:half])
    assert np.median(latencies) < 0.2 + 0.015 + 0.1  # the work; never the length of a queue
    assert len(out) + figures.drops["superseded"] == 180
    assert figures.drops["superseded"] > 100
    assert stages.most <= 2
    numbers = [done.pts for done, _ in out]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 179  # the latest frame wins


@pytest.mark.parametrize("stands", ["look", "finish", "deliver"])
def test_handing_in_a_frame_never_waits_for_the_work(stands):
    """Whatever of the work stands still, for ever if need be, the source goes on: no time limit says so, the gate does."""
    gate, reached, out = threading.Event(), threading.Event(), []

    def wait():
        reached.set()
        assert gate.wait(60)

    class Standing(Timed):
        def look(self, frame):
            return (wait() if stands == "look" else None) or frame

        def finish(self, looked):
            return (wait() if stands == "finish" else None) or looked

    def deliver(done, _arrived):
        if stands == "deliver" and not gate.is_set():
            wait()
        out.append(done.pts)

    figures = Figures()
    scheduler = Scheduler(Standing(0, 0), deliver=deliver, fail=pytest.fail, figures=figures)
    scheduler.submit(frame(0))
    assert reached.wait(30)
    source = threading.Thread(target=lambda: [scheduler.submit(frame(n)) for n in range(1, 50)], daemon=True)
    source.start()
    source.join(30)
    assert not source.is_alive(), "a frame was kept waiting"
    assert not out
    gate.set()
    end = time.monotonic() + 30
    while 49 not in out:
        assert time.monotonic() < end
        time.sleep(0.005)
    scheduler.stop()
    assert out == sorted(out)
    assert len(out) + figures.drops["superseded"] == 50
    assert len(out) <= 4  # one in each half, one between them, the newest


def test_nothing_is_dropped_where_the_work_fits():
    out, figures = drive(Timed(0.004, 0.006), frames=45)
    assert len(out) >= 43  # a stall of the machine may cost one
    assert figures.drops["superseded"] <= 2


def test_frames_that_step_back_in_time_are_counted_and_left_out():
    figures, out = Figures(), []
    done = threading.Event()
    scheduler = Scheduler(
        Timed(0, 0), deliver=lambda f, _: (out.append(f.pts), done.set()), fail=pytest.fail, figures=figures
    )
    for pts in (5, 4, 5):
        scheduler.submit(frame(pts))
    assert done.wait(5)
    assert figures.drops["late"] == 2
    scheduler.restart()
    done.clear()
    scheduler.submit(frame(1))
    assert done.wait(5)
    scheduler.stop()
    assert out == [5, 1]
    scheduler.submit(frame(9))
    assert figures.drops["stopped"] == 1


def test_a_failure_is_told_once_and_ends_the_stream():
    class Broken(Timed):
        def finish(self, looked):
            raise ModelError("the model broke")

    figures, errors = Figures(), []
    scheduler = Scheduler(Broken(0, 0), deliver=lambda *_: None, fail=errors.append, figures=figures)
    for number in range(5):
        scheduler.submit(frame(number))
        time.sleep(0.02)
    scheduler.stop()
    assert [str(e) for e in errors] == ["the model broke"]
    assert figures.drops["stopped"] >= 1


def test_an_encoder_that_fails_is_told_whatever_it_raises(monkeypatch):
    # FFmpeg's "not implemented" and "bug" are RuntimeErrors, as is a call to an event loop that has closed
    def encode(*_args, **_options):
        raise av.error.BugError(0, "a bug in the codec")

    monkeypatch.setattr(VideoEncoder, "encode", encode)
    errors, loop = [], asyncio.new_event_loop()
    rung = Rung(
        "H264", "result", Receiver(), loop=loop, figures=Figures(), fail=errors.append, sent=lambda _bytes: None
    )
    rung.show(av.VideoFrame(64, 64, "yuv420p"), None, 0)
    rung._thread.join(10)
    loop.close()
    assert [type(e) for e in errors] == [av.error.BugError]


# --- carried detail ---------------------------------------------------------------------------------------------------


def crop(image: np.ndarray, track: int = 0) -> Crop:
    return Crop(frame_index=0, placement=Placement(track_id=track, matrix=np.eye(2, 3), strength=1.0), image=image)


def lay_until(detail: Detail, crops, ready, timeout: float = 5.0):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        result = detail.lay(crops)
        if ready(result):
            return result
        time.sleep(0.01)
    pytest.fail("the detail never came")


def test_detail_stays_on_a_still_face_and_leaves_what_has_changed():
    rng = np.random.default_rng(0)
    image = rng.random((512, 512, 3), dtype=np.float32) * 0.5
    detail = Detail(lambda crops: [c.image + np.float32(0.25) for c in crops])
    assert detail.lay([crop(image)]) == [None]
    (laid,) = lay_until(
        detail, [crop(image)], lambda r: r[0] is not None and np.allclose(r[0], image + 0.25, atol=1e-3)
    )
    opened = image.copy()
    opened[300:420, 150:350] = 0.9
    detail_only = Detail(lambda crops: [c.image + np.float32(0.25) for c in crops])
    detail_only.renew([crop(image)], [image + np.float32(0.25)])
    (laid,) = detail_only.lay([crop(opened)])
    assert np.array_equal(laid[330:390, 200:300], opened[330:390, 200:300])  # the mouth is the input's
    assert np.allclose(laid[:200], opened[:200] + 0.25, atol=1e-3)
    for d in (detail, detail_only):
        d.stop()


def test_detail_comes_although_the_model_is_done_within_every_frame(monkeypatch):
    image = np.random.default_rng(0).random((512, 512, 3), dtype=np.float32) * 0.5
    renewed, plain = threading.Event(), detail_module.small

    def slow(picture):
        if threading.current_thread() is not threading.main_thread():
            renewed.set()
        elif renewed.wait(5):  # a frame waits here until the model has given new detail
            with detail._state:
                renewed.clear()
        return plain(picture)

    monkeypatch.setattr(detail_module, "small", slow)
    detail = Detail(lambda crops: [c.image + np.float32(0.25) for c in crops])
    assert detail.lay([crop(image)]) == [None]
    assert renewed.wait(5)
    with detail._state:
        renewed.clear()
    laid = [detail.lay([crop(image)])[0] for _ in range(12)]
    assert np.allclose(laid[-1], image + 0.25, atol=1e-3)
    detail.stop()


def test_detail_that_was_under_way_when_all_was_forgotten_is_forgotten_too():
    image = np.random.default_rng(0).random((512, 512, 3), dtype=np.float32) * 0.5
    running, go = threading.Event(), threading.Event()

    def restore(crops):
        running.set()
        go.wait(5)
        return [c.image + np.float32(0.25) for c in crops]

    detail = Detail(restore)
    detail.lay([crop(image)])
    assert running.wait(5)
    detail.clear()
    go.set()
    time.sleep(0.1)
    assert detail.lay([crop(image)])[0] is None
    detail.renew([crop(image)], [image + np.float32(0.25)])
    detail.clear()
    assert detail.lay([crop(image)])[0] is None
    detail.stop()


def test_a_model_that_was_off_knows_nothing_of_the_faces_before():
    work = engine(Plan(fresh=False))
    with open_source(SAMPLE) as source:
        for _, entry in zip(range(14), source, strict=False):
            looked = work.look(entry)
            work.finish(looked)
    (face,) = looked.crops
    lay_until(work._detail, [face], lambda r: r[0] is not None)
    memory = work._memory
    work.change(Settings(model="passthrough"))
    work.change(Settings())
    assert work._detail.lay([face])[0] is None  # another face may bear its number now
    assert work._memory is not memory
    work.stop()


def test_the_face_that_has_waited_longest_is_restored_first():
    calls = []

    def restore(crops):
        calls.append([c.placement.track_id for c in crops])
        return [c.image for c in crops]

    detail = Detail(restore, at_once=1)
    image = np.zeros((512, 512, 3), np.float32)
    lay_until(detail, [crop(image, t) for t in (1, 2, 3)], lambda r: len(calls) >= 6)
    detail.stop()
    assert {c[0] for c in calls[:3]} == {1, 2, 3}


def test_a_failing_model_is_raised_not_hidden():
    def broken(_crops):
        raise ModelError("not a number")

    detail = Detail(broken)
    with pytest.raises(ModelError, match="not a number"):
        lay_until(detail, [crop(np.zeros((512, 512, 3), np.float32))], lambda r: False)
    detail.stop()


# --- the engine, on the sample ----------------------------------------------------------------------------------------


class Sharper:
    """A restorer whose work can be seen: fine detail is drawn seven times as strong."""

    name, sha256, device, dtype = "sharper", None, torch.device("cpu"), torch.float32

    def restore(self, crops, noise=None):
        crops = crops.float()
        return (crops + 6 * (crops - torch.nn.functional.avg_pool2d(crops, 9, 1, 4))).clamp(-1, 1)


def engine(plan: Plan, *, restorer: Restorer | None = None, **settings) -> Engine:
    models = Models({"lite": restorer or Sharper(), "passthrough": load_restorer("passthrough")})
    return Engine(
        models=models,
        detector=load_detector("retinaface", threads=1),
        settings=Settings(**settings),
        figures=Figures(),
        governor=Governor(fixed=plan),
    )


@pytest.mark.parametrize("plan", [Plan(), Plan(detect_every=3, fresh=False)], ids=["fresh", "carried"])
def test_faces_are_restored_and_the_rest_is_untouched(plan):
    work = engine(plan)
    work.keep_before = True
    changed = []
    with open_source(SAMPLE) as source:
        for number, entry in zip(range(24), source, strict=False):
            done = work.finish(work.look(entry))
            a, b = (p.to_ndarray(format="yuv420p")[:360].astype(int) for p in (done.before, done.frame.picture))
            difference = np.abs(a - b)
            assert (done.frame.pts, done.frame.time_base) == (entry.pts, entry.time_base)
            assert difference[:, :120].max() == 0
            assert difference[:, -120:].max() == 0
            changed.append(difference[100:260, 260:380].mean())
            time.sleep(0.02 if number < 20 else 0)
    work.stop()
    assert changed[0] < 0.5  # it fades in
    assert np.mean(changed[-4:]) > 2


class Gain(Sharper):
    """With a cheaper way to run, and detail drawn so many times stronger as it is told."""

    def __init__(self, gain: float = 6.0) -> None:
        self.gain = gain

    def cheaper(self):
        return [Effort(restorer=Gain(2.0), share=0.5, words="a third of the detail")]

    def restore(self, crops, noise=None):
        crops = crops.float()
        return (crops + self.gain * (crops - torch.nn.functional.avg_pool2d(crops, 9, 1, 4))).clamp(-1, 1)


def test_less_effort_is_what_the_model_then_does():
    image = np.random.default_rng(0).random((512, 512, 3), dtype=np.float32) * 0.1 + 0.4
    models = Models({"lite": Gain()})
    full, less = (models.restore("lite", [crop(image)], Memory(), effort=e)[0] for e in (0, 1))
    assert np.abs(full - image).mean() == pytest.approx(3 * np.abs(less - image).mean(), rel=0.1)
    work = engine(Plan(effort=1), restorer=Gain())
    assert "a third of the detail" in work.plan
    work.stop()


def test_an_effort_that_takes_time_to_ready_holds_nobody_up():
    class Slow(Gain):
        may = threading.Event()

        def prepare(self):
            readied_by.append(threading.current_thread())
            assert self.may.wait(10)

    class Whole(Gain):
        def cheaper(self):
            return [Effort(restorer=Slow(2.0), share=0.5, words="less")]

    models, readied_by = Models({"lite": Whole()}), []
    assert models.ready("lite", 0)
    asks = threading.Thread(target=models.ready, args=("lite", 1), daemon=True)  # as the stages' threads are
    asks.start()
    asks.join()
    assert not models.ready("lite", 1)  # and is readied once
    Slow.may.set()
    end = time.monotonic() + 5
    while not models.ready("lite", 1):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert [t.daemon for t in readied_by] == [False]  # the process waits for it: it aborts within native code else


def test_how_sharp_a_face_is_is_told_from_its_last_frames():
    """A model that hardly changes a face for once (a key frame of the camera) is not suddenly left out."""
    image = np.random.default_rng(0).random((512, 512, 3), dtype=np.float32) * 0.1 + 0.4
    model, memory = Gain(), Memory()
    models = Models({"lite": model})
    for _ in range(4):
        models.restore("lite", [crop(image)], memory)
    model.gain = 0.2
    assert np.abs(models.restore("lite", [crop(image)], Memory())[0] - image).mean() == 0
    assert np.abs(models.restore("lite", [crop(image)], memory)[0] - image).mean() > 0
    for _ in range(16):
        models.restore("lite", [crop(image)], memory)
    assert np.abs(models.restore("lite", [crop(image)], memory)[0] - image).mean() == 0  # it is sharp now


def test_settings_change_while_it_runs_and_wrong_ones_are_refused():
    work = engine(Plan())
    with open_source(SAMPLE) as source:
        frames = iter(source)
        for _, entry in zip(range(14), frames, strict=False):
            work.finish(work.look(entry))
        for settings, crops, faces in (
            (Settings(strength=0.0), 0, 1),
            (Settings(faces="largest"), 1, 1),
            (Settings(model="passthrough"), 0, 0),  # nothing to restore, nothing to look for
        ):
            work.change(settings)
            looked = work.look(next(frames))
            assert len(looked.crops) == crops
            assert work.finish(looked).faces == faces
        work.change(Settings())
        assert any(work.look(next(frames)).crops for _ in range(8))
    for wrong in ({"model": "none"}, {"faces": "/etc/passwd"}):
        with pytest.raises(UsageError):
            work.change(Settings(**wrong))
    with pytest.raises(UsageError):
        Settings(strength=1.5)
    work.stop()


def test_figures_are_of_the_last_seconds():
    now = SimpleNamespace(time=0.0)
    figures = Figures(clock=lambda: now.time)
    for _ in range(90):
        now.time += 1 / 30
        figures.came()
        figures.went(0.1, faces=1)
    facts = figures.facts()
    assert facts["fps"] == pytest.approx(30, abs=0.5)
    assert facts["latency_p50_ms"] == 100
    assert figures.interval == pytest.approx(1 / 30)
    now.time += 10
    assert figures.facts()["fps"] == 0
    assert figures.latency(0.5) is None
