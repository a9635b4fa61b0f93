"""Floors are linted, and the torch-free rooms really run without torch."""

from __future__ import annotations

import ast
import graphlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.small_install import ABSENT, run_without

import thoraclip

PACKAGE = Path(thoraclip.__file__).parent
REPOSITORY = PACKAGE.parents[1]
EVERY_MODULE = sorted(name for _, name, _ in pkgutil.walk_packages([str(PACKAGE)], prefix="thoraclip."))
WITH_TORCH = {"__main__", "bundle", "heatmaps", "methods", "models", "study"}
TORCH_FREE = sorted({name.split(".")[1] for name in EVERY_MODULE} - WITH_TORCH)
NEEDS_TORCH = "thoraclip.heatmaps.gradients"
"""The one module of its room that looks inside a network."""


def modules_of(*rooms: str) -> list[str]:
    """Modules of rooms, without the one that needs torch; no room is empty."""
    found = [name for name in EVERY_MODULE if name.split(".")[1] in rooms and name != NEEDS_TORCH]
    assert {name.split(".")[1] for name in found} == set(rooms)
    return found


def failures(names: list[str], *, absent: tuple[str, ...] = (), beside: Path = REPOSITORY) -> dict[str, str]:
    """Import modules without torch and `absent`: the name of each that fails -> what it said. Importing must be silent
    and leave the process as it was."""
    code = f"""
import importlib, json, logging, os, warnings
sys.path.append({str(beside)!r})
state = lambda: (dict(os.environ), list(warnings.filters), list(logging.root.handlers), logging.root.level)
before, failed = state(), {{}}
for name in {names!r}:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed[name] = str(error)
    assert state() == before, f"{{name}} changes the process"
print(json.dumps(failed))
"""
    done = run_without(absent, code)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return dict(json.loads(done.stdout))


def test_the_linter_finds_nothing() -> None:
    script = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([str(script)], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout


def test_torch_free_modules_import_with_torch_blocked() -> None:
    assert failures(modules_of(*TORCH_FREE)) == {}


def test_what_explains_a_deployed_classifier_imports_in_a_small_install() -> None:
    assert failures([*modules_of("heatmaps"), "thoraclip.posthoc.ood"], absent=ABSENT) == {}


def test_a_module_that_loads_torch_in_any_way_is_found(tmp_path: Path) -> None:
    """By itself, through Transformers, another module, or a package nobody has thought of."""
    planted = {
        "planted_itself": "import torch",
        "planted_part": "from torch.nn.functional import relu",
        "planted_transformers": "from transformers import CLIPModel",
        "planted_module": "import planted_itself",
        "planted_package": "import torchmetrics_like",
        "torchmetrics_like": "from torch import nn",
        "planted_not_at_all": "def later():\n    import torch",
    }
    for name, code in planted.items():
        (tmp_path / f"{name}.py").write_text(code)
    found = failures([*planted, NEEDS_TORCH, "thoraclip.models.dual_encoder"], beside=tmp_path)
    assert set(found) == {*planted, NEEDS_TORCH, "thoraclip.models.dual_encoder"} - {"planted_not_at_all"}
    assert all(said.startswith("import of t") and said.endswith("halted") for said in found.values())
    study = failures(["thoraclip.data.lungs", "thoraclip.tables.manifest"], absent=ABSENT)
    assert [said.split()[2] for said in study.values()] == ["scipy", "pyarrow"]


def imports(source: str) -> set[str]:
    """The modules of the package that a module imports: at its top, in a function, or for the type checker alone."""
    needs: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            needs |= (parts & set(EVERY_MODULE)) or {str(node.module)}
        elif isinstance(node, ast.Import):
            needs |= {alias.name for alias in node.names}
    return needs


def test_no_module_needs_itself() -> None:
    """So a room can be read from its lowest module up, and each module can be the first to be imported."""
    needs: dict[str, set[str]] = {}
    for name in ("thoraclip", *EVERY_MODULE):
        path = REPOSITORY / "src" / Path(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        needs[name] = imports(file.read_text(encoding="utf-8"))
    assert "thoraclip.methods.embed" in needs["thoraclip.methods.running"], "an import in a function counts"
    assert "thoraclip.methods.training.processes" in needs["thoraclip.methods.embed"], "one for the type checker counts"
    graphlib.TopologicalSorter(needs).prepare()  # raises CycleError


def test_the_judge_works_without_torch(tmp_path: Path) -> None:
    """Not only imported: a report is written while every way to torch is shut."""
    rows = [f"{i},{'ab'[i % 2]},0.{i % 9}5,{0.95 - i % 9 / 10:.2f}" for i in range(40)]
    (tmp_path / "p.csv").write_text("\n".join(["image_id,label,score_a,score_b", *rows]))
    words = ["report", str(tmp_path / "p.csv"), "--resamples", "200", "--out", str(tmp_path / "r")]
    done = run_without((), f"from thoraclip.cli.app import run\nsys.exit(run({words!r}))")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r" / "report.html").is_file()


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("scipy", ["check", "m.parquet"]),
        ("scipy", ["split", "m.parquet", "--folds", "3", "--out", "o.parquet"]),
        ("pyarrow", ["index", "images", "--out", "m.parquet"]),
    ],
)
def test_without_a_package_of_the_study_a_command_says_so_in_one_line(package: str, command: list[str]) -> None:
    done = run_without([package], f"from thoraclip.cli.app import run\nsys.exit(run({command!r}))")
    assert done.returncode == 2
    assert done.stderr == f"error: '{package}' is not installed; mend it with: pip install 'thoraclip[study]'\n"


@pytest.mark.parametrize(
    "code",
    [
        "heavy = ('torch', 'transformers', 'pyarrow', 'sklearn', 'matplotlib', 'numpy', 'PIL', 'pydicom', 'scipy')\n"
        "for code in ('import thoraclip', 'import thoraclip.cli.app', 'thoraclip.cli.app.run([\"--help\"])'):\n"
        "    with contextlib.redirect_stdout(io.StringIO()): exec(code)\n"
        "    assert not [m for m in heavy if m in sys.modules], code\n",
        pytest.param(
            "import thoraclip\n"
            "for name in thoraclip.__all__: getattr(thoraclip, name)\n"
            "assert before[1] == list(logging.root.handlers)\n"
            "new = {k for k in os.environ if os.environ[k] != before[0].get(k)}\n"
            "assert not {k for k in new if 'THORACLIP' in k or 'HF_' in k or 'TOKENIZERS' in k}, new\n",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["the door and the help load nothing heavy", "every public name opens in silence and sets no variable"],
)
def test_the_package_as_it_is_loaded(code: str) -> None:
    code = f"import contextlib, io, logging, os, sys\nbefore = dict(os.environ), list(logging.root.handlers)\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
