"""LoRA in the last blocks from cached tokens against LoRA in all blocks: images/s of training steps, and time against
macro F1.

    python -m benchmarks.tuning                                             the steps alone, on a random ViT-B/32
    python -m benchmarks.tuning --manifest M --model MODEL --out DIR        and time against macro F1 of whole runs

The second form runs `finetune` (no augmentation; `--loss`, `--towers` and more) with LoRA in the last 1, 2, 4, 8 and
all blocks, `probe`, and `baseline` (every weight), each from the decoded images on, and writes `tuning.json`,
`tuning.svg` and the report with its paired comparisons into DIR.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.measure import in_turn, once, options, ratio, vit_b_32
from benchmarks.results import Result, table
from matplotlib.figure import Figure

import thoraclip
from thoraclip.labels import LabelSet
from thoraclip.methods import find_method
from thoraclip.methods.finetune import Config
from thoraclip.methods.label_step import LabelStep, TrainedHead
from thoraclip.methods.running import run_method
from thoraclip.methods.tokens import TokenCache
from thoraclip.methods.training.processes import ProcessGroup
from thoraclip.methods.training.sampler import Sampler
from thoraclip.models.dual_encoder import load_vision_encoder
from thoraclip.models.lora import add_lora
from thoraclip.models.prefix import FrozenPrefix
from thoraclip.tables.manifest import read_manifest

CLASSES = LabelSet(("a", "b", "c"))
_EVERY_WEIGHT = {"learning_rate": 3e-5, "layer_decay": 0.75}
"""As in configs/baseline/clip-tower.toml; at the default rate a pretrained tower unlearns in so few steps."""

_SETTINGS = {"loss": "cross_entropy", "towers": "both", "learning_rate": 3e-4, "precision": "fp32"}
"""Of the whole runs, and options of the command."""


def stepper(model: str, images: int, batch: int, *, last: int, cached: bool) -> Callable[[], None]:
    """One optimiser's step on the next batch of synthetic images, as `finetune` takes it."""
    rng, rows = np.random.default_rng(0), np.arange(images)
    config = Config(
        model=model,
        loss="cross_entropy",
        lora_blocks=last,
        batch_size=batch,
        chunk_size=min(32, batch),
        augmentation="none",
    )
    encoder = load_vision_encoder(model, precision="fp32")
    tuned = add_lora(encoder, config.lora, seed=0, train_scale=False)
    greys = rng.integers(0, 256, (images, *2 * [encoder.preprocess.size]), dtype=np.uint8)
    tokens, prefix = None, FrozenPrefix.of(tuned.encoder, last) if cached else None
    if prefix is not None:
        made = [prefix.tokens(encoder.expand(greys[at : at + 32])) for at in range(0, images, 32)]
        tokens = TokenCache(prefix, {0: (rows, torch.cat(made).numpy())}, (), (), config.seed)
    targets = rows % len(CLASSES)
    step = LabelStep(
        config=config,
        loss=config.loss,
        tuned=tuned,
        greys=greys,
        targets=targets,
        group=ProcessGroup(),
        tokens=tokens,
        labels=CLASSES,
        head=TrainedHead.of(tuned, len(CLASSES)),
    )
    step.begin(rows[:8], rows[:8], "none")
    optimizer, numbers = torch.optim.AdamW(step.parameters.values(), lr=config.learning_rate), itertools.count()
    sampler = Sampler(rows, targets, total=images, batch_size=batch)

    def work() -> None:
        step.backward(sampler.batch(next(numbers)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return work


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """On a random ViT-B/32; with `quick` tiny-clip."""
    model = vit_b_32(work, quick=quick)
    return compare_steps(model, last=1, batch=8, rounds=1) if quick else compare_steps(model, last=4, batch=64)


def compare_steps(model: str, *, last: int, batch: int, rounds: int = 3) -> list[Result]:
    """The last blocks from tokens against all blocks from images, and against the same blocks from images."""
    images = 2 * batch
    ways = {
        "tokens": stepper(model, images, batch, last=last, cached=True),
        "images": stepper(model, images, batch, last=last, cached=False),
        "all": stepper(model, images, batch, last=0, cached=False),
    }
    for way in ways.values():
        way()
    times = in_turn(ways, rounds)
    rate = {name: batch / float(np.median(each)) for name, each in times.items()}
    against = {"all": "LoRA in all blocks", "images": "the same blocks, from images"}
    return [
        Result(
            f"LoRA in the last {last} blocks, from cached tokens, against {'all' if name == 'all' else 'no cache'}",
            ratio(times[name], times["tokens"]),
            3.0 if name == "all" else None,
            f"{what}, {rate[name]:.2f} images/s; fp32, batches of {batch}",
            rate["tokens"],
            "images/s",
        )
        for name, what in against.items()
    ]


def compare_runs(manifest: Path, model: str, out: Path, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Way -> seconds of the training (of a probe: of all of it) and in all, and macro F1 with its interval; the report
    of all ways lies in `out`."""
    images = read_manifest(manifest)
    shared = {"model": model, "precision": settings["precision"]}
    tuned = shared | {"augmentation": "none"} | settings
    prefix = FrozenPrefix.of(load_vision_encoder(model, precision="fp32"), 1)
    depth = len(prefix.blocks) if prefix else 1
    entries: dict[str, tuple[str, dict[str, Any]]] = {
        f"last {last} block{'s' * (last > 1)}": ("finetune", tuned | {"lora_blocks": last})
        for last in (1, 2, 4, 8)
        if last < depth
    }
    entries["all blocks"] = ("finetune", tuned)
    entries["probe"] = ("probe", shared)
    full = {name: settings[name] for name in ("epochs", "batch_size")} | _EVERY_WEIGHT
    entries["every weight"] = ("baseline", shared | {"augmentation": "none"} | full)
    found: dict[str, dict[str, Any]] = {}
    runs = {name: out / "runs" / name.replace(" ", "-") for name in entries}
    for name, (kind, given) in entries.items():
        work = partial(run_method, kind, find_method(kind).config_type(**given), images, runs[name])
        began = time.time()
        whole = once(partial(work, pixels=out / "pixels"))
        drawn = runs[name] / "training.svg"  # the last that a training writes; then come the test images
        found[name] = {"kind": kind, "seconds": drawn.stat().st_mtime - began if drawn.is_file() else whole}
        found[name]["with_test_images"] = whole
        print(f"{name}: {found[name]['seconds']:.1f} s", flush=True)
    report = thoraclip.report(list(runs.values()), out=out / "report", manifest=manifest, thumbnails=False)
    values = {row["name"]: row["metrics"]["macro_f1"] for row in report["methods"]}
    return {name: {**row, "macro_f1": values[runs[name].name]} for name, row in found.items()}


def draw(found: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Seconds against macro F1 with its 95 % interval."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    colours = {"probe": "#009e73", "baseline": "#d55e00"}
    for name, row in found.items():
        value, low, high = (100 * row["macro_f1"][key] for key in ("value", "low", "high"))
        colour = colours.get(row["kind"], "#0072b2")
        axes.errorbar(row["seconds"], value, [[value - low], [high - value]], fmt="o", capsize=3, color=colour)
        text = f"LoRA, {name}" if row["kind"] == "finetune" else name
        axes.annotate(text, (row["seconds"], value), xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.set(xlabel="seconds of training, on one machine", ylabel="macro F1 (%), 95 % interval")
    axes.set_xlim(0, 1.2 * max(row["seconds"] for row in found.values()))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    given = options(__doc__, manifest=None, model="", out=None, last=4, epochs=3, batch_size=64, rounds=3, **_SETTINGS)
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or vit_b_32(Path(folder))
        print(table(compare_steps(model, last=given.last, batch=given.batch_size, rounds=given.rounds)))
    if given.manifest:
        settings = {name: getattr(given, name) for name in ("epochs", "batch_size", *_SETTINGS)}
        found = compare_runs(given.manifest, given.model, given.out, settings)
        (given.out / "tuning.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        draw(found).savefig(given.out / "tuning.svg")


if __name__ == "__main__":
    main()
