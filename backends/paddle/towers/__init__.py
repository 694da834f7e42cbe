"""The towers in Paddle, by the kinds of `clip_core.towers`."""

from paddle import nn

from backends.paddle.towers.distilbert import DistilBERT
from backends.paddle.towers.efficientnet_v2 import EfficientNetV2
from backends.paddle.towers.low_resource import LowResourceTextTransformer, LowResourceVisionTransformer
from backends.paddle.towers.mixer import TextMixer, VisionMixer
from backends.paddle.towers.modified_resnet import ModifiedResNet
from backends.paddle.towers.siglip import SiglipTextTransformer, SiglipVisionTransformer
from backends.paddle.towers.text_transformer import TextTransformer
from backends.paddle.towers.torchvision_resnet import TorchvisionResNet
from backends.paddle.towers.vision_transformer import VisionTransformer

IMAGE_TOWERS: dict[str, type[nn.Layer]] = {
    "vit": VisionTransformer,
    "resnet": ModifiedResNet,
    "mixer": VisionMixer,
    "low_resource": LowResourceVisionTransformer,
    "torchvision_resnet": TorchvisionResNet,
    "efficientnet_v2": EfficientNetV2,
    "siglip": SiglipVisionTransformer,
}
TEXT_TOWERS: dict[str, type[nn.Layer]] = {
    "transformer": TextTransformer,
    "mixer": TextMixer,
    "low_resource": LowResourceTextTransformer,
    "distilbert": DistilBERT,
    "siglip": SiglipTextTransformer,
}
