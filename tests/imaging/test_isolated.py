"""The decoder in a process of its own: it survives what kills it, and leaves no process behind."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pydicom
import pytest
from pydicom.encaps import get_frame
from tests.imaging.files import LOSSLESS, Array, data_set, dicom, encapsulated, refused, waves

from thoraclip.errors import ImageError
from thoraclip.imaging import decode, isolated

pytest.importorskip("gdcm")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and zombies")

NAMES = ("JPEG lossless", "JPEG-LS", "JPEG 2000 lossless")


def compressed(name: str = "JPEG lossless SV1") -> bytes:
    return LOSSLESS[name](data_set(waves(12), bits=12))


def require_decoded(found: Array) -> None:
    np.testing.assert_array_equal(found, decode(dicom(waves(12), bits=12)).pixels)


def with_frame(change: Callable[[bytearray], None]) -> bytes:
    """A file of lossless JPEG whose frame was changed."""
    ds = pydicom.dcmread(io.BytesIO(LOSSLESS["JPEG lossless SV1"](data_set(waves(8)))))
    frame = bytearray(get_frame(ds.PixelData, 0, number_of_frames=1))
    change(frame)
    return encapsulated(data_set(waves(8)), ds.file_meta.TransferSyntaxUID, bytes(frame))


def crash(frame: bytearray) -> None:
    """Say 17 bits a sample, where the standard ends at 16; GDCM aborts on it."""
    assert frame[2:4] == b"\xff\xc3"
    frame[6] = 17


def spoil(frame: bytearray) -> None:
    frame[30:] = b"\xff\x00" * 200


def helpers() -> list[int]:
    """Child processes of this one that run the helper, zombies among them."""
    return [
        child.pid
        for child in psutil.Process().children()
        if child.status() == psutil.STATUS_ZOMBIE or any("isolated" in word for word in child.cmdline())
    ]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    isolated._stop_idle()
    yield
    isolated._stop_idle()
    assert helpers() == []


def test_one_helper_decodes_many_files_and_goes_on_after_a_damaged_one() -> None:
    decode(compressed())
    (pid,) = helpers()
    if hasattr(psutil.Process, "rlimit"):
        assert psutil.Process(pid).rlimit(psutil.RLIMIT_AS)[0] == 4 * 1024**3
    for name in NAMES * 2:
        require_decoded(decode(compressed(name)).pixels)
    refused(with_frame(spoil), r"^image: DICOM pixels cannot be decoded \(GDCM cannot decode the frame; it is")
    require_decoded(decode(compressed()).pixels)
    assert helpers() == [pid]
    for timer in [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]:
        timer.join(30)  # one that is not cancelled waits for a minute
        assert not timer.is_alive()


def test_a_helper_that_dies_of_an_earlier_file_is_replaced_unnoticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a file is read must not depend on what was decoded before; a crash counts only in a fresh helper."""
    decode(compressed())
    (pid,) = helpers()
    os.kill(pid, signal.SIGKILL)
    require_decoded(decode(compressed()).pixels)
    (second,) = helpers()
    assert second != pid
    ask = isolated._ask

    def spoilt(helper: subprocess.Popen[bytes], plugin: str, data: bytes) -> object:
        if helper.pid == second:
            helper.kill()
        return ask(helper, plugin, data)

    monkeypatch.setattr(isolated, "_ask", spoilt)
    require_decoded(decode(compressed()).pixels)
    assert second not in helpers() and len(helpers()) == 1


def test_threads_share_a_few_helpers_and_leave_none_behind() -> None:
    data = [compressed(name) for name in NAMES]
    for _ in range(2):  # each pool has threads of its own
        with ThreadPoolExecutor(2) as pool:
            for found in pool.map(lambda i: decode(data[i % 3]).pixels, range(12)):
                require_decoded(found)
        assert 1 <= len(helpers()) <= 2


def test_a_file_that_crashes_the_decoder_is_refused_and_does_not_touch_the_others() -> None:
    data, bad = compressed(), with_frame(crash)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(decode, bad if i == 0 else data) for i in range(6)]
    with pytest.raises(ImageError, match=r"the decoder crashed or took more than 60 s on damaged data\)$"):
        jobs[0].result()
    for job in jobs[1:]:
        require_decoded(job.result().pixels)


def test_a_helper_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped by a signal, a process hangs as one in an endless loop does."""
    decode(compressed())
    (pid,) = helpers()
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(isolated, "_SECONDS", 0.3)
    refused(compressed(), "the decoder crashed or took more than 0 s")
    assert not psutil.pid_exists(pid)


def _in_child(data: bytes, results: multiprocessing.Queue[tuple[int, Array]]) -> None:
    results.put((len(isolated._idle), decode(data).pixels))


def test_a_forked_process_has_helpers_of_its_own() -> None:
    decode(compressed())
    (pid,) = helpers()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_in_child, args=(compressed(), results))
    child.start()
    idle, found = results.get(timeout=30)
    child.join()
    assert (idle, helpers()) == (0, [pid])
    for pixels in (found, decode(compressed()).pixels):
        require_decoded(pixels)


@pytest.mark.parametrize("end", ["raise SystemExit(3)", "os.kill(os.getpid(), 9)"])
def test_helpers_end_with_their_parent(end: str, tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(compressed())
    (tmp_path / "dl.py").write_text("raise SystemExit('imported from the working directory')")
    code = f"""
        import os
        from pathlib import Path
        from thoraclip.imaging import decode, isolated
        decode(Path("a.dcm"))
        print(isolated._idle[0].pid, flush=True)
        {end}
    """
    command = [sys.executable, "-P", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    pid = int(done.stdout)
    for _ in range(600):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    pytest.fail(f"helper {pid} outlived its parent")


def test_an_interrupt_stops_the_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    decode(compressed())
    monkeypatch.setattr(isolated, "_receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decode(compressed())
    assert helpers() == [] and isolated._idle == []
