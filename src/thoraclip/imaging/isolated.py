"""GDCM in a process of its own, since damaged data make it abort the whole process or never come back.

It is the decoder of lossless JPEG and JPEG-LS. Each thread keeps one helper; a helper that dies or takes too long is
replaced, and the picture is refused. Run as `python -m thoraclip.imaging.isolated` it is the helper: whole DICOM files
come in on standard input, arrays go out on standard output, each after its length.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import struct
import subprocess
import sys
import threading
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from thoraclip.errors import ImageError

__all__ = ["decode_apart"]

_SECONDS = 60.0
_MEMORY = 4 * 1024**3
"""Address space of a helper in bytes, where the platform can limit it."""
_LENGTH = struct.Struct("<Q")
_helpers = threading.local()


def decode_apart(data: bytes) -> npt.NDArray[np.integer[Any]]:
    """Stored values of a DICOM file's only frame, decoded by GDCM in another process.

    Raises:
        ImageError: GDCM refused the data, crashed, or took more than a minute.
    """
    helper = getattr(_helpers, "process", None)
    if helper is None or helper.poll() is not None:
        helper = _helpers.process = _start()
    late = threading.Timer(_SECONDS, helper.kill)
    late.start()
    try:
        _send(helper.stdin, data)
        facts = json.loads(_receive(helper.stdout))
        if "error" in facts:
            raise ImageError(facts["error"])
        values = np.frombuffer(_receive(helper.stdout), dtype=facts["dtype"])
        return values.reshape(facts["shape"])
    except (OSError, EOFError) as error:
        _stop(helper)
        raise ImageError(f"the decoder crashed or took more than {_SECONDS:.0f} s on damaged data") from error
    finally:
        late.cancel()


def _start() -> subprocess.Popen[bytes]:
    # -c, not -m: the parent package is imported by the helper alone, and no warning about double import is printed
    code = "from thoraclip.imaging.isolated import serve; serve()"
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    atexit.register(_stop, process)
    return process


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if stream:
                stream.close()


def _send(stream: IO[bytes] | None, data: bytes) -> None:
    assert stream is not None
    stream.write(_LENGTH.pack(len(data)))
    stream.write(data)
    stream.flush()


def _receive(stream: IO[bytes] | None) -> bytes:
    assert stream is not None
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (size,) = _LENGTH.unpack(head)
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def serve() -> None:
    """The helper's loop: decode what comes in until the pipe is closed."""
    import os

    import pydicom
    from pydicom.pixels import pixel_array

    _limit_memory()
    answers = os.fdopen(os.dup(1), "wb")  # GDCM prints on standard output
    os.dup2(2, 1)
    while True:
        try:
            data = _receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            values = np.ascontiguousarray(
                pixel_array(pydicom.dcmread(io.BytesIO(data), force=True), decoding_plugin="gdcm")
            )
        except Exception as error:  # of many kinds
            lines = str(error).strip().splitlines()
            _send(answers, json.dumps({"error": lines[-1].strip() if lines else type(error).__name__}).encode())
            continue
        _send(answers, json.dumps({"dtype": values.dtype.str, "shape": values.shape}).encode())
        _send(answers, values.tobytes())


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
