"""TOML and `--set name=value` -> frozen dataclasses; an unknown name is answered with the nearest known one.

A config is a frozen dataclass whose fields are bool, int, float, str, a tuple of these, or one of these or `None`.
The text under a field is its help.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from thoraclip.documents import parse_toml
from thoraclip.errors import ConfigError, did_you_mean

__all__ = [
    "build_config",
    "config_toml",
    "field_help",
    "parse_settings",
    "require_at_least",
    "require_fraction",
    "require_known",
    "require_positive",
]

T = TypeVar("T")


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """`["batch_size=64", "model=tiny-clip"]` -> `{"batch_size": 64, "model": "tiny-clip"}`.

    A value is read as TOML (numbers, booleans, lists, quoted text); what is not TOML is taken as plain text.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--set '{setting}': expected name=value, for example --set seed=1")
        try:
            values[name.strip()] = parse_toml(f"value = {text}", "--set")["value"]
        except ConfigError:
            values[name.strip()] = text
    return values


def build_config(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """Build a frozen config from a mapping, checking names and types.

    Args:
        cls: the dataclass.
        values: setting name -> value.
        where: the file (or `--set`) that the values come from; begins every message.

    Raises:
        ConfigError: names of unknown settings, all at once; a value of the wrong type; a rule of `cls` itself.
    """
    hints = _hints(cls)  # type: ignore[arg-type]
    unknown = [name for name in values if name not in hints]
    if unknown:
        raise ConfigError(
            "; ".join(f"{where}: unknown setting '{name}'{did_you_mean(name, hints)}" for name in unknown)
        )
    converted = {name: _convert(value, hints[name], where, name) for name, value in values.items()}
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    for field in fields:
        no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if no_default and field.name not in converted:
            raise ConfigError(f"{where}: setting '{field.name}' is needed; add {field.name} = ...")
    try:
        return cls(**converted)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


@cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _convert(value: Any, kind: Any, where: str, name: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in {types.UnionType, typing.Union}:
        if value is None:
            return None
        return _convert(value, next(a for a in arguments if a is not type(None)), where, name)
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            example = f"[{toml_value(value)}]" if isinstance(value, str | int | float) else "[...]"
            remedy = f"write {name} = {example}, or --set '{name}={example}'"
            raise ConfigError(f"{where}: '{name}' = {value!r} must be a list; {remedy}")
        return tuple(_convert(item, arguments[0], where, name) for item in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, Path):
        return str(value)
    if (kind is int and isinstance(value, bool)) or not isinstance(value, kind):
        wanted = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(kind, kind.__name__)
        raise ConfigError(f"{where}: '{name}' = {value!r} must be {wanted}")
    return value


@cache
def field_help(cls: type[Any]) -> dict[str, str]:
    """The text under each field of a config class, by field name, base classes included."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for node, following in zip(body.body, body.body[1:], strict=False):
            is_field = isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
            is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            if is_field and is_text:
                texts[node.target.id] = " ".join(str(following.value.value).split())  # type: ignore[attr-defined]
    return texts


def config_toml(config: Any, *, skip: Iterable[str] = ()) -> str:
    """A config as TOML text that `build_config` reads back to an equal one; `None` is left out."""
    lines = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is not None and field.name not in skip:
            lines.append(f"{field.name} = {toml_value(value)}")
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """One value as TOML on one line: fingerprints and tables of settings hold it; tomli-w breaks lists."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return _toml_text(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml_text(str(k))} = {toml_value(v)}" for k, v in value.items()) + " }"
    return "[" + ", ".join(toml_value(item) for item in value) + "]"


def _toml_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # DEL: JSON allows it bare, TOML does not


def require_known(config: object, **choices: Iterable[str]) -> None:
    """Raise ConfigError for the first setting that is none of its choices."""
    for name, known in choices.items():
        value = getattr(config, name)
        if value not in known:
            raise ConfigError(f"unknown {name} '{value}'{did_you_mean(value, known)}")


def require_positive(config: object, *names: str) -> None:
    """Raise ConfigError for the first setting that is not positive."""
    for name in names:
        value = getattr(config, name)
        if not value > 0:
            raise ConfigError(f"{name} = {value}: must be positive")


def require_at_least(config: object, **least: float) -> None:
    """Raise ConfigError for the first setting below its least value."""
    for name, bound in least.items():
        value = getattr(config, name)
        if not value >= bound:
            raise ConfigError(f"{name} = {value}: {bound} or more is needed")


def require_fraction(config: object, *names: str) -> None:
    """Raise ConfigError for the first setting that is not between 0 and 1, both excluded."""
    for name in names:
        value = getattr(config, name)
        if not 0 < value < 1:
            raise ConfigError(f"{name} = {value}: a number between 0 and 1 is needed")
