"""Class names of a listing: tidied, renamed as the user says, and refused where two may be one class."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from thoraclip.data.layouts.listing import Listing, index_command
from thoraclip.delimited import NO_CLASS
from thoraclip.errors import ManifestError, printable
from thoraclip.spelling import LabelMap, require_distinct, tidy, tidy_note
from thoraclip.tables.manifest import SPLITS

__all__ = ["require_classes", "settle_labels"]


def settle_labels(listing: Listing, label_map: LabelMap | None = None, *, where: object = "") -> tuple[str, ...]:
    """Give the rows their final labels, and note what was merged; see `spelling`. `where` begins an error.

    Returns:
        The classes that the user keeps apart from similar ones.

    Raises:
        ConfigError: an old class of the map that no image has.
        ManifestError: two classes may be one, or one would be none or several in a table.
    """
    rename = label_map or LabelMap()
    untidy: Counter[str] = Counter()
    for row in listing.rows:
        if label := row.get("label"):
            row["label"] = tidy(label) or None
            untidy[label] += row["label"] != label
    if changed := +untidy:
        listing.notes.append(tidy_note("labels", changed))
    before = Counter(row["label"] for row in listing.rows if row.get("label"))
    rename.require_known(before)
    for row in listing.rows:
        row["label"] = rename(row.get("label"))
    renamed = [(old, rename(old), images) for old, images in before.items() if rename(old) != old]
    listing.notes += [f"label '{old}' -> {repr(new) if new else 'unknown'} in {n} rows" for old, new, n in renamed]
    counts = Counter(row["label"] for row in listing.rows if row["label"])
    for label in counts:
        if "|" in label or label.lower() in NO_CLASS:
            means = "several classes" if "|" in label else "no label"
            raise ManifestError(
                f"{where or listing.root}: label '{label}' stands for {means} in tables; rename it, or leave its "
                f"images unlabelled by --label-map '{label}='"
            )
    require_distinct(counts, str(where or listing.root), kept=rename.kept)
    pairs = {(row["label"], row["split"]) for row in listing.rows if row["label"] and row.get("split")}
    trained = {label for label, split in pairs if split == "train"}
    listing.notes += [
        f"class '{label}' has images in {' and '.join(s for s in SPLITS if (label, s) in pairs)} and none in train; "
        "split again before training: thoraclip split"
        for label in (sorted({label for label, _ in pairs} - trained) if trained else ())
    ]
    return rename.kept


def require_classes(listing: Listing, where: Path) -> None:
    """Raise ManifestError for fewer than two classes; the folders of a sole class folder may be meant."""
    labels = {row["label"] for row in listing.rows} - {None}
    if len(labels) > 1:
        return
    parts = [row["path"].split("/") for row in listing.rows]
    inner = sorted({part[1] for part in parts if len(part) > 2})
    remedy = "add labelled images of another"
    if where == listing.root and len(inner) > 1 and len({part[0] for part in parts}) == 1:
        remedy += f", or, if {', '.join(inner[:3])} are the classes: {index_command(where / parts[0][0])}"
    what = f"the only class is '{labels.pop()}'" if labels else "no image has a label"
    raise ManifestError(printable(f"{where}: {what}; a classifier needs two classes or more; {remedy}"))
