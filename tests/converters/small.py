"""Small models whose tensors are all different, so that no two can be mistaken for each other."""

from __future__ import annotations

import numpy as np

from clip_core.architecture import Architecture
from clip_core.layouts import LAYOUTS
from clip_core.naming import Weights, parameters
from clip_core.towers.mixer import TextMixer, VisionMixer
from clip_core.towers.modified_resnet import ModifiedResNet
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.vision_transformer import VisionTransformer

TEXT = TextTransformer(context_length=16, vocabulary_size=50, width=128, layers=3, heads=2)


ARCHITECTURES = {
    "vit": Architecture(32, VisionTransformer(resolution=32, patch=8, width=64, layers=2, heads=1), TEXT),
    "resnet": Architecture(32, ModifiedResNet(resolution=64, width=8, blocks=(1, 2, 1, 1), heads=4), TEXT),
    "mixer": Architecture(
        32,
        VisionMixer(resolution=24, patch=8, width=32, layers=2),
        TextMixer(context_length=16, vocabulary_size=50, width=24, layers=2),
    ),
}
# Every layout with every model that it has names for.
HELD = [(layout, name) for layout in LAYOUTS for name, one in ARCHITECTURES.items() if LAYOUTS[layout].holds(one)]


def random_weights(architecture: Architecture, dtype: str = "float32") -> Weights:
    generator = np.random.default_rng(0)
    return {
        parameter.name: np.asarray(generator.integers(1, 1000), np.int64)
        if parameter.kind == "counter"
        else np.asarray(generator.standard_normal(parameter.shape), dtype)
        for parameter in parameters(architecture)
    }
