"""The parts of a model with the constructors that they have in OpenAI's package, for code that builds its own."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from backends.torch import layers, model
from backends.torch.layers import LayerNorm, PatchDropout, QuickGELU
from backends.torch.tensors import drawn_seed, to_array
from backends.torch.towers import modified_resnet, vision_transformer
from clip_core.architecture import Architecture, infer
from clip_core.initialize import initialize
from clip_core.parameters import Parameter
from clip_core.towers.modified_resnet import ModifiedResNet as ModifiedResNetFields
from clip_core.towers.parts import HEAD_WIDTH
from clip_core.towers.text_transformer import TextTransformer as TextTransformerFields
from clip_core.towers.vision_transformer import VisionTransformer as VisionTransformerFields

__all__ = [
    "CLIP",
    "AttentionPool2d",
    "LayerNorm",
    "ModifiedResNet",
    "QuickGELU",
    "ResidualAttentionBlock",
    "Transformer",
    "VisionTransformer",
    "build_model",
    "convert_weights",
]

# What the archives of OpenAI's models hold beside weights.
NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size")


class StandIn(type):
    """A class of this module, which adds a constructor to the class that models are made of.

    It equals that class: instances and subclasses of that class count as its own, and what is set on it is set on that
    class.
    """

    def __eq__(cls, other: object) -> bool:
        return other is cls or (cls._is_stand_in() and other is cls.__mro__[1])

    def __hash__(cls) -> int:
        return hash(cls.__mro__[1]) if cls._is_stand_in() else super().__hash__()

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.__mro__[1]) if cls._is_stand_in() else super().__subclasscheck__(subclass)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.__mro__[1]) if cls._is_stand_in() else super().__instancecheck__(instance)

    def __setattr__(cls, name: str, value: object) -> None:
        if cls._is_stand_in():
            setattr(cls.__mro__[1], name, value)
        else:
            super().__setattr__(name, value)

    def _is_stand_in(cls) -> bool:
        """Whether it is not a class that a user has derived."""
        return cls.__module__ == __name__


class ResidualAttentionBlock(layers.ResidualAttentionBlock, metaclass=StandIn):
    """A block as in OpenAI's package: [l, n, d] -> [l, n, d]."""

    def __init__(self, d_model: int, n_head: int, attn_mask: torch.Tensor | None = None) -> None:
        super().__init__(_fields(d_model, 1, n_head), attn_mask=attn_mask)


class Transformer(layers.Transformer, metaclass=StandIn):
    """A stack of blocks as in OpenAI's package: [l, n, d] -> [l, n, d]."""

    def __init__(self, width: int, layers: int, heads: int, attn_mask: torch.Tensor | None = None) -> None:
        super().__init__(_fields(width, layers, heads))
        for block in self.resblocks:
            block.attn_mask = attn_mask


