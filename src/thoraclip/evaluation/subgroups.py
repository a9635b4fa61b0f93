"""How well a method does in each group of patients: by sex, age band, view and source.

Each class against the rest, at the predicted label and at the operating point; the gap of a group to all other images
of known group; and how far the groups of a column lie apart at most (`equalised_odds`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from thoraclip.dtypes import Floats, Ints, Masks
from thoraclip.evaluation.align import Aligned
from thoraclip.evaluation.compare import correct_p
from thoraclip.evaluation.equalised_odds import RATES, GroupRates, equalised_odds
from thoraclip.evaluation.intervals import difference_interval
from thoraclip.evaluation.metrics import Scored
from thoraclip.proportions import patient_share, share_interval
from thoraclip.tables.manifest import Manifest

__all__ = ["COLUMNS", "POINTS", "group_columns", "group_values", "members", "predicted_calls", "subgroup_entries"]

FEWEST = 10
"""Patients (or images) behind a value below which it is shown and not judged: no gap, no part of equalised odds."""
POINTS = {"predicted": "at the predicted label", "operating_point": "at the operating point"}
"""Where sensitivity and specificity are measured."""
Calls = Mapping[str, Masks]
"""Class -> bool[N], whether an image is called positive."""

COLUMNS = ("sex", "age", "view", "source")
"""That patients are grouped by."""
_AGES = {18: "under 18", 40: "18 to 39", 65: "40 to 64", 1000: "65 and over"}
"""Upper end in years, not in the band -> the band."""
_BANDS = list(_AGES.values())
_MOST_GROUPS = 20
_OTHERS = "all others"
_UNKNOWN = {"value": None, "low": None, "high": None}


def group_values(manifest: Manifest) -> dict[str, list[str | None]]:
    """Column -> the group of every image, of the columns with two groups or more; the rarest of many groups are one."""
    found = {}
    for column in COLUMNS:
        given = manifest.column("age_years" if column == "age" else column)
        values = [_age_band(age) for age in given] if column == "age" else given
        counts = Counter(value for value in values if value is not None)
        if len(counts) > _MOST_GROUPS:
            kept = {value for value, _ in counts.most_common(_MOST_GROUPS - 1)}
            values = [value if value is None or value in kept else _OTHERS for value in values]
        if len(counts) > 1:
            found[column] = values
    return found


def group_columns(manifest: Manifest) -> dict[str, dict[str, str | None]]:
    """Column -> image id -> group, see `group_values`."""
    ids = manifest.column("image_id")
    return {column: dict(zip(ids, values, strict=True)) for column, values in group_values(manifest).items()}


def _age_band(age: float | None) -> str | None:
    if age is None or not age >= 0:
        return None
    return next(band for end, band in _AGES.items() if age < end or band == _BANDS[-1])


def members(values: Sequence[str | None]) -> dict[str, Masks]:
    """Group -> bool[N], in the order of the alphabet, or of age."""
    known = {value for value in values if value is not None}
    names = sorted(known, key=lambda v: (_BANDS.index(v), "") if v in _BANDS else (0, v))
    every = np.array([None if value is None else names.index(value) for value in values], dtype=np.float64)
    return {name: every == number for number, name in enumerate(names)}


def predicted_calls(scored: Scored, classes: Sequence[str]) -> Calls:
    """Positive for the predicted class, negative for all others."""
    return {name: scored.predicted == c for c, name in enumerate(classes)}


def subgroup_entries(
    scored: Mapping[str, Scored],
    calls: Mapping[str, Mapping[str, Calls]],
    columns: Mapping[str, Mapping[str, str | None]],
    aligned: Aligned,
    *,
    resamples: int,
    seed: int,
) -> dict[str, list[dict[str, Any]]]:
    """What is known of every method in every group; JSON-able, one entry for each column with two groups.

    Args:
        scored: method -> its scores of the judged images.
        calls: method -> point of `POINTS` -> class -> whether an image is called positive; a class without a threshold
            is absent.
        columns: see `group_columns`.

    Returns:
        Method -> `column`, `unknown` (images without a group), `fewest`, `smallest` (`value, images, patients`),
        `groups` and `equalised_odds`. A group has `value, images, patients, is_judged, accuracy` and `classes`: class
        -> `images, patients, auroc`, and for each point `sensitivity` and `specificity`, each `value, low, high,
        patients` and `gap`: the value minus that of all other images of known group, `None` where one of both has
        fewer than `FEWEST` patients. `equalised_odds` is by point, `None` where no rate can be compared.
    """
    entries: dict[str, list[dict[str, Any]]] = {name: [] for name in scored}
    for column, by_id in columns.items():
        values = [by_id.get(image) for image in aligned.image_id]
        if len(set(values) - {None}) < 2:
            continue
        known = np.flatnonzero([value is not None for value in values])
        groups = {name: mask[known] for name, mask in members(values).items()}
        sample = _Sample(aligned, known)
        rates: dict[tuple[str, str], GroupRates] = {}
        for name, table in scored.items():
            entry = sample.column(table, calls[name], groups)
            entries[name].append({"column": column, "unknown": len(values) - len(known), "fewest": FEWEST, **entry})
            for point, one in calls[name].items():
                rates[name, point] = sample.rates(entry["groups"], one, point)
        codes, every = np.argmax(np.stack(list(groups.values())), axis=0), list(rates.values())
        odds = equalised_odds(every, codes, sample.patients, sample.target, resamples=resamples, seed=seed)
        for (name, point), found in zip(rates, odds, strict=True):
            named = _odds(found, list(groups), aligned.labels.names) if found else None
            entries[name][-1]["equalised_odds"][point] = named
    for of_method, point in product(entries.values(), POINTS):
        correct_p([odds for column in of_method if (odds := column["equalised_odds"].get(point)) is not None])
    return entries


class _Sample:
    """The judged images of known group."""

    def __init__(self, aligned: Aligned, known: Ints) -> None:
        self.known, self.target, self.classes = known, aligned.target[known], aligned.labels.names
        self.patients = np.unique(aligned.groups[known], return_inverse=True)[1].astype(np.int64)

    def column(self, scored: Scored, calls: Mapping[str, Calls], groups: Mapping[str, Masks]) -> dict[str, Any]:
        """`smallest`, `groups` and an empty `equalised_odds` of a method."""
        found = []
        for value, own in groups.items():
            row: dict[str, Any] = {"value": value, "images": int(own.sum()), "patients": self._count(own)}
            row["is_judged"] = row["patients"] >= FEWEST
            row["accuracy"] = self._share(scored.correct[self.known], own)
            row["classes"] = {name: self._of_class(c, name, scored, calls, own) for c, name in enumerate(self.classes)}
            found.append(row)
        smallest = min(found, key=lambda row: row["patients"])
        smallest = {key: smallest[key] for key in ("value", "images", "patients")}
        return {"smallest": smallest, "groups": found, "equalised_odds": {}}

    def _of_class(self, c: int, name: str, scored: Scored, calls: Mapping[str, Calls], own: Masks) -> dict[str, Any]:
        positive, score = self.target == c, scored.scores[self.known, c]
        both = [_auroc(score[rows], positive[rows], self.patients[rows]) for rows in (own, ~own)]
        found: dict[str, Any] = {"images": int((positive & own).sum()), "patients": self._count(positive & own)}
        found |= {"auroc": both[0] | {"gap": _gap(*both)}, **dict.fromkeys(calls)}
        for point in (point for point, of_classes in calls.items() if name in of_classes):
            called = calls[point][name][self.known]
            rates = {"sensitivity": (called, positive), "specificity": (~called, ~positive)}
            found[point] = {rate: self._rate(right, own, of) for rate, (right, of) in rates.items()}
        return found

    def _rate(self, right: Masks, own: Masks, of: Masks) -> dict[str, Any]:
        inside, rest = (self._share(right, of & rows) for rows in (own, ~own))
        return inside | {"gap": _gap(inside, rest)}

    def _share(self, right: Masks, rows: Masks) -> dict[str, Any]:
        if not rows.any():
            return {**_UNKNOWN, "patients": 0}
        low, high = patient_share(right[rows], self.patients[rows])
        return {"value": float(right[rows].mean()), "low": low, "high": high, "patients": self._count(rows)}

    def _count(self, rows: Masks) -> int:
        return len(np.unique(self.patients[rows]))

    def rates(self, rows: Sequence[Any], calls: Calls, point: str) -> GroupRates:
        """What equalised odds are computed from; `rows` are the groups' entries."""
        none = np.zeros(len(self.known), dtype=bool)
        called, of = [], []
        bounds: Floats = np.full((2, len(rows), 2 * len(self.classes)), np.nan)
        judged = np.zeros(bounds.shape[1:], dtype=bool)
        for c, name in enumerate(self.classes):
            positive, is_called = self.target == c, calls[name][self.known] if name in calls else none
            called += [is_called & positive, is_called & ~positive]
            of += [positive, ~positive]
            for g, row in enumerate(rows if name in calls else ()):
                true, cleared = (row["classes"][name][point][rate] for rate in ("sensitivity", "specificity"))
                if true["patients"] >= FEWEST:
                    judged[g, 2 * c], bounds[:, g, 2 * c] = True, (true["low"], true["high"])
                if cleared["patients"] >= FEWEST:
                    judged[g, 2 * c + 1], bounds[:, g, 2 * c + 1] = True, (1 - cleared["high"], 1 - cleared["low"])
        return GroupRates(np.column_stack(called), np.column_stack(of), bounds, judged)


