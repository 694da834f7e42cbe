"""What the blocks of an image tower compute: the states of patches and class token, and attention maps."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from clip_core.errors import ClipError, ImageError
from clip_core.naming import Weights
from clip_core.towers.parts import ImageTower

# The stages of an image tower that are blocks: a number ends the name, but for EfficientNet's stem.
_BLOCK = re.compile(r"visual\.(?!trunk\.features\.\d+$).*\.\d+")


@dataclass(frozen=True)
class Intermediate:
    """What one block gives for n pictures, float32.

    Args:
        block: its number, from 0 on.
        patches: [n, rows, columns, d], the states of the patches, or the cells of a feature map; None if not wanted.
        token: [n, d], the state of the class token; None if not wanted, or where the tower has none.
        attention: [n, heads, l, l], how much each token (row) looks at each other; the class token, if any, is the
            first. None if not wanted, or where the block has no attention.
    """

    block: int
    patches: np.ndarray | None
    token: np.ndarray | None
    attention: np.ndarray | None


@dataclass(frozen=True)
class Intermediates:
    """What an image tower computes for n pictures.

    Args:
        blocks: those that are wanted, in the wanted order.
        pool: [n, heads, l], how much the attention pool at the end of the tower looks at each token that the last block
            gives, float32; in a ResNet of OpenAI's, the mean of all comes first. None if attention is not wanted, or
            where the tower ends in no such pool.
    """

    blocks: tuple[Intermediate, ...]
    pool: np.ndarray | None


def intermediates(
    tower: ImageTower,
    visual: Any,
    seen: Weights,
    whole: Callable[[Any, np.ndarray], np.ndarray],
    maps: Callable[[Any, np.ndarray], np.ndarray],
    blocks: Iterable[int] | None,
    tokens: bool,
    attention: bool,
) -> Intermediates:
    """The wanted blocks of an image tower.

    Args:
        visual: the tower in its framework.
        seen: what its observers were told, in the order of computation.
        whole: computes a block, given what it takes, for all tokens.
        maps: the attention maps of a block or of the pool, given what it takes.
        blocks, tokens, attention: as of `clip_core.backend.Model.forward_intermediates`.

    Raises:
        ClipError: there is no such block, or attention is wanted of a tower without any.
        ImageError: there are no pictures, or no blocks of this project's.
    """
    stages = [name for name in seen if name.startswith("visual.")]
    names = [name for name in stages if _BLOCK.fullmatch(name)]
    if not names or not len(seen[names[0]]):
        raise ImageError(
            "No block of the image tower has computed anything; give at least one picture, to a tower that other code "
            "has not replaced."
        )
    # Feature maps are whole, and their blocks have no attention.
    parts = {name: None if seen[name].ndim == 4 else _part(visual, name) for name in names}
    pool = getattr(visual, "attnpool", None)
    if attention and not any(hasattr(part, "attention_maps") for part in (pool, *parts.values())):
        raise ClipError(
            f"The image tower, a {tower.title}, has no attention; leave attention out, or choose a model with a ViT."
        )
    found = []
    for number in _numbers(range(len(names)) if blocks is None else blocks, len(names)):
        name = names[number]
        block, state, before = parts[name], seen[name], seen[stages[stages.index(name) - 1]]
        patches = token = looked = None
        if tokens:
            # The last block of a transformer was computed for the pooled token alone.
            patches, token = _divided(whole(block, before) if state.ndim == 2 else state)
        if attention and hasattr(block, "attention_maps"):
            looked = maps(block, before)
        found.append(Intermediate(number, patches, token, looked))
    of_pool = maps(pool, seen[stages[-1]])[:, :, 0] if attention and pool is not None else None
    return Intermediates(tuple(found), of_pool)


def _numbers(blocks: Iterable[int], count: int) -> list[int]:
    try:
        numbers = list(blocks)
    except TypeError:
        raise ClipError(f"The blocks are {blocks!r}, expected their numbers, such as [0, -1].") from None
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or not -count <= number < count:
            raise ClipError(
                f"There is no block {number!r} in an image tower of {count} blocks; choose from {-count} to "
                f"{count - 1}."
            )
    return [int(number) % count for number in numbers]


def _part(visual: Any, name: str) -> Any:
    """The part of this name, such as ``visual.transformer.resblocks.3``."""
    part = visual
    for step in name.split(".")[1:]:
        part = part[int(step)] if step.isdigit() else getattr(part, step)
    return part


def _divided(state: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Tokens [n, l, d] or a map [n, d, h, w] -> patches [n, rows, columns, d] and the class token [n, d], if any."""
    if state.ndim == 4:
        return np.ascontiguousarray(state.transpose(0, 2, 3, 1)), None
    n, length, width = state.shape
    grid = int(length**0.5)  # patches make a square, so that what is left over is the class token
    leading = length - grid**2
    return state[:, leading:].reshape(n, grid, grid, width), state[:, 0] if leading else None
