"""A command of the command line, made from a function of `api`: its signature and the section "Args" of its
docstring."""

from __future__ import annotations

import inspect
import io
import re
import sys
import typing
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext, redirect_stdout, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from thoraclip.cli.console import announce, print_document, progress_bar
from thoraclip.errors import ConfigError, InputError
from thoraclip.ranges import NAMED, OneOf

__all__ = ["Command", "argument_texts"]

_TYPES: Mapping[str, Any] = {
    "File": Path,
    "Images": Path,
    "Output": Path,
    "Model": str,
    "Fractions": str,
    "Files": list[str],
    "Sequence[str]": list[str],
    "Mapping[str, str] | Sequence[str]": list[str],
    "Shares": list[str],
    "bool": bool,
    "str": str,
    **{name: typing.get_args(kind)[0] for name, kind in NAMED.items()},
}
"""Annotation of a function of `api` -> what the command line takes; `| None` may follow."""
_REGISTRIES = {
    "captioner": "thoraclip.methods.caption:CAPTIONERS",
    "engine": "thoraclip.engine:ENGINES",
    "format": "thoraclip.bundle.rows:FORMATS",
    "layout": "thoraclip.data.layouts:LAYOUTS",
    "method": "thoraclip.heatmaps:MAPS",
}
"""Option -> the names that it takes, which a shell completes; they are imported when one asks."""
_NAMES = {"class_name": "class"}
"""Options whose names Python keeps for itself."""
_CALLBACKS = ("progress", "announce")
_JSON = "Print the result as one JSON document, and nothing else, on standard output."


@dataclass(frozen=True)
class Command:
    """One command."""

    panel: str  # of `thoraclip --help`
    function: Callable[..., Any]  # of `api`
    show: Callable[[Any, Mapping[str, Any]], None]  # prints the result; called with it and the arguments by name
    name: str = ""  # of the command; empty for the function's
    # switches of the command line alone, for `show`: name -> help
    flags: Mapping[str, str] = field(default_factory=dict)
    listing: tuple[str, str, Callable[[], None]] | None = None  # an option that prints and exits: name, help, function
    # in place of `function` with a progress bar; called with the arguments, and whether JSON is asked for
    call: Callable[[Mapping[str, Any], bool], Any] | None = None
    # for `--json`: the result, and the arguments by name -> what is printed in place of `show`, see docs/json.md
    document: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]] | None = None
    settings: Callable[[], Collection[str]] = tuple  # names behind `--set`, which a shell completes
    signature: Callable[..., Any] | None = None  # its signature and docstring describe the command; else `function`'s
    summary: str = ""  # what the command does; empty for the docstring's words

    @property
    def title(self) -> str:
        """The name that the user writes."""
        return self.name or self.function.__name__

    def register(self, app: typer.Typer, *, whole: bool = True) -> None:
        """Add the command to an app; without its options where only its line in the list of commands is needed."""
        text = self.summary or _summary(self.signature or self.function)
        short = escape(text.partition("\n\n")[0])
        add = app.command(self.title, rich_help_panel=self.panel, help=escape(text), short_help=short)
        add(self._callback() if whole else lambda: None)

    def _callback(self) -> Callable[..., None]:
        """A function that Typer can read: a parameter for each argument, option, flag and setting."""
        described = self.signature or self.function
        texts, own = argument_texts(described), inspect.signature(described).parameters.values()
        asked = [p for p in own if p.name not in {*_CALLBACKS, "self"}]
        parameters = [_parameter(p, texts.get(p.name, ""), self.settings) for p in asked]
        taken = {p.name for p in own}
        flags = {**self.flags, **({"json": _JSON} if self.document else {})}
        parameters += [_typed(name, bool, typer.Option(f"--{name}", help=text), False) for name, text in flags.items()]
        if self.listing:
            parameters.append(_listing(*self.listing))

        def callback(**given: Any) -> None:
            given.pop("listing", None)
            chosen = {name: given.pop(name) for name in flags}
            if "settings" in given:
                given |= _settings(given.pop("settings"), taken)
            as_json = chosen.pop("json", False)
            with redirect_stdout(sys.stderr) if as_json else nullcontext():  # whatever a library prints there
                result = self.call(given, as_json) if self.call else _with_bar(self.function, given, taken)
            if as_json and self.document:
                print_document(self.document(result, given))
            with redirect_stdout(io.StringIO()) if as_json else nullcontext():  # its notes and its exit code remain
                self.show(result, given | chosen)

        callback.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            sorted(parameters, key=lambda p: p.default is not p.empty)
        )
        callback.__annotations__ = {p.name: p.annotation for p in parameters}
        return callback


