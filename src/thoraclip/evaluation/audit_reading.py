"""An audit in words: every test in a sentence, and two verdicts: what this classifier uses, what the data offer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thoraclip.evaluation.reading import between, points, share

__all__ = ["AUDIT_SCHEMA", "FAMILIES", "MARGIN", "POSITIVE", "STRONG", "VERDICTS", "label", "read_tests", "sentence"]

Row = Mapping[str, Any]

AUDIT_SCHEMA = 2
"""Of `audit.json`."""

MARGIN = 0.05
"""Balanced accuracy. What lies below it beyond chance is not called reliance: a lesion throws a little scatter beside
it, and a classifier of a few hundred images is not exactly as good on one half of them as on the other."""
STRONG = 0.20
"""From this effect on, reliance is called strong; a set that does not exclude as much cannot tell."""
FAMILIES = ("classifier", "data")
"""What tests ask; Holm's correction runs within each."""
VERDICTS = {
    "strong": "strong sign",
    "some": "some sign",
    "none": f"below {100 * STRONG:.0f} points",
    "cannot_tell": "cannot tell",
}
"""Verdict of a test -> in words."""
POSITIVE = frozenset({"strong", "some"})
"""Verdicts that are a sign of a shortcut."""
_BY = {
    "classifier": "the classifier names",
    "probe": "a probe fitted anew on the classifier's features of such images names",
    "trees": "trees name",
}
OUTSIDE = "what lies outside the lungs"
"""What the tests find without which no classifier is acquitted; see `data.views`."""
_TOGETHER, _FILE = "background all", "background file"


@dataclass(frozen=True)
class AuditReading:
    """The verdicts, each one of `VERDICTS`, and the sentences that say them."""

    classifier: str
    data: str
    sentences: list[str]


def label(row: Row) -> str:
    """The verdict of a test in two words, as tables and the figure print it."""
    if row["asks"] != "control" or row["verdict"] == "cannot_tell":
        return "control" if row["p_holm"] is None else VERDICTS[row["verdict"]]
    return "off chance" if row["verdict"] in POSITIVE else "at chance"


def sentence(row: Row) -> str:
    """A test (a row of `shortcuts.with_verdicts`) in one sentence."""
    title = row["title"][0].upper() + row["title"][1:]
    return f"{title}: {_measured(row)}{_judged(row)}."


def _measured(row: Row) -> str:
    change, span = row["effect"], between(row, points)
    if row["name"] == "shared-errors":
        return (
            f"the classifier names the same wrong class {points(change)} points{span} more often than by chance "
            f"({row['images']} images)"
        )
    if row["after"] is None:
        return "too few images to ask"
    if row["before"] is None:
        return (
            f"{_BY[row['by']]} the class with a balanced accuracy of {share(row['after'])} %, {points(change)} "
            f"points{span} from chance ({share(row['chance'])} %)"
        )
    subject = _BY[row["by"]].rsplit(" ", 1)[0]
    verb = "loses" if change >= 0 else "gains"
    ends = row if change >= 0 else {"low": -row["high"], "high": -row["low"]}
    return (
        f"{subject} {verb} {share(abs(change))} points{between(ends)} of balanced accuracy, from "
        f"{share(row['before'])} to {share(row['after'])} %"
    )


def _judged(row: Row) -> str:
    if row["is_constant"]:
        return ", one answer to all such images, so that it says nothing"
    if row["p_holm"] is None:
        return ", a control"
    if row["is_small"]:
        return "; cannot tell, for a class has too few independent images"
    if row["verdict"] in POSITIVE:
        of = {"classifier": " of reliance on ", "probe": " of a shortcut in "}.get(row["by"], "")
        return f"; {VERDICTS[row['verdict']]}{of + row['finds'] if of and row['finds'] else ''}"
    if row["asks"] == "control":
        return f"; {VERDICTS['cannot_tell'] if row['verdict'] == 'cannot_tell' else 'at chance, as it must be'}"
    if row["verdict"] == "none":
        return f"; more than {share(max(row['high'], MARGIN))} points are excluded"
    if row["doubt"]:
        return f"; cannot tell: {row['doubt']}"
    return f"; cannot tell, since {share(row['high'])} points are not excluded"


def read_tests(
    tests: Sequence[Row], *, accuracy: Mapping[str, float], masks: bool, broken: Sequence[str] = ()
) -> AuditReading:
    """What all tests together say, in words and with their reasons; the sentence that matters most comes first.

    Args:
        tests: rows of `shortcuts.with_verdicts`.
        accuracy: balanced accuracy of the classifier on the images as they are: value, low, chance.
        masks: whether a lung region was known, so that the tests on it ran.
        broken: sentences, one for each control that is not what it must be; each stops both verdicts.
    """
    stopped = list(broken)
    for row in (t for t in tests if t["asks"] == "control" and t["verdict"] in POSITIVE):
        who = _BY[row["by"]].rsplit(" ", 1)[0]
        stopped.append(
            f"A control failed: {who} should name shuffled labels at chance ({share(row['chance'])} %), but the "
            f"balanced accuracy is {share(row['after'])} %, {points(row['effect'])} points{between(row, points)} from "
            "it."
        )
    if stopped:
        return AuditReading(
            "cannot_tell", "cannot_tell", [*stopped, "No verdict: neither on the classifier nor on the data."]
        )
    offered, told = _data_verdict([t for t in tests if t["asks"] == "data"], masks)
    used, why = _classifier_verdict([t for t in tests if t["asks"] == "classifier"], offered, accuracy, masks)
    ahead = offered in POSITIVE and (used not in POSITIVE or _lead(tests)["name"] == _FILE)
    return AuditReading(used, offered, [*told, *why] if ahead else [*why, *told])


