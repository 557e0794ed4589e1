"""Inference with the embedded network: the fastest path that keeps a face the same whoever else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from streamfix.allocator import keep_freed
from streamfix.models import embedded, sha256_of
from streamfix.restore.base import check_crops, fast_bfloat16
from streamfix.restore.color_fix import keep_grey
from streamfix.restore.effort import Effort
from streamfix.restore.lite.checkpoint import empty_net, read_checkpoint
from streamfix.restore.lite.openvino_engine import OpenVinoNet, available
from streamfix.restore.lite.registration import registered, remembered
from streamfix.types import CROP_SIZE

WEIGHTS = "lite.safetensors"

INNER = {384: (80, 64), 256: (160, 128)}
"""Windows of a crop that may stand for it where time is short: side -> (y, x) of the top left corner, multiples of 16.

Side 384 holds the face from brow to chin, 256 eyes, nose and mouth; docs/live.md has what each costs and gains. With an earlier
training the whole crop scaled down to those sizes was worse than they: blurred where windows are as sharp as ever.
"""
_SHARE = {384: 1.0, 256: 0.9}
"""How much of a window's change is taken. Without surroundings the smaller one overdoes it: on 10 validation faces its mean change was
18 % (published degradation) and 31 % (footage) above that of the whole crop, which would show whenever the effort is changed. Taking 0.9
of it costs 2 % of LPIPS.
"""
_TOGETHER = 4
"""Faces that one call of the network restores at most. Eight in half precision took an H200 25 ms, four 5.6 (PyTorch 2.11, cuDNN
without benchmarks; in float32 11.7 and 7.4)."""
_RIM = 32
"""Pixels over which a window fades into the crop around it."""


class LiteRestorer:
    """The small U-Net behind the Restorer protocol; takes no noise.

    path: a weight file, or None for the embedded one, whose sha256 is checked. dtype: None picks bfloat16 on CPUs with
    instructions for it, half precision on GPUs, float32 else. openvino: run float32 on a CPU through OpenVINO; None does
    where it is installed (in bfloat16 torch was faster). `engine` says what runs. It never depends on a measurement, so
    one machine gives one answer.
    """

    name = "lite"
    recurrent_by_default = False
    """It steadies, but softens a face that talks a little, and takes as long again (weights/README.md has figures)."""

    def __init__(
        self,
        path: Path | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        openvino: bool | None = None,
    ) -> None:
        file = embedded(WEIGHTS) if path is None else path
        self.device = device or torch.device("cpu")
        if dtype is None:
            fast = torch.bfloat16 if fast_bfloat16() else torch.float32
            dtype = (
                fast if self.device.type == "cpu" else torch.float16 if self.device.type == "cuda" else torch.float32
            )
        self.dtype = dtype
        self._threads = torch.get_num_threads()
        state, config = read_checkpoint(file)
        self.sha256: str | None = sha256_of(file)
        net = empty_net(config)
        net.load_state_dict(state, assign=True)
        net.eval().requires_grad_(False)
        with torch.no_grad():
            position = net.position(CROP_SIZE, CROP_SIZE)  # a constant for whole crops, computed once and in float32
            self._position = position.to(self.device).contiguous(memory_format=torch.channels_last)
        self.recurrent = config.memory > 0
        self._window: tuple[int, int, int] | None = None
        self._openvino: OpenVinoNet | None = None
        on_cpu = self.device.type == "cpu"
        if on_cpu:
            keep_freed()
        if on_cpu and dtype is torch.float32 and (available() if openvino is None else openvino):
            self._openvino = OpenVinoNet(net, position, self._threads)
            self.engine = f"OpenVINO {self._openvino.version}"
        else:
            self.engine = "channels_last"
            net = net.to(self.device, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if on_cpu and net.pack():
                self.engine = "packed weights"
        self._net = net

    def cheaper(self) -> list[Effort]:
        """See Adjustable: only the middle of the crop is restored."""
        ways = []
        for side, (y, x) in INNER.items():
            other = copy(self)
            cells = self._position[..., y // 16 : (y + side) // 16, x // 16 : (x + side) // 16]
            other._position = cells.contiguous(memory_format=torch.channels_last)
            other._window = y, x, side
            if self._openvino is not None:
                other._openvino = self._openvino.at(other._position)
            words = f"the inner {side} of {CROP_SIZE} pixels of a face"
            ways.append(Effort(restorer=other, share=(side / CROP_SIZE) ** 2, words=words))
        return ways

    def prepare(self) -> None:
        """See Preparable."""
        if self._openvino is not None:
            self._openvino.prepare()

    def restore(self, crops: Tensor, noise: Tensor | None = None) -> Tensor:
        """See Restorer; noise is ignored."""
        check_crops(crops)
        return keep_grey(self._restore(crops, None), crops)

    def restore_next(self, crops: Tensor, states: Sequence[Tensor | None]) -> tuple[Tensor, list[Tensor]]:
        """See RecurrentRestorer; a state is what registration.py says of it, float32 (4, 512, 512)."""
        check_crops(crops)
        nothing = crops.new_zeros(4, *crops.shape[2:], device="cpu")
        seen = crops.cpu()
        moved = registered(torch.stack([nothing if s is None else s for s in states]), seen)
        answers = self._restore(crops, moved[:, :3])
        return keep_grey(answers, crops), list(remembered(answers.cpu(), seen, moved))

    def _restore(self, crops: Tensor, previous: Tensor | None) -> Tensor:
        if self._window is None:
            return self._run(crops, previous)
        y, x, side = self._window
        inner = (..., slice(y, y + side), slice(x, x + side))
        before = None if previous is None else previous[inner]
        answer = self._run(crops[inner], before) - crops[inner].to(torch.float32)
        out = crops.to(torch.float32, copy=True)
        out[inner] += answer * _faded(side).to(out.device)
        return out

    def _run(self, crops: Tensor, previous: Tensor | None) -> Tensor:
        x, y = (
            t if t is None else t.to(self.device, torch.float32).contiguous(memory_format=torch.channels_last)
            for t in (crops, previous)
        )
        assert x is not None
        threads = min(self._threads, x.shape[0])
        if self._openvino is not None:
            restored = self._openvino(x, y).clamp_(-1, 1)
        elif self.device.type == "cpu" and threads > 1:
            # a face to a thread: operators that share all cores wait for each other at every layer, and stall whenever
            # decoding, detection or another program takes a core (measured: 1.5 to 3 times slower on a busy machine)
            with ThreadPoolExecutor(threads) as pool:
                restored = torch.cat(list(pool.map(self._alone, *_split(x, y, 1))))
            torch.set_num_threads(self._threads)  # else threads to come would begin with the 1 that was set last
        elif len(x) > _TOGETHER:
            restored = torch.cat(list(map(self._forward, *_split(x, y, _TOGETHER))))
        else:
            restored = self._forward(x, y)
        return restored.to(crops.device)

    def _alone(self, crop: Tensor, previous: Tensor | None) -> Tensor:
        torch.set_num_threads(1)  # the setting belongs to the calling thread
        return self._forward(crop, previous)

    @torch.no_grad()  # not inference_mode: its tensors refuse later in-place work by callers
    def _forward(self, crops: Tensor, previous: Tensor | None) -> Tensor:
        answer: Tensor = self._net(crops, previous, position=self._position)
        return answer.clamp_(-1, 1)


def _split(x: Tensor, y: Tensor | None, size: int) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    parts = torch.split(x, size)
    return parts, [None] * len(parts) if y is None else torch.split(y, size)


@cache
def _faded(side: int) -> Tensor:
    """What is taken of a window's change: its share in the middle, falling to 0 along the rim. (side, side)."""
    steps = torch.arange(side)
    edge = torch.minimum(steps + 1, side - steps).clamp(max=_RIM) / _RIM
    edge = edge * edge * (3 - 2 * edge)
    return _SHARE[side] * torch.minimum(edge[:, None], edge[None])
