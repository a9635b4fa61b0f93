"""The command `thoraclip`: panels, and the one place where errors become a line and an exit code."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import typer

from thoraclip.api.data import card, check, index, phantom, select
from thoraclip.api.deployment import export, merge, predict, serve
from thoraclip.api.judgement import audit, explain, report
from thoraclip.api.manifests import join, overlap
from thoraclip.api.methods import MethodFunction, caption, embed, method_function
from thoraclip.api.splitting import split
from thoraclip.api.start import demo, run_study
from thoraclip.cli import documents, show, show_manifests, show_split
from thoraclip.cli.command import Command
from thoraclip.cli.console import ShownRows, announce, complain, prepare_streams, progress_bar, say, shut
from thoraclip.errors import InputError, MissingExtraError, ThoraclipError, first_line, system_message
from thoraclip.interrupts import ENDING, handled
from thoraclip.memory import keep_freed_memory
from thoraclip.methods import METHODS, require_shared_work
from thoraclip.runs import is_main_process

__all__ = ["COMMANDS", "main"]


def _predict(given: Mapping[str, Any], as_json: bool) -> Any:
    """Score; rows go to standard output where no file is named, with `as_json` inside the document."""
    if as_json and given["out"] is None:
        if given["format"] or given["spreadsheet_safe"]:
            raise InputError("--json without --out: the rows are part of the document; leave out what is for a table")
        with progress_bar() as progress:
            return predict(**given, progress=progress, announce=announce)
    if given["out"] is None and getattr(sys.stdout, "name", "") == os.devnull:
        raise InputError("standard output is closed; name a file with --out")
    rows_are_shown = given["out"] is None and sys.stdout.isatty()
    stream = ShownRows() if rows_are_shown else sys.stdout.buffer
    with nullcontext() if rows_are_shown else progress_bar() as progress:  # which would run over the rows
        return predict(**{**given, "out": given["out"] or stream}, progress=progress or False, announce=announce)


def _command(kind: str) -> Command:
    return Command(
        "Methods",
        lambda **given: method_function(kind)(**given),
        show.predictions,
        name=kind,
        signature=MethodFunction.__call__,
        summary=f"{METHODS[kind].summary}\n\nIts settings, with defaults and help: thoraclip {kind} --settings",
        listing=("settings", "List the settings and exit.", partial(show.list_settings, kind)),
        settings=lambda: [field.name for field in dataclasses.fields(METHODS[kind].config_type)],
    )


_STRICT = {"strict": "End with exit code 1 when there is a leak."}
COMMANDS = (
    Command("Start", demo, show.report),
    Command("Start", run_study, show.study, name="study", document=documents.content),
    Command("Data", index, show.index, document=documents.index),
    Command("Data", check, show.check, flags=_STRICT, document=documents.content),
    Command("Data", select, show.select),
    Command("Data", split, show_split.split),
    Command("Data", join, show_manifests.join),
    Command("Data", overlap, show_manifests.overlap),
    Command("Data", card, show.card),
    Command("Data", phantom, show.phantom),
    Command("Methods", caption, show.captions),
    Command("Methods", embed, show.features),
    *(_command(kind) for kind in METHODS),
    Command("Judgement", report, show.report, document=documents.content),
    Command("Judgement", audit, show.audit, document=documents.content),
    Command("Judgement", explain, show.explanation),
    Command("Deployment", merge, show.merged),
    Command("Deployment", export, show.parity, document=documents.content),
    Command("Deployment", predict, show.predict, call=_predict, document=documents.predict),
    Command("Deployment", serve, lambda *_: None),  # it has spoken while it ran
)
_EXTRAS = {
    "export": "onnx onnxscript",
    "predict": "onnxruntime",
    "serve": "fastapi prometheus_client pydantic python_multipart starlette uvicorn",
    "study": "accelerate cleanlab huggingface_hub jinja2 matplotlib pandas peft pyarrow safetensors scipy sklearn "
    "threadpoolctl torch transformers yaml",
}
_EXTRA_OF = {package: extra for extra, packages in _EXTRAS.items() for package in packages.split()}
_SMALL = ("predict", "serve")  # on a small device, and for long: their memory goes back to the system as usual
_REPORTS = "https://github.com/thoraclip/thoraclip"
_LIMITS = {
    MemoryError: "not enough memory; use fewer workers or threads, a smaller batch_size, or fewer images",
    RecursionError: "nested too deeply; flatten the file that is read",
    UnicodeEncodeError: "text that cannot be written as UTF-8; rename the file, or write the text anew",
}
_INTERRUPTED = 130
_GRACE_SECONDS = 5.0
"""Until another process than the first, which mostly fails in the same way and ends the others, speaks for itself."""


def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    if version:
        from importlib.metadata import version as installed

        say(f"thoraclip {installed('thoraclip')}")
        raise typer.Exit
    if context.invoked_subcommand:
        require_shared_work(context.invoked_subcommand)
        if context.invoked_subcommand not in _SMALL:
            keep_freed_memory()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with 0 done, 1 a check found something, 2 the user can mend it, 130 interrupted;
    also with 1, below a traceback, for a fault of our own."""
    try:
        code = run(arguments)
    except Exception:
        for line in traceback.format_exc().splitlines():
            complain(line)
        complain(f"this is a fault of thoraclip; please report it, with the lines above, at {_REPORTS}")
        code = 1
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    prepare_streams()
    # what pydicom warns of is either mended or told as a picture's reason; the reader of a table has no use for it
    warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom(\.|$)")
    words = sys.argv[1:] if arguments is None else list(arguments)
    if "_THORACLIP_COMPLETE" in os.environ:  # a shell asks to complete these
        words = os.environ.get("COMP_WORDS", os.environ.get("_TYPER_COMPLETE_ARGS", "")).split()[1:] or words
    try:
        with handled(signal.default_int_handler, ENDING[1:]):  # so that locks and temporary files are removed
            code = _app_of(words)(args=words, standalone_mode=False, prog_name="thoraclip")
        if code == _INTERRUPTED:  # the command line's own library has turned the signal into an exit code
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted; run the same command again to go on", _INTERRUPTED)
    except ThoraclipError as error:
        return _fail(str(error), 2)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in _EXTRA_OF:
            raise
        return _fail(str(MissingExtraError(package, _EXTRA_OF[package])), 2)
    except BrokenPipeError:  # the reader of the pipe is gone; nothing is left to say
        shut(sys.stdout)
        shut(sys.stderr)
        return 0
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):  # the command line's own library makes it an exit code
            raise
        return 0
    except OSError as error:
        return _fail(system_message(error), 2)
    except Exception as error:
        if hasattr(error, "format_message"):  # only the usage errors of the command line's own library have it
            return _usage_error(error)
        for kind, reason in _LIMITS.items():
            if isinstance(error, kind):
                return _fail(f"{reason} ({first_line(error)})", 2)
        raise


def _app_of(words: list[str]) -> typer.Typer:
    """An app with the options of the one command that is asked for: to prepare those of all takes longer than some
    commands."""
    asked = next((word for word in words if not word.startswith("-")), "")
    commands = [command for command in COMMANDS if command.title == asked]
    app = typer.Typer(
        name="thoraclip",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        help="Chest X-ray classifiers from CLIP and from supervision, compared so that the comparison can be believed. "
        "[bold]Research use only, not for diagnosis.[/bold]",
        callback=_root,
        invoke_without_command=True,
    )
    for command in commands or COMMANDS:
        command.register(app, whole=bool(commands))
    return app


def _usage_error(error: Exception) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        for line in str(error).splitlines():
            say(line)
        return 0
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "thoraclip"
    text = " ".join(error.format_message().split())  # type: ignore[attr-defined]
    return _fail(f"{text} (see {command} --help)", 2)


def _fail(text: str, code: int) -> int:
    if not is_main_process():
        if code == _INTERRUPTED:
            return code
        with suppress(KeyboardInterrupt):
            time.sleep(_GRACE_SECONDS)
    complain(f"error: {' '.join(text.split())}" if code == 2 else text)
    return code
