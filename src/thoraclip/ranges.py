"""What the values of settings and arguments may be: the one place that checks types, ranges and text.

batch_size: Annotated[int, Range(1, 65_536)] = 64
seed: Seed = 0
"""

from __future__ import annotations

import functools
import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

from thoraclip.errors import ConfigError, InputError, did_you_mean, shown, system_message, why_not_written

__all__ = [
    "NAMED", "AnyBatchSize", "AuditImages", "BatchSize", "Bits", "Count", "FoldCount", "FoldNumber", "Fraction",
    "Geometry", "ImageCount", "Joined", "OnConflict", "OneOf", "PhantomCount", "Port", "Precision", "Range",
    "Resamples", "RuntimeName", "SampleSize", "Seed", "Seeds", "Share", "Shots", "Side", "Thumbnails", "Tokens",
    "Weight", "Weighting", "WordOr", "Workers", "bind", "checked", "conform", "range_text", "require_path",
]  # fmt: skip

P = ParamSpec("P")
T = TypeVar("T")

_MOST_ITEMS = 10_000
_MOST_LETTERS = 10_000


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; each end belongs to it, or does not."""

    low: float
    high: float
    above: bool = False  # low is left out
    below: bool = False  # high is left out

    def __contains__(self, value: float) -> bool:
        """False for NaN and infinity too, since both ends are finite."""
        return (self.low < value if self.above else self.low <= value) and (
            value < self.high if self.below else value <= self.high
        )

    def __str__(self) -> str:
        low, high = (f"{end:,}" if isinstance(end, int) else f"{end:g}" for end in (self.low, self.high))
        if self.above:
            return f"between {low} and {high}" if self.below else f"above {low}, at most {high}"
        return f"from {low} to {'below ' if self.below else ''}{high}"


@dataclass(frozen=True)
class OneOf:
    """A text of a few, or a name in a registry."""

    names: Collection[str]

    def __str__(self) -> str:
        return ", ".join(self.names)


@dataclass(frozen=True)
class Joined(OneOf):
    """`none`, or some names in a registry, joined by `+`, each of them once."""

    def __str__(self) -> str:
        return f"none, {', '.join(self.names)}, or several joined by +"


@dataclass(frozen=True)
class WordOr:
    """One of a few words, or a whole number of a range."""

    words: tuple[str, ...]
    numbers: Range

    def __str__(self) -> str:
        return f"{', '.join(self.words)}, or a whole number {self.numbers}"


GEOMETRIES = ("squash", "crop", "pad")
Geometry = Annotated[str, OneOf(GEOMETRIES)]
Precision = Annotated[str, OneOf(("auto", "fp32", "bf16"))]
RuntimeName = Annotated[str, OneOf(("auto", "torch", "onnxruntime", "openvino"))]
"""`models.runtimes` has them."""
OnConflict = Annotated[str, OneOf(("drop", "first"))]
Weighting = Annotated[str, OneOf(("none", "balanced", "source"))]
Seed = Annotated[int, Range(0, 2**32 - 1)]
"""Scikit-learn takes no larger one."""
ImageCount = Annotated[int, Range(0, 10_000_000)]
"""0 for none."""
AuditImages = Annotated[int | str, WordOr(("auto", "all"), Range(1, 10_000_000))]
SampleSize = Annotated[int, Range(1, 10_000_000)]
PhantomCount = Annotated[int, Range(3, 1_000_000)]
"""One of each class at least."""
BatchSize = Annotated[int, Range(1, 1_048_576)]
AnyBatchSize = Annotated[int, Range(0, 1_048_576)]
"""0 for what suits the device."""
Count = Annotated[int, Range(0, 1_000_000_000)]
"""Steps, validations and the like; 0 for none or a default."""
FoldCount = Annotated[int, Range(2, 1_000)]
FoldNumber = Annotated[int, Range(0, 999)]
Resamples = Annotated[int, Range(100, 100_000)]
Workers = Annotated[int, Range(0, 4_096)]
"""Threads, processes or actors; 0 for a default."""
Tokens = Annotated[int, Range(1, 1_000)]
Side = Annotated[int, Range(32, 2_048)]
"""Pixels along a phantom."""
Thumbnails = Annotated[int, Range(0, 2_000)]
BITS = range(8, 17)
"""Depths of a picture whose samples have 16 bits in the file."""
Bits = Annotated[int, Range(BITS[0], BITS[-1])]
Port = Annotated[int, Range(0, 65_535)]
Share = Annotated[float, Range(0, 1)]
Fraction = Annotated[float, Range(0, 1, above=True, below=True)]
Weight = Annotated[float, Range(0, 1_000_000)]
"""A penalty, a norm or the like, that may be 0."""
Seeds = tuple[Seed, ...]
Shots = Annotated[int | str, WordOr(("all",), Range(1, 1_000_000))]
"""Labelled patients of each class, or all."""


def conform(name: str, value: Any, kind: Any) -> Any:
    """A value as its annotation has it: a list as a tuple, a whole number as a float where one is wanted.

    Args:
        name: of the setting, for the message.
        value: anything.
        kind: bool, int, float, str or a class; `Annotated` with a `Range`, `OneOf` or `WordOr`; a tuple of these; any
            of these or `None`.

    Raises:
        ConfigError: another type, a number out of its range, or text that no file can hold.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in {types.UnionType, typing.Union}:
        if value is None and types.NoneType in arguments:
            return None
        return conform(name, value, next(one for one in arguments if one is not types.NoneType))
    if origin is tuple:
        return _items(name, value, arguments)
    limits, kind = (arguments[1], arguments[0]) if origin is Annotated else (None, kind)
    if isinstance(limits, WordOr):
        if value in limits.words:
            return value
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) not in limits.numbers:
            raise ConfigError(f"{name} = {shown(value)}: {limits} is needed")
        return int(value)
    if kind in (int, float):
        kinds, wanted = (numbers.Integral, "a whole number") if kind is int else (numbers.Real, "a number")
        rule = f"{wanted} {limits}" if limits else wanted
        if isinstance(value, bool) or not isinstance(value, kinds) or (limits and value not in limits):
            raise ConfigError(f"{name} = {shown(value)}: {rule}{',' if ', ' in str(limits) else ''} is needed")
        return kind(value)
    if kind is str:
        text = _text(name, value)
        if isinstance(limits, Joined):
            return _joined(name, text, limits.names)
        if limits and text not in limits.names:
            raise ConfigError(f"unknown {name} '{shown(text)[1:-1]}'{did_you_mean(text, limits.names)}")
        return text
    if not isinstance(value, kind):
        wanted = "true or false" if kind is bool else f"a {kind.__name__}"
        raise ConfigError(f"{name} = {shown(value)}: {wanted} is needed")
    return value


