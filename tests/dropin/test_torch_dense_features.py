"""Features of every patch, in the way of MaskCLIP, CLIP Surgery and feature fields."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.dropin.samples import PIXELS, close, model, paper, resnet
from tests.models import RESNET, VIT, sample_pixels


def test_tokens_of_the_last_block():
    clip, judge = model(), paper()
    visual = clip.visual
    judge.encode_image(PIXELS)
    x = visual.conv1(PIXELS).flatten(2).permute(0, 2, 1)
    start = visual.class_embedding + torch.zeros(len(x), 1, x.shape[-1])
    x = visual.ln_pre(torch.cat([start, x], dim=1) + visual.positional_embedding)
    x = visual.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)  # [n, l, d] -> [l, n, d] -> [n, l, d]
    tokens = visual.ln_post(x) @ visual.proj
    assert close(tokens[:, 0], judge.seen["visual"])
    last = judge.seen["visual.transformer"].transpose(0, 1)
    assert close(tokens, judge.norm("visual.ln_post", last) @ clip.visual.proj)


def test_values_in_place_of_attention():
    """MaskCLIP: in the last block each token keeps its own value, computed from the packed weights."""
    clip, judge = model(), paper()

    class Values(nn.Module):
        def __init__(self, attention: nn.MultiheadAttention) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, query, key, value, **options):
            width = self.attention.embed_dim
            weights, biases = self.attention.in_proj_weight[-width:], self.attention.in_proj_bias[-width:]
            return self.attention.out_proj(F.linear(value, weights, biases)), None

    last = clip.visual.transformer.resblocks[-1]
    last.attn = Values(last.attn)
    seen = []
    clip.visual.transformer.register_forward_hook(lambda module, arguments, output: seen.append(output))
    clip.encode_image(PIXELS)
    name, x = (
        "visual.transformer.resblocks.1",
        judge.transformer("visual.transformer", judge.image_tokens(PIXELS), VIT.image, until=1),
    )
    weights = judge.weights
    v = judge.norm(f"{name}.ln_1", x) @ weights[f"{name}.attn.in_proj_weight"][-VIT.image.width :].T
    v = v + weights[f"{name}.attn.in_proj_bias"][-VIT.image.width :]
    x = x + judge.linear(f"{name}.attn.out_proj", v)
    hidden = judge.linear(f"{name}.mlp.c_fc", judge.norm(f"{name}.ln_2", x))
    x = x + judge.linear(f"{name}.mlp.c_proj", hidden * torch.sigmoid(1.702 * hidden))
    assert close(seen[0], x)


def test_queries_and_keys_by_hooks():
    """What attention is given, from which others compute q-q or k-k similarities."""
    clip, judge = model(), paper()
    seen = {}
    block = clip.visual.transformer.resblocks[-1]
    block.attn.register_forward_hook(lambda module, arguments, output: seen.update(given=arguments[0]))
    clip.encode_image(PIXELS)
    judge.encode_image(PIXELS)
    found = F.linear(seen["given"], block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, dim=-1)[1]
    expected = judge.seen["visual.transformer.resblocks.1.ln_1"]
    expected = expected @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
    assert close(found, expected.chunk(3, dim=-1)[1])


def test_maps_of_weights():
    """Attention asked for its weights, as a mean over the heads and for each of them."""
    clip = model()
    block = clip.visual.transformer.resblocks[0]
    x = block.ln_1(paper().image_tokens(PIXELS))
    length = VIT.image.grid**2 + 1
    plain = block.attn(x, x, x, need_weights=False, attn_mask=None)[0]
    output, mean = block.attn(x, x, x, need_weights=True)
    _, each = block.attn(x, x, x, need_weights=True, average_attn_weights=False)
    assert close(output, plain)
    assert each.shape == (len(PIXELS), VIT.image.heads, length, length)
    assert close(each.mean(dim=1), mean, 1e-6)
    assert close(mean.sum(dim=-1), torch.ones(len(PIXELS), length), 1e-5)


def test_larger_pictures_with_interpolated_positions():
    clip, judge = model(), paper()
    grid, pixels = VIT.image.grid + 1, torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    start, positions = clip.visual.positional_embedding.split([1, VIT.image.grid**2])
    positions = positions.T.reshape(1, -1, VIT.image.grid, VIT.image.grid)
    positions = F.interpolate(positions, (grid, grid), mode="bicubic").flatten(2)[0].T
    clip.visual.positional_embedding = nn.Parameter(torch.cat([start, positions]))
    judge.weights = dict(judge.weights) | {"visual.positional_embedding": clip.visual.positional_embedding}
    assert close(clip.encode_image(pixels), judge.encode_image(pixels))
    assert close(clip.visual(pixels), judge.seen["visual"])


def test_the_map_in_front_of_the_attention_pool():
    clip, pixels = resnet(), torch.tensor(sample_pixels(RESNET))
    pool = clip.visual.attnpool
    seen = []
    clip.visual.layer4.register_forward_hook(lambda module, arguments, output: seen.append(output))
    expected = clip.encode_image(pixels)
    dense = F.conv2d(
        F.conv2d(seen[0], pool.v_proj.weight[..., None, None], pool.v_proj.bias),
        pool.c_proj.weight[..., None, None],
        pool.c_proj.bias,
    )
    assert dense.shape == (len(pixels), RESNET.embed_dim, RESNET.image.grid, RESNET.image.grid)
    x = seen[0].flatten(2).permute(2, 0, 1)
    x = torch.cat([x.mean(dim=0, keepdim=True), x]) + pool.positional_embedding[:, None]
    found, _ = F.multi_head_attention_forward(
        x[:1],
        x,
        x,
        x.shape[-1],
        pool.num_heads,
        None,
        torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        None,
        None,
        False,
        0.0,
        pool.c_proj.weight,
        pool.c_proj.bias,
        use_separate_proj_weight=True,
        need_weights=False,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
    )
    assert close(found[0], expected, 1e-3)
