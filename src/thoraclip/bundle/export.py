"""`export`: a run's classifier becomes a bundle, once it has been shown to be the same one.

original --onnx--> model.onnx --parity--> equal to 1e-4, or no file
                      |
                      +--int8--> model.onnx of eight bits --parity--> alike on the test images, or no file
                      +--> validation images --> temperature, prediction sets, operating points
                      +--> training images --> the out-of-distribution reference
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.bundle import format as layout
from thoraclip.bundle.calibration import calibrate, fit_reference, measure
from thoraclip.bundle.onnx import grey_classifier, quantise, write_onnx
from thoraclip.bundle.parity import (
    FP32_TOLERANCE,
    INT8_ACCURACY,
    INT8_FLIPS,
    compare_scores,
    require_alike,
    require_equal,
)
from thoraclip.bundle.runtime import UNSIGNED, BundleClassifier
from thoraclip.bundle.seal import is_bundle, seal
from thoraclip.bundle.session import ModelSession, open_unfinished
from thoraclip.cards.bundle_card import bundle_card
from thoraclip.data.phantom import CLASSES, draw_phantom
from thoraclip.errors import ConfigError, InputError
from thoraclip.imaging import DECODING, fit
from thoraclip.models.classifiers import Original
from thoraclip.runs import Progress, make_folder, needing_room, provenance, write_json, write_text

__all__ = ["MOST_THUMBNAILS", "export_bundle", "require_place"]

MOST_THUMBNAILS = 2000
"""More would be a copy of the training data rather than a glance at it."""


def export_bundle(
    original: Original,
    out: Path,
    *,
    int8: bool = False,
    images: int = 2000,
    thumbnails: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Write a bundle; it appears whole, or not at all.

    Args:
        original: what it is made of.
        out: folder; a bundle that is there is replaced once the new one is whole.
        int8: weights and products of eight bits.
        images: validation images for what is calibrated, training images for the out-of-distribution reference, test
            images for what is told of the bundle: no more than this of each. int8 is compared on all test images.
        thumbnails: training pictures that the bundle carries, for who asks what a picture is like; whoever has the
            bundle can see them.
        seed: of the draws and resamples.
        progress: called with (done, total) images.
        announce: gets a line at every stage.

    Returns:
        The content of `parity.json`.

    Raises:
        ParityError: the exported model does not reproduce the original; nothing is written.
        ModelError: the network cannot be exported.
        InputError: there is something else at `out`, or it cannot be written.
    """
    if images < 1:
        raise ConfigError(f"images = {images}: 1 or more is needed")
    if not 0 <= thumbnails <= MOST_THUMBNAILS:
        raise ConfigError(f"thumbnails = {thumbnails}: must lie between 0 and {MOST_THUMBNAILS}")
    if thumbnails and not original.has_learned:
        raise ConfigError(
            f"thumbnails = {thumbnails}: the run '{original.name}' has learned from no picture; leave it out"
        )
    session = ModelSession(original, images=images, seed=seed, progress=progress, is_int8=int8)
    with _building(out) as part:
        announce("writing the model")
        module = grey_classifier(original.classifier)
        write_onnx(module, part / layout.MODEL)
        announce("comparing it with the original")
        runtime = open_unfinished(part, original, "fp32")
        fp32 = session.equality(runtime)
        require_equal(fp32, original.name)
        parity: dict[str, Any] = {
            "schema": 1,
            "precision": "fp32",
            "grey_folded": module.is_folded,
            "fp32": fp32,
            "int8": None,
        }
        if int8:
            announce("the same in eight bits")
            found, runtime = _in_eight_bits(part, session)
            require_alike(found, original.name)
            parity |= {"precision": "int8", "int8": found}
        announce("calibrating")
        _finish(part, session, runtime, parity, thumbnails=thumbnails)
    return parity


def _in_eight_bits(part: Path, session: ModelSession) -> tuple[dict[str, Any], BundleClassifier]:
    """Replace the model by one of eight bits; returns how alike it is, and it."""
    way, share = quantise(part / layout.MODEL, session.for_scales())
    runtime = open_unfinished(part, session.original, "int8", quantisation=way)
    return {"quantisation": way, "size": share, **session.alikeness(runtime)}, runtime


