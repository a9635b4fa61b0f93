"""Whoever scores, the rows are the same: threads, and the actors of a Ray cluster, which may be at home elsewhere."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from PIL import Image
from tests.actors import needs_ray
from tests.bundle.conftest import Workshop
from tests.conftest import draw_picture

import thoraclip
from thoraclip.bundle import scoring
from thoraclip.bundle.runtime import BundleClassifier
from thoraclip.errors import ConfigError, MismatchError

COUNT = 40


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pictures/00.png`, ...: 40 of them, two damaged."""
    root = tmp_path_factory.mktemp("home")
    (root / "pictures").mkdir()
    for i in range(COUNT):
        Image.fromarray(draw_picture(48, 40, seed=i)).save(root / "pictures" / f"{i:02d}.png")
    for i in (3, 17):
        (root / "pictures" / f"{i:02d}.png").write_bytes(b"no picture")
    return root


@pytest.fixture(scope="module")
def bundle(workshop: Workshop) -> Path:
    return workshop.bundle("probe-first-fit")


def scored(out: Path, bundle: Path, **settings: object) -> bytes:
    """The table of the folder `pictures` of the working folder."""
    thoraclip.predict(bundle, "pictures", out=out, **settings)
    return out.read_bytes()


@pytest.fixture
def near(bundle: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The table of one process, at home where the pictures are."""
    monkeypatch.chdir(home)
    return scored(tmp_path / "near.csv", bundle)


@pytest.mark.parametrize("done", [0, 20])
def test_an_actor_that_is_at_home_elsewhere_gives_the_same_rows(
    done: int, bundle: Path, near: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all pictures, and of those that are left of a table that threads began."""
    usual, seen, home = BundleClassifier.classify_each, list[Path](), Path.cwd()

    def until_done(self, sources, depths):
        if len(seen) >= done:
            raise KeyboardInterrupt
        seen.extend(sources)
        return usual(self, sources, depths)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BundleClassifier, "classify_each", until_done)
        scored(tmp_path / "far.csv", bundle, threads=1)

    def over_ray(make, shards, *, workers):
        listed = list(shards)
        monkeypatch.chdir(tmp_path)
        work = make(1)
        for shard in listed:
            yield work({name: shard[name].to_numpy(zero_copy_only=False) for name in shard.column_names})
        monkeypatch.chdir(home)

    monkeypatch.setattr(scoring, "over_ray", over_ray)
    monkeypatch.setattr("thoraclip.engine.find_spec", lambda name: True)
    monkeypatch.setattr(scoring, "_SHARD", 7)
    summary = thoraclip.predict(bundle, "pictures", out=tmp_path / "far.csv", engine="ray")
    assert summary.resumed == max(0, done - 2), "the two that cannot be read are tried again"
    assert (tmp_path / "far.csv").read_bytes() == near
    lines = near.decode().splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == [f"pictures/{i:02d}.png" for i in range(COUNT)]
    assert [i for i, line in enumerate(lines) if not line.endswith(",")] == [3, 17]  # the reasons


def test_another_bundle_is_refused_by_an_actor(bundle: Path) -> None:
    with pytest.raises(MismatchError, match="is another bundle on a machine of the cluster"):
        scoring._actor(str(bundle), "0" * 64, "/", None, {}, 1)


def test_threads_with_actors_are_refused(bundle: Path, home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--threads 2: an actor of --engine ray has its share of the processors"):
        thoraclip.predict(bundle, home / "pictures", out=tmp_path / "t.csv", engine="ray", threads=2)
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.slow
@needs_ray
def test_two_actors_of_a_cluster_give_the_rows_of_one_process(
    bundle: Path, near: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What becomes of one that dies is tested where features are made."""
    import ray

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setattr(scoring, "_SHARD", 2)
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    with ray.init(num_cpus=2, num_gpus=0, object_store_memory=80 * 2**20, **quiet):
        assert scored(tmp_path / "far.csv", bundle, engine="ray", workers=2) == near
