"""Pictures that tell their number by their colour, and batches that tell which pictures and captions they hold."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow
from PIL import Image

from clip_core.architecture import Architecture
from clip_core.data.example import Photograph, Source, fingerprint_of
from clip_core.data.loader import Batch, Loader
from clip_core.data.streaming import StreamedShards
from clip_core.errors import ClipError
from clip_core.pixels import DEVIATION, MEAN
from clip_core.text.bpe import BytePairTokenizer
from clip_core.text.bpe_training import HEADER
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.vision_transformer import VisionTransformer
from clip_core.training.recipe import Recipe

SMALL = Architecture(
    embed_dim=32,
    image=VisionTransformer(resolution=16, patch=16, width=64, layers=1, heads=1),
    text=TextTransformer(context_length=48, vocabulary_size=514, width=64, layers=1, heads=1),
)
TOKENIZER = BytePairTokenizer(HEADER)  # letter by letter
STEP = 5  # of the red value from one number to the next, more than JPEG changes it


def picture(number: int, side: int = 8) -> Image.Image:
    return Image.new("RGB", (side, side), (STEP * number, 128, 255 - STEP * number))


def encoded(number: int, kind: str = "PNG") -> bytes:
    data = io.BytesIO()
    picture(number).save(data, kind)
    return data.getvalue()


def write_picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(number, "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG"))


def shard(path: Path, members: list[tuple[str, bytes]]) -> None:
    """A tar file."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def sample(number: int, suffix: str = "jpg") -> list[tuple[str, bytes]]:
    """The members that img2dataset writes of a picture."""
    metadata = {"caption": f"caption {number}", "top_caption": f"top {number}", "status": "success"}
    kind = "JPEG" if suffix == "jpg" else "PNG"
    return [
        (f"{number:09}.{suffix}", encoded(number, kind)),
        (f"{number:09}.txt", f"caption {number}".encode()),
        (f"{number:09}.json", json.dumps(metadata).encode()),
    ]


def number_in(shown: Image.Image) -> int:
    return round(shown.convert("RGB").getpixel((4, 4))[0] / STEP)


def numbers(batch: Batch) -> list[int]:
    """Which pictures a batch holds."""
    red = (batch.pixels[:, 0, 8, 8] * DEVIATION[0] + MEAN[0]) * 255
    return np.rint(red / STEP).astype(int).tolist()


def texts(batch: Batch) -> list[str]:
    """The captions of a batch, without blanks."""
    return [TOKENIZER.decode(row[1 : row.tolist().index(TOKENIZER.end)]).replace(" ", "") for row in batch.tokens]


def contents(source) -> list[tuple[int, tuple[str, ...]]]:
    """The number and the captions of each example, which a source on a disk also gives without the pictures."""
    found = [(number_in(source[index].picture), source[index].caption) for index in range(len(source))]
    if not isinstance(source, StreamedShards):
        listed = [text for text in source.captions() if text.strip()]
        assert sorted(listed) == sorted(text for _, texts in found for text in texts)
    return found


def fault(source, index: int) -> str:
    try:
        source[index]
    except ClipError as error:
        return str(error)
    raise AssertionError(f"example {index} can be used")


class Numbered:
    """Pictures 0, 1, 2, ... with several captions each; the ones named in ``broken`` cannot be used."""

    def __init__(self, examples: int, captions: int = 1, broken: Sequence[int] = ()):
        self.examples, self.captions, self.broken = examples, captions, tuple(broken)

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, index: int) -> Photograph:
        if index in self.broken:
            raise ClipError(f"picture-{index}.png is damaged.")
        return Photograph(picture(index), tuple(f"{index}-{choice}" for choice in range(self.captions)))

    def fingerprint(self) -> str:
        return fingerprint_of([self.examples, self.captions])


def open_source(kind: str, settings: dict, seed: int) -> Source:
    """What a recipe with such a source opens."""
    sections = {"model": {"architecture": "shapes"}, "training": {"steps": 1}}
    return Recipe.parse(sections | {"data": {"source": {"kind": kind} | settings}}).data.source.open(seed)


def loader(source, batch_size: int, seed: int = 1, workers: int = 0, **options) -> Loader:
    return Loader(source, TOKENIZER, SMALL, batch_size, seed, workers, **options)


def save(folder: Path, tables: list[pyarrow.Table]) -> None:
    """A data set as Hugging Face's library saves it, one file a table."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05}-of-{len(tables):05}.arrow" for number in range(len(tables))]
    for name, table in zip(names, tables):
        with pyarrow.OSFile(str(folder / name), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