def _finish(
    part: Path, session: ModelSession, runtime: BundleClassifier, parity: dict[str, Any], *, thumbnails: int
) -> None:
    """Everything beside the model."""
    original, kept = session.original, session.original.validation
    names = original.predictions.labels.names
    features, scores = session.look(runtime.look, session.val)
    target = session.targets[session.val]
    if kept is not None:
        scores, target = kept.scores, kept.target
    facts: dict[str, Any] = {
        "schema": layout.SCHEMA,
        "name": f"{original.kind} on {Path(original.model).name}",
        "kind": original.kind,
        "precision": parity["precision"],
        "quantisation": parity["int8"] and parity["int8"]["quantisation"],
        "weights": UNSIGNED if parity["int8"] else None,
        "labels": list(names),
        "preprocess": original.classifier.preprocess.as_dict(),
        "decoding": DECODING,
        **calibrate(scores, target, names),
        "calibrated_on": {"images": len(target), "scores": "the bundle's own" if kept is None else "kept by the run"},
    }
    of_training = session.look(runtime.look, session.train)[0]
    found = fit_reference(of_training, session.targets[session.train], features)
    has_none = isinstance(found, str)
    facts["novelty"] = None if isinstance(found, str) else layout.write_ood_arrays(part, found)
    facts["no_novelty"] = found if has_none else None
    facts["thumbnails"] = (
        layout.write_thumbnails(part, session.thumbnails(of_training, thumbnails), original.predictions.labels)
        if thumbnails
        else None
    )
    facts["run"] = {
        "name": original.name,
        "fold": original.fold,
        "model": Path(original.model).name,
        "has_learned": original.has_learned,
    }
    inputs = dict(original.inputs)
    facts["provenance"] = provenance(seed=session.seed, inputs=inputs)
    facts["provenance"]["versions"] |= {name: metadata.version(name) for name in ("onnx", "onnxruntime")}
    layout.write_self_test(part, *_self_test(session, runtime))
    learned = np.concatenate([original.train, original.val]) if original.has_learned else original.val[:0]
    hashes = original.manifest.column("sha256")
    layout.write_trained_on(part, [hashes[row] for row in learned])
    test_features, test_scores = session.look(runtime.look, session.test)
    parsed = layout.parse_facts(part, "", facts)
    assert parsed.sets is not None, "calibrate always fits sets"
    parity["test"] = measure(
        test_scores,
        test_features,
        session.targets[session.test],
        sets=parsed.sets,
        ood=None if isinstance(found, str) else found,
    )
    parity["run"] = compare_scores(_told_by_run(session), test_scores)
    layout.write_facts(part, facts)
    write_json(part / layout.PARITY, parity)
    card = bundle_card(
        facts,
        parity,
        limits={"fp32_tolerance": FP32_TOLERANCE, "int8_flips": INT8_FLIPS, "int8_accuracy": INT8_ACCURACY},
        kind=original.kind,
        model=original.model,
        predictions=original.predictions,
        counts={"train": len(original.train), "val": len(original.val), "alike": len(original.alike)},
    )
    write_text(part / layout.CARD, card)
    seal(part)


def _told_by_run(session: ModelSession) -> npt.NDArray[np.float64]:
    """f64[T, C]: the run's own predictions of the test images, in whatever precision it ran."""
    told, images = session.original.predictions, session.original.manifest.column("image_id")
    row = {image: number for number, image in enumerate(told.image_id)}
    return told.scores[[row[images[number]] for number in session.test]]


def _self_test(
    session: ModelSession, runtime: BundleClassifier
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """A synthetic radiograph, and what the model says of it."""
    drawn = draw_phantom(CLASSES[0], rng=np.random.default_rng(session.seed)).pixels
    greys = fit(drawn, runtime.preprocess)[None]
    return greys, runtime.look(greys)[1].astype(np.float32)


def require_place(out: Path) -> None:
    """Raise InputError unless a bundle may be written at `out`."""
    if out.is_file():
        raise InputError(f"{out}: is a file, and a bundle is a folder; name another --out")
    if out.is_dir() and any(out.iterdir()) and not is_bundle(out):
        raise InputError(f"{out}: holds other things than a bundle; name a new folder with --out")


@contextmanager
def _building(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` when the block ends without an error, and is gone when it does not."""
    require_place(out)
    make_folder(out.resolve().parent)
    try:
        part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.resolve().parent))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); name another --out") from error
    try:
        with needing_room(out):
            yield part
        part.chmod(0o755)
        old = part.with_suffix(".old")
        if out.is_dir():
            out.rename(old)
        part.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)