def _with_bar(function: Callable[..., Any], given: Mapping[str, Any], taken: Collection[str]) -> Any:
    with progress_bar() if "progress" in taken else nullcontext() as progress:
        callbacks = {"progress": progress, "announce": announce}
        return function(**given, **{name: callbacks[name] for name in _CALLBACKS if name in taken})


def argument_texts(function: Callable[..., Any]) -> dict[str, str]:
    """What the section "Args" of a docstring says of each argument, by name."""
    section = inspect.cleandoc(function.__doc__ or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
    texts: dict[str, str] = {}
    for entry in re.split(r"\n(?= {4}\w)", f"\n{section}")[1:]:
        names, _, text = " ".join(entry.split()).partition(": ")
        texts |= dict.fromkeys(names.split(", "), text)
    return texts


def _summary(function: Callable[..., Any]) -> str:
    text = inspect.cleandoc(function.__doc__ or "").partition("\nArgs:\n")[0].replace("`", "")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n"))


def _parameter(own: inspect.Parameter, text: str, settings: Callable[[], Collection[str]]) -> inspect.Parameter:
    """The parameter that Typer reads, for one of the function's; `settings` are the names behind `--set`."""
    if own.kind is own.VAR_KEYWORD:
        options: dict[str, Any] = {"metavar": "NAME=VALUE", "help": escape(f"{text} May be repeated.")}
        options["autocompletion"] = _completion(lambda: [f"{name}=" for name in settings()])
        return _typed("settings", list[str] | None, typer.Option("--set", show_default=False, **options), None)
    annotation = str(own.annotation).removesuffix(" | None")
    kind = _TYPES[annotation]
    typed = kind if annotation == own.annotation else kind | None
    options = {"help": escape(text.replace("`", ""))} | ({"parser": path} if kind is Path else {})
    if choices := _choices(own.name, annotation):
        options["autocompletion"] = _completion(choices)
    if own.kind is own.POSITIONAL_OR_KEYWORD:
        metavar = own.name.upper() + ("..." if typing.get_origin(kind) is list else "")
        argument = typer.Argument(metavar=metavar, show_default=False, **options)
        return _typed(own.name, typed, argument, own.default)
    name = f"--{_NAMES.get(own.name, own.name).replace('_', '-')}"
    if own.annotation == "bool | None" or (own.annotation == "bool" and own.default):
        name += f"/--no-{name[2:]}"
    shown = own.default not in ("", None, False)
    return _typed(own.name, typed, typer.Option(name, show_default=shown, **options), own.default)


def _choices(name: str, annotation: str) -> Callable[[], Collection[str]] | None:
    """What gives the names that an option takes; `None` where any text will do."""
    if registry := _REGISTRIES.get(name):
        module, _, attribute = registry.partition(":")
        return lambda: getattr(import_module(module), attribute)
    rules = [rule for rule in typing.get_args(NAMED.get(annotation)) if isinstance(rule, OneOf)]
    return (lambda: rules[0].names) if rules else None


def _completion(names: Callable[[], Collection[str]]) -> Callable[[str], list[str]]:
    """What Typer asks for the names that go on from the letters that stand there."""

    def complete(incomplete: str) -> list[str]:
        with suppress(ModuleNotFoundError):  # of an extra that is not installed
            return [name for name in names() if name.startswith(incomplete)]
        return []

    return complete


def path(text: str) -> Path:
    """A path; an empty text, as of a shell's variable that is not set, would be the working directory."""
    if not text:
        raise InputError("an empty text stands where a file or folder is named; name one")
    return Path(text)


def _listing(name: str, text: str, show: Callable[[], None]) -> inspect.Parameter:
    def look(is_asked: bool) -> None:
        if is_asked:
            show()
            raise typer.Exit

    return _typed("listing", bool, typer.Option(f"--{name}", help=text, is_eager=True, callback=look), False)


def _typed(name: str, kind: Any, option: Any, default: Any) -> inspect.Parameter:
    either = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Parameter(name, either, annotation=Annotated[kind, option], default=default)


def _settings(given: list[str] | None, taken: set[str]) -> dict[str, Any]:
    """The values of `--set`.

    Raises:
        ConfigError: not NAME=VALUE, or the name of an argument or option of the command.
    """
    from thoraclip.config import parse_settings

    values = parse_settings(given or [])
    if names := taken & set(values):
        raise ConfigError(f"--set: unknown setting '{min(names)}'; arguments and options are no settings, see --help")
    return values
