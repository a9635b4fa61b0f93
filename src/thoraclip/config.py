"""TOML and `--set name=value` -> frozen dataclasses; an unknown name is answered with the nearest known one.

A config is a frozen dataclass, a subclass of `Settings`, whose fields are bool, int, float, str, a tuple of these, or
one of these or `None`. The text under a field is its help; `Annotated` with a `Range` gives the numbers that it takes.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
import typing
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

from thoraclip.documents import parse_toml
from thoraclip.errors import ConfigError, did_you_mean, shown
from thoraclip.ranges import conform

__all__ = ["Settings", "build_config", "config_toml", "field_help", "field_kinds", "parse_settings"]


class Settings:
    """Base of every config: each value has its field's type and lies in its range, see `ranges.conform`; a list names
    nothing twice."""

    def __post_init__(self) -> None:
        for name, kind in field_kinds(type(self)).items():  # type: ignore[arg-type]
            value = conform(name, getattr(self, name), kind)
            names = [item for item in value if not isinstance(item, float)] if isinstance(value, tuple) else []
            if any(item in names[:place] for place, item in enumerate(names)):
                raise ConfigError(f"{name} = {shown(list(value))}: every value is needed once")
            object.__setattr__(self, name, value)


T = TypeVar("T", bound=Settings)


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """`["batch_size=64", "model=tiny-clip"]` -> `{"batch_size": 64, "model": "tiny-clip"}`.

    A value is read as TOML (numbers, booleans, lists, quoted text); what is not TOML is taken as plain text.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--set '{setting}': expected name=value, for example --set seed=1")
        values[name.strip()] = text
        with suppress(ConfigError):
            values[name.strip()] = parse_toml(f"value = {text}", "--set")["value"]
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
    known = field_kinds(cls)  # type: ignore[arg-type]
    unknown = [name for name in values if name not in known]
    if unknown:
        said = (f"{where}: unknown setting '{name}'{did_you_mean(name, known)}" for name in unknown)
        raise ConfigError("; ".join(said))
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if no_default and field.name not in values:
            raise ConfigError(f"{where}: setting '{field.name}' is needed; add {field.name} = ...")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


@cache
def field_kinds(cls: type[Any]) -> dict[str, Any]:
    """The annotation of each field of a config class, by name, ranges included."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


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
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    shown = {name: value for name, value in values.items() if value is not None and name not in skip}
    return "\n".join(f"{name} = {toml_value(value)}" for name, value in shown.items()) + "\n"


def toml_value(value: Any) -> str:
    """One value as TOML on one line: fingerprints and tables of settings hold it; tomli-w breaks lists."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{toml_value(str(k))} = {toml_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str | int):  # as in JSON, which allows DEL bare, where TOML does not
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return "[" + ", ".join(map(toml_value, value)) + "]"
