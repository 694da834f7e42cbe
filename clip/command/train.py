"""``clip train``: train a model by a recipe."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clip.command.output import Json, print_fields, print_json
from clip_core.errors import ClipError
from clip_core.training.stopping import WORD, run_until_stopped, stop_signals

if TYPE_CHECKING:
    from clip.training import Trained
    from clip_core.training.plan import Plan


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
    if json and not dry_run:
        raise ClipError("--json is for the plan that --dry-run prints; metrics.jsonl tells of a training in JSON.")
    from clip.training import Job
    from clip_core.training.progress import say

    overrides = dict(_override(text) for text in override or [])
    job = Job.open(config, backend, output, load, resume, steps, seed, overrides)
    framework = job.framework
    if num_gpus > 1:
        job.check(num_gpus)
        del job  # its data may be large, and each process opens it by itself
        _launch(framework.launcher(num_gpus))
    processes, code = framework.ProcessGroup(), 0
    if dry_run:
        plan = job.plan(processes)
        if processes.rank == 0:
            _print_plan(plan, json)
    else:
        with stop_signals():  # a second one must not keep the ending from being told
            trained = job.train(processes)
            if processes.rank == 0:
                say(f"{_ending(trained, job.output)}; the model is {trained.model}")
            processes.gather_float(0)  # a launcher may end all processes as soon as one has ended by a signal
        if trained.signal is not None and WORD not in os.environ:
            code = 128 + trained.signal
    processes.close()
    if processes.size > 1:
        framework.exit(code)
    if code:
        sys.exit(code)


def _ending(trained: Trained, folder: Path) -> str:
    """How a training ended, in words."""
    if trained.loss is None:
        return f"the run is at step {trained.step} already; a higher --steps, up to the recipe's last, would go on"
    reached = f"step {trained.step}, loss {trained.loss:.4f}"
    return reached if trained.signal is None else f"stopped early at {reached}; go on with --resume {folder}"


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
