"""Print, in base64, the ONNX file by which `thoraclip.bundle.runtime` asks whether a processor multiplies bytes
exactly.

python scripts/make_bytes_probe.py
"""

from __future__ import annotations

import base64

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper


def bytes_probe() -> bytes:
    """u8[1, 64] `bytes` -> i32[1, 16] `products` with a constant matrix s8[64, 16] whose entries are all 127."""
    shape = numpy_helper.from_array(np.array([64, 16], np.int64), "shape")
    entry = numpy_helper.from_array(np.array([127], np.int8), "entry")
    graph = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["shape"], ["matrix"], value=entry),
            helper.make_node("MatMulInteger", ["bytes", "matrix"], ["products"]),
        ],
        "bytes",
        [helper.make_tensor_value_info("bytes", TensorProto.UINT8, [1, 64])],
        [helper.make_tensor_value_info("products", TensorProto.INT32, [1, 16])],
        [shape],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="thoraclip"
    )
    checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


if __name__ == "__main__":
    print(base64.b64encode(bytes_probe()).decode())
