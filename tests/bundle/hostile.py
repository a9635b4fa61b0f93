"""Bundles with one thing wrong, made from a good one: each is a name and a change of a folder."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from thoraclip.bundle.seal import seal

GOOD = Path(__file__).parent / "golden" / "bundle-1" / "bundle"
Change = Callable[[Path], None]
FILES = ("bundle.json", "model.onnx", "self-test.npz", "novelty.npz", "trained-on.npz", "SHA256SUMS", "README.md")
ARRAYS = tuple(name for name in FILES if name.endswith(".npz"))
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 10**30, 1e300, "", "x", "a\nb", [], {}, [[1]], {"x": {"y": 1}}, "x" * 5000,
)  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of every value of a document, by its keys."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in items:
        yield from places(one, (*at, key))


def changed(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    """The document with another value at a place."""
    if not at:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = changed(copy[at[0]] if at[1:] else None, at[1:], new)
    return copy


def make(change: Change, folder: Path, *, sealed: bool = True) -> Path:
    """A bundle with the change, its checksums right unless not `sealed`."""
    shutil.copytree(GOOD, folder)
    change(folder)
    if sealed:
        seal(folder)
    return folder


def written(name: str, data: bytes | str) -> Change:
    """A file with this content."""
    return lambda folder: _put(folder / name, data)


def _put(file: Path, data: bytes | str) -> None:
    file.write_bytes(data.encode() if isinstance(data, str) else data)


def facts(**changes: Any) -> Change:
    """`bundle.json` with other values; `a__b` is b inside a."""

    def change(folder: Path) -> None:
        content = json.loads((folder / "bundle.json").read_text())
        for name, value in changes.items():
            content = changed(content, tuple(name.split("__")), value)
        (folder / "bundle.json").write_text(json.dumps(content))

    return change


def npz(name: str, **arrays: np.ndarray) -> Change:
    """An NPZ file with other arrays; `None` for none of that name."""

    def change(folder: Path) -> None:
        with np.load(folder / name) as stored:
            content = {key: stored[key] for key in stored.files} | arrays
        np.savez(folder / name, **{key: value for key, value in content.items() if value is not None})

    return change


def member(name: str, key: str, data: bytes, *, twice: bool = False, method: int = zipfile.ZIP_DEFLATED) -> Change:
    """An NPZ file with other bytes in a member, as itself or besides."""

    def change(folder: Path) -> None:
        with zipfile.ZipFile(folder / name) as archive:
            content = [(entry, archive.read(entry)) for entry in archive.namelist()]
        with zipfile.ZipFile(folder / name, "w", method) as archive:
            for entry, old in content:
                if entry != key or twice:
                    archive.writestr(entry, old)
            archive.writestr(key, data)

    return change


def header(shape: str, descr: str = "'|u1'", order: str = "False") -> bytes:
    """An NPY header alone."""
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def array_bytes(array: np.ndarray) -> bytes:
    """As NPY."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array)
    return stream.getvalue()


def model(edit: Callable[[onnx.ModelProto], None]) -> Change:
    """`model.onnx` edited."""

    def change(folder: Path) -> None:
        content = onnx.load(str(folder / "model.onnx"))
        edit(content)
        (folder / "model.onnx").write_bytes(content.SerializeToString())

    return change


def _resized(part: str, axis: int, length: int | str) -> Change:
    def edit(content: onnx.ModelProto) -> None:
        tensor = next(t for t in (*content.graph.input, *content.graph.output) if t.name == part)
        dim = tensor.type.tensor_type.shape.dim[axis]
        dim.Clear()
        if isinstance(length, str):
            dim.dim_param = length
        else:
            dim.dim_value = length

    return model(edit)