def _joined(name: str, text: str, names: Collection[str]) -> str:
    parts = [] if text == "none" else text.split("+")
    for part in parts:
        if part not in names:
            raise ConfigError(f"unknown {name} '{shown(part)[1:-1]}'{did_you_mean(part, ['none', *names])}")
        if parts.count(part) > 1:
            raise ConfigError(f"{name} = '{text}': '{part}' stands there twice; name it once")
    return text


def _items(name: str, value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        text = f'"{shown(value)[1:-1]}"' if isinstance(value, str) else shown(value)
        example = f"[{text}]" if isinstance(value, str | int | float) else "[...]"
        raise ConfigError(
            f"{name} = {shown(value)}: a list is needed; write {name} = {example}, or --set '{name}={example}'"
        )
    least, most = (0, _MOST_ITEMS) if kinds[-1] is ... else (len(kinds), len(kinds))
    if not least <= len(value) <= most:
        count = f"{most}" if least else f"at most {most:,}"
        raise ConfigError(f"{name} = {shown(value)}: {count} values are needed, not {len(value):,}")
    return tuple(conform(name, item, kinds[0]) for item in value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"{name} = {shown(value)}: text is needed")
    text = os.fspath(value)
    if len(text) > _MOST_LETTERS:
        raise ConfigError(f"{name} = {shown(text)}: at most {_MOST_LETTERS:,} letters are needed, not {len(text):,}")
    if any(c < " " and c not in "\n\r\t" for c in text) or any("\ud800" <= c <= "\udfff" for c in text):
        raise ConfigError(f"{name} = {shown(text)}: UTF-8 text without control characters is needed; write it anew")
    return text


def range_text(kind: Any) -> str:
    """The range or the choices that an annotation holds, such as `1 to 64`; empty where there is none."""
    if typing.get_origin(kind) is Annotated:
        return str(typing.get_args(kind)[1]).removeprefix("from ")
    return next((text for part in typing.get_args(kind) if (text := range_text(part))), "")


def require_path(name: str, value: Any) -> None:
    """Raise InputError for a path that the system takes for no file, there or not: an empty one, one with NUL, one that
    is too long, runs in a circle, or leads through a closed folder; for an output, also one that leads through a file.

    Args:
        name: of the argument.
        value: the path.
    """
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        raise InputError(f"{name} = {shown(value)}: the name of a file or folder is needed")
    try:
        Path(value).stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        if name in _OUTPUTS:
            place = value if len(str(value)) <= 1_000 else shown(str(value))
            remedy = f"choose another {_OUTPUTS[name]}"
            reason = why_not_written(Path(value).parent, error)
            raise InputError(f"{place}: cannot be written ({reason}); {remedy}") from error
        if not isinstance(error, NotADirectoryError):
            raise InputError(system_message(error)) from error
    except ValueError as error:  # NUL, or letters that the file system cannot write
        raise InputError(f"{name} = {shown(os.fspath(value))}: cannot be a file's name ({error})") from error


NAMED: dict[str, Any] = {name: kind for name, kind in globals().items() if typing.get_origin(kind) is Annotated}
"""The ranges of this module by name."""
_OUTPUTS = {"out": "--out", "folder": "folder", "pixels": "--pixels"}
_PATHS = ("File", "Files", "Images", "Output")
_ARGUMENTS: dict[str, Any] = {"bool": bool, "str": str, "Model": str, "Sequence[str]": tuple[str, ...]} | NAMED
_LISTS = {
    "Fractions": tuple[Share, ...],
    "Shares": tuple[str, ...],
    "Mapping[str, str] | Sequence[str]": tuple[str, ...],
}
"""Arguments that may also be a mapping, or one text."""


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Check the arguments of a public function before its work: paths, switches, text, and numbers whose annotation
    names a range of this module.

    Raises:
        ConfigError, InputError: see `conform` and `require_path`.
    """
    signature = inspect.signature(function)
    kinds = {p.name: str(p.annotation).removesuffix(" | None") for p in signature.parameters.values()}

    @functools.wraps(function)
    def run(*given: P.args, **named: P.kwargs) -> T:
        bound = bind(signature, given, named)
        if bound is None:
            return function(*given, **named)  # which says it by its own name
        for name, value in bound.arguments.items():
            if value is not None:
                bound.arguments[name] = _checked(name, value, kinds[name])
        return function(*bound.args, **bound.kwargs)

    return run


def bind(signature: inspect.Signature, given: Sequence[Any], named: Mapping[str, Any]) -> inspect.BoundArguments | None:
    """The arguments of a call by name; `None` where they do not fit the function."""
    try:
        return signature.bind(*given, **named)
    except TypeError:
        return None


def _checked(name: str, value: Any, kind: str) -> Any:
    """`kind` is an annotation as it is written; an argument of one that is not known here stays as it is."""
    if kind == "Files" and isinstance(value, list | tuple):
        return [_checked(name, path, "File") for path in value]
    if kind in _PATHS:
        if hasattr(value, "fingerprint" if kind == "Images" else "write"):  # a manifest, an open file
            return value
        require_path(name, value)
        return value if isinstance(value, str) else Path(value)  # a run stands for its folder
    if kind in _LISTS and not isinstance(value, Mapping):
        return conform(name, value, str if isinstance(value, str) else _LISTS[kind])
    if kind in _ARGUMENTS:
        return conform(name, value, _ARGUMENTS[kind])
    return value
