"""docs/recipes.md: its snippets, and the folder that its first commands make."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

from thoraclip.cli.app import run

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
ANY_IMAGE = "image.png"


def snippet(title: str, language: str = "python") -> str:
    """The first snippet of a language under a headline; `title` is empty for what stands above the first."""
    section = PAGE.partition(f"\n## {title}\n")[2] if title else PAGE
    found = re.search(rf"^```{language}\n(.*?)^```", section.partition("\n## ")[0], flags=re.M | re.S)
    assert found, f"{title}: no snippet in {language}"
    return found[1]


def commands(title: str) -> list[list[str]]:
    """The command lines of a snippet, in words."""
    return [shlex.split(line, comments=True) for line in snippet(title, "sh").splitlines() if line]


def make_study(base: Path) -> Path:
    """What the page's first commands make, once for all processes of tests, and `image.png`, one of the test images."""
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "recipes"
    with FileLock(f"{root}.lock"), pytest.MonkeyPatch.context() as patch:
        if not (root / ANY_IMAGE).is_file():
            root.mkdir()
            patch.chdir(root)
            for _, *words in commands(""):
                assert run(words) == 0, words
            Image.open(next((root / "images").rglob("images/*.png"))).save(root / ANY_IMAGE)
    return root
