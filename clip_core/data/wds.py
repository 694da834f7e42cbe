"""Retrieval sets in the form of CLIP_benchmark: shards of WebDataset, in a folder for each split.

::

    test/nshards.txt          how many shards there are
    test/0.tar                s0000000.webp  s0000000.txt  s0000001.webp ...
    dataset_type.txt          retrieval

Each line of a ``txt`` member is a caption of its picture.
"""

from __future__ import annotations

import os
from typing import Literal

from clip_core.data.example import SourceSettings
from clip_core.data.listing import lines_of
from clip_core.data.shards import Shards
from clip_core.errors import ClipError

MOST_SHARDS = 100_000


class WdsRetrieval(SourceSettings):
    """A folder of CLIP_benchmark's shards for retrieval."""

    kind: Literal["wds_retrieval"] = "wds_retrieval"
    folder: str
    split: str = "test"

    def open(self, seed: int) -> Shards:
        return Shards(shards_of(self.folder, self.split, "retrieval"), a_line_each=True)


def shards_of(folder: str, split: str, wanted: str) -> list[str]:
    """The paths of the shards of a split.

    Args:
        wanted: what the set is to be for: ``classification`` or ``retrieval``.

    Raises:
        ClipError: the set is for something else, or the number of its shards is not known.
    """
    path = os.path.join(folder, "dataset_type.txt")
    found = " ".join(lines_of(path)) if os.path.exists(path) else "classification"
    if found != wanted:
        raise ClipError(f"{folder} is a set for {found!r:.60}, and one for {wanted} is expected; give another folder.")
    path = os.path.join(folder, split, "nshards.txt")
    count = " ".join(lines_of(path))
    if not count.isascii() or not count.isdecimal() or not 0 < int(count[:9]) <= MOST_SHARDS:
        raise ClipError(f"{path} holds {count!r:.60}, and the number of shards is expected; get it again.")
    return [os.path.join(folder, split, f"{number}.tar") for number in range(int(count))]
