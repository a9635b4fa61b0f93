"""Who encodes the batches of a manifest: this process, several of it, or the actors of a Ray cluster.

    batches: rows 0..31, 32..63, ... --engine--> (pooled, projected) of each batch, or of several in a row, in order

A batch is cut at the same rows and computed by one thread on a CPU, whoever does it; so the features are the same bytes
with any number of threads, processes and machines of one kind.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from thoraclip.data.batches import decoded
from thoraclip.dtypes import Greys, Singles
from thoraclip.engine import over_ray
from thoraclip.errors import MismatchError
from thoraclip.methods.encoders import EncoderConfig, load_encoder
from thoraclip.models.files import SHIPPED
from thoraclip.models.frozen import FrozenEncoder
from thoraclip.models.runtimes import TORCH, Choice, Compute, choose, open_runtime, require_runtime
from thoraclip.models.vision_encoder import VisionEncoder
from thoraclip.runs import process_count
from thoraclip.tables.manifest import Manifest
from thoraclip.threads import cores, in_order

if TYPE_CHECKING:
    from thoraclip.methods.training.processes import ProcessGroup

__all__ = [
    "Engine",
    "Features",
    "Pictures",
    "by_processes",
    "by_ray",
    "by_threads",
    "cut",
    "each_alone",
    "in_runtime",
    "measured",
    "threads_here",
]

Item = TypeVar("Item")
Result = TypeVar("Result")
Features = tuple[Singles, Singles]
"""(pooled f32[n, D], projected f32[n, P]) of n images."""
Pictures = Callable[[range], Greys]
"""Rows of a manifest -> u8[n, S, S]."""
Engine = Callable[[Sequence[range]], Iterator[Features]]
"""Batches in order, without a gap -> their features in the same order, those of whole batches at a time."""

_TURN = 8
"""Batches of each process between two gatherings."""
_SHARD = 8
"""Batches that an actor gets at once, at least; between two shards it waits for the first pictures."""
_MOST_SHARDS = 20_000


def cut(total: int, size: int, *, start: int = 0) -> list[range]:
    """The batches of rows `start` to `total` - 1."""
    return [range(at, min(at + size, total)) for at in range(start, total, size)]


def threads_here() -> int:
    """Threads that this process may use where others of the same launch share the machine."""
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE") or process_count()))


def each_alone(work: Callable[[Item], Result], items: Iterable[Item], *, threads: int) -> Iterator[Result]:
    """`threads.in_order`, every thread for itself: PyTorch shares no product between them meanwhile."""
    usual = torch.get_num_threads()
    try:
        yield from in_order(work, items, workers=threads, begin=lambda: torch.set_num_threads(1))
    finally:
        torch.set_num_threads(usual)


def by_threads(encoder: VisionEncoder, pictures: Pictures, *, threads: int = 0) -> Engine:
    """This process: on a CPU each thread decodes and encodes batches of its own, so that neither waits for the other.

    A product of matrices is then not shared between threads, which costs a wait at its end; a thread that reads memory
    or decodes leaves the matrix unit to the others. With another device the threads decode ahead of it, and what it has
    done is fetched while it works on the next batch.

    Args:
        encoder: of the features; several threads call it at once.
        pictures: of the manifest.
        threads: 0 for `threads_here`.
    """
    threads = threads or threads_here()

    def on_cpu(batches: Sequence[range]) -> Iterator[Features]:
        begin = batches[0].start if batches else 0

        def work(rows: range) -> Features:
            return encoder.encode_greys(pictures(rows), check=rows.start == begin)

        return each_alone(work, batches, threads=threads)

    def on_device(batches: Sequence[range]) -> Iterator[Features]:
        def load(rows: range) -> torch.Tensor:
            greys = torch.from_numpy(pictures(rows))
            return greys.pin_memory() if encoder.device.type == "cuda" else greys

        running: tuple[torch.Tensor, torch.Tensor] | None = None
        for number, greys in enumerate(in_order(load, batches, workers=threads, ahead=threads + 1)):
            if number == 0:
                encoder.encode_greys(greys.numpy(), check=True)
            following = encoder.start(greys)
            if running is not None:
                yield encoder.fetch(running)
            running = following
        if running is not None:
            yield encoder.fetch(running)

    return on_cpu if encoder.device.type == "cpu" else on_device


def measured(
    plain: Compute,
    write: Callable[[Path], None],
    pictures: Callable[[range], Greys],
    total: int,
    announce: Callable[[str], None],
) -> Choice:
    """The fastest runtime for `total` images by the threads of this process; see `runtimes.choose`."""
    threads = threads_here()
    return choose(
        plain,
        write,
        lambda size: [pictures(rows) for rows in cut(min(total, threads * size), size)],
        images=total,
        threads=threads,
        over=partial(each_alone, threads=threads),
        announce=announce,
    )


def in_runtime(encoder: FrozenEncoder, name: str, *, threads: int = 0) -> FrozenEncoder:
    """The same encoder, computed by a runtime that is asked for by name; `auto` is PyTorch here. Raises as
    `require_runtime` and `open_runtime` do."""
    if name in ("auto", TORCH):
        return encoder
    require_runtime(name, precision=encoder.precision, device=encoder.device.type)
    return encoder.by_runtime(name, open_runtime(name, encoder.write_onnx, threads=threads or threads_here()))


def by_processes(group: ProcessGroup, encoder: VisionEncoder, pictures: Pictures) -> Engine:
    """Several processes that a launcher started: each encodes its share of the batches, all get all features."""
    alone = by_threads(encoder, pictures)

    def engine(batches: Sequence[range]) -> Iterator[Features]:
        span = group.count * _TURN
        for at in range(0, len(batches), span):
            turn = batches[at : at + span]
            own, _ = group.own(len(turn))  # padded with the last batch, so that all have one
            rows, most = sum(map(len, turn)), len(turn[0]) * len(own)
            whole = []
            for made in map(np.concatenate, zip(*alone([turn[number] for number in own.tolist()]), strict=True)):
                local = torch.zeros(most, made.shape[1])  # of a turn the last batch alone may be short
                local[: len(made)] = torch.from_numpy(made)
                whole.append(group.gather(local.to(encoder.device), rows).cpu().numpy())
            yield whole[0], whole[1]

    return engine


def by_ray(config: EncoderConfig, manifest: Manifest, expected: dict[str, str], *, workers: int = 0) -> Engine:
    """The actors of a Ray cluster, each with the encoder loaded once; see `engine.over_ray` for what they survive.

    The pictures are read where they are decoded: every machine must see them, and a local model, under the same path.

    Args:
        config: of the encoder.
        manifest: the images.
        expected: the encoder's description here; an actor that loads other weights refuses to work.
        workers: actors; 0 as in `over_ray`.
    """

    def engine(batches: Sequence[range]) -> Iterator[Features]:
        import pyarrow as pa

        size = len(batches[0]) if batches else 1
        count = max(_SHARD, -(-len(batches) // _MOST_SHARDS))
        images = manifest.table.select(["path", "sha256"])
        images = images.append_column("bits", pa.array([bits or 0 for bits in manifest.bits], pa.int32()))
        shards = (batches[at : at + count] for at in range(0, len(batches), count))
        tables = (images.slice(shard[0].start, sum(map(len, shard))) for shard in shards)
        make = partial(_actor, _located(config), str(manifest.root.resolve()), size, expected)
        for block in over_ray(make, tables, workers=workers):
            yield block["pooled"], block["projected"]

    return engine


def _located(config: EncoderConfig) -> dict[str, Any]:
    """Its fields, local folders by their whole paths: an actor may be at home elsewhere."""
    fields: dict[str, Any] = asdict(config)
    for name in ("model", "adapter"):
        if fields[name] and fields[name] not in SHIPPED and Path(fields[name]).is_dir():
            fields[name] = str(Path(fields[name]).resolve())
    return fields


def _actor(
    config: dict[str, Any], root: str, size: int, expected: dict[str, str], threads: int
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Make, in an actor that may use so many threads, what encodes a shard of the images in `root`; see `by_ray`."""
    encoder = load_encoder(EncoderConfig(**config))
    if encoder.description != expected:
        raise MismatchError(
            f"model '{config['model']}': an actor of the cluster loads other weights than the driver, or computes in "
            "another precision; give all machines the same files and set precision"
        )

    encoder = in_runtime(encoder, config["runtime"], threads=threads)

    def work(shard: dict[str, Any]) -> dict[str, Any]:
        import pyarrow as pa

        table = pa.table({name: shard[name].tolist() for name in ("path", "sha256", "bits")})
        alone = by_threads(encoder, decoded(root, table, encoder.preprocess), threads=threads)
        pooled, projected = zip(*alone(cut(len(table), size)), strict=True)
        return {"pooled": np.concatenate(pooled), "projected": np.concatenate(projected)}

    return work
