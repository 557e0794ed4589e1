"""Make the sample: a talking, blinking face as a clean clip and as an old webcam would have recorded it.

    python tools/make_sample.py --out samples --seed 7

The only picture it needs is `skimage.data.astronaut()` (Eileen Collins, NASA, public domain), which lies in scikit-image's wheel.
Every frame is that portrait looked up through one smooth backward warp (camera, breathing, head, jaw, eyelids), so
there is no mask that could leave a seam, and motion is a function of time and seed alone.
"""

from __future__ import annotations

import argparse
import io
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
import skimage.data

Array = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]
Clip = list[Image]

WIDTH, HEIGHT, FPS, SECONDS = 640, 360, 25, 7
FRAMES = FPS * SECONDS
RATE = 48_000
WEBCAM_SIZE, WEBCAM_BIT_RATE = (256, 144), 70_000

# Places in the 512x512 portrait, x y in pixels, read off it by eye.
CAMERA, ZOOM = (246.0, 138.0), 1.33
NECK, HEAD, FACE, MOUTH_X = (224.0, 196.0), (227.0, 98.0), (224.0, 120.0), 223.0
TEETH = ((203, 140), (222, 149.4), (243, 141))  # lower edge of the teeth
LIDS = (  # per eye: upper margin (above the lashes), lower margin
    (((192, 99.5), (203, 95.5), (213, 102.5)), ((192, 101.5), (204, 104.4), (213, 103.8))),
    (((236, 104.0), (248, 98.2), (259.5, 102.5)), ((236, 105.5), (247, 106.6), (259.5, 103.8))),
)
LASHES = 2.0  # thickness of the lash line, which travels with the lid instead of being squeezed


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """Everything that moves, at one instant; lengths in portrait pixels, angles in radians."""

    camera: tuple[float, float]
    zoom: float
    camera_roll: float
    parallax: float
    breath: float
    shift: tuple[float, float]
    roll: float
    scale: float
    turn: tuple[float, float]  # how far the nose goes sideways and down
    lids: float  # 0 open .. 1 closed
    jaw: float  # opening of the mouth
    smile: float