def _auroc(score: Floats, positive: Masks, patients: Ints) -> dict[str, Any]:
    """AUROC with the variance of DeLong et al. 1988 for images that go together by patient (Obuchowski 1997, Biometrics
    53:567), and `share_interval` with the patients of the rarer side as the clusters."""
    if positive.all() or not positive.any():
        return {**_UNKNOWN, "patients": 0}
    high, low = score[positive], score[~positive]
    above, below = _share_below(high, low), 1 - _share_below(low, high)
    value = float(above.mean())
    _, member = np.unique(patients, return_inverse=True)
    owners = [member[positive], member[~positive]]
    sides = [len(np.unique(own)) for own in owners]
    fewest = min(sides)
    found = {"value": value, "low": 0.0, "high": 1.0, "patients": fewest}
    if fewest < 2:
        return found
    count = int(member.max()) + 1
    pairs = zip(owners, (above, below), strict=True)
    excess = [np.bincount(own, (part - value) / len(part), count) for own, part in pairs]
    variance = sum(k / (k - 1) * float(e @ e) for k, e in zip(sides, excess, strict=True))
    variance += 2 * count / (count - 1) * float(excess[0] @ excess[1])
    low_end, high_end = share_interval(value, max(variance, 0.0), clusters=fewest, df=fewest - 1)
    return found | {"low": low_end, "high": high_end}


