"""Manifest: one row per image, with what is known of it; unknown is null.

Millions of images are checked, counted, filtered and written column by column, in little more memory than the table
takes. `column`, `parts` and `paths` hold a Python object for each image: for sets that are decoded and trained on.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from thoraclip.dtypes import Ints, Masks
from thoraclip.errors import InputError, LeakError, ManifestError, did_you_mean, named
from thoraclip.labels import LabelSet
from thoraclip.ranges import BITS
from thoraclip.spelling import require_distinct
from thoraclip.tables.codes import codes, conflicting, folds_of, in_pieces, ranks
from thoraclip.tables.columns import COLUMNS, OPTIONAL, SCHEMA, SPLITS, depths_of, table_digest
from thoraclip.tables.conditions import condition_truth, require_columns, rows_with
from thoraclip.tables.foreign import open_manifest, read_fingerprint
from thoraclip.tables.store import joined, kept, require_place, slices, write_table

__all__ = [
    "COLUMNS", "OPTIONAL", "SPLITS", "Manifest", "depths_of", "read_fingerprint", "read_manifest", "require_place",
    "write_manifest",
]  # fmt: skip


@dataclass(frozen=True)
class Manifest:
    """A checked table of images.

    Args:
        table: the columns of `COLUMNS`, then any others; ids are unique and not null.
        root: the folder that `path` and the mask columns are relative to.
        may_leak: True lets one patient stand in two splits or folds: for reporting and mending it, never for training.
        file: that `read_manifest` read whole; `None` for any other table.
        apart: classes that stay apart from those of similar names; see `spelling`.
        notes: what was tidied when the file was read, one line each.
        selections: what `select` did before, first to last: `where` (its text), `images` (before), `unknown` (left out
            since a value that decides is unknown), `kept`, `manifest` (fingerprint before); kept in the file.

    Raises:
        ManifestError: no row, a repeated or missing id, or an unknown split name.
        LeakError: one patient in two splits or two folds, unless `may_leak`.
    """

    table: pa.Table
    root: Path
    may_leak: bool = False
    file: Path | None = field(default=None, compare=False)
    apart: tuple[str, ...] = field(default=(), compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)
    selections: tuple[Mapping[str, Any], ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        ids = self.values("image_id")
        if not len(ids):
            raise ManifestError("manifest: no rows; a manifest holds one row per image")
        if ids.null_count:
            row = pc.index(ids.is_null(), True).as_py() + 1
            raise ManifestError(f"manifest: row {row} has no image_id; every image has one of its own")
        rank = ranks(ids)
        repeated = np.bincount(rank) > 1
        if repeated.any():
            said = f"image_id '{ids[int(np.argmax(repeated[rank]))]}' is repeated ({repeated.sum()} such ids)"
            raise ManifestError(f"manifest: {said}; every image has one of its own")
        for split in sorted(self.values("split").unique().drop_null().to_pylist()):
            if split not in SPLITS:
                raise ManifestError(f"manifest: split '{split}' is unknown{did_you_mean(split, SPLITS)}")
        for bits in self.table["bits"].unique().to_pylist() if "bits" in self.table.column_names else ():
            if isinstance(bits, int) and bits and bits not in BITS:
                raise ManifestError(f"manifest: bits = {bits}: 8 to 16 are expected; index the images again")
        for column in () if self.may_leak else ("split", "fold"):
            shared = self.table["patient"].filter(pa.array(self.conflicting(column)))
            if len(shared):
                said = f"patient '{pc.min(shared)}' stands in two {column}s ({pc.count_distinct(shared)} such patients)"
                raise LeakError(f"manifest: {said}; split again by patient: thoraclip split")

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]], root: Path, *, may_leak: bool = False) -> Manifest:
        """Build from one mapping per image; absent columns are null, extra ones are kept after the known ones."""
        extra = sorted({name for row in rows for name in row} - set(COLUMNS))
        kinds = {**COLUMNS, **{name: OPTIONAL.get(name, pa.string()) for name in extra}}
        columns = {name: pa.array([row.get(name) for row in rows], kind) for name, kind in kinds.items()}
        return cls(pa.table(columns), root, may_leak)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def values(self, name: str) -> pa.ChunkedArray:
        """One column as it is held; raises ManifestError for a name that is not there."""
        require_columns([name], self.table.column_names)
        return self.table[name]

    def column(self, name: str) -> list[Any]:
        """One column as a list; raises as `values` does."""
        return list(self.values(name).to_pylist())

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that a result can depend on: ids, contents, labels, splits, folds, patients."""
        return table_digest(self.table)

    @property
    def content_fingerprint(self) -> str:
        """SHA-256 over ids, picture contents and depths alone: what an embedding depends on."""
        return table_digest(self.table, ("image_id", "sha256"))

    @property
    def bits(self) -> list[int | None]:
        """The depth of each image's samples; `None` where they have 8 bits, or the depth was not looked for."""
        return depths_of(self.table)

    @property
    def usual_bits(self) -> int | None:
        """The commonest depth of the images, the larger of two as common; `None` where none has one."""
        counted = Counter(filter(None, self.bits))
        return max(counted, key=lambda bits: (counted[bits], bits), default=None)

    def label_set(self, classes: Sequence[str] = ()) -> LabelSet:
        """The classes as given, or the sorted labels; raises ManifestError where a given class has no image, or a label
        is another; or where none are given and two may be one class."""
        counted = {label: images for (label,), images in self.tally("label") if label is not None}
        held = sorted(counted)
        if not classes:
            remedy = "add to thoraclip index: {} (or name the classes of a study or method: classes = [...])"
            require_distinct(counted, str(self.file or "manifest"), kept=self.apart, remedy=remedy)
        labels = LabelSet(tuple(classes or held))
        for name in labels.names:
            if name not in held:
                near = did_you_mean(name, held)
                raise ManifestError(f"class '{name}' has no image{near}; add images or drop the class")
        for name in held:
            labels.index(name)
        return labels

    def targets(self, labels: LabelSet) -> Ints:
        """i64[N]: index of each image's class, -1 where the label is unknown."""
        number, names = codes(self.values("label"))
        return np.array([*map(labels.index, names), -1], dtype=np.int64)[number]

    def parts(self) -> list[str | None]:
        """`fold 3`, `train`, ... of every image; `None` for one without."""
        parts = zip(self.column("split"), self.column("fold"), strict=True)
        return [split if fold is None else f"fold {fold}" for split, fold in parts]

    def tally(self, *names: str, most: int | None = None) -> list[tuple[tuple[Any, ...], int]]:
        """The commonest combinations of values of some columns, `most` of them, and how many images have each."""
        counted = self.table.select(names).group_by(list(names)).aggregate([([], "count_all")])
        order = [("count_all", "descending"), *((name, "ascending") for name in names)]
        counted = counted.sort_by(order).slice(0, most)
        values = zip(*(counted[name].to_pylist() for name in names), strict=True)
        return list(zip(values, counted["count_all"].to_pylist(), strict=True))

    def counts(self) -> tuple[list[str], dict[str, list[int]]]:
        """(parts in the order of use, label -> images in each part); without a part: `no split`, a label: `unknown`."""
        table: Counter[tuple[str, str]] = Counter()
        for (label, split, fold), images in self.tally("label", "split", "fold"):
            table[label or "unknown", (split if fold is None else f"fold {fold}") or "no split"] += images
        parts = {part for _, part in table}
        names = sorted(parts, key=lambda part: (SPLITS.index(part) if part in SPLITS else len(SPLITS), part))
        return names, {label: [table[label, part] for part in names] for label in sorted({key[0] for key in table})}

    def rows_of(self, sha256: str) -> list[dict[str, Any]]:
        """What stands here of an image and its copies, by the SHA-256 of their bytes; raises ManifestError where that
        cannot be known, since it is not among those that have one, and others have none."""
        hashes = self.values("sha256")
        rows: list[dict[str, Any]] = self.table.filter(pc.equal(hashes, sha256)).to_pylist()
        if hashes.null_count and not rows:
            said = f"{hashes.null_count} images have no sha256, by which an image is known"
            raise ManifestError(f"{self.file or 'manifest'}: {said}; index the folder again: thoraclip index")
        return rows

    def lung_mask_of(self, rows: Sequence[Mapping[str, Any]]) -> Path | None:
        """Absolute path of the first lung mask in some of the table's rows; `None` where they have none."""
        return next((self.root / row["lung_mask"] for row in rows if row["lung_mask"]), None)

    def paths(self) -> list[Path]:
        """Absolute path of every picture."""
        return [self.root / path for path in self.column("path")]

    def by_id(self, name: str) -> dict[str, Any]:
        """One column as image id -> value."""
        return dict(zip(self.column("image_id"), self.column(name), strict=True))

    def paths_by_id(self) -> dict[str, Path]:
        """Image id -> absolute path of the picture."""
        return dict(zip(self.column("image_id"), self.paths(), strict=True))

    def take(self, rows: Ints) -> Manifest:
        """The given rows, in the given order, as a new manifest."""
        return replace(self, table=self.table.take(pa.array(rows)), file=None)

    def where(self, **values: Any) -> Manifest:
        """The images whose columns hold the given value, or one of several (list, tuple or set; None is unknown).

        What is kept is held beside this table; `read_manifest` with `where` never holds the rest.

        Raises:
            ManifestError: no such column, a value that is none of its type, or no image is left.
        """
        rows = kept(slices(self.table), rows_with(self.table, values))
        return replace(self, table=joined(rows), file=None) if values else self

    def select(self, where: str) -> Manifest:
        """The images for which a condition is true (see `tables.conditions`), which `selections` then names.

        Raises:
            ConfigError: not a condition, or it does not fit the columns.
            ManifestError: no image has a value that it names, or none is left.
        """
        truth = condition_truth(where, self.table)
        count = pc.sum(truth).as_py() or 0
        if not count:
            raise ManifestError(f"manifest: no image is left by --where '{where}'; ask for less")
        done = {"where": where, "images": len(self), "unknown": truth.null_count, "kept": count}
        selections = (*self.selections, {**done, "manifest": self.fingerprint})
        return replace(self, table=joined(kept(slices(self.table), truth)), file=None, selections=selections)

    def with_columns(self, **values: Sequence[Any] | pa.Array) -> Manifest:
        """A new manifest with some columns replaced or added (added ones are text)."""
        columns = {name: self.table[name] for name in self.table.column_names}
        for name, column in values.items():
            kind = COLUMNS.get(name) or OPTIONAL.get(name, pa.string())
            columns[name] = column.cast(kind) if isinstance(column, pa.Array) else pa.array(column, kind)
        return replace(self, table=pa.table(columns), file=None)

    def strict(self) -> Manifest:
        """The same manifest, refused where one patient stands in two splits or folds (LeakError)."""
        return replace(self, may_leak=False) if self.may_leak else self

    def conflicting(self, column: str) -> Masks:
        """bool[N]: the images, with a known value, of patients with more than one known value of a column."""
        values = folds_of(self.values("fold"), self.values("split")) if column == "fold" else self.values(column)
        if values.null_count == len(values) or self.values("patient").null_count == len(values):
            return np.zeros(len(values), dtype=bool)
        return conflicting(ranks(self.values("patient")), codes(values)[0])

    def patients_in_two(self, column: str) -> dict[str, tuple[str, ...]]:
        """Patients with more than one known value of `split`, `fold` (see `folds_of`) or `label` -> those, sorted."""
        values = defaultdict[str, set[str]](set)
        for row in self.table.select(["patient", column]).filter(pa.array(self.conflicting(column))).to_pylist():
            values[row["patient"]].add("train" if row[column] is None else str(row[column]))
        return {patient: tuple(sorted(known)) for patient, known in sorted(values.items())}


