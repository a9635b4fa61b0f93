"""A classifier without a model, for the tests of what goes round one."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from thoraclip.deploy.runtime import Prediction
from thoraclip.errors import ImageError
from thoraclip.imaging import read_bytes
from thoraclip.labels import LabelSet

LABELS = LabelSet(("COVID-19", "Non-COVID", "Normal"))


class FakeClassifier:
    """Scores that depend on a file's bytes alone; bytes that begin with `bad` are damaged.

    Args:
        seconds: that a picture takes.
        fingerprint: of the bundle.
    """

    labels = LABELS
    together = 1

    def __init__(self, *, seconds: float = 0.0, fingerprint: str = "f" * 64) -> None:
        self.bundle = SimpleNamespace(fingerprint=fingerprint, name="fake", precision="fp32")
        self.asked: list[str] = []
        self._seconds, self._lock = seconds, threading.Lock()

    def classify_each(self, sources: Sequence[Path]) -> list[Prediction | ImageError]:
        """See `BundleClassifier.classify_each`."""
        found: list[Prediction | ImageError] = []
        for source in sources:
            try:
                found.append(self.classify(source))
            except ImageError as error:
                found.append(error)
        return found

    def classify(self, source: Path) -> Prediction:
        """See `BundleClassifier.classify`."""
        with self._lock:
            self.asked.append(str(source))
        time.sleep(self._seconds)
        data = read_bytes(source)
        if data.startswith(b"bad"):
            raise ImageError(f"{source}: damaged picture ({data.decode()})")
        return prediction(data)


def prediction(data: bytes) -> Prediction:
    """Some answer for some bytes."""
    parts = [1 + byte for byte in hashlib.sha256(data).digest()[:4]]
    scores = {name: part / sum(parts[:3]) for name, part in zip(LABELS.names, parts[:3], strict=True)}
    inside = tuple(name for name, score in scores.items() if score > 0.3)
    return Prediction(max(scores, key=scores.__getitem__), scores, inside, parts[3] > 128, parts[3] / 256)


def pretend(bundle: str | Path, *, seconds: float = 0.0) -> FakeClassifier:
    """In place of `open_bundle`."""
    return FakeClassifier(seconds=seconds)
