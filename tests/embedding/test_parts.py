"""Parts of embeddings and their stamps: what is written is read back, and what does not belong together is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from clip_core.embedding import parts
from clip_core.embedding.parts import Fault, Part, Parts, Place
from clip_core.embedding.stamp import Stamp, pixels_of, tokenizer_digest, weights_digest
from clip_core.errors import ClipError
from clip_core.models import SHAPES
from tests.models import sample_weights

STAMP = Stamp(
    weights="0a" * 32,
    source="shapes",
    architecture=SHAPES.to_dict(),
    tokenizer="1b" * 32,
    pixels=pixels_of(SHAPES),
    precision="fp32",
    dtype="float32",
    normalized=True,
    backend="numpy",
    versions={"numpy": "1", "triclip": "1"},
)


def part_of(first: int, end: int, total: int, dtype: str = "float32", faults: tuple[Fault, ...] = ()) -> Part:
    numbers = [number for number in range(first, end) if number not in {fault.number for fault in faults}]
    columns = {
        "id": [f"{number}.png" for number in numbers],
        "path": [f"a/{number}.png" for number in numbers],
        "width": [10 + number for number in numbers],
        "height": numbers,
        "sha256": ["ff" * 32 for _ in numbers],
        "caption": [None if number % 2 else "a dog" for number in numbers],
        "label": [None for _ in numbers],
    }
    embeddings = np.random.default_rng(first).standard_normal((len(numbers), 4)).astype(dtype)
    return Part(Place(first, end, total, "digest", faults), embeddings, columns)


def written(folder: Path, format: parts.Format = "parquet", stamp: Stamp = STAMP) -> list[Part]:
    fault = Fault(4, "4.png", "4.png is empty.")
    made = [part_of(0, 3, 5, stamp.dtype), part_of(3, 5, 5, stamp.dtype, (fault,))]
    folder.mkdir()
    for part in made:
        parts.write(folder, part, stamp, format)
    return made


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("format", parts.FORMATS)
def test_what_is_written_is_read_back(tmp_path, format, dtype):
    stamp = replace(STAMP, dtype=dtype)
    made = written(tmp_path / "out", format, stamp)
    found = Parts(tmp_path / "out")
    assert (found.stamp, found.texts, found.dimension, len(found)) == (stamp, False, 4, 4)
    assert found.faults == [Fault(4, "4.png", "4.png is empty.")]
    for ours, theirs in zip(found, made, strict=True):
        assert ours.place == theirs.place
        assert ours.columns == theirs.columns
        assert ours.embeddings.dtype == dtype
        np.testing.assert_array_equal(ours.embeddings, theirs.embeddings)
    np.testing.assert_array_equal(found.embeddings(), np.concatenate([part.embeddings for part in made]))


def test_texts_are_told_from_pictures(tmp_path):
    columns = {"id": ["t#1"], "text": ["a dog"]}
    parts.write(tmp_path, Part(Place(0, 1, 1, "digest"), np.ones((1, 4), np.float32), columns), STAMP)
    found = Parts(tmp_path)
    assert found.texts
    assert next(iter(found)).columns == columns


def test_other_programs_read_the_parquet_files(tmp_path):
    made = written(tmp_path / "out")
    table = pyarrow.parquet.read_table(tmp_path / "out" / "from-00000003.parquet")
    assert table.column_names == [*parts.PICTURE_COLUMNS, "embedding"]
    assert table.schema.field("embedding").type == pyarrow.list_(pyarrow.float32(), 4)
    assert table.schema.field("width").type == pyarrow.int32()
    assert table["embedding"].to_pylist() == made[1].embeddings.tolist()
    assert Stamp.from_json(table.schema.metadata[b"triclip"], "it") == STAMP


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(ClipError) as error:
        list(Parts(folder))
    assert str(error.value).count(". ") == 0
    for word in words:
        assert word in str(error.value)


def test_what_is_not_whole_is_refused(tmp_path):
    refused(tmp_path, "has no embeddings")
    refused(tmp_path / "absent", "cannot be read")
    written(tmp_path / "out")
    last = tmp_path / "out" / "from-00000003.parquet"
    content = last.read_bytes()
    last.unlink()
    refused(tmp_path / "out", "3 of 5", "--resume")
    assert len(Parts(tmp_path / "out", whole=False)) == 3
    last.write_bytes(content)
    (tmp_path / "out" / "from-00000000.parquet").unlink()
    refused(tmp_path / "out", "begins at 3 and not at 0", "--resume")
    assert [place.first for place in Parts(tmp_path / "out", whole=False).places] == [3]


def test_what_does_not_belong_together_is_refused(tmp_path):
    written(tmp_path / "out")
    parts.write(tmp_path / "out", part_of(3, 5, 5), replace(STAMP, backend="torch"))
    refused(tmp_path / "out", "different stamps", "backend numpy and torch")
    parts.write(tmp_path / "out", part_of(3, 6, 6), STAMP)
    refused(tmp_path / "out", "of another input")
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "out" / "from-00000003.parquet")
    refused(tmp_path / "out", "from-00000003.parquet is no part of embeddings")
    (tmp_path / "out" / "photos.parquet").write_bytes(b"")
    refused(tmp_path / "out", "photos.parquet is no part")


@pytest.mark.parametrize("format", parts.FORMATS)
def test_a_damaged_part_is_refused(tmp_path, format):
    """Whatever byte is changed, the part is refused or the same."""
    folder = tmp_path / "out"
    made = written(folder, format)
    path = folder / f"from-00000000.{format}"
    content = path.read_bytes()
    for damaged in (b"", content[:40], content[:-20], content + b"more"):
        path.write_bytes(damaged)
        refused(folder, str(path))
    generator = np.random.default_rng(0)
    for place in generator.integers(len(content), size=150):
        changed = bytearray(content)
        changed[place] ^= int(generator.integers(1, 256))
        path.write_bytes(changed)
        try:
            first = next(iter(Parts(folder)))
        except ClipError:
            continue
        assert first.embeddings.shape == made[0].embeddings.shape


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": "0c" * 32}, ["shapes has the weights 0a0a0a0a0a0a, and other has 0c0c0c0c0c0c"]),
        ({"tokenizer": None}, ["tokenizer 1b1b1b1b1b1b, and other has an unknown one"]),
        ({"pixels": {**pixels_of(SHAPES), "resize": "squash"}}, ["preprocessing resize shortest", "resize squash"]),
        ({"architecture": {**SHAPES.to_dict(), "embed_dim": 8}}, ["other architectures: embed_dim"]),
    ],
)
def test_stamps_say_why_embeddings_cannot_be_compared(change, words):
    found = STAMP.difference(replace(STAMP, source="other", **change))
    for word in words:
        assert word in found


def test_stamps_of_what_can_be_compared_do_not_differ():
    other = replace(STAMP, backend="torch", versions={}, dtype="float16", precision="bf16", normalized=False)
    assert STAMP.difference(other) is None
    assert STAMP.change(other) == "precision fp32 and bf16"
    assert Stamp.from_json(STAMP.to_json(), "it") == STAMP


@pytest.mark.parametrize("text", ["", "{}", "[]", STAMP.to_json().replace('"fp32"', "3"), "[" * 100_000])
def test_a_damaged_stamp_is_refused(text):
    with pytest.raises(ClipError, match=r"The stamp of it cannot be read: .*embed again\.$"):
        Stamp.from_json(text, "it")


def test_digests_do_not_depend_on_the_file():
    weights = {name: array.astype(np.float16) for name, array in sample_weights(SHAPES).items()}
    wide = {name: np.array(array, np.float32, order="F") for name, array in reversed(weights.items())}
    assert weights_digest(wide) == weights_digest(weights)
    wide["logit_scale"] = np.nextafter(wide["logit_scale"], np.float32(99))
    assert weights_digest(wide) != weights_digest(weights)
    merges = "#version: 0.2\na b</w>\nc d"
    assert tokenizer_digest(SHAPES, merges) == tokenizer_digest(SHAPES, "#version: 1\r\na b</w>\r\nc d\r\n")
    assert tokenizer_digest(SHAPES, merges) != tokenizer_digest(SHAPES, "#version: 0.2\na b</w>\nc e")
    assert tokenizer_digest(SHAPES, None) is None
