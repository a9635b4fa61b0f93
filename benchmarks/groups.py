"""Equalised odds of groups that differ or do not, and predictive values, where the truth is known.

    python benchmarks/groups.py [--sets 1000]

docs/statistics.md has what it prints. The simulated classifiers are those of tests/evaluation/test_subgroups.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.evaluation.test_subgroups import drawn

from thoraclip.evaluation.predictive import predictive_values
from thoraclip.proportions import patient_share

_GROUPS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("150 patients, 1 to 3 images", {}),
    ("60 patients, 1 image", {"patients": 60, "most": 1}),
    ("150 patients, 1 to 8 images", {"most": 8}),
    ("groups change within patients", {"mixed": True}),
    ("one class commoner in a group", {"common": 0.4}),
    ("150 patients, a group is worse", {"effect": 1.0}),
    ("400 patients, a group is worse", {"effect": 1.0, "patients": 400}),
    ("150 patients, a group is much worse", {"effect": 2.0}),
)
_RATES = (
    (0.9, 0.95, 0.05, 100, 300), (0.9, 0.99, 0.05, 100, 300), (0.9, 0.998, 0.01, 60, 500), (0.99, 0.9, 0.3, 40, 80),
    (0.6, 0.7, 0.3, 30, 60), (0.95, 0.995, 0.02, 1000, 3000),
)  # fmt: skip


def groups(sets: int) -> None:
    """Three groups (60, 30 and 10 % of the patients) of whom the second may be worse."""
    _row(
        "sets",
        "true gap",
        "mean gap",
        "mean by chance",
        "p < 0.05",
        "interval holds the gap",
        "gaps to the rest hold 0",
    )
    for name, how in _GROUPS:
        worse = how.get("effect", 0)
        truth = (
            drawn(0, effect=worse, patients=20_000, most=1)["equalised_odds"]["predicted"]["value"] if worse else 0.0
        )
        entries = [drawn(seed, **how) for seed in range(1, sets + 1)]
        odds = [found for entry in entries if (found := entry["equalised_odds"]["predicted"])]
        rates = [
            rate["gap"]["low"] <= 0 <= rate["gap"]["high"]
            for entry in entries for group in entry["groups"] for row in group["classes"].values()
            for rate in (row["auroc"], *row["predicted"].values()) if rate["gap"]
        ]  # fmt: skip
        means = [np.mean([one[key] for one in odds]) for key in ("value", "by_chance")]
        shares = [
            np.mean([one["p"] < 0.05 for one in odds]),
            np.mean([one["low"] <= truth <= one["high"] for one in odds]),
        ]
        _row(name, *(f"{v:.3f}" for v in (truth, *means, *shares)), "-" if worse else f"{np.mean(rates):.3f}")


def predictive(sets: int) -> None:
    """One image a patient: the interval, and that of the percentiles of 400 resamples."""
    _row(
        "sensitivity, specificity, prevalence",
        "sick, healthy",
        "PPV",
        "interval, percentiles",
        "NPV",
        "interval, percentiles",
    )
    for s, t, q, sick, well in _RATES:
        rng, held = np.random.default_rng(0), np.zeros((2, 2))
        truth = _bayes(s, t, q)
        for _ in range(sets):
            answers = rng.random(sick) < s, rng.random(well) < t
            found = predictive_values(dict(zip(("sensitivity", "specificity"), map(_rate, answers), strict=True)), q)
            again = [rng.binomial(len(one), one.mean(), 400) / len(one) for one in answers]
            for k, (value, resampled) in enumerate(zip(truth, _bayes(*again, q), strict=True)):
                one = found[("ppv", "npv")[k]]
                ends = (one["low"], one["high"]), np.quantile(resampled, [0.025, 0.975])
                held[k] += [low is None or low - 1e-12 <= value <= high + 1e-12 for low, high in ends]
        cells = [cell for k in (0, 1) for cell in (f"{truth[k]:.3f}", "{:.3f}, {:.3f}".format(*held[k] / sets))]
        _row(f"{s}, {t}, {q}", f"{sick}, {well}", *cells)


def _bayes(s: Any, t: Any, q: float) -> tuple[Any, Any]:
    """(PPV, NPV)."""
    return s * q / (s * q + (1 - t) * (1 - q)), t * (1 - q) / (t * (1 - q) + (1 - s) * q)


def _rate(right: Any) -> dict[str, float]:
    low, high = patient_share(right, np.arange(len(right)))
    return {"value": float(right.mean()), "low": low, "high": high}


def _row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sets", type=int, default=1000)
    for table in (groups, predictive):
        print(f"\n{table.__name__}: {table.__doc__}\n")
        table(parser.parse_args().sets)