def _classifier_verdict(
    tests: Sequence[Row], offered: str, accuracy: Mapping[str, float], masks: bool
) -> tuple[str, list[str]]:
    """By the tests of the classifier as it is; what the data offer can only keep it from being acquitted."""
    level, positive, own, blind = _summary(tests)
    if positive:
        return level, [f"{level.capitalize()} reliance on non-lung content.", *(t["words"] for t in positive[:3])]
    above = accuracy["value"] - accuracy["chance"]
    if accuracy["low"] <= accuracy["chance"]:
        why = "it is not shown to be better than chance"
    elif not masks:
        why = "no lung region is known, so no test could take the lungs away"
    elif not any(t["finds"] == OUTSIDE for t in own):
        why = "no test that takes the lungs away or swaps what is around them can tell"
    elif blind:
        why = blind
    elif offered in POSITIVE:
        why = "no test shows that it uses what the images offer without lungs, and none can show that it does not"
    elif above < STRONG:
        why = f"it is {share(above)} points better than chance, so it has less than {share(STRONG)} to lose"
    else:
        most = max(own, key=lambda t: t["high"])
        which = " that can tell" if len(own) < len(tests) else ""
        return "none", [
            f"No reliance of {share(STRONG)} points or more on non-lung content: each of {len(own)} tests of the "
            f"classifier{which} excludes it (largest upper limit: {share(most['high'])} points, {most['title']})."
        ]
    return "cannot_tell", [f"Cannot tell whether the classifier relies on non-lung content: {why}."]


def _summary(tests: Sequence[Row]) -> tuple[str, list[Row], list[Row], str]:
    """(verdict of the positive tests, these, the largest effect first; the tests whose small effect says something, and
    why they cannot tell, or nothing)."""
    positive = sorted((t for t in tests if t["verdict"] in POSITIVE), key=lambda t: -t["effect"])
    level = "strong" if any(t["verdict"] == "strong" for t in positive) else "some"
    own = [t for t in tests if not t["is_constant"] and not t["doubt"]]
    blind = [t["high"] for t in own if t["verdict"] == "cannot_tell"]
    why = (
        f"{len(blind)} of {len(own)} tests do not exclude {share(STRONG)} points (up to {share(max(blind, default=0))})"
    )
    return level, positive, own, why if blind else ""


def _data_verdict(tests: Sequence[Row], masks: bool) -> tuple[str, list[str]]:
    """By trees on what is measured without lungs, and by probes fitted anew on images without them."""
    level, positive, own, why = _summary(tests)
    if positive:
        return level, _offered(positive)
    if not own or not masks:
        why = "no altered image can tell" if masks else "no lung region is known"
    if why:
        return "cannot_tell", [f"Cannot tell what the images offer without lungs: {why}."]
    most = share(max(t["high"] for t in own))
    return "none", [
        f"Without lungs the images do not tell the class: {len(own)} tests exclude more than {most} points beyond "
        "chance."
    ]


def _lead(tests: Sequence[Row]) -> Row:
    """What names the class best without a lung: one group of features, else the largest effect of all.

    The file, which no altered image can take away, is preferred where it is strong and `MARGIN` from the best.
    """
    positive = [t for t in tests if t["asks"] == "data" and t["verdict"] in POSITIVE]
    single = [t for t in positive if t["by"] == "trees" and t["name"] != _TOGETHER]
    most = max(single or [t for t in positive if t["before"] is None] or positive, key=lambda t: t["effect"])
    file = [t for t in single if t["name"] == _FILE and t["verdict"] == "strong"]
    return file[0] if file and file[0]["effect"] >= most["effect"] - MARGIN else most


def _offered(positive: Sequence[Row]) -> list[str]:
    """What names the class without a lung; `positive` begins with the largest effect."""
    first = _lead(positive)
    if first["by"] != "trees":
        return [str(first["words"])]
    title = first["title"][0].upper() + first["title"][1:]
    ends = {
        end: min(1.0, first[end] + first["chance"]) for end in ("low", "high")
    }  # of the accuracy, not beyond chance
    said = (
        f"{title} alone name the class with {share(first['after'])} % balanced accuracy{between(ends)} "
        f"(chance {share(first['chance'])} %)."
    )
    rest = [t for t in positive if t["by"] == "trees" and t["name"] not in {_TOGETHER, first["name"]}]
    also = "; and ".join(f"{t['title']} ({share(t['after'])} %)" for t in rest[:2])
    return [said, *([f"So do {also}."] if also else [])]
