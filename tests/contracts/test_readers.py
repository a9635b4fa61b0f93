"""Documents and arrays from outside have one reader each."""

import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "thoraclip"
OWN = {
    r"json\.loads?\(|json\.load\b|map\(json\.loads": {
        "documents.py",
        "imaging/isolated.py",  # of a process of ours
        "bundle/rows.py", "bundle/scoring.py",  # of rows that this process, or its table's own file, holds
        "data/facts.py",  # lines of a cache, of which a damaged one is passed over
        "data/phantom/__init__.py",  # of what was just written
        "models/backbones.py",  # of a configuration in memory
        "writing.py",  # of a list of ours, which is checked
    },
    r"tomllib": {"documents.py"},
    r"np\.load\(|open_memmap\(": {"tables/arrays.py"},  # its own part files
    r"safe_open\(|load_file\(": {"array_files.py", "models/files.py", "models/checkpoint.py", "models/backbones.py", "methods/training/checkpoint.py"},
    r"ParquetFile\(|pq\.read|pa\.csv": {"tables/store.py"},
}  # fmt: skip


@pytest.mark.parametrize("calls", OWN)
def test_nobody_else_reads_what_comes_from_outside(calls):
    found = {str(file.relative_to(SOURCE)) for file in SOURCE.rglob("*.py") if re.search(calls, file.read_text())}
    assert found == OWN[calls]
