"""A classifier without a model, for the tests of what goes round one."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

from thoraclip.bundle.runtime import Prediction
from thoraclip.errors import ImageError
from thoraclip.imaging import read_bytes
from thoraclip.labels import LabelSet

LABELS = LabelSet(("COVID-19", "Non-COVID", "Normal"))


class FakeClassifier:
    """Scores that depend on a file's bytes alone; bytes that begin with `bad` are damaged.

    Args:
        seconds: that a picture takes.
        together: pictures that are asked for at once.
        read: content of a file.
        fails: name of a file -> what is raised where it is asked for.
    """

    labels = LABELS
    bits = None

    def __init__(
        self,
        *,
        seconds: float = 0.0,
        together: int = 1,
        read: Callable[[Path], bytes] = read_bytes,
        fails: Mapping[str, BaseException] | None = None,
    ) -> None:
        self.bundle = SimpleNamespace(fingerprint="f" * 64, name="fake", precision="fp32")
        self.together, self.asked = together, list[str]()
        self._seconds, self._read, self._fails, self._lock = seconds, read, fails or {}, threading.Lock()

    def classify_each(self, sources: Sequence[Path], depths: object = None) -> list[Prediction | ImageError]:
        """See `BundleClassifier.classify_each`."""
        return [self._classify(source) for source in sources]

    def _classify(self, source: Path) -> Prediction | ImageError:
        with self._lock:
            self.asked.append(str(source))
        if source.name in self._fails:
            raise self._fails[source.name]
        time.sleep(self._seconds)
        try:
            data = self._read(source)
        except ImageError as error:
            return error
        return ImageError(f"{source}: damaged picture ({data.decode()})") if data[:3] == b"bad" else prediction(data)


def prediction(data: bytes) -> Prediction:
    """Some answer for some bytes."""
    parts = [1 + byte for byte in hashlib.sha256(data).digest()[:4]]
    scores = {name: part / sum(parts[:3]) for name, part in zip(LABELS.names, parts[:3], strict=True)}
    inside = tuple(name for name, score in scores.items() if score > 0.3)
    return Prediction(max(scores, key=scores.__getitem__), scores, inside, parts[3] > 128, parts[3] / 256)


def pretend(bundle: str | Path, *, seconds: float = 0.0, bits: int | None = None) -> FakeClassifier:
    """In place of `open_bundle`."""
    return FakeClassifier(seconds=seconds)
