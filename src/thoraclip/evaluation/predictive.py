"""Predictive values: how often a positive or a negative answer is right, where the class is as common as it is here, or
as common as somebody says it is elsewhere."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from thoraclip.errors import ConfigError, did_you_mean

__all__ = ["predictive_entry", "predictive_values", "read_prevalence", "require_classes"]

_ABSENT = {"value": None, "low": None, "high": None}


def read_prevalence(given: Mapping[str, float] | Sequence[str] | str) -> dict[str, float]:
    """Class -> share of the patients who have it, of such a mapping, or of one text `CLASS=SHARE` or several.

    Raises:
        ConfigError: a text without `=`, a class that is named twice, or a share that is no number in (0, 1).
    """
    texts = [given] if isinstance(given, str) else given
    pairs = list(texts.items()) if isinstance(texts, Mapping) else [_pair(text) for text in texts]
    found: dict[str, float] = {}
    for name, value in pairs:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise ConfigError(f"prevalence of '{name}' = {value}: a number between 0 and 1 is needed")
        if name in found:
            raise ConfigError(f"prevalence of '{name}' is given twice; keep one")
        found[name] = float(value)
    return found


def _pair(text: str) -> tuple[str, Any]:
    name, is_there, value = text.rpartition("=")
    if not is_there or not name.strip():
        raise ConfigError(f"prevalence = '{text}' must be CLASS=SHARE, such as COVID-19=0.05")
    try:
        return name.strip(), float(value)
    except ValueError:
        return name.strip(), value.strip() or "(nothing)"


def require_classes(prevalence: Mapping[str, float], classes: Collection[str]) -> None:
    """Raise ConfigError where a class is unknown, or the shares of one population exceed it."""
    for name in prevalence:
        if name not in classes:
            raise ConfigError(f"prevalence of '{name}': no such class{did_you_mean(name, classes)}")
    total = sum(prevalence.values())
    if total > 1 + 1e-9:
        raise ConfigError(f"the stated prevalences sum to {total:.3g}; an image has one class: 1 at most")


def predictive_entry(
    entry: Mapping[str, Any], prevalence: Mapping[str, float], images: Mapping[str, int]
) -> dict[str, Any]:
    """Predictive values of a method, JSON-able.

    Args:
        entry: the method's entry of the report, with `per_class` and `trust`.
        prevalence, images: class -> what is stated, see `read_prevalence`, and class -> judged images.

    Returns:
        Class -> `study` and `stated` (`None` where nothing is stated), each `prevalence` and for every point of
        `subgroups.POINTS` `ppv` and `npv`, see `predictive_values`; `operating_point` is `None` without a threshold.
    """
    points = ((entry.get("trust") or {}).get("operating_point") or {}).get("classes", {})
    found: dict[str, Any] = {}
    for name, row in entry["per_class"].items():
        predicted = {"sensitivity": row["recall"], "specificity": row["specificity"]}
        chosen = points.get(name, {}).get("test")
        known = chosen and chosen["sensitivity"]["value"] is not None
        rates = {"predicted": predicted, "operating_point": chosen if known else None}
        found[name] = {"study": None, "stated": None}
        for where, share in (("study", images[name] / sum(images.values())), ("stated", prevalence.get(name))):
            if share is not None:
                values = {point: one and predictive_values(one, share) for point, one in rates.items()}
                found[name][where] = {"prevalence": share, **values}
    return found


def predictive_values(rates: Mapping[str, Mapping[str, Any]], prevalence: float) -> dict[str, dict[str, float | None]]:
    """Positive and negative predictive value by Bayes' theorem, the prevalence being known exactly.

    With sensitivity s, specificity t and prevalence q: PPV = s q / (s q + (1 - t)(1 - q)) = 1 / (1 + r (1 - q) / q), r
    = (1 - t) / s; NPV = t (1 - q) / (t (1 - q) + (1 - s) q), likewise. The interval is that of the ratio r, put
    together from those of s and t (Donner & Zou 2012, Stat. Methods Med. Res. 21:347), which
    stays honest near a specificity of 1, where a handful of false positives decides.

    Args:
        rates: `sensitivity` and `specificity`, each `value`, `low`, `high` in [0, 1].
        prevalence: q in [0, 1].

    Returns:
        `ppv` and `npv`, each `value`, `low`, `high`; `None` where nothing is called positive (negative), or the
        interval of a rate is not known.
    """
    s, t = rates["sensitivity"], rates["specificity"]
    return {"ppv": _by_odds(_missed(t), s, prevalence), "npv": _by_odds(_missed(s), t, 1 - prevalence)}


def _missed(rate: Mapping[str, Any]) -> dict[str, float | None]:
    """1 minus a rate."""
    ends = {"value": rate["value"], "low": rate["high"], "high": rate["low"]}
    return {end: None if value is None else 1 - value for end, value in ends.items()}


def _by_odds(wrong: Mapping[str, Any], right: Mapping[str, Any], share: float) -> dict[str, float | None]:
    """1 / (1 + (wrong / right) (1 - share) / share)."""

    def posterior(ratio: float) -> float:
        return 0.0 if math.isinf(ratio) or share == 0 else 1 / (1 + ratio * (1 - share) / share)

    a, b = wrong["value"], right["value"]
    if a is None or b is None or (a == 0 and b == 0):
        return dict(_ABSENT)
    value = posterior(a / b if b else math.inf)
    if wrong["low"] is None or right["low"] is None:
        return {"value": value, "low": None, "high": None}
    low = posterior(_ratio_end(a, b, wrong["high"], right["low"], 1))
    high = posterior(_ratio_end(a, b, wrong["low"], right["high"], -1))
    return {"value": value, "low": min(low, value), "high": max(high, value)}


def _ratio_end(a: float, b: float, a_end: float, b_end: float, side: int) -> float:
    """The upper (`side` 1) or lower (-1) end of the interval of a / b, from the ends of theirs that lead there; where
    their formula has none, the ratio of these ends, which is further out."""
    below = b_end * (2 * b - b_end)
    if below <= 0:
        return a_end / b_end if b_end > 0 else math.inf
    root = math.sqrt(max(0.0, (a * b) ** 2 - a_end * (2 * a - a_end) * below))
    return max(0.0, (a * b + side * root) / below)
