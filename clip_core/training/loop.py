"""The training loop, written once for all frameworks: what is policy is here, one optimiser step is in the backends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np

from clip_core.data.loader import Loader
from clip_core.data.source import Source
from clip_core.errors import ClipError
from clip_core.files import exclusive
from clip_core.tokenizer import Tokenizer
from clip_core.training import checkpoint as checkpoints
from clip_core.training.checkpoint import Checkpoint
from clip_core.training.log import Metrics, ProgressBar, metrics_file, plot
from clip_core.training.recipe import Recipe
from clip_core.training.schedule import learning_rate

if TYPE_CHECKING:
    from backends.base import Trainer

RECIPE = "recipe.yaml"
FAULTS = "faults.jsonl"  # examples that could not be used


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
    ranks, architecture, data = trainer.ranks, trainer.model.architecture, recipe.data
    loader = Loader(
        source,
        tokenizer,
        architecture,
        data.batch_size,
        recipe.training.seed,
        data.workers,
        augmentation=data.augmentation,
        fault_share=data.fault_share,
        fault_report=output / (FAULTS if ranks.rank == 0 else f"rank-{ranks.rank}-{FAULTS}"),
        rank=ranks.rank,
        ranks=ranks.size,
    )
    total = recipe.training.total_steps(loader.steps_per_epoch)
    last = total if steps is None else min(steps, total)
    with exclusive(output, "training run") if ranks.rank == 0 else nullcontext():
        step, saved, loss = 0, None, None
        if resume is not None:
            saved = checkpoints.newest(resume)
            step = _restore(saved, recipe, trainer, loader)
        elif ranks.rank == 0 and (output / checkpoints.FOLDER).exists():
            raise ClipError(f"{output} holds a training run already; resume it, or give another folder.")
        if ranks.rank == 0:
            recipe.write(output / RECIPE)

        def save() -> Path:
            """Every process tells where its loader stands; the first one writes."""
            skipped = ranks.numbers(loader.state().get("skipped", 0))
            if ranks.rank == 0:
                where = {"position": loader.position, "skipped": [int(count) for count in skipped]}
                described = recipe.model_dump(mode="json")
                state = Checkpoint(step, trainer.state(), where, described, _versions(trainer))
                checkpoints.write(output, state, recipe.checkpoint.keep)
            return output / checkpoints.FOLDER / checkpoints.name_of(step)

        with _stop_signals() as stopped, _telling(output, step, last, ranks.rank) as tell:
            started = monotonic()
            while step < last and not any(ranks.numbers(len(stopped))):
                batch = next(loader)
                rate = learning_rate(recipe, step + 1, total)
                result = trainer.step(batch.pixels, batch.tokens, rate)
                if not (isfinite(result.loss) and isfinite(result.gradient_norm)):
                    raise ClipError(
                        f"Training stopped at step {step + 1}: the loss is {result.loss} and the norm of the gradients "
                        f"{result.gradient_norm}, on a batch with the examples {_some(batch.examples)}; the last good "
                        f"checkpoint is {saved or 'none'}. Lower the learning rate."
                    )
                step, loss = step + 1, result.loss
                ended = monotonic()
                tell(
                    1 + (step - 1) // loader.steps_per_epoch,
                    {
                        "step": step,
                        "loss": result.loss,
                        "logit_scale": result.logit_scale,
                        "learning_rate": rate,
                        "samples_per_second": round(data.batch_size / (ended - started), 1),
                    },
                )
                started = ended
                if step % recipe.checkpoint.every_steps == 0:
                    saved = save()
        loader.close()
        if saved is None or saved.name != checkpoints.name_of(step) or saved.parent.parent != output:
            saved = save()
        if ranks.rank == 0:
            plot(output)
    return Outcome(step, saved, loss, stopped[0] if stopped else None)


def _some(examples: np.ndarray) -> str:
    return ", ".join(map(str, examples[:8])) + (" ..." if len(examples) > 8 else "")


@contextmanager
def _telling(output: Path, step: int, last: int, rank: int) -> Iterator[Callable[[int, Metrics], None]]:
    """A function that takes the epoch and the metrics of a step; of several processes the first one tells."""
    if rank > 0:
        yield lambda epoch, metrics: None
        return
    with metrics_file(output, step) as log, ProgressBar(last, step) as bar:

        def tell(epoch: int, metrics: Metrics) -> None:
            log(metrics)
            bar.update(epoch, metrics)

        yield tell


def _restore(folder: Path, recipe: Recipe, trainer: Trainer, loader: Loader) -> int:
    """Set trainer and loader to the checkpoint's state and give its step."""
    saved = checkpoints.read(folder)
    now = recipe.model_dump(mode="json")
    for section in ("model", "training", "data", "loss", "optimizer", "schedule"):
        for key in now[section].keys() | saved.recipe[section].keys():
            was, wanted = saved.recipe[section].get(key), now[section].get(key)
            if was != wanted and (section, key) != ("data", "workers"):
                raise ClipError(
                    f"{folder} was made with {section}.{key} = {was!r}, and the recipe says {wanted!r}; "
                    "resume with the recipe in the run's folder, or start a new run."
                )
    skipped = saved.loader["skipped"]
    if len(skipped) == trainer.ranks.size:
        own = skipped[trainer.ranks.rank]
    elif not any(skipped):
        own = 0
    else:
        raise ClipError(
            f"{folder} was made by {len(skipped)} processes, which have each skipped faulty examples, and this run has "
            f"{trainer.ranks.size}; resume with as many processes."
        )
    trainer.restore(saved.trainer)
    loader.restore({"position": saved.loader["position"], "skipped": own})
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