def write_manifest(path: Path | str, manifest: Manifest) -> None:
    """Write Parquet, with the root, so that the file can lie anywhere on the machine; InputError for another ending."""
    path = Path(path)
    require_place(path, "manifest")
    lists = {"selections": [dict(done) for done in manifest.selections], "apart": list(manifest.apart)}
    meta = {"root": str(manifest.root.resolve()), **{name: held for name, held in lists.items() if held}}
    write_table(path, manifest.table, kind="manifest", schema=SCHEMA, meta=meta)


def read_manifest(path: Path | str, *, may_leak: bool = False, where: Mapping[str, Any] | None = None) -> Manifest:
    """Read a manifest; pictures are looked for under the root stored in it, or, where that is gone, beside it.

    Args:
        may_leak: see `Manifest`.
        where: column -> value or values; the other images are left in the file. See `Manifest.where`.

    Raises:
        InputError: the file is missing, or none of its pictures is in either place.
        ManifestError: not a manifest; see `Manifest`.
    """
    path = Path(path)
    if path.suffix == ".csv":
        remedy = f"make one: thoraclip index ROOT --csv {path.name} --out FILE"
        raise InputError(f"{path}: a CSV table is no manifest yet; {remedy}")
    stored = open_manifest(path)
    roots = (Path(str(stored.meta.get("root", "."))), path.resolve().parent)
    try:
        require_columns(where or (), stored.schema.names)
        keep = rows_with(pa.concat_tables(stored.parts(list(where))), where) if where else None
        table = stored.read(keep=keep)
        root = next((root for root in roots if _holds_image(root, table["path"])), None)
        held: Any = {name: tuple(stored.meta.get(name) or ()) for name in ("selections", "apart")}
        file, notes = None if where else path, tuple(stored.notes)
        manifest = Manifest(table, root or roots[0], may_leak, file, notes=notes, **held)
    except ManifestError as error:
        raise type(error)(named(path, error)) from error
    if root is None:
        said = f"its pictures are neither under {stored.meta.get('root', 'a root')} nor beside the manifest"
        raise InputError(f"{path}: {said}; put them back, or index the folder again: thoraclip index")
    return manifest


def _holds_image(root: Path, paths: pa.ChunkedArray) -> bool:
    pieces = in_pieces(paths.drop_null())  # almost always the first path is there; 5 times as fast as Path
    return any(os.path.exists(os.path.join(root, path)) for piece in pieces for path in piece)  # noqa: PTH110, PTH118
