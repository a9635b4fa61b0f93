"""JSON and TOML from outside, read within limits: a damaged or hostile file costs a line of text, never a hang.

Refused are text that is not UTF-8 (a byte-order mark is passed over), NaN and infinity, a key that stands twice, a NUL
or half a surrogate pair in a text, and what exceeds `Limits`.
"""

from __future__ import annotations

import json
import math
import re
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from thoraclip.errors import ConfigError, InputError, ThoraclipError, first_line

__all__ = [
    "LARGE", "Limits", "kept_json", "parse_json", "parse_toml", "read_bytes", "read_json", "read_toml", "regular",
]  # fmt: skip

DIGITS = 100
"""Most characters of a number. `tokenizer_config.json` has one of 31; a float holds 10^100."""
KEY_PARTS = 32
"""Most parts of a dotted TOML key: tomllib takes 100 seconds over one of 50,000."""
_NO_TEXT = re.compile("[\x00\ud800-\udfff]")
_KEY = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
_LONG_KEY = re.compile(rf"(?<![\w-]){_KEY}(?:[ \t]*+\.[ \t]*+{_KEY}){{{KEY_PARTS}}}")


@dataclass(frozen=True)
class Limits:
    """The most that a document may hold."""

    bytes: int = 16 << 20
    values: int = 1_000_000
    depth: int = 64  # lists and tables inside each other


LARGE = Limits(bytes=1 << 30, values=100_000_000)
"""Of a document with a place for every image."""
_SETTINGS = Limits(bytes=1 << 20, values=100_000)  # tomllib reads 2 MB a second


def parse_json(
    data: bytes | str,
    where: object,
    *,
    error: type[ThoraclipError] = InputError,
    remedy: str = "mend it",
    limits: Limits = Limits(),
) -> Any:
    """The value of a JSON text.

    Args:
        data: the text; bytes are UTF-8.
        where: file or place that begins the message.
        error: class of what is raised.
        remedy: ends the message.
        limits: that it is held to.

    Raises:
        ThoraclipError: of the class `error`: not JSON, or refused as above.
    """
    try:
        text = _text(data, limits)
        if text.count(",") >= limits.values:
            raise ValueError(f"more than {limits.values} values")
        hooks: dict[str, Any] = {"parse_int": lambda digits: int(_short(digits)), "parse_float": _real}
        value = json.loads(text, object_pairs_hook=_table, parse_constant=_constant, **hooks)
        _check(value, limits)
    except (ValueError, RecursionError) as cause:
        raise error(f"{where}: not valid JSON ({_reason(cause, limits)}); {remedy}") from cause
    return value


def parse_toml(data: bytes | str, where: object) -> dict[str, Any]:
    """The tables of a TOML text; `where` begins the ConfigError for what is not TOML, or refused as above."""
    try:
        text = _text(data, _SETTINGS)
        if _LONG_KEY.search(text):
            raise ValueError(f"a key of more than {KEY_PARTS} parts")
        value = tomllib.loads(text, parse_float=_real)
        _check(value, _SETTINGS)
    except (ValueError, RecursionError) as cause:
        raise ConfigError(f"{where}: not valid TOML ({_reason(cause, _SETTINGS)}); mend the file") from cause
    return value


def read_json(
    path: Path, *, error: type[ThoraclipError] = InputError, remedy: str = "make it again", limits: Limits = Limits()
) -> Any:
    """The value of a JSON file; raises as `parse_json` and `read_bytes` do."""
    data = read_bytes(path, error=error, remedy=remedy, most=limits.bytes)
    return parse_json(data, path, error=error, remedy=remedy, limits=limits)


def kept_json(path: Path, *, limits: Limits = Limits()) -> dict[str, Any]:
    """The table of a JSON file that an earlier run kept; an empty one where there is none that can be read."""
    try:
        value = read_json(path, limits=limits)
    except InputError:
        return {}
    return value if isinstance(value, dict) else {}


def read_toml(path: Path, *, missing: str = "name an existing TOML file") -> dict[str, Any]:
    """The tables of a TOML file; raises InputError, which ends with `missing`, where it cannot be read, else as
    `parse_toml` does."""
    return parse_toml(read_bytes(path, error=InputError, remedy=missing, most=_SETTINGS.bytes), path)


def read_bytes(path: Path, *, error: type[ThoraclipError], remedy: str, most: int) -> bytes:
    """The content of a file of at most `most` bytes; raises `error` where it is missing, no file (a pipe would never
    end), larger, or cannot be read."""
    try:
        with regular(path).open("rb") as stream:
            data = stream.read(most + 1)
    except FileNotFoundError as cause:
        raise error(f"{path}: is missing; {remedy}") from cause
    except (OSError, ValueError) as cause:  # ValueError: a NUL in the path
        raise error(f"{path}: cannot be read ({first_line(cause)}); {remedy}") from cause
    if len(data) > most:
        raise error(f"{path}: is larger than {most:,} bytes; {remedy}")
    return data


def regular(path: Path) -> Path:
    """The path; raises ValueError or OSError where no file is there."""
    if not stat.S_ISREG(path.stat().st_mode):  # a pipe would never end
        raise ValueError("it is no file")
    return path


def _text(data: bytes | str, limits: Limits) -> str:
    if len(data) > limits.bytes:
        raise ValueError(f"larger than {limits.bytes:,} bytes")
    return data if isinstance(data, str) else data.decode("utf-8-sig")


def _reason(cause: Exception, limits: Limits) -> str:
    if isinstance(cause, UnicodeDecodeError):
        return f"not UTF-8 text: byte {cause.start}"
    return f"nested more than {limits.depth} deep" if isinstance(cause, RecursionError) else first_line(cause)


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:60]!r} stands there twice")
    return table


def _real(text: str) -> float:
    value = float(_short(text))
    return value if math.isfinite(value) else _constant(text)


def _short(text: str) -> str:
    if len(text) > DIGITS:
        raise ValueError(f"a number of more than {DIGITS} digits")
    return text


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text[:60]} is no finite number")


def _check(value: Any, limits: Limits) -> None:
    """Go down level by level, without recursion."""
    level = [value]
    for _ in range(limits.depth + 2):
        below: list[Any] = []
        for one in level:
            if isinstance(one, str):
                if _NO_TEXT.search(one):
                    raise ValueError("a text holds a NUL or half a surrogate pair")
            elif isinstance(one, dict):
                below += one
                below += one.values()
            elif isinstance(one, list):
                below += one
            elif isinstance(one, int) and abs(one) >= 10**DIGITS:  # TOML: tomllib has no hook for whole numbers
                raise ValueError(f"a number of more than {DIGITS} digits")
        if not below:
            return
        level = below
    raise RecursionError
