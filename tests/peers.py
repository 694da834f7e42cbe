"""Models of open_clip with the weights of ours."""

from __future__ import annotations

import torch
from open_clip.model import CLIP as OpenClip
from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from clip_core.architecture import Architecture
from clip_core.naming import Weights
from clip_core.towers.vision_transformer import VisionTransformer

ACT_KWARGS = {"quick_gelu": None, "gelu": None, "gelu_tanh": {"approximate": "tanh"}}  # of nn.GELU


def open_clip(architecture: Architecture, weights: Weights) -> OpenClip:
    """open_clip's model of ``architecture`` with exactly these weights, in evaluation mode."""
    image, text = architecture.image, architecture.text
    vit = isinstance(image, VisionTransformer)
    vision = CLIPVisionCfg(
        layers=image.layers if vit else image.blocks,
        width=image.width,
        head_width=(image.width if vit else image.feature_width) // image.heads,
        image_size=image.resolution,
        **(
            {
                "patch_size": image.patch,
                "mlp_ratio": image.mlp_width / image.width,
                "norm_kwargs": {"eps": image.epsilon},
                "act_kwargs": ACT_KWARGS[image.activation],
            }
            if vit
            else {}
        ),
    )
    model = OpenClip(
        architecture.embed_dim,
        vision,
        CLIPTextCfg(
            text.context_length,
            text.vocabulary_size,
            width=text.width,
            heads=text.heads,
            layers=text.layers,
            mlp_ratio=text.mlp_width / text.width,
            norm_kwargs={"eps": text.epsilon},
            act_kwargs=ACT_KWARGS[text.activation],
        ),
        quick_gelu=text.activation == "quick_gelu",
    )
    model.load_state_dict({name: torch.tensor(array) for name, array in weights.items()}, strict=True)
    return model.eval()
