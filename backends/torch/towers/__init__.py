"""The towers in PyTorch, by the kinds of `clip_core.towers`."""

from torch import nn

from backends.torch.towers.distilbert import DistilBERT
from backends.torch.towers.efficientnet_v2 import EfficientNetV2
from backends.torch.towers.low_resource import LowResourceTextTransformer, LowResourceVisionTransformer
from backends.torch.towers.mixer import TextMixer, VisionMixer
from backends.torch.towers.modified_resnet import ModifiedResNet
from backends.torch.towers.siglip import SiglipTextTransformer, SiglipVisionTransformer
from backends.torch.towers.text_transformer import TextTransformer
from backends.torch.towers.torchvision_resnet import TorchvisionResNet
from backends.torch.towers.vision_transformer import VisionTransformer

IMAGE_TOWERS: dict[str, type[nn.Module]] = {
    "vit": VisionTransformer,
    "resnet": ModifiedResNet,
    "mixer": VisionMixer,
    "low_resource": LowResourceVisionTransformer,
    "torchvision_resnet": TorchvisionResNet,
    "efficientnet_v2": EfficientNetV2,
    "siglip": SiglipVisionTransformer,
}
TEXT_TOWERS: dict[str, type[nn.Module]] = {
    "transformer": TextTransformer,
    "mixer": TextMixer,
    "low_resource": LowResourceTextTransformer,
    "distilbert": DistilBERT,
    "siglip": SiglipTextTransformer,
}
