"""What the values of a document must be: checks that are put together like the document, and name the value at fault.

    SHAPE = table(name=text, size=whole(1, 4096), means=sequence(number(0, 1), 3, 3), fold=optional(whole(0)))
    check(read_json(path), SHAPE, path, remedy="write it again")

A check takes a value and returns nothing, or raises `WrongError`. (The dataclasses of `config` are for settings: an
unknown name is an error there, while a document of a later version may hold more. Pydantic comes with the extra `serve`
alone, and takes 0.1 s to load.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from thoraclip.errors import InputError, ThoraclipError, shown

__all__ = [
    "ANY_NUMBER", "Check", "check", "mapping", "number", "one_of", "optional", "sequence", "table", "text", "whole",
]  # fmt: skip

Check = Callable[[Any], None]
_LINE = re.compile("[^\x00-\x1f\x7f-\x9f\u2028\u2029]{1,1000}")
ANY_NUMBER = 2**53
_ABSENT = object()


class WrongError(Exception):
    """A value breaks a rule; `place` is where it stands, from the inside out."""

    def __init__(self, value: Any, rule: str) -> None:
        super().__init__(rule)
        self.value, self.rule, self.place = value, rule, list[str]()


def check(
    value: Any, shape: Check, where: object, *, error: type[ThoraclipError] = InputError, remedy: str = "mend it"
) -> None:
    """Raise `error`, which begins with `where` and ends with `remedy`, for the first value that breaks a rule."""
    try:
        shape(value)
    except WrongError as wrong:
        place = "".join(reversed(wrong.place)).removeprefix(".") or "the content"
        raise error(f"{where}: {place} = {_shown(wrong.value)}: {wrong.rule} is needed; {remedy}") from None


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    if isinstance(value, Mapping | list):
        return f"{'a table' if isinstance(value, Mapping) else 'a list'} of {len(value)}"
    return shown(value)


def _rule(keeps: Callable[[Any], bool], rule: str) -> Check:
    def look(value: Any) -> None:
        if not keeps(value):
            raise WrongError(value, rule)

    return look


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    """A finite number in a range, its ends included."""
    rule = "a number" if math.isinf(low) and math.isinf(high) else f"a number from {low:g} to {high:g}"
    return _rule(lambda v: _is(v, int | float) and math.isfinite(v) and low <= v <= high, rule)


def whole(low: int = 0, high: int = ANY_NUMBER) -> Check:
    """A whole number in a range, its ends included."""
    rule = f"a whole number of {low} or more" if high == ANY_NUMBER else f"a whole number from {low} to {high}"
    return _rule(lambda v: _is(v, int) and low <= v <= high, rule)


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def text(value: Any) -> None:
    """Text on one line, of one letter or more."""
    if not isinstance(value, str) or not _LINE.fullmatch(value) or not value.strip():
        raise WrongError(value, "text on one line, of 1 to 1000 letters,")


def one_of(*choices: Any) -> Check:
    """One of some texts or numbers."""
    return _rule(lambda v: any(type(v) is type(one) and v == one for one in choices), f"one of {list(choices)}")


def optional(of: Check) -> Check:
    """As `of`, or null."""

    def look(value: Any) -> None:
        if value is not None:
            of(value)

    return look


def sequence(of: Check, least: int = 0, most: int = 1_000_000, *, unique: bool = False) -> Check:
    """A list of `least` to `most` values, all different where it is `unique`."""

    def look(value: Any) -> None:
        if not isinstance(value, list | tuple) or not least <= len(value) <= most:
            raise WrongError(value, f"a list of {least}" + ("" if least == most else f" to {most}"))
        for number, one in enumerate(value):
            _inside(f"[{number}]", of, one)
        if unique and len(set(value)) < len(value):
            raise WrongError(value, "a list without repetitions")

    return look


def mapping(of: Check) -> Check:
    """A table of any names."""

    def look(value: Any) -> None:
        if not isinstance(value, Mapping):
            raise WrongError(value, "a table")
        for name, one in value.items():
            _inside(f".{name[:60]}", of, one)

    return look


def table(fields: Mapping[str, Check] | None = None, /, *, may: Iterable[str] = (), **more: Check) -> Check:
    """A table that has these fields, those of `may` if it likes, and whatever else."""
    checks, free = {**(fields or {}), **more}, frozenset(may)

    def look(value: Any) -> None:
        if not isinstance(value, Mapping):
            raise WrongError(value, "a table")
        for name, of in checks.items():
            if name in value:
                _inside(f".{name}", of, value[name])
            elif name not in free:
                _inside(f".{name}", _absent, value)

    return look


def _absent(_: Any) -> None:
    raise WrongError(_ABSENT, "a value")


def _inside(step: str, of: Check, value: Any) -> None:
    try:
        of(value)
    except WrongError as wrong:
        wrong.place.append(step)
        raise
