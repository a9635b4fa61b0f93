"""Whoever encodes, the features are the same bytes, and every image has its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.actors import kill_one, needs_ray
from tests.conftest import files
from tests.methods.processes_worker import command, together

import thoraclip
from thoraclip import ray_pool
from thoraclip.data.batches import picture_source
from thoraclip.errors import ConfigError, InputError, MissingExtraError
from thoraclip.methods import engines
from thoraclip.methods.embed import EncoderConfig, embed, load_encoder
from thoraclip.methods.engines import by_ray, by_threads
from thoraclip.tables.manifest import Manifest, read_manifest

BATCH = 5


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    thoraclip.phantom(root / "phantoms", images=63, size=48)
    thoraclip.index(root / "phantoms", out=root / "m.parquet")
    return root / "m.parquet"


@pytest.fixture(scope="module")
def alone(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By one thread."""
    out = tmp_path_factory.mktemp("alone") / "e"
    manifest, encoder = read_manifest(images), load_encoder(EncoderConfig())
    one = by_threads(encoder, picture_source(manifest, encoder.preprocess), threads=1)
    embed(manifest, encoder, out, batch_size=BATCH, engine=one)
    return out


class TestThreads:
    def test_any_number_gives_the_same_files(self, images: Path, alone: Path, tmp_path: Path) -> None:
        manifest, encoder = read_manifest(images), load_encoder(EncoderConfig())
        usual = torch.get_num_threads()
        some = by_threads(encoder, picture_source(manifest, encoder.preprocess), threads=3)
        embed(manifest, encoder, tmp_path / "e", batch_size=BATCH, engine=some)
        assert files(tmp_path / "e") == files(alone)
        assert torch.get_num_threads() == usual, "given back"

    def test_a_device_that_works_while_it_is_fed_gives_the_same(
        self, images: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The way for GPUs, on the CPU."""
        manifest, encoder = read_manifest(images), load_encoder(EncoderConfig())
        started: list[int] = []
        start, fetch = type(encoder).start, encoder.fetch

        def fetched(found: tuple[torch.Tensor, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
            started.append(-1)
            return fetch(found)

        def begun(self: object, greys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            started.append(1)
            return start(encoder, greys)

        monkeypatch.setattr(type(encoder), "start", begun)
        monkeypatch.setattr(type(encoder), "fetch", staticmethod(fetched))
        pictures = picture_source(manifest, encoder.preprocess)
        there = {"device": torch.device("meta"), "__class__": type(encoder)}  # anything but a CPU
        stand_in = type("Elsewhere", (), {"__getattr__": lambda _, name: there.get(name) or getattr(encoder, name)})()
        embed(manifest, encoder, tmp_path / "e", batch_size=BATCH, engine=by_threads(stand_in, pictures, threads=2))
        assert files(tmp_path / "e") == files(alone)
        assert max(np.cumsum(started)) == 2 and sum(started) == 0, "the next batch is begun before the last is fetched"

    def test_an_unreadable_picture_ends_the_pass_and_keeps_what_is_before_it(
        self, own_manifest: Manifest, tmp_path: Path
    ) -> None:
        manifest = own_manifest
        gone = manifest.paths()[11]
        gone.unlink()
        encoder = load_encoder(EncoderConfig())
        with pytest.raises(InputError, match=f"{gone.name}: cannot be read any more"):
            embed(manifest, encoder, tmp_path / "e", batch_size=BATCH)
        assert '"rows": 10' in (tmp_path / "e" / "progress.json").read_text()

    def test_processes_of_a_launch_share_the_cores(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engines, "cores", lambda: 8)
        assert engines.threads_here() == 8
        monkeypatch.setenv("WORLD_SIZE", "4")
        assert engines.threads_here() == 2
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        assert engines.threads_here() == 4
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
        assert engines.threads_here() == 1


def embed_in_turns(arguments: list[str]) -> int:
    """Two batches of each process between two gatherings, so that there are three turns, and one batch in the last."""
    engines._TURN = 2
    return command(arguments)


class TestProcesses:
    @pytest.mark.slow
    def test_several_give_the_files_of_one(self, images: Path, alone: Path, tmp_path: Path) -> None:
        """63 images in batches of 5: the last is short, and three processes get an uneven number of batches."""
        arguments = ["embed", str(images), "--model", "tiny-clip", "--batch-size", str(BATCH), "--out"]
        ended = together(3, embed_in_turns, [*arguments, str(tmp_path / "e")])
        assert [one.returncode for one in ended] == [0, 0, 0], ended
        assert files(tmp_path / "e") == files(alone)
        assert ["63 images, pooled" in one.stderr for one in ended] == [True, False, False], "the first process speaks"


@pytest.mark.slow
@needs_ray
class TestRay:
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def cluster(cls) -> Iterator[None]:
        """One for all tests."""
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import ray

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()

    def test_two_actors_one_killed_give_the_files_of_one_thread(
        self, images: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engines, "_SHARD", 2)  # seven shards
        monkeypatch.setattr("thoraclip.methods.embed._SECONDS_BETWEEN_WRITES", 0)
        killed = kill_one(lambda _: (tmp_path / "e" / "progress.json").exists())
        seen: list[int] = []
        thoraclip.embed(
            images, model="tiny-clip", out=tmp_path / "e", batch_size=BATCH, engine="ray", workers=2,
            progress=lambda done, total: seen.append(done),
        )  # fmt: skip
        assert killed and seen == sorted(set(seen)) and seen[-1] == 63
        assert files(tmp_path / "e") == files(alone)

    def test_a_pass_that_threads_began_is_ended_by_actors(self, images: Path, alone: Path, tmp_path: Path) -> None:
        manifest, encoder = read_manifest(images), load_encoder(EncoderConfig())
        pictures = picture_source(manifest, encoder.preprocess)

        def some(rows: range) -> np.ndarray:
            if rows.start == 20:
                raise KeyboardInterrupt
            return pictures(rows)

        with pytest.raises(KeyboardInterrupt):
            embed(manifest, encoder, tmp_path / "e", batch_size=BATCH, engine=by_threads(encoder, some, threads=1))
        begun: list[int] = []
        actors = by_ray(EncoderConfig(), manifest, encoder.description, workers=1)
        embed(
            manifest, encoder, tmp_path / "e", batch_size=BATCH,
            engine=lambda batches: (begun.append(batches[0].start), actors(batches))[1],
        )  # fmt: skip
        assert begun == [20] and files(tmp_path / "e") == files(alone)

    def test_what_an_actor_says_is_what_a_thread_would_say(self, own_manifest: Manifest, tmp_path: Path) -> None:
        manifest = own_manifest
        manifest.paths()[0].unlink()
        encoder = load_encoder(EncoderConfig())
        with pytest.raises(InputError, match="cannot be read any more"):
            embed(
                manifest, encoder, tmp_path / "e",
                engine=by_ray(EncoderConfig(), manifest, encoder.description, workers=1),
            )  # fmt: skip

    def test_an_actor_that_is_at_home_elsewhere_finds_a_local_model(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its own working folder is another one, and shipped models are where it has them."""
        for name in ("model", "adapter", "tiny-clip"):
            (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path)
        found = engines._located(EncoderConfig(model="model", adapter="adapter"))
        assert (found["model"], found["adapter"]) == (str(tmp_path / "model"), str(tmp_path / "adapter"))
        for name in ("tiny-clip", "owner/name"):
            assert engines._located(EncoderConfig(model=name))["model"] == name
        assert engines._located(EncoderConfig())["adapter"] == ""

    def test_more_actors_than_processors_are_refused(self, images: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="workers = 99: the cluster has 0 GPUs and 2 processors"):
            thoraclip.embed(images, model="tiny-clip", out=tmp_path / "e", engine="ray", workers=99)


class TestBadInput:
    def test_an_unknown_engine(self, images: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="unknown engine 'rai'; did you mean 'ray'"):
            thoraclip.embed(images, model="tiny-clip", out=tmp_path / "e", engine="rai")

    def test_workers_without_ray(self, images: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="--workers 2: the number of actors of --engine ray"):
            thoraclip.embed(images, model="tiny-clip", out=tmp_path / "e", workers=2)

    def test_ray_that_is_not_installed(self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ray_pool, "find_spec", lambda name: None)
        with pytest.raises(MissingExtraError, match=r"pip install 'thoraclip\[ray\]'"):
            thoraclip.embed(images, model="tiny-clip", out=tmp_path / "e", engine="ray")

    @needs_ray
    def test_a_pixel_cache_with_ray(self, images: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="leave out --pixels"):
            thoraclip.embed(images, model="tiny-clip", out=tmp_path / "e", engine="ray", pixels=tmp_path / "p")

    @needs_ray
    def test_blocks_that_come_twice_or_out_of_order_are_not_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What Ray promises is checked: here it is made to break its word."""
        import pyarrow as pa

        class Dataset:
            def map_batches(self, *_: object, **__: object) -> Dataset:
                return self

            def iter_batches(self, **_: object) -> object:
                return iter([{"row": np.array([0, 1])}, {"row": np.array([0, 1])}])

        data = SimpleNamespace(from_arrow=lambda blocks: Dataset(), ActorPoolStrategy=lambda size: None)
        monkeypatch.setattr(ray_pool, "_cluster", lambda: nullcontext(SimpleNamespace(data=data)))
        monkeypatch.setattr(ray_pool, "_share", lambda ray, workers: (1, 0, 1))
        tables = [pa.table({"row": pa.array([0, 1], pa.int64())}), pa.table({"row": pa.array([2, 3], pa.int64())})]
        found = ray_pool.over_ray(lambda threads: lambda block: block, tables)
        next(found)
        with pytest.raises(RuntimeError, match="rows 0 to 1 came from the cluster where 2 was due"):
            next(found)
