"""Captions: the class only where it may be told, the same words whatever the order, the same bytes after a kill."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from tests import forked
from tests.checkpoints import save_blip
from tests.conftest import examples

from thoraclip.cli.app import run
from thoraclip.errors import ConfigError, InputError, ManifestError, MismatchError, ModelError
from thoraclip.methods import caption as module
from thoraclip.methods.caption import CaptionConfig, caption
from thoraclip.models.captioner import Captioner
from thoraclip.tables.captions import read_captions
from thoraclip.tables.manifest import Manifest, read_manifest, write_manifest

TEMPLATE = CaptionConfig(captioner="template")


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_blip(tmp_path_factory.mktemp("checkpoints") / "blip")


@pytest.fixture
def split(manifest: Manifest) -> Manifest:
    """The manifest with a split of five train, one val and two test images a class, and reports."""
    parts = (["train"] * 5 + ["val"] + ["test"] * 2) * 3
    plain = manifest.with_columns(
        fold=[None] * 24,
        patient=[None] * 24,
        split=parts,
        view=["PA", "AP", None, "PA", "lateral", "PA", "AP", None] * 3,
    )
    return plain.with_columns(
        report=[f" Report {i}. \n" for i in range(24)],
        finding_side=["both", "left", None, "right"] * 6,
        finding_zone=["peripheral", None, None, "lower"] * 6,
    )


def by_blip(model: Path, **other: Any) -> CaptionConfig:
    return CaptionConfig(**({"model": str(model), "precision": "fp32", "max_new_tokens": 8, "batch_size": 4} | other))


def stop_after(rows: int) -> Any:
    def progress(done: int, total: int) -> None:
        if done >= rows:
            raise KeyboardInterrupt

    return progress


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that the model is asked for."""
    sizes: list[int] = []
    once = Captioner.caption

    def counted(self: Captioner, greys: np.ndarray, *, check: bool = False) -> list[str]:
        assert check == (not sizes or sizes[-1] == -1), "the gate looks at the first batch"
        sizes.append(len(greys))
        return once(self, greys, check=check)

    monkeypatch.setattr(Captioner, "caption", counted)
    return sizes


