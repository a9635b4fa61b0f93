"""From a classifier in torch to one ONNX file that takes grey bytes; in fp32, or with weights of eight bits.

u8[1, S, S] -> patch embedding (normalisation and the three equal channels folded in) -> tower -> head -> scores
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from thoraclip.bundle.eight_bits import eight_bit_products
from thoraclip.bundle.signed_weights import WEIGHTS_END, ZEROS_END
from thoraclip.dtypes import Floats, Greys
from thoraclip.errors import ModelError
from thoraclip.imaging import Preprocess
from thoraclip.models.backbones import Backbone
from thoraclip.models.classifiers import EncoderClassifier
from thoraclip.models.grey import fold_grey
from thoraclip.models.network import expand_greys
from thoraclip.models.onnx_files import clean, quiet_exporter, save_network, write_network
from thoraclip.models.sessions import open_session

__all__ = ["GreyClassifier", "grey_classifier", "quantise", "write_onnx"]


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
    """Write the module as ONNX: `greys` u8[B, S, S] to `features` and `scores`; see `onnx_files.write_network`."""
    write_network(module, path, side=module.spec.size, outputs=("features", "scores"))


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
        clean(model)
        share = model.ByteSize() / large.stat().st_size
        save_network(model, path)
        return way, share


def _quantise_convolutions(source: Path, target: Path, greys: Greys) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready, images = target.with_suffix(".ready.onnx"), ({"greys": grey[None]} for grey in greys)
    with quiet_exporter():
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
    model = onnx.load(str(target))
    _name_unsigned(model.graph)
    onnx.save(model, str(target))


def _name_unsigned(graph: onnx.GraphProto) -> None:
    """Give unsigned weights and their zero points the names by which `signed_weights` knows them."""
    unsigned = {one.name: one for one in graph.initializer if one.data_type == onnx.TensorProto.UINT8}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in unsigned:
            for place, ending in ((0, WEIGHTS_END), (2, ZEROS_END)):
                constant = unsigned[node.input[place]]
                name = f"{constant.name.removesuffix(ending)}{ending}"
                constant.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constant), name))  # in raw bytes
                node.input[place] = name


def _mean_features(path: Path, greys: Greys) -> Floats:
    """f64[D]: the mean of the features of some pictures."""
    session = open_session(path)
    features = [session.run(["features"], {"greys": grey[None]})[0][0] for grey in greys]
    return np.asarray(np.mean(features, axis=0), np.float64)


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
