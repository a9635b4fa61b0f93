"""What every process of `test_processes` computes: gradients of each loss, and weights after three steps."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tests import forked
from tests.methods.test_gradcache import BATCH, LOSSES, gradients, make_step
from torch import Tensor

from thoraclip.methods.contrastive import ContrastiveStep
from thoraclip.methods.training.processes import ProcessGroup
from thoraclip.methods.training.sampler import Batch

ODD = np.arange(BATCH - 1)  # 23 images: no number of processes divides them; five texts
TWO_TEXTS = np.array([0, 5, 10, 15, 20, 1, 6])
CASES: tuple[tuple[str, np.ndarray, dict[str, Any]], ...] = (
    *((loss, ODD, {"loss": loss}) for loss in LOSSES),
    ("two-texts", TWO_TEXTS, {"loss": "unicl"}),
    ("weighted", ODD, {"loss": "infonce", "class_weight": "balanced"}),
    ("one-image", np.array([3]), {"loss": "prompt_ce"}),
)
STEPS = 3
SECONDS = 180


def together(count: int, work: Callable[..., Any], *arguments: Any) -> list[forked.Done]:
    """`work(*arguments)` in so many processes, forked, with what torchrun puts into their environment."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
        free.close()
        outputs = [Path(folder) / str(rank) for rank in range(count)]
        started = [
            forked.start(
                work, *arguments, output=outputs[rank],
                env={**os.environ, **given, "LOCAL_WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(count)
        ]  # fmt: skip
        for process in started:
            process.join(SECONDS)
        late = [process for process in started if process.exitcode is None]
        for process in late:
            process.kill()
        if late:
            raise TimeoutError(f"{len(late)} of {count} processes still ran after {SECONDS} s")
        return [
            forked.Done(process.exitcode, output.read_text(), output.with_name(f"{output.name}.err").read_text())
            for process, output in zip(started, outputs, strict=True)
        ]


def compute(work: Path, *, chunk_size: int) -> dict[str, Tensor]:
    """`CASE/gradient/NAME` of every case, and `CASE/weight/NAME` of the four losses."""
    found: dict[str, Tensor] = {}
    for case, rows, settings in CASES:
        contrast = make_step(work, chunk_size=chunk_size, **settings)
        found |= {f"{case}/gradient/{name}": g for name, g in gradients(contrast, rows=rows).items()}
        if case in LOSSES:
            found |= {f"{case}/weight/{name}": w for name, w in weights(contrast, rows).items()}
    return found


def weights(contrast: ContrastiveStep, rows: np.ndarray) -> dict[str, Tensor]:
    parameters = contrast.tuned.parameters
    optimizer = torch.optim.AdamW(parameters.values(), lr=3e-4)
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        contrast.backward(Batch(step, rows, rows))
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
    return {name: p.detach().clone() for name, p in parameters.items()}


def write_computed(work: Path) -> None:
    """Into `found-RANK.safetensors`."""
    group = ProcessGroup()
    index = int(group._accelerator.process_index)
    found = compute(work, chunk_size=5)
    found["first"] = torch.tensor(group.first(index + 0.5))
    found["any"] = torch.tensor([group.any(index == 1), group.any(False)])
    save_file({n: t.contiguous() for n, t in found.items()}, work / f"found-{index}.safetensors")


_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}


def command(arguments: list[str], watched: str = "", changes: str = "", stop_at: int = 0) -> int:
    """The command line; what it changes under `watched` is noted in the file `changes`, and at a step it gets SIGTERM.

    Only the first process gets the signal, after that step's checkpoint.
    """
    import signal

    from thoraclip.cli.app import run
    from thoraclip.methods.training.checkpoint import Checkpoint

    log = os.open(changes, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if changes else -1

    def watch(event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            is_change = isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            is_change = event in _CHANGES
        if is_change and str(given[0]).startswith(watched):
            os.write(log, f"{os.environ['RANK']} {event} {given[0]}\n".encode())

    if changes:
        sys.addaudithook(watch)
    write = Checkpoint.write

    def written(self: Checkpoint, done: Any, *rest: Any) -> None:
        write(self, done, *rest)
        if done.step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    if stop_at:
        Checkpoint.write = written  # type: ignore[method-assign]
    return run(arguments)
