"""Open a bundle: check its seal while the libraries and the model are loaded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from thoraclip.bundle.seal import read_seal

if TYPE_CHECKING:
    from thoraclip.bundle.runtime import BundleClassifier

__all__ = ["open_bundle"]


def open_bundle(folder: str | Path, *, threads: int = 0, bits: int | None = None) -> BundleClassifier:
    """A bundle, ready to predict: its checksums are right, and on this machine it gives the scores that it was made
    with.

    Args:
        folder: that `thoraclip export` wrote.
        threads: pictures worked on at once; 0 for as many as there are cores.
        bits: depth of 16-bit pictures, whatever they say; see `imaging.decode`.

    Raises:
        InputError: no bundle there, or a file is missing.
        MismatchError: a file was changed, or the bundle is of a later schema.
        ParityError: this machine computes other scores.
    """
    place = Path(folder)
    sealed = read_seal(place)
    with ThreadPoolExecutor(1) as pool:
        checked = pool.submit(sealed.check)  # on a core of its own, while the libraries and the model are loaded
        from thoraclip.bundle.format import read_bundle
        from thoraclip.bundle.runtime import BundleClassifier

        try:
            classifier = BundleClassifier(read_bundle(place, sealed), threads=threads, bits=bits)
            classifier.self_test()
        finally:
            checked.result()  # whatever a changed file has led to, this is the reason
    return classifier
