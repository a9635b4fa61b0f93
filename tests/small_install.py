"""Code in a Python where packages are missing: forked from one that has loaded the others, in 0.1 s."""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
TORCH = ("torch", "transformers", "peft", "accelerate")
ABSENT = (
    *TORCH, "huggingface_hub", "jinja2", "matplotlib", "pyarrow", "safetensors", "scipy", "sklearn", "threadpoolctl",
    "tokenizers", "yaml",
)  # fmt: skip
"""Packages of the study, as they are imported."""
_SMALL = ("fastapi", "onnxruntime", "prometheus_client", "pydicom.pixels", "rich.progress", "typer.testing", "uvicorn")
_STUDY = (
    "jinja2", "matplotlib.figure", "pyarrow.compute", "pyarrow.csv", "pyarrow.parquet", "scipy.ndimage", "scipy.optimize",
    "scipy.stats", "sklearn.ensemble", "sklearn.linear_model", "sklearn.model_selection",
)  # fmt: skip


def run_small(code: str) -> subprocess.CompletedProcess[str]:
    """Run code where none of `ABSENT` can be imported; `tests` can."""
    return run_without(ABSENT, code)


def run_without(absent: Iterable[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run code where torch and what needs it, and the other packages named, cannot be imported; thoraclip is not loaded yet."""
    with tempfile.TemporaryDirectory() as folder:
        request = {"absent": [*TORCH, *absent], "code": code, "output": folder}
        if hasattr(os, "fork"):
            server = _server()
            print(json.dumps(request), file=server.stdin, flush=True)
            status = int(server.stdout.readline())  # type: ignore[union-attr]
        else:
            status = subprocess.run([*_COMMAND, json.dumps(request)], cwd=REPOSITORY, check=False).returncode
        out, err = (Path(folder, name).read_text() for name in ("out", "err"))
    return subprocess.CompletedProcess(code, status, out, err)


_COMMAND = (sys.executable, "-m", "tests.small_install")


@functools.cache
def _server() -> subprocess.Popen[str]:
    """It ends with this process, when its standard input is closed."""
    return subprocess.Popen(_COMMAND, cwd=REPOSITORY, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


class _Wall(importlib.abc.MetaPathFinder):
    """No module of these packages is found; None in `sys.modules` would confuse those that look there for torch."""

    absent: frozenset[str] = frozenset()

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name.split(".")[0] in self.absent:
            raise ModuleNotFoundError(f"import of {name} halted", name=name)


_WALL = _Wall()


def _block(absent: Iterable[str]) -> None:
    _WALL.absent = frozenset(absent)
    for name in [n for n, module in sys.modules.items() if module is None or n.split(".")[0] in _WALL.absent]:
        del sys.modules[name]


def _serve() -> None:
    for absent, names in ((ABSENT, _SMALL), (TORCH, _STUDY)):
        _block(absent)
        for name in names:
            importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            os._exit(_run(json.loads(line)))
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


def _run(request: dict[str, str]) -> int:
    output = Path(request["output"])
    for number, place in enumerate((os.devnull, output / "out", output / "err")):
        os.dup2(os.open(place, os.O_RDWR | os.O_CREAT), number)
    _block(request["absent"])
    status = 0
    try:
        exec(compile(request["code"], "<code>", "exec"), {"__name__": "__main__", "sys": sys})
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    sys.meta_path.insert(0, _WALL)
    if sys.argv[1:]:
        sys.exit(_run(json.loads(sys.argv[1])))
    _serve()
