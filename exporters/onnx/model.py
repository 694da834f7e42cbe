"""CLIP in ONNX: a graph of the image tower, of the text tower, or of both with the logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from clip_core.architecture import Architecture
from clip_core.backend import Observe, below, ignore
from clip_core.errors import CheckpointError, ClipError
from exporters.onnx.graph import Graph, Value
from exporters.onnx.layers import part
from exporters.onnx.towers import IMAGE_TOWERS, TEXT_TOWERS

Part = Literal["image", "text", "both"]
PRECISIONS: dict[str, type[np.floating]] = {"fp32": np.float32, "fp16": np.float16}


def write(
    architecture: Architecture,
    weights: Mapping[str, np.ndarray],
    what: Part,
    precision: str = "fp32",
    layers: bool = False,
) -> Graph:
    """The graph of a model, or of one of its towers.

    Its inputs are ``image`` float32 [images, 3, r, r] and ``text`` int64 [texts, length], where length goes up to the
    model's context, or is the context where the padding takes part. The outputs of a tower are ``image_features`` or
    ``text_features`` [n, d], not normalised, and those of both ``logits_per_image`` [images, texts] and
    ``logits_per_text`` [texts, images].

    Args:
        weights: canonical name -> array, all of them.
        precision: what the towers compute in.
        layers: make what each block computes an output, too, under its name in `clip_core.backend.Model.layers`.

    Raises:
        ClipError: a tower has no graph.
        CheckpointError: a weight does not fit the precision.
    """
    graph = Graph(weights, PRECISIONS[precision])

    def layer(name: str, value: Value) -> None:
        graph.output(name, cast(value, np.float32))

    observe = layer if layers else ignore
    if what == "image":
        graph.output("image_features", image_features(graph, architecture, observe), ["images", architecture.embed_dim])
    elif what == "text":
        graph.output("text_features", text_features(graph, architecture, observe), ["texts", architecture.embed_dim])
    else:
        image, text = (features(graph, architecture, observe) for features in (image_features, text_features))
        per_image = logits(graph, image, text)
        graph.output("logits_per_image", per_image, ["images", "texts"])
        graph.output("logits_per_text", per_image.T, ["texts", "images"])
    for name, array in graph.weights.items():
        if not np.isfinite(array).all():
            raise CheckpointError(f"{name} has values that are not finite in {precision}; export the model in fp32.")
    return graph


def image_features(graph: Graph, architecture: Architecture, observe: Observe) -> Value:
    """The features float32 [n, d] of the pixels that the graph takes."""
    tower = architecture.image
    if tower.kind not in IMAGE_TOWERS:
        raise ClipError(f"There is no ONNX of a {tower.title}; export another model.")
    side = tower.resolution
    pixels = graph.input("image", np.float32, ["images", 3, side, side])
    visual = IMAGE_TOWERS[tower.kind](part(graph.parameters(), "visual"), tower)
    return cast(visual(cast(pixels, graph.dtype), below("visual.", observe)), np.float32)


def text_features(graph: Graph, architecture: Architecture, observe: Observe) -> Value:
    """The features float32 [n, d] of the tokens that the graph takes."""
    tower = architecture.text
    if tower.kind not in TEXT_TOWERS:
        raise ClipError(f"There is no ONNX of a {tower.title}; export another model.")
    length = tower.context_length if tower.shortest_length == tower.context_length else "length"
    tokens = graph.input("text", np.int64, ["texts", length])
    own = graph.parameters() if tower.at_root else part(graph.parameters(), "text")
    features = TEXT_TOWERS[tower.kind](own, tower)(tokens, below(architecture.prefix("text"), observe))
    return cast(features, np.float32)


def logits(graph: Graph, image: Value, text: Value) -> Value:
    """The logits per image [n, m] of features float32 [n, d] and [m, d]."""
    joint = graph.parameters()
    cosines = normalize(image) @ normalize(text).T
    scaled = cosines * graph.node("Exp", joint["logit_scale"])
    return scaled + joint["logit_bias"] if "logit_bias" in joint else scaled


def normalize(features: Value) -> Value:
    """Features [n, d] scaled to length 1."""
    return features / features.graph.node("Sqrt", (features * features).sum(axis=-1, keepdims=True))


def cast(value: Value, dtype: type[np.floating]) -> Value:
    """A value of the towers in float32, or an input in what they compute in."""
    return value if value.graph.dtype is np.float32 else value.astype(dtype)
