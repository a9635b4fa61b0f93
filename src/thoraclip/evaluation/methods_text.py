"""The paragraph "Statistical methods" of a report: what was computed, in words that can go into a paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thoraclip.evaluation.compare import MODELS
from thoraclip.evaluation.trainings import FOLDS, PATIENTS, SEEDS
from thoraclip.pages import counted

__all__ = ["statistical_methods"]

_SOURCES = {
    PATIENTS: "of methods that are not trained, percentiles of the paired bootstrap differences",
    SEEDS: "over seeds, Student's t with the variance over {unit}s plus that over seeds (Welch-Satterthwaite)",
    FOLDS: "over folds, Student's t with the variance over {unit}s plus what the folds' spread exceeds it by, times "
    "1/K + 1/(K - 1) (Nadeau and Bengio 2003)",
}


def statistical_methods(report: Mapping[str, Any]) -> str:
    """One paragraph, from what stands in a report that was judged; empty where nothing was.

    Args:
        report: content of `report.json`.
    """
    sample, drawn = report["sample"], report["bootstrap"]
    if sample is None:
        return ""
    unit = sample["unit"]
    said = [
        f"Metrics were computed on {counted(sample['n'], 'image')} of {counted(sample['groups'], unit)}"
        if unit == "patient"
        else f"Metrics were computed on {counted(sample['n'], 'image')}, whose patients are not known",
    ]
    if sample["groups"] > 1:
        said.append(
            f"variances over {unit}s come from {drawn['resamples']:,} bootstrap resamples of {unit}s (seed "
            f"{drawn['seed']})"
        )
        said.append(
            "95 % intervals of shares, F1, AUROC and average precision are Wilson's at the effective sample size, with "
            "Student's t; those of losses are percentiles, and of the calibration error bias-corrected percentiles"
        )
    return f"{'; '.join(said)}. {_comparisons(report)}{_trust(report)}{_useful(report)}{_external(report)}".strip()


def _comparisons(report: Mapping[str, Any]) -> str:
    rows = [row for row in report["comparisons"] if row["p"] is not None]
    if not rows:
        return ""
    unit = report["sample"]["unit"]
    found = {row["source"] for row in rows if row["claim"] != MODELS}
    how = [words.format(unit=unit) for source, words in _SOURCES.items() if source in found]
    if any(row["claim"] == MODELS for row in rows):
        how.append(
            f"between single trainings, percentiles of the paired bootstrap differences over {unit}s, which compare "
            "the two trained models and not the methods"
        )
    test = "; McNemar's exact test, with patients as the unit, compares single tables of answers"
    mcnemar = test if any(row["mcnemar_p"] is not None for row in rows) else ""
    return (
        f"Methods were compared pairwise on the same images: {'; '.join(how)}{mcnemar}. P values are two-sided and "
        "corrected over all pairs of a metric by Holm's method. "
    )


def _trust(report: Mapping[str, Any]) -> str:
    fitted = [m["trust"] for m in report["methods"] if m.get("trust") and m["trust"]["reason"] is None]
    if not fitted:
        return ""
    sets, point = fitted[0]["conformal"], fitted[0]["operating_point"]
    temperatures = "temperatures, " if any(one["temperature"]["reason"] is None for one in fitted) else ""
    return (
        f"On validation images were fitted: {temperatures}class-conditional prediction sets "
        f"({100 * sets['promised']:.0f} %; split conformal prediction) and thresholds (sensitivity "
        f"{100 * point['goal']:.0f} % on average for new patients), the latter two with every patient weighing the "
        "same (Dunn, Wasserman and Ramdas 2022). "
    )


def _external(report: Mapping[str, Any]) -> str:
    if not any(one["methods"] for one in report["external"]):
        return ""
    return (
        "Differences between external and internal values have intervals from both (Zou and Donner 2008), and P values "
        "of Student's t, corrected over the methods by Holm's method. "
    )


def _useful(report: Mapping[str, Any]) -> str:
    unit = report["sample"]["unit"]
    said = "" if report["sample"]["groups"] == 1 else "Bands of curves and intervals of net benefit are pointwise. "
    said += "Predictive values have intervals from those of sensitivity and specificity (Donner and Zou 2012). "
    if any(m.get("subgroups") for m in report["methods"]):
        said += (
            "Gaps between groups have intervals from both (Zou and Donner 2008), AUROCs of groups DeLong's variance by "
            f"{unit} (Obuchowski 1997); the equalised-odds gap was tested by permuting group labels among {unit}s of "
            "the same classes, with P values corrected over the columns by Holm's method. "
        )
    return said
