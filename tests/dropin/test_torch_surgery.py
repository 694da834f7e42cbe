"""Models that are cut and rebuilt: parts removed, replaced, lengthened. What cannot work says so."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from clip_core.errors import TextError
from tests.dropin.paper import Paper
from tests.dropin.samples import PIXELS, TOKENS, close, model, paper, resnet
from tests.models import RESNET, VIT, sample_pixels


def test_without_projections():
    clip, judge = model(), paper()
    clip.visual.proj = clip.text_projection = None
    judge.encode_image(PIXELS)
    assert close(clip.encode_image(PIXELS), judge.seen["visual.ln_post"])
    judge.encode_text(TOKENS)
    assert close(clip.encode_text(TOKENS), judge.seen["ln_final"][torch.arange(3), TOKENS.argmax(dim=-1)])


def test_fewer_blocks():
    clip, judge = model(), paper()
    clip.visual.transformer.resblocks = clip.visual.transformer.resblocks[:-1]
    clip.transformer.resblocks = nn.Sequential(*clip.transformer.resblocks[:2])
    judge.architecture = replace(VIT, image=replace(VIT.image, layers=1), text=replace(VIT.text, layers=2))
    assert close(clip.encode_image(PIXELS), judge.encode_image(PIXELS))
    assert close(clip.encode_text(TOKENS), judge.encode_text(TOKENS))


@pytest.mark.parametrize("part", [nn.Identity, nn.Sequential])
def test_a_block_that_does_nothing(part):
    clip, judge = model(), paper()
    clip.visual.transformer.resblocks[-1] = part()
    clip.transformer.resblocks[0] = part()
    judge.architecture = replace(VIT, image=replace(VIT.image, layers=1))
    assert close(clip.encode_image(PIXELS), judge.encode_image(PIXELS))
    plain = judge.block
    judge.block = lambda name, x, *rest: x if name == "transformer.resblocks.0" else plain(name, x, *rest)
    assert close(clip.encode_text(TOKENS), judge.encode_text(TOKENS))


def test_other_parts_of_a_block():
    clip, judge = model(), paper()
    for block in clip.transformer.resblocks:
        block.mlp = nn.Sequential(block.mlp.c_fc, block.mlp.gelu, nn.Dropout(0.0), block.mlp.c_proj)
        block.ln_2 = nn.LayerNorm(VIT.text.width).requires_grad_(False)
    judge.weights = {
        name: torch.ones_like(x) if name.endswith("ln_2.weight") else 0 * x if name.endswith("ln_2.bias") else x
        for name, x in judge.weights.items()
    }
    judge.weights |= {name: x for name, x in paper().weights.items() if name.startswith("visual.")}
    assert close(clip.encode_text(TOKENS), judge.encode_text(TOKENS))


def test_attention_of_pytorch_itself():
    clip = model()
    expected = clip.encode_text(TOKENS)
    for block in clip.transformer.resblocks:
        attention = nn.MultiheadAttention(VIT.text.width, VIT.text.heads)
        attention.load_state_dict(block.attn.state_dict())
        block.attn = attention
    assert close(clip.encode_text(TOKENS), expected)


@pytest.mark.parametrize("cut", [None, "zeros"])
def test_other_masks(cut):
    """Text that sees all of its tokens, by no mask or by one that hides nothing; also where a mask is edited."""
    clip, judge = model(), paper()
    for block in clip.transformer.resblocks:
        if cut is None:
            block.attn_mask = None
    if cut is not None:
        clip.transformer.resblocks[0].attn_mask.zero_()  # all blocks have the same one, as in OpenAI's package
    plain = judge.transformer
    judge.transformer = lambda name, x, tower, mask=None: plain(name, x, tower)
    assert close(clip.encode_text(TOKENS), judge.encode_text(TOKENS))
    assert not close(clip.encode_text(TOKENS), model().encode_text(TOKENS), 0.1)


def test_masks_of_their_own_for_each_block():
    clip, judge = model(), paper()
    mask = clip.build_attention_mask()
    mask[:, 1] = -torch.inf  # but for the second token nobody sees it
    mask[1, 1] = 0
    clip.transformer.resblocks[1].attn_mask = mask
    plain = judge.block
    judge.block = lambda name, x, heads, own: plain(name, x, heads, mask if name == "transformer.resblocks.1" else own)
    assert close(clip.encode_text(TOKENS), judge.encode_text(TOKENS))


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("length", [9, 24])
def test_another_context_length(length, seen):
    """With positions of another number; the masks are those of the new length."""
    clip = model()
    positions = torch.randn(length, VIT.text.width, generator=torch.Generator().manual_seed(0)) * 0.1
    clip.positional_embedding = nn.Parameter(positions)
    clip.context_length = length
    assert clip.build_attention_mask().shape == (length, length)
    if seen:
        for block in clip.transformer.resblocks:
            block.attn_mask = clip.build_attention_mask()
    tokens = torch.zeros(2, length, dtype=torch.long)
    tokens[0, :5], tokens[1] = torch.tensor([1, 2, 3, 4, 299]), torch.arange(100, 100 + length)
    tokens[1, -1] = 299
    judge = Paper(VIT, paper().weights | {"positional_embedding": positions})
    assert close(clip.encode_text(tokens), judge.encode_text(tokens))
    with pytest.raises(TextError, match=rf"have shape \(1, {length + 1}\), expected \(n, {length}\)"):
        clip.encode_text(torch.full((1, length + 1), 299))


def test_more_tokens():
    """A larger table, as for new words; texts still end with the model's own token."""
    clip, table = model(), paper().weights["token_embedding.weight"]
    clip.token_embedding = nn.Embedding.from_pretrained(torch.cat([table, table[:2] + 1]))
    tokens = TOKENS.clone()
    tokens[:, 1] = 301
    found = clip.encode_text(tokens)
    judge = paper()
    embedded = clip.token_embedding(tokens)
    assert close(found, judge.encode_embedded(embedded, TOKENS))
    with pytest.raises(TextError, match="Token 302 is outside the vocabulary of 302"):
        clip.encode_text(tokens + 1 * (tokens == 301))


