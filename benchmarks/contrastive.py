"""Memory and speed of contrastive steps with a gradient cache, against a plain step and a whole batch in one pass.

    python -m benchmarks.contrastive --batches 32,128,512,2048

Every batch is measured in a process of its own, so its peak memory is its own; a step has augmentation, gradient
clipping and the optimiser in it. Without --model it is a random CLIP of the shape ViT-B/32. The plain step is a batch
of one chunk, which is encoded once; it runs in turn with the cached step, and the ratio is the median over the turns. A
larger batch repeats its captions more often, each of which is encoded once; with `--captions 0` none is repeated, and
the ratio is that of the cache.

The C library keeps some of what tensors give back, more of it in a larger batch, and the peak of a process has it in
it; so memory is measured a second time with tensors from 64 KiB mapped one by one (glibc only), where the peak is what
is in use; and with as many captions as images, since a last chunk of few captions would make a larger batch look
smaller.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from benchmarks.measure import MIB, in_turn, options, ratio, seconds, vit_b_32
from benchmarks.results import Result

from thoraclip.methods.contrastive import CaptionTexts, ContrastiveStep
from thoraclip.methods.finetune import Config
from thoraclip.methods.training.processes import ProcessGroup
from thoraclip.methods.training.sampler import Sampler
from thoraclip.models.augment import Augmentation, augment
from thoraclip.models.dual_encoder import load_dual_encoder
from thoraclip.models.lora import add_lora

CLASSES = 3


class Memory:
    """Peak of the process's memory from now on."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):  # Linux forgets the peak of loading the model
            Path("/proc/self/clear_refs").write_text("5")
        self._before = psutil.Process().memory_info().rss
        self._earlier = self._peak()

    def _peak(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def read(self) -> dict[str, float]:
        """MiB: the peak, and what it added to the beginning; NaN where loading took more, which hides it."""
        peak = self._peak()
        hidden = peak <= self._earlier and self._earlier > self._before + MIB
        return {"peak": peak / MIB, "added": np.nan if hidden else max(0, peak - self._before) / MIB}


def make_step(given: argparse.Namespace) -> ContrastiveStep:
    """A step on `given.batch` synthetic pictures of three classes, its texts tokenised."""
    rng, every = np.random.default_rng(0), np.arange(given.batch)
    encoder = load_dual_encoder(given.model)
    tuned = add_lora(encoder, Config(), seed=0, train_scale=True, train_bias=False)
    greys = rng.integers(0, 256, (given.batch, *2 * [encoder.preprocess.size]), dtype=np.uint8)
    targets = rng.integers(0, CLASSES, given.batch)
    numbers = rng.integers(0, given.captions, given.batch) if given.captions else every
    captions = [f"a chest x-ray with a patchy opacity in the lower zone of both lungs, number {n}" for n in numbers]
    texts = CaptionTexts.of(every.tolist(), captions)
    config = Config(batch_size=given.batch, chunk_size=given.chunk)  # standard augmentation, seed 0
    shared = {"tuned": tuned, "greys": greys, "targets": targets, "group": ProcessGroup()}
    return ContrastiveStep(config=config, loss="unicl", logit_scale_max=100.0, texts=texts, **shared)


def stepper(contrast: ContrastiveStep, batch_size: int) -> Callable[[], None]:
    """One optimiser's step on the next batch, as `finetune` takes it."""
    config, tuned = Config(), contrast.tuned
    optimizer = torch.optim.AdamW(list(tuned.parameters.values()), lr=config.learning_rate)
    rows, numbers = np.arange(len(contrast.targets)), itertools.count()
    sampler = Sampler(rows, contrast.targets, total=len(rows), batch_size=batch_size)

    def step() -> None:
        loss = contrast.backward(sampler.batch(next(numbers)))
        norm = float(torch.nn.utils.clip_grad_norm_(tuned.parameters.values(), config.max_norm))
        if not np.isfinite(loss + norm):
            raise SystemExit(f"loss {loss}, norm of the gradient {norm}: not finite")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tuned.clamp_scale(config.logit_scale_max)

    return step


def measure_step(given: argparse.Namespace) -> dict[str, Any]:
    """Peak memory over two steps; then seconds a step, in turn with plain steps, and of the augmentation apart.

    The roles `mapped` and `whole` (a chunk as large as the batch) end with the memory.
    """
    contrast = make_step(given)
    step, memory = stepper(contrast, given.batch), Memory()
    step()
    step()
    peak = memory.read()
    if given.role != "cached":
        return peak
    plain, several = stepper(contrast, given.chunk), min(4, given.batch // given.chunk)
    plain()
    times = in_turn({"cached": step, "plain": lambda: [plain() for _ in range(several)]}, given.steps)
    pictures, samples = torch.from_numpy(contrast.greys), list(range(given.batch))
    change = partial(augment, pictures, Augmentation(), seed=0, step=0, samples=samples)
    width = contrast.tuned.encoder.encode_texts(["chest"]).shape[1]
    cached, plainly = (float(np.median(found)) for found in times.values())
    share = several * given.chunk / given.batch
    return peak | {
        "texts": len(contrast.texts.texts),
        "seconds": cached,
        "plain_seconds": plainly / several,
        "ratio": share * ratio(times["cached"], times["plain"]),
        "augmentation": seconds(change, given.steps),
        "logits": 4 * given.batch**2 / MIB,
        "representations": 2 * 4 * given.batch * width / MIB,
    }


def work(given: argparse.Namespace, **changes: object) -> dict[str, Any]:
    """What a new process measures."""
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in (vars(given) | changes).items()]
    mapping = {"MALLOC_MMAP_THRESHOLD_": "65536"} if changes["role"] == "mapped" else {}
    command = [sys.executable, "-m", "benchmarks.contrastive", *settings]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | mapping, check=True)
    return dict(json.loads(done.stdout))


