"""Shards from a server: their order, what of them is kept, and what becomes of a server's faults."""

from __future__ import annotations

import json
import pickle
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from clip_core import download
from clip_core.data import streaming
from clip_core.data.loader import Loader
from clip_core.errors import ClipError
from tests.data.numbered import contents, fault, loader, number_in, numbers, open_source, sample, shard, texts

SHARDS, SAMPLES = 16, 2


class Server:
    """Gives files from memory over HTTP/1.1, without ranges, and does what the test sets up."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.breaks: Counter[str] = Counter()  # how often the connection breaks in the middle of a file
        self.refusals: Counter[str] = Counter()  # how often the answer is 503
        self.lengths: dict[str, int] = {}  # stated instead of the right one
        self.asked: list[str] = []
        self.headers: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                name = self.path[1:]
                server.asked.append(name)
                server.headers.extend(self.headers)
                data = server.files.get(name.partition("?")[0])
                if data is None or server.refusals[name] > 0:
                    server.refusals[name] -= 1
                    self.send_response(404 if data is None else 503)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(server.lengths.get(name, len(data))))
                self.end_headers()
                server.breaks[name] -= 1
                if server.breaks[name] >= 0 or name in server.lengths:
                    self.close_connection = True
                    data = data if name in server.lengths else data[: len(data) // 2]
                self.wfile.write(data)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def tars(self) -> list[str]:
        return [name for name in self.asked if ".tar" in name]


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("CLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "FIRST_PAUSE", 0.001)
    found = Server()
    threading.Thread(target=found.http.serve_forever, args=(0.01,), daemon=True).start()
    yield found
    found.http.shutdown()
    found.http.server_close()


@pytest.fixture
def shards(server, tmp_path) -> str:
    """The address of 16 shards of two samples, with what img2dataset writes beside them."""
    for place in range(SHARDS):
        put(server, tmp_path, place, range(SAMPLES * place, SAMPLES * (place + 1)))
    return f"{server.url}/{{00..{SHARDS - 1}}}.tar"


def put(server: Server, folder: Path, place: int, held: range, stated: int | None = None) -> None:
    shard(folder / "made.tar", [member for number in held for member in sample(number, "png")])
    server.files[f"{place:02}.tar"] = (folder / "made.tar").read_bytes()
    successes = len(held) if stated is None else stated
    server.files[f"{place:02}_stats.json"] = json.dumps({"count": 99, "successes": successes}).encode()


def streamed(shards: str | list[str], seed: int = 1):
    """The source as another process sees it."""
    return pickle.loads(pickle.dumps(open_source("webdataset", {"shards": shards}, seed)))  # noqa: S301


def refused(shards: str | list[str]) -> str:
    with pytest.raises(ClipError) as caught:
        open_source("webdataset", {"shards": shards}, 1)
    return str(caught.value)


def taken(batches: Loader, count: int) -> list[list[int]]:
    found = []
    for _ in range(count):
        batch = next(batches)
        found.append(numbers(batch))
        assert texts(batch) == [f"caption{number}" for number in found[-1]]
    return found


def flat(batches: Iterable[list[int]]) -> list[int]:
    return [number for batch in batches for number in batch]


def kept(tmp_path) -> list[Path]:
    return list((tmp_path / "cache").glob("shards/*/kept/*"))


# Order


def test_an_epoch_has_each_sample_once_in_an_order_of_its_own(shards):
    batches = loader(streamed(shards), 16)
    epochs = [flat(taken(batches, 2)) for _ in range(3)]
    assert all(sorted(epoch) == list(range(SHARDS * SAMPLES)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert flat(taken(loader(streamed(shards), 16), 2)) == epochs[0]
    assert flat(taken(loader(streamed(shards, seed=2), 16), 2)) != epochs[0]


def test_a_batch_mixes_eight_shards_and_the_samples_of_a_shard_are_shuffled(server, tmp_path):
    for place in range(8):
        put(server, tmp_path, place, range(6 * place, 6 * (place + 1)))
    batches = taken(loader(streamed(f"{server.url}/{{00..07}}.tar"), 16), 3)
    for batch in batches:
        assert Counter(number // 6 for number in batch) == dict.fromkeys(range(8), 2)
    orders = {tuple(number % 6 for batch in batches for number in batch if number // 6 == place) for place in range(8)}
    assert len(orders) > 4
    assert tuple(range(6)) not in orders


def test_every_place_is_taken_once_whatever_the_sizes():
    for examples in range(1, 70):
        for batch_size in {1, 3, 8, 9, examples} - set(range(examples + 1, 10)):
            places = [streaming._place(position, examples, batch_size) for position in range(examples)]
            assert sorted(places) == list(range(examples)), (examples, batch_size)


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_is_exact_with_nothing_left_on_the_disk(workers, shards, tmp_path):
    expected = taken(loader(streamed(shards), 8), 9)
    for step in (6,) if workers else (1, 3, 6):
        resumed = loader(streamed(shards), 8, workers=workers)
        shutil.rmtree(tmp_path / "cache")
        resumed.restore({"position": step})
        assert taken(resumed, 9 - step) == expected[step:]
        resumed.close()


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_share_the_shards_of_each_batch(ranks, shards):
    whole = taken(loader(streamed(shards), 16), 3)
    shares = [taken(loader(streamed(shards), 16, rank=rank, ranks=ranks), 3) for rank in range(ranks)]
    assert [flat(parts) for parts in zip(*shares)] == whole
    of_rank = [{number // SAMPLES for batch in share[:2] for number in batch} for share in shares]
    assert [len(read) for read in of_rank] == [SHARDS // ranks] * ranks  # in an epoch, none is read by two
    assert set().union(*of_rank) == set(range(SHARDS))


# What is kept


def test_only_so_many_shards_are_on_the_disk(shards, server, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "KEPT", 10)
    batches = loader(streamed(shards), 8)
    most = 0
    for _ in range(8):
        taken(batches, 1)
        most = max(most, len(kept(tmp_path)))
    assert 8 <= most <= 10 + 8  # while one is fetched ahead for each of the eight that are read
    assert set(server.tars()) == {f"{place:02}.tar" for place in range(SHARDS)}
    assert "Range" not in server.headers


def test_numbers_of_samples_are_read_without_the_shards(shards, server):
    assert len(streamed(shards)) == SHARDS * SAMPLES
    assert sorted(server.asked) == [f"{place:02}_stats.json" for place in range(SHARDS)]


@pytest.mark.parametrize(
    "stated",
    [
        None,
        b"<html>",
        b"[]",
        b'{"successes": -1}',
        b'{"successes": true}',
        b'{"successes": 1e9}',
        b'{"successes": 9999999999999999999}',
    ],
)
def test_shards_without_a_usable_statement_are_counted_once(stated, shards, server):
    for place in range(SHARDS):
        if stated is None:
            del server.files[f"{place:02}_stats.json"]
        else:
            server.files[f"{place:02}_stats.json"] = stated
    assert len(streamed(shards)) == SHARDS * SAMPLES
    assert sorted(server.tars()) == [f"{place:02}.tar" for place in range(SHARDS)]
    asked = len(server.asked)
    assert len(streamed(shards)) == SHARDS * SAMPLES
    assert len(server.asked) == asked


def test_addresses_with_a_query(server, tmp_path):
    put(server, tmp_path, 0, range(3))
    source = streamed([f"{server.url}/00.tar?key=a.tar/b"])
    assert server.asked == ["00_stats.json?key=a.tar/b"]
    assert [number for number, _ in contents(source)] == [0, 1, 2]


def test_local_shards_may_be_among_remote_ones(server, tmp_path):
    put(server, tmp_path, 0, range(2))
    shard(tmp_path / "local.tar", sample(2) + sample(3))
    source = streamed([str(tmp_path / "local.tar"), f"{server.url}/00.tar"])
    assert contents(source) == [(n, (f"caption {n}",)) for n in (2, 3, 0, 1)]
    assert sorted(flat(taken(loader(source, 2), 2))) == [0, 1, 2, 3]
    assert (tmp_path / "local.tar").exists()


def test_the_fingerprint_of_streamed_shards_is_that_of_their_addresses_and_numbers(server, tmp_path, monkeypatch):
    for place in range(2):
        put(server, tmp_path, place, range(2))
    addresses = [f"{server.url}/{place:02}.tar" for place in range(2)]
    first = streamed(addresses).fingerprint()
    assert streamed(addresses, seed=2).fingerprint() == first  # the order is the recipe's
    assert streamed(addresses[::-1]).fingerprint() != first
    monkeypatch.setenv("CLIP_CACHE", str(tmp_path / "another"))  # where no number is known yet
    put(server, tmp_path, 1, range(3))
    assert streamed(addresses).fingerprint() != first


def test_the_next_shard_is_fetched_before_it_is_needed(shards, server):
    next(loader(streamed(shards), 8))
    deadline = time.monotonic() + 20
    while len(server.tars()) < 16:
        assert time.monotonic() < deadline, server.tars()
        time.sleep(0.01)
    assert len(set(server.tars())) == 16


def test_a_shard_that_another_process_removed_is_fetched_again(shards, tmp_path, server):
    source = streamed(shards)
    assert number_in(source[0].picture) == 0
    (file,) = kept(tmp_path)
    file.unlink()
    assert number_in(source[1].picture) == 1
    assert server.tars() == ["00.tar", "00.tar"]


def test_parts_of_shards_are_removed_once_nobody_can_be_writing_them(shards, tmp_path, monkeypatch):
    source = streamed(shards)
    source[0]
    (file,) = kept(tmp_path)
    (file.parent / ".left.partial").write_bytes(b"part")
    source[2]
    assert (file.parent / ".left.partial").exists()
    monkeypatch.setattr(streaming, "_ABANDONED", -1.0)
    source[4]
    assert not (file.parent / ".left.partial").exists()


# Faults of a server


def test_a_connection_that_breaks_is_tried_again(shards, server):
    server.breaks["03.tar"] = 3
    server.refusals["04.tar"] = 2
    server.refusals["05_stats.json"] = 2
    source = streamed(shards)
    assert [number for number, _ in contents(source)] == list(range(SHARDS * SAMPLES))
    assert Counter(server.asked)["03.tar"] == 4
    assert Counter(server.asked)["04.tar"] == Counter(server.asked)["05_stats.json"] == 3


def test_a_shard_that_cannot_be_had_is_a_fault_of_its_samples_and_asked_for_once(shards, server):
    server.breaks["03.tar"] = 1000
    del server.files["04.tar"]
    source = streamed(shards)
    url = f"{server.url}/03.tar"
    for index in (6, 7):
        assert f"{url} could not be fetched in 5 attempts: the connection ended after" in fault(source, index)
    for index in (8, 9):
        assert fault(source, index) == f"{server.url}/04.tar answers 404 Not Found; check the address."
    assert number_in(source[10].picture) == 10
    assert Counter(server.tars()) == {"03.tar": 5, "04.tar": 1, "05.tar": 1}


def test_faults_of_shards_are_listed_and_end_the_run_above_their_share(shards, server, tmp_path):
    del server.files["04.tar"]
    report = tmp_path / "faults.jsonl"
    batches = loader(streamed(shards), 16, fault_share=0.07, fault_report=report)
    found = flat(taken(batches, 2))
    assert set(range(SHARDS * SAMPLES)) - set(found) >= {8, 9}
    listed = [json.loads(line) for line in report.read_text().splitlines()]
    assert {line["example"] for line in listed} == {8, 9}
    assert all(line["fault"].startswith(f"{server.url}/04.tar answers 404") for line in listed)
    with pytest.raises(ClipError, match=r"1 examples could not be used.*04\.tar answers 404"):
        taken(loader(streamed(shards), 16), 2)


@pytest.mark.parametrize("length", [0, 512, 700, 2048])
def test_a_shard_that_is_cut_short_is_a_fault_and_is_not_kept(length, shards, server, tmp_path):
    server.files["02.tar"] = server.files["02.tar"][:length]
    source = streamed(shards)
    assert fault(source, 4).startswith(f"{server.url}/02.tar ")
    assert kept(tmp_path) == []


@pytest.mark.parametrize(
    ("length", "sentence"),
    [(10_000_000, "could not be fetched"), (700, "is not an uncompressed tar file: unexpected end of data")],
)
def test_a_wrong_length_is_a_fault(length, sentence, shards, server):
    server.lengths["02.tar"] = length
    assert f"{server.url}/02.tar {sentence}" in fault(streamed(shards), 4)


@pytest.mark.parametrize("stated", [1, 3])
def test_a_wrong_number_of_samples_is_a_fault(stated, server, tmp_path):
    put(server, tmp_path, 0, range(2), stated)
    source = streamed(f"{server.url}/00.tar")
    assert len(source) == stated
    for index in range(stated):
        assert f"{server.url}/00.tar has 2 samples, not {stated} as its _stats.json" in fault(source, index)


def test_faulty_samples_are_named_by_their_address(server, tmp_path):
    shard(tmp_path / "made.tar", [sample(0)[1], ("1.jpg", b"no picture"), ("1.txt", b"one")])
    server.files["00.tar"] = (tmp_path / "made.tar").read_bytes()
    source = streamed(f"{server.url}/00.tar")
    said = f"000000000 in {server.url}/00.tar has no member with its picture (.png, "
    assert fault(source, 0).startswith(said)
    assert fault(source, 1).startswith(f"1 in {server.url}/00.tar: ")


def test_addresses_that_lead_nowhere_are_refused(server, tmp_path):
    assert refused(f"{server.url}/gone.tar") == f"{server.url}/gone.tar answers 404 Not Found; check the address."
    server.files["empty.tar"] = bytes(10240)
    assert f"{server.url}/empty.tar: there are no samples" in refused(f"{server.url}/empty.tar")
    assert refused([f"{server.url}/{{0..1}}.tar", f"{server.url}/1.tar"]) == (
        f"data.source.shards names {server.url}/1.tar 2 times; name each shard once."
    )


# Mixtures


def test_a_mixture_goes_through_streamed_shards_in_their_order(shards, server, tmp_path):
    for number in range(4):
        shard(tmp_path / f"{number}.tar", sample(32 + number))
    parts = [
        {"kind": "webdataset", "shards": shards},
        {"kind": "webdataset", "shards": str(tmp_path / "{0..3}.tar")},
    ]
    source = pickle.loads(pickle.dumps(open_source("combined", {"parts": parts, "weights": [3, 1]}, 1)))  # noqa: S301
    assert (len(source), source.places) == (36, [27, 9])
    whole = taken(loader(source, 4), 18)
    assert all(Counter(number < 32 for number in batch) == {True: 3, False: 1} for batch in whole)
    streamed_numbers = [number for batch in whole for number in batch if number < 32]
    assert sorted(streamed_numbers[:32]) == list(range(32))  # goes on in the next epoch where it stopped
    local = Counter(number for batch in whole[:9] for number in batch if number >= 32)
    assert sorted(local.values()) == [2, 2, 2, 3]
    halves = [taken(loader(source, 4, rank=rank, ranks=2), 18) for rank in range(2)]
    assert [first + second for first, second in zip(*halves)] == whole
    resumed = loader(source, 4)
    resumed.restore({"position": 9})
    assert taken(resumed, 9) == whole[9:]


def test_a_mixture_without_weights_has_each_example_once_an_epoch(shards, tmp_path):
    shard(tmp_path / "0.tar", sample(32) + sample(33))
    parts = [{"kind": "webdataset", "shards": name} for name in (str(tmp_path / "0.tar"), shards)]
    batches = loader(open_source("combined", {"parts": parts}, 1), 17)
    for _ in range(2):
        assert sorted(flat(taken(batches, 2))) == list(range(34))
