"""Captions: one text per image, and whether the class stands in it; ours or a CSV of anyone's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from thoraclip.delimited import read_delimited
from thoraclip.dtypes import Ints
from thoraclip.errors import ManifestError, MismatchError, named
from thoraclip.ranges import require_path
from thoraclip.runs import digest
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.store import open_table, require_place, require_rows, require_table, write_table

__all__ = ["Captions", "append_label", "read_captions", "write_captions"]

_SCHEMA = 1
_COLUMNS = {"image_id": pa.string(), "sha256": pa.string(), "text": pa.string(), "with_label": pa.bool_()}


@dataclass(frozen=True)
class Captions:
    """The texts of N images.

    Args:
        image_id: N unique ids.
        sha256: N digests of the images' contents; `None` where it is unknown.
        text: N texts, none blank.
        with_label: N flags, True where the class was written into the text.
        origin: what made them (JSON-able): captioner, model, weights, preprocessing, settings.

    Raises:
        ManifestError: no row, a length differs, an id is missing or repeats, or a text is blank.
    """

    image_id: tuple[str, ...]
    sha256: tuple[str | None, ...]
    text: tuple[str, ...]
    with_label: tuple[bool, ...]
    origin: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not self.image_id:
            raise ManifestError("captions: no rows; a captions file holds one row per image")
        require_rows("captions", self, ("sha256", "text", "with_label"))
        blank = [i for i, text in zip(self.image_id, self.text, strict=True) if not (text and text.strip())]
        if blank:
            said = f"image '{blank[0]}' has an empty text ({len(blank)} such rows)"
            raise ManifestError(f"captions: {said}; write one, or leave the row out")

    def __len__(self) -> int:
        return len(self.image_id)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over ids, texts and flags: what a model that learns from them depends on."""
        return digest([self.image_id, self.text, self.with_label])

    def rows_for(self, manifest: Manifest, rows: Ints) -> Ints:
        """i64[R]: the row here of each of the manifest's rows i64[R], joined by id, and by content where both know it.

        Raises:
            MismatchError: a caption is for an image that the manifest does not have, or for another content of it, or
                one of the wanted images has no caption.
        """
        contents, ids = manifest.by_id("sha256"), manifest.column("image_id")
        position = {image_id: row for row, image_id in enumerate(self.image_id)}
        wanted = [ids[row] for row in rows]
        known = ((i, own, contents.get(i)) for i, own in zip(self.image_id, self.sha256, strict=True))
        changed = [i for i, own, theirs in known if None not in (own, theirs) and own != theirs]
        for images, problem in (
            (
                [i for i in self.image_id if i not in contents],
                f"of {len(self)} are for images that the manifest does not have, first '{{}}'; they belong to another "
                "manifest: run thoraclip caption on this one",
            ),
            (
                changed,
                "images differ in content from the manifest's, first '{}'; they belong to other data or the files "
                "changed: run thoraclip caption again",
            ),
            (
                [i for i in wanted if i not in position],
                f"of {len(wanted)} images have none, first '{{}}'; add the rows, or make them for the whole manifest: "
                "thoraclip caption",
            ),
        ):
            if images:
                raise MismatchError(f"captions: {len(images)} {problem.format(images[0])}")
        return np.array([position[i] for i in wanted], dtype=np.int64)


def append_label(text: str, label: str) -> str:
    """A caption that tells the class, in the reference study's form."""
    return f"{text}, {label}"


def write_captions(path: Path | str, captions: Captions) -> None:
    """Write Parquet, the origin in its header: equal captions, equal bytes; InputError where the ending is another."""
    path = Path(path)
    require_place(path, "captions")
    table = pa.table({name: pa.array(getattr(captions, name), kind) for name, kind in _COLUMNS.items()})
    write_table(path, table, kind="captions", schema=_SCHEMA, meta={"origin": dict(captions.origin)})


def read_captions(path: Path | str) -> Captions:
    """Read `.parquet` of ours, or `.csv` of anyone's (`image_id`, `caption`), whose texts count as free of the class.

    Raises:
        InputError: the file is missing, or neither Parquet nor CSV.
        ManifestError: a column is missing, or a row does not follow the schema; see `Captions`.
    """
    path = Path(path)
    require_path("captions", path)
    require_table(path, "captions")
    try:
        return _read_csv(path) if path.suffix == ".csv" else _read_parquet(path)
    except ManifestError as error:
        raise ManifestError(named(path, error)) from error


def _read_parquet(path: Path) -> Captions:
    stored = open_table(path, kind="captions", newest_schema=_SCHEMA)
    for name, kind in _COLUMNS.items():
        own = stored.schema.field(name).type if name in stored.schema.names else None
        if own != kind:
            what = "is missing" if own is None else f"holds {own}, not {kind}"
            raise ManifestError(f"column '{name}' {what}; write the captions with: thoraclip caption")
    table, origin = stored.read(), stored.meta.get("origin")
    columns = {name: tuple(table[name].to_pylist()) for name in _COLUMNS}
    return Captions(**columns, origin=dict(origin) if isinstance(origin, Mapping) else {})


def _read_csv(path: Path) -> Captions:
    table = read_delimited(path)
    image_id, caption = table.need("image_id"), table.need("caption")
    rows = [(row.cells[image_id] or "", row.cells[caption] or "") for row in table]
    ids, texts = (tuple(row[at] for row in rows) for at in (0, 1))
    return Captions(ids, (None,) * len(rows), texts, (False,) * len(rows), {"captioner": "csv"})
