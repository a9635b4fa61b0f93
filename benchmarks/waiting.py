"""How much of an epoch a training waits for its pictures: reading the pixel cache, augmenting, expanding grey.

The second epoch of `finetune` and of `baseline`, from its first step to the end of its last. What counts as waiting is what the
training's own thread spends in the calls that give it pixels, whoever works behind them.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import phantoms, write_vit_b_32
from benchmarks.results import Result

import thoraclip
from thoraclip.methods.contrast import Contrast
from thoraclip.methods.supervised import Supervised
from thoraclip.models.dual_encoder import DualEncoder

SHARE = 0.1
BATCH, CHUNK, EPOCHS = 32, 16, 2


@dataclass
class Clock:
    """Where the thread of a training is: in a step, and in a step in a call for pixels."""

    steps: list[tuple[float, float, float]] = field(default_factory=list)
    """(began, ended, seconds of it in calls for pixels) of every step."""
    _waited: float = 0.0
    _depth: int = 0

    def step(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """`work`, a step, timed."""

        def timed(*arguments: Any) -> Any:
            self._waited, began = 0.0, time.perf_counter()
            found = work(*arguments)
            self.steps.append((began, time.perf_counter(), self._waited))
            return found

        return timed

    def pixels(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """`work`, which gives pixels, timed in the main thread; calls inside of it are part of it."""

        def timed(*arguments: Any, **settings: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                return work(*arguments, **settings)
            self._depth, began = self._depth + 1, time.perf_counter()
            try:
                return work(*arguments, **settings)
            finally:
                self._depth -= 1
                if not self._depth:
                    self._waited += time.perf_counter() - began

        return timed

    def second_epoch(self) -> tuple[float, float]:
        """(share of it spent waiting, its seconds)."""
        steps = self.steps[len(self.steps) // EPOCHS :]
        whole = steps[-1][1] - steps[0][0]
        return sum(waited for *_, waited in steps) / whole, whole


def watched(train: Callable[[], object], trainee: type, doors: list[tuple[type, str]]) -> tuple[float, float]:
    """`Clock.second_epoch` of a training whose class and calls for pixels are exchanged for timed ones."""
    clock, before = Clock(), [(owner, name, getattr(owner, name)) for owner, name in [(trainee, "backward"), *doors]]
    try:
        for owner, name, work in before:
            setattr(owner, name, clock.step(work) if name == "backward" else clock.pixels(work))
        train()
    finally:
        for owner, name, work in before:
            setattr(owner, name, work)
    return clock.second_epoch()


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """LoRA on, and the whole of, a random ViT-B/32 at 224 pixels; with `quick` tiny-clip."""
    model = "tiny-clip" if quick else write_vit_b_32(work / "vit-b-32")
    manifest = phantoms(work, 60 if quick else 240)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        out = Path(folder)
        settings = {
            "model": model,
            "batch_size": BATCH,
            "chunk_size": CHUNK,
            "epochs": EPOCHS,
            "pixels": work / "pixels",
        }
        found = {
            "finetune": watched(
                lambda: thoraclip.finetune(manifest, out=out / "finetune", **settings), Contrast,
                [(Contrast, "_images_of"), (DualEncoder, "expand")],
            ),
            "baseline": watched(
                lambda: thoraclip.baseline(manifest, out=out / "baseline", **settings), Supervised, [(Supervised, "_pixels")]
            ),
        }  # fmt: skip
    return [
        Result(
            f"{name}, share of the second epoch without pixels", share, SHARE, f"the epoch, {whole:.1f} s", share * whole, "s",
            higher_is_better=False,
        )
        for name, (share, whole) in found.items()
    ]  # fmt: skip
