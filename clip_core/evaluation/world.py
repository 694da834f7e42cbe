"""How well a model knows the `shapes` world: combinations it never saw, and full descriptions among many."""

from __future__ import annotations

from dataclasses import replace

from clip_core.data.shapes import HELD_OUT, TRAINED
from clip_core.evaluation.scores import ERROR, ZeroShotScores, zero_shot_scores
from clip_core.evaluation.shapes import Scenes, SingleThings
from clip_core.evaluation.tasks import Encoded, Encoder, OfLabelled, Retrieval, ZeroShot
from clip_core.similarity import normalize


class World(ZeroShot):
    """Zero-shot classification of single things, and retrieval of scenes.

    The scores are ``held_out_top1``, the share of single things of a `HELD_OUT` shape and colour that are put into
    their own class, among all shapes in all colours; ``trained_top1``, the same of combinations that training shows;
    and ``image_to_text_recall_at_1`` and ``text_to_image_recall_at_1``, of scenes whose own description is the nearest,
    and the other way. All else that is told of classes is of the held-out things.

    Args:
        pictures_per_class: of each combination.
        scenes: their number.
        seed: of the pictures, none of which is in any training set.
    """

    title = "zero-shot classification and retrieval"

    def __init__(self, pictures_per_class: int = 50, scenes: int = 500, seed: int = 0) -> None:
        super().__init__(SingleThings(HELD_OUT, "held out", pictures_per_class, seed))
        self.trained = SingleThings(TRAINED, "trained", pictures_per_class, seed)
        self.retrieval = Retrieval(Scenes(scenes, seed))

    def encode(self, encoder: Encoder) -> Encoded:
        held_out, scenes = super().encode(encoder), self.retrieval.encode(encoder)
        trained = encoder.pictures(OfLabelled(self.trained), self.trained.fingerprint())
        features = {
            **held_out.features,
            "trained": normalize(trained.features),
            "trained_indices": trained.indices,
            **{f"scenes_{name}": array for name, array in scenes.features.items()},
        }
        return Encoded(features)

    def score(self, encoded: Encoded, logit_scale: float, seed: int, error: float = ERROR) -> ZeroShotScores:
        features = encoded.features
        of_scenes = {
            name.removeprefix("scenes_"): array for name, array in features.items() if name.startswith("scenes_")
        }
        found = super().score(encoded, logit_scale, seed, error)
        labels = self.trained.labels[features["trained_indices"]]
        trained = zero_shot_scores(
            features["trained"], features["classes"], labels, self.trained.classes, logit_scale, seed=seed
        )
        recalls = self.retrieval.score(Encoded(of_scenes), logit_scale, seed).scores
        scores = {
            "held_out_top1": found.scores["top1"],
            "trained_top1": trained.scores["top1"],
            **{name: score for name, score in recalls.items() if name.endswith("recall_at_1")},
        }
        return replace(found, scores=scores)
