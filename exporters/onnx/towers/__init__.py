"""The towers in ONNX, by the kinds of `clip_core.towers`."""

from typing import Any

from exporters.onnx.towers.distilbert import DistilBERT
from exporters.onnx.towers.efficientnet_v2 import EfficientNetV2
from exporters.onnx.towers.low_resource import LowResourceTextTransformer, LowResourceVisionTransformer
from exporters.onnx.towers.mixer import TextMixer, VisionMixer
from exporters.onnx.towers.modified_resnet import ModifiedResNet
from exporters.onnx.towers.siglip import SiglipTextTransformer, SiglipVisionTransformer
from exporters.onnx.towers.text_transformer import TextTransformer
from exporters.onnx.towers.torchvision_resnet import TorchvisionResNet
from exporters.onnx.towers.vision_transformer import VisionTransformer

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
