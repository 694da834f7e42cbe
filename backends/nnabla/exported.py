"""Models of NNabla as ``.nnp`` files: archives of a network of NNabla's own functions and of its parameters."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import nnabla as nn
import nnabla.functions as F
import numpy as np
from google.protobuf import text_format
from nnabla.utils.nnp_format import nnp_version
from nnabla.utils.save import create_proto

from backends.nnabla.functions import for_a_file
from backends.nnabla.model import CLIP
from backends.nnabla.module import SWITCHES
from backends.nnabla.tensors import to_array
from clip_core.layouts import LAYOUTS
from clip_core.layouts.nnabla import METADATA, OF_CHANNELS, TRANSPOSED
from clip_core.naming import Weights

BATCHES = 2, 3  # two networks that differ in what depends on the size of a batch alone

Variables = dict[str, nn.Variable]


def save(clip: CLIP, part: str, path: Path, inputs: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Write a tower, or both, as a network and an executor of that name; batches may have any size.

    Args:
        part: ``image``, ``text`` or ``both``.
        inputs: ``image`` and ``text``, whose shapes beside the batch are those that the file takes.
    """
    stored = _stored(clip, part)
    graph, other = (_graph(clip, part, inputs, batch, stored) for batch in BATCHES)
    _open_batches(graph, other)
    stored = _as_used(graph, stored)
    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:  # as NNabla writes it, without what that prints
        for index, (name, variable) in enumerate(stored.items()):
            file[name] = variable.data.get_data("r")
            file[name].attrs.update(need_grad=variable.need_grad, index=index)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("nnp_version.txt", f"{nnp_version()}\n")
        archive.writestr("network.nntxt", text_format.MessageToString(graph))
        archive.writestr("parameter.h5", weights.getvalue())
        archive.writestr(METADATA, json.dumps(metadata))


def _stored(clip: CLIP, part: str) -> Variables:
    """The parameters of a part under their names in NNabla."""
    if part == "both":
        return clip.spelled_parameters()
    of_part = clip.architecture.mounted("image" if part == "image" else "text")
    names = {LAYOUTS["nnabla"].spell(parameter.name) for parameter in of_part}
    return {name: variable for name, variable in clip.spelled_parameters().items() if name in names}


def _graph(clip: CLIP, part: str, inputs: Mapping[str, np.ndarray], batch: int, stored: Variables) -> Any:
    """The network and the executor of a part for ``batch`` pictures and one more texts, as NNabla's message."""
    image = nn.Variable((batch, *inputs["image"].shape[1:]))
    text = nn.Variable((batch + 1, *inputs["text"].shape[1:]))
    with SWITCHES, nn.auto_forward(False), nn.parameter_scope("", {}), for_a_file():
        for name, variable in stored.items():
            nn.parameter.set_parameter(name, variable)
        if part == "image":
            names, outputs = {"image": image}, {"image_features": clip.encode_image(image)}
        elif part == "text":
            names, outputs = {"text": text}, {"text_features": clip.encode_text(text)}
        else:
            names, (per_image, per_text) = {"image": image, "text": text}, clip(image, text)
            # The logits per text are computed from those per image, and no output is computed from another one.
            outputs = {"logits_per_image": F.add_scalar(per_image, 0.0), "logits_per_text": per_text}
        network = {"name": part, "batch_size": 1, "names": names, "outputs": outputs}
        executor = {"name": part, "network": part, "data": list(names), "output": list(outputs)}
        contents = {"networks": [network], "executors": [executor | {"no_image_normalization": True}]}
        return create_proto(contents, variable_batch_size=False)


def _open_batches(graph: Any, other: Any) -> None:
    """Put -1, which NNabla takes for the size of the batch, wherever both graphs have other sizes."""

    def pairs() -> Iterator[tuple[Any, Any]]:
        for one, two in zip(graph.network[0].variable, other.network[0].variable):
            yield one.shape.dim, two.shape.dim
        for one, two in zip(graph.network[0].function, other.network[0].function):
            if one.type == "Reshape":
                yield one.reshape_param.shape.dim, two.reshape_param.shape.dim

    for one, two in pairs():
        for place, (size, other_size) in enumerate(zip(one, two)):
            if size != other_size:
                one[place] = two[place] = -1
    assert graph == other, "nothing but shapes may depend on the size of a batch"


def _as_used(graph: Any, stored: Variables) -> Variables:
    """The parameters, some of them in the form that the network brings them into, which is changed to match.

    Other runtimes prepare the matrices of affine functions and the statistics of normalisations beforehand, and so need
    them to be parameters.
    """
    (network,), (executor,) = graph.network, graph.executor
    statistics = {
        name for function in network.function if function.type == "BatchNormalization" for name in function.input
    }
    ends, replaced = {}, {}  # of the new names of parameters; new names in place of what is computed
    for function in network.function:
        name, output = function.input[0] if function.input else "", function.output[0]
        transposed = function.type == "Transpose"
        if name in stored and (transposed or output in statistics):
            ends[name] = TRANSPOSED if transposed else OF_CHANNELS
            replaced[output] = name + ends[name]
    _keep(network.function, [function for function in network.function if function.output[0] not in replaced])
    _keep(network.variable, [variable for variable in network.variable if variable.name not in replaced])
    for function in network.function:
        function.input[:] = [replaced.get(name, name) for name in function.input]
    result = {}
    for name, variable in stored.items():
        if name in ends:
            array = to_array(variable)
            array = array.T.copy() if ends[name] == TRANSPOSED else array.reshape(1, -1, 1, 1)
            variable = nn.Variable.from_numpy_array(array, need_grad=variable.need_grad)
        result[name + ends.get(name, "")] = variable
    for variable in network.variable:
        if variable.name in ends:
            variable.name += ends[variable.name]
            variable.shape.dim[:] = result[variable.name].shape
    for parameter in executor.parameter_variable:
        parameter.variable_name += ends.get(parameter.variable_name, "")
    return result


def _keep(messages: Any, kept: list[Any]) -> None:
    """Let these alone of a message's own list stay in it."""
    del messages[:]
    messages.extend(kept)


class Session:
    """A file that `save` has just written, ready to run."""

    def __init__(self, path: Path) -> None:
        self._graph = nn.graph_def.load(str(path))

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Weights:
        """All outputs by their names; of ``inputs`` those that the part takes are given to it."""
        with SWITCHES, nn.auto_forward(False), nn.no_grad():
            network = self._graph.default_graph().clone()  # one that has not been built for batches of another size
            variables = [nn.Variable.from_numpy_array(inputs[name]) for name in network.inputs]
            network(*variables, batch_size=-1)  # pictures and texts each have a batch of their own
            outputs = {name: network.variables[name].variable_instance for name in network.outputs}
            nn.forward_all(list(outputs.values()), clear_buffer=True)
        return {name: to_array(output) for name, output in outputs.items()}
