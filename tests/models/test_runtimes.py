"""Runtimes give PyTorch's numbers; the fastest is chosen by a measurement, and short work stays with PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.checkpoints import save_tower

from thoraclip.errors import ConfigError, MissingExtraError, ModelError
from thoraclip.methods.encoders import EncoderConfig, load_encoder
from thoraclip.models import runtimes
from thoraclip.models.runtimes import (
    RUNTIMES,
    TOLERANCE,
    TORCH,
    Choice,
    Compute,
    choose,
    difference,
    is_installed,
    open_runtime,
    require_runtime,
)
from thoraclip.ranges import RuntimeName

INSTALLED = [name for name in RUNTIMES if is_installed(name)]
GREYS = np.random.default_rng(0).integers(0, 256, (5, 4, 4), dtype=np.uint8)


def test_the_setting_names_every_runtime() -> None:
    assert RuntimeName.__metadata__[0].names == ("auto", TORCH, *RUNTIMES)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "kind", ["tiny-clip", "siglip", "dinov2", "vit", pytest.param("siglip2", marks=pytest.mark.slow)]
)
def test_every_installed_runtime_gives_the_features_of_torch(
    kind: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Of any number of images at once, whatever the file takes; a tower alone has no projected features."""
    towers = ("dinov2", "vit")
    model = str(save_tower(kind, tmp_path / kind)) if kind in towers else str(checkpoints.get(kind, kind))
    encoder = load_encoder(EncoderConfig(model=model, precision="fp32"))
    side, written = encoder.preprocess.size, tmp_path / "network.onnx"
    greys = np.random.default_rng(0).integers(0, 256, (5, side, side), dtype=np.uint8)
    expected = encoder.encode_greys(greys)
    encoder.write_onnx(written)
    for name in INSTALLED:
        ours = encoder.by_runtime(name, RUNTIMES[name].open(written, 2))
        for count in (5, 1):
            found = ours.encode_greys(greys[:count], check=True)
            assert difference([found], [[part[:count] for part in expected]]) <= TOLERANCE
            assert [part.dtype for part in found] == [np.float32] * 2
        assert found[1].shape[1] == (0 if kind in towers else expected[1].shape[1])
        assert (ours.description, ours.arithmetic) == (encoder.description, f"fp32 on cpu by {name}")


