"""The same pixels and tokens through every backend, compared with the float64 reference stage by stage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

import backends
from backends.numpy import CLIP as Reference
from clip import samples
from clip.api import LoadedModel, open_model, weights_file
from clip_core import similarity, tolerances
from clip_core.backend import Model, Tensor, plainly
from clip_core.errors import ClipError
from clip_core.image import open_image
from clip_core.initialize import random_weights
from clip_core.models import architecture_of
from clip_core.towers.parts import TextTower


@dataclass(frozen=True)
class Inputs:
    """What every backend is given."""

    pixels: np.ndarray  # float32 [n, 3, r, r]
    tokens: np.ndarray  # int64 [m, context]


@dataclass(frozen=True)
class Comparison:
    """How far one backend is from the reference; every figure is the largest absolute difference."""

    backend: str
    tokens_equal: bool  # after the way into the framework's tensor and back
    pixels_equal: bool
    image_embedding: float  # of embeddings scaled to length 1
    text_embedding: float
    logits: float
    layers: dict[str, float] = field(default_factory=dict)  # relative to the largest value of the block's output

    def faults(self, bounds: dict[str, float]) -> list[str]:
        """The stages beyond their bounds, in the order of computation."""
        found = [stage for stage in ("tokens", "pixels") if not getattr(self, f"{stage}_equal")]
        found += [layer for layer, difference in self.layers.items() if not difference <= bounds["layer"]]
        # `not <=` rather than `>`, so that NaN is a fault.
        return found + [
            stage
            for stage in ("image_embedding", "text_embedding", "logits")
            if not getattr(self, stage) <= bounds[stage]
        ]


@dataclass(frozen=True)
class Report:
    """The outcome for one checkpoint."""

    checkpoint: str
    bounds: dict[str, float]
    comparisons: list[Comparison]
    assumed: tuple[str, ...] = ()  # what nobody says of the architecture: all backends compute with the same assumption

    @property
    def passed(self) -> bool:
        return not any(comparison.faults(self.bounds) for comparison in self.comparisons)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, which has no NaN or infinity: a figure that is one is None."""
        return {
            "checkpoint": self.checkpoint,
            "tolerances": {stage: _finite(bound) for stage, bound in self.bounds.items()},
            "backends": {
                comparison.backend: {
                    "tokens_equal": comparison.tokens_equal,
                    "pixels_equal": comparison.pixels_equal,
                    "image_embedding": _finite(comparison.image_embedding),
                    "text_embedding": _finite(comparison.text_embedding),
                    "logits": _finite(comparison.logits),
                    "layers": {name: _finite(difference) for name, difference in comparison.layers.items()},
                    "first_beyond_bound": next(iter(comparison.faults(self.bounds)), None),
                }
                for comparison in self.comparisons
            },
            "passed": self.passed,
            "assumed": list(self.assumed),
        }


def compare(
    name: str | Path,
    names: Sequence[str] | None = None,
    layers: bool = False,
    activation: str | None = None,
    heads: tuple[int, int] | None = None,
    random: bool = False,
    plain: bool = False,
) -> Report:
    """Load ``name``, a model's name or a file, in each backend and compare it with the reference.

    Args:
        names: the backends; by default all whose framework is installed.
        layers: compare every block as well.
        activation, heads: as for `clip.load`.
        random: with seeded random weights rather than a file's; ``name`` is that of any architecture that is known.
        plain: compare the plain way of computing (`plainly`), in place of the fast one of inference.

    Raises:
        ClipError: the file cannot be read, or a backend that was asked for is missing.
    """
    chosen = list(dict.fromkeys(backends.available() if names is None else names))
    if not chosen:
        raise ClipError(f"There are no backends to compare; choose some of {', '.join(backends.NAMES)}.")
    for backend in chosen:
        backends.get(backend)  # before the work, not in the middle of it
    if random:
        return _compare_random(str(name), chosen, layers, plain)
    judge = open_model(name, backend="numpy", precision="fp64", activation=activation, heads=heads)
    path = weights_file(name)[0]
    models = (
        open_model(path, backend=backend, device="cpu", activation=activation, heads=heads).model for backend in chosen
    )
    report = compare_models(str(path), judge.model, models, sample_inputs(judge), layers, plain)
    return replace(report, assumed=judge.assumed)


