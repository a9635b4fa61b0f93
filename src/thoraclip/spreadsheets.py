"""Text that a spreadsheet takes for a formula, and the apostrophe that keeps it text.

A spreadsheet runs a cell that begins with `=`, `+`, `-`, `@`, a tab or a line break, as may stand in a file's name or a
class: CSV injection (https://owasp.org/www-community/attacks/CSV_Injection; ASVS 5.0, 1.2.10). An apostrophe before the
cell keeps it text. Blanks and quotes in front of such a sign are passed over. A spreadsheet that is set to another
language begins a new cell after a `;`, tab or line break inside one, so an apostrophe stands there too.

A table that was written so says it by its column `MARK`; its readers take the apostrophes away and give what was
written. Without the column they take nothing away.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["MARK", "protect", "restore", "restore_record"]

MARK = "spreadsheet_safe"
"""Column whose presence says that a table was written with `protect`."""

_BEGIN = r"(?:\A|(?<=[;\t\r\n]))"
_FORMULA = r"(?=(?:[^\S\t\r\n]|['\"])*[=+\-@＝＋－＠\t\r\n\0])"  # noqa: RUF001 (full-width letters, which Excel takes too)
_UNPROTECTED, _PROTECTED = re.compile(_BEGIN + _FORMULA), re.compile(f"{_BEGIN}'{_FORMULA}")


def protect(text: str) -> str:
    """The text with an apostrophe wherever a spreadsheet might begin a formula; `restore` is its inverse."""
    return _UNPROTECTED.sub("'", text)


def restore(text: str) -> str:
    """The text that was given to `protect`."""
    return _PROTECTED.sub("", text)


def restore_record(record: Mapping[Any, Any]) -> dict[Any, Any]:
    """A row as `csv.DictReader` gives it, without the apostrophes and the mark of a table that has it."""
    if MARK not in record:
        return dict(record)
    cells = {restore(name) if isinstance(name, str) else name: cell for name, cell in record.items() if name != MARK}
    return {name: restore(cell) if isinstance(cell, str) else cell for name, cell in cells.items()}
