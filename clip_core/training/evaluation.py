"""Scores on data that training does not see, while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np

from clip_core.backend import Model, Trainer
from clip_core.batching import embed_texts
from clip_core.data.example import SourceSettings
from clip_core.errors import ClipError
from clip_core.evaluation.retrieval import owners, ranks, recall_at
from clip_core.evaluation.scores import pearson, spearman
from clip_core.evaluation.sentences import SentenceSettings
from clip_core.evaluation.sets.labelled import LabelledSettings
from clip_core.evaluation.zero_shot import class_features, image_features
from clip_core.naming import Weights
from clip_core.preprocess import preprocess
from clip_core.similarity import contrastive_loss, logits, normalize, sigmoid_loss
from clip_core.text.tokenizer import Tokenizer
from clip_core.training.recipe import Recipe

Usable = TypeVar("Usable")


class Evaluator:
    """Scores the model of a trainer as the recipe's section ``evaluation`` says; training goes on as without it.

    ``retrieval`` gives

    * ``validation_loss``: the mean of the recipe's kind of loss over all full batches of ``batch_size`` pictures, in
      their order, each with its first caption; for softmax always the mean of the two directions.
    * ``image_to_text_recall_at_1`` and ``..._5``: the share of pictures that have one of their own captions among the
      one or five nearest of all captions.
    * ``text_to_image_recall_at_1`` and ``..._5``: the share of captions that have their picture among the nearest.

    Captions with the same tokens are one text there, which is right for each of their pictures, and each of these for
    it; otherwise rounding would decide between them.

    ``zero_shot`` gives ``zero_shot_top1`` and ``zero_shot_top5``, or for drawn shapes ``held_out_top1``: the share of
    pictures that have their class among the one or five nearest.

    ``sentences`` gives ``sentences_spearman`` and ``sentences_pearson``, the correlations of the cosines of pairs with
    what people say of them.

    Each data set counts with its first ``examples``. Those of them that cannot be used are left out, and ``faults`` is
    their number. Pictures are preprocessed as for the finished model, without augmentation. When the trainer keeps a
    moving average of the weights, the scores of these stand beside the others, under ``average_`` and their names.

    Args:
        recipe: with a section ``evaluation``.
        tokenizer: of the model. Captions longer than its context are cut.

    Raises:
        ClipError: the data is missing or not in its family's layout, or too little of it can be used: one full batch of
            pairs and one picture with a class are needed; or a class's prompt is too long.
    """

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer) -> None:
        settings = recipe.evaluation
        if settings is None:
            raise ClipError("The recipe has no section evaluation, which says what to score the model on; add one.")
        self.every_steps = settings.every_steps
        self._tests: list[_Pairs | _Classes | _Sentences] = []
        if settings.retrieval is not None:
            self._tests.append(_Pairs(recipe, settings.retrieval, tokenizer, settings.examples, settings.batch_size))
        if settings.zero_shot is not None:
            self._tests.append(_Classes(recipe, settings.zero_shot, tokenizer, settings.examples, settings.batch_size))
        if settings.sentences is not None:
            self._tests.append(_Sentences(recipe, settings.sentences, tokenizer, settings.examples))
        self.cautions = [caution for test in self._tests for caution in test.cautions()]

    def __call__(self, trainer: Trainer) -> dict[str, float]:
        """All scores by name. Every process calls it, and finds the same.

        Raises:
            ClipError: too little of the data can be used any more.
        """
        model, own, average = trainer.model, trainer.model.export(), trainer.average()
        faults: list[str] = []
        scores = self._scores(model, own, faults)
        scores["faults"] = len(faults)
        if average is not None:
            try:
                model.load(average, "the moving average of the weights")
                scores |= {f"average_{name}": score for name, score in self._scores(model, average, []).items()}
            finally:
                model.load(own)
        return scores

    def _scores(self, model: Model, weights: Weights, faults: list[str]) -> dict[str, float]:
        return {name: score for test in self._tests for name, score in test(model, weights, faults).items()}


class _Pairs:
    """Pictures with captions."""

    def __init__(
        self, recipe: Recipe, settings: SourceSettings, tokenizer: Tokenizer, examples: int, size: int
    ) -> None:
        beyond_all_runs = recipe.training.seed + 2**32  # the seed of a run is below 2**32: drawn pictures are others
        self._source = settings.open(beyond_all_runs)
        self._architecture, self._tokenizer = recipe.model.build(), tokenizer
        self._sigmoid = recipe.loss.kind == "sigmoid"
        self._examples, self._size = min(examples, len(self._source)), size
        next(self._batches([]))

    def cautions(self) -> list[str]:
        """Which scores are 1 for every model."""
        few = self._examples <= 5
        return (
            [f"evaluation.retrieval has {self._examples} pictures, so each is among the nearest five."] if few else []
        )

    def __call__(self, model: Model, weights: Weights, faults: list[str]) -> dict[str, float]:
        scale = float(np.exp(weights["logit_scale"]))
        losses, images, texts, captions = [], [], [], []
        for batch in self._batches(faults):
            pixels, tokens = zip(*batch)
            counts = [len(of_picture) for of_picture in tokens]
            images.append(image_features(model, np.stack(pixels)))
            texts.append(normalize(embed_texts(model, np.concatenate(tokens))))
            captions += tokens
            if len(batch) == self._size:
                first_texts = texts[-1][np.cumsum([0, *counts[:-1]])]
                of_batch = logits(images[-1], first_texts, scale)
                losses.append(
                    sigmoid_loss(of_batch, float(weights["logit_bias"]))[0]
                    if self._sigmoid
                    else contrastive_loss(of_batch)[0]
                )
        _, first, text_of = np.unique(np.concatenate(captions), axis=0, return_index=True, return_inverse=True)
        text_of = text_of.reshape(-1)  # the text of each caption; NumPy 2.0 gives it a second dimension
        image, text = np.concatenate(images), np.concatenate(texts)[first]
        own_texts = np.split(text_of, np.cumsum([len(of_picture) for of_picture in captions])[:-1])
        of_images, of_texts = ranks(image, text, own_texts), ranks(text, image, owners(own_texts, len(text)))[text_of]
        return {"validation_loss": float(np.mean(losses))} | {
            f"{direction}_recall_at_{count}": recall_at(count, found)
            for direction, found in (("image_to_text", of_images), ("text_to_image", of_texts))
            for count in (1, 5)
        }

    def _batches(self, faults: list[str]) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
        return _batches("retrieval", self._read, self._examples, self._size, self._size, faults)

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Pixels float32 [3, r, r] of a picture and tokens int64 [captions, context] of its captions."""
        example, context = self._source[index], self._architecture.text.context_length
        tokens = self._tokenizer.tokenize(example.caption, context, truncate=True)
        tower = self._architecture.image
        return preprocess(example.picture, tower.resolution, tower.pixels), tokens


