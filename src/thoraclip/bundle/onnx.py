"""From a classifier in torch to one ONNX file that takes grey bytes; in fp32, or with weights of eight bits.

u8[1, S, S] -> patch embedding (normalisation and the three equal channels folded in) -> tower -> head -> scores
"""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from onnx.external_data_helper import set_external_data
from torch import Tensor, nn

from thoraclip.bundle.eight_bits import eight_bit_products
from thoraclip.bundle.session import open_session
from thoraclip.dtypes import Floats, Greys
from thoraclip.errors import ModelError, first_line
from thoraclip.imaging import Preprocess
from thoraclip.models.backbones import Backbone
from thoraclip.models.checkpoint import quiet
from thoraclip.models.classifiers import EncoderClassifier
from thoraclip.models.grey import fold_grey
from thoraclip.models.network import expand_greys

__all__ = ["GreyClassifier", "grey_classifier", "quantise", "write_onnx"]


OPSET = 20
"""Of the ONNX file; ONNX Runtime 1.17 and later load it."""
_LARGE = 2**18
"""Bytes from which a factor of a matrix product lies in the file beside the model. ONNX Runtime maps that file and
packs such factors from there, where it copies what lies in the model itself twice; they are unmapped once they are
packed."""
_PRODUCTS = {"MatMul", "Gemm", "MatMulIntegerToFloat"}
"""Operators whose second factor is packed. Any other constant would stay mapped, and be lost with the file."""
_WEIGHTED = ("Conv", "MatMul", "Gemm")
"""Operators that become ones of eight bits."""
_ENOUGH = 32
"""Calibration pictures that tell which activations hardly go below 0."""
_CONVOLUTIONAL = 0.5
"""Share of a network's weights in convolutions from which it is quantised as one."""


class GreyClassifier(nn.Module):
    """u8[B, S, S] -> (features f32[B, D], scores f32[B, C], rows sum to 1).

    `features` takes f32[B, channels, S, S], where `is_folded` grey levels 0..255 in one channel (see `fold_grey`).
    """

    def __init__(self, features: nn.Module, head: nn.Module, spec: Preprocess, *, is_folded: bool) -> None:
        super().__init__()
        self.features, self.head, self.spec, self.is_folded = features, head, spec, is_folded

    def forward(self, greys: Tensor) -> tuple[Tensor, Tensor]:
        pixels = greys[:, None].float() if self.is_folded else expand_greys(greys, self.spec, greys.device)
        features = self.features(pixels)
        return features, self.head(features).softmax(dim=-1)


class _EncoderFeatures(nn.Module):
    """The features of an `EncoderClassifier` that its head takes."""

    def __init__(self, classifier: EncoderClassifier) -> None:
        super().__init__()
        self.model = classifier.encoder.model
        self._encoder, self._kind = classifier.encoder, classifier.features

    def forward(self, pixels: Tensor) -> Tensor:
        pooled, projected = self._encoder.image_features(pixels)
        return pooled if self._kind == "pooled" else nn.functional.normalize(projected, dim=-1)


class _BackboneFeatures(nn.Module):
    """What enters the head of a `Backbone`, whose head was taken out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        output = self.network(pixels)
        features: Tensor = (output if isinstance(output, Tensor) else output.logits).flatten(1)
        return features


def grey_classifier(classifier: EncoderClassifier | Backbone) -> GreyClassifier:
    """A copy of the classifier, its adapters merged, as one module on the CPU, in fp32, that takes grey bytes."""
    features, head = _of_encoder(classifier) if isinstance(classifier, EncoderClassifier) else _of_backbone(classifier)
    is_folded = fold_grey(features, classifier.preprocess)
    return GreyClassifier(features, head, classifier.preprocess, is_folded=is_folded).float().eval()


def _of_encoder(classifier: EncoderClassifier) -> tuple[nn.Module, nn.Module]:
    encoder = classifier.encoder
    model = copy.deepcopy(encoder.model).cpu()
    if "text" in encoder.towers:
        del model.text_model
    moved = replace(encoder, model=model, device=torch.device("cpu"), precision="fp32")
    weight, bias = classifier.head.folded()
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight))
        linear.bias.copy_(torch.from_numpy(bias))
    return _EncoderFeatures(replace(classifier, encoder=moved)), linear


def _of_backbone(classifier: Backbone) -> tuple[nn.Module, nn.Module]:
    name = next(iter(classifier.head_parameters)).split(".")[0]
    network = copy.deepcopy(classifier.network).cpu()
    head = getattr(network, name)
    setattr(network, name, nn.Identity())
    last = [module for module in head.modules() if isinstance(module, nn.Linear)]
    if len(last) != 1:
        raise ModelError(f"model '{classifier.name}': a head of {len(last)} linear layers; one is expected")
    return _BackboneFeatures(network), last[0]  # what stands before it, as a ResNet's flattening, `flatten(1)` does


def write_onnx(module: GreyClassifier, path: Path) -> None:
    """Write the module as ONNX: `greys` u8[B, S, S] to `features` and `scores`, B any number or, for some networks, 1.

    Large matrices go to a file beside it, `<name>.data`. Raises ModelError where the network cannot be exported.
    """
    model = _exported(module, pictures=2)
    if not model.graph.input[0].type.tensor_type.shape.dim[0].dim_param:  # SigLIP 2 takes images one by one
        model = _exported(module, pictures=1)
    _clean(model)
    _save(model, path)


def _save(model: onnx.ModelProto, path: Path) -> None:
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


def _exported(module: GreyClassifier, *, pictures: int) -> onnx.ModelProto:
    """The module as ONNX for any number of pictures, or, from one, for one."""
    side = module.spec.size
    shapes = {"greys": {0: torch.export.Dim("pictures")}} if pictures > 1 else None
    try:
        with _silence(), quiet():
            program = torch.onnx.export(
                module,
                (torch.zeros(pictures, side, side, dtype=torch.uint8),),
                None,
                dynamo=True,
                opset_version=OPSET,
                verbose=False,
                dynamic_shapes=shapes,
                input_names=["greys"],
                output_names=["features", "scores"],
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
def _silence() -> Iterator[None]:
    """Keep the exporter's chatter about packages that are not needed from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root")]
    levels = {logger: logger.level for logger in loggers}
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _clean(model: onnx.ModelProto) -> None:
    """Take out what tells of the exporting machine: traces with paths, notes, versions of tools."""
    model.doc_string = model.graph.doc_string = ""
    model.producer_name, model.producer_version = "thoraclip", ""
    del model.metadata_props[:]
    graph = model.graph
    del graph.value_info[:]
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *model.functions):
        part.doc_string = ""
        del part.metadata_props[:]


