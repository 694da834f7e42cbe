"""Small models whose tensors are all different, so that no two can be mistaken for each other."""

from __future__ import annotations

import numpy as np

from clip_core.architecture import Architecture
from clip_core.layouts import LAYOUTS
from clip_core.naming import Weights, parameters
from clip_core.towers.distilbert import DistilBERT
from clip_core.towers.efficientnet_v2 import EfficientNetV2
from clip_core.towers.low_resource import LowResourceTextTransformer, LowResourceVisionTransformer
from clip_core.towers.mixer import TextMixer, VisionMixer
from clip_core.towers.modified_resnet import ModifiedResNet
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.torchvision_resnet import TorchvisionResNet
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
    "torchvision": Architecture(
        32,
        TorchvisionResNet(resolution=224, blocks=(1, 2, 1, 1), block="bottleneck", width=4),
        DistilBERT(context_length=16, vocabulary_size=50, width=24, layers=2, activation="quick_gelu"),
        logit_bias=True,
    ),
    "efficientnet": Architecture(
        32,
        EfficientNetV2(
            resolution=224,
            stem=4,
            widths=(4, 8, 12),
            blocks=(2, 1, 2),
            expansions=(1, 4, 4),
            strides=(1, 2, 2),
            fused=2,
            width=16,
        ),
        DistilBERT(context_length=16, vocabulary_size=50, width=24, layers=2, activation="quick_gelu"),
        logit_bias=True,
    ),
    "low_resource": Architecture(
        32,
        LowResourceVisionTransformer(24, 8, width=16, layers=1, heads=8, mlp_width=24, head_width=40, feature_width=28),
        LowResourceTextTransformer(16, 50, width=24, layers=1, heads=8),
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