class AttentionPool2d(modified_resnet.AttentionPool2d, metaclass=StandIn):
    """The attention pool of a ResNet as in OpenAI's package: [n, embed_dim, h, w] -> [n, output_dim]."""

    def __init__(self, spacial_dim: int, embed_dim: int, num_heads: int, output_dim: int | None = None) -> None:
        fields = ModifiedResNetFields(32 * spacial_dim, embed_dim // 32, (1, 1, 1, 1), num_heads)
        super().__init__(fields, output_dim or embed_dim)
        nn.init.normal_(self.positional_embedding, std=embed_dim**-0.5)


class ModifiedResNet(modified_resnet.ModifiedResNet, metaclass=StandIn):
    """A ResNet as in OpenAI's package: [n, 3, r, r] -> [n, output_dim]."""

    def __init__(
        self, layers: Sequence[int], output_dim: int, heads: int, input_resolution: int = 224, width: int = 64
    ) -> None:
        one, two, three, four = layers
        fields = ModifiedResNetFields(input_resolution, width, (one, two, three, four), heads)
        super().__init__(fields, output_dim)
        _draw(self, fields.parameters(output_dim))


class VisionTransformer(vision_transformer.VisionTransformer, metaclass=StandIn):
    """A Vision Transformer as in OpenAI's package: [n, 3, r, r] -> [n, output_dim]."""

    def __init__(
        self, input_resolution: int, patch_size: int, width: int, layers: int, heads: int, output_dim: int
    ) -> None:
        fields = VisionTransformerFields(input_resolution, patch_size, width, layers, heads)
        super().__init__(fields, output_dim)
        _draw(self, fields.parameters(output_dim))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also of a tower that OpenAI's package has pickled, which has no patch dropout."""
        super().__setstate__({"patch_dropout": PatchDropout(leading=1), **state})


class CLIP(model.CLIP, metaclass=StandIn):
    """A model with weights that are drawn from a seed of PyTorch's generator, on the CPU and in training mode."""

    def __init__(
        self,
        embed_dim: int,
        image_resolution: int,
        vision_layers: Sequence[int] | int,
        vision_width: int,
        vision_patch_size: int | None,
        context_length: int,
        vocab_size: int,
        transformer_width: int,
        transformer_heads: int,
        transformer_layers: int,
    ) -> None:
        image: VisionTransformerFields | ModifiedResNetFields
        if isinstance(vision_layers, int):
            assert vision_patch_size is not None
            heads = vision_width // HEAD_WIDTH
            image = VisionTransformerFields(image_resolution, vision_patch_size, vision_width, vision_layers, heads)
        else:
            one, two, three, four = vision_layers
            heads = 32 * vision_width // HEAD_WIDTH
            image = ModifiedResNetFields(image_resolution, vision_width, (one, two, three, four), heads)
        text = TextTransformerFields(
            context_length, vocab_size, transformer_width, transformer_layers, transformer_heads
        )
        architecture = Architecture(embed_dim, image, text)
        architecture.check()
        super().__init__(architecture, initialize(architecture, drawn_seed()), device=torch.get_default_device())
        self.train()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also of a model that OpenAI's package has pickled."""
        super().__setstate__(state)
        if "architecture" not in state:
            self.architecture = infer({name: tuple(tensor.shape) for name, tensor in self.state_dict().items()})
            self.source, self.vocabulary, self.logit_bias = "the pickled model", None, None


def build_model(state_dict: MutableMapping[str, torch.Tensor]) -> model.CLIP:
    """The model of a state dictionary with OpenAI's names, on the CPU; as of `convert_weights`, in evaluation mode.

    What is no weight is removed from the dictionary, as in OpenAI's package.

    Raises:
        CheckpointError: the weights are not those of a CLIP.
    """
    for name in NO_WEIGHTS:
        state_dict.pop(name, None)
    weights = {name: to_array(tensor) for name, tensor in state_dict.items()}
    architecture = infer({name: array.shape for name, array in weights.items()})
    result = model.CLIP(architecture, weights, device="cpu", source="the state dictionary")
    convert_weights(result)
    return result


def convert_weights(model: nn.Module) -> None:
    """Convert the matrices of a model and their biases to float16, as OpenAI's files hold them."""
    for module in model.modules():
        names = ["text_projection", "proj"]
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            names += ["weight", "bias"]
        if isinstance(module, nn.MultiheadAttention):
            names += ["in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"]
            names += ["in_proj_bias", "bias_k", "bias_v"]
        for name in names:
            tensor = getattr(module, name, None)
            if isinstance(tensor, torch.Tensor):
                tensor.data = tensor.data.half()


def _fields(width: int, layers: int, heads: int) -> VisionTransformerFields:
    """The numbers of a transformer of OpenAI's kind, whatever it is part of."""
    return VisionTransformerFields(1, 1, width, layers, heads)


def _draw(module: nn.Module, parameters: Iterable[Parameter]) -> None:
    """Set a tower to its initial values."""
    generator, state = np.random.default_rng(drawn_seed()), module.state_dict()
    for parameter in parameters:
        state[parameter.name].copy_(torch.from_numpy(parameter.initial.draw(generator, parameter.shape)))
