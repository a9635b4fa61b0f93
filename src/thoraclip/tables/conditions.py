"""Rows of a table by values of its columns, and by conditions such as `view in (PA, AP) and age_years >= 18`.

A condition is parsed by Python's own parser and never run: only comparisons with constants, `and`, `or`, `not` and
brackets are known. Truth has three values, as in SQL: a comparison with an unknown value is unknown, and so is its
`not`; rows are kept where the whole condition is true. A query engine (DuckDB, Polars) would be one more large
dependency for these 100 lines.
"""

from __future__ import annotations

import ast
import functools
import io
import tokenize
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from thoraclip.errors import ConfigError, ManifestError, did_you_mean

__all__ = ["condition_truth", "require_columns", "rows_with"]

_KNOWN, _LOOKED_AT = 50, 1 << 20  # a misspelt value is looked for among so many, in so many rows
_LONGEST = 2_000  # characters; a longer text could exhaust the parser
_EXAMPLE = 'expected a condition such as: view in (PA, AP) and label != "COVID-19" and age_years >= 18'
_ORDERED: Mapping[type[ast.cmpop], Callable[..., Any]] = {
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
}
_TURNED: Mapping[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
    ast.Eq: ast.Eq,
    ast.NotEq: ast.NotEq,
}
"""The comparison with its two sides exchanged: 18 <= age_years is age_years >= 18."""
_NULLS = ("null", "NULL", "None", "unknown")


def condition_truth(text: str, table: pa.Table) -> pa.ChunkedArray:
    """bool[N] of a table's rows: true, false, or null where a value that decides is unknown.

    Columns are names, or quoted text on the left of a comparison (`"Finding Labels" == Normal`); values are numbers,
    words or quoted text. `=` is `==`. `column is null` and `column is not null` ask whether a value is known.

    Raises:
        ConfigError: not a condition, no such column, or a value that its type cannot be compared with.
        ManifestError: a value that no row holds.
    """
    if not text.strip() or len(text) > _LONGEST:
        raise ConfigError(f"--where: {len(text)} characters; {_EXAMPLE}, at most {_LONGEST:,} characters")
    try:
        tree = ast.parse(_with_double_equals(text.strip()), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise ConfigError(f"--where '{text.strip()[:200]}': not a condition; {_EXAMPLE}") from error
    return _truth(tree, table)


def _with_double_equals(text: str) -> str:
    """`view = PA` as Python writes it."""
    tokens = tokenize.generate_tokens(io.StringIO(" ".join(text.split())).readline)
    return tokenize.untokenize((kind, "==" if word == "=" else word) for kind, word, *_ in tokens).strip()


def _truth(node: ast.expr, table: pa.Table) -> Any:
    """bool[N], null where the truth is not known."""
    if isinstance(node, ast.BoolOp):
        combine = pc.and_kleene if isinstance(node.op, ast.And) else pc.or_kleene
        return functools.reduce(combine, (_truth(value, table) for value in node.values))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return pc.invert(_truth(node.operand, table))
    if isinstance(node, ast.Compare):
        sides = zip([node.left, *node.comparators], node.ops, node.comparators, strict=False)
        return functools.reduce(pc.and_kleene, (_compared(*side, table) for side in sides))
    raise _not_known(node)


def _not_known(node: ast.AST) -> ConfigError:
    return ConfigError(f"--where: '{ast.unparse(node)[:200]}' is not known there; {_EXAMPLE}")


def _compared(left: ast.expr, operator: ast.cmpop, right: ast.expr, table: pa.Table) -> Any:
    names = table.column_names
    is_list = isinstance(right, ast.Tuple | ast.List | ast.Set)
    if type(operator) in _TURNED and not is_list and _word(left) not in names and _word(right) in names:
        left, operator, right = right, _TURNED[type(operator)](), left
    name = _word(left)
    if not isinstance(name, str):
        raise _not_known(left)
    try:
        require_columns([name], names)
    except ManifestError as error:
        raise ConfigError(f"--where: {str(error).removeprefix('manifest: ')}") from error
    column = table[name]
    if isinstance(operator, ast.Is | ast.IsNot):
        if _word(right) not in (None, *_NULLS):
            raise ConfigError(f"--where: '{name} is {ast.unparse(right)}'; write {name} is null, or {name} == ...")
        return pc.is_null(column) if isinstance(operator, ast.Is) else pc.is_valid(column)
    if type(operator) in _ORDERED:
        return _ORDERED[type(operator)](*_as_numbers(column, _word(right), name))
    items = right.elts if isinstance(right, ast.Tuple | ast.List | ast.Set) else [right]
    values = [_value(_word(item), table, name) for item in items]
    equal = pc.is_in(column, value_set=pa.array(values, column.type))
    equal = pc.if_else(pc.is_valid(column), equal, pa.scalar(None, pa.bool_()))
    return pc.invert(equal) if isinstance(operator, ast.NotEq | ast.NotIn) else equal


def _as_numbers(column: pa.ChunkedArray, word: Any, name: str) -> tuple[pa.ChunkedArray, float]:
    """A column, whose text must be numbers, and the number that it is compared with; raises ConfigError."""
    if type(word) not in (int, float):
        raise ConfigError(f"--where: '{name}' is compared with '{word}'; only numbers have an order")
    held = column.type if pa.types.is_floating(column.type) else pa.float64()  # 80.1 is another number as f32
    try:
        return column.cast(pa.float64()), pa.scalar(float(word)).cast(held).as_py()
    except (pa.ArrowException, OverflowError) as error:
        raise ConfigError(f"--where: column '{name}' holds {column.type}; only numbers have an order") from error


def _word(node: ast.expr) -> Any:
    """The name, number or text of a node; raises ConfigError for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Constant) and (node.value is None or type(node.value) in (str, int, float, bool)):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _word(node.operand)
        if type(number) in (int, float):
            return -number
    raise _not_known(node)


def _value(word: Any, table: pa.Table, name: str) -> Any:
    """A constant as a value of the column's type, which some row must hold."""
    kind = table[name].type
    if word is None or word in _NULLS:
        raise ConfigError(f"--where: an unknown '{name}' is neither equal nor unequal; write {name} is null")
    try:
        value = pa.scalar(str(word) if pa.types.is_string(kind) else word).cast(kind).as_py()
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise ConfigError(f"--where: column '{name}' holds {kind}; '{word}' is not one") from error
    if not pc.any(pc.equal(table[name], pa.scalar(value, kind))).as_py():
        raise _no_such_value(table, name, [word])
    return value


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
            raise _no_such_value(table, name, wanted)
        keep = pc.and_(keep, matching)
    if not pc.any(keep).as_py():
        raise ManifestError(f"manifest: no image has all of these values of {', '.join(values)}; ask for fewer")
    return keep


def _no_such_value(table: pa.Table, name: str, wanted: Sequence[Any]) -> ManifestError:
    """What to say where no row of a column holds any of the wanted values; it names the nearest known one."""
    known = [str(value) for value in table[name].slice(0, _LOOKED_AT).unique().drop_null().to_pylist()]
    near = did_you_mean(str(wanted[0]), known) if wanted and len(known) <= _KNOWN else "; name others"
    near = near if known else f"; no image has a known {name}"
    asked = " or ".join("unknown" if value is None else f"'{value}'" for value in wanted) or "one of no values"
    return ManifestError(f"manifest: no image whose {name} is {asked}{near}")
