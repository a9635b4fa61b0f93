"""What the benchmarks share: clocks, a random network of the shape ViT-B/32, phantoms, processes of their own."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
from benchmarks.results import Result, table

import thoraclip
from thoraclip.data.phantom import PhantomConfig, write_phantoms
from thoraclip.models.files import locate
from thoraclip.tables.manifest import Manifest
from thoraclip.threads import cores

MIB = 2**20


def options(about: str | None, **defaults: Any) -> argparse.Namespace:
    """The command line of one benchmark: name -> default; None for a path, a list for several paths, False for a
    switch."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        kind = Path if default is None or isinstance(default, list | Path) else type(default)
        how: dict[str, Any] = {"action": "store_true"} if default is False else {"type": kind, "default": default}
        how |= {"nargs": "+"} if isinstance(default, list) else {}
        told = "" if default in (None, False, []) else "%(default)s"
        parser.add_argument(f"--{name.replace('_', '-')}", **how, help=told)
    return parser.parse_args()


def command(about: str | None, measure: Callable[..., list[Result]], **defaults: Any) -> None:
    """The command line of `measure(folder, **settings)`: what it prints, then its rows as a table."""
    given = vars(options(about, **defaults))
    with tempfile.TemporaryDirectory() as folder:
        print(f"{cores()} cores\n\n{table(measure(Path(folder), **given))}")


def once(work: Callable[[], object]) -> float:
    """Wall time of one run."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Median wall time of a few runs after one to warm up."""
    work()
    return float(np.median([once(work) for _ in range(repeats)]))


def in_turn(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, npt.NDArray[np.float64]]:
    """Name -> f64[rounds] wall times of ways that take turns, so that a drift of the machine meets all of them
    alike."""
    times = np.array([[once(work) for work in ways.values()] for _ in range(rounds)])
    return dict(zip(ways, times.T, strict=True))


def ratio(over: npt.NDArray[np.float64], under: npt.NDArray[np.float64]) -> float:
    """Median over the rounds of `over / under`."""
    return float(np.median(over / under))


def vit_b_32(work: Path, *, quick: bool = False) -> str:
    """A CLIP of that shape at 224 pixels with random weights and the shipped tokenizer, made once; with `quick`
    tiny-clip."""
    folder, tiny = work / "vit-b-32", Path(locate("tiny-clip")[0])
    processor = folder / "preprocessor_config.json"
    if quick or processor.is_file():
        return "tiny-clip" if quick else str(folder)
    import torch
    from transformers import CLIPConfig, CLIPModel

    from thoraclip.models.checkpoint import quiet

    known = CLIPConfig.from_pretrained(tiny).text_config
    text = {name: getattr(known, name) for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    with quiet():
        CLIPModel(CLIPConfig(text_config=text)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, folder)
    picture = json.loads((tiny / processor.name).read_text(encoding="utf-8"))
    picture |= {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
    processor.write_text(json.dumps(picture), encoding="utf-8")
    return str(folder)


def phantoms(work: Path, images: int, **settings: Any) -> Manifest:
    """So many phantoms (settings of `PhantomConfig`) and their manifest, below `work`; made once."""
    folder = work / "-".join(["phantoms", str(images), *map(str, settings.values())])
    write_phantoms(folder, PhantomConfig(images=images, **settings))
    return thoraclip.index(folder, out=folder.with_name(f"{folder.name}.parquet")).manifest


def radiographs(folder: Path, out: Path) -> Manifest:
    """The manifest of a folder of chest X-rays with a table manifest.csv, such as data/covid3-talo, written below
    `out`."""
    columns = {"path_column": "rel_path", "patient_column": "patient_id", "source_column": "source_repo"}
    return thoraclip.index(folder, out=out / "radiographs.parquet", csv=folder / "manifest.csv", **columns).manifest


@dataclass(frozen=True)
class Used:
    """What a process took: wall and processor seconds, MiB at the peak; and what it printed."""

    wall: float
    processor: float
    peak: float
    printed: str = ""


LAUNCHER = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
wall, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
peak = used.ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
spent = wall, used.ru_utime + used.ru_stime, peak
print(json.dumps([done.returncode, done.stderr.decode()[-400:], *spent, done.stdout.decode()]))
"""
"""A small process that starts another: the peak of memory of a child counts what its parent had when it was forked."""


def launch(*words: object, start: Sequence[str] = ("-m", "thoraclip"), python: str = sys.executable) -> Used:
    """Run Python in a process of its own, to its end; it may keep compiled modules, as for a user who has set
    nothing."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    asked = [python, *start, *map(str, words)]
    launcher = [sys.executable, "-S", "-c", LAUNCHER]
    done = subprocess.run([*launcher, *asked], capture_output=True, text=True, check=True, env=environment)
    code, told, *used = json.loads(done.stdout)
    if code:
        raise SystemExit(f"failed ({code}): {' '.join(asked)}\n{told}")
    return Used(*used)


def typical(runs: Sequence[Used]) -> Used:
    """Median times, and the largest peak."""
    wall, processor = np.median([(run.wall, run.processor) for run in runs], axis=0).tolist()
    return Used(wall, processor, max(run.peak for run in runs))


def hardware() -> str:
    """Processor, cores, memory and versions, in one line."""
    file = Path("/proc/cpuinfo")
    about = file.read_text(encoding="utf-8") if file.is_file() else ""
    named = re.search(r"model name\s*: (.*)", about)
    name = named[1] if named else platform.processor() or platform.machine()
    units = ",".join(u for u in ("avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8") if u in about)
    memory = psutil.virtual_memory().total / 2**30
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "onnxruntime"))
    machine = f"{name}, {cores()} cores{f' ({units})' if units else ''}, {memory:.0f} GiB"
    return f"{machine}; Python {platform.python_version()}, {versions}"