def _share_below(score: Floats, others: Floats) -> Floats:
    """Of each score the share of others below it, equal ones by half."""
    others = np.sort(others)
    return (np.searchsorted(others, score) + np.searchsorted(others, score, "right")) / (2 * len(others))


def _gap(own: Mapping[str, Any], rest: Mapping[str, Any]) -> dict[str, float] | None:
    """Own minus rest, two independent estimates."""
    if min(own["patients"], rest["patients"]) < FEWEST:
        return None
    a, b = ((one["value"], one["low"], one["high"]) for one in (own, rest))
    low, high = difference_interval(a, b)
    return {"value": own["value"] - rest["value"], "low": max(-1.0, low), "high": min(1.0, high)}


def _odds(found: Mapping[str, Any], groups: Sequence[str], classes: Sequence[str]) -> dict[str, Any]:
    """What `equalised_odds` found, with names for numbers."""
    spread, rate = found["spread"], found["rate"]
    named = {"class": classes[rate // 2], "rate": RATES[rate % 2]}
    named |= {end: groups[found[end]] for end in ("highest", "lowest")}
    pairs = spread.reshape(-1, 2).tolist()
    of_classes = {name: dict(zip(RATES, pair, strict=True)) for name, pair in zip(classes, pairs, strict=True)}
    return {**found, "p_holm": None, **named, "spread": of_classes}
