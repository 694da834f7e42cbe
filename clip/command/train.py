"""``clip train``: train a model by a recipe."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import backends
import converters
from clip.api import weights_file
from clip.command.output import Json, print_fields, print_json
from clip_core import files
from clip_core.architecture import Architecture, differences
from clip_core.backend import Backend, ProcessGroup
from clip_core.errors import CheckpointError, ClipError
from clip_core.initialize import initialize
from clip_core.memory import enough_memory
from clip_core.text.tokenizer import tokenizer_of
from clip_core.training.stopping import WORD, run_until_stopped, stop_signals

if TYPE_CHECKING:
    from clip_core.data.source import Source
    from clip_core.training.loop import Outcome
    from clip_core.training.plan import Plan
    from clip_core.training.recipe import Recipe
    from clip_core.training.vocabulary import Vocabulary


def run(
    config: Annotated[
        str, typer.Option("--config", "-c", help="A recipe: a YAML file, or the name of one that is installed.")
    ],
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--override",
            "-o",
            metavar="KEY=VALUE",
            help="Instead of the recipe's, e.g. data.batch_size=64, loss={kind: sigmoid} or evaluation=null.",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Stop after this step; the schedule stays the recipe's.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Instead of the recipe's.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="The run's folder; by default runs/ and the recipe's name.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="A run's folder, or a checkpoint in it, to go on from; also of another framework."),
    ] = None,
    load: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Start from these weights rather than from nothing.")
    ] = None,
    backend: Annotated[str, typer.Option(help="The framework to train in.")] = "torch",
    num_gpus: Annotated[
        int, typer.Option(min=1, help="Processes to start with the framework's own launcher, each with one GPU.")
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything with two steps, print the plan, and write nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Train by a recipe; leaves checkpoints, metrics.jsonl, loss.png and the model in the run's folder."""
    if backend not in backends.TRAINING:
        raise ClipError(f"There is no training in {backend!r}; use --backend {', '.join(backends.TRAINING)}.")
    if json and not dry_run:
        raise ClipError("--json is for the plan that --dry-run prints; metrics.jsonl tells of a training in JSON.")
    from clip_core.training.checkpoint import run_of
    from clip_core.training.log import say
    from clip_core.training.loop import AVERAGE, MODEL, check_output, check_start, enough_memory_for_the_model, train
    from clip_core.training.plan import plan
    from clip_core.training.recipe import Recipe, recipe_file

    file = recipe_file(config)
    recipe = Recipe.read(file, dict(_override(text) for text in override or []))
    if seed is not None:
        recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"seed": seed})})
    folder = output or (run_of(resume) if resume else Path("runs") / file.stem)
    check_output(folder)
    framework = backends.get(backend)  # which takes seconds, so after what is found without it
    if load is not None:
        for name in (MODEL, AVERAGE):
            files.check_target(folder / name, converters.files_of(weights_file(load)[0]), force=True)
    with enough_memory("while the data was opened", "choose less of it, or a machine with more memory"):
        source = recipe.data.open(recipe.training.seed)
    if num_gpus > 1:
        check_start(recipe, source, framework.Trainer.optional_keys, folder, resume, num_gpus)
        del source  # which may be large, and which each process opens by itself
        _launch(framework.launcher(num_gpus))
    with enough_memory_for_the_model(recipe):
        architecture, weights, vocabulary = _start(recipe, source, load, resume)
    encoder = tokenizer_of(load or config, architecture, vocabulary.merges)
    ranks = framework.ProcessGroup()
    if vocabulary.unused and ranks.rank == 0:
        say(f"Warning: the captions have {vocabulary.learnt} merges only; {vocabulary.unused} tokens stay unused.")
    with _ending_together(ranks), enough_memory_for_the_model(recipe):
        model = framework.CLIP(
            architecture, weights, device=ranks.device, source=str(load), vocabulary=vocabulary.merges
        )
        trainer = framework.Trainer(model, recipe, ranks)
        if dry_run:
            found = plan(recipe, trainer, source, encoder, folder, steps, resume)
            if ranks.rank == 0:
                _print_plan(found, json)
            _end(framework, ranks, 0)
            return
        with stop_signals():  # a second one must not keep the model from being written
            outcome = train(recipe, trainer, source, encoder, folder, steps, resume)
            models = {MODEL: model.export(), AVERAGE: trainer.average()}
            if ranks.rank == 0:
                for name, trained in models.items():
                    if trained is not None:
                        checkpoint = converters.ModelFile(trained, architecture, vocabulary=vocabulary.merges)
                        converters.write(checkpoint, folder / name, force=True)
                if vocabulary.learnt:
                    say(f"the model's vocabulary has {vocabulary.learnt} merges learnt from the captions of its data")
                say(f"{_ending(outcome, folder)}; the model is {folder / MODEL}")
            ranks.numbers(0)  # a launcher may end all processes as soon as one has ended by a signal
    _end(framework, ranks, 128 + outcome.signal if outcome.signal is not None and WORD not in os.environ else 0)


def _ending(outcome: Outcome, folder: Path) -> str:
    """How a training ended, in words."""
    if outcome.loss is None:
        return f"the run is at step {outcome.step} already; a higher --steps, up to the recipe's last, would go on"
    reached = f"step {outcome.step}, loss {outcome.loss:.4f}"
    return reached if outcome.signal is None else f"stopped early at {reached}; go on with --resume {folder}"


