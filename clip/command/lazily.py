"""The sub-commands, whose modules are imported when one is run: help and completion need their summaries alone."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

SUMMARIES = {
    "models": "List the models that can be loaded by name, and the architectures that recipes know by name.",
    "inspect": "Say what a weights file holds; exit with 1 when something is wrong with it.",
    "convert": "Convert a weights file; the result is read back and compared before it appears.",
    "export": "Export a model; it is run at once beside the float64 reference and appears only if it gives the same "
    "numbers.",
    "parity": "Compare every backend with the float64 reference, stage by stage; exit with 1 when one is beyond its "
    "bound.",
    "classify": "Print the probability of each label for each picture, as soon as it is computed.",
    "similarity": "Compare pictures with texts, as they are: no template, and no softmax over the texts.",
    "attention": "Say which parts of a picture make it similar to a text, by covering one after the other.",
    "tokenize": "Print the tokens of each text, start and end included, without the padding.",
    "download": "Fetch a model's official weights; an interrupted download goes on where it stopped.",
    "train": "Train by a recipe; leaves checkpoints, metrics.jsonl, loss.png and the model in the run's folder.",
    "recipes": "List the recipes that clip train -c knows by name, or print one.",
    "embed": "Embed pictures or texts into Parquet parts; an interrupted run goes on where it was.",
    "label": "Write the labels that fit each of many pictures best into a table.",
    "search": "Find what is nearest to a text, a picture or both in an index; scores are cosines.",
    "duplicates": "Find groups of pictures that are nearly the same, and among them copies of one file.",
    "cluster": "Divide an index into clusters by k-means, and name each by the label that is nearest to it.",
    "serve": "Serve a model over HTTP: embeddings as OpenAI's API gives them, labels of pictures, and searches.",
    "web": "Serve a page on which pictures are classified, compared and searched, in every framework that is "
    "installed.",
    "whose": "Name the preprocessing and the activation that made embeddings; exit with 1 when it is none of those "
    "known.",
    "doctor": "Say what is installed, what is missing and how to install it; exit with 1 if something is broken.",
    "demo": "Convert the embedded model, classify drawn pictures in every framework, and compare the numbers.",
    "tokenizer": "Learn a vocabulary from texts, and look into tokenizers.",
    "evaluate": "Score a model on a data set, in one backend or in several.",
    "data": "Collect pictures with captions, and write the tables that recipes read.",
    "index": "Make embeddings an index, change it, and say what it holds.",
    "golden": "Keep what a checkpoint gives for canary inputs, and check that it still does.",
}
"""Of each module of this package that is a command, in the order of the help: the first paragraph of its own help."""


class Commands(TyperGroup):
    """The group of the sub-commands; ``commands`` imports those that it is asked for."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Imported()  # type: ignore[assignment]

    def list_commands(self, context: Any) -> list[str]:
        return list(SUMMARIES)

    def get_command(self, context: Any, name: str) -> Any:
        """A command that has a summary, for the help, and cannot be run."""
        return TyperCommand(name, help=SUMMARIES[name]) if name in SUMMARIES else None

    def resolve_command(self, context: Any, arguments: list[str]) -> Any:
        """The command that the arguments name, itself, and the arguments for it."""
        name, _, rest = super().resolve_command(context, arguments)
        return name, self.commands[str(name)], rest


class _Imported(Mapping[str, Any]):
    """Every command by its name."""

    def __getitem__(self, name: str) -> Any:
        if name not in SUMMARIES:
            raise KeyError(name)
        module = importlib.import_module(f"clip.command.{name}")
        if hasattr(module, "app"):  # which has commands of its own
            command = typer.main.get_group(module.app)
            command.name = name
            return command
        alone = typer.Typer(add_completion=False)
        alone.command(name)(module.run)
        return typer.main.get_command(alone)

    def __iter__(self) -> Iterator[str]:
        return iter(SUMMARIES)

    def __len__(self) -> int:
        return len(SUMMARIES)
