"""Folding grey into the first layer is exact where nothing is padded; where it is, see `bundle/test_onnx.py`."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import examples
from torch import nn

from thoraclip.imaging import Preprocess, normalise
from thoraclip.models.frozen import fold_grey


@given(
    st.tuples(*[st.floats(0, 1)] * 3), st.tuples(*[st.floats(0.05, 1)] * 3), st.integers(1, 4), st.booleans(),
    st.integers(0, 2**16), st.sampled_from([0, 128, 255]),
)  # fmt: skip
@examples(40)
def test_any_normalisation_folds(mean: Any, std: Any, stride: int, has_bias: bool, seed: int, zero: int) -> None:
    """Against the plain way: normalise, three channels, the old convolution."""
    torch.manual_seed(seed)
    spec = Preprocess(size=12, mean=mean, std=std)
    network = nn.Sequential(nn.Conv2d(3, 5, 4, stride, bias=has_bias), nn.Flatten())
    grey = torch.randint(0, 256, (2, 12, 12), dtype=torch.uint8)
    expected = network.double()(torch.from_numpy(normalise(grey.numpy(), spec)).double())
    network.float()
    assert fold_grey(network, spec, zero=zero)
    found = network(grey[:, None].float() - zero)
    assert torch.allclose(found.double(), expected, atol=2e-4, rtol=1e-4)


@given(st.integers(1, 4), st.integers(4, 17), st.integers(4, 17), st.booleans(), st.integers(0, 2**16))
@examples(30)
def test_patches_as_one_product_are_the_convolution(
    side: int, height: int, width: int, has_bias: bool, seed: int
) -> None:
    """Also where the picture is no whole number of patches."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 5, side, side, bias=has_bias))
    greys = torch.randint(0, 256, (2, height, width), dtype=torch.uint8)
    spec = Preprocess(size=max(height, width))
    expected = network.double()(torch.from_numpy(normalise(greys.numpy(), spec)).double())
    network.float()
    assert fold_grey(network, spec) and isinstance(network[0], nn.Linear)
    found = network(greys[:, None].float())
    assert found.shape == expected.shape and torch.allclose(found.double(), expected, atol=1e-3)
