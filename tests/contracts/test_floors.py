"""Floors are linted, and the torch-free rooms really run without torch."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.small_install import run_small

import thoraclip

PACKAGE = Path(thoraclip.__file__).parent
REPOSITORY = PACKAGE.parents[1]
TORCH_FREE = (
    "tables",
    "judge",
    "imaging",
    "pages",
    "data",
    "config",
    "labels",
    "proportions",
    "errors",
    "runs",
    "predictor",
    "cli",
)
BLOCKED = ("torch", "transformers", "peft", "accelerate")
NEEDS_TORCH = "thoraclip.heatmaps.gradients"
"""The one module of its room that looks inside a network."""


def every_module() -> list[str]:
    return sorted(name for _, name, _ in pkgutil.walk_packages([str(PACKAGE)], prefix="thoraclip."))


def modules() -> list[str]:
    return [name for name in every_module() if name.split(".")[1] in TORCH_FREE]


def small_modules() -> list[str]:
    """What a deployed classifier is explained with."""
    room = [name for name in every_module() if name.split(".")[1] == "heatmaps" and name != NEEDS_TORCH]
    return [*room, "thoraclip.models.novelty"]


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)


def test_the_linter_finds_nothing() -> None:
    script = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([str(script)], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout


def test_every_torch_free_room_has_modules() -> None:
    assert len(modules()) > 30
    assert {name.split(".")[1] for name in modules()} == set(TORCH_FREE)


@pytest.mark.parametrize("name", modules())
def test_a_torch_free_module_imports_with_torch_blocked(name: str) -> None:
    block = "; ".join(f"sys.modules[{b!r}] = None" for b in BLOCKED)
    done = python(f"import sys; {block}; import {name}")
    assert done.returncode == 0, done.stderr


def test_the_room_of_heat_maps_has_modules() -> None:
    assert {f"thoraclip.heatmaps{m}" for m in ("", ".overlay", ".perturbation", ".picture")} <= set(small_modules())


@pytest.mark.parametrize("name", small_modules())
def test_what_explains_a_deployed_classifier_imports_in_a_small_install(name: str) -> None:
    done = run_small(f"import {name}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "missing"),
    [(NEEDS_TORCH, "torch"), ("thoraclip.data.lungs", "scipy"), ("thoraclip.tables.manifest", "pyarrow")],
)
def test_a_small_install_is_small(name: str, missing: str) -> None:
    done = run_small(f"import {name}")
    assert done.returncode != 0
    assert f"import of {missing} halted" in done.stderr


def test_the_judge_works_without_torch(tmp_path: Path) -> None:
    """Not only imported: a report is written while every way to torch is shut."""
    (tmp_path / "p.csv").write_text(
        "image_id,label,score_a,score_b\n"
        + "".join(f"{i},{'ab'[i % 2]},0.{i % 9}5,{0.95 - i % 9 / 10:.2f}\n" for i in range(40))
    )
    code = (
        "import sys, importlib.abc\n"
        "class Wall(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name.split('.')[0] in {BLOCKED!r}: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Wall())\n"
        "from thoraclip.cli.app import run\n"
        f"sys.exit(run(['report', {str(tmp_path / 'p.csv')!r}, '--resamples', '200', '--out', {str(tmp_path / 'r')!r}]))\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r" / "report.html").is_file()


def test_the_block_works() -> None:
    done = python("import sys; sys.modules['torch'] = None; import thoraclip.models.dual_encoder")
    assert done.returncode != 0
    assert "torch" in done.stderr


@pytest.mark.parametrize(
    "command", [["check", "m.parquet"], ["split", "m.parquet", "--folds", "3", "--out", "o.parquet"]]
)
def test_without_a_package_of_the_study_a_command_says_so_in_one_line(command: list[str]) -> None:
    done = python(
        f"import sys; sys.modules['scipy'] = None; from thoraclip.cli.app import run; sys.exit(run({command!r}))"
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: 'scipy' is not installed; mend it with: pip install 'thoraclip[study]'"]


@pytest.mark.parametrize(
    "code", ["import thoraclip", "import thoraclip.cli.app", "from thoraclip.cli.app import run; run(['--help'])"]
)
def test_the_door_and_the_help_load_nothing_heavy(code: str) -> None:
    heavy = ("torch", "transformers", "pyarrow", "sklearn", "matplotlib", "numpy", "PIL", "pydicom")
    done = python(f"import sys\n{code}\nprint([m for m in {heavy!r} if m in sys.modules])")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_importing_is_silent_and_changes_nothing() -> None:
    code = (
        "import os, warnings, logging\n"
        "before = dict(os.environ), list(warnings.filters), list(logging.root.handlers)\n"
        "import thoraclip\n"
        "for name in thoraclip.__all__: getattr(thoraclip, name)\n"
        "assert before[2] == list(logging.root.handlers)\n"
        "new = {k for k in os.environ if os.environ[k] != before[0].get(k)}\n"
        "assert not {k for k in new if 'THORACLIP' in k or 'HF_' in k or 'TOKENIZERS' in k}, new\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert done.stderr == ""