def _compare_random(name: str, chosen: Sequence[str], layers: bool, plain: bool) -> Report:
    architecture = architecture_of(name)
    if architecture is None:
        raise ClipError(f"There is no architecture {name!r}; clip models lists those that are known.")
    weights = random_weights(architecture, seed=0)
    judge = Reference(architecture, weights, precision="fp64")
    inputs = sample_inputs(LoadedModel(name, judge, float(np.exp(weights["logit_scale"]))))
    models = (backends.get(backend).CLIP(architecture, weights, device="cpu") for backend in chosen)
    return compare_models(f"{name} with random weights", judge, models, inputs, layers, plain)


def compare_models(
    checkpoint: str,
    judge: Reference | Model,
    models: Iterable[Model],
    inputs: Inputs,
    layers: bool = False,
    plain: bool = False,
) -> Report:
    """Compare ``models``, one in memory at a time, with ``judge``, which computes in float64."""
    expected_image, expected_text = embeddings(judge, inputs)
    expected_logits = logits(judge, inputs)
    expected_layers = judge.layers(inputs.pixels, inputs.tokens) if layers else {}
    comparisons = []
    for model in models:
        framework = backends.get(model.backend)
        with plainly() if plain else nullcontext():
            (image, text), scores = embeddings(model, inputs), logits(model, inputs)
        found = model.layers(inputs.pixels, inputs.tokens) if layers else {}
        comparisons.append(
            Comparison(
                backend=model.backend,
                tokens_equal=bool((framework.to_array(framework.to_tensor(inputs.tokens)) == inputs.tokens).all()),
                pixels_equal=bool((framework.to_array(framework.to_tensor(inputs.pixels)) == inputs.pixels).all()),
                image_embedding=difference(image, expected_image),
                text_embedding=difference(text, expected_text),
                logits=difference(scores, expected_logits),
                layers={name: _relative_difference(found[name], value) for name, value in expected_layers.items()},
            )
        )
    return Report(checkpoint, bounds(float(np.exp(judge.export()["logit_scale"]))), comparisons)


def bounds(logit_scale: float) -> dict[str, float]:
    """Stage -> the largest difference that the numeric contract allows."""
    return {
        "image_embedding": tolerances.EMBEDDING,
        "text_embedding": tolerances.EMBEDDING,
        "logits": tolerances.logit_bound(logit_scale),
        "layer": tolerances.LAYER,
    }


def sample_inputs(loaded: LoadedModel) -> Inputs:
    """Drawn pictures with their captions, and token rows of every length up to the model's context.

    Where the model's vocabulary cannot be had, offline say, the token rows stand alone.
    """
    pictures = samples.pictures()
    rows = token_rows(loaded.model.architecture.text)
    with suppress(ClipError):
        context_length = loaded.model.architecture.text.context_length
        rows = np.concatenate([loaded.model.tokenizer.tokenize(pictures, context_length, truncate=True), rows])
    return Inputs(np.stack([loaded.preprocess.pixels(open_image(path)) for path in pictures.values()]), rows)


def token_rows(text: TextTower, count: int = 4, seed: int = 0) -> np.ndarray:
    """Random token rows int64 [count, context], from the shortest to the longest, ended and padded as texts are."""
    context, end, padding = text.context_length, text.required_token, text.padding_token or 0
    generator = np.random.default_rng(seed)
    others = [token for token in range(text.vocabulary_size) if token not in (end, padding)] or [0]
    rows = np.full((count, context), padding, np.int64)
    for row, length in zip(rows, np.linspace(min(2, context), context, len(rows)).astype(int)):
        row[:length] = generator.choice(others, length)
        if end is not None:
            row[length - 1] = end
    return rows


def embeddings(model: Reference | Model, inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """The embeddings of pictures [n, d] and texts [m, d], scaled to length 1 in float64."""
    image, text = model.embed_image(inputs.pixels), model.embed_text(inputs.tokens)
    return similarity.normalize(image.astype(np.float64)), similarity.normalize(text.astype(np.float64))


def logits(model: Reference | Model, inputs: Inputs) -> np.ndarray:
    """The logits [n, m] that the model itself computes, by its own normalisation and scale."""
    per_image: Tensor = model(inputs.pixels, inputs.tokens)[0]
    return backends.get(model.backend).value_of(per_image)


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest absolute difference of a value."""
    return float(np.abs(found - expected).max())


def _relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference relative to the largest value; of values that are all zero, the difference itself."""
    return difference(found, expected) / (float(np.abs(expected).max()) or 1.0)


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