def smoothstep(low: float, high: float, x: Array) -> Array:
    """0 below low, 1 above high, smooth in between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def curve(points: tuple[tuple[float, float], ...], x: Array) -> Array:
    """The parabola through three points, at x."""
    xs, ys = zip(*points, strict=True)
    return np.polyval(np.polyfit(xs, ys, 2), x).astype(np.float32)


def wander(rng: np.random.Generator, slowest: float) -> npt.NDArray[np.float64]:
    """A smooth path of about unit size, (FRAMES,): four sines whose speed rises as their size falls."""
    t = np.arange(FRAMES) / FPS
    waves = [
        np.sin(2 * np.pi * (slowest * k * rng.uniform(0.85, 1.15) * t + rng.uniform())) / k
        for k in (1.0, 1.9, 2.8, 4.3)
    ]
    return np.sum(waves, axis=0) / 1.3


def syllables(rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """What is hummed: (start s, length s, pitch Hz) of each syllable, in three phrases with rests between."""
    scale = 196.0 * 2 ** (np.array([0, 2, 4, 7, 9, 12]) / 12)
    notes, step = [], 2
    for start, count in ((0.6, 5), (2.8, 6), (5.2, 5)):
        for k in range(count):
            step = int(np.clip(step + rng.integers(-2, 3), 0, len(scale) - 1))
            notes.append((start + 0.28 * k, 0.26 if k < count - 1 else 0.5, float(scale[step])))
    return notes


def blinks(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """How far the lids are closed in each frame: down in 0.1 s, shut for one or two frames, up in 0.2 s."""
    closed = np.zeros(FRAMES)
    for start in np.array([0.9, 2.6, 4.1, 4.55, 6.1]) + rng.uniform(-0.15, 0.15, 5):
        t = np.arange(FRAMES) / FPS - start
        shape = np.interp(t, [0, 0.05, 0.10, 0.16, 0.22, 0.30, 0.38], [0, 0.5, 1, 1, 0.55, 0.15, 0])
        closed = np.maximum(closed, shape)
    return closed


def motion(seed: int) -> list[Pose]:
    """The pose of every frame."""
    rng = np.random.default_rng(seed)
    t = np.arange(FRAMES) / FPS
    jaw = np.zeros(FRAMES)
    for start, length, _ in syllables(np.random.default_rng(seed + 1)):
        phase = np.clip((t - start + 0.05) / (length + 0.08), 0, 1)
        jaw = np.maximum(jaw, np.sin(np.pi * phase) ** 1.5 * rng.uniform(2.2, 4.0))
    lids = blinks(rng)
    slow = {name: wander(rng, 0.16) for name in ("cx", "cy", "zoom", "croll", "x", "y", "roll", "scale", "smile")}
    turn_x, turn_y = wander(rng, 0.22), wander(rng, 0.27)
    return [
        Pose(
            camera=(CAMERA[0] + 3.0 * slow["cx"][i], CAMERA[1] + 2.0 * slow["cy"][i]),
            zoom=ZOOM * (1 + 0.012 * slow["zoom"][i]),
            camera_roll=0.008 * slow["croll"][i],
            parallax=-2.0 * slow["cx"][i],
            breath=1.4 * np.sin(2 * np.pi * 0.3 * t[i]),
            shift=(3.5 * slow["x"][i], 1.5 * slow["y"][i]),
            roll=0.055 * slow["roll"][i],
            scale=1 + 0.015 * slow["scale"][i],
            turn=(5.0 * turn_x[i], 3.0 * turn_y[i] + 0.35 * jaw[i]),
            lids=float(lids[i]),
            jaw=float(jaw[i]),
            smile=0.8 * slow["smile"][i] - 0.25 * jaw[i],
        )
        for i in range(FRAMES)
    ]


def move_head(x: Array, y: Array, pose: Pose) -> tuple[Array, Array]:
    """The head leans on its neck by a similarity, then turns: what is near the camera goes further than the outline."""
    # the plateau holds all the hair; the slope lies in the plain backdrop, where stretching cannot be seen
    far = np.hypot((x - HEAD[0]) / 80, (y - HEAD[1]) / 92)
    weight = (1 - smoothstep(1.02, 1.75, far)) * (1 - smoothstep(160, 212, y))
    cos, sin = np.cos(-pose.roll) / pose.scale, np.sin(-pose.roll) / pose.scale
    dx, dy = x - NECK[0] - pose.shift[0], y - NECK[1] - pose.shift[1]
    x, y = (
        x + weight * (cos * dx - sin * dy + NECK[0] - x),
        y + weight * (sin * dx + cos * dy + NECK[1] - y),
    )
    r2 = ((x - FACE[0]) / 72) ** 2 + ((y - FACE[1]) / 82) ** 2
    depth = np.clip(1 - r2, 0, None) ** 1.5  # a smooth stand-in for the front of an ellipsoid
    return x - pose.turn[0] * depth, y - pose.turn[1] * depth


def move_mouth(x: Array, y: Array, pose: Pose) -> tuple[Array, Array, Array]:
    """Lower lip and chin sink, corners widen; also returns how deep in the open mouth each pixel lies, 0..1."""
    around = np.exp(-(((x - MOUTH_X) / 30) ** 2) - ((y - 143) / 16) ** 2)
    x = x - pose.smile * around * (x - MOUTH_X) / 20
    across = np.clip(1 - ((x - MOUTH_X) / 19.5) ** 2, 0, None)
    lip = curve(TEETH, x)
    # the lip moves as far as the jaw opens, the chin half as far, the collar not at all
    below = y - lip
    chin = np.clip(1 - ((x - MOUTH_X) / 48) ** 2, 0, None) ** 2
    fall = 1 - smoothstep(0, 46, below)
    drop = pose.jaw * np.where(below > 0, 0.35 * chin * fall + 0.65 * across * (1 - smoothstep(2, 26, below)), 0)
    inside = np.clip(np.minimum(below + 0.3, drop - below), 0, 1) if pose.jaw > 0 else np.zeros_like(x)
    return x, np.where(below > 0, np.maximum(y - drop, lip), y), inside


def move_lids(x: Array, y: Array, closed: float) -> tuple[Array, Array]:
    """Rows to look up so that the upper lids come down by `closed`; also returns the shade under the lashes, 0..1.

    Skin stretches from the fold down, lashes ride along, and the eye stays where it is behind them.
    """
    shade = np.zeros_like(x)
    for upper, lower in LIDS:
        top, bottom = curve(upper, x), curve(lower, x)
        drop = closed * np.clip(bottom - top - LASHES - 0.3, 0, None)
        drop *= (x > upper[0][0]) & (x < upper[2][0])
        fold, edge = top - 5.5, top + drop + LASHES
        skin = fold + (y - fold) * (top - fold) / (top + drop - fold)
        # right below the lashes the eye is squeezed for a pixel or two: a jump in the map would show as jagged pixels
        squeeze = np.maximum(3, (bottom - top - LASHES) / np.maximum(bottom - edge, 0.2))
        eye = np.minimum(y, top + LASHES + (y - edge) * squeeze)
        moved = np.where(y < top + drop, skin, np.where(y < edge, y - drop, eye))
        shade = np.maximum(shade, (drop > 0) * np.clip(1 - np.abs(y - edge) / 1.5, 0, 1) * 0.75 * closed)
        y = np.where((drop > 0) & (y > fold) & (y < bottom), moved, y)
    return y, shade


def light(i: int, seed: int) -> Array:
    """Gain of every pixel and channel (HEIGHT, WIDTH, 3): drifting daylight, and a lamp on the right that blinks."""
    rng = np.random.default_rng(seed + 2)
    drift, warm, hum = wander(rng, 0.12)[i], wander(rng, 0.15)[i], wander(rng, 2.9)[i]
    lamp = np.interp(
        i / FPS, [0, 3.3, 3.36, 3.44, 3.5, 3.6, 3.68, 3.8, 6.4, 6.8, 7], [1, 1, 0, 0, 1, 1, 0.2, 1, 1, 0.5, 0.5]
    )
    x = np.linspace(0, 1, WIDTH, dtype=np.float32)[None, :, None]
    y = np.linspace(0, 1, HEIGHT, dtype=np.float32)[:, None, None]
    room = 0.86 + 0.05 * drift + 0.008 * hum
    return ((room + 0.16 * lamp * x * (1 - 0.3 * y)) * (1 + 0.02 * warm * np.array([1, 0, -1]))).astype(np.float32)


def portrait() -> Image:
    """The portrait with a mirrored margin, so that no camera move can see past its edge."""
    return cv2.copyMakeBorder(skimage.data.astronaut(), 64, 0, 64, 64, cv2.BORDER_REFLECT_101)


def render(source: Image, pose: Pose, gain: Array) -> Image:
    """One clean frame, uint8 (HEIGHT, WIDTH, 3) RGB."""
    x, y = np.meshgrid(np.arange(WIDTH, dtype=np.float32), np.arange(HEIGHT, dtype=np.float32))
    x, y = (x - (WIDTH - 1) / 2) / pose.zoom, (y - (HEIGHT - 1) / 2) / pose.zoom
    cos, sin = np.cos(pose.camera_roll), np.sin(pose.camera_roll)
    x, y = cos * x - sin * y + pose.camera[0], sin * x + cos * y + pose.camera[1]
    x = x + pose.parallax * smoothstep(110, 200, np.abs(x - NECK[0]))
    y = y + pose.breath * smoothstep(175, 260, y)
    x, y = move_head(x, y, pose)
    x, y, inside = move_mouth(x, y, pose)
    y, shade = move_lids(x, y, pose.lids)
    picture = cv2.remap(source, (x + 64).astype(np.float32), (y + 64).astype(np.float32), cv2.INTER_LANCZOS4)
    dark = cv2.GaussianBlur(np.maximum(inside, shade).astype(np.float32), (0, 0), 0.7)[..., None]
    lit = (picture * (1 - dark) + np.float32([62, 24, 22]) * dark) * gain
    return np.clip(np.rint(lit), 0, 255).astype(np.uint8)


def clean_clip(seed: int) -> Clip:
    """All clean frames."""
    source = portrait()
    return [render(source, pose, light(i, seed)) for i, pose in enumerate(motion(seed))]


def webcam_sensor(frame: Image, i: int, seed: int) -> Image:
    """What a small cheap camera sees, uint8 RGB of WEBCAM_SIZE: dim, soft, noisy (anew in each frame), oversharpened."""
    rng = np.random.default_rng((seed, i))
    soft = cv2.GaussianBlur(frame, (0, 0), 1.6).astype(np.float32)
    small = cv2.resize(soft, WEBCAM_SIZE, interpolation=cv2.INTER_AREA) / 255
    small = 0.88 * small**1.08 + 0.02
    shot = rng.normal(0, 1, small.shape[:2]).astype(np.float32)[..., None] * np.sqrt(0.0002 + 0.0006 * small)
    # chroma noise is coarse: such sensors interpolate colour from few pixels
    blotch = cv2.resize(
        rng.normal(0, 0.015, (36, 64, 3)).astype(np.float32), WEBCAM_SIZE, interpolation=cv2.INTER_CUBIC
    )
    noisy = small + shot + blotch
    sharp = noisy + 0.35 * (noisy - cv2.GaussianBlur(noisy, (0, 0), 1.2))
    return np.clip(np.rint(sharp * 255), 0, 255).astype(np.uint8)


def degrade(frames: Clip, seed: int) -> Clip:
    """The webcam's recording, at full size again: sensor, starved H.264, and the blur of scaling up."""
    small = [webcam_sensor(frame, i, seed) for i, frame in enumerate(frames)]
    starved = io.BytesIO()
    rate = {"preset": "veryfast", "profile": "baseline", "g": "50", "maxrate": str(WEBCAM_BIT_RATE), "bufsize": "90k"}
    encode(starved, small, options=rate, bit_rate=WEBCAM_BIT_RATE)
    starved.seek(0)
    with av.open(starved) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return [cv2.resize(frame, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) for frame in decoded]


