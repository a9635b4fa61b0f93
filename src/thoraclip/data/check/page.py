"""A check in words: leaks, warnings (all else to know), and the pages, HTML (copies side by side) and Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow.compute as pc
from PIL import Image, ImageDraw

from thoraclip.data.appearance import find_marks
from thoraclip.data.batches import picture_loader
from thoraclip.dtypes import Greys
from thoraclip.pages import counted, environment, picture_or_reason
from thoraclip.tables.manifest import Manifest

__all__ = ["html_page", "label_errors_page", "leaks", "markdown_page", "warnings"]

_PAIRS, _MARKED, _LISTED = 40, 12, 50
"""How many pairs and marked pictures the page shows, and how many rows of a list; `check.json` holds all."""
_SUSPECTED, _LARGE = 200, 480
"""How many suspected label errors their page shows, and the longer side of a picture there, in pixels."""
_SIDE, _FRAME = 220, (230, 159, 0)
_TELLING = 0.1  # a column is worth a sentence where even the low end of its interval lies this far above chance
_UNSEEN = (
    "No picture was looked at: near duplicates were not searched, nor files that cannot be read, burned-in text and "
    "what tells the classes apart without anatomy."
)
_CHEST = ("CHEST", "THORAX", "LUNG", "PORT CHEST", "TORAX")


def html_page(content: Mapping[str, Any], manifest: Manifest) -> str:
    """The content of a `check` as a self-contained page; the manifest tells where the images are."""
    looked = content.get("pictures", True)
    pairs, rows = content["duplicates"]["pairs"][:_PAIRS] if looked else [], content["marks"]["images"][:_MARKED]
    shown = {image for pair in pairs for image in pair["image_id"]} | {row["image_id"] for row in rows}
    load = _loader(manifest, shown)
    pictures = [[picture_or_reason(partial(load, image), _SIDE) for image in pair["image_id"]] for pair in pairs]
    marked = [(row, picture_or_reason(partial(_framed, load, row["image_id"]), _SIDE)) for row in rows]
    context = _context(content) | {"pairs": list(zip(pairs, pictures, strict=True)), "marked": marked}
    return environment("thoraclip.data.check", html=True).get_template("check.html.j2").render(context)


def _loader(manifest: Manifest, shown: set[str]) -> Callable[[str], Greys]:
    """What gives some images by their ids, u8[H, W], at their depths."""
    some = manifest.where(image_id=shown) if shown else manifest.take(np.arange(1))
    paths, load = some.paths_by_id(), picture_loader(some)
    return lambda image: load(paths[image])


def markdown_page(content: Mapping[str, Any]) -> str:
    """The check's sentences and tables as Markdown (GitHub's dialect)."""
    return environment("thoraclip.data.check", html=False).get_template("check.md.j2").render(_context(content))


def _context(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "check": content,
        "looked": content.get("pictures", True),
        "title": "Data check",
        "reading": _reading(content),
        "classes": sorted({label for row in content["differences"] for label in row["per_class"]}),
        "cell": _cell,
        "percent": _percent,
        "listed": _LISTED,
    }


def _cell(shown: Mapping[str, Any] | None) -> str:
    """What a class looks like in one column: median and quartiles, or the commonest values."""
    if shown is None or not shown["n"]:
        return "unknown"
    if "shares" in shown:
        return ", ".join(f"{value} {_percent(share)}" for value, share in list(shown["shares"].items())[:3])
    return f"{_number(shown['median'])} [{_number(shown['q1'])}, {_number(shown['q3'])}]"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _framed(load: Callable[[str], Greys], image_id: str) -> Greys:
    """u8[H, W, 3] with a frame around each burned-in mark."""
    pixels = load(image_id)
    image = Image.fromarray(pixels).convert("RGB")
    width = max(1, min(image.size) // 120)
    draw = ImageDraw.Draw(image)
    for box in find_marks(pixels):
        corner = (box.left + box.width + width, box.top + box.height + width)
        draw.rectangle((box.left - width, box.top - width, *corner), outline=_FRAME, width=width)
    return np.asarray(image)


def _reading(content: Mapping[str, Any]) -> list[str]:
    """What stands on top of the page: may one train and judge on this split, and what would a shortcut score?"""
    has_images = content.get("pictures", True)
    if content["leaks"]:
        sentences = ["This split leaks: what is measured on it is too good to be true."]
    elif content["counts"]["parts"] == ["no split"]:
        sentences = ["There is no split yet, so nothing can leak; split it with: thoraclip split."]
    else:
        what = "picture" if has_images else "file"
        sentences = [f"No leak found: no known patient and no {what} stands on both sides of the split."]
    if not has_images:
        sentences.append(_UNSEEN)
    together, *columns = content["differences"] or [{"alone": None}]
    if together["alone"]:
        first = next((row for row in columns if row["alone"]), together)
        sentences.append(
            f"Without any anatomy, {together['description']} names the class with a balanced accuracy of "
            f"{_interval(together['alone'])}, {first['name'].replace('_', ' ')} alone with "
            f"{_interval(first['alone'])}; chance is {100 * together['alone']['chance']:.0f} %."
        )
    return sentences


def leaks(content: Mapping[str, Any]) -> Iterator[str]:
    """One sentence for each kind of leak."""
    patients, copies = content["patients"], content["duplicates"]
    shared = patients["in_two_splits"]
    if shared:
        number, parts = _in_all(patients, "in_two_splits", len(shared)), ", ".join(shared[0]["values"])
        yield (
            f"{counted(number, 'patient')} in two parts of the split, first '{shared[0]['patient']}' ({parts}); split "
            "again by patient: thoraclip split"
        )
    crossing = [group for group in copies["groups"] if group["across_part"]]
    if crossing:
        number = _in_all(copies, "groups_across_part", len(crossing))
        images = _in_all(copies, "images_across_part", _images(crossing))
        remedy = " --duplicates CHECK_DIR" if content.get("pictures", True) else ""  # identical files need none
        yield (
            f"{counted(number, 'picture')} in two parts of the split ({images} images), first "
            f"{_equal(crossing[0])}; keep copies together: thoraclip split MANIFEST{remedy}"
        )


def _in_all(content: Mapping[str, Any], name: str, listed: int) -> int:
    """How many there are, where a list is cut; else what is listed."""
    return int(content.get("in_all", {}).get(name, listed))


def _images(groups: Sequence[Mapping[str, Any]]) -> int:
    return sum(len(group["image_id"]) for group in groups)


def warnings(content: Mapping[str, Any], manifest: Manifest) -> Iterator[str]:
    """One sentence for each thing that a careful reader would want to know before training."""
    of_labels = _of_labels(content.get("label_errors"))
    return chain(
        _of_files(content, manifest), _of_patients(content), _of_copies(content), of_labels, _of_shortcuts(content)
    )


def _of_labels(content: Mapping[str, Any] | None) -> Iterator[str]:
    if content and (others := content.get("other_labels")):
        first = others[0]
        yield (
            f"the predictions have another label for {len(others):,} of {counted(content['images'], 'image')}, first "
            f"{first['image_id']}: '{first['label']}' here, '{first['label_then']}' there; are they of these images?"
        )
    if content and content["without_prediction"]:
        yield f"{counted(content['without_prediction'], 'image')} without a label or a prediction: not judged"
    if content and content["suspected"]:
        between = ", ".join(f"{r['label']} -> {r['suggested']} {r['images']:,}" for r in content["between"][:3])
        yield (
            f"{counted(len(content['suspected']), 'suspected label error')} in {counted(content['images'], 'image')} "
            f"with a prediction ({between}), by predictions that agree with {_percent(content['agreement'])} of the "
            "labels; see label-errors.html"
        )


def label_errors_page(content: Mapping[str, Any], manifest: Manifest) -> str:
    """Suspected label errors (`check.json`, `label_errors`) as a self-contained page to go through."""
    rows = content["suspected"][:_SUSPECTED]
    load = _loader(manifest, {row["image_id"] for row in rows})
    pictures = [picture_or_reason(partial(load, row["image_id"]), _LARGE) for row in rows]
    reading = [
        f"{counted(len(content['suspected']), 'label')} of {counted(content['images'], 'image')} may be wrong: "
        "classifiers that did not see the image are confident of another class."
        if rows
        else f"No label of {counted(content['images'], 'image')} is suspected.",
        f"The predictions agree with {_percent(content['agreement'])} of the labels. A suspicion is no proof: the "
        "weaker the classifier, the more of them are its own errors. A reader decides.",
    ]
    context = {"title": "Suspected label errors", "reading": reading, "errors": content}
    template = environment("thoraclip.data.check", html=True).get_template("label_errors.html.j2")
    return template.render(context | {"rows": list(zip(rows, pictures, strict=True))})


def _of_files(content: Mapping[str, Any], manifest: Manifest) -> Iterator[str]:
    if not content.get("pictures", True):
        yield _UNSEEN[0].lower() + _UNSEEN[1:-1]
    if content["unreadable"]:
        first = content["unreadable"][0]
        images = counted(len(content["unreadable"]), "picture")
        yield f"{images} cannot be used, first {first['path']}: {first['reason']}"
    if remarks := content.get("remarks"):
        images = counted(len(remarks), "image")
        yield f"remarks on {images}, first {remarks[0]['path']}: {remarks[0]['remark']}"
    is_deep = pc.fill_null(pc.equal(manifest.values("mode"), "I;16"), False).to_numpy()
    deep = int(is_deep.sum()) and sum(not bits for bits in manifest.take(np.flatnonzero(is_deep)).bits)
    if deep:
        yield (
            f"{counted(deep, 'image')} of 16 bits without a depth in the manifest, so that each is scaled by an "
            "estimate of its own; index again: thoraclip index"
        )
    unknown = sum(content["counts"]["classes"].get("unknown", []))
    if unknown and manifest.values("label").null_count:
        yield f"{counted(unknown, 'image')} without a label; they are neither trained on nor judged"
    if "body_part" in manifest.table.column_names:
        counts = manifest.values("body_part").value_counts().to_pylist()  # in the order in which they appear
        parts = {c["values"]: c["counts"] for c in counts if c["values"] is not None and c["values"] not in _CHEST}
        if parts:
            images = counted(sum(parts.values()), "image")
            yield f"{images} of another body part than the chest, first '{next(iter(parts))}'"


def _of_patients(content: Mapping[str, Any]) -> Iterator[str]:
    known = content["patients"]
    if not known["known"]:
        yield "patients are not known: several images of one may stand on both sides of any split"
    elif known["images_of_unknown_patients"]:
        yield f"{counted(known['images_of_unknown_patients'], 'image')} of unknown patients"
    for row in known.get("dominating", ()):
        yield (
            f"{row['part']} holds {row['images']:,} of the {row['of']:,} images of class '{row['label']}', because "
            f"{row['of_patient']:,} are of patient '{row['patient']}'; what is measured on the class is this patient's"
        )
    two = known["under_two_labels"]
    if two:
        number = counted(_in_all(known, "under_two_labels", len(two)), "patient")
        images = _in_all(known, "images_under_two_labels", sum(p["images"] for p in two))
        labels = ", ".join(two[0]["values"])
        yield f"{number} under two labels ({images} images), first '{two[0]['patient']}' ({labels})"


def _of_copies(content: Mapping[str, Any]) -> Iterator[str]:
    copies = content["duplicates"]
    groups, pairs = copies["groups"], copies["pairs"]
    if groups:
        identical = sum(pair["kind"] == "identical" for pair in pairs)
        near = f", {len(pairs) - identical} of near duplicates" if content.get("pictures", True) else ""
        number, images = _in_all(copies, "groups", len(groups)), _in_all(copies, "images", _images(groups))
        same = f"{counted(_in_all(copies, 'pairs', identical), 'pair')} of identical files"
        yield f"{counted(number, 'picture')} more than once ({images} images; {same}{near}), first {_equal(groups[0])}"
    for name, what in (("label", "under two labels"), ("patient", "under two patients")):
        across = [group for group in groups if group[f"across_{name}"]]
        if across:
            values = ", ".join(sorted({str(value) for value in across[0][name] if value is not None}))
            number = _in_all(copies, f"groups_across_{name}", len(across))
            yield f"{counted(number, 'picture')} {what}, first {_equal(across[0])} ({values})"


def _of_shortcuts(content: Mapping[str, Any]) -> Iterator[str]:
    measured = [row for row in content["differences"][1:] if row["alone"]]
    telling = [row for row in measured if row["alone"]["low"] > row["alone"]["chance"] + _TELLING]
    if telling:
        shown = ", ".join(f"{row['name'].replace('_', ' ')} {_interval(row['alone'])}" for row in telling[:4])
        yield (
            f"{counted(len(telling), 'column')} without anatomy can name the class (balanced accuracy, chance "
            f"{100 * telling[0]['alone']['chance']:.0f} %): {shown}{', ...' if len(telling) > 4 else ''}"
        )
    marked = content["marks"]
    if marked["images"]:
        shares = ", ".join(f"{label} {100 * m['value']:.0f} %" for label, m in marked["per_class"].items() if m["of"])
        yield f"burned-in text or markers in {counted(len(marked['images']), 'image')} ({shares})"


def _interval(alone: Mapping[str, float]) -> str:
    return f"{100 * alone['value']:.0f} % [{100 * alone['low']:.0f}, {100 * alone['high']:.0f}]"


def _equal(group: Mapping[str, Any]) -> str:
    shown = " = ".join(group["image_id"][:3])
    return shown + (" = ..." if len(group["image_id"]) > 3 else "")