def quantise(path: Path, greys: Greys) -> tuple[str, float]:
    """Replace the model of `write_onnx` by one with weights of eight bits, and activations of eight bits in its large
    products; the head stays in fp32.

    Transformers: see `eight_bits`. Networks whose weights are mostly in convolutions: static quantisation by ONNX
    Runtime. What either shifts the features by, on average over the calibration images u8[N, S, S], is put back.
    Returns (`row-wise` or `static`, the model's size as a share of what it was).
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        large, small = Path(work) / "large.onnx", Path(work) / "small.onnx"
        model = onnx.load(str(path))
        onnx.save(model, str(large))  # in one file: ONNX Runtime's own tools lose what lies beside one
        if _share_in_convolutions(model) < _CONVOLUTIONAL:
            eight_bit_products(large, small, greys[:: max(1, len(greys) // _ENOUGH)])
            way = "row-wise"
        else:
            _quantise_convolutions(large, small, greys)
            way = "static"
        model = onnx.load(str(small))
        _centre_features(model, _mean_features(large, greys) - _mean_features(small, greys))
        _clean(model)
        share = model.ByteSize() / large.stat().st_size
        _save(model, path)
        return way, share


def _quantise_convolutions(source: Path, target: Path, greys: Greys) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready, images = target.with_suffix(".ready.onnx"), ({"greys": grey[None]} for grey in greys)
    with _silence():
        # batch normalisation becomes part of the convolutions
        quant_pre_process(source, ready, skip_symbolic_shape=True)
        head = [node.name for node in onnx.load(str(ready)).graph.node if "features" in node.input]
        quantize_static(
            ready,
            target,
            SimpleNamespace(get_next=lambda: next(images, None)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QUInt8,
            extra_options={"WeightSymmetric": True},
            op_types_to_quantize=list(_WEIGHTED),
            nodes_to_exclude=head,
        )
    ready.unlink()


def _mean_features(path: Path, greys: Greys) -> Floats:
    """f64[D]: the mean of the features of some pictures."""
    session = open_session(path)
    return np.asarray(
        np.mean([session.run(["features"], {"greys": grey[None]})[0][0] for grey in greys], axis=0), np.float64
    )


def _centre_features(model: onnx.ModelProto, shift: Floats) -> None:
    """Add a constant to the features, in the model."""
    graph = model.graph
    place = next(number for number, node in enumerate(graph.node) if "features" in node.output)
    node = graph.node[place]
    node.output[list(node.output).index("features")] = "features.uncentred"
    graph.initializer.append(numpy_helper.from_array(shift.astype(np.float32), "features.shift"))
    graph.node.insert(place + 1, helper.make_node("Add", ["features.uncentred", "features.shift"], ["features"]))


def _share_in_convolutions(model: onnx.ModelProto) -> float:
    """Of the weights of all products, those of convolutions beyond the first, which is a patch embedding in
    transformers."""
    sizes = {constant.name: int(np.prod(constant.dims)) for constant in model.graph.initializer}
    weights = [(node.op_type, sizes.get(node.input[1], 0)) for node in model.graph.node if node.op_type in _WEIGHTED]
    convolutions = [size for kind, size in weights if kind == "Conv"]
    return sum(convolutions[1:]) / max(1, sum(size for _, size in weights))
