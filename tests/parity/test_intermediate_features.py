"""`forward_intermediates` of the reference against transformers and open_clip, with the same random weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel

from backends.numpy import CLIP as Reference
from clip_core.architecture import Architecture
from clip_core.buffers import Tensor
from clip_core.layouts import LAYOUTS
from clip_core.naming import Weights
from tests.models import RESNET, VIT, sample_pixels, sample_weights
from tests.peers import open_clip
from tests.siglip import SIGLIP, open_clip_model, transformers_model
from tests.tolerances import first_beyond

Found = dict[str, np.ndarray]


def ours(architecture: Architecture, weights: Weights) -> Found:
    """Each block's tokens [n, l, d] or cells [n, h * w, d], its attention [n, heads, l, l], and that of the pool."""
    judge = Reference(architecture, weights, precision="fp64")
    found = judge.forward_intermediates(
        sample_pixels(architecture), attention=architecture.image.kind in ("vit", "siglip", "resnet")
    )
    result = {}
    for block in found.blocks:
        tokens = block.patches.reshape(len(block.patches), -1, block.patches.shape[-1])
        if block.token is not None:
            tokens = np.concatenate([block.token[:, None], tokens], axis=1)
        result |= {f"{block.block}.tokens": tokens, f"{block.block}.attention": block.attention}
    return {name: value for name, value in (result | {"pool": found.pool}).items() if value is not None}


def stored(architecture: Architecture, weights: Weights, layout: str) -> dict[str, torch.Tensor]:
    """The weights under the names of a project."""
    tensors = {name: Tensor(array, array.dtype) for name, array in weights.items()}
    return {
        name: torch.tensor(tensor.values()) for name, tensor in LAYOUTS[layout].store(tensors, architecture).items()
    }


def transformers_vit(weights: Weights) -> Found:
    image = VIT.image
    config = CLIPVisionConfig(
        hidden_size=image.width,
        intermediate_size=image.mlp_width,
        num_hidden_layers=image.layers,
        num_attention_heads=image.heads,
        image_size=image.resolution,
        patch_size=image.patch,
        attn_implementation="eager",
    )
    model = CLIPVisionModel(config).eval()
    state = stored(VIT, weights, "huggingface")
    wanted = model.state_dict()
    prefix = "" if next(iter(wanted)).startswith("vision_model.") else "vision_model."  # which newer versions leave out
    model.load_state_dict({name: state[prefix + name] for name in wanted})
    with torch.no_grad():
        found = model(torch.from_numpy(sample_pixels(VIT)), output_hidden_states=True, output_attentions=True)
    return {
        f"{number}.{name}": value.numpy()
        for number, pair in enumerate(zip(found.hidden_states[1:], found.attentions))
        for name, value in zip(("tokens", "attention"), pair)
    }


def transformers_siglip(weights: Weights) -> Found:
    model = transformers_model()
    model.load_state_dict(stored(SIGLIP, weights, "huggingface"))
    model.set_attn_implementation("eager")
    with torch.no_grad():
        pixels = torch.from_numpy(sample_pixels(SIGLIP))
        found = model.vision_model(pixels, output_hidden_states=True, output_attentions=True)
        head, states = model.vision_model.head, found.last_hidden_state
        probe = head.probe.repeat(len(states), 1, 1)
        pool = head.attention(probe, states, states, average_attn_weights=False)[1][:, :, 0]
    return {
        f"{number}.{name}": value.numpy()
        for number, pair in enumerate(zip(found.hidden_states[1:], found.attentions))
        for name, value in zip(("tokens", "attention"), pair)
    } | {"pool": pool.numpy()}


def open_clip_vit(weights: Weights) -> Found:
    visual = open_clip(VIT, weights).visual
    with torch.no_grad():
        found = visual.forward_intermediates(
            torch.from_numpy(sample_pixels(VIT)), output_fmt="NLC", output_extra_tokens=True
        )
    pairs = zip(found["image_intermediates_prefix"], found["image_intermediates"])
    return {f"{number}.tokens": torch.cat(pair, dim=1).numpy() for number, pair in enumerate(pairs)}


def open_clip_siglip(weights: Weights) -> Found:
    model = open_clip_model()
    model.load_state_dict(stored(SIGLIP, weights, "timm"))
    with torch.no_grad():
        found = model.visual.forward_intermediates(torch.from_numpy(sample_pixels(SIGLIP)), output_fmt="NLC")
    return {f"{number}.tokens": value.numpy() for number, value in enumerate(found["image_intermediates"])}


def open_clip_resnet(weights: Weights) -> Found:
    """The last block of each stage, and what the pool computes by PyTorch's own attention."""
    visual = open_clip(RESNET, weights).visual
    with torch.no_grad():
        found = visual.forward_intermediates(torch.from_numpy(sample_pixels(RESNET)))["image_intermediates"][1:]
        pool, cells = visual.attnpool, found[-1].flatten(2).permute(2, 0, 1)  # [n, c, h, w] -> [h * w, n, c]
        tokens = torch.cat([cells.mean(dim=0, keepdim=True), cells]) + pool.positional_embedding[:, None]
        projections = pool.q_proj, pool.k_proj, pool.v_proj
        q, k, v = (each.weight for each in projections)
        _, maps = F.multi_head_attention_forward(
            *(tokens[:1], tokens, tokens, tokens.shape[-1], pool.num_heads, None),
            in_proj_bias=torch.cat([each.bias for each in projections]),
            **dict.fromkeys(("bias_k", "bias_v")),
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=pool.c_proj.weight,
            out_proj_bias=pool.c_proj.bias,
            use_separate_proj_weight=True,
            q_proj_weight=q,
            k_proj_weight=k,
            v_proj_weight=v,
            average_attn_weights=False,
        )
    ends = np.cumsum(RESNET.image.blocks) - 1
    blocks = {f"{end}.tokens": x.flatten(2).transpose(1, 2).numpy() for end, x in zip(ends, found)}
    return blocks | {"pool": maps[:, :, 0].numpy()}


PEERS = {
    transformers_vit: (VIT, "visual.transformer.resblocks.1.attn.in_proj_weight"),
    transformers_siglip: (SIGLIP, "visual.attnpool.attn.in_proj_weight"),
    open_clip_vit: (VIT, "visual.transformer.resblocks.1.mlp.c_fc.weight"),
    open_clip_siglip: (SIGLIP, "visual.conv1.weight"),
    open_clip_resnet: (RESNET, "visual.attnpool.k_proj.weight"),
}


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.__name__)
def test_blocks_are_those_of_others_and_a_changed_weight_is_noticed(peer: Callable[[Weights], Found]):
    architecture, name = PEERS[peer]
    weights = sample_weights(architecture)
    expected = peer(weights)
    found = ours(architecture, weights)
    assert len(expected) >= 2
    assert first_beyond(found, expected) is None
    changed = weights[name].copy()
    changed.reshape(-1)[::-7] += 0.1
    assert first_beyond(ours(architecture, weights | {name: changed}), expected) is not None