class Machine:
    """Runtimes of a given speed on a clock that only they move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
        self.now, self.told, self.exported, self.read = 0.0, list[str](), 0, 0
        self.factor = dict.fromkeys(seconds, 1.0)
        self.fails: dict[str, Exception] = {}
        opened = {name: (lambda _, __, name=name: self.opened(name, seconds[name])) for name in seconds}
        monkeypatch.setattr(runtimes, "RUNTIMES", {
            name: runtimes.Runtime((), "", open_) for name, open_ in opened.items() if name != TORCH
        })  # fmt: skip
        monkeypatch.setattr(runtimes, "is_installed", lambda _: True)
        self.plain = self.computing(TORCH, seconds[TORCH])

    def opened(self, name: str, seconds: float) -> Compute:
        if name in self.fails:
            raise self.fails[name]
        return self.computing(name, seconds)

    def computing(self, name: str, seconds: float) -> Compute:
        def compute(greys: np.ndarray) -> list[np.ndarray]:
            self.now += seconds * len(greys)
            return [greys.reshape(len(greys), -1).astype(np.float32) * np.float32(self.factor[name])]

        return compute

    def write(self, _: Path) -> None:
        self.exported += 1

    def sample(self, size: int) -> Sequence[np.ndarray]:
        self.read += 1
        return [np.resize(GREYS, (size, 4, 4))] * 2

    def choose(self, images: int) -> Choice:
        over: Callable[..., Any] = lambda compute, batches: map(compute, batches)  # noqa: E731
        return choose(
            self.plain, self.write, self.sample, images=images, threads=2, over=over, announce=self.told.append,
            clock=lambda: self.now,
        )  # fmt: skip


class TestChoice:
    def test_the_fastest_is_taken_and_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        machine = Machine(monkeypatch, torch=0.3, slow=0.6, fast=0.15, medium=0.2)
        found = machine.choose(5_000)
        assert (found.name, found.ratio) == ("fast", pytest.approx(2.0)) and found.compute is not None
        assert machine.told == ["runtime: fast; images/s over those of torch: slow 0.50 x, fast 2.00 x, medium 1.50 x"]
        assert machine.exported == 1, "one file serves all"

    def test_torch_stays_where_none_gains_enough(self, monkeypatch: pytest.MonkeyPatch) -> None:
        machine = Machine(monkeypatch, torch=0.1, other=0.098)
        assert machine.choose(5_000) == Choice(TORCH, None, 1.0)
        assert machine.told == ["runtime: torch; images/s over those of torch: other 1.02 x"]

    @pytest.mark.parametrize(("images", "seconds", "read"), [(1_999, 9.0, 0), (100_000, 0.001, 1)])
    def test_short_work_is_computed_by_torch_without_an_export(
        self, images: int, seconds: float, read: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine = Machine(monkeypatch, torch=seconds, fast=seconds / 9)
        assert machine.choose(images) == Choice()
        assert (machine.read, machine.exported, machine.told) == (read, 0, [])

    @pytest.mark.parametrize(
        ("factor", "is_taken"), [(1 + 5e-6, True), (1 + 3e-5, False), (float("nan"), False), (-1, False)]
    )
    def test_one_with_other_numbers_is_left_out(
        self, factor: float, is_taken: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine = Machine(monkeypatch, torch=0.3, fast=0.1, exact=0.2)
        machine.factor["fast"] = factor
        assert machine.choose(5_000).name == ("fast" if is_taken else "exact")
        assert is_taken or machine.told[0].startswith("runtime: fast is left out: its numbers differ by")

    def test_one_that_fails_is_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        machine = Machine(monkeypatch, torch=0.3, fast=0.1, exact=0.2)
        machine.fails["fast"] = RuntimeError("no such operator\nand more")
        assert machine.choose(5_000).name == "exact"
        assert machine.told[0] == (
            "runtime: fast is left out: runtime = fast: cannot load the network (no such operator); set runtime = torch"
        )

    def test_a_network_that_cannot_be_exported_stays_with_torch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        machine = Machine(monkeypatch, torch=0.3, fast=0.1)

        def write(_: Path) -> None:
            raise ModelError("the network cannot be written as ONNX (why)")

        monkeypatch.setattr(machine, "write", write)
        assert machine.choose(5_000).name == TORCH
        assert machine.told == ["runtime: torch; the network cannot be written as ONNX (why)"]


def test_difference_is_relative_to_each_outputs_largest_number() -> None:
    one = [np.array([[100.0, 1.0]]), np.array([[0.5, 0.25]])]
    for other, expected in (([[100.0, 1.01]], 1e-4), ([[101.0, 1.0]], 1e-2)):
        assert difference([[np.array(other), one[1]]], [one]) == pytest.approx(expected)
    assert difference([[one[0], np.array([[0.5, 0.26]])]], [one]) == pytest.approx(0.02)
    assert difference([[one[0][:, :1], one[1]]], [one]) == float("inf")


@pytest.mark.parametrize(
    ("name", "precision", "device", "error"),
    [
        *itertools.product(("auto", TORCH), ("fp32", "bf16"), ("cpu", "cuda"), [None]),
        ("onnxruntime", "bf16", "cpu", "runtime = onnxruntime: computes in fp32 on a CPU, not in bf16 on cpu; set"),
        ("onnxruntime", "fp32", "cuda", "not in fp32 on cuda"),
    ],
)
def test_a_runtime_is_for_fp32_on_a_cpu(name: str, precision: str, device: str, error: str | None) -> None:
    if error is None:
        require_runtime(name, precision=precision, device=device)
        return
    with pytest.raises(ConfigError, match=error):
        require_runtime(name, precision=precision, device=device)


def test_one_that_is_not_installed_is_asked_for_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "find_spec", lambda package: None if package == "openvino" else True)
    assert is_installed("onnxruntime") and not is_installed("openvino")
    with pytest.raises(MissingExtraError, match=r"'openvino' is not installed.*thoraclip\[openvino\]"):
        require_runtime("openvino", precision="fp32", device="cpu")


def test_a_file_that_a_runtime_cannot_load_is_one_line() -> None:
    with pytest.raises(ModelError, match=r"runtime = onnxruntime: cannot load the network .*; set runtime = torch"):
        open_runtime("onnxruntime", lambda path: path.write_bytes(b"no network"), threads=1)  # type: ignore[arg-type,return-value]
