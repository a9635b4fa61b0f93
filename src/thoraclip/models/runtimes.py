"""What computes a network that no longer changes, in fp32 on a CPU: PyTorch itself, ONNX Runtime or OpenVINO.

Which is the fastest depends on the processor and the network. `choose` measures it on the first images, where the work
is long enough to pay for that, and takes none whose numbers are others.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from thoraclip.dtypes import Greys, Singles
from thoraclip.errors import ConfigError, MissingExtraError, ModelError, first_line

__all__ = [
    "RUNTIMES",
    "TORCH",
    "Choice",
    "Compute",
    "Runtime",
    "choose",
    "difference",
    "is_installed",
    "open_runtime",
    "require_runtime",
]

Outputs = Sequence[Singles]
Compute = Callable[[Greys], Outputs]
"""u8[B, S, S] -> f32[B, ...] of each output; several threads call it at once, each for one processor."""
Write = Callable[[Path], None]
"""Write the network as an ONNX file; see `onnx_files.write_network`."""
Over = Callable[[Compute, Sequence[Greys]], Iterable[Outputs]]
"""Compute batches by all threads, in order."""

TORCH = "torch"
TOLERANCE = 1e-5
"""Largest difference from PyTorch's numbers, as a share of the largest number of the output."""
MANY = 2_000
"""Images from which a measurement may pay: short work is always computed by PyTorch, so to the same bytes."""
WORTH_SECONDS = 120.0
"""What the work must take PyTorch by the first measurement; exporting and loading the network takes about 10."""
_SAMPLE = 8
"""Images of each thread in a measurement."""
_ROUNDS = 2
_GAIN = 1.05
"""Times PyTorch's rate from which another runtime is taken."""


@dataclass(frozen=True)
class Runtime:
    """One that computes ONNX files."""

    packages: tuple[str, ...]  # what must be importable
    extra: str  # that brings them
    open: Callable[[Path, int], Compute]  # file, threads that will call -> what they call


@dataclass(frozen=True)
class Choice:
    """What `choose` found."""

    name: str = TORCH
    compute: Compute | None = None  # `None` for PyTorch
    ratio: float | None = None  # its rate over PyTorch's; `None` where nothing was measured


def _onnxruntime(file: Path, threads: int) -> Compute:
    """One session for all threads, each of which computes its own batches."""
    from thoraclip.models.sessions import onnxruntime, open_session

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = open_session(file, options)
    size = session.get_inputs()[0].shape[0]
    return _in_parts(lambda greys: session.run(None, {"greys": greys}), size if isinstance(size, int) else 0)


def _openvino(file: Path, threads: int) -> Compute:
    """As many streams of one thread as there are callers, each with a request of its own."""
    import openvino

    asked: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "EXECUTION_MODE_HINT": "ACCURACY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": threads,
    }
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # the file is removed
    model = core.compile_model(str(file), "CPU", asked)
    size, own = model.inputs[0].partial_shape[0], threading.local()

    def compute(greys: Greys) -> Outputs:
        if not hasattr(own, "request"):
            own.request = model.create_infer_request()
        found = own.request.infer({0: greys})
        return [found[number].copy() for number in range(len(model.outputs))]  # the memory is the request's

    return _in_parts(compute, size.get_length() if size.is_static else 0)


def _in_parts(compute: Compute, size: int) -> Compute:
    """The same for any number of images, where the network takes so many at once; 0 for any."""
    if not size:
        return compute

    def in_parts(greys: Greys) -> Outputs:
        parts = [compute(greys[at : at + size]) for at in range(0, len(greys), size)]
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    return in_parts


RUNTIMES: Mapping[str, Runtime] = {
    "onnxruntime": Runtime(("onnx", "onnxscript", "onnxruntime"), "export", _onnxruntime),
    "openvino": Runtime(("onnx", "onnxscript", "openvino"), "openvino", _openvino),
}
"""All but `torch`, which is always there."""


def is_installed(name: str) -> bool:
    """True where the runtime can be used."""
    return name == TORCH or all(find_spec(package) for package in RUNTIMES[name].packages)


def require_runtime(name: str, *, precision: str, device: str) -> None:
    """Refuse a runtime other than `auto` and `torch` that cannot be used; device is a type, as `cpu`.

    Raises:
        ConfigError: another precision or device than fp32 on a CPU.
        MissingExtraError: not installed.
    """
    if name in ("auto", TORCH):
        return
    if (precision, device) != ("fp32", "cpu"):
        raise ConfigError(
            f"runtime = {name}: computes in fp32 on a CPU, not in {precision} on {device}; set precision = fp32 on a "
            "CPU, or runtime = torch"
        )
    for package in RUNTIMES[name].packages:
        if not find_spec(package):
            raise MissingExtraError(package, RUNTIMES[name].extra)


