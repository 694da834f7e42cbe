"""The training loop, written once for all frameworks: what is policy is here, one optimiser step is in the backends."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from math import isfinite, prod
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from clip_core.backend import StepResult, Trainer
from clip_core.data.example import Source
from clip_core.data.faults import FAULTS
from clip_core.data.loader import Batch, Loader, check_batch
from clip_core.data.settings import shown
from clip_core.errors import ClipError
from clip_core.files import LOCK, exclusive
from clip_core.installation import requirement
from clip_core.memory import enough_memory
from clip_core.naming import parameters
from clip_core.text.bpe import BytePairTokenizer
from clip_core.text.loading import tokenizer_from
from clip_core.text.tokenizer import Tokenizer
from clip_core.training import checkpoint as checkpoints
from clip_core.training.cautions import cautions
from clip_core.training.checkpoint import TrainingCheckpoint, Writer
from clip_core.training.evaluation import Evaluator
from clip_core.training.plot import CURVE, plot
from clip_core.training.progress import say
from clip_core.training.recipe import Recipe
from clip_core.training.run_log import EVALUATION, METRICS, RunLog
from clip_core.training.schedule import learning_rate
from clip_core.training.stopping import stop_signals
from clip_core.training.trainable import check_trainable

RECIPE = "recipe.yaml"
MODEL = "model.safetensors"  # what the caller of `train` writes into the folder in the end
AVERAGE = "model-average.safetensors"

# What changes no number but for rounding, so that a run may go on with another value.
MAY_CHANGE_ON_RESUME = {
    "data": {"workers", "fault_share"},
    "training": {"micro_batch_size", "gradient_checkpointing", "compile", "fully_sharded"},
}


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended."""

    step: int  # the last one done
    checkpoint: Path  # of that step
    loss: float | None  # of that step; None when there was nothing left to do
    signal: int | None  # that stopped it early, in whichever of the processes


