"""The towers that a CLIP can be made of, by the kind that descriptions give; each has a twin in every backend."""

from clip_core.towers.distilbert import DistilBERT
from clip_core.towers.efficientnet_v2 import EfficientNetV2
from clip_core.towers.low_resource import LowResourceTextTransformer, LowResourceVisionTransformer
from clip_core.towers.mixer import TextMixer, VisionMixer
from clip_core.towers.modified_resnet import ModifiedResNet
from clip_core.towers.parts import ImageTower, TextTower
from clip_core.towers.siglip import SiglipTextTransformer, SiglipVisionTransformer
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.torchvision_resnet import TorchvisionResNet
from clip_core.towers.vision_transformer import VisionTransformer

IMAGE_TOWERS: dict[str, type[ImageTower]] = {
    tower.kind: tower
    for tower in (
        VisionTransformer,
        ModifiedResNet,
        VisionMixer,
        LowResourceVisionTransformer,
        TorchvisionResNet,
        EfficientNetV2,
        SiglipVisionTransformer,
    )
}
TEXT_TOWERS: dict[str, type[TextTower]] = {
    tower.kind: tower
    for tower in (
        TextTransformer,
        TextMixer,
        LowResourceTextTransformer,
        DistilBERT,
        SiglipTextTransformer,
    )
}
"""The first of each is taken for weights that none recognises, so that messages name what OpenAI's would have."""
