"""A network in torch as one ONNX file that takes grey bytes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx.external_data_helper import set_external_data
from torch import Tensor, nn

from thoraclip.errors import ModelError, first_line
from thoraclip.imaging import Preprocess
from thoraclip.models.checkpoint import quiet
from thoraclip.models.grey import fold_grey
from thoraclip.models.network import expand_greys

__all__ = ["clean", "quiet_exporter", "save_network", "write_network", "write_outputs"]

OPSET = 20
"""Of the ONNX file; ONNX Runtime 1.17 and later load it."""
_LARGE = 2**18
"""Bytes from which a factor of a matrix product lies in the file beside the model. ONNX Runtime maps that file and
packs such factors from there, where it copies what lies in the model itself twice; they are unmapped once they are
packed."""
_PRODUCTS = {"MatMul", "Gemm", "MatMulIntegerToFloat"}
"""Operators whose second factor is packed. Any other constant would stay mapped, and be lost with the file."""


class _GreyNetwork(nn.Module):
    """u8[B, S, S] -> what a network says of the pixels."""

    def __init__(self, network: nn.Module, spec: Preprocess) -> None:
        super().__init__()
        self.is_folded = fold_grey(network, spec)
        self.network, self.spec = network, spec

    def forward(self, greys: Tensor) -> Any:
        return self.network(greys[:, None].float() if self.is_folded else expand_greys(greys, self.spec, greys.device))


def write_outputs(network: nn.Module, spec: Preprocess, path: Path) -> None:
    """Write a network of pixels f32[B, 3, S, S], in fp32 on the CPU and in eval mode, which this changes, as one of
    grey bytes; its outputs, one or several, stay in their order. See `write_network`."""
    write_network(_GreyNetwork(network, spec).eval(), path, side=spec.size)


def write_network(module: nn.Module, path: Path, *, side: int, outputs: Sequence[str] = ()) -> None:
    """Write the module as ONNX: `greys` u8[B, side, side] to the outputs, B any number or, for some networks, 1.

    Large matrices go to a file beside it, `<name>.data`. Raises ModelError where the network cannot be exported.
    """
    model = _exported(module, side, outputs, pictures=2)
    if not model.graph.input[0].type.tensor_type.shape.dim[0].dim_param:  # SigLIP 2 takes images one by one
        model = _exported(module, side, outputs, pictures=1)
    clean(model)
    save_network(model, path)


def save_network(model: onnx.ModelProto, path: Path) -> None:
    """Write it, its large matrices beside it, in place of what is there."""
    beside = path.with_name(f"{path.name}.data")
    beside.unlink(missing_ok=True)  # it would be appended to
    packed = {node.input[1] for node in model.graph.node if node.op_type in _PRODUCTS}
    for constant in model.graph.initializer:
        if constant.name in packed and len(constant.raw_data) >= _LARGE:
            set_external_data(constant, beside.name)
    onnx.save(model, str(path))
    if beside.is_file():
        beside.chmod(path.stat().st_mode & 0o777)  # else nobody but who made it may read it


def _exported(module: nn.Module, side: int, outputs: Sequence[str], *, pictures: int) -> onnx.ModelProto:
    """The module as ONNX for any number of pictures, or, from one, for one."""
    shapes = {"greys": {0: torch.export.Dim("pictures")}} if pictures > 1 else None
    try:
        with quiet_exporter(), quiet():
            program = torch.onnx.export(
                module,
                (torch.zeros(pictures, side, side, dtype=torch.uint8),),
                None,
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                dynamic_shapes=shapes,
                input_names=["greys"],
                output_names=list(outputs) or None,
                custom_translation_table={torch.ops.aten._is_all_true.default: _is_all_true},
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ModelError(f"the network cannot be written as ONNX ({first_line(error)})") from error
    assert program is not None, "the exporter returns the program where no file is named"
    return program.model_proto


def _is_all_true(value: Any) -> Any:
    """Of a boolean that is one number already: the checks of SigLIP 2 in Transformers 5.24, which the exporter does not
    know."""
    from onnxscript import opset20

    return opset20.Identity(value)


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep the exporter's chatter about packages that are not needed from the user."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(disabled)


def clean(model: onnx.ModelProto) -> None:
    """Take out what tells of the exporting machine: traces with paths, notes, versions of tools."""
    model.doc_string = model.graph.doc_string = ""
    model.producer_name, model.producer_version = "thoraclip", ""
    del model.metadata_props[:]
    graph = model.graph
    del graph.value_info[:]
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *model.functions):
        part.doc_string = ""
        del part.metadata_props[:]
