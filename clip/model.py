"""The parts of a PyTorch model under the names of OpenAI's module, for code that imports ``clip.model``."""

from backends.torch.openai import (
    CLIP,
    AttentionPool2d,
    LayerNorm,
    ModifiedResNet,
    QuickGELU,
    ResidualAttentionBlock,
    Transformer,
    VisionTransformer,
    build_model,
    convert_weights,
)
from backends.torch.towers.modified_resnet import Bottleneck

__all__ = [
    "CLIP",
    "AttentionPool2d",
    "Bottleneck",
    "LayerNorm",
    "ModifiedResNet",
    "QuickGELU",
    "ResidualAttentionBlock",
    "Transformer",
    "VisionTransformer",
    "build_model",
    "convert_weights",
]
