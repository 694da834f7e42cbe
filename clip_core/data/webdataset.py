"""WebDataset shards: tar files whose members of one stem are one sample, as img2dataset writes them.

::

    00000.tar:  000000000.jpg  000000000.txt  000000000.json  000000001.jpg  ...

The stem is the member's path up to the first dot of its last part. The picture is a ``jpg``, ``jpeg``, ``png`` or
``webp`` member, the caption the ``txt`` member, or a key of the ``json`` member when ``json_key`` is set. A sample that
lacks one of them is counted as a fault; a shard that is named twice is refused.

``shards`` is a path, or several, with ranges in braces: ``cc/{00000..00331}.tar``. The tar headers of local shards are
read once at the start; samples are then read in any order, so they are shuffled all together and a run resumes exactly.
Shards with an http or https address are streamed: see `clip_core.data.streaming`.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Literal

from clip_core.data.example import Source, SourceSettings
from clip_core.data.shards import Shards
from clip_core.data.streaming import StreamedShards, is_remote
from clip_core.errors import ClipError

MAXIMUM_SHARDS = 1_000_000  # LAION-5B, the largest published set, has 231,349

_RANGE = re.compile(r"\{(\d{1,99})\.\.(\d{1,99})\}")


class WebDataset(SourceSettings):
    """Shards and where in them the captions are."""

    kind: Literal["webdataset"] = "webdataset"
    shards: str | tuple[str, ...]
    json_key: str | None = None  # take the caption from this key of the json member, not from the txt member

    def open(self, seed: int) -> Source:
        patterns = [self.shards] if isinstance(self.shards, str) else self.shards
        named = sum(map(count, patterns))
        if named > MAXIMUM_SHARDS:
            raise ClipError(
                f"data.source.shards names {named:.3g} shards, and at most {MAXIMUM_SHARDS} are read; check its ranges."
            )
        shards = [path for pattern in patterns for path in expand(pattern)]
        for path, times in Counter(shards).items():
            if times > 1:
                raise ClipError(f"data.source.shards names {path} {times} times; name each shard once.")
        if any(map(is_remote, shards)):
            return StreamedShards(shards, self.json_key, seed)
        return Shards(shards, self.json_key)


def count(pattern: str) -> float:
    """How many paths ``pattern`` stands for, by arithmetic alone.

    Raises:
        ClipError: a range counts down.
    """
    paths = 1.0
    for first, last in _RANGE.findall(pattern):
        if int(first) > int(last):
            raise ClipError(
                f"The shards {pattern!r} count down from {first} to {last}; write the smaller number first."
            )
        paths *= int(last) - int(first) + 1
    return paths


def expand(pattern: str) -> list[str]:
    """The paths that ``pattern`` stands for: ``{08..10}`` counts up, with as many digits as the first number."""
    found = _RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last = int(found[1]), int(found[2])
    before, after = pattern[: found.start()], expand(pattern[found.end() :])
    numbers = [str(number).zfill(len(found[1])) for number in range(first, last + 1)]
    return [before + number + rest for number in numbers for rest in after]
