"""Which of the dictionaries in a pickle holds the weights, and which of its entries are tensors.

People save a state dictionary by itself, or inside of another, beside an epoch, an optimizer, scores and arguments. The
outermost dictionary and its entries named in `WRAPPERS` are looked at, and their entries of these names in turn. Those
of them that have tensors under names that weights have come before those with other tensors. If there is one, it holds
the weights; if there are several, such as the weights and their moving average, only the user can tell, and the file is
refused. Of the rest of the file nothing is looked at.

In the dictionary of weights, an entry that is no tensor is passed over, unless its name is one that weights have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from clip_core.buffers import MAX_NAME_LETTERS, checked_name, shown
from clip_core.errors import CheckpointError
from clip_core.naming import Weights

WRAPPERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params"),
    *("ema", "ema_state_dict", "ema_model", "model_ema", "model_ema_state_dict", "state_dict_ema", "params_ema"),
)
MAX_DEPTH = 4

# Inside of a module, or one of those that a CLIP has by itself.
_WEIGHT = re.compile(r".*[./].*|text_projection|positional_embedding|logit_scale|logit_bias", re.DOTALL)


@dataclass(frozen=True)
class State:
    """The dictionary of weights of a file."""

    entry: str  # where it is, as "model.state_dict"; "" for the outermost dictionary
    entries: dict[Any, Any]
    tensors: Weights  # of the entries


def find(loaded: Any, array_of: Callable[[Any], np.ndarray | None], fault: Callable[[Any], str | None]) -> State:
    """The weights in an object that `pickles.load` gave.

    Args:
        array_of: the array that an object of the format's stands for, None for what stands for none.
        fault: why what stands for no array cannot be a weight; None for a plain value.

    Raises:
        CheckpointError: there is no dictionary of weights, there are several, or a weight in it is no tensor.
    """
    if type(loaded) is not dict:
        found = shown(loaded) if array_of(loaded) is None else "one tensor"
        sentence = f"the file holds {found}, not a dictionary of weights; save model.state_dict()."
        raise CheckpointError(fault(loaded) or sentence)
    everywhere = [(path, entries, _tensors(entries, array_of)) for path, entries in _reachable(loaded)]
    named = [place for place in everywhere if any(map(_is_weight, place[2]))]
    places = named or [place for place in everywhere if place[2]]
    if len(places) > 1:
        listed = " and ".join(path or "the outermost dictionary" for path, _, _ in places)
        raise CheckpointError(f"the file holds weights in several places, {listed}; save the ones that you want alone.")
    if not places:
        raise CheckpointError(_nothing([entries for _, entries, _ in everywhere], fault))
    ((path, entries, tensors),) = places
    for name, value in entries.items():
        if value is not None and name not in tensors and _is_weight(name):
            raise CheckpointError(fault(value) or f"{shown(name)} is {shown(value)}, where a tensor is expected.")
    return State(path, entries, {checked_name(name): array for name, array in tensors.items()})


def _reachable(loaded: dict[Any, Any]) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Each dictionary that may hold the weights once, with the path to it."""
    seen = set()
    waiting = [("", loaded)]
    for _ in range(MAX_DEPTH):
        following = []
        for path, entries in waiting:
            if id(entries) not in seen:
                seen.add(id(entries))
                yield path, entries
                following += [(f"{path}.{key}".lstrip("."), entries[key]) for key in WRAPPERS if key in entries]
        waiting = [(path, entries) for path, entries in following if type(entries) is dict]


def _tensors(entries: dict[Any, Any], array_of: Callable[[Any], np.ndarray | None]) -> dict[Any, np.ndarray]:
    arrays = {name: array_of(value) for name, value in entries.items()}
    return {name: array for name, array in arrays.items() if array is not None}


def _is_weight(name: Any) -> bool:
    return type(name) is str and len(name) <= MAX_NAME_LETTERS and _WEIGHT.fullmatch(name) is not None


def _nothing(places: list[dict[Any, Any]], fault: Callable[[Any], str | None]) -> str:
    """Why there are no weights in any of the dictionaries, of which the first is the outermost."""
    for entries in reversed(places):
        for name in (*WRAPPERS, *entries):
            if found := fault(entries.get(name)):
                return found
    names = [shown(name) for name in places[0] if type(name) is str]
    return (
        f"the file holds no weights: tensors are looked for in its dictionary and in entries such as "
        f"{', '.join(WRAPPERS[:4])}; its entries are {', '.join(names[:5]) or 'none'}. Save model.state_dict()."
    )
