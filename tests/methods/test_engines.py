"""Whoever encodes, the features are the same bytes, and every image has its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.actors import kill_one, needs_ray
from tests.conftest import examples, files
from tests.methods.processes_worker import command, together
from tests.methods.threads import in_threads

import thoraclip
from thoraclip import ray_pool
from thoraclip.data.batches import picture_source
from thoraclip.errors import ConfigError, InputError, MismatchError, MissingExtraError
from thoraclip.methods import engines
from thoraclip.methods.embed import embed
from thoraclip.methods.encoders import EncoderConfig, load_encoder
from thoraclip.methods.engines import by_processes, by_ray, by_threads, cut
from thoraclip.models.frozen import FrozenEncoder
from thoraclip.tables.manifest import Manifest, read_manifest

BATCH = 5


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    thoraclip.phantom(root / "phantoms", images=63, size=48)
    thoraclip.index(root / "phantoms", out=root / "m.parquet")
    return root / "m.parquet"


@pytest.fixture
def many(images: Path) -> Manifest:
    return read_manifest(images)


@pytest.fixture(scope="module")
def encoder() -> FrozenEncoder:
    return load_encoder(EncoderConfig())


@pytest.fixture(scope="module")
def alone(images: Path, encoder: FrozenEncoder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that one thread writes."""
    out, manifest = tmp_path_factory.mktemp("alone") / "e", read_manifest(images)
    one = by_threads(encoder, picture_source(manifest, encoder.preprocess), threads=1)
    embed(manifest, encoder, out, batch_size=BATCH, engine=one)
    return files(out)


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `in_order` is asked for, without `begin`."""
    asked: list[dict[str, Any]] = []
    real = engines.in_order

    def noted(work: Any, items: Any, **given: Any) -> Iterator[Any]:
        asked.append({name: value for name, value in given.items() if name != "begin"})
        return real(work, items, **given)

    monkeypatch.setattr(engines, "in_order", noted)
    return asked


@pytest.fixture
def torch_threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads that share a product."""
    usual = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(usual)


def test_batches_are_cut_at_the_same_rows() -> None:
    assert cut(10, 4) == [range(4), range(4, 8), range(8, 10)]
    assert cut(10, 4, start=8) == [range(8, 10)] and cut(8, 4, start=8) == []


