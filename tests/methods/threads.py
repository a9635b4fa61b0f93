"""Several processes as threads of this one: `ProcessGroup` with a stand-in for Accelerate, so that a test sees all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from thoraclip.methods.training.processes import ProcessGroup

T = TypeVar("T")


class StandIn:
    """What Accelerate gives the process of number `process_index`, which waits for the others where that one does."""

    device = torch.device("cpu")

    def __init__(self, rank: int, barrier: threading.Barrier, given: list[Any]) -> None:
        self.process_index, self.num_processes, self.is_main_process = rank, len(given), rank == 0
        self._barrier, self._given, self.waited = barrier, given, 0

    def _all(self, mine: Any) -> list[Any]:
        self._given[self.process_index] = mine
        self._barrier.wait()
        found = list(self._given)
        self._barrier.wait()
        return found

    def gather(self, local: Tensor) -> Tensor:
        return torch.cat(self._all(local))

    def reduce(self, local: Tensor, reduction: str) -> Tensor:
        whole = torch.stack(self._all(local))
        return {"sum": whole.sum(dim=0), "mean": whole.mean(dim=0)}[reduction]

    def wait_for_everyone(self) -> None:
        self._all(None)
        self.waited += 1


def group_of(accelerator: Any) -> ProcessGroup:
    """A group that no launcher started."""
    group = ProcessGroup.__new__(ProcessGroup)
    group._accelerator = accelerator
    return group


def in_threads(count: int, work: Callable[[ProcessGroup], T]) -> list[T]:
    """`work(group)` in so many processes at once; what the first one to fail raises."""
    barrier, given = threading.Barrier(count, timeout=60), [None] * count

    def one(rank: int) -> T:
        try:
            return work(group_of(StandIn(rank, barrier, given)))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(count) as pool:
        started = [pool.submit(one, rank) for rank in range(count)]
    failed = [done.exception() for done in started if done.exception()]
    for error in sorted(failed, key=lambda e: isinstance(e, threading.BrokenBarrierError))[:1]:
        raise error  # type: ignore[misc]
    return [done.result() for done in started]
