"""Whose embeddings these are: pictures are embedded by every variant in use, and the nearest one is named.

The activation, the scaling of colours and their order are told apart by a first look at a few pictures, which are
resized in two ways. The `FINALISTS` nearest combinations of these are computed with every way to resize.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import backends
from clip.api import LoadedModel, open_model
from clip_core.backend import Model
from clip_core.errors import ClipError, ImageError
from clip_core.evaluation.features import Progress, quiet
from clip_core.image import open_image
from clip_core.towers.parts import Activation
from clip_core.whose.reading import Given, matched, read
from clip_core.whose.variants import FIRST_LOOK, RESIZINGS, Making, makings, scaled, scalings_with
from clip_core.whose.verdict import Embeddings, Verdict, judged

MOST_PICTURES = 64  # that are compared, spread over all
SAMPLE = 4  # pictures of the first look
FINALISTS = 4  # combinations that are computed with every way to resize
BATCH = 64  # pictures that are encoded at once
ACTIVATIONS: tuple[Activation, ...] = ("quick_gelu", "gelu")


def whose(
    source: str | os.PathLike[str],
    pictures: Sequence[str],
    model: str | os.PathLike[str],
    *,
    names: Sequence[str] | None = None,
    limit: int = MOST_PICTURES,
    backend: str | None = None,
    device: str | None = None,
    progress: Progress = quiet,
) -> Verdict:
    """Name the variant of preprocessing and model that made embeddings.

    Args:
        source: .npy, .npz, Parquet or CSV, or a folder of such files.
        pictures: paths, in the order of the embeddings unless these have names.
        model: a model's name, a weights file, or a folder with one.
        names: of the pictures, in the order of the embeddings; by default those that ``source`` tells.
        limit: pictures that are compared at most, spread over all.
        backend, device: as for `clip.load`.
        progress: told of every batch that is embedded.

    Raises:
        ClipError: the embeddings cannot be read, or are not the model's or the pictures'.
    """
    path = Path(source)
    given = read(path)
    if names is not None:
        given = Given(given.embeddings, list(names))
    pairs = matched(path, given, pictures)
    if limit < 1:
        raise ClipError(f"The limit is {limit}; give 1 picture or more.")
    pairs = [pairs[place] for place in np.linspace(0, len(pairs) - 1, min(limit, len(pairs))).astype(int)]
    embeddings = np.array(given.embeddings[[row for row, _ in pairs]])
    directed = np.isfinite(embeddings).all(axis=1) & embeddings.any(axis=1)
    if not directed.all():
        raise ClipError(
            f"{path} has {(~directed).sum()} embeddings that are zero or not finite numbers among the "
            f"{len(embeddings)} that were looked at; leave them out."
        )
    loaded = open_model(model, backend=backend, device=device)
    if embeddings.shape[1] != loaded.model.architecture.embed_dim:
        raise ClipError(
            f"{path} has embeddings of {embeddings.shape[1]} dimensions, and {loaded.name} gives "
            f"{loaded.model.architecture.embed_dim}; give the model that made them."
        )
    return Suspects(loaded, [pictures[place] for _, place in pairs], device, progress).judge(embeddings)


class Suspects:
    """What every variant makes of some pictures, computed when it is first asked for.

    Args:
        pictures: paths.
        device: for the model with another activation.
        progress: told of every batch that is embedded.

    Raises:
        ImageError: a picture cannot be used.
    """

    def __init__(
        self, loaded: LoadedModel, pictures: Sequence[str], device: str | None = None, progress: Progress = quiet
    ) -> None:
        self._models = _models(loaded, device)
        self._scalings = scalings_with(loaded.model.architecture.image.pixels)
        self._makings = list(makings(tuple(self._models), self._scalings))
        self._squares = _squares(pictures, loaded.model.architecture.image.resolution)
        self._sample = np.unique(np.linspace(0, len(pictures) - 1, SAMPLE).astype(int))
        groups = enumerate(self._squares.groups)
        self._look = self._squares.taken(self._sample, [column for column, each in groups if {*each} & {*FIRST_LOOK}])
        self._first: dict[Making, np.ndarray] = {}
        self._features: dict[Making, np.ndarray] = {}
        self._progress = progress
        finalists = min(FINALISTS, len(self._makings))
        self._total = len(self._makings) * len(self._look.distinct) + finalists * len(self._squares.distinct)
        self._done = 0

    def judge(self, embeddings: np.ndarray) -> Verdict:
        """Compare with the embeddings float [n, d] of the pictures."""
        given = Embeddings(embeddings)
        sample = given.taken(self._sample)
        near = {}
        for making in self._makings:
            if making not in self._first:
                self._first[making] = self._embedded(making, self._look)
            near[making] = float(sample.distances(self._first[making]).mean(axis=0).min())
        finalists = sorted(self._makings, key=lambda making: near[making])[:FINALISTS]
        verdict = judged(given, {making: self._of_all(making) for making in finalists}, self._squares.groups)
        if verdict.found:
            return verdict
        return replace(verdict, permuted=given.is_permuted(self._of_all(self._makings[0])[:, 0]))

    def _of_all(self, making: Making) -> np.ndarray:
        """Features float32 [n, g, d] of all pictures."""
        if making not in self._features:
            self._features[making] = self._embedded(making, self._squares)
        return self._features[making]

    def _embedded(self, making: Making, squares: _Squares) -> np.ndarray:
        """Features float32 [n, g, d] of the pictures in each of their forms."""
        features = []
        for first in range(0, len(squares.distinct), BATCH):
            batch = squares.distinct[first : first + BATCH]
            pixels = scaled(batch, self._scalings[making.scaling], making.channels)
            features.append(self._models[making.activation].embed_image(pixels))
            self._done += len(batch)
            self._progress("variants", self._done, self._total, 0)
        return np.concatenate(features)[squares.places]


@dataclass(frozen=True)
class _Squares:
    """Pictures in all their resized forms, equal ones once."""

    distinct: np.ndarray  # uint8 [m, r, r, 3]
    places: np.ndarray  # int64 [n, g], of each picture in each form
    groups: list[tuple[str, ...]]  # g, names of the resizings that give the same for all pictures

    def taken(self, rows: np.ndarray, columns: list[int]) -> _Squares:
        """Some pictures in some of their forms."""
        kept, places = np.unique(self.places[rows][:, columns], return_inverse=True)
        groups = [self.groups[column] for column in columns]
        return _Squares(self.distinct[kept], places.reshape(len(rows), len(columns)), groups)


def _squares(pictures: Sequence[str], resolution: int) -> _Squares:
    distinct: list[np.ndarray] = []
    places = np.empty((len(pictures), len(RESIZINGS)), np.int64)
    for row, picture in enumerate(pictures):
        image = open_image(picture)
        known: dict[bytes, int] = {}
        for column, resizing in enumerate(RESIZINGS):
            try:
                square = resizing(image, resolution)
            except ImageError as error:
                raise ImageError(f"{picture}: {error}") from error
            content = square.tobytes()
            if content not in known:
                known[content] = len(distinct)
                distinct.append(square)
            places[row, column] = known[content]
    forms, of_form = np.unique(places, axis=1, return_inverse=True)
    groups = [
        tuple(each.name for each, form in zip(RESIZINGS, of_form.ravel()) if form == column)
        for column in range(forms.shape[1])
    ]
    return _Squares(np.stack(distinct), forms, groups)


def _models(loaded: LoadedModel, device: str | None) -> dict[str | None, Model]:
    """The model with each activation that its image tower may have."""
    model = loaded.model
    if "image" not in model.architecture.transformers:
        return {None: model}
    own = model.architecture.image.activation
    weights = model.export()
    return {own: model} | {
        activation: backends.get(model.backend).CLIP(
            model.architecture.with_activation(activation), weights, device=device, source=model.source
        )
        for activation in ACTIVATIONS
        if activation != own
    }
