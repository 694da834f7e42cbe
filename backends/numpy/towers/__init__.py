"""The towers in NumPy, by the kinds of `clip_core.towers`."""

from typing import Any

from backends.numpy.towers.distilbert import DistilBERT
from backends.numpy.towers.efficientnet_v2 import EfficientNetV2
from backends.numpy.towers.low_resource import LowResourceTextTransformer, LowResourceVisionTransformer
from backends.numpy.towers.mixer import TextMixer, VisionMixer
from backends.numpy.towers.modified_resnet import ModifiedResNet
from backends.numpy.towers.siglip import SiglipTextTransformer, SiglipVisionTransformer
from backends.numpy.towers.text_transformer import TextTransformer
from backends.numpy.towers.torchvision_resnet import TorchvisionResNet
from backends.numpy.towers.vision_transformer import VisionTransformer

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
