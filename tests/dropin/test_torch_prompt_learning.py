"""Learnt prompts, in the way of CoOp, CoCoOp, MaPLe and VPT: embedded tokens go through the parts of the text tower."""

from __future__ import annotations

import torch
from torch import nn

from tests.dropin.paper import gradient
from tests.dropin.samples import PIXELS, TOKENS, close, model, paper
from tests.models import VIT

LEARNT = 3


def text_features(clip: nn.Module, embedded: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """The text tower from its embedded tokens [n, l, d] on, in OpenAI's layout."""
    x = embedded + clip.positional_embedding.type(clip.dtype)
    x = clip.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)  # [n, l, d] -> [l, n, d] -> [n, l, d]
    x = clip.ln_final(x).type(clip.dtype)
    return x[torch.arange(len(x)), text.argmax(dim=-1)] @ clip.text_projection


def prompts(clip: nn.Module, context: torch.Tensor) -> torch.Tensor:
    """Learnt vectors [LEARNT, d] in place of the tokens behind the first."""
    embedded = clip.token_embedding(TOKENS).type(clip.dtype)
    middle = context.expand(len(TOKENS), -1, -1)
    return torch.cat([embedded[:, :1], middle, embedded[:, 1 + LEARNT :]], dim=1)


def test_the_parts_give_what_encode_text_gives():
    clip = model()
    assert close(text_features(clip, clip.token_embedding(TOKENS), TOKENS), clip.encode_text(TOKENS))


def test_learnt_context():
    clip, judge = model(), paper()
    context = torch.randn(LEARNT, VIT.text.width, generator=torch.Generator().manual_seed(0))
    found = text_features(clip, prompts(clip, context), TOKENS)
    expected = judge.encode_embedded(prompts(clip, context), TOKENS)
    assert close(found, expected)
    assert not close(found, clip.encode_text(TOKENS), 0.1)
    for learnt in (clip, judge):
        assert learnt is not None
    by_parts = gradient(lambda x: text_features(clip, prompts(clip, x), TOKENS), context)
    by_paper = gradient(lambda x: judge.encode_embedded(prompts(clip, x), TOKENS), context)
    assert by_parts.abs().max() > 0.1
    assert close(by_parts, by_paper, 1e-3)


def test_prompts_between_the_blocks():
    """Vectors that replace tokens in front of each block, as in MaPLe's deep prompts."""
    clip, judge = model(), paper()
    deep = torch.randn(LEARNT, 1, VIT.text.width, generator=torch.Generator().manual_seed(1))
    mask = torch.full((16, 16), -torch.inf).triu(1)

    def inserted(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:1], deep.expand(-1, x.shape[1], -1), x[1 + LEARNT :]])  # [l, n, d]

    x = y = (clip.token_embedding(TOKENS) + clip.positional_embedding).permute(1, 0, 2)
    for index, block in enumerate(clip.transformer.resblocks):
        x, y = block(inserted(x)), judge.block(f"transformer.resblocks.{index}", inserted(y), VIT.text.heads, mask)
        assert close(x, y), index


def test_prompts_beside_the_patches():
    """More tokens than positions, as in visual prompt tuning."""
    clip, judge = model(), paper()
    added = torch.randn(2, 1, VIT.image.width, generator=torch.Generator().manual_seed(2)).expand(-1, len(PIXELS), -1)
    x = torch.cat([judge.image_tokens(PIXELS), added])
    found = clip.visual.ln_post(clip.visual.transformer(x)[0]) @ clip.visual.proj
    expected = judge.transformer("visual.transformer", x, VIT.image)
    assert close(found, judge.norm("visual.ln_post", expected[0]) @ clip.visual.proj)


def test_tuning_moves_the_context_alone():
    clip = model().requires_grad_(False)
    context = nn.Parameter(torch.zeros(LEARNT, VIT.text.width))
    before = {name: parameter.clone() for name, parameter in clip.named_parameters()}
    optimizer = torch.optim.SGD([context], lr=0.1)
    losses = []
    for _ in range(5):
        image = nn.functional.normalize(clip.encode_image(PIXELS), dim=-1)
        text = nn.functional.normalize(text_features(clip, prompts(clip, context), TOKENS), dim=-1)
        loss = nn.functional.cross_entropy(10 * image @ text.T, torch.arange(len(PIXELS)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01
    assert all(torch.equal(parameter, before[name]) for name, parameter in clip.named_parameters())
