"""The scores on the drawn world, of features whose right answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from clip_core.data.shapes import HELD_OUT, KINDS
from clip_core.evaluation.tasks import Encoded
from clip_core.evaluation.world import World


def test_held_out_and_trained_things_and_scenes_are_scored_apart():
    world = World(pictures_per_class=1, scenes=4)
    classes = np.eye(len(KINDS), dtype=np.float32)
    trained = world.trained.labels.copy()
    trained[:9] = (trained[:9] + 1) % len(KINDS)
    scenes = np.eye(4, dtype=np.float32)
    encoded = Encoded(
        {
            "images": classes[world.labelled.labels],
            "classes": classes,
            "indices": np.arange(len(HELD_OUT)),
            "trained": classes[trained],
            "trained_indices": np.arange(len(trained)),
            "scenes_images": scenes,
            "scenes_texts": scenes[[1, 0, 2, 3]],
            "scenes_indices": np.arange(4),
            "scenes_own": np.arange(4),
            "scenes_counts": np.ones(4, int),
        }
    )
    found = world.score(encoded, 100.0, 0)
    assert {name: score.value for name, score in found.scores.items()} == {
        "held_out_top1": 1,
        "trained_top1": pytest.approx(1 - 9 / len(trained)),
        "image_to_text_recall_at_1": 0.5,
        "text_to_image_recall_at_1": 0.5,
    }
    assert found.labels.tolist() == world.labelled.labels.tolist()
