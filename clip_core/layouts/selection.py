"""Finding a CLIP among the tensors of a file, and whose names it has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from clip_core.architecture import Architecture
from clip_core.errors import CheckpointError
from clip_core.layouts import LAYOUTS
from clip_core.layouts.parts import Layout
from clip_core.naming import Weights

# Parts that wrappers put into names: compilation, sharding, recomputation. At the start they are a prefix like others.
_WRAPPERS = re.compile(r"(?<=[./])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)[./]")
MAX_MODELS = 100  # CLIPs in one file
# Constants that some files store among the weights; the architecture already tells them.
_CONSTANTS = ("input_resolution", "context_length", "vocab_size", "position_ids", "attn_mask")
# The two names by which a CLIP is found inside a larger module, in each spelling.
_MARKS = {marks for layout in LAYOUTS.values() for marks in layout.marks()}


@dataclass(frozen=True)
class Selection:
    """The tensors of a file that are a CLIP's, without the prefix that the rest of their names shares."""

    weights: Weights
    prefix: str
    left_out: tuple[str, ...]  # the names of the tensors that are not below the prefix


def select(tensors: Mapping[str, np.ndarray], prefix: str | None = None) -> Selection:
    """The one CLIP in ``tensors``, which may be a part of a larger module; constants that are no weights go.

    A CLIP is where both an embedding of tokens and one of patches are. Where there is none, the names stay as they are.

    Args:
        prefix: which one to take of several, like ``teacher.``; the separator at its end may be left out.

    Raises:
        CheckpointError: there are several and ``prefix`` is None, there is none below ``prefix``, or two names become
            one without what wrappers put in.
    """
    plain: Weights = {}
    for name, array in tensors.items():
        unwrapped = _WRAPPERS.sub("", name)
        if re.split(r"[./]", unwrapped)[-1] in _CONSTANTS:
            continue
        if unwrapped in plain:
            raise CheckpointError(f"{name} and another name both become {unwrapped} without their wrapper; remove one.")
        plain[unwrapped] = array
    found = _prefixes(plain)
    chosen = _choose(plain, found, prefix)
    # Of models inside each other, a tensor belongs to the innermost.
    inner = tuple(other for other in found if other != chosen and other.startswith(chosen))
    weights = {
        name[len(chosen) :]: array
        for name, array in plain.items()
        if name.startswith(chosen) and not (inner and name.startswith(inner))
    }
    left_out = (name for name in plain if not name.startswith(chosen) or (inner and name.startswith(inner)))
    return Selection(weights, chosen, tuple(left_out))


def _prefixes(names: Iterable[str]) -> list[str]:
    """What stands before both marks of a CLIP, sorted."""
    before: dict[str, set[str]] = {mark: set() for marks in _MARKS for mark in marks}
    for name in names:
        for mark, prefixes in before.items():
            if name.endswith(mark) and (start := name[: -len(mark)])[-1:] in ("", ".", "/"):
                prefixes.add(start)
    return sorted(set().union(*(before[tokens] & before[patches] for tokens, patches in _MARKS)))


def _choose(names: Iterable[str], found: list[str], prefix: str | None) -> str:
    if len(found) > MAX_MODELS:
        raise CheckpointError(f"it holds {len(found)} CLIPs; at most {MAX_MODELS} in one file are told apart.")
    shown = ", ".join(f"{one!r:.80}" for one in found[:5]) + (" and more" if len(found) > 5 else "")
    if prefix is not None:
        chosen = next((one for one in found if one.rstrip("./") == prefix.rstrip("./")), None)
        if chosen is None:
            there = f"there is one below {shown}" if found else "there is none below any other either"
            raise CheckpointError(f"no CLIP is below the prefix {prefix!r:.80}; {there}.")
        return chosen
    if len(found) > 1:
        others = [name for name in names if not name.startswith(tuple(found))]
        beside = ", ".join(f"{one!r:.80}" for one in others[:3]) + (" and more" if len(others) > 3 else "")
        raise CheckpointError(
            f"it holds several CLIPs, below the prefixes {shown}{f' (and beside them {beside})' if others else ''}; "
            f"clip convert --prefix {found[-1]!r:.80} takes that one out of it."
        )
    return found[0] if found else ""


def detect(weights: Mapping[str, np.ndarray]) -> Layout:
    """The layout that the names of `Selection.weights`, and for Paddle's the shapes, speak for."""
    return next(layout for layout in reversed(LAYOUTS.values()) if layout.recognises(weights))


def canonical(weights: Mapping[str, np.ndarray], architecture: Architecture) -> Weights:
    """`Selection.weights` of a model that is known, under the canonical names and in the canonical axis order.

    Names that nobody knows stay as they are.

    Raises:
        CheckpointError: two names become one.
    """
    layout = detect(weights)
    return layout.reorder(layout.to_canonical(weights), architecture)
