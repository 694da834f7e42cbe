"""The training loop, written once for all frameworks: what is policy is here, one optimiser step is in the backends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from clip_core.data.loader import Loader, Source
from clip_core.errors import ClipError
from clip_core.tokenizer import Tokenizer
from clip_core.training import checkpoint as checkpoints
from clip_core.training.checkpoint import Checkpoint
from clip_core.training.log import ProgressBar, metrics_file, plot
from clip_core.training.recipe import Recipe
from clip_core.training.schedule import learning_rate

if TYPE_CHECKING:
    from backends.base import Trainer

RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended."""

    step: int  # the last one done
    checkpoint: Path  # of that step
    loss: float | None  # of that step; None when there was nothing left to do
    signal: int | None  # that stopped it early


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

    Any framework's trainer will do. SIGINT and SIGTERM let the step end, write a checkpoint and return.

    Args:
        source: pictures with captions.
        tokenizer: of the model that is trained.
        output: folder of the run; it is made, and must not hold another run unless that is resumed.
        steps: stop after this step; the schedule remains the recipe's, so that the run can be resumed.
        resume: folder of a run, or one checkpoint in it, to go on from; on a CPU and in the same framework the losses
            are exactly those of a run that was never stopped.

    Raises:
        ClipError: the folder holds another run, the checkpoint is of another recipe, or the loss or a gradient is not
            finite; the sentence names the step and the last good checkpoint.
    """
    for package in ("grain", "matplotlib"):  # found out now rather than at the end of a long run
        if find_spec(package) is None:
            raise ClipError(f"Training needs {package}, which is not installed; run: pip install 'triclip[train]'.")
    last = recipe.training.steps if steps is None else min(steps, recipe.training.steps)
    architecture = trainer.model.architecture
    data = recipe.data
    loader = Loader(source, tokenizer, architecture, data.batch_size, recipe.training.seed, data.workers)
    step = 0
    saved: Path | None = None
    loss: float | None = None
    if resume is not None:
        saved = checkpoints.newest(resume)
        step = _restore(saved, recipe, trainer, loader)
    elif (output / checkpoints.FOLDER).exists():
        raise ClipError(f"{output} holds a training run already; resume it, or give another folder.")
    output.mkdir(parents=True, exist_ok=True)
    recipe.write(output / RECIPE)

    def save() -> Path:
        state = Checkpoint(step, trainer.state(), loader.state(), recipe.model_dump(mode="json"), _versions(trainer))
        return checkpoints.write(output, state, recipe.checkpoint.keep)

    with _stop_signals() as stopped, metrics_file(output, step) as log, ProgressBar(last, step) as bar:
        started = monotonic()
        while step < last and not stopped:
            batch = next(loader)
            rate = learning_rate(recipe, step + 1)
            result = trainer.step(batch.pixels, batch.tokens, rate)
            if not (isfinite(result.loss) and isfinite(result.gradient_norm)):
                raise ClipError(
                    f"Training stopped at step {step + 1}: the loss is {result.loss} and the norm of the gradients "
                    f"{result.gradient_norm}; the last good checkpoint is {saved or 'none'}. Lower the learning rate."
                )
            step, loss = step + 1, result.loss
            ended = monotonic()
            metrics = {
                "step": step,
                "loss": result.loss,
                "logit_scale": result.logit_scale,
                "learning_rate": rate,
                "samples_per_second": round(len(batch.pixels) / (ended - started), 1),
            }
            started = ended
            log(metrics)
            bar.update(1 + (step - 1) // loader.steps_per_epoch, metrics)
            if step % recipe.checkpoint.every_steps == 0:
                saved = save()
    loader.close()
    if saved is None or saved != output / checkpoints.FOLDER / f"step-{step:08d}":
        saved = save()
    plot(output)
    return Outcome(step, saved, loss, stopped[0] if stopped else None)


def _restore(folder: Path, recipe: Recipe, trainer: Trainer, loader: Loader) -> int:
    """Set trainer and loader to the checkpoint's state and give its step."""
    saved = checkpoints.read(folder)
    now = recipe.model_dump(mode="json")
    for section in ("model", "training", "data", "optimizer", "schedule"):
        for key in now[section].keys() | saved.recipe[section].keys():
            was, wanted = saved.recipe[section].get(key), now[section].get(key)
            if was != wanted and (section, key) != ("data", "workers"):
                raise ClipError(
                    f"{folder} was made with {section}.{key} = {was!r}, and the recipe says {wanted!r}; "
                    "resume with the recipe in the run's folder, or start a new run."
                )
    trainer.restore(saved.trainer)
    loader.restore(saved.loader)
    return saved.step


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM are put into instead of ending the process."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield received
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, frame: received.append(number)) for number in signals]
    try:
        yield received
    finally:
        for number, handler in zip(signals, before):
            signal.signal(number, handler)


def _versions(trainer: Trainer) -> dict[str, str]:
    found = {}
    for package in ("triclip", "numpy", {"paddle": "paddlepaddle"}.get(trainer.model.backend, trainer.model.backend)):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a source tree that is not installed
            found[package] = "unknown"
    return found
