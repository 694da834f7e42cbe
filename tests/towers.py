"""A small CLIP for each kind of tower: what tests/test_towers.py runs through all that is asked of a tower.

A new tower adds its example to `IMAGES` or `TEXTS`; every test of a tower then runs on it in every backend.
"""

from __future__ import annotations

from itertools import zip_longest

from clip_core.architecture import Architecture
from clip_core.towers.distilbert import DistilBERT
from clip_core.towers.efficientnet_v2 import EfficientNetV2
from clip_core.towers.low_resource import LowResourceTextTransformer, LowResourceVisionTransformer
from clip_core.towers.mixer import TextMixer, VisionMixer
from clip_core.towers.modified_resnet import ModifiedResNet
from clip_core.towers.siglip import SiglipTextTransformer, SiglipVisionTransformer
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.torchvision_resnet import TorchvisionResNet
from clip_core.towers.vision_transformer import VisionTransformer

IMAGES = (
    VisionTransformer(resolution=16, patch=8, width=32, layers=2, heads=2),
    ModifiedResNet(resolution=64, width=8, blocks=(2, 1, 1, 1), heads=4),  # with and without a shortcut of its own
    VisionMixer(resolution=16, patch=8, width=32, layers=2, token_mlp_width=12, mlp_width=48),
    # One row and one column of pixels are no whole patch.
    SiglipVisionTransformer(resolution=17, patch=8, width=32, layers=2, heads=2, mlp_width=80),
    TorchvisionResNet(resolution=40, blocks=(2, 1, 1, 1), block="basic", width=8, epsilon=1e-4, momentum=0.2),
    EfficientNetV2(
        resolution=32,
        stem=8,
        widths=(8, 16, 16),
        blocks=(1, 2, 2),
        expansions=(1, 2, 3),
        strides=(1, 2, 2),
        fused=2,
        width=24,
    ),
    LowResourceVisionTransformer(
        resolution=16, patch=8, width=32, layers=2, heads=8, mlp_width=48, head_width=40, feature_width=24
    ),
)
TEXTS = (
    TextTransformer(context_length=8, vocabulary_size=40, width=64, layers=2, heads=2),
    TextMixer(context_length=8, vocabulary_size=40, width=32, layers=2, token_mlp_width=20, mlp_width=48),
    DistilBERT(context_length=8, vocabulary_size=40, width=48, layers=2, heads=12, mlp_width=80),
    SiglipTextTransformer(context_length=8, vocabulary_size=40, width=32, layers=2, heads=2, mlp_width=80),
    LowResourceTextTransformer(context_length=8, vocabulary_size=40, width=64, layers=2, heads=8, mlp_width=80),
)
EXAMPLES = {
    f"{image.kind} and {text.kind}": Architecture(image.output_width or 16, image, text)
    for image, text in (
        (image or IMAGES[0], text or TEXTS[0]) for image, text in zip_longest(IMAGES, TEXTS, fillvalue=None)
    )
}
# The ends of names whose parameters change no number: the bias of keys moves all scores of a query alike, and the last
# one of a Mixer's token MLP all channels of a token, which every layer normalisation behind it takes away again.
WITHOUT_EFFECT = ("k_proj.bias", "token_mlp.c_proj.bias", "num_batches_tracked")
