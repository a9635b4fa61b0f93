"""Load on a server: several clients against a loop in one thread over the same bundle, a crowd, 10,000 requests, a slow
client.

    python -m benchmarks.serving --bundle BUNDLE [--clients 8] [--requests 500] [--many 10000]

Everything runs in one call on one machine: the clients take time from the server, as they do in no other place.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from benchmarks.inference import shared_bundles
from benchmarks.measure import once, options
from benchmarks.results import Result, table
from PIL import Image
from scripts.served import Served

from thoraclip.bundle.opening import open_bundle
from thoraclip.data.phantom import CLASSES, draw_phantom

KIND = {"content-type": "application/octet-stream"}
Load = tuple[float, list[float], Counter[int]]
"""(seconds in all, seconds of each answer, statuses)."""


def phantom_files(count: int = 32) -> list[bytes]:
    """Phantoms as PNG."""
    found = []
    for number in range(count):
        stream = io.BytesIO()
        pixels = draw_phantom(CLASSES[number % len(CLASSES)], rng=np.random.default_rng(number)).pixels
        Image.fromarray(pixels).save(stream, "PNG")
        found.append(stream.getvalue())
    return found


def load(address: str, pictures: list[bytes], *, clients: int, requests: int) -> Load:
    """Clients that ask one after another, side by side."""
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

    with ThreadPoolExecutor(clients) as pool:
        return once(lambda: list(pool.map(work, range(clients)))), times, statuses


def against_a_loop(bundle: Path, pictures: list[bytes], server: Served, clients: int, requests: int) -> list[Result]:
    """One client and several, and before and after them, so that a drift of the machine evens out, a loop in one
    thread."""
    classifier = open_bundle(bundle, threads=1)

    def loop() -> list[float]:
        count = clients * requests // 8
        return [once(lambda i=i: classifier.classify(pictures[i % len(pictures)])) for i in range(count)]

    half = loop()
    load(server.address, pictures, clients=1, requests=min(20, requests))
    one = load(server.address, pictures, clients=1, requests=requests)
    several = seconds, times, statuses = load(server.address, pictures, clients=clients, requests=requests)
    single = half + loop()
    report("loop in one thread, no server", (sum(single), single, Counter()))
    report("one client", one)
    report(f"{clients} clients", several)
    rate, own = len(times) / seconds, len(single) / sum(single)
    alone, loops = (1000 * float(np.median(found)) for found in (one[1], single))
    plain, same = f"a loop in one thread without a server, {own:.1f} pictures/s", f"the same loop, {loops:.1f} ms"
    return [
        Result(f"{clients} clients", rate / own, 1.5, plain, rate, "pictures/s"),
        Result.small("one client, median answer", alone / loops, 1.25, same, alone, "ms"),
        Result("requests answered", statuses[200] / len(times), 1, f"{len(times)} requests", statuses[200], "answers"),
    ]


def report(name: str, found: Load) -> None:
    """Print a load."""
    seconds, times, statuses = found
    p50, p95 = 1000 * np.percentile(times, [50, 95])
    print(f"{name}: {len(times) / seconds:.1f} a second, p50 {p50:.1f} ms, p95 {p95:.1f} ms, {dict(statuses)}")


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """Eight clients of a server of the int8 bundle, against a loop in one thread over it."""
    bundle = shared_bundles(work, quick=quick)["int8"]
    with Served(bundle, "--no-page") as server:
        return against_a_loop(bundle, phantom_files(), server, 8, 2 if quick else 60)


@contextlib.contextmanager
def slow_clients(address: str, count: int) -> Iterator[None]:
    """Clients that send a byte now and then."""
    place, over = urlsplit(address), threading.Event()
    head = b"POST /v1/predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/png\r\ncontent-length: 100000\r\n\r\n"

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
    given = options(__doc__, bundle=None, clients=8, requests=500, many=10_000)
    pictures = phantom_files()
    with Served(given.bundle, "--no-page") as server:
        print(table(against_a_loop(given.bundle, pictures, server, given.clients, given.requests)))
        with slow_clients(server.address, 20):
            beside = load(server.address, pictures, clients=1, requests=100)
        report("one client beside 20 whose upload drips", beside)
        memory = []
        for _ in range(10):
            load(server.address, pictures, clients=given.clients, requests=max(1, given.many // 10 // given.clients))
            memory.append(round(server.megabytes(), 1))
        print(f"memory in MB after each tenth of {given.many} requests: {memory}; exit code {server.stop()}")
    with Served(given.bundle, "--no-page", "--set", "waiting=32") as server:
        crowd = load(server.address, pictures, clients=200, requests=10)[2]
        after = load(server.address, pictures, clients=1, requests=20)[2]
        print(
            f"a crowd of 200 clients, 32 may wait: {dict(crowd)}; afterwards {dict(after)}; exit code {server.stop()}"
        )


if __name__ == "__main__":
    main()
