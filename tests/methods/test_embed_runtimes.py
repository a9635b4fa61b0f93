"""Which runtime computes a pass of `embed`: the one that was asked for, measured, or began it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.checkpoints import save_checkpoint
from tests.conftest import files

from thoraclip.cli.app import run
from thoraclip.errors import ConfigError
from thoraclip.methods import embed as module
from thoraclip.methods import engines
from thoraclip.methods.embed import embed
from thoraclip.methods.encoders import EncoderConfig, load_encoder
from thoraclip.models.frozen import FrozenEncoder
from thoraclip.models.runtimes import TORCH, Choice, Compute
from thoraclip.tables.manifest import Manifest

BATCH = 4
"""Of 24 images."""


@pytest.fixture(scope="module")
def encoder() -> FrozenEncoder:
    return load_encoder(EncoderConfig(precision="fp32"))


class Runtimes:
    """Stand-ins for other runtimes, each a little off PyTorch's numbers by its own amount, that die when told to."""

    def __init__(self, encoder: FrozenEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.encoder, self.monkeypatch = encoder, monkeypatch
        self.calls: list[str] = []
        self.dies_at: int | None = None
        self.there = True
        self.told: list[str] = []
        monkeypatch.setattr(engines, "threads_here", lambda: 1)
        monkeypatch.setattr(engines, "open_runtime", lambda name, write, threads: self.compute(name))
        monkeypatch.setattr(module, "is_installed", lambda name: self.there)
        monkeypatch.setattr(module, "require_runtime", lambda *_, **__: None)
        monkeypatch.setattr(engines, "require_runtime", lambda *_, **__: None)
        self.measures("onnxruntime")

    def measures(self, name: str) -> None:
        """What the next measurement finds."""
        choice = Choice(name, None if name == TORCH else self.compute(name), 1.4)
        self.monkeypatch.setattr(module, "measured", lambda *_: choice)

    def compute(self, name: str) -> Compute:
        shift = np.float32({"onnxruntime": 1e-6, "openvino": 2e-6}[name])

        def run(greys: np.ndarray) -> list[np.ndarray]:
            if self.dies_at is not None and len(self.calls) == self.dies_at:
                raise KeyboardInterrupt
            self.calls.append(name)
            return [part + shift for part in self.encoder.encode_greys(greys)]

        return run

    def embed(self, manifest: Manifest, out: Path, **given: Any) -> dict[str, Any]:
        self.calls.clear()
        embed(manifest, self.encoder, out, batch_size=BATCH, announce=self.told.append, **given)
        facts: dict[str, Any] = json.loads((out / "embeddings.json").read_text())
        return facts

    def broken(self, manifest: Manifest, out: Path, **given: Any) -> None:
        """A pass that dies after two batches."""
        self.dies_at = 2
        with pytest.raises(KeyboardInterrupt):
            self.embed(manifest, out, **given)
        self.dies_at = None


@pytest.fixture
def others(encoder: FrozenEncoder, monkeypatch: pytest.MonkeyPatch) -> Runtimes:
    return Runtimes(encoder, monkeypatch)


def test_the_measured_one_computes_and_is_noted(others: Runtimes, manifest: Manifest, tmp_path: Path) -> None:
    facts = others.embed(manifest, tmp_path / "e")
    assert (facts["runtime"], facts["runtime_ratio"], others.calls) == ("onnxruntime", 1.4, ["onnxruntime"] * 6)
    assert "embedding: fp32 on cpu by onnxruntime; batches of 4" in others.told
    alone = others.embed(manifest, tmp_path / "torch", runtime=TORCH)
    assert (alone["runtime"], others.calls) == (TORCH, []) and "runtime_ratio" not in alone
    assert alone["fingerprint"] == facts["fingerprint"], "of the numbers, not of what computed them"
    others.embed(manifest, tmp_path / "e", runtime=TORCH)
    assert json.loads((tmp_path / "e" / "embeddings.json").read_text()) == facts, "finished features are used again"


@pytest.mark.parametrize("began", ["onnxruntime", "openvino"])
def test_an_interrupted_pass_goes_on_in_its_runtime_whatever_is_fastest_now(
    began: str, others: Runtimes, manifest: Manifest, tmp_path: Path
) -> None:
    others.embed(manifest, tmp_path / "whole", runtime=began)
    others.measures(began)
    others.broken(manifest, tmp_path / "e")
    others.measures(TORCH)
    assert others.embed(manifest, tmp_path / "e")["runtime"] == began
    assert others.calls == [began] * 4
    assert files(tmp_path / "e") == files(tmp_path / "whole")


def test_one_that_torch_began_is_not_measured(others: Runtimes, manifest: Manifest, tmp_path: Path) -> None:
    dying: Callable[..., Any] = lambda batches: (others.encoder.encode_greys(np.zeros((4, 64, 64), np.uint8)) if rows.start < 8 else 1 / 0 for rows in batches)  # noqa: E731  # fmt: skip
    with pytest.raises(ZeroDivisionError):
        others.embed(manifest, tmp_path / "e", engine=dying)
    assert (others.embed(manifest, tmp_path / "e")["runtime"], others.calls) == (TORCH, [])


def test_torch_continues_what_a_missing_runtime_began(others: Runtimes, manifest: Manifest, tmp_path: Path) -> None:
    others.broken(manifest, tmp_path / "e")
    others.there = False
    facts = others.embed(manifest, tmp_path / "e")
    assert (facts["runtime"], others.calls) == ("onnxruntime, continued by torch", [])
    assert others.told[-2].startswith("runtime: onnxruntime began these features and is not at hand; torch continues")
    by_torch = others.embed(manifest, tmp_path / "torch", runtime=TORCH)
    assert by_torch["fingerprint"] == facts["fingerprint"]
    mixed, exact = (np.load(tmp_path / name / "pooled.npy") for name in ("e", "torch"))
    assert (mixed[:8] != exact[:8]).any() and (mixed[8:] == exact[8:]).all()


def test_one_that_is_asked_for_starts_again_where_another_began(
    others: Runtimes, manifest: Manifest, tmp_path: Path
) -> None:
    others.broken(manifest, tmp_path / "e")
    others.embed(manifest, tmp_path / "torch", runtime=TORCH)
    others.embed(manifest, tmp_path / "e", runtime=TORCH)
    assert files(tmp_path / "e") == files(tmp_path / "torch")


def test_in_bf16_and_with_a_cluster_nothing_is_measured(
    encoder: FrozenEncoder, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "measured", lambda *_: 1 / 0)
    embed(manifest, load_encoder(EncoderConfig(precision="bf16")), tmp_path / "bf16")
    elsewhere: Callable[..., Any] = lambda batches: (encoder.encode_greys(np.zeros((len(rows), 64, 64), np.uint8)) for rows in batches)  # noqa: E731  # fmt: skip
    embed(manifest, encoder, tmp_path / "cluster", engine=elsewhere)
    with pytest.raises(ConfigError, match=r"runtime = onnxruntime: computes in fp32 .* set precision = fp32"):
        embed(manifest, load_encoder(EncoderConfig(precision="bf16")), tmp_path / "no", runtime="onnxruntime")
    assert not (tmp_path / "no").exists()


def test_through_the_command_the_features_are_those_of_torch(
    manifest_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(save_checkpoint("clip", tmp_path / "clip"))
    asked = ["embed", str(manifest_file), "--model", model, "--precision", "fp32", "--out"]
    found = {}
    for name in (TORCH, "onnxruntime"):
        assert run([*asked, str(tmp_path / name), "--runtime", name]) == 0
        found[name] = np.load(tmp_path / name / "pooled.npy")
    assert "embedding: fp32 on cpu by onnxruntime; batches of 32" in capsys.readouterr().err
    assert 0 < np.abs(found["onnxruntime"] - found[TORCH]).max() <= 1e-5 * np.abs(found[TORCH]).max()
    assert run([*asked, str(tmp_path / "e"), "--runtime", "onnxrutime"]) == 2
    assert "unknown runtime 'onnxrutime'; did you mean 'onnxruntime'?" in capsys.readouterr().err
