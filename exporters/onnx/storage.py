"""Files of ONNX: written whole, read back by name and compared bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from clip_core import files
from clip_core.buffers import as_bytes
from clip_core.errors import CheckpointError, ClipError
from clip_core.naming import Weights
from exporters.onnx.graph import DEFAULT_OPSET, NEWEST_OPSET, OLDEST_OPSET, Graph, inside, outside

MOST_INSIDE = (2 << 30) - (64 << 20)  # bytes of weights; Protocol Buffers end at 2 GiB
BESIDE = ".data"  # behind the name of the file whose weights are outside of it
PREFIX = "triclip."  # of the properties that hold the metadata


def check_opset(opset: int | None) -> int:
    """The version of the operators, by default the one that most runtimes know.

    Raises:
        ClipError: it is not one of those that are written here.
    """
    newest = min(NEWEST_OPSET, onnx.defs.onnx_opset_version())
    if opset is None:
        return DEFAULT_OPSET
    if not OLDEST_OPSET <= opset <= newest:
        raise ClipError(f"The opset {opset} is not written here; choose one from {OLDEST_OPSET} to {newest}.")
    return opset


def save(graph: Graph, path: Path, opset: int, metadata: Mapping[str, Any]) -> None:
    """`write`, and read back.

    Raises:
        CheckpointError: what is read back is not what was written.
    """
    write(graph, path, opset, metadata)
    onnx.checker.check_model(str(path), full_check=True)
    found = read(path)
    for name, array in graph.weights.items():
        if name not in found or found[name].dtype != array.dtype or as_bytes(found[name]) != as_bytes(array):
            raise CheckpointError(f"{path} does not hold {name} as it was written; check the disk.")


def write(graph: Graph, path: Path, opset: int, metadata: Mapping[str, Any]) -> None:
    """Write a graph and its weights, which go into a file of their own beside it if they are too large for one."""
    properties = {PREFIX + key: json.dumps(value) for key, value in metadata.items()}
    if sum(array.nbytes for array in graph.weights.values()) <= MOST_INSIDE:
        model = graph.model(path.stem, opset, properties, inside)
    else:
        offset = 0
        offsets = {}
        with files.atomic_open(path.with_name(path.name + BESIDE)) as file:
            for name, array in graph.weights.items():
                offsets[name] = offset
                offset += file.write(as_bytes(array))

        def stored(name: str, array: np.ndarray) -> onnx.TensorProto:
            return outside(name, array, path.name + BESIDE, offsets[name])

        model = graph.model(path.stem, opset, properties, stored)
    files.write_bytes(path, model.SerializeToString())


def with_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    """Give a file that another program has written the same metadata as `save` does."""
    model = onnx.load(str(path), load_external_data=False)
    onnx.helper.set_model_props(model, {PREFIX + key: json.dumps(value) for key, value in metadata.items()})
    model.producer_name = "triclip"
    files.write_bytes(path, model.SerializeToString())
    onnx.checker.check_model(str(path), full_check=True)


def put_before(path: Path, name: str, graph: Graph, output: str) -> None:
    """Let a file begin with a graph whose ``output`` is what the file has taken so far as its input ``name``.

    An input of that name remains: that of the graph. The names of all else in it begin with that of its output.
    """
    model = onnx.load(str(path), load_external_data=False)
    version = model.opset_import[0].version
    before = onnx.compose.add_prefix(graph.model(output, version, {}, inside), f"{output}/").graph
    after = model.graph
    for nodes, old, new in (
        (before.node, f"{output}/{name}", name),
        (after.node, name, f"{output}/{output}"),
    ):
        for node in nodes:
            node.input[:] = [new if each == old else each for each in node.input]
    (taken,) = (each for each in after.input if each.name == name)
    taken.CopyFrom(before.input[0])
    taken.name = name
    in_order = [*before.node, *after.node]
    del after.node[:]
    after.node.extend(in_order)
    after.initializer.extend(before.initializer)
    files.write_bytes(path, model.SerializeToString())
    onnx.checker.check_model(str(path), full_check=True)


def remove(path: Path) -> None:
    """Remove a file and the one that may be beside it."""
    path.unlink()
    path.with_name(path.name + BESIDE).unlink(missing_ok=True)


def read(path: Path) -> Weights:
    """The arrays of a file, inside of it and beside it, by their names; nothing in it is executed."""
    return {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(str(path)).graph.initializer}


def metadata_of(path: Path) -> dict[str, Any]:
    """The metadata that `save` has put into a file."""
    model = onnx.load(str(path), load_external_data=False)
    return {
        each.key.removeprefix(PREFIX): json.loads(each.value)
        for each in model.metadata_props
        if each.key.startswith(PREFIX)
    }
