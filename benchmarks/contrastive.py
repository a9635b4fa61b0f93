"""Memory and speed of contrastive steps with a gradient cache, against a plain step and a whole batch in one pass.

    python benchmarks/contrastive.py --model vit-b-32 --batches 32,128,512,2048

Every batch is measured in a process of its own, so its peak memory is its own; a step has augmentation, gradient clipping
and the optimiser in it. `vit-b-32` is a random CLIP of that shape. The plain step is a batch of one chunk, which is encoded
once; it runs in turn with the cached step, and the ratio is the median over the turns. A larger batch repeats its captions
more often, each of which is encoded once; with `--captions 0` none is repeated, and the ratio is that of the cache.

The C library keeps some of what tensors give back, more of it in a larger batch, and the peak of a process has it in it; so
memory is measured a second time with tensors from 64 KiB mapped one by one (glibc only), where the peak is what is in use;
and with as many captions as images, since a last chunk of few captions would make a larger batch look smaller.
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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import processor_name, write_vit_b_32
from benchmarks.results import Result

from thoraclip.methods.contrast import Contrast
from thoraclip.methods.finetune import Config
from thoraclip.methods.gradcache import Tower, cached_backward
from thoraclip.methods.pairs import CaptionTexts
from thoraclip.methods.processes import ProcessGroup
from thoraclip.methods.training import Batch, Sampler
from thoraclip.models.augment import augment
from thoraclip.models.dropout import KeyedDropout
from thoraclip.models.dual_encoder import load_dual_encoder
from thoraclip.models.lora import add_lora

CLASSES, MIB = 3, 2**20


class Memory:
    """Peak of memory from now on: of the allocator on CUDA, else of the process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
        else:
            with contextlib.suppress(OSError):  # Linux forgets the peak of loading the model
                Path("/proc/self/clear_refs").write_text("5")
            self._before = psutil.Process().memory_info().rss
        self._earlier = self._peak()

    def _peak(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def read(self) -> dict[str, float]:
        """MiB: the peak, and what it added to the beginning; NaN where loading took more, which hides it."""
        peak = self._peak()
        hidden = peak <= self._earlier and self._earlier > self._before + MIB
        return {"peak": peak / MIB, "added": np.nan if hidden else max(0, peak - self._before) / MIB}


def write_model(given: argparse.Namespace) -> dict[str, Any]:
    """Into the folder `given.model`: the random CLIP, with the text tower that CLIP has."""
    write_vit_b_32(Path(given.model))
    return {}


def smooth_pictures(count: int, size: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """u8[count, size, size]: random greys at 8 x 8 places, and straight lines between them."""
    pictures = np.empty((count, size, size), dtype=np.uint8)
    for picture in pictures:
        coarse = torch.from_numpy(rng.uniform(0, 255, (1, 1, 8, 8)))
        picture[:] = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")[0, 0].numpy()
    return pictures


def make_contrast(given: argparse.Namespace) -> tuple[Contrast, Batch]:
    """A step on `given.batch` synthetic pictures of three classes, its texts tokenised; and a batch of all of them."""
    rng, every = np.random.default_rng(0), np.arange(given.batch)
    config = Config(
        model=given.model, batch_size=given.batch, chunk_size=given.chunk, loss=given.loss, precision=given.precision
    )
    encoder = load_dual_encoder(given.model, precision=given.precision, device=given.device)
    tuned = add_lora(encoder, config, seed=0, train_scale=True, train_bias=given.loss == "siglip")
    greys = smooth_pictures(given.batch, encoder.preprocess.size, rng)
    targets = rng.integers(0, CLASSES, given.batch)
    numbers = rng.integers(0, given.captions, given.batch) if given.captions else every
    captions = [f"a chest x-ray with a patchy opacity in the lower zone of both lungs, number {n}" for n in numbers]
    texts = CaptionTexts.of(every.tolist(), captions)
    contrast = Contrast(config, tuned, greys, targets, np.ones(CLASSES), texts, ProcessGroup())
    assert len(contrast.tokens["input_ids"]) == len(texts.texts)
    return contrast, Batch(0, every, every)


def stepper(contrast: Contrast, batch_size: int) -> Callable[[], None]:
    """One optimiser's step on the next batch, as `finetune` takes it."""
    config, tuned = contrast.config, contrast.tuned
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


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Mean wall time of some runs, until the device has finished."""
    wait = torch.accelerator.synchronize if device.type != "cpu" else (lambda: None)
    wait()
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    wait()
    return (time.perf_counter() - began) / repeats


def in_turn(one: Callable[[], float], other: Callable[[], float], turns: int) -> tuple[float, float, float]:
    """(median of one, of the other, of their ratio one / other) over alternating runs."""
    times = np.array([(one(), other()) for _ in range(turns)])
    return float(np.median(times[:, 0])), float(np.median(times[:, 1])), float(np.median(times[:, 0] / times[:, 1]))


def measure_step(given: argparse.Namespace) -> dict[str, Any]:
    """Peak memory over two steps; then seconds a step, in turn with plain steps, and of the augmentation apart.

    The role `mapped` ends with the memory; `whole` has a chunk as large as the batch, and no plain step beside it.
    """
    contrast, batch = make_contrast(given)
    device, step = contrast.tuned.encoder.device, stepper(contrast, given.batch)
    memory = Memory(device)
    step()
    step()
    peak = memory.read()
    if given.role == "mapped":
        return peak
    if given.role == "whole":
        return peak | {"seconds": float(np.median([seconds(step, device) for _ in range(given.steps)]))}
    plain, several = stepper(contrast, given.chunk), min(4, given.batch // given.chunk)
    plain()
    cached, once, ratio = in_turn(
        lambda: seconds(step, device), lambda: seconds(plain, device, repeats=several), given.steps
    )
    pictures, samples = torch.from_numpy(contrast.greys).to(device), batch.samples.tolist()

    def change() -> None:
        augment(pictures, contrast.config, seed=0, step=0, samples=samples)

    change()
    texts, width = len(contrast.texts.texts), contrast.tuned.encoder.encode_texts(["chest"]).shape[1]
    return peak | {
        "texts": texts, "seconds": cached, "plain_seconds": once, "ratio": ratio * given.chunk / given.batch,
        "augmentation": float(np.median([seconds(change, device) for _ in range(given.steps)])),
        "logits": 4 * given.batch**2 / MIB, "representations": 2 * 4 * given.batch * width / MIB,
        "pictures": contrast.greys.nbytes / MIB,
    }  # fmt: skip


def measure_loss(given: argparse.Namespace) -> dict[str, Any]:
    """What the loss alone adds over the representations: B x B logits, targets, what the backward pass keeps and makes."""
    contrast, batch = make_contrast(given)
    device, width = contrast.tuned.encoder.device, contrast.tuned.encoder.encode_texts(["chest"]).shape[1]

    def loss_of(size: int) -> Callable[[], None]:
        some = Batch(0, batch.rows[:size], batch.samples[:size])
        numbers, inverse = contrast.texts_of(some)
        image, text = (torch.randn(n, width, device=device, requires_grad=True) for n in (size, len(numbers)))
        return lambda: contrast._loss_of(some, inverse)(image, text).backward()

    loss_of(2)()  # what PyTorch sets up once is not the loss's
    work = loss_of(given.batch)
    memory = Memory(device)
    work()
    return memory.read()


def measure_parts(given: argparse.Namespace) -> dict[str, Any]:
    """The text tower with each different caption once and with all; a step with LoRA's dropout and without it."""
    contrast, batch = make_contrast(given)
    device, every = contrast.tuned.encoder.device, contrast.texts.draw(batch)

    def texts(numbers: npt.NDArray[np.int64]) -> float:
        tower = Tower(len(numbers), contrast._texts_of(batch, numbers))
        return seconds(lambda: cached_backward((tower,), torch.sum, chunk_size=given.chunk), device)

    size = min(given.batch, 4 * given.chunk)
    step = stepper(contrast, size)
    layers = [layer for layer in contrast.tuned.encoder.model.modules() if isinstance(layer, KeyedDropout)]

    def with_dropout(probability: float) -> float:
        for layer in layers:
            layer.probability = probability
        return seconds(step, device)

    texts(every), texts(np.unique(every))
    whole, different, texts_ratio = in_turn(lambda: texts(every), lambda: texts(np.unique(every)), given.steps)
    with_dropout(0.0), with_dropout(0.1)
    *_, ratio = in_turn(lambda: with_dropout(0.0), lambda: with_dropout(0.1), given.steps)
    precision = contrast.tuned.encoder.precision
    return {
        "all_texts": whole, "different_texts": different, "texts_ratio": texts_ratio, "dropout_batch": size,
        "dropout_share": 1 - ratio, "where": f"{precision} on {device_name(device)}, torch {torch.__version__}",
    }  # fmt: skip


def device_name(device: torch.device) -> str:
    """What the maker calls it; of a CPU also the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {processor_name()}, threads: {torch.get_num_threads()}"


ROLES = {
    "model": write_model, "cached": measure_step, "mapped": measure_step, "whole": measure_step, "loss": measure_loss,
    "parts": measure_parts,
}  # fmt: skip


def work(given: argparse.Namespace, **changes: object) -> dict[str, Any]:
    """What a new process measures, also told on stderr."""
    settings = vars(given) | {"json": None} | changes
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items() if value is not None]
    mapping = {"MALLOC_MMAP_THRESHOLD_": "65536"} if changes["role"] in {"mapped", "loss"} else {}
    command, environment = [sys.executable, __file__, *options], {**os.environ, **mapping}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"failed ({done.returncode}): {' '.join(options)}")
    print(*options[-len(changes) :], done.stdout.strip(), file=sys.stderr, flush=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def print_report(given: argparse.Namespace, rows: dict[int, dict[str, Any]], parts: dict[str, Any]) -> None:
    """One column a batch size, and the single numbers below."""
    whole = {size: row["whole"] for size, row in rows.items()}
    rest = [row["mapped"] - row["logits"] - row["representations"] for row in rows.values()]
    less = [row["mapped"] - row["loss"] - row["representations"] - row["pictures"] for row in rows.values()]
    table = {
        "different captions in it": [f"{row['texts']}" for row in rows.values()],
        "images/s": [f"{size / row['seconds']:.1f}" for size, row in rows.items()],
        f"images/s of a plain step of {given.chunk}": [f"{given.chunk / row['plain_seconds']:.1f}" for row in rows.values()],
        "time an image, cached / plain": [f"{row['ratio']:.2f}" for row in rows.values()],
        "augmentation's share of the step": [f"{row['augmentation'] / row['seconds']:.3f}" for row in rows.values()],
        "peak memory; added by training": [f"{row['peak']:,.0f}; {row['added']:,.0f}" for row in rows.values()],
        "in use, a caption an image: added": [f"{row['mapped']:,.0f}" for row in rows.values()],
        "one matrix of logits, computed": [f"{row['logits']:,.1f}" for row in rows.values()],
        "of it the loss alone, measured": [f"{row['loss']:,.1f}" for row in rows.values()],
        "stored representations, computed": [f"{row['representations']:,.1f}" for row in rows.values()],
        "pictures of the batch, computed": [f"{row['pictures']:,.1f}" for row in rows.values()],
        "in use, less one matrix and representations": [f"{r:,.0f}, {r / rest[0]:.2f} x" for r in rest],
        "in use, less loss, representations, pictures": [f"{r:,.0f}, {r / less[0]:.2f} x" for r in less],
        "whole batch at once: peak; added": [f"{w['peak']:,.0f}; {w['added']:,.0f}" if w else "" for w in whole.values()],
        "whole batch at once: images/s": [f"{s / w['seconds']:.1f}" if w else "" for s, w in whole.items()],
    }  # fmt: skip
    print(f"{given.model}, {given.loss}, chunk {given.chunk}, {parts['where']}; memory in MiB\n")
    print(f"| batch | {' | '.join(f'{size:,}' for size in rows)} |\n{'|---' * (len(rows) + 1)}|")
    for what, cells in table.items():
        print(f"| {what} | {' | '.join(cells)} |")
    largest = max(rows)
    once, every, step = parts["different_texts"], parts["all_texts"], rows[largest]["seconds"]
    print(
        f"\ntext tower at {largest:,}: each different caption once {once:.2f} s, {once / step:.3f} of the step; all of them "
        f"{every:.2f} s, {parts['texts_ratio']:.1f} x, and the step would take {1 + (every - once) / step:.2f} x\n"
        f"dropout of 0.1 on LoRA's inputs: {parts['dropout_share']:.3f} of a step of {parts['dropout_batch']}"
    )


def bench(work_folder: Path, *, quick: bool = False) -> list[Result]:
    """Eight chunks in a batch against one, on a random ViT-B/32: memory in use, and time an image; with `quick` tiny-clip."""
    chunk, many = (8, 16) if quick else (32, 256)
    model = "tiny-clip" if quick else write_vit_b_32(work_folder / "vit-b-32")
    given = parse(["--model", model, "--chunk", str(chunk), "--steps", "1" if quick else "2"])
    small, large = (work(given, role="mapped", batch=size, captions=0)["added"] for size in (chunk, many))
    logits = 4 * many**2 / MIB
    cached = work(given, role="cached", batch=4 * chunk)
    return [
        Result(
            f"memory of a batch of {many} in chunks of {chunk}", (large - logits) / small, 1.1,
            f"a batch of {chunk}, {small:,.0f} MiB added by training; the logits left out", large, "MiB", higher_is_better=False,
        ),
        Result(
            f"time an image, batch of {4 * chunk}", cached["ratio"], 1.33, f"plain steps of {chunk}, each image encoded once",
            4 * chunk / cached["seconds"], "images/s", higher_is_better=False,
        ),
        Result(
            "augmentation, share of a step", cached["augmentation"] / cached["seconds"], 0.1, "the step",
            1000 * cached["augmentation"] / (4 * chunk), "ms an image", higher_is_better=False,
        ),
    ]  # fmt: skip


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The settings of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-clip", help="tiny-clip, a Hub id, a local folder, or vit-b-32")
    parser.add_argument("--batches", default="32,128,512,2048", help="sizes, none below the chunk's")
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--loss", default="unicl", choices=["unicl", "infonce", "siglip"])
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="")
    parser.add_argument("--captions", type=int, default=40, help="how many different ones there are; 0: one an image")
    parser.add_argument("--steps", type=int, default=5, help="timed ones, after two to warm up")
    parser.add_argument("--naive-up-to", type=int, default=128, help="largest batch that is also encoded at once")
    parser.add_argument("--json", type=Path, help="file for everything that was measured")
    for name, kind in (("--role", str), ("--batch", int)):  # of the processes that this one starts
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    given = parse()
    if given.role:
        print(json.dumps(ROLES[given.role](given)))
        return
    sizes = sorted({int(size) for size in given.batches.split(",")})
    if sizes[0] < given.chunk:
        raise SystemExit(f"--batches {given.batches}: none may be smaller than --chunk {given.chunk}")
    rows: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = given.model
        if model == "vit-b-32":
            work(given, role="model", model=folder)
            model = folder
        parts = work(given, model=model, role="parts", batch=sizes[-1])
        for size in sizes:
            at_once = given.chunk < size <= given.naive_up_to
            rows[size] = work(given, model=model, role="cached", batch=size) | {
                "mapped": work(given, model=model, role="mapped", batch=size, captions=0)["added"],
                "loss": work(given, model=model, role="loss", batch=size, captions=0)["added"],
                "whole": work(given, model=model, role="whole", batch=size, chunk=size) if at_once else None,
            }
    print_report(given, rows, parts)
    if given.json:
        found = {"settings": vars(given) | {"json": None}, "batches": rows, "parts": parts}
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
