"""Which settings of `finetune` suit a few hundred to a few thousand X-rays: by validation images alone.

One setting is changed at a time from a start, over several seeds; the best value of each is kept for the next. What is
done already is not trained again, so the script can be stopped and started.

    python scripts/measure_defaults.py MANIFEST --model MODEL --out DIR [--seeds 3] [--images 12800] [--only loss,rank]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import thoraclip
from thoraclip.runs import digest

START: Mapping[str, Any] = {
    "loss": "prompt_ce",
    "batch_size": 32,
    "learning_rate": 1e-3,
    "rank": 8,
    "augmentation": "standard",
    "lora_dropout": 0.1,
    "towers": "both",
}
VALUES: Mapping[str, Sequence[Any]] = {
    "loss": ("prompt_ce", "unicl", "siglip", "infonce"),
    "batch_size": (8, 16, 32, 64, 256),
    "learning_rate": (1e-4, 3e-4, 1e-3, 3e-3),
    "rank": (4, 8, 16),
    "augmentation": ("none", "light", "standard"),
    "lora_dropout": (0.0, 0.1),
    "towers": ("both", "vision"),
}
BUDGETS = (0.5, 1, 2)
"""Of the images that are seen, relative to `--images`; tried last, with the settings that were chosen."""


def main() -> None:
    """Print a row for every setting that was tried, and the ones that were chosen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=12_800, help="seen in each training")
    parser.add_argument("--validations", type=int, default=8, help="of each training")
    parser.add_argument("--only", default=",".join(VALUES), help="settings that are tried")
    parser.add_argument("--set", action="append", default=[], help="name=JSON for every training")
    asked = parser.parse_args()
    fixed = {name: json.loads(value) for name, _, value in (each.partition("=") for each in asked.set)}
    chosen = {**START, **{name: value for name, value in fixed.items() if name in START}}
    print("| setting | validation macro F1, % | processor seconds a training |\n|---|---|---|")
    for name in asked.only.split(","):
        tried = {value: _measure(asked, {**fixed, **chosen, name: value}, asked.images) for value in VALUES[name]}
        for value, (scores, seconds) in tried.items():
            print(_row(f"{name} = {value}", scores, seconds), flush=True)
        chosen[name] = max(tried, key=lambda value: statistics.mean(tried[value][0]))
    for share in BUDGETS:
        images = round(share * asked.images)
        print(_row(f"images = {images}", *_measure(asked, {**fixed, **chosen}, images)), flush=True)
    print("\nchosen: " + ", ".join(f"{name} = {value}" for name, value in chosen.items()))


def _measure(asked: argparse.Namespace, settings: Mapping[str, Any], images: int) -> tuple[list[float], float]:
    """(validation macro F1 of the kept step for each seed, mean processor seconds of a training)."""
    scores, seconds = [], []
    steps = max(1, images // settings["batch_size"])
    for seed in range(asked.seeds):
        name = digest([str(asked.manifest), asked.model, settings, images, asked.validations])[:16]
        folder, began = asked.out / f"{name}-seed-{seed}", time.process_time()
        given = {**settings, "steps": steps, "validate_every": max(1, steps // asked.validations), "seed": seed}
        if not (folder / "seconds.json").is_file():
            with mock.patch("thoraclip.methods.finetune._score", _unscored):
                thoraclip.finetune(asked.manifest, out=folder, pixels=asked.out / "pixels", model=asked.model, **given)
            (folder / "seconds.json").write_text(json.dumps(time.process_time() - began), encoding="utf-8")
        details = json.loads((folder / "details.json").read_text(encoding="utf-8"))
        scores.append(statistics.mean(one["validation"]["val_macro_f1"] for one in details["chosen"]))
        seconds.append(json.loads((folder / "seconds.json").read_text(encoding="utf-8")))
    return scores, statistics.mean(seconds)


def _unscored(training: Any) -> tuple[Any, Any]:
    """In place of the scores of test images, which take longer than a short training and choose nothing."""
    blank = np.full((len(training.context.manifest), len(training.labels)), 1 / len(training.labels))
    return blank[training.part.test], blank[training.part.val]


def _row(name: str, scores: Sequence[float], seconds: float) -> str:
    spread = f" ± {100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"| {name} | {100 * statistics.mean(scores):.1f}{spread} | {seconds:.0f} |"


if __name__ == "__main__":
    main()
