"""Matrix products of an ONNX transformer in eight bits, each row of the activations with a scale of its own.

A row x (a token) times a constant matrix W becomes x W + b ~ s (q Q) t + l + b with

    q = round((x - low) / s), u8     s = (max x - low) / 255 of this row, or max |x| / 127 about a middle of 128
    Q = round(W / t), s8             t of each output, the one with the least squared error
    l = low 1' Q t                   a constant, put into the bias

so that nothing depends on the other rows of the product, and so not on the other pictures of a call. A row's own scale also
keeps the few tokens with huge activations that vision transformers have (Darcet et al. 2023, arXiv:2309.16588) from taking
the digits of all others. `low` is fixed for each product from calibration pictures, where the activations hardly go below 0
(behind a GELU); else the scale is symmetric.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

__all__ = ["eight_bit_products", "rounded"]

Floats = npt.NDArray[np.float64]
Greys = npt.NDArray[np.uint8]

_ONE_SIDED = 0.25
"""Up to this ratio of the smallest to the largest activation, the digits below the smallest are given up."""
_CLIPS = np.linspace(0.6, 1.0, 21)
"""Shares of an output's largest weight that are tried as the end of its scale."""


def eight_bit_products(source: Path, target: Path, greys: Greys) -> None:
    """Write the model with its products by constant matrices in eight bits; the head, which takes `features`, stays.

    Args:
        source: written by `onnx.write_onnx`.
        target: file to write.
        greys: u8[N, S, S], calibration pictures.
    """
    model = onnx.load(str(source))
    graph, products = model.graph, list(_products(model))
    lows = _lows(model, [node.input[0] for node, _ in products], greys)
    writer = _Writer(lows)
    matrices = {node.output[0]: matrix for node, matrix in products}
    for node in graph.node:
        if node.output[0] in matrices:
            writer.product(node, matrices[node.output[0]])
        else:
            writer.nodes.append(node)
    used = {name for node in writer.nodes for name in node.input}
    kept = [one for one in [*graph.initializer, *writer.constants] if one.name in used]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(writer.nodes)
    graph.initializer.extend(kept)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, str(target))


def _products(model: onnx.ModelProto) -> Iterator[tuple[NodeProto, Floats]]:
    """(node, its constant matrix [in, out]) of every product that becomes one of eight bits."""
    constants = {one.name: one for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in {"MatMul", "Gemm"} or node.input[1] not in constants or "features" in node.input:
            continue
        matrix = numpy_helper.to_array(constants[node.input[1]]).astype(np.float64)
        given = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        if matrix.ndim != 2 or given.get("transA") or given.get("alpha", 1) != 1 or given.get("beta", 1) != 1:
            continue
        yield node, matrix.T if given.get("transB") else matrix


def _lows(model: onnx.ModelProto, names: list[str], greys: Greys) -> dict[str, float | None]:
    """Of each activation the smallest value over the calibration pictures, 0 at most, or `None` where it is not one-sided."""
    import onnxruntime

    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    names = list(dict.fromkeys(names))
    asked.graph.output.extend([helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names])
    session = onnxruntime.InferenceSession(asked.SerializeToString(), providers=["CPUExecutionProvider"])
    low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    for grey in greys:
        found = session.run(names, {"greys": grey[None]})
        low = np.minimum(low, [one.min() for one in found])
        high = np.maximum(high, [one.max() for one in found])
    return {n: float(min(a, 0)) if -a <= _ONE_SIDED * b else None for n, a, b in zip(names, low, high, strict=True)}


def rounded(matrix: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """f64[in, out] -> (Q s8[in, out], t f64[out]), matrix ~ Q t, with the least squared error of `_CLIPS` for each output."""
    widest = np.maximum(np.abs(matrix).max(axis=0), 1e-12) / 127
    best, scale = np.full(matrix.shape[1], np.inf), widest.copy()
    for share in _CLIPS:
        tried = widest * share
        error = ((np.clip(np.round(matrix / tried), -127, 127) * tried - matrix) ** 2).sum(axis=0)
        better = error < best
        best[better], scale[better] = error[better], tried[better]
    return np.clip(np.round(matrix / scale), -127, 127).astype(np.int8), scale


class _Writer:
    """Nodes and constants of the new graph; an activation that enters several products is rounded once.

    Args:
        lows: see `_lows`.
    """

    def __init__(self, lows: dict[str, float | None]) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._lows, self._rounded = lows, dict[str, str]()
        self._one = self._constant("eight.one", np.float32(1))
        self._last = self._constant("eight.last", np.array([-1], np.int64))
        self._least = self._constant("eight.least", np.float32(1e-9))
        self._no_shift = self._constant("eight.no_shift", np.int8(0))
        self._zero = {one: self._constant(f"eight.zero.{one}", np.uint8(0 if one else 128)) for one in (True, False)}
        self._step = {
            one: self._constant(f"eight.step.{one}", np.float32(1 / (255 if one else 127))) for one in (True, False)
        }

    def _constant(self, name: str, value: npt.ArrayLike) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _add(self, kind: str, inputs: list[str], output: str, **given: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], **given))  # type: ignore[arg-type]
        return output

    def product(self, node: NodeProto, matrix: Floats) -> None:
        """The nodes that take the place of one product."""
        x, out = node.input[0], node.output[0]
        low = self._lows[x]
        digits = self._rounded.get(x) or self._round(x, low)
        q, scale = rounded(matrix)
        weights = self._constant(f"{out}.weights", q)
        scales = self._constant(f"{out}.scales", scale.astype(np.float32))
        zero = self._zero[low is not None]
        whole = self._add(
            "MatMulIntegerToFloat", [digits, weights, self._one, scales, zero, self._no_shift], f"{out}.whole",
            domain="com.microsoft",
        )  # fmt: skip
        biases = [node.input[2]] if len(node.input) > 2 else []
        if low is not None:
            shift = low * (q.astype(np.float64).sum(axis=0) * scale)
            biases.append(self._constant(f"{out}.shift", shift.astype(np.float32)))
        steps = [f"{out}.part{i}" for i in range(len(biases))] + [out]
        told = self._add("Mul", [whole, f"{x}.scale"], steps[0])
        for bias, name in zip(biases, steps[1:], strict=True):
            told = self._add("Add", [told, bias], name)

    def _round(self, x: str, low: float | None) -> str:
        """Name of the digits u8 of an activation; its scales are `<x>.scale`."""
        if low is None:
            shifted, largest = x, self._add("Abs", [x], f"{x}.absolute")
        else:
            shifted = largest = self._add("Sub", [x, self._constant(f"{x}.low", np.float32(low))], f"{x}.shifted")
        top = self._add("ReduceMax", [largest, self._last], f"{x}.top", keepdims=1)
        top = self._add("Max", [top, self._least], f"{x}.top_above_0")
        scale = self._add("Mul", [top, self._step[low is not None]], f"{x}.scale")
        share = self._add("Div", [shifted, scale], f"{x}.share")
        self._rounded[x] = self._add("QuantizeLinear", [share, self._one, self._zero[low is not None]], f"{x}.digits")
        return self._rounded[x]
