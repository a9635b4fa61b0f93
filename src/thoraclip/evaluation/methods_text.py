"""The paragraph "Statistical methods" of a report: what was computed, in words that can go into a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thoraclip.evaluation.compare import MODELS
from thoraclip.evaluation.reading import listed
from thoraclip.evaluation.trainings import FOLDS, SEEDS
from thoraclip.pages import counted

__all__ = ["statistical_methods"]

_SPREADS = {
    SEEDS: "the variance of the mean over seeds was added",
    FOLDS: "what the variance over folds exceeds that over {unit}s by was added, times 1/K + 1/(K - 1) (Nadeau and "
    "Bengio 2003)",
}


def statistical_methods(report: Mapping[str, Any]) -> str:
    """One paragraph, from the content of a `report.json`; empty where nothing was judged."""
    sample, drawn = report["sample"], report["bootstrap"]
    if sample is None:
        return ""
    unit, images = sample["unit"], counted(sample["n"], "image")
    known = f" of {counted(sample['groups'], unit)}" if unit == "patient" else ", whose patients are not known"
    said = f"Metrics were computed on {images}{known}. "
    if sample["groups"] > 1:
        said += (
            f"Variances over {unit}s come from {drawn['resamples']:,} bootstrap resamples of {unit}s (seed "
            f"{drawn['seed']}). {_trainings(report['methods'], unit)}95 % intervals of shares, F1, AUROC and average "
            "precision are Wilson's at the effective sample size, with Student's t (degrees of freedom after "
            "Satterthwaite); those of losses are percentiles, and of the calibration error bias-corrected percentiles. "
        )
    said += _comparisons(report) + _trust(report) + _useful(report)
    if any(one["methods"] for one in report["external"]):
        said += (
            "Differences between external and internal values have intervals from both (Zou and Donner 2008), and P "
            "values of Student's t, corrected over the methods by Holm's method. "
        )
    if curve := report.get("learning_curve"):
        said += (
            f"Points of the learning curve are means over {curve['draws']} nested draws of {curve['unit']}s, whose "
            "variance s^2 was added times 1/D + K k/(N - k) (D draws of k from N in each of K folds; delete-d "
            "jackknife, Shao and Wu 1989); its gains are paired by draw and by test image. "
        )
    return said.strip()


def _trainings(methods: Sequence[Mapping[str, Any]], unit: str) -> str:
    """What was done about the spread over trainings."""
    found = {m["spread"] for m in methods}
    said = [words.format(unit=unit) for source, words in _SPREADS.items() if source in found]
    added = f"For methods that were trained several times, {' or '.join(said)}. " if said else ""
    once = [m["name"] for m in methods if m["trained"] and m["spread"] is None]
    left_out = f"The spread over trainings is in no interval of {listed(once)}, trained once. " if once else ""
    return added + left_out


def _comparisons(report: Mapping[str, Any]) -> str:
    rows = [row for row in report["comparisons"] if row["p"] is not None]
    if not rows:
        return ""
    single = any(row["claim"] == MODELS for row in rows)
    models = ", which compares two trained models and not the methods where one was trained once" if single else ""
    test = f"; McNemar's exact test, with {report['sample']['unit']}s as the unit, compares single tables of answers"
    mcnemar = test if any(row["mcnemar_p"] is not None for row in rows) else ""
    return (
        "Methods were compared pairwise on the same images by Student's t test of the paired difference, with these "
        f"variances{models}{mcnemar}. P values are two-sided, corrected over all pairs of a metric by Holm's method. "
    )


def _trust(report: Mapping[str, Any]) -> str:
    fitted = [m["trust"] for m in report["methods"] if m.get("trust") and m["trust"]["reason"] is None]
    if not fitted:
        return ""
    sets, point = fitted[0]["conformal"], fitted[0]["operating_point"]
    fits = {"temperature": "temperatures", "vector": "vector scalings"}
    scalings = [words for fit, words in fits.items() if any(one[fit]["reason"] is None for one in fitted)]
    temperatures = "".join(f"{words}, " for words in scalings)
    return (
        f"On validation images were fitted: {temperatures}class-conditional prediction sets "
        f"({100 * sets['promised']:.0f} %; split conformal prediction) and thresholds (sensitivity "
        f"{100 * point['goal']:.0f} % on average for new patients), the latter two with every patient weighing the "
        "same (Dunn, Wasserman and Ramdas 2022). "
    )


def _useful(report: Mapping[str, Any]) -> str:
    unit = report["sample"]["unit"]
    if report["sample"]["groups"] == 1:
        return ""
    said = "Bands of curves and intervals of net benefit are pointwise percentiles. "
    said += "Predictive values have intervals from those of sensitivity and specificity (Donner and Zou 2012). "
    if any(m.get("subgroups") for m in report["methods"]):
        said += (
            "Gaps between groups have intervals from both (Zou and Donner 2008), AUROCs of groups DeLong's variance by "
            f"{unit} (Obuchowski 1997); the equalised-odds gap was tested by "
            f"{min(1000, report['bootstrap']['resamples']):,} permutations of group labels among {unit}s of the same "
            "classes, with P values corrected over the columns by Holm's method. "
        )
    return said