class _Classes:
    """Pictures with classes."""

    def __init__(
        self, recipe: Recipe, settings: LabelledSettings, tokenizer: Tokenizer, examples: int, size: int
    ) -> None:
        self._names, self._labelled = settings.scores, settings.labelled()
        self._architecture, self._tokenizer = recipe.model.build(), tokenizer
        self._examples, self._size = min(examples, len(self._labelled)), size
        for prompts in self._labelled.prompts:
            for prompt in prompts:
                _check_prompt(prompt, tokenizer, self._architecture.text.context_length)
        next(self._batches([]))

    def cautions(self) -> list[str]:
        """Which scores are 1 for every model."""
        count = len(self._labelled.prompts)
        return [
            f"evaluation.zero_shot has {count} classes, so {name} is 1 for every model."
            for name, nearest in self._names.items()
            if count <= nearest
        ]

    def __call__(self, model: Model, weights: Weights, faults: list[str]) -> dict[str, float]:
        classes = class_features(model, self._tokenizer, self._labelled.prompts)
        found = []
        for batch in self._batches(faults):
            pixels, labels = zip(*batch)
            found.append(ranks(image_features(model, np.stack(pixels)), classes, np.array(labels)[:, None]))
        return {name: recall_at(count, np.concatenate(found)) for name, count in self._names.items()}

    def _batches(self, faults: list[str]) -> Iterator[list[tuple[np.ndarray, int]]]:
        return _batches("zero_shot", self._read, self._examples, self._size, 1, faults)

    def _read(self, index: int) -> tuple[np.ndarray, int]:
        """Pixels float32 [3, r, r] of a picture and the number of its class."""
        picture, label = self._labelled[index]
        tower = self._architecture.image
        return preprocess(picture, tower.resolution, tower.pixels), label


class _Sentences:
    """Pairs of sentences that people have judged."""

    def __init__(self, recipe: Recipe, settings: SentenceSettings, tokenizer: Tokenizer, examples: int) -> None:
        pairs, context = settings.pairs(), recipe.model.build().text.context_length
        both = [*pairs.first[:examples], *pairs.second[:examples]]
        self._tokens, self._gold = tokenizer.tokenize(both, context, truncate=True), pairs.gold[:examples]

    def cautions(self) -> list[str]:
        """Which scores are the same for every model."""
        same = "so each correlation is 0 for every model."
        return [f"evaluation.sentences has pairs that are all judged alike, {same}"] if not np.ptp(self._gold) else []

    def __call__(self, model: Model, weights: Weights, faults: list[str]) -> dict[str, float]:
        first, second = np.split(normalize(embed_texts(model, self._tokens)), 2)
        cosines = (first * second).sum(axis=1)
        return {
            "sentences_spearman": spearman(cosines, self._gold),
            "sentences_pearson": pearson(cosines, self._gold),
        }


def _batches(
    key: str, read: Callable[[int], Usable], examples: int, size: int, needed: int, faults: list[str]
) -> Iterator[list[Usable]]:
    """What ``read`` gives for the numbers below ``examples``, ``size`` at a time; its faults are added to ``faults``.

    Raises:
        ClipError: fewer than ``needed`` can be used, before the last batch.
    """
    batch: list[Usable] = []
    usable, last_fault = 0, ""
    for index in range(examples):
        try:
            batch.append(read(index))
        except ClipError as error:
            faults.append(str(error))
            last_fault = f" The last fault is: {error}"
            continue
        usable += 1
        if len(batch) == size:
            yield batch
            batch = []
    if usable < needed:
        raise ClipError(
            f"evaluation.{key} has {usable} examples that can be used, out of {examples}, and needs {needed} or more; "
            f"mend the data{', or lower evaluation.batch_size' if usable else ''}.{last_fault}"
        )
    if batch:
        yield batch


def _check_prompt(prompt: str, tokenizer: Tokenizer, longest: int) -> None:
    """Refuse a prompt that the model would not read to its end."""
    try:
        tokenizer.check(prompt, longest, "shorten the class's name, or the template")
    except ClipError as error:
        raise ClipError(f"evaluation.zero_shot has a class with the prompt {prompt!r:.200}: {error}") from error
