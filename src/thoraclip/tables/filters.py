"""Rows of a table by the values of its columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from thoraclip.errors import ManifestError, did_you_mean

__all__ = ["no_such_value", "require_columns", "rows_with"]

_KNOWN, _LOOKED_AT = 50, 1 << 20  # a misspelt value is looked for among so many, in so many rows


def require_columns(wanted: Iterable[str], names: Sequence[str]) -> None:
    """Raise ManifestError unless all the wanted columns are among the names."""
    for name in wanted:
        if name not in names:
            raise ManifestError(f"manifest: no column '{name}'{did_you_mean(name, names)}")


def rows_with(table: pa.Table, values: Mapping[str, Any]) -> pa.ChunkedArray:
    """bool[N]: the rows that `Manifest.where` keeps; raises as it does."""
    keep = pa.chunked_array([np.ones(len(table), dtype=bool)])
    require_columns(values, table.column_names)
    for name, given in values.items():
        wanted = list(given) if isinstance(given, list | tuple | set | frozenset) else [given]
        texts = [None if value is None else str(value) for value in wanted]
        try:
            matching = pc.is_in(table[name], value_set=pa.array(texts, pa.string()).cast(table[name].type))
        except pa.ArrowException as error:
            kind = table[name].type
            raise ManifestError(f"manifest: {name} {texts}: the column holds {kind}; ask for such values") from error
        if not pc.any(matching).as_py():
            raise no_such_value(table, name, wanted)
        keep = pc.and_(keep, matching)
    if not pc.any(keep).as_py():
        raise ManifestError(f"manifest: no image has all of these values of {', '.join(values)}; ask for fewer")
    return keep


def no_such_value(table: pa.Table, name: str, wanted: Sequence[Any]) -> ManifestError:
    """What to say where no row of a column holds any of the wanted values; it names the nearest known one."""
    known = [str(value) for value in table[name].slice(0, _LOOKED_AT).unique().drop_null().to_pylist()]
    near = did_you_mean(str(wanted[0]), known) if wanted and len(known) <= _KNOWN else "; name others"
    near = near if known else f"; no image has a known {name}"
    asked = " or ".join("unknown" if value is None else f"'{value}'" for value in wanted) or "one of no values"
    return ManifestError(f"manifest: no image whose {name} is {asked}{near}")
