"""``clip train``: train a model by a recipe."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

import backends
import converters
from clip.api import weights_file
from clip.command.output import errors
from clip_core import tokenizer
from clip_core.architecture import OPENAI_VOCABULARY_SIZE, Architecture
from clip_core.bpe_training import HEADER
from clip_core.errors import CheckpointError, ClipError
from clip_core.initialize import initialize

if TYPE_CHECKING:
    from clip_core.training.recipe import Recipe

# How each framework starts several processes on one machine; the number takes the place of {}.
LAUNCHERS = {
    "torch": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "{}"],
    "paddle": [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "{}"],
    "nnabla": ["mpirun", "-n", "{}", sys.executable],
}


def run(
    config: Annotated[Path, typer.Option("--config", "-c", help="A recipe (YAML).")],
    override: Annotated[
        list[str] | None,
        typer.Option("--override", "-o", metavar="KEY=VALUE", help="Instead of the recipe's, e.g. data.batch_size=64."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Stop after this step; the schedule stays the recipe's.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Instead of the recipe's.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="The run's folder; by default runs/ and the recipe's name.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="A run's folder to go on from, also of another framework.")
    ] = None,
    load: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Start from these weights rather than from nothing.")
    ] = None,
    backend: Annotated[str, typer.Option(help="The framework to train in.")] = "torch",
    num_gpus: Annotated[
        int, typer.Option(min=1, help="Processes to start with the framework's own launcher, each with one GPU.")
    ] = 1,
) -> None:
    """Train by a recipe; leaves checkpoints, metrics.jsonl, loss.png and the model in the run's folder."""
    if backend not in LAUNCHERS:
        raise ClipError(f"There is no training in {backend!r}; use --backend {', '.join(LAUNCHERS)}.")
    backends.get(backend)
    if num_gpus > 1:
        _launch(backend, num_gpus)
    from clip_core.training import loop
    from clip_core.training.recipe import Recipe

    recipe = Recipe.read(config, dict(_override(text) for text in override or []))
    if seed is not None:
        recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"seed": seed})})
    architecture, weights, vocabulary = _start(recipe, load)
    source = recipe.data.open(recipe.training.seed)
    ranks = importlib.import_module(f"backends.{backend}.ranks").Ranks()
    model = backends.get(backend).CLIP(architecture, weights, device=ranks.device, source=str(load))
    trainer = importlib.import_module(f"backends.{backend}.training").Trainer(model, recipe, ranks)
    folder = output or resume or Path("runs") / config.stem
    encoder = tokenizer.openai() if vocabulary is None else tokenizer.Tokenizer(vocabulary)
    outcome = loop.train(recipe, trainer, source, encoder, folder, steps, resume)

    if ranks.rank == 0:
        target = folder / "model.safetensors"
        converters.write(converters.Checkpoint(model.export(), architecture, vocabulary=vocabulary), target)
        errors.print(f"step {outcome.step}, loss {outcome.loss}; the model is {target}")
    ranks.close()
    if outcome.signal is not None:
        sys.exit(128 + outcome.signal)


def _start(recipe: Recipe, load: str | None) -> tuple[Architecture, dict[str, Any], str | None]:
    """The architecture, the first weights, and the merges of the vocabulary; None means OpenAI's."""
    from clip_core.data import shapes
    from clip_core.training.rules import prepare

    architecture = recipe.model.build()
    if load is not None:
        checkpoint = converters.read(weights_file(load)[0])
        if checkpoint.architecture != architecture:
            raise CheckpointError(
                f"{load} holds {checkpoint.architecture}, and the recipe's model is {architecture}; "
                "change model.architecture."
            )
        return architecture, checkpoint.weights, checkpoint.vocabulary
    weights = prepare(initialize(architecture, recipe.training.seed), recipe.loss)
    size, smallest = architecture.text.vocabulary_size, tokenizer.Tokenizer(HEADER).vocabulary_size
    if size == OPENAI_VOCABULARY_SIZE:
        return architecture, weights, None
    if size < smallest:
        raise ClipError(
            f"The architecture's vocabulary has {size} tokens; every vocabulary has {smallest} before its first merge, "
            "so give at least as many."
        )
    return architecture, weights, shapes.vocabulary(size - smallest)


def _override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    try:
        return key.strip(), yaml.safe_load(value) if equals else None
    except yaml.YAMLError as error:
        raise ClipError(f"--override {text} has a value that is not YAML; write key=value.") from error


def _launch(backend: str, processes: int) -> None:
    """Run this very command once in each of several processes, and exit as they do."""
    words = sys.argv[1:]
    at = next(index for index, word in enumerate(words) if word.split("=")[0] == "--num-gpus")
    own = words[:at] + words[at + (1 if "=" in words[at] else 2) :]
    script = str(Path(__file__).parents[1] / "__main__.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [word.replace("{}", str(processes)) for word in LAUNCHERS[backend]]
    sys.exit(subprocess.run([*command, script, *own], env=environment).returncode)
