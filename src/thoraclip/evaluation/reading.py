"""The reading: what the numbers say, in plain words, computed from the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from thoraclip.evaluation.compare import ALPHA, MODELS
from thoraclip.evaluation.results import MAJORITY
from thoraclip.evaluation.trainings import FOLDS, PATIENTS, SEEDS
from thoraclip.pages import counted

__all__ = ["ALPHA", "COLUMNS", "MAIN_METRIC", "listed", "ordered", "points", "printed", "ranked", "share", "verdict"]

MAIN_METRIC = "macro_f1"
"""Decides which method is best: every class counts the same, and so do both kinds of error."""
COLUMNS = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "macro_precision": "Precision",
    "macro_recall": "Recall",
    "auroc": "AUROC",
    "ece": "ECE",
}
"""The metrics of the main table, and their headings."""
TRIVIAL = "trivial"
"""Kind of the methods that see no anatomy."""
_FEW_GROUPS = 30
"""Fewer patients (or images) give rough intervals."""
_MINUS = "\u2212"


def share(value: float | None) -> str:
    """0.8132 -> `81.3`; never a negative zero; `None` -> a dash."""
    return "\u2013" if value is None else f"{100 * value:z.1f}".replace("-", _MINUS)


def three_digits(value: float | None) -> str:
    """2.5 -> `2.5`, 18612.0 -> `18,612`: three digits at least, never a power of ten; `None` -> a dash."""
    return "\u2013" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def printed(value: float | None) -> str:
    """A published share with the two decimals that papers give: 0.9244 -> `92.44`, 0.878 -> `87.8`."""
    return "\u2013" if value is None else f"{100 * value:.2f}".removesuffix("0")


def between(entry: Mapping[str, Any], text: Callable[[float | None], str] = share) -> str:
    """` [74.0, 88.1]` of an entry with `low` and `high`, each as `text` writes it; empty without an interval."""
    return "" if entry["low"] is None else f" [{text(entry['low'])}, {text(entry['high'])}]"


def share_interval(entry: Mapping[str, Any] | None) -> str:
    """`81.3 [74.0, 88.1]`, in per cent, of an entry with `value`, `low` and `high`; `None`, or without a value, a
    dash."""
    if entry is None or entry.get("value") is None:
        return share(None)
    return share(entry["value"]) + between(entry)


def points(value: float | None) -> str:
    """A difference of shares with its sign: 0.031 -> `+3.1`, -0.0001 -> `+0.0`."""
    return "\u2013" if value is None else f"{100 * value:+z.1f}".replace("-", _MINUS)


def probability(p: float | None) -> str:
    """`p = 0.012`, `p < 0.001`."""
    if p is None:
        return "p not known"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def verdict(methods: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Who is best by macro F1, and who cannot be told apart from it; both arguments are entries of the report.

    Returns:
        metric, best, runner_up (`None` for a single method), tied (names whose Holm-corrected p against the best is
        0.05 or more, or unknown), beats_majority (in accuracy too: guessing at random already beats a constant
        answer in macro F1). On equal values the method named first is best.
    """
    real = ranked(methods)
    best = real[0]["name"]
    tied = [m["name"] for m in real[1:] if not _differs(versus(comparisons, best, m["name"]))]
    against = [versus(comparisons, best, MAJORITY, metric) for metric in (MAIN_METRIC, "accuracy")]
    return {
        "metric": MAIN_METRIC,
        "best": best,
        "runner_up": real[1]["name"] if len(real) > 1 else None,
        "tied": tied,
        "beats_majority": all(map(exceeds, against)),
    }


def versus(comparisons: Sequence[Mapping[str, Any]], a: str, b: str, metric: str = MAIN_METRIC) -> dict[str, Any]:
    """The comparison of two methods, turned so that the difference is a - b."""
    found = next(c for c in comparisons if c["metric"] == metric and {c["a"], c["b"]} == {a, b})
    if found["a"] == a:
        return dict(found)
    low, high = (None if found[end] is None else -found[end] for end in ("high", "low"))
    return {**found, "a": a, "b": b, "difference": -found["difference"], "low": low, "high": high}


