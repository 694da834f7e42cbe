"""Training from Python: `train`, of which the command ``clip train`` is a skin."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import backends
import converters
from clip.api import weights_file
from clip_core import files
from clip_core.architecture import Architecture, differences
from clip_core.backend import Backend, ProcessGroup, Trainer
from clip_core.data.example import Source
from clip_core.data.settings import shown
from clip_core.errors import CheckpointError, ClipError
from clip_core.initialize import initialize
from clip_core.memory import enough_memory
from clip_core.naming import Weights
from clip_core.text.loading import tokenizer_of
from clip_core.text.tokenizer import Tokenizer
from clip_core.training import loop
from clip_core.training.checkpoint import newest, run_of, vocabulary_in
from clip_core.training.loop import AVERAGE, MODEL, Outcome, enough_memory_for_the_model
from clip_core.training.plan import Plan, plan
from clip_core.training.progress import say
from clip_core.training.recipe import Pretrained, Recipe, recipe_file
from clip_core.training.stopping import stop_signals
from clip_core.training.trainable import with_initial_scale
from clip_core.training.vocabulary import Vocabulary, kept_vocabulary, vocabulary_of
from converters.pretrained import tokenizer_beside, with_tower

File = str | os.PathLike[str]


@dataclass(frozen=True)
class Trained(Outcome):
    """How a training ended, and the models that it has left."""

    model: Path
    average: Path | None  # the moving average of the weights, where the recipe asks for one


def train(
    recipe: File | Mapping[str, Any],
    backend: str = "torch",
    output: File | None = None,
    load: File | None = None,
    resume: File | None = None,
    steps: int | None = None,
    seed: int | None = None,
    override: Mapping[str, Any] | None = None,
) -> Trained:
    """Train a model by a recipe, as ``clip train`` does; checkpoints, metrics and the model are left in ``output``.

    It trains in this process alone, unless a launcher of the framework has started several. SIGINT, SIGTERM and SIGHUP
    let the step end, write checkpoint and model, and return; afterwards their handlers are as before.

    Args:
        recipe: a YAML file, the name of a recipe that is installed, or the sections of one.
        backend: the framework to train in: ``torch``, ``paddle`` or ``nnabla``.
        output: the run's folder; by default ``runs/`` and the recipe's name, or the folder of the run to resume.
        load: the name or file of a model, to start from its weights rather than from nothing.
        resume: a run's folder, or a checkpoint in it, to go on from; also of another framework.
        steps: stop after this step; the schedule stays the recipe's.
        seed: instead of the recipe's.
        override: keys of the recipe, such as ``data.batch_size`` -> values in place of its own; None removes one.

    Raises:
        ClipError: or one of its children, a sentence that says what is wrong and what to do.
    """
    job = Job.open(recipe, backend, output, load, resume, steps, seed, override)
    processes = job.framework.ProcessGroup()
    trained = job.train(processes)
    processes.close()
    return trained


@dataclass(frozen=True)
class Job:
    """A training run with checked arguments and open data, before anything is written."""

    recipe: Recipe
    title: str  # of the recipe, for messages
    framework: Backend
    source: Source
    output: Path
    load: File | None
    resume: Path | None
    steps: int | None

    @classmethod
    def open(
        cls,
        recipe: File | Mapping[str, Any],
        backend: str,
        output: File | None,
        load: File | None,
        resume: File | None,
        steps: int | None,
        seed: int | None,
        override: Mapping[str, Any] | None,
    ) -> Job:
        """Check the arguments of `train`, import the framework and open the data.

        Raises:
            ClipError: as `train`, before its first step.
        """
        if backend not in backends.TRAINING:
            *others, last = backends.TRAINING
            raise ClipError(f"There is no training in {backend!r}; choose the backend {', '.join(others)} or {last}.")
        if not isinstance(recipe, Mapping | str | os.PathLike):
            raise ClipError(
                f"A recipe was given as {type(recipe).__name__}; give a YAML file, the name of an installed recipe, or "
                "a mapping of its sections."
            )
        if steps is not None and (not isinstance(steps, int) or steps < 1):
            raise ClipError(f"The training is to stop after step {shown(steps)}; give a whole number from 1.")
        overrides = {**(override or {}), **({} if seed is None else {"training.seed": seed})}
        if isinstance(recipe, Mapping):
            title, settings, name = "The recipe", Recipe.parse(dict(recipe), overrides=overrides), None
        else:
            file = recipe_file(recipe)
            title, settings, name = str(file), Recipe.read(file, overrides), file.stem
        going_on = None if resume is None else Path(resume)
        if output is not None:
            folder = Path(output)
        elif going_on is not None:
            folder = run_of(going_on)
        elif name is not None:
            folder = Path("runs") / name
        else:
            raise ClipError("A recipe that is no file gives the run no name; give its folder as output.")
        loop.check_output(folder)
        framework = backends.get(backend)  # which takes seconds, so after what is found without it
        if load is not None:
            for written in (MODEL, AVERAGE):
                files.check_target(folder / written, converters.files_of(weights_file(load)[0]), force=True)
        with enough_memory("while the data was opened", "choose less of it, or a machine with more memory"):
            source = settings.data.source.open(settings.training.seed)
        return cls(settings, title, framework, source, folder, load, going_on, steps)

    def check(self, processes: int) -> None:
        """Find the faults of a run of several processes before they are started; they look again.

        Raises:
            ClipError: as `train`, before its first step.
        """
        followed = self.framework.Trainer.optional_keys
        loop.check_start(self.recipe, self.source, followed, self.output, self.resume, processes)

    def plan(self, processes: ProcessGroup) -> Plan:
        """What `train` would do, found out without leaving anything behind (`clip_core.training.plan.plan`)."""
        with _ending_together(processes), enough_memory_for_the_model(self.recipe):
            trainer, tokenizer, _ = self._begin(processes)
            return plan(self.recipe, trainer, self.source, tokenizer, self.output, self.steps, self.resume)

    def train(self, processes: ProcessGroup) -> Trained:
        """Train in this process, one of ``processes``, which all call it; the first one writes and tells.

        Raises:
            ClipError: as `clip_core.training.loop.train`, or the model cannot be written. One of several processes ends
                instead.
        """
        # A second signal must not keep the model from being written.
        with _ending_together(processes), enough_memory_for_the_model(self.recipe), stop_signals():
            trainer, tokenizer, vocabulary = self._begin(processes)
            outcome = loop.train(self.recipe, trainer, self.source, tokenizer, self.output, self.steps, self.resume)
            model, average = self.output / MODEL, self.output / AVERAGE
            weights, averaged = trainer.model.export(), trainer.average()
            if processes.rank == 0:
                for path, found in ((model, weights), (average, averaged)):
                    if found is not None:
                        file = converters.ModelFile(found, trainer.model.architecture, vocabulary=vocabulary.definition)
                        converters.write(file, path, force=True)
                if vocabulary.learnt:
                    say(f"the model's vocabulary has {vocabulary.learnt} merges learnt from the captions of its data")
        return Trained(**vars(outcome), model=model, average=None if averaged is None else average)

    def _begin(self, processes: ProcessGroup) -> tuple[Trainer, Tokenizer, Vocabulary]:
        """The trainer of a new model, or of the one to start from, and what its texts are read by."""
        architecture, weights, vocabulary = self._start()
        named = self.title if self.load is None else str(self.load)
        tokenizer = tokenizer_of(named, architecture, vocabulary.definition)
        if vocabulary.unused and processes.rank == 0:
            say(f"Warning: the captions have {vocabulary.learnt} merges only; {vocabulary.unused} tokens stay unused.")
        model = self.framework.CLIP(
            architecture, weights, device=processes.device, source=named, vocabulary=vocabulary.definition
        )
        return self.framework.Trainer(model, self.recipe, processes), tokenizer, vocabulary

    def _start(self) -> tuple[Architecture, Weights, Vocabulary]:
        """The architecture, the first weights, and the vocabulary, which a checkpoint to go on from has kept."""
        recipe, load = self.recipe, self.load
        architecture, file = recipe.model.build(), recipe.model.vocabulary
        pretrained = recipe.model.pretrained
        if load is None:
            weights = with_initial_scale(initialize(architecture, recipe.training.seed), recipe.loss)
            if self.resume is None:  # a checkpoint has all weights, and its vocabulary
                if pretrained.image is not None:
                    weights = with_tower(architecture, weights, "image", pretrained.image)
                if pretrained.text is not None:
                    weights = with_tower(architecture, weights, "text", pretrained.text)
                    file = file or tokenizer_beside(pretrained.text)
            kept = vocabulary_in(newest(self.resume)) if self.resume is not None and file is None else None
            if kept is not None:
                return architecture, weights, kept_vocabulary(kept)
            return architecture, weights, vocabulary_of(architecture.text, file, self.source)
        if pretrained != Pretrained():
            raise ClipError(f"{load} has the weights of both towers; remove model.pretrained.")
        loaded = converters.read(weights_file(load)[0], expected=architecture)
        if found := differences(loaded.architecture, architecture):
            raise CheckpointError(
                f"{load} holds another model than the recipe's model.architecture, {', '.join(found)}; change the "
                "recipe."
            )
        if loaded.assumed:
            say(
                f"clip: warning: {load} does not say all that its model needs; taken from the recipe: "
                f"{', '.join(loaded.assumptions())}."
            )
        if file is not None and loaded.vocabulary is None:
            return architecture, loaded.weights, vocabulary_of(architecture.text, file, self.source)
        if file is not None:
            raise ClipError(
                f"{load} carries the vocabulary that its weights were trained with; remove model.vocabulary."
            )
        return architecture, loaded.weights, Vocabulary(loaded.vocabulary)


@contextmanager
def _ending_together(processes: ProcessGroup) -> Iterator[None]:
    """End this process at once on an error when it is one of several: the others wait for it, and its launcher ends
    them when it is gone, but leaving MPI in the usual way would wait for them."""
    try:
        yield
    except SystemExit as end:  # by a signal
        if processes.size == 1:
            raise
        os._exit(int(end.code or 0))
    except Exception as error:
        if processes.size == 1:
            raise
        say(f"clip: {error}" if isinstance(error, ClipError) else traceback.format_exc())
        os._exit(1)
