"""The package's note beside a PEFT adapter: what it belongs to, and what it was trained on; read without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thoraclip.errors import InputError, ModelError
from thoraclip.runs import write_json

__all__ = ["AdapterNote", "adapter_folders", "read_note", "write_note"]

_NOTE = "thoraclip.json"
_SCHEMA = 1


@dataclass(frozen=True)
class AdapterNote:
    """What PEFT's own files do not say.

    Args:
        base: fingerprint of the weights that the adapter was trained on.
        log_scale: logarithm of the logit scale after training; it is no part of any module, so PEFT cannot keep it.
        bias: logit bias after training.
        facts: what it was trained on, and how.
    """

    base: str
    log_scale: float
    bias: float
    facts: Mapping[str, Any] = field(default_factory=dict)


def write_note(folder: Path, note: AdapterNote) -> None:
    """Write the note into an adapter folder."""
    content = {"base": note.base, "log_scale": note.log_scale, "bias": note.bias, "facts": dict(note.facts)}
    write_json(folder / _NOTE, {"schema": _SCHEMA, **content})


def read_note(folder: Path) -> AdapterNote | None:
    """The note of an adapter folder; `None` for one that another program wrote.

    Raises:
        InputError: no adapter there.
        ModelError: the note is not readable, or from a newer version.
    """
    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"adapter '{folder}': no adapter_config.json there; name a PEFT adapter folder")
    if not (folder / _NOTE).is_file():
        return None
    try:
        content = json.loads((folder / _NOTE).read_text(encoding="utf-8"))
        schema = int(content.pop("schema"))
        if schema > _SCHEMA:  # before its fields are looked at: it may have others
            raise ModelError(f"adapter '{folder}': schema {schema} is newer than {_SCHEMA}; upgrade thoraclip")
        return AdapterNote(**content)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"adapter '{folder}': {_NOTE} is not readable ({error!r}); train it again") from error


def adapter_folders(path: Path) -> dict[int | None, Path]:
    """Held-out fold -> PEFT folder, of an adapter or of a finished fine-tuning run; fold `None` stands for all images.

    Args:
        path: a PEFT adapter folder, or a run folder with `adapter/` or `fold-<k>/adapter/` in it; nothing there: `{}`.
    """
    for single in (path, path / "adapter"):
        if (single / "adapter_config.json").is_file():
            return {None: single}
    found = (folder.parent for folder in path.glob("fold-*/adapter/adapter_config.json"))
    by_fold = {int(f.parent.name.removeprefix("fold-")): f for f in found if f.parent.name[5:].isdigit()}
    return dict(sorted(by_fold.items()))
