"""Adapters, LoRA and steering: parts that are wrapped, replaced or hooked while the rest stays."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.dropin.samples import PIXELS, TOKENS, close, model, paper
from tests.models import VIT

RANK = 2


class LowRankLinear(nn.Module):
    """A linear layer with an update of low rank beside it."""

    def __init__(self, layer: nn.Linear, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layer = layer
        self.down = nn.Parameter(torch.randn(RANK, layer.in_features, generator=generator) * 0.1)
        self.up = nn.Parameter(torch.randn(layer.out_features, RANK, generator=generator) * 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + x @ self.down.T @ self.up.T

    @property
    def merged(self) -> torch.Tensor:
        return self.layer.weight + self.up @ self.down


class LowRankAttention(nn.Module):
    """Attention whose queries get an update of low rank, called like PyTorch's own."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.attention = attention
        self.down = nn.Parameter(torch.randn(RANK, attention.embed_dim, generator=torch.Generator().manual_seed(0)))
        self.up = nn.Parameter(torch.ones(attention.embed_dim, RANK) * 0.1)

    def forward(self, query, key, value, need_weights=True, attn_mask=None):
        length, n, width = query.shape
        heads, own = self.attention.num_heads, self.attention
        q, k, v = F.linear(query, own.in_proj_weight, own.in_proj_bias).chunk(3, dim=-1)
        q = q + query @ self.down.T @ self.up.T
        q, k, v = (x.reshape(length, n * heads, width // heads).transpose(0, 1) for x in (q, k, v))
        x = F.scaled_dot_product_attention(q, k, v, attn_mask)
        return own.out_proj(x.transpose(0, 1).reshape(length, n, width)), None


def test_low_rank_updates_of_linear_layers():
    clip, judge = model(), paper()
    weights = dict(judge.weights)
    for seed, block in enumerate(clip.transformer.resblocks):
        block.mlp.c_fc = LowRankLinear(block.mlp.c_fc, seed)
        weights[f"transformer.resblocks.{seed}.mlp.c_fc.weight"] = block.mlp.c_fc.merged
    before = judge.encode_text(TOKENS)
    judge.weights = weights
    assert close(clip.encode_text(TOKENS), judge.encode_text(TOKENS))
    assert not close(clip.encode_text(TOKENS), before, 0.1)


def test_low_rank_updates_of_attention():
    clip, judge = model(), paper()
    weights = dict(judge.weights)
    for tower, blocks in (("visual.transformer", clip.visual.transformer), ("transformer", clip.transformer)):
        for index, block in enumerate(blocks.resblocks):
            block.attn = LowRankAttention(block.attn)
            name = f"{tower}.resblocks.{index}.attn.in_proj_weight"
            merged = weights[name].clone()
            merged[: merged.shape[1]] += block.attn.up @ block.attn.down
            weights[name] = merged
    judge.weights = weights
    assert close(clip.encode_image(PIXELS), judge.encode_image(PIXELS), 1e-3)
    assert close(clip.encode_text(TOKENS), judge.encode_text(TOKENS), 1e-3)
    assert not close(clip.encode_text(TOKENS), model().encode_text(TOKENS), 0.1)


def test_bottlenecks_behind_the_blocks():
    """A residual adapter in a block of another class, which sees [l, n, d]."""

    class Adapted(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block
            self.shapes: list[torch.Size] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.block(x)
            self.shapes.append(x.shape)
            return x + 0.1 * x.mean(dim=0)  # over the tokens

    clip, judge = model(), paper()
    for blocks in (clip.visual.transformer.resblocks, clip.transformer.resblocks):
        for index, block in enumerate(blocks):
            blocks[index] = Adapted(block)
    plain = judge.block
    judge.block = lambda *inputs: (x := plain(*inputs)) + 0.1 * x.mean(dim=0)
    assert close(clip.encode_image(PIXELS), judge.encode_image(PIXELS))
    assert close(clip.encode_text(TOKENS), judge.encode_text(TOKENS))
    assert clip.transformer.resblocks[2].shapes == [(16, len(TOKENS), VIT.text.width)]


def test_a_method_of_one_block():
    """``attention`` or ``forward`` set on a single block."""
    judge = paper()
    judge.attention = lambda name, x, heads, mask: (
        0 * x if name == "transformer.resblocks.1.attn" else plain(name, x, heads, mask)
    )
    plain = paper_attention = type(judge).attention.__get__(judge)
    assert paper_attention is plain
    clip = model()
    clip.transformer.resblocks[1].attention = lambda x: 0 * x
    assert close(clip.encode_text(TOKENS), judge.encode_text(TOKENS))
    clip = model()
    block = clip.transformer.resblocks[1]
    block.forward = lambda x: x + block.mlp(block.ln_2(x))
    assert close(clip.encode_text(TOKENS), judge.encode_text(TOKENS))


def test_features_through_an_adapter():
    """CLIP-Adapter and Tip-Adapter keep the towers as they are."""
    clip = model()
    adapter = nn.Sequential(nn.Linear(VIT.embed_dim, 8), nn.ReLU(), nn.Linear(8, VIT.embed_dim))
    with torch.no_grad():
        frozen = F.normalize(clip.encode_image(PIXELS), dim=-1)
    assert close(frozen, F.normalize(paper().encode_image(PIXELS), dim=-1), 1e-5)
    keys, values = frozen, torch.eye(len(frozen))
    affinity = frozen @ keys.T
    assert torch.equal((torch.exp(-5.5 * (1 - affinity)) @ values).argmax(dim=1), torch.arange(len(frozen)))
    adapter(frozen).sum().backward()
    assert all(parameter.grad is None for parameter in clip.parameters())


def test_steering_by_a_hook():
    """A direction that a hook adds to all tokens of a block."""
    clip, judge = model(), paper()
    direction = torch.randn(VIT.image.width, generator=torch.Generator().manual_seed(3))
    clip.visual.transformer.resblocks[0].register_forward_hook(lambda module, arguments, output: output + direction)
    plain = judge.block
    judge.block = lambda name, *inputs: (
        plain(name, *inputs) + direction * name.endswith("visual.transformer.resblocks.0")
    )
    assert close(clip.encode_image(PIXELS), judge.encode_image(PIXELS))
    assert not close(clip.encode_image(PIXELS), model().encode_image(PIXELS), 0.1)


def test_biases_and_norms_alone():
    """BitFit: all else is frozen, and gradients reach the rest."""
    clip = model()
    for name, parameter in clip.named_parameters():
        parameter.requires_grad_(name.endswith("bias") or "ln_" in name)
    clip(PIXELS, TOKENS)[0].diagonal().sum().backward()
    got = {name for name, parameter in clip.named_parameters() if parameter.grad is not None}
    assert got == {name for name, parameter in clip.named_parameters() if parameter.requires_grad}
    assert len(got) > 40
