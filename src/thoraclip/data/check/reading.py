"""The findings in words: leaks (a picture or patient on both sides of a split) and warnings (all that one should know)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thoraclip.pages import counted
from thoraclip.tables.manifest import Manifest

__all__ = ["leaks", "reading", "warnings"]

_TELLING = 0.1
"""A column is worth a sentence where even the low end of its interval lies this far above chance."""
_CHEST = ("CHEST", "THORAX", "LUNG", "PORT CHEST", "TORAX")


def reading(content: Mapping[str, Any]) -> list[str]:
    """What stands on top of the page: may one train and judge on this split, and what would a shortcut score?"""
    sentences = [_headline(content)]
    together = next((row for row in content["differences"] if row["kind"] == "together" and row["alone"]), None)
    if together:
        first = next((row for row in content["differences"] if row is not together and row["alone"]), together)
        sentences.append(
            f"Without any anatomy, {together['description']} names the class with a balanced accuracy of "
            f"{_interval(together['alone'])}, {first['name'].replace('_', ' ')} alone with {_interval(first['alone'])}; "
            f"chance is {100 * together['alone']['chance']:.0f} %."
        )
    return sentences


def _headline(content: Mapping[str, Any]) -> str:
    if content["leaks"]:
        return "This split leaks: what is measured on it is too good to be true."
    parts = content["counts"]["parts"]
    if parts == ["no split"]:
        return "There is no split yet, so nothing can leak; split it with: thoraclip split."
    return "No leak found: no known patient and no picture stands on both sides of the split."


def leaks(content: Mapping[str, Any]) -> list[str]:
    """One sentence for each kind of leak."""
    sentences = []
    shared = content["patients"]["in_two_splits"]
    if shared:
        first = shared[0]
        sentences.append(
            f"{counted(len(shared), 'patient')} in two parts of the split, first '{first['patient']}' "
            f"({', '.join(first['values'])}); split again by patient: thoraclip split"
        )
    crossing = [g for g in content["duplicates"]["groups"] if g["across_part"]]
    if crossing:
        images = sum(len(g["image_id"]) for g in crossing)
        sentences.append(
            f"{counted(len(crossing), 'picture')} in two parts of the split ({images} images), first "
            f"{_equal(crossing[0])}; keep copies together: thoraclip split MANIFEST --duplicates CHECK_DIR"
        )
    return sentences


def warnings(content: Mapping[str, Any], manifest: Manifest) -> list[str]:
    """One sentence for each thing that a careful reader would want to know before training."""
    return [*_of_files(content, manifest), *_of_patients(content), *_of_copies(content), *_of_looks(content)]


def _of_files(content: Mapping[str, Any], manifest: Manifest) -> list[str]:
    sentences = []
    if content["unreadable"]:
        first = content["unreadable"][0]
        sentences.append(
            f"{counted(len(content['unreadable']), 'picture')} cannot be used, first {first['path']}: {first['reason']}"
        )
    unknown = sum(content["counts"]["classes"].get("unknown", []))
    if unknown and None in manifest.column("label"):
        sentences.append(f"{counted(unknown, 'image')} without a label; they are neither trained on nor judged")
    if "body_part" in manifest.table.column_names:
        parts = [part for part in manifest.column("body_part") if part is not None and part not in _CHEST]
        if parts:
            sentences.append(f"{counted(len(parts), 'image')} of another body part than the chest, first '{parts[0]}'")
    return sentences


def _of_patients(content: Mapping[str, Any]) -> list[str]:
    sentences, known = [], content["patients"]
    if not known["known"]:
        sentences.append("patients are not known: several images of one may stand on both sides of any split")
    elif known["images_of_unknown_patients"]:
        sentences.append(f"{counted(known['images_of_unknown_patients'], 'image')} of unknown patients")
    two = known["under_two_labels"]
    if two:
        sentences.append(
            f"{counted(len(two), 'patient')} under two labels ({sum(p['images'] for p in two)} images), first "
            f"'{two[0]['patient']}' ({', '.join(two[0]['values'])})"
        )
    return sentences


def _of_copies(content: Mapping[str, Any]) -> list[str]:
    groups = content["duplicates"]["groups"]
    sentences = []
    if groups:
        identical = sum(pair["kind"] == "identical" for pair in content["duplicates"]["pairs"])
        images = sum(len(g["image_id"]) for g in groups)
        sentences.append(
            f"{counted(len(groups), 'picture')} more than once ({images} images; {counted(identical, 'pair')} of identical files, "
            f"{len(content['duplicates']['pairs']) - identical} of near duplicates), first {_equal(groups[0])}"
        )
    for name, what in (("label", "under two labels"), ("patient", "under two patients")):
        torn = [g for g in groups if g[f"across_{name}"]]
        if torn:
            values = ", ".join(sorted({str(v) for v in torn[0][name] if v is not None}))
            sentences.append(f"{counted(len(torn), 'picture')} {what}, first {_equal(torn[0])} ({values})")
    return sentences


def _of_looks(content: Mapping[str, Any]) -> list[str]:
    sentences = []
    alone = [row for row in content["differences"] if row["kind"] != "together" and row["alone"]]
    telling = [row for row in alone if row["alone"]["low"] > row["alone"]["chance"] + _TELLING]
    if telling:
        shown = ", ".join(f"{row['name'].replace('_', ' ')} {_interval(row['alone'])}" for row in telling[:4])
        sentences.append(
            f"{counted(len(telling), 'column')} without anatomy can name the class (balanced accuracy, chance "
            f"{100 * telling[0]['alone']['chance']:.0f} %): {shown}{', ...' if len(telling) > 4 else ''}"
        )
    marked = content["marks"]
    if marked["images"]:
        shares = ", ".join(f"{label} {100 * m['value']:.0f} %" for label, m in marked["per_class"].items() if m["of"])
        sentences.append(f"burned-in text or markers in {counted(len(marked['images']), 'image')} ({shares})")
    return sentences


def _interval(found: Mapping[str, float]) -> str:
    return f"{100 * found['value']:.0f} % [{100 * found['low']:.0f}, {100 * found['high']:.0f}]"


def _equal(group: Mapping[str, Any]) -> str:
    shown = " = ".join(group["image_id"][:3])
    return shown + (" = ..." if len(group["image_id"]) > 3 else "")