class TestBlip:
    def test_every_image_gets_the_text_of_its_own_picture(self, blip: Path, manifest: Manifest, tmp_path: Path) -> None:
        done = caption(manifest, by_blip(blip), tmp_path / "c.parquet")
        assert done == read_captions(tmp_path / "c.parquet")
        assert done.image_id == tuple(manifest.column("image_id"))
        assert done.sha256 == tuple(manifest.column("sha256"))
        assert set(done.with_label) == {False}
        assert len(set(done.text)) > 12
        order = np.random.default_rng(0).permutation(24)
        seen: list[Sequence[int]] = []
        config = by_blip(blip, batch_size=7)
        again = caption(manifest.take(order), config, tmp_path / "d.parquet", progress=lambda *at: seen.append(at))
        assert seen == [(7, 24), (14, 24), (21, 24), (24, 24)]
        assert dict(zip(again.image_id, again.text, strict=True)) == dict(zip(done.image_id, done.text, strict=True))
        assert {f.name for f in tmp_path.glob("*.parquet*")} == {"c.parquet", "d.parquet"}, "no journal stays"

    @pytest.mark.parametrize("rows", [4, 24])
    def test_an_interrupted_pass_goes_on_and_ends_with_the_same_bytes(
        self, rows: int, blip: Path, manifest: Manifest, tmp_path: Path, asked: list[int]
    ) -> None:
        caption(manifest, by_blip(blip), tmp_path / "whole.parquet")
        out = tmp_path / "broken.parquet"
        asked.append(-1)
        with pytest.raises(KeyboardInterrupt):
            caption(manifest, by_blip(blip), out, progress=stop_after(rows))
        assert not out.exists()
        journal = lines(tmp_path / "broken.parquet.journal")
        assert set(json.loads(journal[0])) == {"schema", "token"}
        assert [set(json.loads(line)) for line in journal[1:]] == [{"image_id", "text"}] * rows
        asked.append(-1)
        caption(manifest, by_blip(blip), out)
        assert asked[asked.index(-1) + rows // 4 + 2 :] == [4] * (6 - rows // 4), "finished batches are not asked again"
        assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
        assert not (tmp_path / "broken.parquet.journal").exists()

    @pytest.mark.parametrize("cut", [1, 75])
    def test_a_torn_journal_is_used_up_to_its_last_whole_batch(
        self, cut: int, blip: Path, manifest: Manifest, tmp_path: Path
    ) -> None:
        caption(manifest, by_blip(blip), tmp_path / "whole.parquet")
        out, journal = tmp_path / "broken.parquet", tmp_path / "broken.parquet.journal"
        with pytest.raises(KeyboardInterrupt):
            caption(manifest, by_blip(blip), out, progress=stop_after(12))
        journal.write_bytes(journal.read_bytes()[:-cut])
        seen: list[int] = []
        caption(manifest, by_blip(blip), out, progress=lambda done, total: seen.append(done))
        assert (seen[0], seen[-1]) == ((16 if cut == 1 else 12), 24), "without its newline alone a line is whole"
        assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()

    @pytest.mark.parametrize("other", [{"batch_size": 3}, {"max_new_tokens": 9}])
    def test_a_journal_of_other_work_is_passed_over(
        self, other: dict[str, Any], blip: Path, manifest: Manifest, tmp_path: Path
    ) -> None:
        out, seen = tmp_path / "c.parquet", []
        with pytest.raises(KeyboardInterrupt):
            caption(manifest, by_blip(blip), out, progress=stop_after(12))
        caption(manifest, by_blip(blip, **other), out, progress=lambda done, total: seen.append(done))
        assert seen[0] == other.get("batch_size", 4)

    def test_a_foreign_line_or_file_ends_what_is_used(self, blip: Path, manifest: Manifest, tmp_path: Path) -> None:
        caption(manifest, by_blip(blip), tmp_path / "whole.parquet")
        out, journal = tmp_path / "c.parquet", tmp_path / "c.parquet.journal"
        with pytest.raises(KeyboardInterrupt):
            caption(manifest, by_blip(blip), out, progress=stop_after(12))
        kept = lines(journal)
        for strange in ("[]", '{"image_id":"other","text":"x"}', json.dumps({**json.loads(kept[6]), "text": 7})):
            journal.write_text("\n".join([*kept[:6], strange, *kept[7:]]) + "\n", encoding="utf-8")
            seen: list[int] = []
            with pytest.raises(KeyboardInterrupt):
                caption(
                    manifest, by_blip(blip), out, progress=lambda d, t, seen=seen: (seen.append(d), stop_after(8)(d, t))
                )
            assert seen == [8]
        journal.write_text("", encoding="utf-8")
        caption(manifest, by_blip(blip), out)
        assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()

    def test_a_death_between_the_file_and_the_end_of_the_journal_is_mended(
        self, blip: Path, manifest: Manifest, tmp_path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "c.parquet"
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                caption(manifest, by_blip(blip), out)
        written, before = out.read_bytes(), len(asked)
        caption(manifest, by_blip(blip), out)
        assert (out.read_bytes(), len(asked)) == (written, before)
        assert not (tmp_path / "c.parquet.journal").exists()

    def test_a_finished_file_is_used_again_while_it_is_the_same_work(
        self, blip: Path, split: Manifest, tmp_path: Path, asked: list[int]
    ) -> None:
        out = tmp_path / "c.parquet"
        done = caption(split, by_blip(blip), out)
        asked.append(-1)
        again = split.with_columns(split=["test"] * 24)
        assert caption(again, by_blip(blip), out) == done, "the split does not matter while no class is told"
        assert asked[-1] == -1
        for manifest, config in (
            (split, by_blip(blip, append_label=True)),
            (split.with_columns(label=split.column("label")[::-1]), by_blip(blip, append_label=True)),
            (split.with_columns(split=["train"] * 24), by_blip(blip, append_label=True)),
            (split, by_blip(blip, prompt="a")),
            (split.take(np.arange(20)), by_blip(blip)),
            (split.take(np.arange(20)), by_blip(save_blip(tmp_path / "other", seed=4))),
        ):
            asked.append(-1)
            caption(manifest, config, out)
            assert asked[-1] != -1

    def test_the_pixel_cache_changes_no_bit(self, blip: Path, own_manifest: Manifest, tmp_path: Path) -> None:
        manifest = own_manifest
        caption(manifest, by_blip(blip), tmp_path / "direct.parquet")
        caption(manifest, by_blip(blip), tmp_path / "cached.parquet", pixels=tmp_path / "pixels")
        for path in manifest.paths():
            path.unlink()  # a warm cache needs no picture
        caption(manifest, by_blip(blip), tmp_path / "warm.parquet", pixels=tmp_path / "pixels")
        assert len({(tmp_path / f"{name}.parquet").read_bytes() for name in ("direct", "cached", "warm")}) == 1

    def test_the_settings_reach_the_model(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Any] = []
        monkeypatch.setattr(module, "load_captioner", lambda *model, **given: asked.append((*model, given)) or 1 / 0)
        settings = {"prompt": "a", "max_new_tokens": 7, "geometry": "pad", "precision": "bf16"}
        with pytest.raises(ZeroDivisionError):
            caption(Manifest.from_rows([{"image_id": "a", "path": "a"}], tmp_path), CaptionConfig(model="m", **settings), tmp_path / "c.parquet")  # type: ignore[arg-type]  # fmt: skip
        assert asked == [("m", settings)]

    def test_a_model_without_words_is_refused(self, manifest: Manifest, tmp_path: Path) -> None:
        silent = by_blip(save_blip(tmp_path / "silent", silent=True))
        first = manifest.column("image_id")[0]
        with pytest.raises(ModelError, match=f"has no words for image '{first}'; begin its captions with a --prompt"):
            caption(manifest, silent, tmp_path / "c.parquet")
        assert not (tmp_path / "c.parquet").exists()
        prompted = caption(manifest, by_blip(tmp_path / "silent", prompt="a heart"), tmp_path / "c.parquet")
        assert set(prompted.text) == {"a heart"}


class TestTemplate:
    def test_the_finding_is_told_where_it_is_known(self, split: Manifest, tmp_path: Path) -> None:
        text = caption(split, TEMPLATE, tmp_path / "c.parquet").text
        assert text[0].endswith(", finding in the peripheral zone of both lungs.")
        assert text[1].endswith(", finding in the left lung.")
        assert text[3].endswith(", finding in the lower zone of the right lung.")
        upper = split.with_columns(finding_side=[None] * 24, finding_zone=["upper"] * 24)
        assert (
            caption(upper, TEMPLATE, tmp_path / "d.parquet")
            .text[0]
            .endswith(", finding in the upper zone of the lungs.")
        )
        scored = [t for t, s in zip(text, split.column("split"), strict=True) if s != "train"]
        assert not any("finding" in t for t in (text[2], *scored)), (
            "unknown is not negative, and the scored are not told"
        )

    def test_the_view_is_told_where_it_is_known(self, split: Manifest, tmp_path: Path) -> None:
        done = caption(split, TEMPLATE, tmp_path / "c.parquet")
        for text, view in zip(done.text, split.column("view"), strict=True):
            names = {"PA": ("PA", "posteroanterior"), "AP": ("AP", "anteroposterior"), "lateral": ("lateral view",)}
            for known, words in names.items():
                assert any(word in text for word in words) == (view == known), text

    def test_a_text_says_nothing_of_classes_that_may_not_be_told(self, split: Manifest, tmp_path: Path) -> None:
        """The scored images' captions do not change when all labels do, nor any where no label is known."""
        other = split.with_columns(label=split.column("label")[8:] + split.column("label")[:8])
        one, two = (caption(m, TEMPLATE, tmp_path / f"{i}.parquet") for i, m in enumerate((split, other)))
        for row, s in enumerate(split.column("split")):
            assert (one.text[row] != two.text[row]) == one.with_label[row] == (s == "train")
        blind = caption(split.with_columns(label=[None] * 24), TEMPLATE, tmp_path / "blind.parquet")
        assert set(blind.with_label) == {False}
        assert not any(word in t for t in blind.text for word in ("COVID", "pneumonia", "abnormality", "normal lungs"))

    @examples(20, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(order=st.permutations(range(24)), seed=st.integers(0, 2**32 - 1))
    def test_words_hang_on_seed_and_id_alone(
        self, order: list[int], seed: int, split: Manifest, tmp_path: Path
    ) -> None:
        config = CaptionConfig(captioner="template", seed=seed)
        whole = caption(split, config, tmp_path / "a.parquet")
        mixed = caption(split.take(np.array(order[:15])), config, tmp_path / "c.parquet")
        assert list(mixed.text) == [whole.text[row] for row in order[:15]]

    def test_the_words_are_these(self, split: Manifest, tmp_path: Path) -> None:
        """Golden: another version of Python or of this package must write the same."""
        assert caption(split, TEMPLATE, tmp_path / "c.parquet").text[:4] == GOLDEN
        other = CaptionConfig(captioner="template", seed=1)
        assert caption(split, other, tmp_path / "c.parquet").text[:4] != GOLDEN


GOLDEN = (
    "posteroanterior chest radiograph with COVID-19, finding in the peripheral zone of both lungs.",
    "AP chest film with COVID-19 pneumonia, finding in the left lung.",
    "chest radiograph showing COVID-19 pneumonia.",
    "PA chest X-ray of a patient with COVID-19, finding in the lower zone of the right lung.",
)


class TestLabel:
    def test_it_is_appended_to_the_training_split_alone(self, split: Manifest, tmp_path: Path) -> None:
        config = CaptionConfig(captioner="column", column="report", append_label=True)
        done = caption(split, config, tmp_path / "c.parquet")
        for row, (s, label) in enumerate(zip(split.column("split"), split.column("label"), strict=True)):
            assert done.text[row] == f"Report {row}." + (f", {label}" if s == "train" else "")
            assert done.with_label[row] == (s == "train")

    def test_everywhere_is_everywhere_that_a_label_is_known(self, manifest: Manifest, tmp_path: Path) -> None:
        labels = [None, *manifest.column("label")[1:]]
        partly = manifest.with_columns(label=labels, report=["text"] * 24)
        config = CaptionConfig(captioner="column", column="report", append_label=True, everywhere=True)
        done = caption(partly, config, tmp_path / "c.parquet")
        assert done.with_label == (False, *[True] * 23)
        assert done.text == ("text", *[f"text, {label}" for label in labels[1:]])
        told = caption(partly, CaptionConfig(captioner="template", everywhere=True), tmp_path / "d.parquet")
        assert told.with_label == done.with_label

    @pytest.mark.parametrize("config", [TEMPLATE, CaptionConfig(captioner="blip", append_label=True)])
    def test_without_a_training_split_the_remedy_is_named(
        self, config: CaptionConfig, manifest: Manifest, split: Manifest, tmp_path: Path
    ) -> None:
        rule = "so there is no training split whose captions may name the class; .*append_label=true.* --everywhere"
        for images, reason in (
            (manifest, "has folds"),
            (manifest.with_columns(fold=[None] * 24), "no image is in split train"),
            (split.with_columns(split=["test"] * 24), "no image is in split train"),
            (split.with_columns(fold=[0] * 24), "has folds"),
        ):
            with pytest.raises(ConfigError, match=f"{reason}, {rule}"):
                caption(images, config, tmp_path / "c.parquet")
        assert not (tmp_path / "c.parquet").exists()

    def test_blip_gets_it_too(self, blip: Path, split: Manifest, tmp_path: Path) -> None:
        plain = caption(split, by_blip(blip), tmp_path / "c.parquet")
        done = caption(split, by_blip(blip, append_label=True), tmp_path / "d.parquet")
        for row, label in enumerate(split.column("label")):
            assert done.text[row] == plain.text[row] + (f", {label}" if done.with_label[row] else "")
        assert (done.origin["append_label"], done.origin["everywhere"]) == (True, False)


class TestColumn:
    CONFIG = CaptionConfig(captioner="column", column="report")

    def test_texts_are_taken_over_and_joined_by_id(self, split: Manifest, tmp_path: Path) -> None:
        done = caption(split, self.CONFIG, tmp_path / "c.parquet")
        assert done.text == tuple(f"Report {i}." for i in range(24))
        assert set(done.with_label) == {False}
        assert done.origin == {"captioner": "column", "column": "report", "append_label": False, "everywhere": False}
        order, read = np.array([7, 3]), read_captions(tmp_path / "c.parquet")
        rows = read.rows_for(split.take(np.arange(24)[::-1]), order)
        assert [read.text[row] for row in rows] == ["Report 16.", "Report 20."]
        with pytest.raises(MismatchError, match="belong to another manifest"):
            done.rows_for(split.take(order), np.arange(2))

    def test_an_empty_cell_names_its_image(self, split: Manifest, tmp_path: Path) -> None:
        empty = split.with_columns(report=["a", " ", None, *["b"] * 21])
        second = split.column("image_id")[1]
        rule = rf"image '{second}' has no text in column 'report' \(2 such images\); fill it in"
        with pytest.raises(ManifestError, match=rule):
            caption(empty, self.CONFIG, tmp_path / "c.parquet")

    def test_a_column_that_is_not_there_or_no_text_is_refused(self, split: Manifest, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match="no column 'reprot'; did you mean 'report'"):
            caption(split, CaptionConfig(captioner="column", column="reprot"), tmp_path / "c.parquet")
        with pytest.raises(ManifestError, match="column 'width' holds 40, which is no text; name a column of texts"):
            caption(split, CaptionConfig(captioner="column", column="width"), tmp_path / "c.parquet")


def test_another_table_is_not_overwritten(split: Manifest, tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.parquet", split)
    before = (tmp_path / "m.parquet").read_bytes()
    with pytest.raises(ManifestError, match="holds manifest, not captions"):
        caption(split, TEMPLATE, tmp_path / "m.parquet")
    assert (tmp_path / "m.parquet").read_bytes() == before
    with pytest.raises(InputError, match=r"c.csv: captions are a Parquet file; name it c.parquet"):
        caption(split, TEMPLATE, tmp_path / "c.csv")


class TestCommand:
    @pytest.fixture
    def split_file(self, split: Manifest, tmp_path: Path) -> Path:
        write_manifest(tmp_path / "s.parquet", split)
        return tmp_path / "s.parquet"

    def arguments(self, split_file: Path, *more: str) -> list[str]:
        return ["caption", str(split_file), "--out", str(split_file.with_name("c.parquet")), *more]

    def test_the_end_tells_counts_and_three_examples(
        self, split_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(self.arguments(split_file, "--captioner", "column", "--column", "report", "--append-label")) == 0
        told = capsys.readouterr().err.splitlines()
        ids = read_manifest(split_file).column("image_id")
        assert told == [
            f"24 captions, 24 different, the class told in 15 -> {split_file.with_name('c.parquet')}; for example",
            f"  {ids[0]}: Report 0., COVID-19",
            f"  {ids[8]}: Report 8., Non-COVID",
            f"  {ids[16]}: Report 16., Normal",
        ]

    def test_everywhere_warns_in_one_line(self, split_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(self.arguments(split_file, "--captioner", "template", "--everywhere")) == 0
        told = capsys.readouterr().err.splitlines()
        assert told[0] == module.EVERYWHERE_LEAKS
        assert "append_label=true" in told[0]
        assert "the class told in 24" in told[1]

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--captioner", "blip", "--model", "tiny-clip"], "type 'clip' is no captioner; name a BLIP model"),
            (["--captioner", "blip", "--model", "tiny-clop"], "model 'tiny-clop': no such folder or shipped model"),
            (["--captioner", "template", "--append-label"], "captioner 'template' names the class already"),
            (["--captioner", "column", "--column", "phash2"], "no column 'phash2'; did you mean 'phash'?"),
            ([], "Missing option '--captioner'"),
        ],
    )
    def test_a_mistake_is_one_line(
        self, more: list[str], message: str, split_file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(self.arguments(split_file, *more)) == 2
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 1 and told[0].startswith("error: ")
        assert message in told[0]
        assert not split_file.with_name("c.parquet").exists()

    def test_a_changed_picture_is_found(self, blip: Path, split_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        manifest = read_manifest(split_file)
        contents = list(manifest.column("sha256"))
        contents[20] = contents[0]
        write_manifest(split_file, manifest.with_columns(sha256=contents))
        assert run(self.arguments(split_file, "--captioner", "blip", "--model", str(blip), "--batch-size", "8")) == 2
        assert "its content changed since it was indexed" in capsys.readouterr().err

    def test_killed_it_ends_with_the_same_bytes(self, blip: Path, split_file: Path, tmp_path: Path) -> None:
        arguments = ["caption", str(split_file), "--captioner", "blip", "--model", str(blip), "--append-label"]
        arguments += ["--precision", "fp32", "--batch-size", "2", "--out"]
        assert run([*arguments, str(tmp_path / "whole.parquet")]) == 0
        out, journal = tmp_path / "broken.parquet", tmp_path / "broken.parquet.journal"
        killed = forked.start(killed_at_batch, 3, [*arguments, str(out)])
        killed.join(120)
        assert killed.exitcode == -signal.SIGKILL
        assert len(lines(journal)) == 1 + 4
        assert not out.exists()
        assert run([*arguments, str(out)]) == 0
        assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
        assert pq.read_table(out).num_rows == 24
        assert not journal.exists()


def killed_at_batch(number: int, arguments: list[str]) -> int:
    """The command, which dies as it begins this batch of its own, from 1."""
    once, begun = Captioner.caption, []

    def dies(self: Captioner, greys: np.ndarray, *, check: bool = False) -> list[str]:
        begun.append(1)
        if len(begun) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return once(self, greys, check=check)

    Captioner.caption = dies  # type: ignore[method-assign]
    return run(arguments)
