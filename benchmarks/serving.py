"""Load on a server: several clients against a loop in one thread over the same bundle, a crowd, 10,000 requests, a slow client.

    python -m benchmarks.serving --bundle BUNDLE [--images FOLDER] [--clients 8] [--requests 500] [--many 10000]

Prints a table. Everything runs in one call on one machine: the clients take time from the server, as they do in no other place.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from benchmarks.inference import shared_bundles
from benchmarks.measure import once, options
from benchmarks.results import Result
from PIL import Image
from scripts.served import Served

from thoraclip.data.phantom import CLASSES, draw_phantom
from thoraclip.deploy.opening import open_bundle

KIND = {"content-type": "application/octet-stream"}


def pictures_of(folder: Path | None, count: int = 32) -> list[bytes]:
    """Files of a folder, or phantoms as PNG."""
    if folder is not None:
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in {".png", ".jpg", ".jpeg", ".dcm"})
        return [file.read_bytes() for file in files[:count]]
    found = []
    for number in range(count):
        stream = io.BytesIO()
        pixels = draw_phantom(CLASSES[number % len(CLASSES)], rng=np.random.default_rng(number)).pixels
        Image.fromarray(pixels).save(stream, "PNG")
        found.append(stream.getvalue())
    return found


def load(
    address: str, pictures: list[bytes], *, clients: int, requests: int
) -> tuple[float, list[float], Counter[int]]:
    """(seconds in all, seconds of each answer, statuses) of clients that ask one after another, side by side."""
    times: list[float] = []
    statuses: Counter[int] = Counter()

    def work(number: int) -> None:
        place = urlsplit(address)
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=120)  # it is kept
        for i in range(requests):
            begin = time.perf_counter()
            connection.request("POST", "/v1/predict", pictures[(number + i) % len(pictures)], KIND)
            response = connection.getresponse()
            response.read()
            times.append(time.perf_counter() - begin)
            statuses[response.status] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begin, times, statuses


def loop(bundle: Path, pictures: list[bytes], count: int) -> list[float]:
    """Seconds of each picture, one after another in one thread, without a server."""
    classifier = open_bundle(bundle, threads=1)
    return [
        once(lambda number=number: classifier.classify(pictures[number % len(pictures)])) for number in range(count)
    ]


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """Eight clients of a server of the int8 bundle, against a loop in one thread over it."""
    bundle, pictures = shared_bundles(work, quick=quick)["int8"], pictures_of(None)
    clients, requests = 8, 2 if quick else 60
    half = loop(bundle, pictures, clients * requests // 4)
    server = Served(bundle, "--no-page")
    try:
        load(server.address, pictures, clients=1, requests=2 if quick else 20)
        _, alone, _ = load(server.address, pictures, clients=1, requests=requests)
        seconds, times, statuses = load(server.address, pictures, clients=clients, requests=requests)
    finally:
        server.stop()
    single = half + loop(bundle, pictures, clients * requests // 4)
    rate, own = len(times) / seconds, len(single) / sum(single)
    return [
        Result(f"{clients} clients", rate / own, 1.5, f"a loop in one thread without a server, {own:.1f} pictures/s", rate, "pictures/s"),
        Result("one client, median answer", statistics.median(alone) / statistics.median(single), 1.25,
               f"the same loop, {1000 * statistics.median(single):.1f} ms", 1000 * statistics.median(alone), "ms", higher_is_better=False),
        Result("requests answered", statuses[200] / len(times), 1, f"{len(times)} requests", statuses[200], "answers"),
    ]  # fmt: skip


@contextlib.contextmanager
def slow_clients(address: str, count: int) -> Iterator[None]:
    """Clients that send a byte now and then."""
    place, over = urlsplit(address), threading.Event()
    head = b"POST /v1/predict HTTP/1.1\r\nhost: a\r\ncontent-type: image/png\r\ncontent-length: 100000\r\n\r\n"

    def drip(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.sendall(head)
            while not over.wait(0.2):
                connection.sendall(b"x")

    for _ in range(count):
        connection = socket.create_connection((place.hostname, place.port))
        threading.Thread(target=drip, args=(connection,), daemon=True).start()
    yield
    over.set()


def main() -> None:
    given = options(__doc__, bundle=None, images=None, clients=8, requests=500, many=10_000)
    pictures, clients, count = pictures_of(given.images), given.clients, given.clients * given.requests
    half = loop(given.bundle, pictures, count // 8)
    server = Served(given.bundle, "--no-page")
    load(server.address, pictures, clients=1, requests=20)
    alone = load(server.address, pictures, clients=1, requests=count // 8)
    several = load(server.address, pictures, clients=clients, requests=given.requests)
    single = half + loop(
        given.bundle, pictures, count // 8
    )  # before and after, so that a drift of the machine evens out
    with slow_clients(server.address, 20):
        beside = load(server.address, pictures, clients=1, requests=100)
    runs = {"loop in one thread, no server": (sum(single), single, Counter[int]()), "one client": alone,
            f"{clients} clients": several, "one client beside 20 whose upload drips": beside}  # fmt: skip
    for name, (seconds, times, statuses) in runs.items():
        p50, p95 = 1000 * np.percentile(times, [50, 95])
        print(f"{name}: {len(times) / seconds:.1f} a second, p50 {p50:.1f} ms, p95 {p95:.1f} ms, {dict(statuses)}")
    crowded = Served(given.bundle, "--no-page", "--set", "waiting=32")
    crowd = load(crowded.address, pictures, clients=200, requests=10)[2]
    after = load(crowded.address, pictures, clients=1, requests=20)[2]
    print(f"a crowd of 200 clients, 32 may wait: {dict(crowd)}; afterwards {dict(after)}; exit code {crowded.stop()}")
    memory = []
    for _ in range(10):
        load(server.address, pictures, clients=clients, requests=max(1, given.many // 10 // clients))
        memory.append(round(server.megabytes(), 1))
    print(f"memory in MB after each tenth of {given.many} requests: {memory}; exit code {server.stop()}")


if __name__ == "__main__":
    main()
