"""What a trainer's state is made of, the same for every framework: weights and both moments under canonical names."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from clip_core.architecture import Architecture
from clip_core.errors import CheckpointError
from clip_core.naming import faults, parameters


def check_state(architecture: Architecture, trained: Collection[str], state: Mapping[str, np.ndarray]) -> None:
    """Refuse a training state that does not fit ``architecture`` exactly.

    Args:
        trained: the names of the parameters that are trained, which have moments.

    Raises:
        CheckpointError: listing every fault.
    """
    weights = {name[len("weights/") :]: array for name, array in state.items() if name.startswith("weights/")}
    found = [f"weights/{fault}" for fault in faults(architecture, weights)]
    moments = {
        f"{kind}_moment/{parameter.name}": parameter.shape
        for kind in ("first", "second")
        for parameter in parameters(architecture)
        if parameter.name in trained
    }
    shapes = moments | {"updates": ()}
    given = {name: array for name, array in state.items() if not name.startswith("weights/")}
    found += [f"{name} is missing" for name in sorted(shapes.keys() - given.keys())]
    found += [f"{name} is not part of a training state" for name in sorted(given.keys() - shapes.keys())]
    for name in sorted(shapes.keys() & given.keys()):
        array, dtype = given[name], np.int64 if name == "updates" else np.float32
        if array.shape != shapes[name] or array.dtype != dtype:
            found.append(f"{name} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shapes[name]}")
        elif not np.isfinite(array).all():
            found.append(f"{name} holds NaN or infinity")
    if found:
        raise CheckpointError(f"The training state does not fit the model: {'; '.join(found)}.")
