"""Manifest: one row per image, with what is known of it; unknown is null."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from thoraclip.errors import InputError, LeakError, ManifestError, did_you_mean
from thoraclip.labels import LabelSet
from thoraclip.runs import digest
from thoraclip.tables import store
from thoraclip.tables.store import read_table, write_table

__all__ = ["COLUMNS", "SPLITS", "Manifest", "read_manifest", "require_parquet", "write_manifest"]

_SCHEMA = 1
SPLITS = ("train", "val", "test")

COLUMNS: Mapping[str, pa.DataType] = {
    "image_id": pa.string(),
    "path": pa.string(),
    "sha256": pa.string(),
    "phash": pa.string(),
    "label": pa.string(),
    "split": pa.string(),
    "fold": pa.int32(),
    "patient": pa.string(),
    "source": pa.string(),
    "view": pa.string(),
    "sex": pa.string(),
    "age_years": pa.float32(),
    "lung_mask": pa.string(),
    "infection_mask": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "mode": pa.string(),
    "format": pa.string(),
}
"""The columns of every manifest and their types; paths are relative to the manifest's root. Extra columns are kept."""


@dataclass(frozen=True)
class Manifest:
    """A checked table of images.

    Args:
        table: the columns of `COLUMNS`, then any others; ids are unique and not null.
        root: the folder that `path` and the mask columns are relative to.
        may_leak: True lets one patient stand in two splits or folds: for reporting and mending it, never for training.

    Raises:
        ManifestError: no row, a repeated or missing id, or an unknown split name.
        LeakError: one patient in two splits or two folds, unless `may_leak`.
    """

    table: pa.Table
    root: Path
    may_leak: bool = False

    def __post_init__(self) -> None:
        ids = self.column("image_id")
        if not ids:
            raise ManifestError("manifest: no rows; a manifest holds one row per image")
        if None in ids:
            raise ManifestError(f"manifest: row {ids.index(None) + 1} has no image_id; every image has one of its own")
        if len(set(ids)) != len(ids):
            repeated = [i for i, count in Counter(ids).items() if count > 1]
            raise ManifestError(
                f"manifest: image_id '{repeated[0]}' is repeated ({len(repeated)} such ids); "
                "every image has one of its own"
            )
        for split in sorted({s for s in self.column("split") if s is not None}):
            if split not in SPLITS:
                raise ManifestError(f"manifest: split '{split}' is unknown{did_you_mean(split, SPLITS)}")
        if not self.may_leak:
            self._refuse_leaks()

    def _refuse_leaks(self) -> None:
        for column in ("split", "fold"):
            shared = self.patients_in_two(column)
            if shared:
                raise LeakError(
                    f"manifest: patient '{next(iter(shared))}' stands in two {column}s ({len(shared)} such patients); "
                    "split again by patient: thoraclip split"
                )

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]], root: Path, *, may_leak: bool = False) -> Manifest:
        """Build from one mapping per image; absent columns are null, extra ones are kept after the known ones."""
        extra = sorted({name for row in rows for name in row} - set(COLUMNS))
        columns: dict[str, pa.Array] = {}
        for name, kind in COLUMNS.items():
            columns[name] = pa.array([row.get(name) for row in rows], kind)
        for name in extra:
            columns[name] = pa.array([row.get(name) for row in rows], pa.string())
        return cls(pa.table(columns), root, may_leak)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def column(self, name: str) -> list[Any]:
        """One column as a list; raises ManifestError for a name that is not there."""
        if name not in self.table.column_names:
            raise ManifestError(f"manifest: no column '{name}'{did_you_mean(name, self.table.column_names)}")
        return list(self.table[name].to_pylist())

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything that a result can depend on: ids, contents, labels, splits, folds, patients."""
        return digest([self.column(name) for name in ("image_id", "sha256", "label", "split", "fold", "patient")])

    @property
    def content_fingerprint(self) -> str:
        """SHA-256 over ids and picture contents alone: what an embedding depends on."""
        return digest([self.column("image_id"), self.column("sha256")])

    def label_set(self, classes: Sequence[str] = ()) -> LabelSet:
        """The classes: as given, or the distinct labels sorted by name.

        Raises:
            ManifestError: a given class has no image, or a label is not among the given classes.
        """
        found = [label for label in self.column("label") if label is not None]
        labels = LabelSet(tuple(classes)) if classes else LabelSet.of(found)
        for name in labels.names:
            if name not in found:
                raise ManifestError(
                    f"class '{name}' has no image{did_you_mean(name, set(found))}; add images or drop the class"
                )
        for name in sorted(set(found)):
            labels.index(name)
        return labels

    def targets(self, labels: LabelSet) -> npt.NDArray[np.int64]:
        """i64[N]: index of each image's class, -1 where the label is unknown."""
        return np.array([-1 if name is None else labels.index(name) for name in self.column("label")], dtype=np.int64)

    def parts(self) -> list[str | None]:
        """`fold 3`, `train`, ... of every image; `None` for one without."""
        pairs = zip(self.column("split"), self.column("fold"), strict=True)
        return [split if fold is None else f"fold {fold}" for split, fold in pairs]

    def counts(self) -> tuple[list[str], dict[str, list[int]]]:
        """(parts in the order of use, label -> images in each part); without a part: `no split`, a label: `unknown`."""
        labels = [label or "unknown" for label in self.column("label")]
        parts = [part or "no split" for part in self.parts()]
        table = Counter(zip(labels, parts, strict=True))
        names = sorted(set(parts), key=lambda part: (SPLITS.index(part) if part in SPLITS else len(SPLITS), part))
        return names, {label: [table[label, part] for part in names] for label in sorted(set(labels))}

    def paths(self) -> list[Path]:
        """Absolute path of every picture."""
        return [self.root / path for path in self.column("path")]

    def by_id(self, name: str) -> dict[str, Any]:
        """One column as image id -> value."""
        return dict(zip(self.column("image_id"), self.column(name), strict=True))

    def paths_by_id(self) -> dict[str, Path]:
        """Image id -> absolute path of the picture."""
        return dict(zip(self.column("image_id"), self.paths(), strict=True))

    def take(self, rows: npt.NDArray[np.int64]) -> Manifest:
        """The given rows, in the given order, as a new manifest."""
        return Manifest(self.table.take(pa.array(rows)), self.root, self.may_leak)

    def with_columns(self, **values: Sequence[Any]) -> Manifest:
        """A new manifest with some columns replaced or added (added ones are text)."""
        table = self.table
        for name, column in values.items():
            array = pa.array(column, COLUMNS.get(name, pa.string()))
            position = table.schema.get_field_index(name)
            table = table.append_column(name, array) if position < 0 else table.set_column(position, name, array)
        return Manifest(table, self.root, self.may_leak)

    def strict(self) -> Manifest:
        """The same manifest, refused where one patient stands in two splits or folds (LeakError)."""
        return Manifest(self.table, self.root)

    def patients_in_two(self, column: str) -> dict[str, tuple[str, ...]]:
        """Patients with more than one known value of a column (`split`, `fold`, `label`) -> those values, both sorted."""
        values: dict[str, set[str]] = {}
        for patient, value in zip(self.column("patient"), self.column(column), strict=True):
            if patient is not None and value is not None:
                values.setdefault(patient, set()).add(str(value))
        return {patient: tuple(sorted(found)) for patient, found in sorted(values.items()) if len(found) > 1}