def sound(seed: int) -> npt.NDArray[np.float32]:
    """The hummed tune, (RATE * SECONDS,) in [-1, 1]: a buzz through three vowel resonances per syllable."""
    rng = np.random.default_rng(seed + 1)
    tune = np.zeros(RATE * SECONDS)
    vowels = ((730, 1090, 2440), (530, 1840, 2480), (570, 840, 2410), (440, 1020, 2240))  # formants of a, e, o, u in Hz
    for start, length, pitch in syllables(rng):
        t = np.arange(int(RATE * length)) / RATE
        phase = 2 * np.pi * (pitch * t - 0.004 * pitch * np.cos(2 * np.pi * 5.5 * t) / (2 * np.pi * 5.5))
        vowel = vowels[rng.integers(len(vowels))]
        harmonics = pitch * np.arange(1, 20)
        weight = sum(1 / (1 + ((harmonics - f) / (60 + 0.06 * f)) ** 2) / (k + 1) for k, f in enumerate(vowel))
        voice = sum(w / (k + 1) ** 0.5 * np.sin((k + 1) * phase) for k, w in enumerate(weight + 0.03))
        first = int(RATE * start)
        tune[first : first + len(t)] += voice * np.sin(np.pi * np.clip(t / length, 0, 1)) ** 0.7
    room = rng.normal(0, 0.002, len(tune))
    return (0.5 * tune / np.abs(tune).max() + room).astype(np.float32)


