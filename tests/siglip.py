"""A small SigLIP, and the models of transformers and open_clip of the same shape."""

from __future__ import annotations

import warnings
from typing import Any

from clip_core.architecture import Architecture
from clip_core.towers.parts import Transformer
from clip_core.towers.siglip import SiglipTextTransformer, SiglipVisionTransformer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from open_clip.model import CustomTextCLIP
    from timm.models import register_model
    from timm.models.vision_transformer import VisionTransformer
    from transformers import SiglipConfig, SiglipModel

# Patches of 8 leave one row and one column over. Every number differs from its twin in the other tower.
SIGLIP = Architecture(
    embed_dim=48,
    image=SiglipVisionTransformer(resolution=33, patch=8, width=48, layers=2, heads=3, mlp_width=80),
    text=SiglipTextTransformer(context_length=7, vocabulary_size=50, width=32, layers=3, heads=2, mlp_width=72),
    logit_bias=True,
)


def transformers_model() -> SiglipModel:
    """transformers' model of `SIGLIP`, in evaluation mode, with weights of its own."""
    image, text = SIGLIP.image, SIGLIP.text

    def section(tower: Transformer) -> dict[str, Any]:
        return {
            "hidden_size": tower.width,
            "intermediate_size": tower.mlp_width,
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
        }

    specials = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 1)
    sizes = {"vocab_size": text.vocabulary_size, "max_position_embeddings": text.context_length}
    config = SiglipConfig(
        text_config=section(text) | specials | sizes | {"projection_size": SIGLIP.embed_dim},
        vision_config=section(image) | {"image_size": image.resolution, "patch_size": image.patch},
    )
    return SiglipModel(config).eval()


def siglip_of_tests(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """timm's image tower of `SIGLIP`."""
    image = SIGLIP.image
    return VisionTransformer(
        img_size=image.resolution,
        patch_size=image.patch,
        embed_dim=image.width,
        depth=image.layers,
        num_heads=image.heads,
        mlp_ratio=image.mlp_width / image.width,
        class_token=False,
        act_layer="gelu_tanh",
        **{name: options[name] for name in ("num_classes", "global_pool")},
    )


def open_clip_model() -> CustomTextCLIP:
    """open_clip's model of `SIGLIP`, in evaluation mode, with weights of its own."""
    text = SIGLIP.text
    siglip_of_tests.__module__ = VisionTransformer.__module__  # where timm looks for the settings of its models
    register_model(siglip_of_tests)
    vision = {"image_size": 33, "timm_model_name": "siglip_of_tests", "timm_pool": "map", "timm_proj": "none"}
    language = {
        "context_length": text.context_length,
        "vocab_size": text.vocabulary_size,
        "width": text.width,
        "heads": text.heads,
        "layers": text.layers,
        "mlp_ratio": text.mlp_width / text.width,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": text.epsilon},
        "act_kwargs": {"approximate": "tanh"},
    }
    return CustomTextCLIP(SIGLIP.embed_dim, vision, language, init_logit_bias=-10).eval()
