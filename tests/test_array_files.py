"""Arrays from outside: the right file is read, any other is refused in one line before memory is taken."""

import io
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save
from tests.conftest import examples

from thoraclip import array_files
from thoraclip.array_files import open_npy, read_npz, read_safetensors
from thoraclip.errors import ManifestError

EXPECTED = {"means": ("f4", ("C", "D")), "factor": ("f4", ("D", "D")), "counts": ("u1 i8", ("C",))}
GOOD = {"means": np.ones((2, 3), np.float32), "factor": np.eye(3, dtype=np.float32), "counts": np.arange(2)}
TOLD = {"error": ManifestError, "remedy": "write it again"}


def npz(path, arrays):
    with path.open("wb") as stream:
        np.savez(stream, **arrays)


def safetensors(path, arrays):
    path.write_bytes(
        save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, {"thoraclip": '{"a": 1}'})
    )


WAYS = [
    (npz, lambda path: read_npz(path, EXPECTED, **TOLD)),
    (safetensors, lambda path: read_safetensors(path, EXPECTED, **TOLD)[0]),
]


@pytest.mark.parametrize(("write", "read"), WAYS, ids=["npz", "safetensors"])
def test_the_expected_arrays_are_read(write, read, tmp_path):
    write(tmp_path / "x", GOOD)
    found = read(tmp_path / "x")
    assert found.keys() == GOOD.keys()
    assert all(found[name].dtype == array.dtype and (found[name] == array).all() for name, array in GOOD.items())
    empty = {"means": np.zeros((0, 3), np.float32), "factor": GOOD["factor"], "counts": np.zeros(0, np.uint8)}
    write(tmp_path / "x", empty)
    assert read(tmp_path / "x")["means"].shape == (0, 3)


WRONG = {
    "another length": {"means": np.ones((2, 4), np.float32)},
    "a letter twice": {"counts": np.arange(3)},
    "fewer axes": {"factor": np.ones(3, np.float32)},
    "another type": {"means": np.ones((2, 3), np.float64)},
    "another sign": {"counts": np.arange(2, dtype=np.uint64)},
    "NaN": {"means": np.full((2, 3), np.nan, np.float32)},
    "infinity": {"factor": np.full((3, 3), -np.inf, np.float32)},
    "one more": {"more": np.ones(1)},
    "another name": {"means": None, "mean": GOOD["means"]},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize(("write", "read"), WAYS, ids=["npz", "safetensors"])
def test_other_arrays_are_refused(write, read, change, tmp_path):
    write(tmp_path / "x", {name: array for name, array in (GOOD | change).items() if array is not None})
    with pytest.raises(ManifestError, match=r"x: not the arrays that belong there \(.*\); write it again$") as caught:
        read(tmp_path / "x")
    assert "\n" not in str(caught.value)


def test_columns_first_and_big_endian(tmp_path):
    npz(tmp_path / "x", GOOD | {"means": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))})
    assert read_npz(tmp_path / "x", EXPECTED, **TOLD)["means"].tolist() == [[0, 1, 2], [3, 4, 5]]
    npz(tmp_path / "x", GOOD | {"means": np.ones((2, 3), ">f4")})
    with pytest.raises(ManifestError, match="array means is >f4"):
        read_npz(tmp_path / "x", EXPECTED, **TOLD)


def header(shape, descr="<f4"):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "shape", [(10**12, 3), (2**62, 2**62), (-1, 3), (2.5, 3), "x", (True, 3), (400_000_000, 3)], ids=str
)
def test_a_declared_shape_takes_no_memory(shape, tmp_path):
    with zipfile.ZipFile(tmp_path / "x", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in GOOD.items():
            stream = io.BytesIO()
            np.save(stream, array)
            archive.writestr(f"{name}.npy", header(shape) if name == "means" else stream.getvalue())
    (tmp_path / "x.npy").write_bytes(header(shape) + bytes(100))
    tracemalloc.start()
    with pytest.raises(ManifestError):
        read_npz(tmp_path / "x", EXPECTED, **TOLD)
    with pytest.raises(ManifestError):
        open_npy(tmp_path / "x.npy", ("f4", ("N", 3)), **TOLD)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 << 20


@given(st.sampled_from(range(3)), st.data())
@examples(300)
def test_any_damaged_byte_is_read_or_refused(tmp_path_factory, way, data):
    """Also a cut, and bytes put in."""
    folder = tmp_path_factory.getbasetemp()
    path = folder / ("x.npz", "x.safetensors", "x.npy")[way]
    if way < 2:
        WAYS[way][0](path, GOOD)
        read = WAYS[way][1]
    else:
        np.save(path, GOOD["means"])
        read = lambda path: {"means": open_npy(path, ("f4", ("C", 3)), **TOLD)}  # noqa: E731
    content = path.read_bytes()
    at = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:at] + data.draw(st.binary(max_size=4)) + content[at + data.draw(st.integers(0, 400)) :])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = read(path)
    except ManifestError as error:
        assert "\n" not in str(error) and str(error).endswith("; write it again")
    else:
        assert found["means"].dtype == np.float32 and found["means"].shape[-1] == 3


def test_the_file_stays_on_disk(tmp_path):
    np.save(tmp_path / "x.npy", GOOD["means"])
    found = open_npy(tmp_path / "x.npy", ("f4", (2, "D")), **TOLD)
    assert isinstance(found, np.memmap) and (found == GOOD["means"]).all()
    np.save(tmp_path / "x.npy", np.zeros((0, 3), np.float32))
    assert open_npy(tmp_path / "x.npy", ("f4", (0, "D")), **TOLD).shape == (0, 3)


@pytest.mark.parametrize(
    "note",
    ["[", "[" * 10_000, '{"a": NaN}', '{"a": 1, "a": 2}', "1" * 5000],
    ids=["cut", "deep", "NaN", "twice", "long"],
)
def test_metadata_that_is_no_json(note, tmp_path):
    (tmp_path / "x").write_bytes(save(GOOD, {"thoraclip": note}))
    with pytest.raises(ManifestError, match="x: not valid JSON"):
        read_safetensors(tmp_path / "x", EXPECTED, **TOLD)
    (tmp_path / "x").write_bytes(save(GOOD))
    with pytest.raises(ManifestError, match="no 'thoraclip'"):
        read_safetensors(tmp_path / "x", EXPECTED, **TOLD)


@pytest.mark.parametrize(("write", "read"), WAYS, ids=["npz", "safetensors"])
def test_all_arrays_together_are_bounded(write, read, tmp_path, monkeypatch):
    write(tmp_path / "x", GOOD)
    monkeypatch.setattr(array_files, "MOST_BYTES", 6 * 4 + 9 * 4 + 2 * 8)
    assert read(tmp_path / "x").keys() == GOOD.keys()
    monkeypatch.setattr(array_files, "MOST_BYTES", 6 * 4 + 9 * 4 + 2 * 8 - 1)
    with pytest.raises(ManifestError, match="more than 75 bytes"):
        read(tmp_path / "x")