def require_parquet(path: Path) -> None:
    """Raise InputError unless a manifest may bear this name: nothing but Parquet is overwritten with one."""
    store.require_parquet(path, "a manifest is")


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write Parquet; the root is stored so that the file can lie anywhere on the same machine.

    Raises:
        InputError: the name does not end in `.parquet`.
    """
    require_parquet(path)
    write_table(path, manifest.table, kind="manifest", schema=_SCHEMA, meta={"root": str(manifest.root.resolve())})


def read_manifest(path: Path, *, may_leak: bool = False) -> Manifest:
    """Read a manifest.

    Pictures are looked for under the root stored in the file; where that is gone, beside the manifest itself.

    Args:
        path: the file.
        may_leak: see `Manifest`.

    Raises:
        InputError: the file is missing, or none of its pictures is in either place.
        ManifestError: not a manifest; see `Manifest`.
    """
    if path.suffix == ".csv":
        raise InputError(
            f"{path}: a CSV table is no manifest yet; make one: thoraclip index ROOT --csv {path.name} --out FILE"
        )
    table, meta = read_table(path, kind="manifest", newest_schema=_SCHEMA)
    for name, kind in COLUMNS.items():
        if name not in table.column_names:
            raise ManifestError(f"{path}: column '{name}' is missing; write the manifest with: thoraclip index")
        if table.schema.field(name).type != kind:
            raise ManifestError(f"{path}: column '{name}' is {table.schema.field(name).type}, expected {kind}")
    try:
        for root in (Path(str(meta.get("root", "."))), path.resolve().parent):
            manifest = Manifest(table, root, may_leak)
            if any(picture.exists() for picture in manifest.paths()):
                return manifest
    except ManifestError as error:
        raise type(error)(f"{path}: {error}") from error
    raise InputError(
        f"{path}: its pictures are neither under {meta.get('root')} nor beside the manifest; "
        "put them back, or index the folder again: thoraclip index"
    )
