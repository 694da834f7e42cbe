"""The towers in NNabla, by the kinds of `clip_core.towers`."""

from typing import Any

from backends.nnabla.towers.distilbert import DistilBERT
from backends.nnabla.towers.efficientnet_v2 import EfficientNetV2
from backends.nnabla.towers.low_resource import LowResourceTextTransformer, LowResourceVisionTransformer
from backends.nnabla.towers.mixer import TextMixer, VisionMixer
from backends.nnabla.towers.modified_resnet import ModifiedResNet
from backends.nnabla.towers.siglip import SiglipTextTransformer, SiglipVisionTransformer
from backends.nnabla.towers.text_transformer import TextTransformer
from backends.nnabla.towers.torchvision_resnet import TorchvisionResNet
from backends.nnabla.towers.vision_transformer import VisionTransformer

IMAGE_TOWERS: dict[str, Any] = {
    "vit": VisionTransformer,
    "resnet": ModifiedResNet,
    "mixer": VisionMixer,
    "low_resource": LowResourceVisionTransformer,
    "torchvision_resnet": TorchvisionResNet,
    "efficientnet_v2": EfficientNetV2,
    "siglip": SiglipVisionTransformer,
}
TEXT_TOWERS: dict[str, Any] = {
    "transformer": TextTransformer,
    "mixer": TextMixer,
    "low_resource": LowResourceTextTransformer,
    "distilbert": DistilBERT,
    "siglip": SiglipTextTransformer,
}