def _differs(comparison: Mapping[str, Any]) -> bool:
    return comparison["p_holm"] is not None and comparison["p_holm"] < ALPHA


def exceeds(comparison: Mapping[str, Any]) -> bool:
    return _differs(comparison) and comparison["difference"] > 0


def ordered(methods: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The best by macro F1 first, the majority row last."""
    return sorted(methods, key=lambda m: (m["name"] == MAJORITY, -m["metrics"][MAIN_METRIC]["value"]))


def ranked(methods: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The same without the majority row."""
    return [m for m in ordered(methods) if m["name"] != MAJORITY]


def reading(report: Mapping[str, Any]) -> list[str]:
    """Sentences for the top of the report: the winner, its lead, whether the lead is real, and what limits it."""
    if report["verdict"] is None:
        return ["No method gave predictions, so there is nothing to compare. The errors stand in the table below."]
    best = next(m for m in report["methods"] if m["name"] == report["verdict"]["best"])
    sentences = [_winner(report, best), *_lead(report), _against_majority(report), *_against_trivial(report)]
    if (trust := best.get("trust")) and trust["reason"] is None:
        sentences += [_temperature(best["name"], trust), _sets(best["name"], trust["conformal"])]
    return [*sentences, *_limits(report)]


def _winner(report: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    estimate, sample, is_only = best["metrics"][MAIN_METRIC], report["sample"], report["verdict"]["runner_up"] is None
    images = counted(sample["n"], "image")
    if sample["unit"] == "patient":
        images += f" of {counted(sample['groups'], 'patient')}"
    has = "is the only method; its macro F1 is" if is_only else "has the highest macro F1,"
    return (
        f"{best['name']} {has} {share(estimate['value'])} %{between(estimate)}, and an accuracy of "
        f"{share(best['metrics']['accuracy']['value'])} % on {images}."
    )


def _lead(report: Mapping[str, Any]) -> list[str]:
    found = report["verdict"]
    if found["runner_up"] is None:
        return []
    lead, images = versus(report["comparisons"], found["best"], found["runner_up"]), f"{report['sample']['n']:,} images"
    second, tied = found["runner_up"], found["tied"]
    size = (
        f"It leads the runner-up, {second}, by {_points(lead)}{between(lead, points)} ({probability(lead['p_holm'])} "
        "after Holm's correction)"
    )
    if second not in tied:
        rest = [f"It cannot be told apart from {listed(tied)}."] if tied else []
        if lead["claim"] == MODELS:
            real = f"{size}: a real difference between these two trained models on {images}, not between the methods."
            told = "Another training could turn it round: folds, or three seeds where the seed matters, would tell."
            return [f"{real} {told}", *rest]
        unit = f"{report['sample']['unit']}s"
        over = {PATIENTS: unit, SEEDS: f"{unit} and seeds", FOLDS: f"{unit} and folds"}[lead["source"]]
        return [f"{size}: a real difference between the methods, over {over}.", *rest]
    others = [name for name in tied if name != second]
    more = f" Nor can it be told apart from {listed(others)}." if others else ""
    return [f"{size}: the two cannot be told apart on these {images}.{_settles(lead)}{more}"]


def _settles(comparison: Mapping[str, Any]) -> str:
    """How many trainings would settle an open question, where that is known."""
    if comparison["claim"] == MODELS:
        return " They are single trainings; folds, or three seeds where the seed matters, would ask about the methods."
    if comparison["source"] != SEEDS:
        return ""
    if comparison["seeds_needed"] is None:
        return " More seeds would not settle it if it is as small as it seems; more patients might."
    return f" {comparison['seeds_needed']} seeds of each would settle it, if it is as large as it seems."


def _against_majority(report: Mapping[str, Any]) -> str:
    found = report["verdict"]
    f1, accuracy = (versus(report["comparisons"], found["best"], MAJORITY, m) for m in (MAIN_METRIC, "accuracy"))
    constant = f"always answering the commonest class (the row \u201c{MAJORITY}\u201d)"
    if found["beats_majority"]:
        return (
            f"It beats {constant} by {_points(accuracy)} of accuracy{between(accuracy, points)} and "
            f"{_points(f1)} of macro F1{between(f1, points)}."
        )
    return (
        f"No method can be shown to beat {constant}: the accuracy of {found['best']} differs from it by "
        f"{_points(accuracy)}{between(accuracy, points)}. A higher macro F1 than that row's comes with mere guessing."
    )


def _against_trivial(report: Mapping[str, Any]) -> list[str]:
    """Of the best method that is not trivial against the best one that is."""
    real = ranked(report["methods"])
    floor = next((m["name"] for m in real if m["kind"] == TRIVIAL), None)
    other = next((m["name"] for m in real if m["kind"] != TRIVIAL), None)
    if floor is None or other is None:
        return []
    gain = versus(report["comparisons"], other, floor)
    size = f"{_points(gain)} of macro F1{between(gain, points)}"
    if exceeds(gain):
        return [f"{other} beats {floor}, trees that see no anatomy, by {size}."]
    above = versus(report["comparisons"], floor, MAJORITY, "accuracy")
    so = " So these images can be told apart without reading the lungs." if exceeds(above) else ""
    return [
        f"No network can be shown to beat {floor}, trees that see no anatomy: {other} differs from it by {size}.{so}"
    ]


def _temperature(name: str, trust: Mapping[str, Any]) -> str:
    after = trust["after_temperature"]
    if after is None:
        return f"The probabilities of {name} are {trust['temperature']['reason']}."
    gain = after["change"]["ece"]
    certain = gain["high"] is None or gain["high"] < 0 or gain["low"] > 0
    return (
        f"Temperature scaling changes the calibration error of {name} from {share(trust['before']['ece']['value'])} to "
        f"{share(after['ece']['value'])} % ({points(gain['value'])} points{between(gain, points)}"
        f"{'' if certain else ', which may be chance'})."
    )


def _sets(name: str, sets: Mapping[str, Any]) -> str:
    covered = {c: row["coverage"] for c, row in sets["classes"].items() if row["coverage"]["value"] is not None}
    values = [one["value"] for one in covered.values()]
    ends = dict.fromkeys((share(min(values)), share(max(values))))
    broken = [
        f"{c} ({share(one['value'])} %{between(one)})"
        for c, one in covered.items()
        if one["high"] is not None and one["high"] < sets["promised"]
    ]
    short = f" The promise is not kept for {listed(broken)}." if broken else ""
    return (
        f"The prediction sets of {name}, promised to hold the true class in {100 * sets['promised']:.0f} % of each "
        f"class, hold it in {' to '.join(ends)} % and name {sets['mean_size']:.1f} of {len(sets['classes'])} classes "
        f"on average.{short}"
    )


def _points(comparison: Mapping[str, Any]) -> str:
    return f"{points(comparison['difference']).lstrip('+')} points"


def _limits(report: Mapping[str, Any]) -> list[str]:
    sample = report["sample"]
    sentences = []
    absent = [name for name, count in sample["images_per_class"].items() if count == 0]
    if absent:
        which, them = ("class", "it") if len(absent) == 1 else ("classes", "them")
        sentences.append(f"No image here is of the {which} {listed(absent)}: means over the classes leave {them} out.")
    sentences += few_groups(sample["groups"], sample["unit"])
    for fold, classes in sample.get("lacking", {}).items():
        sentences.append(
            f"Fold {fold} has no image of {listed(classes)}: what counts classes has no spread over folds."
        )
    for method in report["methods"]:
        by_answer = zip(report["classes"], zip(*method["confusion"], strict=True), strict=True)
        answers = [name for name, images in by_answer if any(images)]
        if len(answers) == 1 and method["name"] != MAJORITY:
            sentences.append(f"{method['name']} gave every image the same answer, {answers[0]}.")
    if report["failed"]:
        sentences.append(f"Failed, and so not compared: {listed([entry['name'] for entry in report['failed']])}.")
    return sentences


def few_groups(groups: int, unit: str) -> list[str]:
    """What so few patients (or images) do to the intervals; `[]` where there are none, or enough."""
    if groups == 1:
        return [f"All images belong to one {unit}, so no interval can be given."]
    is_few = 0 < groups < _FEW_GROUPS
    return [f"Only {groups} {unit}s: the intervals are rough and may be too narrow."] if is_few else []


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