def open_runtime(name: str, write: Write, *, threads: int) -> Compute:
    """The network in a runtime of `RUNTIMES`, for so many callers; raises ModelError where it cannot be exported or
    loaded."""
    with _exported(write) as file:
        return _load(name, file, threads)


@contextmanager
def _exported(write: Write) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        write(file)
        yield file


def _load(name: str, file: Path, threads: int) -> Compute:
    try:
        return RUNTIMES[name].open(file, threads)
    except Exception as error:  # each runtime has exceptions of its own
        raise ModelError(
            f"runtime = {name}: cannot load the network ({first_line(error)}); set runtime = torch"
        ) from error


def choose(
    plain: Compute,
    write: Write,
    sample: Callable[[int], Sequence[Greys]],
    *,
    images: int,
    threads: int,
    over: Over,
    announce: Callable[[str], None],
    clock: Callable[[], float] = time.perf_counter,
) -> Choice:
    """The fastest installed runtime, by the time of a few batches; PyTorch where the work is short.

    Args:
        plain: the network by PyTorch, whose numbers the others must give to `TOLERANCE`.
        write: exports the network.
        sample: size -> a batch of so many images for each thread; read only where there is a measurement.
        images: of the whole work.
        over: computes batches by the threads.
        announce: told what was measured, and which runtime is left out and why.
    """
    names = [name for name in RUNTIMES if is_installed(name)]
    if images < MANY or not names:
        return Choice()
    batches = sample(_SAMPLE)

    def seconds(compute: Compute) -> float:
        began = clock()
        deque(over(compute, batches), maxlen=0)
        return clock() - began

    expected = list(over(plain, batches))  # which also warms it up
    if seconds(plain) * images / sum(map(len, batches)) < WORTH_SECONDS:
        return Choice()
    ways = {TORCH: plain} | _exact(names, write, threads, lambda one: list(over(one, batches)), expected, announce)
    times = [{name: seconds(compute) for name, compute in ways.items()} for _ in range(_ROUNDS)]
    fastest = {name: min(turn[name] for turn in times) for name in ways}
    ratios = {name: fastest[TORCH] / took for name, took in fastest.items()}
    fit = [name for name in ways if ratios[name] >= _GAIN]
    best = max(fit, key=lambda name: ratios[name], default=TORCH)
    measured = ", ".join(f"{name} {ratio:.2f} x" for name, ratio in ratios.items() if name != TORCH)
    if measured:
        announce(f"runtime: {best}; images/s over those of torch: {measured}")
    return Choice(best, None if best == TORCH else ways[best], ratios[best] if measured else None)


def _exact(
    names: Sequence[str],
    write: Write,
    threads: int,
    run: Callable[[Compute], list[Outputs]],
    expected: list[Outputs],
    announce: Callable[[str], None],
) -> dict[str, Compute]:
    """Those of some runtimes that load the network and give the expected numbers."""
    ways: dict[str, Compute] = {}
    try:
        with _exported(write) as file:
            for name in names:
                try:
                    compute = _load(name, file, threads)
                    error = difference(run(compute), expected)
                    if error > TOLERANCE:
                        raise ModelError(f"its numbers differ by {error:.1e} of the largest")
                    ways[name] = compute
                except Exception as reason:  # of a runtime's own, also while it computes
                    announce(f"runtime: {name} is left out: {first_line(reason)}")
    except ModelError as error:
        announce(f"runtime: {TORCH}; {first_line(error)}")
    return ways


def difference(found: Sequence[Outputs], expected: Sequence[Outputs]) -> float:
    """The largest difference of two lists of batches, as a share of the largest number of each output; infinite where
    shapes differ or a number is not finite."""
    worst = 0.0
    for ours, theirs in zip(zip(*found, strict=True), zip(*expected, strict=True), strict=True):
        one, other = (np.concatenate(parts).astype(np.float64) for parts in (ours, theirs))
        if one.shape != other.shape or not np.isfinite(one).all():
            return float("inf")
        largest = np.abs(other).max(initial=0.0)
        worst = max(worst, np.abs(one - other).max(initial=0.0) / max(float(largest), 1e-30))
    return float(worst)
