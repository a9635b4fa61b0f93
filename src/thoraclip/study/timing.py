"""Seconds, peak memory, the machine, and the few pictures of a manifest that are looked at."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from thoraclip.study.tasks import Unit
from thoraclip.tables.manifest import Manifest

__all__ = ["few_pictures", "in_parts", "machine_facts", "memory_mb", "peak_memory", "seconds_of"]


def few_pictures(manifest: Manifest, most: int) -> Manifest:
    """Some labelled pictures, of all classes in turn and from all over the manifest; patients are left out."""
    labels = [label or "" for label in manifest.column("label")]
    rows = {name: [row for row, label in enumerate(labels) if label == name] for name in sorted(set(labels) - {""})}
    wanted = -(-max(most, 5 * len(rows)) // max(len(rows), 1))
    spread = [[own[int(at)] for at in np.linspace(0, len(own) - 1, min(wanted, len(own)))] for own in rows.values()]
    mixed = [own[turn] for turn in range(wanted) for own in spread if turn < len(own)]
    few = manifest.take(np.array(mixed, dtype=np.int64))
    return few.with_columns(patient=[None] * len(few))


def in_parts(manifest: Manifest) -> Manifest:
    """Of every class three in five to train, one to choose and one to test on."""
    seen: dict[str, int] = {}
    parts = []
    for label in manifest.column("label"):
        turn = seen.get(label, 0)
        seen[label] = turn + 1
        parts.append({1: "val", 2: "test"}.get(turn % 5, "train"))
    return manifest.with_columns(fold=[None] * len(parts)).with_columns(split=parts)


def seconds_of(work: Callable[[], object]) -> float:
    _synchronise()
    began = time.perf_counter()
    work()
    _synchronise()
    return time.perf_counter() - began


def _cuda() -> Any:
    """`torch.cuda` where it computes; `None` elsewhere, and before anything has loaded torch."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def _synchronise() -> None:
    if cuda := _cuda():
        cuda.synchronize()


def memory_mb() -> float:
    """In use now: of the device on CUDA, of the process elsewhere."""
    if cuda := _cuda():
        return float(cuda.memory_allocated()) / 1e6
    status = Path("/proc/self/statm")
    pages = int(status.read_text().split()[1]) if status.is_file() else 0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """A function that gives the highest memory since here, in MB; where the system cannot forget, since the process began."""
    cuda = _cuda()
    if cuda:
        cuda.reset_peak_memory_stats()
        yield lambda: float(cuda.max_memory_allocated()) / 1e6
        return
    try:
        import resource
    except ImportError:  # Windows
        yield lambda: 0.0
        return
    forget = Path("/proc/self/clear_refs")
    if forget.exists():
        forget.write_text("5")
    unit = 1 if sys.platform == "darwin" else 1024
    yield lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def machine_facts(units: Sequence[Unit], precision: str) -> Mapping[str, Any]:
    """What computes, and how; a study that needs no network has no precision."""
    if not any(hasattr(unit.config, "precision") for unit in units):
        return {"device": "cpu", "threads": os.cpu_count(), "precision": None}
    import torch

    from thoraclip.models.dual_encoder import resolve_device, resolve_precision

    device = resolve_device("")
    return {
        "device": device.type,
        "threads": torch.get_num_threads(),
        "precision": resolve_precision(precision, device),
    }
