"""WebDataset shards read over the network while training goes on, with a bounded number of them on the disk.

An epoch goes through all shards in a shuffled order, which is cut into `SIDE_BY_SIDE` stretches of equal length that
are read side by side, each with its own places in every batch; the samples of a shard are shuffled. So a batch mixes
that many shards, a position leads to its shard and sample by arithmetic alone, which makes resuming exact, and ranks
and processes, each with its own part of a batch, share the stretches instead of reading all of them.

A shard is fetched whole when its turn comes, the one after it in the background, and at most `KEPT` are on the disk, in
the cache folder, where all processes of a machine find them; those opened longest ago are removed. The last ones stay
there for the next run, so delete the folder when the server has other shards under the same addresses. The server needs
no ranges, and `clip_core.download.download` says how often a connection that breaks is tried again.

The number of samples in each shard has to be known before: it is taken from the ``00000_stats.json`` that img2dataset
writes beside ``00000.tar``; where there is none, the shard is fetched at the first start to count them.

A shard that cannot be fetched, is damaged, or has another number of samples than stated makes a fault of each sample
that is asked of it; it is tried again in a later epoch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
import urllib.error
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from clip_core.data.example import Photograph, Place, Texts, fingerprint_of
from clip_core.data.order import shuffled
from clip_core.data.shards import Shards, samples_in
from clip_core.download import cache_folder, download
from clip_core.errors import ClipError, DownloadError
from clip_core.files import read_regular, write_text

SIDE_BY_SIDE = 8
"""Shards that a batch is made from."""

KEPT = 3 * SIDE_BY_SIDE
"""Shards on the disk: those in use, those that come next, and as many for processes that are a little behind."""

_REQUESTS = 16  # at once, for the numbers of samples
_MAXIMUM_STATEMENT_BYTES = 1 << 20
_MAXIMUM_SAMPLES = 1 << 31  # in a shard; a larger number is no count
_ABANDONED = 3600.0  # seconds after which a part of a shard that does not grow was left by a process that was killed

T = TypeVar("T")

_shuffled = lru_cache(4 * SIDE_BY_SIDE)(shuffled)  # making one takes longer than an entry of it


class StreamedShards:
    """The samples of shards, in the order of the shards and of the members in them.

    Args:
        shards: http or https addresses; paths of local shards, which are read where they are, may be among them.
        json_key: as in `clip_core.data.webdataset.WebDataset`.
        seed: of the order.

    Raises:
        ClipError: there are no samples, or their number in a shard is not stated and the shard cannot be counted.
    """

    def __init__(self, shards: Sequence[str], json_key: str | None, seed: int):
        self._shards, self._json_key, self._seed = list(shards), json_key, seed
        self._folder = cache_folder() / "shards" / _digest(" ".join(shards))
        self._opened: dict[int, Shards | ClipError] = {}  # the one asked for last comes last
        self._sequence: tuple[int, np.ndarray, np.ndarray] | None = None  # epoch, its order of shards, their ends
        with ThreadPoolExecutor(_REQUESTS) as pool:
            self._counts = np.array(list(pool.map(self._count, range(len(shards)))), np.int64)
        self._starts = np.cumsum([0, *self._counts])
        if not len(self):
            raise ClipError(f"{', '.join(shards)}: there are no samples; give at least one batch of them.")

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_opened": {}, "_sequence": None}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Photograph:
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        sample = index - int(self._starts[shard])
        try:
            return self._open(shard)[sample]
        except ClipError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
        self._opened.pop(shard, None)  # another process has removed the file to make room
        return self._open(shard)[sample]

    def fingerprint(self) -> str:
        return fingerprint_of(Texts(self._shards), self._counts)

    def files(self) -> Iterable[str]:
        return ()

    def captions(self) -> Iterator[str]:
        raise ClipError(
            "The captions of shards on the network are not known before training fetches them, so no vocabulary can "
            "be learnt from them; set model.vocabulary to a merges file."
        )

    def order(self, epoch: int, position: int, batch_size: int) -> Place:
        """Which sample is at a position of an epoch; each sample is at one."""
        order, ends = self._sequence_of(epoch)
        place = _place(position, len(self), batch_size)
        number = int(np.searchsorted(ends, place, side="right"))
        shard = int(order[number])
        count = int(self._counts[shard])
        sample = place - int(ends[number]) + count
        example = int(self._starts[shard]) + _shuffled(count, self._seed + 1 + shard)[epoch * count + sample]
        return Place(position, example)

    def _sequence_of(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards in the order of an epoch, and after how many samples of it each of them ends."""
        if self._sequence is None or self._sequence[0] != epoch:
            first, shards = epoch * len(self._shards), shuffled(len(self._shards), self._seed)
            order = np.array([shards[first + number] for number in range(len(self._shards))])
            self._sequence = epoch, order, np.cumsum(self._counts[order])
        return self._sequence[1:]

    def _count(self, shard: int) -> int:
        """How many samples a shard has, as stated beside it or as found in it."""
        address = self._shards[shard]
        if not is_remote(address):
            return samples_in(address, self._json_key)
        stated = self._folder / "counts" / f"{_digest(address)}.json"
        with suppress(_NotStated):
            return _successes(stated)
        try:
            statement = re.sub(r"(\.tar)?(?=$|[?])", "_stats.json", address, count=1)
            download(statement, stated, None, limit=_MAXIMUM_STATEMENT_BYTES)
            return _successes(stated)
        except DownloadError as error:
            if not isinstance(error.__cause__, urllib.error.HTTPError):  # the server does not say that there is none
                raise
        except _NotStated:
            pass
        count = self._using(shard, lambda path: samples_in(path, self._json_key, address))
        write_text(stated, json.dumps({"successes": count}))
        return count

    def _open(self, shard: int) -> Shards:
        found = self._opened.pop(shard, None) or self._fetched(shard)
        self._opened[shard] = found
        if len(self._opened) > 2 * SIDE_BY_SIDE:
            del self._opened[next(iter(self._opened))]
        if isinstance(found, ClipError):
            raise ClipError(str(found))
        return found

    def _fetched(self, shard: int) -> Shards | ClipError:
        """A shard ready to be read, or what is wrong with it, so that it is not fetched again for its next sample."""
        address = self._shards[shard]
        try:
            found = self._using(shard, lambda path: Shards([path], self._json_key, names=[address]))
            if len(found) != self._counts[shard]:
                raise ClipError(
                    f"{address} has {len(found)} samples, not {self._counts[shard]} as its _stats.json or an earlier "
                    f"count says; mend that file and delete {self._folder}."
                )
        except ClipError as error:
            return error
        following = self._following(shard)
        if following is not None:
            threading.Thread(target=self._fetch_ahead, args=(following,), daemon=True).start()
        return found

    def _following(self, shard: int) -> int | None:
        """The shard after ``shard`` in the epoch, if it has to be fetched."""
        if self._sequence is None:
            return None
        _, order, _ = self._sequence
        rest = order[np.flatnonzero(order == shard)[0] + 1 :]
        return int(rest[0]) if len(rest) and is_remote(self._shards[rest[0]]) else None

    def _fetch_ahead(self, shard: int) -> None:
        with suppress(ClipError):  # it is met again when the shard is needed
            self._fetch(shard)

    def _using(self, shard: int, use: Callable[[str], T]) -> T:
        """What ``use`` makes of the path of a shard; a file that it refuses is removed."""
        if not is_remote(self._shards[shard]):
            return use(self._shards[shard])
        for _ in range(3):
            path = self._fetch(shard)
            try:
                return use(str(path))
            except ClipError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    path.unlink(missing_ok=True)
                    raise
        raise ClipError(
            f"{path} is removed by other processes as soon as it is there; set $CLIP_CACHE to another folder."
        )

    def _fetch(self, shard: int) -> Path:
        """The path of a remote shard, which is on the disk now."""
        path = self._folder / "kept" / _digest(self._shards[shard])
        download(self._shards[shard], path, None)
        with suppress(FileNotFoundError):
            os.utime(path)
        self._make_room(path.parent)
        return path

    def _make_room(self, folder: Path) -> None:
        ages = {}
        for path in folder.iterdir():
            with suppress(FileNotFoundError):
                ages[path] = time.time() - path.stat().st_mtime
        whole = sorted((path for path in ages if path.suffix != ".partial"), key=ages.__getitem__)
        left = [path for path, age in ages.items() if path.suffix == ".partial" and age > _ABANDONED]
        for path in whole[KEPT:] + left:
            with suppress(OSError):  # Windows does not remove what is in use
                path.unlink()


