"""simple-clip (github.com/filipbasara0/simple-clip): the names of its model, and what it does with pictures."""

from __future__ import annotations

import re
from pathlib import Path

from clip_core.architecture import Architecture
from clip_core.errors import CheckpointError
from clip_core.layouts import bert
from clip_core.layouts.parts import Layout, Word, join_attention, split_attention, starts
from clip_core.naming import Weights
from clip_core.pixels import Pixels

# Its image encoder is a sequence of torchvision's parts: of a residual network the first convolution, its
# normalisation, two parts without weights and the four stages; of EfficientNet all features.
_STAGES = {"0.weight": "conv1.weight"} | {
    f"1.{leaf}": f"bn1.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
}
_SPELLED_STAGES = {ours: theirs for theirs, ours in _STAGES.items()}
_TOP = {
    "image_projection.0.weight": "visual.head.c_fc.weight",
    "image_projection.2.weight": "visual.head.c_proj.weight",
    "text_projection.0.weight": "text.head.c_fc.weight",
    "text_projection.2.weight": "text.head.c_proj.weight",
    "t_prime": "logit_scale",
    "b": "logit_bias",
}
_SPELLED_TOP = {ours: theirs for theirs, ours in _TOP.items()}
_IMAGE, _TRUNK = "image_encoder.", "visual.trunk."
_TEXT = "text_encoder.model."


def _canonical(name: str) -> str:
    if name.startswith(_TEXT):
        return f"text.{bert.canonical(name.removeprefix(_TEXT))}"
    if not name.startswith(_IMAGE):
        return _TOP.get(name, name)
    inner = name.removeprefix(_IMAGE)
    if match := re.fullmatch(r"([4-7])\.(.+)", inner):
        inner = f"layer{int(match[1]) - 3}.{match[2]}"
    elif match := re.fullmatch(r"0\.([0-9]+\..+)", inner):
        inner = f"features.{match[1]}"
    return _TRUNK + _STAGES.get(inner, inner)


def _spell(name: str) -> str:
    if name in _SPELLED_TOP:
        return _SPELLED_TOP[name]
    if not name.startswith(_TRUNK):
        return _TEXT + bert.spell(name.removeprefix("text."))
    inner = name.removeprefix(_TRUNK)
    if match := re.fullmatch(r"layer([1-4])\.(.+)", inner):
        inner = f"{int(match[1]) + 3}.{match[2]}"
    elif inner.startswith("features."):
        inner = f"0.{inner.removeprefix('features.')}"
    return _IMAGE + _SPELLED_STAGES.get(inner, inner)


def _join(weights: Weights) -> Weights:
    if "projection_head.0.weight" in weights:
        raise CheckpointError(
            "it was saved by an early simple-clip, whose model has a projection_head for pictures alone: it lacks "
            "image_projection, text_projection, t_prime and b, and cannot be computed here; train it anew."
        )
    return join_attention(weights)


def _words(path: Path, layout: str, inferred: Architecture) -> list[Word]:
    if layout != "simple_clip":
        return []
    # Its towers are torchvision's and DistilBERT's own, as `infer` has them; pictures are resized and not normalised.
    fields = inferred.named_fields
    said = {
        f"{place}.{name}": fields[f"{place}.{name}"] for place, one in inferred.towers.items() for name in one.untold
    }
    pixels = Pixels((0.0,) * 3, (1.0,) * 3, "bilinear", "squash")
    return [Word("simple-clip's package", said | {"image.pixels": pixels})]


LAYOUT = Layout(
    "simple_clip",
    lambda weights: starts(weights, _IMAGE) and starts(weights, "text_encoder."),
    _spell,
    _canonical,
    towers=(("torchvision_resnet", "distilbert"), ("efficientnet_v2", "distilbert")),
    join=_join,
    split=split_attention,
    words=_words,
    has_tokenizer=lambda path, layout: layout == "simple_clip",  # its own files have none: copied from DistilBERT's
)
