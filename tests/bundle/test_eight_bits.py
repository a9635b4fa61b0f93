"""Products in eight bits against a slow oracle in NumPy, row by row."""

from __future__ import annotations

import itertools
import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from scripts.make_bytes_probe import bytes_probe
from tests.bundle.conftest import Workshop
from tests.conftest import examples

from thoraclip.bundle import runtime
from thoraclip.bundle.eight_bits import eight_bit_products, rounded, zero_point
from thoraclip.bundle.format import Bundle, read_bundle
from thoraclip.bundle.runtime import BundleClassifier, has_exact_bytes
from thoraclip.bundle.signed_weights import WEIGHTS_END, ZEROS_END, open_signed, signed_weights
from thoraclip.errors import MismatchError

GREYS = np.random.default_rng(0).integers(0, 256, (6, 5, 8), dtype=np.uint8)
GREYS_32 = np.random.default_rng(0).integers(0, 256, (12, 32, 32), dtype=np.uint8)


def activations(greys: np.ndarray, shape: str) -> np.ndarray:
    """What enters the product: `symmetric` -2..2, `leaky` -0.2..2, `positive` 0..2, or the `bytes` themselves."""
    x = greys.astype(np.float32)
    if shape == "bytes":
        return x
    x = x / np.float32(64) - np.float32(2)
    return x if shape == "symmetric" else np.where(x < 0, x * np.float32(0.1 if shape == "leaky" else 0), x)


SHAPES = {"symmetric": "Identity", "leaky": "LeakyRelu<alpha=0.1>", "positive": "Relu", "bytes": ""}
PRODUCTS = {
    "MatMul": "y = MatMul(x, w) features = Add(y, b)",
    "Gemm": "rows = Reshape(x, shape) features = Gemm<transB=1>(rows, w, b)",
}


def write(path: Path, matrix: np.ndarray, bias: np.ndarray, kind: str, *, shape: str) -> None:
    """greys u8[B, 5, 8] -> `activations` -> product -> `features`; and a head, which takes them."""
    enters = f"f = Cast<to=1>(greys) g = Mul(f, step) h = Add(g, low) x = {SHAPES[shape]}(h)"
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 20]> g (uint8[B, 5, 8] greys) => (float[] features, float[] scores) {'
        f"{'x = Cast<to=1>(greys)' if shape == 'bytes' else enters} {PRODUCTS[kind]} scores = MatMul(features, head) }}"
    )
    constants = {"step": np.float32(1 / 64), "low": np.float32(-2), "b": bias, "head": np.eye(matrix.shape[1])}
    constants |= {"w": matrix if kind == "MatMul" else matrix.T}
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 8]), "shape"))
    onnx.save(model, str(path))


EXACT = "session.x64quantprecision"
WAYS = tuple(itertools.product(("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"), ("0", "1")))
"""How far ONNX Runtime optimises, and whether it is asked for kernels of bytes that do not saturate."""


def run(path: Path, greys: np.ndarray, level: str = "ORT_ENABLE_ALL", exact: str = "0") -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.add_session_config_entry(EXACT, exact)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found: Any = session.run(["features"], {"greys": greys})[0]
    return np.asarray(found).reshape(len(greys), 5, -1)


