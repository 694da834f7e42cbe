"""Which texts are encoded together: equal ones once, those of like length side by side, those of one prefix in a row.

Backends compute a batch of texts up to the longest of it. Sorted by length, short texts do not wait for long ones. In a
causal tower nothing behind a token reaches it, so what texts have in common at their start is computed once: `tree_of`
says what a batch has in common.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from clip_core.backend import Model
from clip_core.towers.parts import TextTower

TEXTS = 128  # that are encoded at once
LIKE = 8  # tokens by which the lengths of texts that are encoded at once may differ, where there are enough of them
NODES = 32  # of a tree for which attention is computed in one piece


def embed_texts(
    model: Model, tokens: np.ndarray, progress: Callable[[int, int], None] = lambda done, total: None
) -> np.ndarray:
    """`Model.embed_text` of many texts, in their order.

    Args:
        tokens: int64 [n, context], at least one row.
        progress: told after each batch how many of how many different texts are encoded.
    """
    unique, place = np.unique(tokens, axis=0, return_inverse=True)
    features: list[np.ndarray] = []
    order: list[np.ndarray] = []
    done = 0
    for batch in batches(unique, model.architecture.text):
        features.append(model.embed_text(unique[batch]))
        order.append(batch)
        done += len(batch)
        progress(done, len(unique))
    back = np.argsort(np.concatenate(order))
    return np.concatenate(features)[back][place.reshape(-1)]  # NumPy 2.0 gives ``place`` a second dimension


def batches(tokens: np.ndarray, tower: TextTower) -> Iterator[np.ndarray]:
    """The numbers int64 [k] of the rows of each batch, k at most `TEXTS`; every row once, the short ones first.

    Rows of like length keep their order: sorted rows of one prefix stay together.
    """
    order = np.argsort(lengths(tokens, tower) // LIKE, kind="stable")
    for start in range(0, len(order), TEXTS):
        yield order[start : start + TEXTS]


def lengths(tokens: np.ndarray, tower: TextTower) -> np.ndarray:
    """How many tokens of each row [n, context] its feature needs, int64 [n]: up to its end, or up to its padding."""
    if tower.required_token is not None:
        return (tokens == tower.required_token).argmax(axis=1) + 1
    return (tokens != tower.padding_token).cumsum(axis=1).argmax(axis=1) + 1


@dataclass(frozen=True)
class TokenTree:
    """Texts [n, l] as a tree of m nodes, each a token, in which a prefix that several texts have is there once.

    The nodes are in depth-first order. Attention is computed for g groups of k nodes in a row: what they see are nodes
    of the group and those above its first node, of which there are at most a.
    """

    tokens: np.ndarray  # int64 [m], of the nodes
    positions: np.ndarray  # int64 [m], of the nodes in their texts
    last_nodes: np.ndarray  # int64 [n], at which the texts end
    groups: np.ndarray  # int64 [g, a + k], the nodes above each group and its own; the last one has the last node again
    mask: np.ndarray  # bool [g, 1, k, a + k], which of them each node of the group sees


def tree_of(tokens: np.ndarray, ends: np.ndarray) -> TokenTree:
    """The tree of texts [n, l], which end at the positions ``ends`` [n]; the longest one ends at l - 1."""
    n, length = tokens.shape
    order = np.lexsort(tokens.T[::-1])
    rows, ends = tokens[order], ends[order]
    shared = np.zeros((n, length), bool)  # whether the text before has the same prefix up to here
    shared[1:] = np.logical_and.accumulate(rows[1:] == rows[:-1], axis=1)
    new = ~shared & (np.arange(length) <= ends[:, None])
    nodes = np.cumsum(new).reshape(n, length) - 1
    # What is shared is the last new one above. Behind the end of a text, its path has any nodes.
    paths = np.maximum.accumulate(np.where(new, nodes, 0), axis=0)
    last_nodes = np.empty(n, np.int64)
    last_nodes[order] = paths[np.arange(n), ends]
    texts, positions = np.nonzero(new)
    return TokenTree(rows[new], positions, last_nodes, *_in_groups(paths[texts], positions))


def _in_groups(paths: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`TokenTree.groups` and `TokenTree.mask`.

    Args:
        paths: the nodes of the text that each node is of, int64 [m, l].
        positions: where in it the node itself is, int64 [m].
    """
    size = min(NODES, len(positions))
    own = np.arange(-(-len(positions) // size) * size).clip(max=len(positions) - 1).reshape(-1, size)  # [g, k]
    first = own[:, 0]
    above = np.arange(positions[first].max())  # [a]
    groups = np.concatenate([paths[first][:, above], own], axis=1)
    # The place of each node of the groups in its text; a node sees those that are at these places of its own text.
    places = np.concatenate([np.broadcast_to(above, (len(own), len(above))), positions[own]], axis=1)[:, None]
    mask = np.take_along_axis(paths[own], places, axis=2) == groups[:, None]
    mask &= places <= positions[own][:, :, None]
    mask[:, :, : len(above)] &= above < positions[first][:, None, None]  # else it is of the group, where it is again
    mask[:, :, len(above) :] &= np.tri(size, dtype=bool)
    return groups, mask[:, None]