def train(
    recipe: Recipe,
    trainer: Trainer,
    source: Source,
    tokenizer: Tokenizer,
    output: Path,
    steps: int | None = None,
    resume: Path | None = None,
) -> Outcome:
    """Train to the recipe's last step, or to ``steps``, leaving checkpoints, metrics and the loss curve in ``output``.

    Any framework's trainer will do. SIGINT, SIGTERM and SIGHUP let the step end, write a checkpoint and return.

    Args:
        source: pictures with captions.
        tokenizer: of the model that is trained.
        output: folder of the run; it is made, and must not hold another run unless that is resumed, nor files of no run
            that would be replaced.
        steps: stop after this step; the schedule remains the recipe's, so that the run can be resumed.
        resume: folder of a run, or one checkpoint in it, to go on from; on a CPU and in the same framework the losses
            are exactly those of a run that was never stopped.

    Raises:
        ClipError: the folder holds another run, the checkpoint is of another recipe or other data or cannot be written,
            memory does not suffice, or a number of the training is not finite; the sentence names the step and the last
            good checkpoint.
    """
    run = open_run(recipe, trainer, source, tokenizer, output)
    evaluator = None if recipe.evaluation is None else Evaluator(recipe, tokenizer)
    total = recipe.training.total_steps(run.loader.steps_per_epoch)
    last = total if steps is None else min(steps, total)
    if run.first:
        check_output(output)
    with enough_memory_for_the_model(recipe), exclusive(output, "training run") if run.first else nullcontext():
        step, saved = start(run, output, resume)
        if run.first:
            recipe.write(output / RECIPE)
            found = cautions(recipe, total, trainer.processes.size)
            for caution in [*found, *(evaluator.cautions if evaluator is not None else ())]:
                say(f"Warning: {caution}")
        kept = saved is not None and saved.parent.parent == output  # whether the state now is in the folder
        loss, batch, stopped = None, None, 0
        settings = recipe.checkpoint
        with (
            stop_signals() as asked_to_stop,
            Writer(output, settings.keep, settings.background, saved) as writer,
            RunLog(output, recipe.log, step, last) if run.first else nullcontext() as log,
        ):
            while step < last and not stopped:
                writer.check()
                began = monotonic()
                with enough_memory_for_a_batch(recipe):
                    batch = next(run.loader)
                rate = learning_rate(recipe, step + 1, total)
                with enough_memory_for_a_step(recipe):
                    result = trainer.step(batch.pixels, batch.tokens, rate)
                fault = fault_of(result)
                if fault is not None:
                    raise _not_finite(step + 1, batch, fault, writer)
                step, loss, kept = step + 1, result.loss, False
                if log is not None:
                    log.step(_metrics(run, step, rate, result, monotonic() - began))
                stopped = int(max(trainer.processes.gather_float(asked_to_stop())))
                if evaluator is not None and not stopped and (step % evaluator.every_steps == 0 or step == last):
                    with enough_memory(
                        "while the model was scored", "lower evaluation.batch_size or evaluation.examples"
                    ):
                        scores = evaluator(trainer)
                    if log is not None:
                        log.evaluation(step, scores)
                if step % settings.every_steps == 0:
                    _save(run, step, batch, writer)
                    kept = True
            run.loader.close()
            if not kept:
                _save(run, step, batch, writer)
            writer.wait()
        skipped = int(sum(trainer.processes.gather_float(run.loader.state().get("skipped", 0))))
        if run.first:
            if skipped:
                beside = "" if trainer.processes.size == 1 else f" and in rank-*-{FAULTS} beside it"
                say(
                    f"Passed over: {skipped} {'example' if skipped == 1 else 'examples'} that could not be used, as "
                    f"listed in {output / FAULTS}{beside}."
                )
            try:
                plot(output)
            except Exception as error:  # of the drawing library, too: the training itself has ended well
                say(f"Warning: the curves could not be drawn: {error}")
    return Outcome(step, output / checkpoints.FOLDER / checkpoints.name_of(step), loss, stopped or None)


def check_output(output: Path) -> None:
    """Refuse a folder in which a run would replace what is of no run, before anything is written.

    Raises:
        ClipError: it is a file, or has no checkpoints but files of the names that a run writes. What a run that ended
            before its first checkpoint has left, which is no model, may be replaced.
    """
    if os.path.exists(output) and not os.path.isdir(output):
        raise ClipError(f"{output} is a file; give the name of a folder for the run.")
    if os.path.exists(output / checkpoints.FOLDER):
        return
    begun = os.path.exists(output / LOCK)
    for name in (MODEL, AVERAGE) if begun else (MODEL, AVERAGE, RECIPE, METRICS, EVALUATION, FAULTS, CURVE):
        if os.path.exists(output / name):
            raise ClipError(
                f"{output / name} would be replaced, and there is no training run with checkpoints in its folder; give "
                "another folder."
            )


