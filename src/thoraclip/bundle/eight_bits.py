"""Matrix products of an ONNX transformer in eight bits, each row of the activations with a scale of its own.

A row x (a token) times a constant matrix W becomes x W + b ~ s ((q - z)' Q) t + b with

    q = round(x / s) + z, u8     s = max |x| / 127 of this row for z = 128, else max(max x / (255 - z), -low / z)
    Q = round(W / t), s8         t of each output, the one with the least squared error

The scale of a row depends on no other row, and so not on the other images of a call. A row's own scale also
keeps the few tokens with huge activations that vision transformers have (Darcet et al. 2023, arXiv:2309.16588) from
taking the digits of all others. The zero point z is fixed for each product from calibration pictures, whose smallest
activation is `low`: the one with the smallest mean of s squared, to which the squared error of rounding is
proportional. Behind a GELU, where activations hardly go below 0, this nearly doubles the digits. Activations that are
the bytes of the picture themselves stay as they are.

Q is stored as Q + 128 in u8, with 128 as its zero point. On x86 without dot products of bytes (VNNI), ONNX Runtime adds
pairs of u8 x s8 products in 16 bits, and these sums saturate (VPMADDUBSW); its products of u8 x u8 are exact there,
too. On processors with them, `signed_weights` makes the weights signed when the model is opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from thoraclip.bundle.signed_weights import WEIGHTS_END, ZEROS_END
from thoraclip.dtypes import Floats, Greys
from thoraclip.models.sessions import onnxruntime, open_session

__all__ = ["eight_bit_products", "rounded", "zero_point"]


_CLIPS = np.linspace(0.6, 1.0, 21)
"""Shares of an output's largest weight that are tried as the end of its scale."""
_LEAST = 1e-9
"""Of a scale, so that a row of zeros is no division by zero."""
_MIDDLE = 128
"""The zero point of a symmetric scale."""
_MOVES = {"Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
"""Operators that put numbers elsewhere and leave them as they are."""
_UNWANTED = {"AttentionFusion", "BiasGeluFusion", "SkipLayerNormFusion", "EmbedLayerNormFusion"}
"""Fusions of ONNX Runtime that hide products from us, or whose operators are slower on a CPU than their parts."""


@dataclass(frozen=True)
class _Activation:
    """What calibration images show of the first factor of a product."""

    between: tuple[int, ...]  # its sizes without the first (images) and the last (features): tokens, mostly
    zero: int  # the zero point
    floor: float  # the smallest scale


def eight_bit_products(source: Path, target: Path, greys: Greys) -> None:
    """Write the model of `onnx.write_onnx` with its products by constant matrices in eight bits; the head, which takes
    `features`, stays. The calibration images are u8[N, S, S]."""
    model = _fused(source, target.with_suffix(".fused.onnx"))
    graph, products = model.graph, list(_products(model))
    opsets = [one for one in model.opset_import if one.domain in {"", "com.microsoft"}]
    writer = _Writer(_measured(model, [node.input[0] for node, _ in products], greys), _bytes(graph))
    matrices = {node.output[0]: matrix for node, matrix in products}
    for node in graph.node:
        if node.output[0] in matrices:
            writer.product(node, matrices[node.output[0]])
        else:
            writer.nodes.append(node)
    used = {name for node in writer.nodes for name in node.input}
    kept = [one for one in [*graph.initializer, *writer.constants.values()] if one.name in used]
    del graph.node[:], graph.initializer[:], graph.value_info[:], model.opset_import[:]
    graph.node.extend(writer.nodes)
    graph.initializer.extend(kept)
    model.opset_import.extend(opsets)
    onnx.save(model, str(target))


def _fused(source: Path, work: Path) -> onnx.ModelProto:
    """The model with the operators that ONNX Runtime makes of several, such as a GELU; `work` is a scratch file."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(work)
    open_session(source, options, disabled_optimizers=list(_UNWANTED))
    try:
        return onnx.load(str(work))
    finally:
        work.unlink()


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


def _bytes(graph: onnx.GraphProto) -> set[str]:
    """Activations that are bytes of the picture, moved about and cast."""
    found = {one.name for one in graph.input if one.type.tensor_type.elem_type == TensorProto.UINT8}
    for node in graph.node:
        if node.op_type in {*_MOVES, "Cast"} and node.input[0] in found:
            found.update(node.output)
    return found


def _measured(model: onnx.ModelProto, names: list[str], greys: Greys) -> dict[str, _Activation]:
    """What calibration pictures tell of each activation."""
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    names = list(dict.fromkeys(names))
    asked.graph.output.extend([helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names])
    session = open_session(asked.SerializeToString())
    # the smallest, largest and largest absolute of each row
    ends: dict[str, list[Floats]] = {name: [] for name in names}
    between: dict[str, tuple[int, ...]] = {}
    for grey in greys:
        for name, x in zip(names, session.run(names, {"greys": grey[None]}), strict=True):
            ends[name].append(np.stack([x.min(-1).ravel(), x.max(-1).ravel(), np.abs(x).max(-1).ravel()]))
            between[name] = x.shape[1:-1]
    measured = {}
    for name, parts in ends.items():
        lowest, highest, largest = np.concatenate(parts, axis=1).astype(np.float64)
        low = float(lowest.min())
        zero = zero_point(low, highest, largest)
        measured[name] = _Activation(between[name], zero, _floor(low, zero))
    return measured


def _floor(low: float, zero: int) -> float:
    """The smallest scale that reaches down to `low` from the zero point."""
    return max(_LEAST, -low / zero if 0 < zero < _MIDDLE else 0.0)


def zero_point(low: float, highest: Floats, largest: Floats) -> int:
    """The zero point, 0 to 128, with the smallest mean of the squared scales; see the module. The activations are at
    least `low`, and in each row at most `highest`, in absolute numbers `largest`, both f64[rows]."""
    zeros = np.arange(0 if low >= 0 else 1, _MIDDLE)
    floors = np.array([_floor(low, int(zero)) for zero in zeros])
    squares = (np.maximum(highest / (255 - zeros[:, None]), floors[:, None]) ** 2).mean(axis=1)
    best = int(squares.argmin())
    return int(zeros[best]) if squares[best] < ((largest / 127) ** 2).mean() else _MIDDLE


def rounded(matrix: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """f64[in, out] -> (Q s8[in, out], t f64[out]), matrix ~ Q t, with the least squared error of `_CLIPS` for each
    output."""
    widest = np.maximum(np.abs(matrix).max(axis=0), 1e-12) / 127
    best, scale = np.full(matrix.shape[1], np.inf), widest.copy()
    for share in _CLIPS:
        tried = widest * share
        error = ((np.clip(np.round(matrix / tried), -127, 127) * tried - matrix) ** 2).sum(axis=0)
        better = error < best
        best[better], scale[better] = error[better], tried[better]
    return np.clip(np.round(matrix / scale), -127, 127).astype(np.int8), scale


class _Writer:
    """Nodes and constants of the new graph; an activation that enters several products is rounded once."""

    def __init__(self, measured: dict[str, _Activation], of_bytes: set[str]) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self._measured, self._bytes = measured, of_bytes
        self._digits: dict[str, tuple[str, str | None]] = {}
        self._zeros: dict[tuple[tuple[int, ...], int], str] = {}

    def _constant(self, value: npt.NDArray[np.generic] | np.generic, name: str = "") -> str:
        """Name of a constant; equal small ones share one."""
        array = np.asarray(value)
        name = name or f"eight.{array.dtype}.{array.tolist()}"
        self.constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def _add(self, kind: str, inputs: list[str], output: str, **given: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], **given))  # type: ignore[arg-type]
        return output

    def product(self, node: NodeProto, matrix: Floats) -> None:
        """The nodes that take the place of one product."""
        x, out = node.input[0], node.output[0]
        if x not in self._digits:
            self._digits[x] = self._rounded(x)
        digits, scale = self._digits[x]
        q, t = rounded(matrix)
        weights = self._constant((q.astype(np.int16) + _MIDDLE).astype(np.uint8), f"{out}{WEIGHTS_END}")
        scales = self._constant(t.astype(np.float32), f"{out}.scales")
        own = np.uint8(0 if scale is None else self._measured[x].zero)
        one, zero = self._constant(np.float32(1)), self._constant(own)
        middle = self._constant(np.uint8(_MIDDLE), f"weights{ZEROS_END}")
        factors = [digits, weights, one, scales, zero, middle]
        y = self._add("MatMulIntegerToFloat", factors, f"{out}.whole", domain="com.microsoft")
        if scale is not None:
            y = self._add("Mul", [y, scale], f"{out}.scaled")
        if len(node.input) > 2:
            y = self._add("Add", [y, node.input[2]], f"{out}.moved")
        shape = [-1, *self._measured[x].between, matrix.shape[1]]
        self._add("Reshape", [y, self._constant(np.array(shape))], out)

    def _rounded(self, x: str) -> tuple[str, str | None]:
        """(digits u8[rows, features], scales f32[rows, 1]) of an activation; bytes stay, and have no scales."""
        seen = self._measured[x]
        flat = self._add("Flatten", [x], f"{x}.flat", axis=-1) if seen.between else x
        if x in self._bytes:
            one, zero = self._constant(np.float32(1)), self._constant(np.uint8(0))
            return self._add("QuantizeLinear", [flat, one, zero], f"{x}.digits"), None
        largest = self._add("Abs", [flat], f"{x}.absolute") if seen.zero == _MIDDLE else flat
        top = self._add("ReduceMax", [largest, self._constant(np.array([-1]))], f"{x}.top", keepdims=0)
        span = 127 if seen.zero == _MIDDLE else 255 - seen.zero
        scale = self._add("Mul", [top, self._constant(np.float32(1 / span))], f"{x}.step")
        scale = self._add("Max", [scale, self._constant(np.float32(seen.floor))], f"{x}.scale")
        digits = self._add("QuantizeLinear", [flat, scale, self._zero_points(seen, scale)], f"{x}.digits", axis=0)
        return digits, self._add("Unsqueeze", [scale, self._constant(np.array([1]))], f"{x}.column")

    def _zero_points(self, seen: _Activation, scale: str) -> str:
        """The zero point once for each row; one for all activations of as many rows."""
        key = (seen.between, seen.zero)
        if key not in self._zeros:
            rows = self._add("Shape", [scale], f"{scale}.rows")
            value = numpy_helper.from_array(np.array([seen.zero], np.uint8))
            self._zeros[key] = self._add("ConstantOfShape", [rows], f"{scale}.zeros", value=value)
        return self._zeros[key]