def oracle(greys: np.ndarray, matrix: np.ndarray, bias: np.ndarray, shape: str) -> np.ndarray:
    """The formula of the module, one row and one output at a time; digits in single precision, as there."""
    q, t = rounded(matrix)
    x = activations(greys, shape).astype(np.float64)
    rows = x.reshape(-1, x.shape[-1])
    low = float(x.min())
    zero = zero_point(low, rows.max(axis=1), np.abs(rows).max(axis=1))
    told = np.zeros((*x.shape[:2], matrix.shape[1]))
    for picture in range(x.shape[0]):
        for row in range(x.shape[1]):
            line = x[picture, row].astype(np.float32)
            if shape == "bytes":
                zero, s = 0, np.float32(1)
            elif zero == 128:
                s = np.abs(line).max() * np.float32(1 / 127)
            else:
                s = max(line.max() * np.float32(1 / (255 - zero)), np.float32(-low / zero if zero else 0))
            digits = np.clip(np.round(line / s), -zero, 255 - zero)
            for out in range(matrix.shape[1]):
                told[picture, row, out] = s * t[out] * int(digits @ q[:, out].astype(np.int64)) + bias[out]
    return told


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
def test_the_product_is_that_of_the_formula_row_by_row(tmp_path: Path, kind: str, shape: str) -> None:
    """A row does not see the others: bit for bit, beside a picture of another brightness, too."""
    rng = np.random.default_rng(1)
    matrix, bias = rng.normal(size=(8, 7)), rng.normal(size=7)
    write(tmp_path / "a.onnx", matrix, bias, kind, shape=shape)
    eight_bit_products(tmp_path / "a.onnx", tmp_path / "b.onnx", GREYS)
    expected = oracle(GREYS, matrix, bias, shape)
    size = 100 if shape == "bytes" else 1
    for level, exact in WAYS:
        found = run(tmp_path / "b.onnx", GREYS, level, exact)
        assert np.abs(found - expected).max() < 1e-5 * size
    assert 1e-5 < np.abs(found - run(tmp_path / "a.onnx", GREYS)).max() < 0.1 * size
    kinds = [node.op_type for node in onnx.load(str(tmp_path / "b.onnx")).graph.node]
    assert kinds.count("MatMulIntegerToFloat") == 1
    assert kinds.count("MatMul") + kinds.count("Gemm") == 1, "the head stays"
    assert ("Abs" in kinds) == (shape == "symmetric") and ("ReduceMax" in kinds) == (shape != "bytes")
    greys = np.concatenate([GREYS, GREYS // 8 + 112])
    alone = np.concatenate([run(tmp_path / "b.onnx", one[None]) for one in greys])
    assert np.array_equal(run(tmp_path / "b.onnx", greys), alone)


@given(st.integers(0, 2**16), st.integers(1, 30), st.floats(-3, 1), st.floats(0.1, 20))
@examples(60)
def test_the_zero_point_is_the_best_of_all(seed: int, rows: int, low: float, size: float) -> None:
    """Against every other one: the error that it truly makes, over rows that hold the smallest activation somewhere."""
    rng = np.random.default_rng(seed)
    x = np.maximum(rng.normal(size=(rows, 40)) * size, low)
    x[0, 0] = low
    highest, largest = x.max(axis=1), np.abs(x).max(axis=1)

    def steps(zero: int) -> float:
        if zero == 128:
            return float(((largest / 127) ** 2).mean())
        squares = [max(top / (255 - zero), -low / zero if zero else 0, 1e-9) ** 2 for top in highest]
        return float(np.mean(squares))

    zero = zero_point(low, highest, largest)
    assert steps(zero) <= min(steps(z) for z in (*range(1 if low < 0 else 0, 128), 128)) * (1 + 1e-9)
    if zero < 128:
        s = np.maximum(highest / (255 - zero), -low / zero if zero else 1e-9)[:, None]
        digits = np.round(x / s) + zero
        assert digits.min() >= 0 and digits.max() <= 255, "nothing is cut off"


@given(st.integers(0, 2**16), st.integers(1, 12), st.integers(1, 6), st.floats(0.01, 100))
@examples(60)
def test_weights_are_rounded_no_worse_than_by_their_largest(seed: int, rows: int, columns: int, size: float) -> None:
    matrix = size * np.random.default_rng(seed).standard_t(3, (rows, columns))
    q, t = rounded(matrix)
    assert q.dtype == np.int8 and np.abs(q.astype(int)).max() <= 127
    plain = np.abs(matrix).max(axis=0) / 127
    error, naive = (((d * s - matrix) ** 2).sum(axis=0) for d, s in ((q, t), (np.round(matrix / plain), plain)))
    assert (error <= naive + 1e-9 * size**2).all()


def test_nothing_but_zeros_is_no_division_by_zero(tmp_path: Path) -> None:
    write(tmp_path / "a.onnx", np.zeros((8, 3)), np.ones(3), "MatMul", shape="positive")
    eight_bit_products(tmp_path / "a.onnx", tmp_path / "b.onnx", GREYS)
    assert np.array_equal(run(tmp_path / "b.onnx", np.full((1, 5, 8), 128, np.uint8)), np.ones((1, 5, 3)))


def test_the_probe_of_the_processor_is_the_one_that_the_script_makes() -> None:
    assert bytes_probe() == runtime._PROBE
    assert isinstance(has_exact_bytes(), bool)


@pytest.mark.parametrize("name", ["probe", "baseline-resnet"])
def test_bundles_answer_alike_on_any_processor(workshop: Workshop, name: str) -> None:
    """Asked for exact kernels of signed bytes and not; no factor of a product is signed."""
    file = workshop.bundle(name, int8=True) / "model.onnx"
    kinds = {one.data_type for one in onnx.load(str(file)).graph.initializer if len(one.dims) > 1}
    assert TensorProto.UINT8 in kinds and TensorProto.INT8 not in kinds
    told = BundleClassifier(read_bundle(file.parent)).look(GREYS_32)[1]
    for exact in ("0", "1"):
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry(EXACT, exact)
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        scores = np.concatenate([session.run(["scores"], {"greys": one[None]})[0] for one in GREYS_32])
        assert np.abs(scores - told).max() < 1e-5


@pytest.mark.parametrize("name", ["probe", "baseline-resnet"])
def test_weights_made_signed_are_the_same_numbers(workshop: Workshop, name: str) -> None:
    """Read by onnx: every unsigned weight less 128, its zero point 0; nothing else has changed."""
    file = workshop.bundle(name, int8=True) / "model.onnx"
    before = {one.name: one for one in onnx.load(str(file)).graph.initializer}
    data, beside = signed_weights(file)
    model = onnx.load_from_string(data)
    weights = 0
    for one in model.graph.initializer:
        if one.name in beside:
            found, place = beside[one.name], {entry.key for entry in one.external_data}
            assert one.data_type == TensorProto.INT8 and "location" in place
        elif one.external_data:
            continue  # as it was
        else:
            found = numpy_helper.to_array(one)
        own = numpy_helper.to_array(before[one.name])
        if one.name.endswith((WEIGHTS_END, ZEROS_END)):
            weights += one.name.endswith(WEIGHTS_END)
            assert found.dtype == np.int8 and np.array_equal(found, own.astype(int) - 128)
            assert found.any() == one.name.endswith(WEIGHTS_END), "a zero point is 0"
        else:
            assert found.dtype == own.dtype and np.array_equal(found, own)
    assert weights == sum(one.data_type == TensorProto.UINT8 and len(one.dims) > 1 for one in before.values()) > 0
    original = onnx.load(str(file), load_external_data=False)
    del original.graph.initializer[:], model.graph.initializer[:]
    assert model == original


@pytest.mark.parametrize("name", ["probe", "baseline-resnet"])
def test_answers_are_the_same_bytes_with_signed_weights(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Of an x86 processor that multiplies signed bytes exactly; any other keeps the file's unsigned weights."""
    bundle = read_bundle(workshop.bundle(name, int8=True))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    opened = []
    monkeypatch.setattr(runtime, "open_signed", lambda *given: (opened.append(1), open_signed(*given))[1])
    told = BundleClassifier(bundle).look(GREYS_32)
    assert bool(opened) is has_exact_bytes()
    for module, name, value in ((platform, "machine", "aarch64"), (runtime, "has_exact_bytes", False)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda value=value: value)
            for one, other in zip(told, BundleClassifier(bundle).look(GREYS_32), strict=True):
                assert np.array_equal(one, other)
    assert len(opened) == has_exact_bytes()


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda _: b"\xff" * 99, lambda _: b"\x3a\x02"])
def test_what_is_no_onnx_file_cannot_be_opened_signed(tmp_path: Path, workshop: Workshop, damage: Any) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(damage((workshop.bundle("probe", int8=True) / "model.onnx").read_bytes()))
    with pytest.raises(Exception, match=r"range|bits|protobuf|INVALID|location|buffer|file"):
        open_signed(file, onnxruntime.SessionOptions())


@pytest.mark.parametrize("is_exact", [True, False])
@pytest.mark.parametrize("name", ["probe", "baseline-resnet"])
def test_an_older_bundle_with_signed_weights_is_exact_or_refused(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, name: str, is_exact: bool
) -> None:
    """It does not state that its weights are unsigned; of static int8, exact kernels can be asked for."""
    monkeypatch.setattr(runtime, "has_exact_bytes", lambda: is_exact)
    bundle = read_bundle(workshop.bundle(name, int8=True))
    facts = {key: value for key, value in bundle.facts.items() if key != "weights"}
    older = Bundle(bundle.folder, facts, sealed=bundle._sealed)
    assert not asks_for_exact(BundleClassifier(bundle))
    if name == "probe" and not is_exact:
        with pytest.raises(MismatchError, match=r"probe-int8: its int8 weights are signed.*VNNI.*export the run again"):
            BundleClassifier(older)
    else:
        assert asks_for_exact(BundleClassifier(older)) is not is_exact


def asks_for_exact(opened: BundleClassifier) -> bool:
    try:
        return opened._session.get_session_options().get_session_config_entry(EXACT) == "1"
    except RuntimeError:  # it says nothing of it
        return False
