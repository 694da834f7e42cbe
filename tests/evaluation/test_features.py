"""Features of whole sets: their order, what is left out, what is kept, and what other processes decode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from clip_core.architecture import Architecture
from clip_core.errors import CheckpointError, ClipError, ImageError
from clip_core.evaluation.features import PART, Store, encode_pictures, encode_texts
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.vision_transformer import VisionTransformer

ARCHITECTURE = Architecture(
    embed_dim=3,
    image=VisionTransformer(resolution=2, patch=1, width=64, layers=1, heads=1),
    text=TextTransformer(context_length=5, vocabulary_size=514, width=64, layers=1, heads=1),
)


@dataclass(frozen=True)
class Numbered:
    """Pictures whose colour is their number, of which some cannot be used."""

    count: int
    broken: tuple[int, ...] = ()

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.broken:
            raise ImageError(f"number {index} is broken.")
        return Image.new("RGB", (2, 2), (index % 256, index // 256, 50))


class Colours:
    """A model whose image features are the colours, and whose text features count the tokens."""

    architecture = ARCHITECTURE
    source = "colours.pt"

    def __init__(self):
        self.encoded = 0

    def embed_image(self, pixels):
        self.encoded += len(pixels)
        mean = np.array(ARCHITECTURE.image.pixels.mean, np.float32)
        deviation = np.array(ARCHITECTURE.image.pixels.deviation, np.float32)
        return pixels[:, :, 0, 0] * deviation + mean

    def embed_text(self, tokens):
        self.encoded += len(tokens)
        return tokens[:, :3].astype(np.float32)


class Lengths:
    """A tokenizer of one token: the length of the text."""

    def tokenize(self, texts, context_length, truncate):
        return np.array([[len(text), 1, 0, 0, 0] for text in texts])


def colours(indices):
    """What `Colours` should give."""
    values = np.array([[index % 256, index // 256, 50] for index in indices], np.float64)
    return values / 255


@pytest.mark.parametrize("workers", [0, 2])
def test_features_are_in_the_order_of_the_pictures(workers):
    found = encode_pictures(Colours(), Numbered(70, broken=(3, 40)), batch_size=16, workers=workers, fault_share=0.1)
    used = [index for index in range(70) if index not in (3, 40)]
    assert found.indices.tolist() == used
    assert np.allclose(found.features, colours(used), atol=1e-6)
    assert found.faults == {3: "number 3 is broken.", 40: "number 40 is broken."}


def test_what_is_kept_is_not_encoded_again(tmp_path):
    pictures, whole = (
        Numbered(PART + 100, broken=(5, PART + 2)),
        encode_pictures(Colours(), Numbered(PART + 100, broken=(5, PART + 2)), workers=0),
    )
    first = Colours()
    encode_pictures(first, pictures, limit=PART, workers=0, store=Store(tmp_path, {"model": "a"}))
    assert first.encoded == PART - 1
    again = Colours()
    found = encode_pictures(again, pictures, workers=0, store=Store(tmp_path, {"model": "a"}))
    assert again.encoded == 99
    assert (found.features == whole.features).all()
    assert found.faults == whole.faults
    fewer = Colours()
    found = encode_pictures(fewer, pictures, limit=1000, workers=0, store=Store(tmp_path, {"model": "a"}))
    assert fewer.encoded == 0
    assert (found.features == whole.features[:999]).all()
    other = Colours()
    encode_pictures(other, pictures, limit=10, workers=0, fault_share=0.1, store=Store(tmp_path, {"model": "b"}))
    assert other.encoded == 9


def test_a_damaged_part_is_made_again(tmp_path):
    encode_pictures(Colours(), Numbered(10), workers=0, store=Store(tmp_path, {}))
    part = next(tmp_path.glob("*/from-*.safetensors"))
    part.write_bytes(part.read_bytes()[:-50])
    model = Colours()
    encode_pictures(model, Numbered(10), workers=0, store=Store(tmp_path, {}))
    assert model.encoded == 10


def test_an_interrupted_run_keeps_its_whole_parts(tmp_path):
    class Stopped(Colours):
        def embed_image(self, pixels):
            if self.encoded > PART + 50:
                raise KeyboardInterrupt
            return super().embed_image(pixels)

    with pytest.raises(KeyboardInterrupt):
        encode_pictures(Stopped(), Numbered(2 * PART), workers=0, store=Store(tmp_path, {}))
    model, told = Colours(), []
    encode_pictures(
        model, Numbered(2 * PART), workers=0, store=Store(tmp_path, {}), progress=lambda *state: told.append(state)
    )
    assert model.encoded == PART
    assert told[0] == ("pictures", PART, 2 * PART, 0)
    assert told[-1] == ("pictures", 2 * PART, 2 * PART, 0)


def test_two_runs_do_not_write_the_same_features(tmp_path):
    store = Store(tmp_path, {})
    with store.held(), pytest.raises(ClipError, match=r"is in use by another evaluation; wait for it"):
        encode_pictures(Colours(), Numbered(3), workers=0, store=Store(tmp_path, {}))


def test_too_many_faults_end_the_run():
    with pytest.raises(
        ClipError, match=r"^2 of 100 pictures could not be used, and at most 1 may .* number 7 is broken\. Mend"
    ):
        encode_pictures(Colours(), Numbered(100, broken=(1, 7)), workers=0)
    with pytest.raises(ClipError, match=r"^2 of 2 pictures could not be used, and at most 1 may"):
        encode_pictures(Colours(), Numbered(2, broken=(0, 1)), workers=0, fault_share=1)


def test_features_that_are_no_numbers_are_refused():
    class Broken(Colours):
        def embed_image(self, pixels):
            return np.full((len(pixels), 3), np.nan, np.float32)

    with pytest.raises(CheckpointError, match=r"colours\.pt gives features that are not finite numbers"):
        encode_pictures(Broken(), Numbered(3), workers=0)


def test_a_dead_worker_is_told_of(monkeypatch):
    with pytest.raises(ClipError, match="A process that decodes pictures has died; most often memory has run out"):
        encode_pictures(Colours(), Deadly(), workers=1)


class Deadly:
    """Pictures that end the process that asks for them."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        import os

        os._exit(9)


def test_equal_texts_are_encoded_once():
    model = Colours()
    found = encode_texts(model, Lengths(), ["a", "bcd", "a", "e"])
    assert model.encoded == 2  # "a" and "e" have the same tokens here
    assert np.allclose(found, [[2**-0.5, 2**-0.5, 0], [3 / 10**0.5, 1 / 10**0.5, 0]] + [[2**-0.5, 2**-0.5, 0]] * 2)
