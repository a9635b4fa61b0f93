"""A bundle is whole and unchanged, or it is refused with the remedy."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from tests.bundle.conftest import Workshop
from tests.conftest import examples, files

from thoraclip.bundle import format as bundle
from thoraclip.bundle.format import read_bundle
from thoraclip.bundle.opening import open_bundle
from thoraclip.bundle.seal import read_seal, seal
from thoraclip.errors import InputError, MismatchError, ParityError

GOLDEN = Path(__file__).parent / "golden" / "bundle-1"


@pytest.fixture
def copy(workshop: Workshop, tmp_path: Path) -> Path:
    """A bundle to break."""
    return Path(shutil.copytree(workshop.bundle("probe"), tmp_path / "bundle"))


@given(st.data())
@examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changed_byte_is_refused(workshop: Workshop, copy: Path, data: st.DataObject) -> None:
    """Also of the checksums themselves; a byte more or less counts, too. The model is loaded while it is checked."""
    name = data.draw(st.sampled_from(sorted(files(workshop.bundle("probe")))) | st.just("model.onnx"))
    content = (workshop.bundle("probe") / name).read_bytes()
    at = data.draw(st.integers(0, len(content) - 1) | st.integers(0, min(len(content), 4000) - 1))
    other = data.draw(st.binary(min_size=1, max_size=1).filter(lambda byte: byte != content[at : at + 1]))
    ways = (content[:at] + other + content[at + 1 :], content[:at], content + other)
    (copy / name).write_bytes(data.draw(st.sampled_from(ways)))
    for read in (
        lambda folder: read_seal(folder).check(),
        open_bundle,
    ):  # the reason is the changed file, and not what has come of it
        with pytest.raises((MismatchError, InputError), match="copy the bundle again, or export it again"):
            read(copy)
    (copy / name).write_bytes(content)
    read_seal(copy).check()
    read_bundle(copy)


def test_a_missing_file_is_named_and_others_beside_are_left_alone(copy: Path, tmp_path: Path) -> None:
    (copy / ".DS_Store").write_bytes(b"x")
    assert open_bundle(copy).bundle.kind == "probe"
    for name in ("model.onnx", "bundle.json", "SHA256SUMS", "self-test.npz", "README.md"):
        (copy / name).rename(tmp_path / "away")
        with pytest.raises(InputError, match=f"{name}: is missing.*copy the bundle again"):
            read_seal(copy).check()
        (tmp_path / "away").rename(copy / name)
    with pytest.raises(InputError, match="nowhere: no such folder; name a folder that `thoraclip export RUN"):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no bundle there"):
        open_bundle(tmp_path)


def _rewrite(folder: Path, **changes: object) -> None:
    facts = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(facts | changes))
    seal(folder)


def rewrite(folder: Path, **changes: object) -> None:
    """Of `bundle.json`, as if it had been written so."""
    facts = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(facts | changes))
    seal(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": bundle.SCHEMA + 1}, r"schema 2, written by thoraclip .*, .*reads up to 1; upgrade: pip install -U"),
        ({"schema": 0}, "schema = 0: a whole number of 1 or more is needed; export the run again"),
        ({"labels": 3}, "labels = 3: a list of 2 to 1000 is needed; export the run again"),
        ({"schema": "one"}, "schema = .one.: a whole number of 1 or more is needed"),
        (
            {"preprocess": {"size": 0}},
            "preprocess.geometry|preprocess.size = 0: a whole number from 1 to 4096 is needed; export the run again",
        ),
    ],
)
def test_a_later_schema_or_nonsense_tells_the_remedy(copy: Path, changes: dict[str, object], message: str) -> None:
    rewrite(copy, **changes)
    with pytest.raises(MismatchError, match=message):
        read_bundle(copy)


def test_a_class_of_too_few_images_is_never_ruled_out(copy: Path) -> None:
    facts = json.loads((copy / "bundle.json").read_text())
    facts["sets"]["threshold"] |= {"COVID-19": 0.5, "Normal": None}
    rewrite(copy, **facts)
    found = read_bundle(copy)
    assert found.sets is not None and found.sets.threshold[[0, 2]].tolist() == [0.5, np.inf]


def test_the_checksums_are_those_of_sha256sum(workshop: Workshop) -> None:
    bundle = workshop.bundle("probe")
    command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    done = subprocess.run(command, cwd=bundle, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr
    names = {line.split("  ")[1] for line in (bundle / "SHA256SUMS").read_text().splitlines()}
    assert names == set(files(bundle)) - {"SHA256SUMS"}


def test_a_bundle_of_schema_1_is_read_for_ever() -> None:
    """Made once by `scripts/make_golden_bundle.py`; its answers stand beside it."""
    told = json.loads((GOLDEN / "answers.json").read_text())
    opened = open_bundle(GOLDEN / "bundle")
    greys, _ = opened.bundle.self_test()
    for grey, answer in zip(greys, told["answers"], strict=True):
        found = opened.classify_grey(grey)
        assert found.label == answer["label"] and list(found.set or ()) == answer["set"] and found.ood == answer["ood"]
        for name, score in answer["scores"].items():
            assert found.scores[name] == pytest.approx(score, abs=1e-3)


def test_a_machine_that_computes_other_scores_or_cannot_load_the_model_is_told(copy: Path) -> None:
    greys, scores = read_bundle(copy).self_test()
    bundle.write_self_test(copy, greys, np.roll(scores, 1, axis=1))
    seal(copy)
    with pytest.raises(ParityError, match=r"on this machine its scores differ by .*, more than 0.001; upgrade onnxrun"):
        open_bundle(copy)
    (copy / "model.onnx").write_bytes(b"\x08\x0anot a model")
    seal(copy)
    with pytest.raises(MismatchError, match=r"ONNX Runtime .* cannot load it .*; upgrade: pip install -U onnxruntime"):
        open_bundle(copy)