def _end(framework: Backend, ranks: ProcessGroup, code: int) -> None:
    """Leave the other processes, and exit unless all is well."""
    ranks.close()
    if ranks.size > 1:
        framework.exit(code)
    if code:
        sys.exit(code)


@contextmanager
def _ending_together(ranks: ProcessGroup) -> Iterator[None]:
    """End this process at once on an error when it is one of several: the others wait for it, and its launcher ends
    them when it is gone, but leaving MPI in the usual way would wait for them."""
    from clip_core.training.log import say

    try:
        yield
    except SystemExit as end:  # by a signal
        if ranks.size == 1:
            raise
        os._exit(int(end.code or 0))
    except Exception as error:
        if ranks.size == 1:
            raise
        say(f"clip: {error}" if isinstance(error, ClipError) else traceback.format_exc())
        os._exit(1)


def _print_plan(found: Plan, as_json: bool) -> None:
    """The plan for machines, or for people."""
    if as_json:
        print_json(asdict(found))
        return
    gigabyte = 1e9
    device = "" if found.device_memory is None else f", and {found.device_memory / gigabyte:.2f} GB on the accelerator"
    print_fields(
        {
            "model": f"{found.model}: {found.trained_parameters:,} parameters are trained, "
            f"{found.frozen_parameters:,} frozen",
            "data": f"{found.data}: {found.examples:,} examples, {found.steps_per_epoch:,} steps per epoch",
            "steps": f"{found.first_step:,} to {found.last_step:,}, which are {found.epochs:,.2f} epochs",
            "batch": f"{found.batch_size:,} pairs on {found.processes} "
            f"{'process' if found.processes == 1 else 'processes'}, {found.pairs_at_once:,} at once in each",
            "precision": found.precision,
            "loss": f"{found.loss}, {found.first_loss:.4f} at the first step",
            "optimizer": f"{found.optimizer}, with a learning rate of up to {found.learning_rate:g}",
            "time": f"{found.step_seconds:.3g} s a step in {found.backend}, so about "
            f"{timedelta(seconds=round(found.seconds))} for all of them",
            "memory": f"{found.memory / gigabyte:.2f} GB at most so far{device}",
            "checkpoint": f"{found.checkpoint_size / gigabyte:.3f} GB each in {found.checkpoint_folder}, where "
            f"{found.free_disk / gigabyte:.1f} GB are free",
            **{f"warning {number}": warning for number, warning in enumerate(found.warnings, 1)},
        }
    )


def _start(
    recipe: Recipe, source: Source, load: str | None, resume: Path | None
) -> tuple[Architecture, dict[str, Any], Vocabulary]:
    """The architecture, the first weights, and the vocabulary, which a checkpoint to go on from has kept."""
    from clip_core.training.checkpoint import newest, vocabulary_in
    from clip_core.training.log import say
    from clip_core.training.rules import prepare
    from clip_core.training.vocabulary import Vocabulary, kept_vocabulary, vocabulary_of

    architecture, file = recipe.model.build(), recipe.model.vocabulary
    if load is None:
        weights = prepare(initialize(architecture, recipe.training.seed), recipe.loss)
        kept = vocabulary_in(newest(resume)) if resume is not None and file is None else None
        if kept is not None:
            return architecture, weights, kept_vocabulary(kept)
        return architecture, weights, vocabulary_of(architecture.text, file, source)
    checkpoint = converters.read(weights_file(load)[0], expected=architecture)
    if found := differences(checkpoint.architecture, architecture):
        raise CheckpointError(
            f"{load} holds another model than the recipe's model.architecture, {', '.join(found)}; change the recipe."
        )
    if checkpoint.assumed:
        say(
            f"clip: warning: {load} does not say all that its model needs; taken from the recipe: "
            f"{', '.join(checkpoint.assumptions())}."
        )
    if file is not None and checkpoint.vocabulary is None:
        return architecture, checkpoint.weights, vocabulary_of(architecture.text, file, source)
    if file is not None:
        raise ClipError(f"{load} carries the vocabulary that its weights were trained with; remove model.vocabulary.")
    return architecture, checkpoint.weights, Vocabulary(checkpoint.vocabulary)


def _override(text: str) -> tuple[str, Any]:
    """The key and the value of an option ``--override``."""
    from clip_core.data.settings import brief
    from clip_core.training import plain_yaml

    key, equals, value = text.partition("=")
    if not equals:
        raise ClipError(f"--override {brief(text)} has no value; write key=value, or key=null to remove it.")
    return key.strip(), plain_yaml.load_value(value, f"--override {brief(text)}")


def _launch(launcher: list[str]) -> None:
    """Run this very command once in each of the processes that ``launcher`` starts, and exit as they do."""
    words = sys.argv[1:]
    at = next(index for index, word in enumerate(words) if word.split("=")[0] == "--num-gpus")
    own = words[:at] + words[at + (1 if "=" in words[at] else 2) :]
    script = str(Path(__file__).parents[1] / "__main__.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if os.name == "posix" and os.geteuid() == 0:  # as in a container; Open MPI wants to hear twice that it is meant
        environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    sys.exit(run_until_stopped([*launcher, script, *own], environment))