def _external(location: str) -> Change:
    """Weights in another file, which holds the right ones."""
    weights: list[bytes] = []

    def edit(content: onnx.ModelProto) -> None:
        tensor = max(content.graph.initializer, key=lambda one: len(one.raw_data))
        weights.append(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", str(len(weights[0])))):
            tensor.external_data.add(key=key, value=value)

    def change(folder: Path) -> None:
        model(edit)(folder)
        beside = () if location == "model.onnx.data" else (folder / "model.onnx.data",)
        for place in (folder / "other.data", folder.parent / "outside.data", *beside):
            place.write_bytes(weights[0])

    return change


def _node(*nodes: onnx.NodeProto) -> Change:
    return model(lambda content: content.graph.node.extend(nodes))


def _type(content: onnx.ModelProto) -> None:
    content.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def _renamed(content: onnx.ModelProto) -> None:
    content.graph.output[0].name = "nothing"


def _extra_input(content: onnx.ModelProto) -> None:
    content.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def _domain(content: onnx.ModelProto) -> None:
    content.graph.node[0].domain = "nowhere.example"


def _opset(content: onnx.ModelProto) -> None:
    content.opset_import[0].version = 9999


def _nan(content: onnx.ModelProto) -> None:
    for tensor in content.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.raw_data = np.full(len(tensor.raw_data) // 4, np.nan, np.float32).tobytes()


def _gigantic(content: onnx.ModelProto) -> None:
    content.graph.initializer[0].dims[:] = [2**40, 2**20]


U8, F4 = np.uint8, np.float32
WRONG: dict[str, Change] = {
    "size 1000000": facts(preprocess__size=1_000_000),
    "size 4097": facts(preprocess__size=4097),
    "size 33, not the model's": facts(preprocess__size=33),
    "size 32.0": facts(preprocess__size=32.0),
    "short side below size": facts(preprocess__geometry="crop", preprocess__short_side=16),
    "short side a million": facts(preprocess__geometry="crop", preprocess__short_side=10**6),
    "geometry": facts(preprocess__geometry="zoom"),
    "resample": facts(preprocess__resample="magic"),
    "std 0": facts(preprocess__std=[0.1, 0.0, 0.1]),
    "std -1": facts(preprocess__std=[-1, 1, 1]),
    "std of two": facts(preprocess__std=[1, 1]),
    "std tiny": facts(preprocess__std=[1e-300, 1, 1]),
    "mean text": facts(preprocess__mean=["a", "b", "c"]),
    "mean huge": facts(preprocess__mean=[1e300, 0, 0]),
    "preprocess with more": facts(preprocess={"size": 32, "rotate": 90}),
    "temperature 0": facts(temperature=0),
    "temperature -1": facts(temperature=-1.5),
    "temperature text": facts(temperature="1.0"),
    "temperature tiny": facts(temperature=1e-308),
    "temperature huge": facts(temperature=1e308),
    "temperature yes": facts(temperature=True),
    "threshold 1.5": facts(sets__threshold__Normal=1.5),
    "threshold -0.1": facts(sets__threshold__Normal=-0.1),
    "threshold of no class": facts(sets__threshold={}),
    "alpha 2": facts(sets__alpha=2),
    "counts below 0": facts(sets__images__Normal=-5),
    "counts 1.5": facts(sets__images__Normal=1.5),
    "counts beyond 64 bits": facts(sets__images__Normal=10**30),
    "sets a list": facts(sets=[1, 2]),
    "one class": facts(labels=["a"]),
    "no class": facts(labels=[]),
    "classes twice": facts(labels=["a", "b", "a"]),
    "class empty": facts(labels=["a", "", "b"]),
    "class of two lines": facts(labels=["a", "b\nc", "d"]),
    "class a number": facts(labels=[1, 2, 3]),
    "classes a text": facts(labels="abc"),
    "other classes": facts(labels=["a", "b", "c"]),
    "more classes than scores": facts(labels=["COVID-19", "Non-COVID", "Normal", "d"], sets=None),
    "100000 classes": facts(labels=[f"c{n}" for n in range(100_000)]),
    "precision": facts(precision="fp8"),
    "precision null": facts(precision=None),
    "schema 2": facts(schema=2),
    "schema 0": facts(schema=0),
    "schema 1.0": facts(schema=1.0),
    "schema text": facts(schema="1"),
    "schema later, no writer": facts(schema=3, provenance=7),
    "novelty of another kind": facts(novelty__score="knn"),
    "novelty threshold text": facts(novelty__threshold="high"),
    "novelty yes": facts(novelty=True),
    "thumbnails without a file": facts(thumbnails={"images": 3}),
    "thumbnails 10^12": facts(thumbnails={"images": 10**12}),
    "thumbnails a list": facts(thumbnails=[]),
    "run null": facts(run=None),
    "fold text": facts(run__fold="0"),
    "inputs a list": facts(provenance__inputs=[]),
    "provenance null": facts(provenance=None),
    "name a table": facts(name={}),
    "kind null": facts(kind=None),
    "json NaN": lambda f: _put(f / "bundle.json", (f / "bundle.json").read_text().replace("0.05", "NaN")),
    "json Infinity": lambda f: _put(f / "bundle.json", (f / "bundle.json").read_text().replace("0.05", "Infinity")),
    "json 1e999": lambda f: _put(f / "bundle.json", (f / "bundle.json").read_text().replace("0.05", "1e999")),
    "json 5000 digits": lambda f: _put(f / "bundle.json", (f / "bundle.json").read_text().replace("0.05", "1" * 5000)),
    "json key twice": lambda f: _put(f / "bundle.json", (f / "bundle.json").read_text()[:-2] + ', "schema": 1}'),
    "json list": written("bundle.json", "[]"),
    "json text": written("bundle.json", '"x"'),
    "json null": written("bundle.json", "null"),
    "json deep": written("bundle.json", '{"schema": ' + "[" * 100_000),
    "json UTF-16": lambda f: _put(f / "bundle.json", (f / "bundle.json").read_text().encode("utf-16")),
    "json latin-1": written("bundle.json", '{"schema": "é"}'.encode("latin-1")),
    "json surrogate": written("bundle.json", '{"schema": 1, "name": "\\ud800"}'),
    "json huge text": written("bundle.json", '{"schema": 1, "name": "' + "x" * 5_000_000 + '"}'),
    "self-test greys f64": npz("self-test.npz", greys=np.zeros((1, 32, 32))),
    "self-test of no picture": npz("self-test.npz", greys=np.zeros((0, 32, 32), U8), scores=np.zeros((0, 3), F4)),
    "self-test of a million": npz("self-test.npz", greys=np.zeros((9999, 32, 32), U8), scores=np.zeros((9999, 3), F4)),
    "self-test of another side": npz("self-test.npz", greys=np.zeros((1, 31, 32), U8)),
    "self-test other counts": npz("self-test.npz", scores=np.zeros((2, 3), F4)),
    "self-test scores NaN": npz("self-test.npz", scores=np.full((1, 3), np.nan, F4)),
    "self-test scores of two": npz("self-test.npz", scores=np.zeros((1, 2), F4)),
    "self-test without scores": npz("self-test.npz", scores=None),
    "self-test with more": npz("self-test.npz", more=np.zeros(3)),
    "self-test of objects": npz("self-test.npz", greys=np.array([{}, 1], object)),
    "self-test of text": npz("self-test.npz", scores=np.array([["a", "b", "c"]])),
    "self-test claims 10^12": member("self-test.npz", "greys.npy", header("(1000000000000, 32, 32)")),
    "self-test claims 10^40": member("self-test.npz", "greys.npy", header(f"({10**40}, 32, 32)")),
    "self-test claims -1": member("self-test.npz", "greys.npy", header("(-1, 32, 32)")),
    "self-test shape nested": member("self-test.npz", "greys.npy", header("(" * 3000 + ")" * 3000)),
    "self-test type nested": member("self-test.npz", "greys.npy", header("(1, 32, 32)", "[" * 500 + "]" * 500)),
    "self-test header of letters": member("self-test.npz", "greys.npy", b"\x93NUMPY\x01\x00\x04\x00abc\n"),
    "self-test header is a call": member("self-test.npz", "greys.npy", header("__import__('os').getcwd()")),
    "self-test format 9": member("self-test.npz", "greys.npy", b"\x93NUMPY\x09\x00\x04\x00abc\n"),
    "self-test member empty": member("self-test.npz", "greys.npy", b""),
    "self-test member longer": member("self-test.npz", "greys.npy", array_bytes(np.zeros((1, 32, 32), U8)) + b"x"),
    "self-test member shorter": member("self-test.npz", "greys.npy", array_bytes(np.zeros((1, 32, 32), U8))[:-1]),
    "self-test member bomb": member("self-test.npz", "greys.npy", header("(200000000,)") + bytes(200_000_000)),
    "self-test member twice": member("self-test.npz", "greys.npy", array_bytes(np.zeros((1, 32, 32), U8)), twice=True),
    "self-test member absolute": member("self-test.npz", "/etc/greys.npy", b"x"),
    "self-test member above": member("self-test.npz", "../greys.npy", b"x"),
    "self-test one array alone": written("self-test.npz", array_bytes(np.zeros((1, 32, 32), U8))),
    "novelty of another width": npz("novelty.npz", means=np.zeros((3, 8), F4), factor=np.zeros((8, 8), F4)),
    "novelty factor not square": npz("novelty.npz", factor=np.zeros((16, 8), F4)),
    "novelty factor infinite": npz("novelty.npz", factor=np.full((16, 16), np.inf, F4)),
    "novelty of no class": npz("novelty.npz", means=np.zeros((0, 16), F4)),
    "digests of other bytes": npz("trained-on.npz", digests=np.zeros((5, 9), U8)),
    "digests f64": npz("trained-on.npz", digests=np.zeros((5, 8))),
    "model of another side": _resized("greys", 1, 33),
    "model of any side": _resized("greys", 2, "side"),
    "model of a gigantic side": _resized("greys", 1, 2**60),
    "model of other features": _resized("features", 1, 17),
    "model of gigantic features": _resized("features", 1, 2**40),
    "model for 10^6 pictures": _resized("greys", 0, 10**6),
    "model takes f32": model(_type),
    "model gives another name": model(_renamed),
    "model takes more": model(_extra_input),
    "model of an unknown domain": model(_domain),
    "model of an unknown op": _node(helper.make_node("Teleport", ["scores"], ["elsewhere"])),
    "model of a later opset": model(_opset),
    "model of NaN": model(_nan),
    "model with a gigantic tensor": model(_gigantic),
    "model without nodes": model(lambda content: content.graph.ClearField("node")),
    "weights in another file": _external("other.data"),
    "weights in the checksums": _external("SHA256SUMS"),
    "weights outside": _external("../outside.data"),
    "weights in /etc": _external("/etc/passwd"),
    "weights in a missing file": _external("model.onnx.data"),
}  # fmt: skip
for _name in FILES[:-2]:
    _data = (GOOD / _name).read_bytes()
    WRONG[f"{_name} empty"] = written(_name, b"")
    WRONG[f"{_name} cut"] = written(_name, _data[: len(_data) // 2])
    WRONG[f"{_name} zeros"] = written(_name, bytes(len(_data)))
    WRONG[f"{_name} a picture"] = written(_name, b"\x89PNG\r\n\x1a\n" + bytes(100))


HARMLESS: dict[str, Change] = {  # ONNX Runtime infers the shapes anew
    "declares other classes": _resized("scores", 1, 4),
    "declares any features": _resized("features", 1, "width"),
}


def _replaced(name: str, make_one: Callable[[Path], object]) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        make_one(folder / name)

    return change


def _holes(file: Path) -> None:
    with file.open("wb") as stream:
        stream.truncate(1 << 42)


def _sums(edit: Callable[[list[str]], list[str]], end: str = "\n") -> Change:
    def change(folder: Path) -> None:
        lines = (folder / "SHA256SUMS").read_text().splitlines()
        (folder / "SHA256SUMS").write_bytes("".join(line + end for line in edit(lines)).encode())

    return change


def _without(name: str) -> Change:
    return _sums(lambda lines: [line for line in lines if not line.endswith(f"  {name}")])


_OTHER = "0" * 64
UNSEALED: dict[str, Change] = {
    f"{name} {what}": _replaced(name, make_one)
    for name in FILES
    for what, make_one in (
        ("missing", lambda file: None), ("a folder", Path.mkdir), ("a pipe", os.mkfifo), ("of holes", _holes),
        ("a dangling link", lambda file: file.symlink_to("nowhere")), ("a link to itself", lambda file: file.symlink_to(file.name)),
        ("/dev/zero", lambda file: file.symlink_to("/dev/zero")), ("another file", lambda file: file.symlink_to("model.onnx" if file.name != "model.onnx" else "bundle.json")),
    )
} | {f"{name} not sealed": _without(name) for name in FILES if name != "SHA256SUMS"} | {
    "seal of bundle.json alone": _sums(lambda lines: [line for line in lines if line.endswith("bundle.json")]),
    "seal empty": _sums(lambda lines: []),
    "seal of CRLF": _sums(lambda lines: lines, "\r\n"),
    "seal in capitals": _sums(lambda lines: [line[:64].upper() + line[64:] for line in lines]),
    "seal twice": _sums(lambda lines: [*lines, lines[-1]]),
    "seal in another order": _sums(lambda lines: lines[::-1]),
    "seal of a path": _sums(lambda lines: [*lines, f"{_OTHER}  sub/file"]),
    "seal of a path above": _sums(lambda lines: [*lines, f"{_OTHER}  ../other"]),
    "seal of the folder above": _sums(lambda lines: [*lines, f"{_OTHER}  .."]),
    "seal of an absolute path": _sums(lambda lines: [*lines, f"{_OTHER}  /etc/passwd"]),
    "seal of no name": _sums(lambda lines: [*lines, f"{_OTHER}  "]),
    "seal of a NUL": _sums(lambda lines: [*lines, f"{_OTHER}  a\0b"]),
    "seal of a device": lambda folder: ((folder / "zero").symlink_to("/dev/zero"), _sums(lambda lines: [*lines, f"{_OTHER}  zero"])(folder))[1],
    "seal of short hashes": _sums(lambda lines: [line[32:] for line in lines]),
    "seal of bytes": written("SHA256SUMS", bytes(range(256))),
    "seal in UTF-16": lambda folder: _put(folder / "SHA256SUMS", (folder / "SHA256SUMS").read_text().encode("utf-16")),
    "seal without an end": lambda folder: _put(folder / "SHA256SUMS", (folder / "SHA256SUMS").read_bytes()[:-1]),
    "another file changed": written("README.md", "other"),
}  # fmt: skip
