"""A small study with a run of every kind that keeps a classifier, and bundles of them; made once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from filelock import FileLock
from PIL import Image
from tests.checkpoints import save_checkpoint, save_classifier
from tests.conftest import CLASSES, draw_picture

from thoraclip.bundle.export import export_bundle
from thoraclip.bundle.onnx import GreyClassifier
from thoraclip.data.index import index
from thoraclip.data.splits import split_fractions
from thoraclip.methods.baseline import Config as BaselineConfig
from thoraclip.methods.finetune import Config as FinetuneConfig
from thoraclip.methods.original import load_original
from thoraclip.methods.predictors import read_run
from thoraclip.methods.probe import Config as ProbeConfig
from thoraclip.methods.running import run_method
from thoraclip.methods.zeroshot import Config as ZeroshotConfig
from thoraclip.models import onnx_files
from thoraclip.models.classifiers import Original
from thoraclip.tables.manifest import Manifest, read_manifest, write_manifest

PER_CLASS = 50
_TRAINING: dict[str, Any] = {
    "batch_size": 8,
    "chunk_size": 8,
    "steps": 4,
    "validate_every": 2,
    "learning_rate": 3e-3,
    "precision": "fp32",
}


class Workshop:
    """`root/manifest.parquet` and `root/runs/<name>`, each run when it is first asked for.

    Args:
        root: folder of the study; several processes of tests may share it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / "workshop.lock"):
            if not (root / "manifest.parquet").is_file():
                self._furnish(root)
        names = ("clip", "vision-text-dual-encoder", "siglip2", "resnet", "vit")
        self.models = {name: str(root / name) for name in names}

    @staticmethod
    def _furnish(root: Path) -> None:
        """Pictures, models and the manifest, which comes last."""
        for number, label in enumerate(CLASSES):
            (root / "images" / label).mkdir(parents=True)
            looks = {"lungs": (0.25, 0.45, 0.1)[number], "patch": 0.5 - 0.25 * number}
            for i in range(PER_CLASS):
                pixels = draw_picture(48, 40, seed=1000 * number + i, **looks)
                Image.fromarray(pixels).save(root / "images" / label / f"{i}.png")
        for name in ("clip", "vision-text-dual-encoder", "siglip2"):
            save_checkpoint(name, root / name)
        for kind in ("resnet", "vit"):
            save_classifier(kind, root / kind)
        found = split_fractions(index(root / "images", layout="folders").manifest, fractions=(0.4, 0.3, 0.3), seed=0)
        write_manifest(root / "manifest.parquet", found)

    @property
    def manifest(self) -> Manifest:
        """150 pictures of three classes with a split."""
        return read_manifest(self.root / "manifest.parquet")

    def run(self, name: str) -> Path:
        """The folder of a run, made the first time."""
        folder = self.root / "runs" / name
        kind, config = self._settings(name)
        with FileLock(self.root / f"{name}.run.lock"):
            if not (folder / "done.json").is_file():
                run_method(kind, config, self.manifest, folder)
        return folder

    def _settings(self, name: str) -> tuple[str, Any]:
        kind, _, of = name.partition("-")
        if kind == "baseline":
            return kind, BaselineConfig(model=self.models["clip" if of == "tower" else of], **_TRAINING)
        if kind == "finetune":
            return kind, FinetuneConfig(model=self.models["clip"], loss="prompt_ce", **_TRAINING)
        if kind == "zeroshot":
            return kind, ZeroshotConfig(model=self.models["clip"], precision="fp32")
        settings: dict[str, Any] = {"model": self.models["vision-text-dual-encoder"], "l2_steps": 3}
        if of == "projected":
            settings = {"model": self.models["siglip2"], "features": "projected", "l2_steps": 2}
        elif of == "first-fit":
            settings = {"model": "tiny-clip", "refit": False, "l2_steps": 3}
        elif of == "tuned":
            settings = {"model": self.models["clip"], "adapter": str(self.run("finetune")), "l2_steps": 2}
        return kind, ProbeConfig(precision="fp32", **settings)

    def original(self, name: str) -> Original:
        """The classifier of a run with its images."""
        return load_original(read_run(self.run(name)), self.manifest)

    def bundle(self, name: str, *, int8: bool = False) -> Path:
        """The bundle of a run, exported the first time."""
        folder = self.root / "bundles" / (name + ("-int8" if int8 else ""))
        with FileLock(self.root / f"{folder.name}.lock"):
            if not folder.is_dir():
                export_bundle(self.original(name), folder, int8=int8)
        return folder


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """See `Workshop`; one for all processes of tests."""
    base = tmp_path_factory.getbasetemp()
    return Workshop((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "workshop")


@pytest.fixture(scope="package", autouse=True)
def exported() -> Iterator[dict[str, bytes]]:
    """Networks that were exported from torch, which takes seconds: the same one is exported once; `clear()` it to do so again."""
    known: dict[str, bytes] = {}
    export = onnx_files._exported

    def look_up(module: GreyClassifier, side: int, outputs: Sequence[str], *, pictures: int) -> onnx.ModelProto:
        if not isinstance(module, GreyClassifier):  # of other rooms' tests
            return export(module, side, outputs, pictures=pictures)
        kind = getattr(module.features, "_kind", ""), module.is_folded, module.spec, pictures
        parts = [
            f"{name} {tensor.shape}".encode() + tensor.numpy().tobytes() for name, tensor in module.state_dict().items()
        ]
        key = hashlib.sha256(b"".join([*parts, repr((module, kind)).encode()])).hexdigest()
        if key not in known:
            known[key] = export(module, side, outputs, pictures=pictures).SerializeToString()
        return onnx.ModelProto.FromString(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_files, "_exported", look_up)
        yield known
