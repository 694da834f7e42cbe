"""What a training run would do, found out with two of its steps and without leaving anything behind."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from math import prod
from pathlib import Path
from time import monotonic

from clip_core.backend import Trainer
from clip_core.data.example import Source
from clip_core.errors import ClipError
from clip_core.models import name_of
from clip_core.naming import parameters
from clip_core.text.tokenizer import Tokenizer
from clip_core.training.cautions import cautions
from clip_core.training.checkpoint import FOLDER
from clip_core.training.evaluation import Evaluator
from clip_core.training.loop import enough_memory_for_a_batch, enough_memory_for_a_step, fault_of, open_run, start
from clip_core.training.parameter_groups import parameter_groups
from clip_core.training.recipe import Recipe
from clip_core.training.schedule import learning_rate


@dataclass(frozen=True)
class Plan:
    """A run before it is begun; sizes in bytes, times in seconds."""

    model: str
    trained_parameters: int
    frozen_parameters: int
    backend: str
    data: str
    examples: int
    steps_per_epoch: int
    first_step: int
    last_step: int
    epochs: float  # of all steps up to the last
    batch_size: int  # of all processes together
    processes: int
    pairs_at_once: int  # in the memory of a process
    precision: str
    loss: str
    optimizer: str
    learning_rate: float  # the highest
    first_loss: float
    step_seconds: float  # of a second step: the first one also prepares
    seconds: float  # of all steps that are left
    memory: int  # of this process so far, at most
    device_memory: int | None  # of its accelerator's own memory so far, at most; None without one
    checkpoint_size: int
    checkpoint_folder: str
    free_disk: int  # where checkpoints are written
    warnings: tuple[str, ...]


def plan(
    recipe: Recipe,
    trainer: Trainer,
    source: Source,
    tokenizer: Tokenizer,
    output: Path,
    steps: int | None = None,
    resume: Path | None = None,
) -> Plan:
    """Check recipe, data, framework and memory as `clip_core.training.loop.train` would begin, with the same arguments.

    Every process calls it. The trainer has taken two steps afterwards.

    Raises:
        ClipError: as `train`, up to its second step.
    """
    run = open_run(recipe, trainer, source, tokenizer)
    total = recipe.training.total_steps(run.loader.steps_per_epoch)
    warnings = cautions(recipe, total, trainer.processes.size)
    if recipe.evaluation is not None:
        warnings += Evaluator(recipe, tokenizer).cautions
    done, _ = start(run, output, resume)
    last = total if steps is None else min(steps, total)
    losses, seconds = [], 0.0
    for step in (done + 1, done + 2):
        began = monotonic()
        with enough_memory_for_a_batch(recipe):
            batch = next(run.loader)
        with enough_memory_for_a_step(recipe):
            result = trainer.step(batch.pixels, batch.tokens, learning_rate(recipe, min(step, total), total))
        seconds = monotonic() - began
        fault = fault_of(result)
        if fault is not None:
            raise ClipError(f"Step {step} cannot be used: {fault}. Lower optimizer.learning_rate.")
        losses.append(result.loss)
    run.loader.close()
    size = sum(array.nbytes for array in trainer.state().values())
    free = shutil.disk_usage(_existing(output)).free
    architecture, processes = trainer.model.architecture, trainer.processes
    trained = parameter_groups(architecture, recipe)
    all_sizes = {parameter.name: prod(parameter.shape) for parameter in parameters(architecture)}
    trainable = sum(prod(parameter.shape) for parameter in parameters(architecture) if parameter.trainable)
    own_share = recipe.data.batch_size // processes.size
    return Plan(
        model=name_of(architecture) or "of the recipe's own shape",
        trained_parameters=sum(all_sizes[name] for name in trained),
        frozen_parameters=trainable - sum(all_sizes[name] for name in trained),
        backend=trainer.model.backend,
        data=recipe.data.source.kind,
        examples=run.examples,
        steps_per_epoch=run.loader.steps_per_epoch,
        first_step=done + 1,
        last_step=last,
        epochs=last / run.loader.steps_per_epoch,
        batch_size=recipe.data.batch_size,
        processes=processes.size,
        pairs_at_once=min(recipe.training.micro_batch_size or own_share, own_share),
        precision=recipe.training.precision,
        loss=recipe.loss.kind,
        optimizer=recipe.optimizer.name,
        learning_rate=recipe.optimizer.learning_rate,
        first_loss=losses[0],
        step_seconds=seconds,
        seconds=seconds * max(last - done, 0),
        memory=_peak_memory(),
        device_memory=processes.peak_memory(),
        checkpoint_size=size,
        checkpoint_folder=str(output / FOLDER),
        free_disk=free,
        warnings=(*warnings, *_disk_warnings(recipe, size, free)),
    )


def _disk_warnings(recipe: Recipe, size: int, free: int) -> tuple[str, ...]:
    needed = (recipe.checkpoint.keep + 1) * size  # a new one is complete before an old one is removed
    if needed > free:
        return (f"{recipe.checkpoint.keep} checkpoints and one that is being written need {needed} bytes of disk.",)
    return ()


def _existing(folder: Path) -> Path:
    """``folder``, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


def _peak_memory() -> int:
    """Bytes that this process has had in memory at most; 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