class TestThreads:
    @pytest.mark.parametrize("threads", [3, 0])
    def test_any_number_gives_the_same_files(
        self, threads: int, many: Manifest, encoder: FrozenEncoder, alone: dict[str, bytes], tmp_path: Path,
        pools: list[dict[str, Any]], torch_threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(engines, "threads_here", lambda: 2)
        torch_threads(2)
        source, computing = picture_source(many, encoder.preprocess), set()
        noting = lambda rows: (computing.add(torch.get_num_threads()), source(rows))[1]  # noqa: E731
        embed(many, encoder, tmp_path / "e", batch_size=BATCH, engine=by_threads(encoder, noting, threads=threads))
        with ThreadPoolExecutor(1) as pool:
            later = pool.submit(torch.get_num_threads).result()
        assert (computing, torch.get_num_threads(), later) == ({1}, 2, 2), "given back, to threads that come later too"
        assert files(tmp_path / "e") == alone
        assert pools == [{"workers": threads or 2}]
        assert list(by_threads(encoder, source)([])) == []

    def test_a_device_that_works_while_it_is_fed_gives_the_same(
        self, many: Manifest, encoder: FrozenEncoder, alone: dict[str, bytes], tmp_path: Path,
        pools: list[dict[str, Any]], torch_threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """The way for GPUs, on the CPU."""
        torch_threads(1)
        started, checked = [], []
        kind, start, fetch = type(encoder), type(encoder).start, encoder.fetch
        monkeypatch.setattr(kind, "start", lambda self, greys: started.append(1) or start(encoder, greys))
        monkeypatch.setattr(kind, "fetch", staticmethod(lambda found: started.append(-1) or fetch(found)))
        monkeypatch.setattr(kind, "encode_greys", lambda _, greys, check=False: checked.append((greys.tolist(), check)))
        there = {"device": torch.device("meta"), "__class__": kind}  # anything but a CPU
        stand_in: Any = type(
            "Elsewhere", (), {"__getattr__": lambda _, name: there.get(name) or getattr(encoder, name)}
        )()
        source = picture_source(many, encoder.preprocess)
        embed(many, encoder, tmp_path / "e", batch_size=BATCH, engine=by_threads(stand_in, source, threads=2))
        assert files(tmp_path / "e") == alone
        assert max(np.cumsum(started)) == 2 and sum(started) == 0, "the next batch is begun before the last is fetched"
        assert checked == [(source(range(BATCH)).tolist(), True)], "the gate looks at the first batch"
        assert pools == [{"workers": 2, "ahead": 3}]

    def test_an_unreadable_picture_ends_the_pass_and_keeps_what_is_before_it(
        self, own_manifest: Manifest, encoder: FrozenEncoder, tmp_path: Path
    ) -> None:
        gone = own_manifest.paths()[11]
        gone.unlink()
        with pytest.raises(InputError, match=f"{gone.name}: cannot be read any more"):
            embed(own_manifest, encoder, tmp_path / "e", batch_size=BATCH)
        assert '"rows": 10' in (tmp_path / "e" / "progress.json").read_text()

    def test_processes_of_a_launch_share_the_cores(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engines, "cores", lambda: 8)
        assert engines.threads_here() == 8
        for name, count, threads in (("WORLD_SIZE", 4, 2), ("LOCAL_WORLD_SIZE", 2, 4), ("LOCAL_WORLD_SIZE", 16, 1)):
            monkeypatch.setenv(name, str(count))
            assert engines.threads_here() == threads


def embed_in_turns(arguments: list[str]) -> int:
    """Two batches of each process between two gatherings, so that there are three turns, and one batch in the last."""
    engines._TURN = 2
    return command(arguments)


class TestProcesses:
    @examples(40)
    @given(total=st.integers(1, 40), size=st.integers(1, 5), count=st.integers(1, 4), turn=st.integers(1, 3))
    def test_all_get_the_features_of_all(self, total: int, size: int, count: int, turn: int) -> None:
        encoder: Any = SimpleNamespace(
            device=torch.device("cpu"),
            encode_greys=lambda greys, check: (greys.astype(np.float32).repeat(2, axis=1), -greys.astype(np.float32)),
        )
        pictures = lambda rows: np.array(rows, dtype=np.uint8)[:, None]  # noqa: E731
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engines, "_TURN", turn)
            found = in_threads(count, lambda group: list(by_processes(group, encoder, pictures)(cut(total, size))))
        for features in found:
            assert len(features) == -(-total // (size * count * turn)), "gathered once a turn"
            pooled, projected = (np.concatenate(part) for part in zip(*features, strict=True))
            assert pooled.tolist() == [[row, row] for row in range(total)]
            assert projected.tolist() == [[-row] for row in range(total)]

    def test_the_first_writes_what_all_have_encoded(
        self, many: Manifest, encoder: FrozenEncoder, alone: dict[str, bytes], tmp_path: Path
    ) -> None:
        def work(group: Any) -> tuple[bytes, int]:
            done = embed(many, encoder, tmp_path / "e", batch_size=BATCH, group=group)
            again = embed(many, encoder, tmp_path / "e", batch_size=BATCH, group=group, engine=lambda _: 1 / 0)  # type: ignore[arg-type,return-value]
            assert done.pooled.tobytes() == again.pooled.tobytes()
            return done.pooled.tobytes(), group._accelerator.waited

        first, *others = in_threads(3, work)
        assert others == [first] * 2 and first[1] == 1
        assert files(tmp_path / "e") == alone

    @pytest.mark.slow
    def test_several_give_the_files_of_one(self, images: Path, alone: dict[str, bytes], tmp_path: Path) -> None:
        """63 images in batches of 5: the last is short, and three processes get an uneven number of batches."""
        arguments = ["embed", str(images), "--model", "tiny-clip", "--batch-size", str(BATCH), "--out"]
        ended = together(3, embed_in_turns, [*arguments, str(tmp_path / "e")])
        assert [one.returncode for one in ended] == [0, 0, 0], ended
        assert files(tmp_path / "e") == alone
        assert ["63 images, pooled" in one.stderr for one in ended] == [True, False, False], "the first process speaks"


class TestActors:
    """What the actors of a cluster would do, here."""

    @pytest.fixture
    def cluster(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """(number of actors asked for, rows of each shard)."""
        seen: list[Any] = []

        def over_ray(
            make: Callable[[int], Callable[[Any], Any]], tables: Iterable[pa.Table], *, workers: int = 0
        ) -> Iterator[Any]:
            blocks = list(tables)
            seen.extend([workers, [len(block) for block in blocks]])
            work = make(3)
            for block in blocks:
                found = work({name: block[name].to_numpy() for name in block.column_names})
                assert found["row"].tolist() == block["row"].to_pylist()
                yield found

        monkeypatch.setattr(engines, "over_ray", over_ray)
        return seen

    @pytest.mark.parametrize(("begun", "most", "shards"), [(0, 20_000, [10] * 6 + [3]), (15, 3, [20, 20, 8])])
    def test_they_give_the_files_of_one_thread_and_end_what_threads_began(
        self, begun: int, most: int, shards: list[int], many: Manifest, encoder: FrozenEncoder,
        alone: dict[str, bytes], tmp_path: Path, cluster: list[Any], pools: list[dict[str, Any]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(engines, "_SHARD", 2)
        monkeypatch.setattr(engines, "_MOST_SHARDS", most)
        source = picture_source(many, encoder.preprocess)
        dying = by_threads(encoder, lambda rows: source(rows) if rows.start < begun else 1 / 0, threads=1)  # type: ignore[return-value]
        with pytest.raises(ZeroDivisionError):
            embed(many, encoder, tmp_path / "e", batch_size=BATCH, engine=dying)
        pools.clear()
        actors = by_ray(EncoderConfig(), many, encoder.description, workers=5)
        embed(many, encoder, tmp_path / "e", batch_size=BATCH, engine=actors)
        assert files(tmp_path / "e") == alone
        assert cluster == [5, shards]
        assert pools == [{"workers": 3}] * len(shards)

    def test_one_that_loads_other_weights_refuses(self, many: Manifest, cluster: list[Any]) -> None:
        with pytest.raises(MismatchError, match="model 'tiny-clip': an actor of the cluster loads other weights"):
            list(by_ray(EncoderConfig(), many, {"weights": "others"})(cut(3, 5)))
        assert cluster[0] == 0, "as many as the cluster has"

    def test_one_that_is_at_home_elsewhere_finds_a_local_model(
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

    def test_blocks_that_come_twice_or_out_of_order_are_not_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What Ray promises is checked: here it is made to break its word."""

        class Dataset:
            def map_batches(self, *_: object, **__: object) -> Dataset:
                return self

            def iter_batches(self, **_: object) -> object:
                return iter([{"row": np.array([0, 1])}, {"row": np.array([0, 1])}])

        data = SimpleNamespace(from_arrow=lambda blocks: Dataset(), ActorPoolStrategy=lambda size: None)
        monkeypatch.setattr(ray_pool, "_cluster", lambda: nullcontext(SimpleNamespace(data=data)))
        monkeypatch.setattr(ray_pool, "_share", lambda ray, workers: (1, 0, 1))
        tables = [pa.table({"row": pa.array(rows, pa.int64())}) for rows in ([0, 1], [2, 3])]
        found = ray_pool.over_ray(lambda threads: lambda block: block, tables)
        next(found)
        with pytest.raises(RuntimeError, match="rows 0 to 1 came from the cluster where 2 was due"):
            next(found)


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
        self, images: Path, alone: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        assert files(tmp_path / "e") == alone

    def test_what_an_actor_says_is_what_a_thread_would_say(
        self, own_manifest: Manifest, encoder: FrozenEncoder, tmp_path: Path
    ) -> None:
        own_manifest.paths()[0].unlink()
        actors = by_ray(EncoderConfig(), own_manifest, encoder.description, workers=1)
        with pytest.raises(InputError, match="cannot be read any more"):
            embed(own_manifest, encoder, tmp_path / "e", engine=actors)

    def test_more_actors_than_processors_are_refused(self, images: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="workers = 99: the cluster has 0 GPUs and 2 processors"):
            thoraclip.embed(images, model="tiny-clip", out=tmp_path / "e", engine="ray", workers=99)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"engine": "rai"}, ConfigError, "unknown engine 'rai'; did you mean 'ray'"),
        ({"workers": 2}, ConfigError, "--workers 2: the number of actors of --engine ray"),
        ({"engine": "ray"}, MissingExtraError, r"pip install 'thoraclip\[ray\]'"),
        pytest.param({"engine": "ray", "pixels": "p"}, ConfigError, "leave out --pixels", marks=needs_ray),
    ],
)
def test_an_engine_that_there_is_not_is_refused(
    wrong: dict[str, Any], error: type[Exception], message: str, images: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if error is MissingExtraError:
        monkeypatch.setattr(ray_pool, "find_spec", lambda name: None)
    with pytest.raises(error, match=message):
        thoraclip.embed(images, model="tiny-clip", out=tmp_path / "e", **wrong)