def test_another_image_tower():
    clip = model()
    clip.visual = nn.Sequential(nn.Flatten(), nn.Linear(3 * 10 * 10, VIT.embed_dim))
    per_image, _ = clip(torch.randn(2, 3, 10, 10), TOKENS)
    assert per_image.shape == (2, 3)
    assert clip.dtype == torch.float32
    clip.visual = model().visual.half()
    assert clip.dtype == torch.float16
    assert clip.encode_image(PIXELS).dtype == torch.float16
    assert clip.encode_text(TOKENS).dtype == torch.float32


def test_a_resnet_without_its_pool():
    clip, pixels = resnet(), torch.tensor(sample_pixels(RESNET))
    clip.visual.attnpool = nn.Identity()
    grid = RESNET.image.grid
    assert clip.encode_image(pixels).shape == (len(pixels), RESNET.image.feature_width, grid, grid)
    clip.visual.layer4 = nn.Identity()
    assert clip.visual(pixels).shape == (len(pixels), RESNET.image.feature_width // 2, 2 * grid, 2 * grid)


def test_parametrized_weights():
    class Doubled(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    clip, judge = model(), paper()
    nn.utils.parametrize.register_parametrization(clip.transformer.resblocks[1].mlp.c_fc, "weight", Doubled())
    nn.utils.parametrize.register_parametrization(clip.transformer.resblocks[0].attn, "in_proj_weight", Doubled())
    for name in ("transformer.resblocks.1.mlp.c_fc.weight", "transformer.resblocks.0.attn.in_proj_weight"):
        judge.weights = dict(judge.weights) | {name: 2 * judge.weights[name]}
    assert close(clip.encode_text(TOKENS), judge.encode_text(TOKENS), 1e-3)


def test_masks_as_buffers_and_of_other_sizes():
    block = model().transformer.resblocks[0]
    x, mask = torch.randn(5, 2, VIT.text.width), block.attn_mask
    expected = block(x)
    del block.attn_mask
    block.register_buffer("attn_mask", mask)
    assert torch.equal(block(x), expected)
    large = torch.randn(9, 9, generator=torch.Generator().manual_seed(0))
    block.attn_mask = large
    found = block(x)
    block.attn_mask = large[-5:, -5:]
    assert torch.equal(block(x), found)


def test_options_of_attention():
    """What only PyTorch's own forward pass does: more keys and values, and dropout."""
    clip, judge = model(), paper()
    attention = clip.visual.transformer.resblocks[-1].attn
    attention.add_zero_attn = True
    plain = judge.attention

    def with_zeros(name, x, heads, mask):
        if name != "visual.transformer.resblocks.1.attn":
            return plain(name, x, heads, mask)
        width = x.shape[-1] // heads
        q, k, v = (x @ judge.weights[f"{name}.in_proj_weight"].T + judge.weights[f"{name}.in_proj_bias"]).chunk(3, -1)
        k, v = (torch.cat([y, torch.zeros_like(y[:1])]) for y in (k, v))
        q, k, v = (
            y.unflatten(-1, (heads, width)).permute(1, 2, 0, 3) for y in (q, k, v)
        )  # -> [n, heads, l, d / heads]
        y = ((q @ k.mT / width**0.5).softmax(dim=-1) @ v).permute(2, 0, 1, 3).flatten(2)
        return judge.linear(f"{name}.out_proj", y)

    judge.attention = with_zeros
    assert close(clip.encode_image(PIXELS), judge.encode_image(PIXELS))
    attention.add_zero_attn, attention.dropout = False, 0.9
    assert close(clip.encode_image(PIXELS), paper().encode_image(PIXELS))
    clip.train()
    assert not close(clip.encode_image(PIXELS), clip.encode_image(PIXELS), 1e-2)


def test_a_table_with_another_weight():
    clip, table = model(), paper().weights["token_embedding.weight"]
    clip.token_embedding.weight = nn.Parameter(torch.cat([table, table[:1] + 1]))
    tokens = TOKENS.clone()
    tokens[:, 1] = 300
    assert close(clip.encode_text(tokens), paper().encode_embedded(clip.token_embedding(tokens), TOKENS))


def test_towers_without_the_other():
    clip = model()
    for name in ("transformer", "token_embedding", "ln_final", "text_projection", "positional_embedding"):
        delattr(clip, name)
    assert close(clip.encode_image(PIXELS), paper().encode_image(PIXELS))
    clip = model()
    del clip.visual
    assert close(clip.encode_text(TOKENS), paper().encode_text(TOKENS))


def test_another_forward_pass_for_larger_pictures():
    clip, pixels = model(), torch.randn(2, 3, 96, 80, generator=torch.Generator().manual_seed(0))
    forward = clip.visual.forward
    clip.visual.forward = lambda x: forward(nn.functional.interpolate(x, (64, 64)))
    expected = paper().encode_image(nn.functional.interpolate(pixels, (64, 64)))
    assert close(clip.encode_image(pixels), expected)
    assert clip(pixels, TOKENS)[0].shape == (2, 3)
