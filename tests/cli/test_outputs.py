"""Commands that are killed at any call that changes files, or that meet another writer or other people's files."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from tests.cli.interrupted import killed_before, run_on_a_full_disk
from tests.conftest import IS_DEEP, files
from tests.forked import finish
from tests.test_locks import BUSY, Holder

from thoraclip.cli.app import COMMANDS, run
from thoraclip.data.index import index
from thoraclip.data.phantom import PhantomConfig, write_phantoms
from thoraclip.tables.manifest import write_manifest

_STUDY = (
    'manifest = "{manifest}"\nmodel = "tiny-clip"\nresamples = 100\naudit = "none"\n'
    '[[methods]]\nname = "zero"\nkind = "zeroshot"\n[[methods]]\nname = "trivial"\nkind = "trivial"\n'
)
COMMAND: dict[str, tuple[str, str]] = {
    "index": ("index {images} --layout covid-qu-ex --out {out}/m.parquet", ""),
    "check": ("check {manifest} --out {out}", "--seed 1"),
    "select": ("select {manifest} --where label==Normal --out {out}/m.parquet", ""),
    "join": ("join {manifest} {second} --out {out}/m.parquet", ""),
    "overlap": ("overlap {manifest} {manifest} --out {out}", ""),
    "split": ("split {manifest} --folds 3 --out {out}/m.parquet", "--seed 1"),
    "card": ("card {manifest} --out {out}", "--set name=old"),
    "phantom": ("phantom {out} --images 3 --size 32", ""),
    "caption": ("caption {manifest} --captioner template --out {out}/c.parquet", "--seed 1"),
    "embed": ("embed {manifest} --model tiny-clip --out {out}", "--geometry pad"),
    "zeroshot": ("zeroshot {manifest} --out {out} --set model=tiny-clip", "--set prompts=reference"),
    "trivial": ("trivial {manifest} --out {out}", "--set seed=1"),
    "report": ("report {run} --resamples 100 --out {out}", "--title old"),
    "audit": ("audit {run} --out {out} --set images=12", "--set seed=1"),
    "explain": ("explain {run} {image} --seen --out {out}/e.png", "--seed 1"),
    "export": ("export {run} --out {out}", "--seed 1"),
    "merge": ("merge {run} --out {out}", "--images 8"),
    "study": ("study {study} --out {out}", "--set seeds=[1]"),
    "demo": ("demo --images 60 --out {out}", ""),
}
"""Name -> the command, and what more is said to it to make the old result."""
TOGETHER = {
    "report": "report.*",
    "check": "check.*",
    "card": "[dc]*",
    "index": "m.*",
    "join": "m.*",
    "audit": "audit.*",
}
"""Files that change together."""
QUICK = ("index", "split", "card", "phantom")
KILLED = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in COMMAND
    if name not in ("demo", "explain")
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Phantoms, their manifest, a finished run, and a study."""
    root = tmp_path_factory.mktemp("outputs")
    images = write_phantoms(root / "phantoms", PhantomConfig(images=24, size=48, seed=1)).root
    write_manifest(root / "m.parquet", index(images, layout="covid-qu-ex").manifest)
    (root / "second.parquet").write_bytes((root / "m.parquet").read_bytes())
    given = {
        "images": images,
        "manifest": root / "m.parquet",
        "second": root / "second.parquet",
        "run": root / "run",
        "study": root / "s.toml",
    }
    (root / "s.toml").write_text(_STUDY.format(**given))
    assert run(["zeroshot", str(root / "m.parquet"), "--out", str(root / "run"), "--set", "model=tiny-clip"]) == 0
    return {**{name: str(place) for name, place in given.items()}, "image": str(next(images.rglob("*.png")))}


def command(name: str, places: dict[str, str], out: Path, *, is_old: bool = False) -> list[str]:
    text, old = COMMAND[name]
    return [part.format(out=out, **places) for part in f"{text} {old if is_old else ''}".split()]


def test_every_command_with_an_out_stands_in_the_table() -> None:
    methods = {"finetune", "probe", "baseline"}  # as the other methods
    assert {c.title for c in COMMANDS} - methods - {"predict", "serve"} == set(COMMAND)


