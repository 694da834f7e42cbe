"""A small SigLIP, the models of transformers and open_clip of the same shape, and a folder as transformers writes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from clip_core.architecture import Architecture
from clip_core.towers.parts import Transformer
from clip_core.towers.siglip import SiglipTextTransformer, SiglipVisionTransformer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from open_clip.model import CustomTextCLIP
    from timm.models import register_model
    from timm.models.vision_transformer import VisionTransformer
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

# Patches of 8 leave one row and one column over. Every number differs from its twin in the other tower.
SIGLIP = Architecture(
    embed_dim=48,
    image=SiglipVisionTransformer(resolution=33, patch=8, width=48, layers=2, heads=3, mlp_width=80),
    text=SiglipTextTransformer(context_length=7, vocabulary_size=50, width=32, layers=3, heads=2, mlp_width=72),
    logit_bias=True,
)


PIECES = [*"abcdefghijklmnopqrstuvwxyz0123456789", "\u2581", "\u2581a", "\u2581red", "circle", "s", "photo", "of", "th"]


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


siglip_of_tests.__module__ = VisionTransformer.__module__  # where timm looks for the settings of its models
register_model(siglip_of_tests)  # once: timm warns of a second time


def open_clip_model() -> CustomTextCLIP:
    """open_clip's model of `SIGLIP`, in evaluation mode, with weights of its own."""
    text = SIGLIP.text
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


def siglip_folder(path: Path) -> Path:
    """A new folder with what transformers writes, and the tokenizer of a SigLIP beside it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers_model().save_pretrained(path)
        SiglipImageProcessor(size={"height": 33, "width": 33}, resample=2).save_pretrained(path)
    (path / "tokenizer.json").write_text(tokenizer_json())
    settings = {"tokenizer_class": "SiglipTokenizer", "pad_token": "</s>", "eos_token": "</s>"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


def tokenizer_json() -> str:
    """A SentencePiece-unigram tokenizer of as many tokens as `SIGLIP` has, which ends texts as SigLIP's does."""
    pieces = ["<pad>", "</s>", "<unk>", *dict.fromkeys(PIECES)]
    pieces += [f"\u2581{number}{number}" for number in range(SIGLIP.text.vocabulary_size - len(pieces))]
    body = {
        "version": "1.0",
        "added_tokens": [
            {"id": place, "content": token, "special": True, "single_word": False, "lstrip": False, "rstrip": False}
            | {"normalized": False}
            for place, token in enumerate(pieces[:3])
        ],
        "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "decoder": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 2, "vocab": [[piece, -float(len(pieces))] for piece in pieces]},
    }
    return json.dumps(body)
