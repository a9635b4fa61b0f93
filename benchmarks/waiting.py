"""How much of an epoch a training waits for its pictures: reading the pixel cache, augmenting, expanding grey.

The second epoch of `finetune` and of `baseline`, from its first step to the end of its last. What counts as waiting is what the
training's own thread spends in the calls that give it pixels, whoever works behind them.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.measure import phantoms, vit_b_32
from benchmarks.results import Result

import thoraclip
from thoraclip.methods.contrast import Contrast
from thoraclip.methods.supervised import Supervised
from thoraclip.models.dual_encoder import DualEncoder

SHARE, EPOCHS = 0.1, 2


class Clock:
    """Where the thread of a training is: in a step, and in a call for pixels."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []
        """(began, ended) of every step."""
        self.waits: list[tuple[float, float]] = []
        """The same of the calls for pixels; of calls inside of each other the outermost."""
        self._depth = 0

    def timed(self, work: Callable[..., Any], spans: list[tuple[float, float]]) -> Callable[..., Any]:
        """`work` in the main thread, noted in one of the two lists."""

        def run(*arguments: Any, **settings: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                return work(*arguments, **settings)
            self._depth, began = self._depth + (spans is self.waits), time.perf_counter()
            try:
                return work(*arguments, **settings)
            finally:
                self._depth -= spans is self.waits
                if not self._depth:
                    spans.append((began, time.perf_counter()))

        return run

    def second_epoch(self) -> tuple[float, float]:
        """(seconds of it spent waiting in its steps, all its seconds)."""
        steps = self.steps[len(self.steps) // EPOCHS :]
        waits = [(b, e) for b, e in self.waits if any(began <= b and e <= ended for began, ended in steps)]
        return sum(ended - began for began, ended in waits), steps[-1][1] - steps[0][0]


def watched(train: Callable[[], object], trainee: type, *doors: tuple[type, str]) -> tuple[float, float]:
    """`Clock.second_epoch` of a training whose class and calls for pixels are exchanged for timed ones."""
    clock = Clock()
    exchanged = [(trainee, "backward", clock.steps), *((owner, name, clock.waits) for owner, name in doors)]
    patches = [mock.patch.object(o, name, clock.timed(getattr(o, name), spans)) for o, name, spans in exchanged]
    for patch in patches:
        patch.start()
    try:
        train()
    finally:
        mock.patch.stopall()
    return clock.second_epoch()


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """LoRA on, and the whole of, a random ViT-B/32 at 224 pixels; with `quick` tiny-clip."""
    manifest = phantoms(work, 60 if quick else 240)
    settings = {"model": vit_b_32(work, quick=quick), "batch_size": 32, "chunk_size": 16, "epochs": EPOCHS}
    with tempfile.TemporaryDirectory(dir=work) as folder:

        def train(name: str) -> Callable[[], object]:
            verb = getattr(thoraclip, name)
            return lambda: verb(manifest, out=Path(folder) / name, pixels=work / "pixels", **settings)

        found = {
            "finetune": watched(train("finetune"), Contrast, (Contrast, "_images_of"), (DualEncoder, "expand")),
            "baseline": watched(train("baseline"), Supervised, (Supervised, "_pixels")),
        }
    rows = []
    for name, (waited, whole) in found.items():
        stage, against = f"{name}, share of the second epoch without pixels", f"the epoch, {whole:.1f} s"
        rows.append(Result.small(stage, waited / whole, SHARE, against, waited, "s"))
    return rows
