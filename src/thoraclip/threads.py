"""Work by a pool of threads whose results come back in order, and never too many at once."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["cores", "in_order"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """Processors that this process may use; those of a machine may be more."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int = 0,
    ahead: int = 0,
    begin: Callable[[], None] | None = None,
) -> Iterator[Result]:
    """Yield `work(item)` for every item, in their order, computed ahead by threads; memory is bounded by `ahead`.

    An exception of `work` is raised where its result would have come, and ends the pass.

    Args:
        work: called in a thread with each item.
        items: taken one by one, never more than `ahead` before their results are asked for.
        workers: threads; 0 for as many as there are cores.
        ahead: results that are waited for or ready; 0 for four for each thread.
        begin: called once in each thread, before its first item.
    """
    workers = workers or cores()
    with ThreadPoolExecutor(max_workers=workers, initializer=begin) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= (ahead or 4 * workers):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
