"""Work on other machines: the actors of a Ray cluster (Ray Data). Results come back in order, each exactly once.

    tables --driver--> object store --actors, each made once--> results --in order, checked--> the caller, who writes

A dead actor or machine is replaced, and its blocks are computed again. The results of a block are handed over when they
are complete, and only if they are those of the next rows: nothing is lost or doubled. Ray holds back new blocks while
results wait for the caller. Work on this machine goes through `threads.in_order`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from thoraclip import errors
from thoraclip.errors import ConfigError, MissingExtraError, ThoraclipError, did_you_mean, first_line
from thoraclip.ranges import Workers, conform

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ENGINES", "Block", "over_ray", "require_engine"]

ENGINES = ("threads", "ray")

Block = dict[str, Any]
"""Column -> array[n, ...]."""
Maker = Callable[[int], Callable[[Block], Block]]

_ROW = "__row__"
"""Column that numbers the rows of all blocks, by which their order is checked."""


def require_engine(engine: str, *, workers: int = 0, threads: int = 0) -> None:
    """Refuse an engine that there is not; `workers` are those of ray, `threads` those of threads.

    Raises:
        ConfigError: unknown, a negative number of workers, workers without ray, or threads with it.
        MissingExtraError: Ray Data is not installed.
    """
    if engine not in ENGINES:
        raise ConfigError(f"--engine: unknown engine '{engine}'{did_you_mean(engine, ENGINES)}")
    conform("workers", workers, Workers)
    conform("threads", threads, Workers)
    if workers and engine != "ray":
        raise ConfigError(f"--workers {workers}: the number of actors of --engine ray; leave it out")
    if threads and engine == "ray":
        raise ConfigError(
            f"--threads {threads}: an actor of --engine ray has its share of the processors; set --workers"
        )
    if engine == "ray" and not (find_spec("ray") and find_spec("pyarrow")):
        raise MissingExtraError("ray", "ray")


def over_ray(make: Maker, tables: Iterable[pa.Table], *, workers: int = 0) -> Iterator[Block]:
    """Yield the results of all blocks, in their order.

    Takes the cluster that `RAY_ADDRESS` names, or one that runs on this machine. Otherwise one is started on this
    machine, and ended afterwards.

    Args:
        make: pickled for the actors; called in each with the number of its threads. It returns what turns a block into
            one with as many rows. A ThoraclipError that either raises ends the pass.
        tables: the blocks.
        workers: actors; 0 for one on each GPU, or, without a GPU, on each machine.

    Raises:
        ConfigError: more actors than the cluster has processors or GPUs, or no cluster there.
        ThoraclipError: as the actors raised it.
    """
    blocks = list(_numbered(tables))
    if not blocks:
        return
    with _cluster() as ray:
        cpus, gpus, workers = _share(ray, workers)
        due = 0
        dataset = ray.data.from_arrow(blocks).map_batches(
            _Worker,
            fn_constructor_args=(make, int(cpus)),
            batch_size=None,
            batch_format="numpy",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=cpus,
            num_gpus=gpus,
        )
        for block in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
            if "error" in block:
                kind, text = str(block["error"][0]).split("\n", 1)
                raise (ThoraclipError if kind == "MissingExtraError" else getattr(errors, kind))(text)
            rows = block.pop(_ROW)
            if rows[0] != due or rows[-1] != due + len(rows) - 1:
                raise RuntimeError(f"rows {rows[0]} to {rows[-1]} came from the cluster where {due} was due")
            due += len(rows)
            yield block


def _numbered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    import pyarrow as pa

    start = 0
    for table in tables:
        yield table.append_column(_ROW, pa.array(range(start, start + len(table)), pa.int64()))
        start += len(table)


class _Worker:
    """An actor."""

    def __init__(self, make: Maker, threads: int) -> None:
        self._make, self._threads = make, threads
        self._work: Callable[[Block], Block] | None = None

    def __call__(self, block: Block) -> Block:
        import numpy as np

        try:
            self._work = self._work or self._make(self._threads)
            return {**self._work({name: block[name] for name in block if name != _ROW}), _ROW: block[_ROW]}
        except ThoraclipError as error:
            return {"error": np.array([f"{type(error).__name__}\n{error}"])}


@contextmanager
def _cluster() -> Iterator[Any]:
    """Ray, connected, with blocks kept in order; what was connected before stays so."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # errors report what goes wrong
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    own = not ray.is_initialized()
    if own:
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"no Ray cluster can be joined or started ({first_line(error)}); see RAY_ADDRESS"
            ) from error
    context = ray.data.DataContext.get_current()
    before = context.execution_options.preserve_order, context.enable_progress_bars
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    try:
        yield ray
    finally:
        context.execution_options.preserve_order, context.enable_progress_bars = before
        if own:
            ray.shutdown()


def _share(ray: Any, workers: int) -> tuple[float, float, int]:
    """(processors and GPUs of an actor, actors)."""
    there = ray.cluster_resources()
    cpus, gpus = int(there.get("CPU", 1)), int(there.get("GPU", 0))
    machines = sum(node["Alive"] for node in ray.nodes())
    workers = workers or gpus or machines
    if workers > (gpus or cpus):
        raise ConfigError(f"workers = {workers}: the cluster has {gpus} GPUs and {cpus} processors; one each is needed")
    return max(1, cpus // workers), min(1, gpus), workers
