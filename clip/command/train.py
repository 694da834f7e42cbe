"""``clip train``: train a model by a recipe."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer

import backends
import converters
from clip.command.output import errors
from clip_core.bpe_training import HEADER
from clip_core.errors import ClipError
from clip_core.initialize import initialize
from clip_core.tokenizer import Tokenizer

TRAINING_BACKENDS = ("torch", "paddle", "nnabla")


def run(
    config: Annotated[Path, typer.Option("--config", "-c", help="A recipe (YAML).")],
    steps: Annotated[
        int | None, typer.Option(min=1, help="Stop after this step; the schedule stays the recipe's.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Instead of the recipe's.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="The run's folder; by default runs/ and the recipe's name.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="A run's folder to go on from.")] = None,
    backend: Annotated[str, typer.Option(help="The framework to train in.")] = "torch",
) -> None:
    """Train by a recipe; leaves checkpoints, metrics.jsonl, loss.png and the model in the run's folder."""
    from clip_core.data import shapes
    from clip_core.training import loop
    from clip_core.training.recipe import Recipe

    if backend not in TRAINING_BACKENDS:
        raise ClipError(f"There is no training in {backend!r} yet; use --backend {' or '.join(TRAINING_BACKENDS)}.")
    framework, training = backends.get(backend), importlib.import_module(f"backends.{backend}.training")
    recipe = Recipe.read(config)
    if seed is not None:
        recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"seed": seed})})
    architecture = recipe.model.build()
    merges = architecture.text.vocabulary_size - Tokenizer(HEADER).vocabulary_size
    if merges < 0:
        raise ClipError(
            f"{config}: the architecture's vocabulary has {architecture.text.vocabulary_size} tokens; every vocabulary "
            f"has {Tokenizer(HEADER).vocabulary_size} before its first merge, so give at least as many."
        )
    vocabulary = shapes.vocabulary(merges)
    source = recipe.data.open(recipe.training.seed)
    model = framework.CLIP(architecture, initialize(architecture, recipe.training.seed))
    trainer = training.Trainer(model, recipe.optimizer, recipe.training.precision)
    folder = output or resume or Path("runs") / config.stem
    outcome = loop.train(recipe, trainer, source, Tokenizer(vocabulary), folder, steps, resume)

    weights = folder / "model.safetensors"
    converters.write(converters.Checkpoint(model.export(), architecture, vocabulary=vocabulary), weights)
    errors.print(f"step {outcome.step}, loss {outcome.loss}; the model is {weights}")
    if outcome.signal is not None:
        sys.exit(128 + outcome.signal)