@dataclass(frozen=True)
class Run:
    """What takes part in a run, in this process."""

    recipe: Recipe
    trainer: Trainer
    loader: Loader
    tokenizer: Tokenizer
    examples: int  # of the data
    fingerprint: str  # likewise

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and tells."""
        return self.trainer.processes.rank == 0


def open_run(recipe: Recipe, trainer: Trainer, source: Source, tokenizer: Tokenizer, output: Path | None = None) -> Run:
    """A run before its first step.

    Args:
        output: the folder in which examples that cannot be used are listed; without, they are only counted.

    Raises:
        ClipError: a package that training needs is not installed, or the data has too few examples for a batch.
    """
    for package in ("grain", "matplotlib"):  # found out now rather than at the end of a long run
        if find_spec(package) is None:
            raise ClipError(
                f"Training needs {package}, which is not installed; run: pip install {requirement('train')}."
            )
    processes, data = trainer.processes, recipe.data
    report = FAULTS if processes.rank == 0 else f"rank-{processes.rank}-{FAULTS}"
    loader = Loader(
        source,
        tokenizer,
        trainer.model.architecture,
        data.batch_size,
        recipe.training.seed,
        data.workers,
        augmentation=data.augmentation,
        fault_share=data.fault_share,
        fault_report=None if output is None else output / report,
        rank=processes.rank,
        ranks=processes.size,
    )
    return Run(recipe, trainer, loader, tokenizer, len(source), source.fingerprint())


def start(run: Run, output: Path, resume: Path | None) -> tuple[int, Path | None]:
    """Set trainer and loader to where the run begins: the step that is done, and the checkpoint that it goes on from.

    Args:
        output: the folder of the run.
        resume: as in `train`.

    Raises:
        ClipError: the folder holds another run, or the checkpoint is of another recipe or of other data.
    """
    if run.first:
        _check_no_other_run(output, resume)
    if resume is None:
        return 0, None
    tell = say if run.first else lambda sentence: None
    folder = checkpoints.newest(resume, lambda fault: tell(f"Passed over: {fault}"))
    saved = checkpoints.read(folder)
    _check_same_run(run, folder, saved)
    skipped = _own_skipped(run, folder, saved)
    run.trainer.restore(saved.trainer)
    run.loader.restore({"position": saved.loader["position"], "skipped": skipped})
    changed = _changed_surroundings(run.trainer, saved)
    if changed:
        tell(f"Resumed with {', '.join(changed)}; losses may differ in rounding.")
    return saved.step, folder


def check_start(
    recipe: Recipe, source: Source, followed: Collection[str], output: Path, resume: Path | None, processes: int
) -> None:
    """Find the faults of a run before its processes are started; they look again.

    Args:
        followed: as in `check_trainable`.
        output, resume: as in `train`.

    Raises:
        ClipError: as `train`, before its first step.
    """
    check_trainable(recipe.model.build(), recipe, followed)
    check_batch(len(source), recipe.data.batch_size, processes)
    _check_no_other_run(output, resume)
    if resume is not None:
        folder = checkpoints.newest(resume)
        saved = checkpoints.described_in(folder)
        _check_same_recipe(recipe, folder, saved["recipe"])
        _check_same_data(len(source), source.fingerprint(), folder, saved["loader"])


def _check_no_other_run(output: Path, resume: Path | None) -> None:
    """Refuse a folder with a run that is not the one to go on with, since its checkpoints would be replaced."""
    if resume is not None and checkpoints.run_of(resume).resolve() == output.resolve():
        return
    if (output / checkpoints.FOLDER).exists():
        raise ClipError(
            f"{output} holds a training run already; go on with --resume {output} (resume=...), or give another "
            "folder with --output (output=...)."
        )


def _check_same_run(run: Run, folder: Path, saved: TrainingCheckpoint) -> None:
    """Refuse to go on with what gives other numbers."""
    _check_same_recipe(run.recipe, folder, saved.recipe)
    _check_same_data(run.examples, run.fingerprint, folder, saved.loader)
    if saved.vocabulary is not None:
        _check_same_tokenizer(folder, tokenizer_from(saved.vocabulary), run.tokenizer)


def _check_same_recipe(recipe: Recipe, folder: Path, saved: dict[str, Any]) -> None:
    then = Recipe.parse(saved, str(folder))  # keys that it was made without get their defaults
    for section in ("model", "training", "data", "loss", "optimizer", "schedule"):
        was, wanted = (getattr(which, section).model_dump(mode="json") for which in (then, recipe))
        if section == "model" and then.model.build() == recipe.model.build():
            was["architecture"] = wanted["architecture"]  # which may be spelt in two ways
        free = MAY_CHANGE_ON_RESUME.get(section, set())
        was, wanted = ({key: value for key, value in each.items() if key not in free} for each in (was, wanted))
        changed = _first_difference(was, wanted, section)
        if changed is not None:
            key, before, now = changed
            raise ClipError(
                f"{folder} was made with {key} = {shown(before)}, and the recipe says {shown(now)}; resume with the "
                "recipe in the run's folder, or start a new run."
            )


def _check_same_data(examples: int, fingerprint: str, folder: Path, saved: dict[str, Any]) -> None:
    before = saved.get("examples", examples)
    if before != examples:
        raise ClipError(
            f"{folder} was made on {before} examples, and the data has {examples} now; "
            "resume with the same data, or start a new run."
        )
    if saved.get("fingerprint", fingerprint) != fingerprint:  # older checkpoints have none
        raise ClipError(
            f"{folder} was made on other data of as many examples: paths, captions or sizes have changed since; resume "
            "with the same data, or start a new run, with --load from the weights of this one."
        )


def _check_same_tokenizer(folder: Path, then: Tokenizer, now: Tokenizer) -> None:
    """Refuse to go on with another vocabulary, in which the same weights would read other texts."""
    if then.definition == now.definition:
        return
    difference = f"{then.kind} of {then.vocabulary_size} tokens there, and {now.kind} of {now.vocabulary_size} here"
    if isinstance(then, BytePairTokenizer) and isinstance(now, BytePairTokenizer):
        shorter = min(len(then.merges), len(now.merges))
        same = next((at for at in range(shorter) if then.merges[at] != now.merges[at]), shorter)
        was, wanted = (f"'{each.merges[same]}'" if same < len(each.merges) else "none" for each in (then, now))
        difference = f"merge {same + 1} is {was} there, and {wanted} here"
    raise ClipError(
        f"{folder} was made with another vocabulary than the one that is given: {difference}; resume without --load, "
        "and with the file of model.vocabulary as it was."
    )


def _first_difference(was: Any, wanted: Any, key: str) -> tuple[str, Any, Any] | None:
    """The first key, below ``key``, whose values differ, and both of them; None without one."""
    if isinstance(was, dict) and isinstance(wanted, dict):
        names = [name for name in was | wanted if was.get(name) != wanted.get(name)]
        return _first_difference(was.get(names[0]), wanted.get(names[0]), f"{key}.{names[0]}") if names else None
    return None if was == wanted else (key, was, wanted)


def _changed_surroundings(trainer: Trainer, saved: TrainingCheckpoint) -> list[str]:
    """What is not as it was, among the things that change no more than rounding, in words."""
    found = []
    now, then = _versions(trainer), saved.versions
    added = [f"{package} {now[package]}" for package in now.keys() - then.keys()]
    gone = [f"{package} {then[package]}" for package in then.keys() - now.keys()]
    if added:
        found.append(f"{added[0]} instead of {gone[0] if gone else 'another framework'}")
    found += [f"{name} {now[name]} instead of {then[name]}" for name in now if then.get(name, now[name]) != now[name]]
    before, size = len(saved.loader["skipped"]), trainer.processes.size
    if before != size:
        found.append(f"{size} {'process' if size == 1 else 'processes'} instead of {before}")
    return found


def _own_skipped(run: Run, folder: Path, saved: TrainingCheckpoint) -> int:
    """How many faulty examples this process has skipped before."""
    skipped, processes = saved.loader["skipped"], run.trainer.processes
    if len(skipped) == processes.size:
        return skipped[processes.rank]
    if any(skipped):
        raise ClipError(
            f"{folder} was made by {len(skipped)} processes, which have each skipped faulty examples, and this run has "
            f"{processes.size}; resume with as many processes."
        )
    return 0


def enough_memory_for_a_batch(recipe: Recipe) -> AbstractContextManager[None]:
    """`enough_memory` while a batch is read."""
    data, size = recipe.data, recipe.model.build().image.resolution
    doing = f"while a batch of {data.batch_size} pairs with pictures of {size} x {size} pixels was read"
    return enough_memory(doing, "lower data.batch_size" + (" or data.workers" if data.workers else ""))


def enough_memory_for_a_step(recipe: Recipe) -> AbstractContextManager[None]:
    """`enough_memory` in a step."""
    data, training, architecture = recipe.data, recipe.training, recipe.model.build()
    size, remedies = architecture.image.resolution, ["lower data.batch_size"]
    if training.micro_batch_size != 1 and not any(tower.has_statistics for tower in architecture.towers.values()):
        remedies.append("set a lower training.micro_batch_size")
    if not training.gradient_checkpointing:
        remedies.append("set training.gradient_checkpointing")
    return enough_memory(
        f"in a step of {data.batch_size} pairs with pictures of {size} x {size} pixels in {training.precision}, "
        f"{training.micro_batch_size or 'all'} of them at once",
        " or ".join(remedies),
    )


def enough_memory_for_the_model(recipe: Recipe) -> AbstractContextManager[None]:
    """`enough_memory` for weights, gradients and moments, beside which nothing else is large."""
    count = sum(prod(parameter.shape) for parameter in parameters(recipe.model.build()))
    return enough_memory(
        f"for the model itself: training its {count:,} parameters takes {16 * count:,} bytes and more",
        "choose a smaller model.architecture, or a machine with more memory",
    )


def fault_of(result: StepResult) -> str | None:
    """What is not finite, in words. Gradients that overflowed in fp16 were not used, and are no fault."""
    if result.skipped or (isfinite(result.loss) and isfinite(result.gradient_norm)):
        return None
    return f"the loss is {result.loss} and the norm of the gradients {result.gradient_norm}"


def _save(run: Run, step: int, batch: Batch | None, writer: Writer) -> None:
    """Write a checkpoint. Every process gives its part of the state and tells where its loader stands."""
    state = run.trainer.state()
    skipped = run.trainer.processes.gather_float(run.loader.state().get("skipped", 0))
    for name, array in state.items():
        if not np.isfinite(array).all():
            raise _not_finite(step, batch, f"{name} holds NaN or infinity", writer)
    if run.first:
        where = {
            "position": run.loader.position,
            "skipped": [int(count) for count in skipped],
            "examples": run.examples,
            "fingerprint": run.fingerprint,
        }
        described = run.recipe.model_dump(mode="json")
        definition = run.tokenizer.definition
        writer.write(TrainingCheckpoint(step, state, where, described, _versions(run.trainer), definition))


def _metrics(run: Run, step: int, rate: float, result: StepResult, seconds: float) -> dict[str, float]:
    metrics = {
        "step": step,
        "epoch": 1 + (step - 1) // run.loader.steps_per_epoch,
        "loss": result.loss,
        "logit_scale": result.logit_scale,
        "learning_rate": rate,
        "gradient_norm": result.gradient_norm,
        "top1": result.top1,
        "top5": result.top5,
        "samples_per_second": round(run.recipe.data.batch_size / seconds, 1),
    }
    if run.recipe.training.precision == "fp16":
        metrics |= {"loss_scale": result.loss_scale, "skipped": result.skipped}
    return metrics


def _not_finite(step: int, batch: Batch | None, fault: str, writer: Writer) -> ClipError:
    """The error that ends the training, with the examples of the batch after which the fault was found."""
    examples = [] if batch is None else [str(number) for number in batch.examples]
    listed = ", ".join(examples[:8]) + (" ..." if len(examples) > 8 else "")
    return ClipError(
        f"Training stopped at step {step}: {fault}, on a batch with the examples {listed or 'of no step yet'}; the "
        f"last good checkpoint is {writer.last_good() or 'none'}. Lower optimizer.learning_rate."
    )


def _versions(trainer: Trainer) -> dict[str, str]:
    found = {}
    for package in ("triclip", "numpy", trainer.distribution):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a source tree that is not installed
            found[package] = "unknown"
    return found
