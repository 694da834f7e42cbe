"""The proof of an exported model: it is run on canary inputs and compared with the float64 reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from backends.numpy import CLIP as Reference
from clip import samples
from clip.api import LoadedModel
from clip.parity import Inputs, sample_inputs
from clip_core import similarity, tolerances
from clip_core.batching import lengths
from clip_core.data.shapes import KINDS
from clip_core.errors import ClipError
from clip_core.evaluation.shapes import SingleThings
from clip_core.image import open_image
from clip_core.naming import Weights
from clip_core.preprocess import pixels

if TYPE_CHECKING:
    from exporters.onnx.model import Part

Run = Callable[[Mapping[str, np.ndarray]], Weights]  # one exported graph: inputs by name -> outputs by name

RANDOM_PICTURES = 4
PICTURES_PER_CLASS = 2
MOST_OTHER_PIXELS = 1e-3  # share of values that preprocessing in a graph may round otherwise than Pillow does


@dataclass(frozen=True)
class Budget:
    """How far an export may be from the reference."""

    embedding: float | None = None  # largest absolute difference of a component of an embedding scaled to length 1
    cosine: float | None = None  # least cosine of an embedding with its own
    agreement: float | None = None  # least share of `shapes` pictures that are put into the same class

    def logits(self, scale: float) -> float:
        """The largest absolute difference of a logit that the difference of the embeddings can explain."""
        if self.embedding is not None:
            return tolerances.logit_bound(scale) * self.embedding / tolerances.EMBEDDING
        assert self.cosine is not None
        return scale * 2 * (2 - 2 * self.cosine) ** 0.5  # by the distance of each of the two from its own


BUDGETS = {
    "fp32": Budget(embedding=1e-4),
    "fp16": Budget(embedding=5e-3),
    "int8": Budget(cosine=0.99, agreement=0.99),
}


class Proof:
    """Exported graphs and the reference on the same inputs.

    Args:
        runs: of each part, ``image``, ``text`` or ``both``, that was exported.
        judge: the model in float64.
        budget: what is allowed.
        pictures: arrays uint8 [n, h, w, 3] that the graphs preprocess; by default, they are given pixels.
        whole_texts: whether the graphs take texts of the full context alone.
    """

    def __init__(
        self,
        runs: Mapping[Part, Run],
        judge: LoadedModel,
        budget: Budget,
        pictures: Sequence[np.ndarray] | None = None,
        whole_texts: bool = False,
    ) -> None:
        assert isinstance(judge.model, Reference)
        self.runs, self.judge, self.budget = runs, judge.model, budget
        self.pictures, self.whole_texts = pictures, whole_texts
        inputs = canaries(judge)
        self.pixels, self.tokens = inputs.pixels, inputs.tokens
        if pictures is not None:
            self.pixels = np.concatenate([preprocessed(judge, batch) for batch in pictures])
        image, text = self.judge.encode_image(self.pixels), self.judge.encode_text(self.tokens)
        self.image, self.text = similarity.normalize(image), similarity.normalize(text)
        self.scale = judge.logit_scale
        self.logits = self.image @ self.text.T * self.scale + self.judge.weights.get("logit_bias", 0)
        self.drift: dict[str, float] = {}
        self.cosine: dict[str, float] = {}
        self._nearest: list[tuple[np.ndarray, np.ndarray]] = []  # places of pictures, and of the text that each found

    def run(self) -> dict[str, Any]:
        """Compare all, and give what was found as plain data for JSON.

        Raises:
            ClipError: naming the first figure that is beyond its budget.
        """
        pictures, texts = list(self.batches_of_pictures()), list(self.batches_of_texts())
        if "image" in self.runs:
            for places, given in pictures:
                features = self.runs["image"]({"image": given})["image_features"]
                embedding = self._embedding("image_embedding", features, self.image[places])
                self._nearest.append((places, (embedding @ self.text.T).argmax(axis=1)))
        if "text" in self.runs:
            for places, tokens in texts:
                features = self.runs["text"]({"text": tokens})["text_features"]
                embedding = self._embedding("text_embedding", features, self.text[places])
                if len(places) == len(self.text):
                    self._nearest.append((np.arange(len(self.image)), (self.image @ embedding.T).argmax(axis=1)))
        if "both" in self.runs:
            # Every batch of pictures with every batch of texts would show no more.
            for place in range(max(len(pictures), len(texts))):
                (images, given), (places, tokens) = pictures[-1 - place % len(pictures)], texts[-1 - place % len(texts)]
                found = self.runs["both"]({"image": given, "text": tokens})
                expected = self.logits[np.ix_(images, places)]
                self._note("logits", found["logits_per_image"], expected)
                self._note("logits", found["logits_per_text"], expected.T)
                if len(places) == len(self.text):
                    self._nearest.append((images, found["logits_per_image"].argmax(axis=1)))
        self._judge()
        expected_nearest = self.logits.argmax(axis=1)
        agree = np.concatenate([found == expected_nearest[places] for places, found in self._nearest])
        return {
            "reference": "NumPy in float64",
            "pictures": len(self.pixels),
            "texts": len(self.tokens),
            "batches_of_pictures": [len(places) for places, _ in pictures],
            "batches_of_texts": [list(tokens.shape) for _, tokens in texts],
            "largest_difference": self.drift,
            "least_cosine": self.cosine,
            "top1_agreement": float(agree.mean()),
        }

    def batches_of_pictures(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Places of pictures with what a graph takes: pixels of one, two and all of them, or pictures of each size."""
        if self.pictures is None:
            for places in (np.arange(1), np.arange(1, 3), np.arange(len(self.pixels))):
                yield places, self.pixels[places]
            return
        start = 0
        for batch in self.pictures:
            yield np.arange(start, start + len(batch)), batch
            start += len(batch)

    def batches_of_texts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Places of texts with their tokens: one, those that are short, cut to several lengths, and all of them.

        Graphs that take whole texts alone get the short ones in full.
        """
        tower = self.judge.architecture.text
        everything = np.arange(len(self.tokens))
        yield everything[:1], self.tokens[:1]
        if tower.shortest_length < tower.context_length:
            found = lengths(self.tokens, tower)
            for length in sorted({int(found.min()), int(np.median(found))} - {tower.context_length}):
                (places,) = (found <= length).nonzero()
                yield places, self.tokens[places, : None if self.whole_texts else length]
        yield everything, self.tokens

    def _embedding(self, stage: str, features: np.ndarray, expected: np.ndarray) -> np.ndarray:
        found = similarity.normalize(features.astype(np.float64))
        self._note(stage, found, expected)
        least = float((found * expected).sum(axis=1).min())
        self.cosine[stage] = float(np.minimum(least, self.cosine.get(stage, 1.0)))  # which keeps NaN
        return found

    def _note(self, stage: str, found: np.ndarray, expected: np.ndarray) -> None:
        if found.shape != expected.shape:
            raise ClipError(f"The export gives {stage} of shape {found.shape}, expected {expected.shape}.")
        difference = float(np.abs(found - expected).max())
        self.drift[stage] = float(np.maximum(difference, self.drift.get(stage, 0.0)))  # which keeps NaN

    def _judge(self) -> None:
        # `not <=` and `not >=`, so that NaN is a fault.
        bounds = {"image_embedding": self.budget.embedding, "text_embedding": self.budget.embedding}
        for stage, difference in self.drift.items():
            bound = bounds.get(stage, self.budget.logits(self.scale))
            if bound is not None and not difference <= bound:
                raise beyond(f"{stage} differs from the reference by {difference:.1e}, and {bound:.1e} is allowed")
        for stage, cosine in self.cosine.items():
            if self.budget.cosine is not None and not cosine >= self.budget.cosine:
                raise beyond(
                    f"{stage} has a cosine of {cosine:.4f} with the reference, and {self.budget.cosine} is the least"
                )


def canaries(loaded: LoadedModel) -> Inputs:
    """The inputs of `clip parity`, and some random pictures behind the drawn ones."""
    inputs = sample_inputs(loaded)
    noise = random_pictures(loaded, RANDOM_PICTURES, seed=0)
    return Inputs(np.concatenate([inputs.pixels, noise]), inputs.tokens)


def random_pictures(loaded: LoadedModel, count: int, seed: int) -> np.ndarray:
    """Pixels float32 [count, 3, r, r] without a picture in them, distributed as those of pictures are."""
    side = loaded.model.architecture.image.resolution
    return np.random.default_rng(seed).standard_normal((count, 3, side, side)).astype(np.float32)


def decoded_pictures(loaded: LoadedModel) -> list[np.ndarray]:
    """Arrays uint8 [n, h, w, 3]: the drawn pictures of `clip parity`, and square, wide and high random ones."""
    side = loaded.model.architecture.image.resolution
    generator = np.random.default_rng(0)
    sizes = ((1, side, side), (2, side + side // 3, 2 * side + 1), (1, 2 * side + 1, side // 2 + 1))
    drawn = np.stack([np.asarray(open_image(path)) for path in samples.pictures().values()])
    return [drawn, *(generator.integers(0, 256, (*size, 3), np.uint8) for size in sizes)]


def preprocessed(loaded: LoadedModel, pictures: np.ndarray) -> np.ndarray:
    """Pictures uint8 [n, h, w, 3] as pixels float32 [n, 3, r, r] by Pillow."""
    image = loaded.model.architecture.image
    return pixels([Image.fromarray(each) for each in pictures], image.resolution, image.pixels)


def drift_of_pixels(run: Run, loaded: LoadedModel, pictures: Sequence[np.ndarray]) -> dict[str, Any]:
    """How far what a graph makes of pictures uint8 [n, h, w, 3] is from Pillow's pixels, as plain data for JSON.

    Args:
        run: from ``image`` to ``pixels`` float32 [n, 3, r, r].

    Raises:
        ClipError: one value differs by more than 1 of 255, or too many do.
    """
    steps = (
        255 * np.array(loaded.model.architecture.image.pixels.deviation)[:, None, None]
    )  # from 0 to 255 in a channel
    found = [np.abs(run({"image": each})["pixels"] - preprocessed(loaded, each)) * steps for each in pictures]
    largest = max(float(each.max()) for each in found)
    share = float(np.concatenate([each.ravel() > 0.5 for each in found]).mean())
    if not (largest < 1.5 and share <= MOST_OTHER_PIXELS):
        raise ClipError(
            f"Nothing was exported, since preprocessing in the graph gives {share:.1e} of all values otherwise than "
            f"Pillow does, by up to {largest:.1f} of 255; leave out --preprocessing."
        )
    return {
        "sizes": [list(each.shape[1:3]) for each in pictures],
        "largest_difference": largest,
        "share_that_differs": share,
    }


def shapes(loaded: LoadedModel, purpose: str) -> tuple[np.ndarray, Inputs, np.ndarray]:
    """Pictures uint8 [n, h, w, 3] of one drawn thing each, their pixels with the tokens of a text for each kind of
    thing, and the place of each picture's own text.

    Args:
        purpose: different purposes never share pictures.

    Raises:
        ClipError: the vocabulary of the model cannot be had.
    """
    things = SingleThings(KINDS, purpose, PICTURES_PER_CLASS)
    pictures, labels = zip(*(things[index] for index in range(len(things))))
    texts = [of_kind[0] for of_kind in things.prompts]
    tokens = loaded.model.tokenizer.tokenize(texts, loaded.model.architecture.text.context_length, truncate=True)
    decoded = np.stack([np.asarray(picture) for picture in pictures])
    return decoded, Inputs(preprocessed(loaded, decoded), tokens), np.array(labels)


def beyond(what: str) -> ClipError:
    """The sentence for a figure that is beyond its budget."""
    return ClipError(f"Nothing was exported, since {what}; choose a higher --precision or another model.")
