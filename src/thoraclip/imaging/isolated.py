"""Decoders that damaged data crash (GDCM) or bloat (OpenJPEG), in a process of their own that has a limit.

They are those of lossless JPEG, JPEG-LS and JPEG 2000. As many helpers live as threads decode at the same time; one
that dies or takes too long is replaced, and the picture is refused. `serve` is the helper: a plugin's name and a whole
DICOM file come in on standard input, an array goes out on standard output, each after its length.

Pebble and multiprocessing would run the caller's script again in every helper, unless the script guards its `__main__`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from thoraclip.errors import ImageError

__all__ = ["decode_apart", "last_line"]

_SECONDS = 60.0
_MEMORY = 4 * 1024**3
"""Address space of a helper in bytes, where the platform can limit it."""
_idle: list[subprocess.Popen[bytes]] = []
"""Helpers that wait for work; whoever takes one has it alone until it is put back."""


def decode_apart(data: bytes, plugin: str) -> npt.NDArray[np.integer[Any]]:
    """Stored values of a DICOM file's only frame, decoded by a plugin of pydicom in another process.

    A helper that another file has left in disorder may die of this one: a crash counts only in a fresh helper. Raises
    ImageError where the decoder refused the data, crashed, or took more than 4 GiB or a minute.
    """
    begin, is_fresh = time.monotonic(), False
    while True:
        try:
            helper = _idle.pop()
        except IndexError:
            helper, is_fresh = _start(), True
        try:
            facts, values = _ask(helper, plugin, data)
            break
        except (OSError, EOFError) as error:
            if is_fresh or time.monotonic() - begin > _SECONDS:
                text = f"the decoder crashed or took more than {_SECONDS:.0f} s on damaged data"
                raise ImageError(text) from error
    if "error" in facts:
        raise ImageError(facts["error"])
    return np.frombuffer(values, dtype=facts["dtype"]).reshape(facts["shape"])


def last_line(error: Exception) -> str:
    """What a decoder says itself: pydicom puts it last."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def _ask(helper: subprocess.Popen[bytes], plugin: str, data: bytes) -> tuple[dict[str, Any], bytes]:
    """The helper's answer; it goes back among the idle ones, or, after any exception, is stopped."""
    late = threading.Timer(_SECONDS, helper.kill)
    late.daemon = True
    late.start()
    assert helper.stdin and helper.stdout
    try:
        _send(helper.stdin, plugin.encode())
        _send(helper.stdin, data)
        facts = json.loads(_receive(helper.stdout))
        values = b"" if "error" in facts else _receive(helper.stdout)
    except BaseException:
        _stop(helper)
        raise
    finally:
        late.cancel()
    _idle.append(helper)
    return facts, values


def _start() -> subprocess.Popen[bytes]:
    _clean_up_later()
    # -P and -c, not -m: nothing in the working directory is imported, and the parent package is imported once. One
    # thread: the work space that OpenBLAS keeps for each core would count as memory.
    root = str(Path(__file__).resolve().parents[2])
    code = f"import sys; sys.path.append({root!r}); from thoraclip.imaging.isolated import serve; serve()"
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )


@functools.cache
def _clean_up_later() -> None:
    atexit.register(_stop_idle)
    if hasattr(os, "register_at_fork"):  # a forked process must not talk through its parent's pipes
        os.register_at_fork(after_in_child=_idle.clear)


def _stop_idle() -> None:
    while _idle:
        _stop(_idle.pop())


def _stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError), process:  # which closes its pipes and waits
        process.kill()


def _send(stream: IO[bytes], data: bytes) -> None:
    stream.write(len(data).to_bytes(8, "little"))
    stream.write(data)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes:
    head = stream.read(8)
    size = int.from_bytes(head, "little")
    data = stream.read(size)
    if len(head) < 8 or len(data) < size:
        raise EOFError
    return data


def serve() -> None:
    """The helper's loop: decode what comes in until the pipe is closed."""
    import pydicom
    from pydicom.pixels import pixel_array

    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no such module
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    answers = os.fdopen(os.dup(1), "wb")  # GDCM prints on standard output
    os.dup2(2, 1)
    while True:
        try:
            plugin, data = _receive(sys.stdin.buffer).decode(), _receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            dataset = pydicom.dcmread(io.BytesIO(data), force=True)
            values = np.ascontiguousarray(pixel_array(dataset, decoding_plugin=plugin))
        except Exception as error:  # of many kinds
            text = last_line(error)
            if "'NoneType' object has no attribute 'encode'" in text:  # how pydicom shows that GDCM gave up
                text = "GDCM cannot decode the frame; it is damaged"
            _send(answers, json.dumps({"error": text}).encode())
            continue
        _send(answers, json.dumps({"dtype": values.dtype.str, "shape": values.shape}).encode())
        _send(answers, values.tobytes())