def encode(
    target: str | io.BytesIO,
    frames: Clip,
    *,
    options: dict[str, str],
    bit_rate: int | None = None,
    audio: npt.NDArray[np.float32] | None = None,
) -> None:
    """Write an MP4: H.264 4:2:0, limited-range BT.709, constant frame rate, with AAC sound where given."""
    # faststart reads the file again after writing it, which a buffer in memory does not allow
    movflags = {"movflags": "+faststart"} if isinstance(target, str) else {}
    with av.open(target, "w", format="mp4", options=movflags) as container:
        video = container.add_stream("libx264", rate=FPS, options=options)
        context = video.codec_context
        context.width, context.height, context.pix_fmt = frames[0].shape[1], frames[0].shape[0], "yuv420p"
        context.thread_count = 1  # x264's bits depend on the number of threads
        context.colorspace, context.color_primaries, context.color_trc, context.color_range = 1, 1, 1, 1
        if bit_rate:
            context.bit_rate = bit_rate
        voice = container.add_stream("aac", rate=RATE, layout="mono", bit_rate=64_000) if audio is not None else None
        for i, image in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=1, dst_color_range=1, interpolation="BICUBIC"
            )
            picture.colorspace, picture.color_primaries, picture.color_trc, picture.color_range = 1, 1, 1, 1
            picture.pts, picture.time_base = i, Fraction(1, FPS)
            container.mux(video.encode(picture))
            if voice is not None and audio is not None:
                samples = audio[i * RATE // FPS : (i + 1) * RATE // FPS][None]
                block = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
                block.sample_rate, block.pts, block.time_base = RATE, i * RATE // FPS, Fraction(1, RATE)
                container.mux(voice.encode(block))
        container.mux(video.encode(None))
        if voice is not None:
            container.mux(voice.encode(None))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("samples"), help="folder for the two clips (default: samples)")
    parser.add_argument("--seed", type=int, default=7, help="another seed, another performance (default: 7)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    clean, tune = clean_clip(args.seed), sound(args.seed)
    clips = {"webcam_clean.mp4": (clean, "18"), "webcam.mp4": (degrade(clean, args.seed), "20")}
    for name, (frames, crf) in clips.items():
        path = args.out / name
        encode(str(path), frames, options={"crf": crf, "preset": "slow"}, audio=tune)
        print(f"{path}: {len(frames)} frames, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
