"""The same pixels and tokens through every backend, compared with the float64 reference stage by stage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import backends
from backends.base import Model
from clip import samples
from clip.api import Loaded, open_model, weights_file
from clip_core import similarity, tolerances
from clip_core.architecture import Architecture
from clip_core.errors import ClipError
from clip_core.image import open_image
from clip_core.preprocess import pixels
from clip_core.reference import CLIP as Reference


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

    @property
    def passed(self) -> bool:
        return not any(comparison.faults(self.bounds) for comparison in self.comparisons)

    def to_dict(self) -> dict[str, Any]:
        return {
            "checkpoint": self.checkpoint,
            "tolerances": self.bounds,
            "backends": {
                comparison.backend: {
                    "tokens_equal": comparison.tokens_equal,
                    "pixels_equal": comparison.pixels_equal,
                    "image_embedding": comparison.image_embedding,
                    "text_embedding": comparison.text_embedding,
                    "logits": comparison.logits,
                }
                | ({"layers": comparison.layers} if comparison.layers else {})
                | {"first_beyond_bound": next(iter(comparison.faults(self.bounds)), None)}
                for comparison in self.comparisons
            },
            "passed": self.passed,
        }


def compare(name: str | Path, names: Sequence[str] | None = None, layers: bool = False) -> Report:
    """Load ``name``, a model's name or a file, in each backend and compare it with the reference.

    Args:
        names: the backends; by default all whose framework is installed.
        layers: compare every block as well.

    Raises:
        ClipError: the file cannot be read, or a backend that was asked for is missing.
    """
    path = weights_file(name)[0]
    judge = open_model(name, backend="numpy", precision="fp64")
    inputs = sample_inputs(judge)
    loaded = (open_model(name, backend=backend, device="cpu").model for backend in names or backends.available())
    return compare_models(str(path), judge.model, loaded, inputs, layers)


def compare_models(
    checkpoint: str, judge: Reference | Model, models: Iterable[Model], inputs: Inputs, layers: bool = False
) -> Report:
    """Compare ``models`` one after the other with ``judge``, which computes in float64."""
    scale = float(np.exp(judge.export()["logit_scale"]))
    expected = _embeddings(judge, inputs)
    expected_layers = judge.layers(inputs.pixels, inputs.tokens) if layers else {}
    bounds = {
        "image_embedding": tolerances.EMBEDDING,
        "text_embedding": tolerances.EMBEDDING,
        "logits": tolerances.logit_bound(scale),
        "layer": tolerances.LAYER,
    }
    comparisons = []
    for model in models:
        framework = backends.get(model.backend)
        image, text = _embeddings(model, inputs)
        found = model.layers(inputs.pixels, inputs.tokens) if layers else {}
        comparisons.append(
            Comparison(
                backend=model.backend,
                tokens_equal=bool((framework.to_array(framework.to_tensor(inputs.tokens)) == inputs.tokens).all()),
                pixels_equal=bool((framework.to_array(framework.to_tensor(inputs.pixels)) == inputs.pixels).all()),
                image_embedding=_difference(image, expected[0]),
                text_embedding=_difference(text, expected[1]),
                logits=_difference(scale * image @ text.T, scale * expected[0] @ expected[1].T),
                layers={
                    layer: _difference(found[layer], value) / float(np.abs(value).max())
                    for layer, value in expected_layers.items()
                },
            )
        )
    return Report(checkpoint, bounds, comparisons)


def sample_inputs(loaded: Loaded) -> Inputs:
    """Drawn pictures with their captions, and token rows of every length up to the model's context.

    Where the model's vocabulary cannot be had, offline say, the token rows stand alone.
    """
    architecture = loaded.model.architecture
    pictures = samples.pictures()
    rows = _token_rows(architecture)
    with suppress(ClipError):
        rows = np.concatenate([loaded.tokenize(list(pictures), truncate=True), rows])
    return Inputs(pixels([open_image(path) for path in pictures.values()], architecture.image.resolution), rows)


def _token_rows(architecture: Architecture) -> np.ndarray:
    """Seeded token rows int64 [4, context], start and end included, of lengths from the shortest to the longest."""
    context, end = architecture.text.context_length, architecture.text.vocabulary_size - 1
    generator = np.random.default_rng(0)
    rows = np.zeros((4, context), np.int64)
    for row, length in zip(rows, np.linspace(min(2, context), context, len(rows)).astype(int)):
        row[: length - 1] = generator.integers(0, end - 1, length - 1)
        row[0], row[length - 1] = end - 1, end
    return rows


def _embeddings(model: Reference | Model, inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    image, text = model.embed_image(inputs.pixels), model.embed_text(inputs.tokens)
    return similarity.normalize(image.astype(np.float64)), similarity.normalize(text.astype(np.float64))


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max())