@pytest.mark.parametrize("name", COMMAND)
def test_a_second_writer_is_one_line(
    name: str, places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(name, places, tmp_path / "out")
    place = next(Path(word) for word in words if word.startswith(str(tmp_path / "out")))
    holder = Holder(place)
    assert run(words) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {place}: {BUSY}"
    holder.end()
    assert not list(tmp_path.rglob("*"))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", KILLED)
def test_killed_anywhere_it_ends_as_if_it_had_not_been(name: str, places: dict[str, str], tmp_path: Path) -> None:
    out, old = tmp_path / "out", tmp_path / "old"
    words = command(name, places, out)
    if COMMAND[name][1]:
        assert run(command(name, places, out, is_old=True)) == 0
        out.rename(old)

    def begin() -> dict[str, bytes]:
        shutil.rmtree(out, ignore_errors=True)
        if old.is_dir():
            shutil.copytree(old, out)
        return files(out) if out.is_dir() else {}

    before = begin()
    done = finish(killed_before, words, 10**9)
    assert done.returncode == 0, done.stderr
    calls, after = int(done.stderr.splitlines()[-1]), files(out)
    numbers = (
        range(1, calls + 1)
        if IS_DEEP and name in QUICK
        else sorted({*range(3, calls, max(1, calls // 6)), calls - 1, calls})
    )
    for number in numbers:
        begin()
        assert finish(killed_before, words, number).returncode == -9
        seen = files(out) if out.is_dir() else {}
        together = {file.name for place in (old, out) if place.is_dir() for file in place.glob(TOGETHER.get(name, "-"))}
        states = [{n: state[n] for n in together if n in state} for state in (seen, before, after)]
        if not any(n.endswith(".thoraclip-set") for n in seen):
            assert states[0] in states[1:] or name == "index", f"killed before call {number} of {calls}"
        assert run(words) == 0
        assert files(out) == after, f"after a kill before call {number} of {calls}"
        assert not [p for p in tmp_path.rglob("*") if "thoraclip-" in p.name]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("name", ["card", "split"])
def test_told_to_end_anywhere_it_leaves_nothing(
    name: str, end: signal.Signals, places: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = command(name, places, out)
    done = finish(killed_before, words, 10**9)
    calls, after = int(done.stderr.splitlines()[-1]), files(out)
    for number in range(1, calls + 1):
        shutil.rmtree(out)
        ended = finish(killed_before, words, number, end)
        assert ended.returncode == 130, f"before call {number} of {calls}: {ended.stderr}"
        assert ended.stderr.splitlines()[-2] == "interrupted; run the same command again to go on"
        assert not [p for p in tmp_path.rglob("*") if "thoraclip-" in p.name], f"before call {number} of {calls}"
        assert run(words) == 0
        assert files(out) == after


OTHERS = {
    "report": ["report.md"],
    "check": ["check.html", "label-errors.html"],
    "overlap": ["overlap.html"],
    "card": ["data-card.md", "croissant.json"],
    "audit": ["audit.json"],
    "zeroshot": ["README.md", "config.toml", "model/weights.bin", "predictions.parquet"],
    "study": ["config.toml", "report.html", "metrics.jsonl"],
    "demo": ["config.toml"],
    "export": ["notes.txt", "bundle.json", "SHA256SUMS"],
    "merge": ["config.json", "notes.txt", "thoraclip.json"],
    "phantom": ["notes.txt"],
    "embed": ["embeddings.json"],
    "join": ["m.join.json"],
    "index": ["m.index.json", "m.facts.jsonl"],
}
"""Command -> names that other people's files may have, too."""


@pytest.mark.parametrize(("name", "file"), [(name, file) for name, names in OTHERS.items() for file in names])
def test_the_files_of_others_are_refused_and_stay(
    name: str, file: str, places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    theirs = {file: json.dumps({"mine": 1}), "diary.txt": "mine", ".diary.part": "mine", "sub/.x.part": "mine"}
    for there, text in theirs.items():
        (out / there).parent.mkdir(parents=True, exist_ok=True)
        (out / there).write_text(text)
    before = files(out)
    assert run(command(name, places, out)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and str(out) in error and ("move it" in error or "name a new" in error)
    assert files(out) == before


FILES = {"select": "m.parquet", "split": "m.parquet", "index": "m.parquet", "caption": "c.parquet", "explain": "e.png"}
"""Command -> the file that it writes in the table above."""


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("theirs", ["run/predictions.parquet", "m.parquet", "s.toml", "image"])
def test_a_file_of_another_kind_is_refused_and_stays(
    name: str, theirs: str, places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if theirs == "m.parquet" == FILES[name]:
        return  # an older manifest, which is replaced
    source = Path(places["image"]) if theirs == "image" else Path(places["manifest"]).parent / theirs
    shutil.copy(source, tmp_path / FILES[name])
    before = files(tmp_path)
    assert run(command(name, places, tmp_path)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {tmp_path / FILES[name]}: ")
    assert files(tmp_path) == before


def test_what_a_command_reads_is_not_its_out(places: dict[str, str], tmp_path: Path) -> None:
    for name, source in (("select", places["manifest"]), ("explain", places["image"])):
        words = command(name, places, tmp_path)
        for link in (False, True):
            place = tmp_path / f"{name}{link}{Path(source).suffix}"
            if link:
                place.symlink_to(source)
            before = Path(source).read_bytes()
            assert run([*words[:-1], str(place) if link else source]) == 2
            assert Path(source).read_bytes() == before


def test_a_run_and_a_study_do_not_replace_each_other(places: dict[str, str], tmp_path: Path) -> None:
    for first, others in {"zeroshot": ("study",), "study": ("zeroshot", "trivial")}.items():
        out = tmp_path / first
        assert run(command(first, places, out)) == 0
        before = files(out)
        for other in others:
            assert run(command(other, places, out)) == 2
            assert files(out) == before


def test_a_name_that_is_too_long_is_one_line(
    places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in COMMAND:
        assert run(command(name, places, tmp_path / ("n" * 300))) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and "(File name too long)" in error
    assert not [*tmp_path.iterdir()]


FULL = (
    "split",
    "card",
    "phantom",
    "report",
    "caption",
    "check",
    pytest.param("audit", marks=pytest.mark.slow),
    pytest.param("export", marks=pytest.mark.slow),
)


@pytest.mark.parametrize("name", FULL)
def test_a_full_disk_is_one_line_and_leaves_the_old_result(name: str, places: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = command(name, places, out)
    if COMMAND[name][1]:
        assert run(command(name, places, out, is_old=True)) == 0
    before = files(out) if out.is_dir() else {}
    results = {n: content for n, content in before.items() if "inspection" not in n and not n.startswith("cache/")}
    full = finish(run_on_a_full_disk, words, 300, env={**os.environ, "COLUMNS": "200"})
    assert full.returncode == 2 and "Traceback" not in full.stderr, full.stderr
    message = full.stderr.splitlines()[-1]
    assert message.startswith("error: ") and "make room" in message
    seen = files(out) if out.is_dir() else {}
    if name != "phantom":  # which goes on from what is there
        assert {n: seen.get(n) for n in results} == results
    assert not [p for p in tmp_path.rglob("*") if "thoraclip-" in p.name]
    assert run(words) == 0