def is_remote(shard: str) -> bool:
    """Whether a shard is an address."""
    return shard.startswith(("http://", "https://"))


class _NotStated(Exception):
    """A file that does not say how many samples a shard has."""


def _successes(path: Path) -> int:
    """What img2dataset writes of a shard: how many of its addresses gave a picture, each of which is a sample."""
    try:
        content = json.loads(read_regular(path, _MAXIMUM_STATEMENT_BYTES))
    except (ClipError, ValueError, RecursionError) as error:
        raise _NotStated from error
    found = content.get("successes") if isinstance(content, dict) else None
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < _MAXIMUM_SAMPLES:
        raise _NotStated
    return found


def _place(position: int, examples: int, batch_size: int) -> int:
    """Where in the order of an epoch a position lies when its batches are made from stretches read side by side.

    The places of a batch are cut into as many parts as there are stretches, and each part goes through its stretch. The
    examples after the last whole batch stay at the end.
    """
    batches = examples // batch_size
    batch, column = divmod(position, batch_size)
    if batch >= batches:
        return position
    parts = min(SIDE_BY_SIDE, batch_size)
    part = column * parts // batch_size
    first, end = (-(-edge * batch_size // parts) for edge in (part, part + 1))
    return first * batches + batch * (end - first) + column - first


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
