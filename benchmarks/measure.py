"""What the benchmarks share: clocks, a random network of the shape ViT-B/32, phantoms, processes of their own."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

import thoraclip
from thoraclip.tables.manifest import Manifest
from thoraclip.threads import cores

SMALL_TEXT_TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}


def options(about: str | None, **defaults: Any) -> argparse.Namespace:
    """The command line of one benchmark: name -> default; None for a path, a list for several paths, False for a switch."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        kind = Path if default is None or isinstance(default, list | Path) else type(default)
        how: dict[str, Any] = {"action": "store_true"} if default is False else {"type": kind, "default": default}
        how |= {"nargs": "+"} if isinstance(default, list) else {}
        parser.add_argument(
            f"--{name.replace('_', '-')}", **how, help="" if default in (None, False, []) else "%(default)s"
        )
    return parser.parse_args()


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
    """Name -> f64[rounds] wall times of ways that take turns, so that a drift of the machine meets all of them alike."""
    times = np.array([[once(work) for work in ways.values()] for _ in range(rounds)])
    return dict(zip(ways, times.T, strict=True))


def ratio(over: npt.NDArray[np.float64], under: npt.NDArray[np.float64]) -> float:
    """Median over the rounds of `over / under`."""
    return float(np.median(over / under))


def write_vit_b_32(folder: Path, text: Mapping[str, int] | None = None) -> str:
    """A CLIP of the shape ViT-B/32 at 224 pixels with random weights, the shipped tokenizer and its vocabulary; made once.

    Args:
        folder: in Transformers format.
        text: shape of the text tower; None for CLIP's own.
    """
    if (folder / "preprocessor_config.json").is_file():
        return str(folder)
    import torch
    from transformers import CLIPConfig, CLIPModel

    from thoraclip.models.checkpoint import quiet

    tiny = resources.files("thoraclip") / "models" / "assets" / "tiny-clip"
    known = CLIPConfig.from_pretrained(str(tiny)).text_config
    kept = {name: getattr(known, name) for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    with quiet():
        CLIPModel(CLIPConfig(text_config={**kept, **(text or {})})).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny / name).read_bytes())
    picture = json.loads((tiny / "preprocessor_config.json").read_text(encoding="utf-8"))
    picture |= {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
    (folder / "preprocessor_config.json").write_text(json.dumps(picture), encoding="utf-8")
    return str(folder)


def phantoms(work: Path, images: int) -> Manifest:
    """So many phantoms of 256 pixels and their manifest, below `work`; made once."""
    folder = work / f"phantoms-{images}"
    thoraclip.phantom(folder, images=images)
    return thoraclip.index(folder, out=folder.with_suffix(".parquet")).manifest


def radiographs(folder: Path, out: Path) -> Manifest:
    """The manifest of a folder of chest X-rays with a table manifest.csv, such as data/covid3-talo, written below `out`."""
    columns = {"path_column": "rel_path", "patient_column": "patient_id", "source_column": "source_repo"}
    return thoraclip.index(folder, out=out / "radiographs.parquet", csv=folder / "manifest.csv", **columns).manifest


@dataclass(frozen=True)
class Used:
    """What a process took: wall and processor seconds, MiB at the peak."""

    wall: float
    processor: float
    peak: float


LAUNCHER = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
wall, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
peak = used.ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
print(json.dumps([done.returncode, wall, used.ru_utime + used.ru_stime, peak, done.stderr.decode()[-400:]]))
"""
"""A small process that starts another: the peak of memory of a child counts what its parent had when it was forked."""


def launch(command: Sequence[str]) -> Used:
    """Run a command in a process of its own, to its end; it may keep compiled modules, as for a user who has set nothing."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    started = [sys.executable, "-S", "-c", LAUNCHER, *command]
    done = subprocess.run(started, capture_output=True, text=True, check=True, env=environment)
    code, *used, told = json.loads(done.stdout)
    if code:
        raise SystemExit(f"failed ({code}): {' '.join(command)}\n{told}")
    return Used(*used)


def typical(runs: Sequence[Used]) -> Used:
    """Median times, and the largest peak."""
    return Used(
        float(np.median([r.wall for r in runs])),
        float(np.median([r.processor for r in runs])),
        max(r.peak for r in runs),
    )


def _about_processor() -> str:
    file = Path("/proc/cpuinfo")
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def processor_name() -> str:
    """What the maker calls the processor."""
    found = re.search(r"model name\s*: (.*)", _about_processor())
    return found[1] if found else platform.processor() or platform.machine()


def hardware() -> str:
    """Processor, cores, memory and versions, in one line."""
    about, name = _about_processor(), processor_name()
    units = [unit for unit in ("avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8") if unit in about]
    memory = psutil.virtual_memory().total / 2**30
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "onnxruntime"))
    return (
        f"{name}, {cores()} cores{f' ({chr(44).join(units)})' if units else ''}, {memory:.0f} GiB; "
        f"Python {platform.python_version()}, {versions}"
    )


def memory_bandwidth(rounds: int = 5, mib: int = 256) -> float:
    """Bytes a second of a big copy: those that are read; the same number is written."""
    source, target = np.ones(mib * 2**20, np.uint8), np.zeros(mib * 2**20, np.uint8)
    return source.nbytes / seconds(lambda: np.copyto(target, source), rounds)