def bench(work_folder: Path, *, quick: bool = False) -> list[Result]:
    """Eight chunks in a batch against one, on a random ViT-B/32: memory in use, and time an image; with `quick`
    tiny-clip."""
    chunk, many = (8, 16) if quick else (32, 256)
    model = vit_b_32(work_folder, quick=quick)
    given = argparse.Namespace(model=model, chunk=chunk, steps=1 if quick else 2, captions=40)
    small, large = (work(given, role="mapped", batch=size, captions=0)["added"] for size in (chunk, many))
    cached, batch = work(given, role="cached", batch=4 * chunk), 4 * chunk
    least = f"a batch of {chunk}, {small:,.0f} MiB added by training; the logits left out"
    rate, share = batch / cached["seconds"], cached["augmentation"] / cached["seconds"]
    grown, plain = (large - 4 * many**2 / MIB) / small, f"plain steps of {chunk}, each image encoded once"
    each = 1000 * cached["augmentation"] / batch
    return [
        Result.small(f"memory of a batch of {many} in chunks of {chunk}", grown, 1.1, least, large, "MiB"),
        Result.small(f"time an image, batch of {batch}", cached["ratio"], 1.33, plain, rate, "images/s"),
        Result.small("augmentation, share of a step", share, 0.1, "the step", each, "ms an image"),
    ]


def main() -> None:
    """`role` and `batch` are those of the processes that this one starts."""
    sizes = {"batches": "32,128,512,2048", "chunk": 32, "captions": 40, "steps": 5, "naive_up_to": 128}
    given = options(__doc__, model="", role="", batch=0, **sizes)
    if given.role:
        print(json.dumps(measure_step(given)))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or vit_b_32(Path(folder))
        for size in map(int, given.batches.split(",")):
            row = work(given, model=model, role="cached", batch=size)
            mapped = work(given, model=model, role="mapped", batch=size, captions=0)["added"]
            whole = work(given, model=model, role="whole", batch=size, chunk=size) if size <= given.naive_up_to else {}
            row |= {
                "images/s": size / row["seconds"],
                "images/s of a plain step": given.chunk / row["plain_seconds"],
                "in use, a caption an image: added": mapped,
                "in use, less the logits and the stored representations": mapped
                - row["logits"]
                - row["representations"],
            } | {f"whole batch at once: {what}": value for what, value in whole.items()}
            print(f"batch {size}: {'; '.join(f'{what} {value:,.2f}' for what, value in row.items())}", flush=True)


if __name__ == "__main__":
    main()
