"""Texts in batches: the features of each text by itself, in every backend and for every text tower."""

from __future__ import annotations

import numpy as np
import pytest

from clip_core import batching
from clip_core.batching import batches, embed_texts, lengths, tree_of
from clip_core.similarity import normalize
from clip_core.tolerances import EMBEDDING
from tests.models import sample_tokens, sample_weights
from tests.towers import EXAMPLES

TOWERS = {architecture.text.kind: architecture for architecture in EXAMPLES.values()}


@pytest.fixture(params=TOWERS.values(), ids=TOWERS.keys())
def architecture(request):
    return request.param


def test_batches_give_what_each_text_gives_by_itself(backend, architecture, monkeypatch):
    monkeypatch.setattr(batching, "TEXTS", 3)
    model = backend.CLIP(architecture, sample_weights(architecture), device="cpu")
    tokens = np.concatenate([sample_tokens(architecture, 7), sample_tokens(architecture, 7)[::-1]])
    alone = np.concatenate([model.embed_text(row[None]) for row in tokens])
    assert np.abs(normalize(embed_texts(model, tokens)) - normalize(alone)).max() <= EMBEDDING
    assert np.abs(normalize(alone) - normalize(np.roll(alone, 1, axis=0))).max() > EMBEDDING


class Counting:
    """A model that remembers the batches that it is given."""

    architecture = TOWERS["transformer"]

    def __init__(self):
        self.batches = []

    def embed_text(self, tokens):
        self.batches.append(tokens)
        return tokens.astype(np.float32)


def rows(*texts):
    """Tokens of texts that end with 39."""
    return np.array([[*text, 39, *[0] * (7 - len(text))] for text in texts])


def test_equal_texts_are_encoded_once_and_the_short_ones_first(monkeypatch):
    monkeypatch.setattr(batching, "TEXTS", 2)
    monkeypatch.setattr(batching, "LIKE", 1)
    model, told = Counting(), []
    tokens = rows([1, 2, 3], [4], [1, 2, 3], [5, 6], [4], [7, 8, 9, 10])
    found = embed_texts(model, tokens, lambda *state: told.append(state))
    assert (found == tokens).all()
    assert [batch.tolist() for batch in model.batches] == [
        rows([4], [5, 6]).tolist(),
        rows([1, 2, 3], [7, 8, 9, 10]).tolist(),
    ]
    assert told == [(2, 4), (4, 4)]


def test_every_row_is_in_one_batch():
    tokens = sample_tokens(TOWERS["transformer"], 300)
    found = list(batches(tokens, TOWERS["transformer"].text))
    assert [len(batch) for batch in found] == [128, 128, 44]
    assert sorted(np.concatenate(found)) == list(range(300))
    in_order = np.concatenate([lengths(tokens[batch], TOWERS["transformer"].text) for batch in found])
    assert (np.diff(in_order // batching.LIKE) >= 0).all()


def test_a_tree_has_each_prefix_once(monkeypatch):
    monkeypatch.setattr(batching, "NODES", 5)
    generator = np.random.default_rng(0)
    for _ in range(100):
        tokens = rows(*(generator.integers(1, 4, generator.integers(1, 7)).tolist() for _ in range(8)))
        ends = (tokens == 39).argmax(axis=1)
        tokens = tokens[:, : ends.max() + 1]
        tree = tree_of(tokens, ends)
        prefixes = sorted({tuple(row[: place + 1]) for row, end in zip(tokens, ends) for place in range(end + 1)})
        assert tree.tokens.tolist() == [prefix[-1] for prefix in prefixes]
        assert tree.positions.tolist() == [len(prefix) - 1 for prefix in prefixes]
        assert [prefixes[node] for node in tree.last_nodes] == [tuple(row[: end + 1]) for row, end in zip(tokens, ends)]
        # Each node is in a group, where it sees each part of its prefix once.
        own = tree.groups[:, -tree.mask.shape[2] :].reshape(-1)
        assert own.tolist() == [*range(len(prefixes)), *[len(prefixes) - 1] * (len(own) - len(prefixes))]
        for number, prefix in enumerate(prefixes):
            group, row = divmod(number, tree.mask.shape[2])
            seen = [prefixes[node] for node in tree.groups[group][tree.mask[group, 0, row]]]
            assert sorted(seen) == [prefix[:length] for length in range(1, len(prefix) + 1)]


@pytest.mark.parametrize("kind", ["transformer", "low_resource"])
def test_prefixes_in_common_change_no_feature(backend, kind, monkeypatch):
    monkeypatch.setattr(batching, "NODES", 4)
    architecture = TOWERS[kind]
    weights = sample_weights(architecture)
    tower = architecture.text
    tokens = np.repeat(sample_tokens(architecture, 3), 4, axis=0)
    ends = lengths(tokens, tower) - 1
    tokens[np.arange(12), ends - 1] = 4 + np.arange(12) % 4  # the last word alone tells four texts apart
    assert len(tree_of(tokens, ends).tokens) < 0.6 * (ends + 1).sum()
    model = backend.CLIP(architecture, weights, device="cpu")
    alone = normalize(np.concatenate([model.embed_text(row[None]) for row in tokens]))
    shuffled = np.random.default_rng(0).permutation(12)
    found = normalize(model.embed_text(tokens[shuffled]))
    assert np.abs(found - alone[shuffled]).max() <= EMBEDDING
    assert np.abs(found - alone).max() > EMBEDDING
    name = f"{architecture.prefix('text')}transformer.resblocks.0.attn.in_proj_weight"
    perturbed = weights | {name: weights[name] + np.float32(0.01)}
    perturbed = backend.CLIP(architecture, perturbed, device="cpu").embed_text(tokens[shuffled])
    assert np.abs(normalize(perturbed) - alone[shuffled]).max() > EMBEDDING
