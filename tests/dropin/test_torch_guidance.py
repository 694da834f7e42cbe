"""Generation guided by a model: gradients flow through encode_image and encode_text to what is generated."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import clip
from tests.dropin.paper import gradient
from tests.dropin.samples import PIXELS, TOKENS, close, model, paper
from tests.models import VIT


def spherical_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
    return (x - y).norm(dim=-1).div(2).arcsin().pow(2).mul(2)


def test_gradients_of_generated_pixels():
    clip_model, judge = model().requires_grad_(False), paper()
    target = judge.encode_text(TOKENS)
    generated = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    normalize = clip.clip._transform(64).transforms[-1]
    found = gradient(lambda x: spherical_distance(clip_model.encode_image(normalize(x)), target), generated)
    expected = gradient(lambda x: spherical_distance(judge.encode_image(normalize(x)), target), generated)
    assert found.abs().max() > 1e-4
    assert close(found, expected, 1e-4)


def test_ascent_raises_the_similarity():
    clip_model = model().requires_grad_(False)
    target = F.normalize(clip_model.encode_text(TOKENS[:1]), dim=-1)
    image = torch.nn.Parameter(PIXELS[:1].clone())
    optimizer = torch.optim.Adam([image], lr=0.05)
    similarities = []
    for _ in range(8):
        similarity = (F.normalize(clip_model.encode_image(image), dim=-1) @ target.T).mean()
        optimizer.zero_grad()
        (-similarity).backward()
        optimizer.step()
        similarities.append(similarity.item())
    assert similarities[-1] > similarities[0] + 0.1


def test_a_model_in_half_precision_guides_too():
    clip_model = model(precision="fp16").requires_grad_(False)
    exact = gradient(lambda x: paper().encode_image(x), PIXELS)
    found = gradient(lambda x: clip_model.encode_image(x).float(), PIXELS)
    assert found.dtype == torch.float32
    assert F.cosine_similarity(found.flatten(), exact.flatten(), dim=0) > 0.99


def test_gradients_of_embedded_tokens():
    """Optimising a soft token, as textual inversion and adversarial suffixes do."""
    clip_model, judge = model().requires_grad_(False), paper()

    class Soft(torch.nn.Module):
        def __init__(self, table: torch.Tensor) -> None:
            super().__init__()
            self.table, self.soft = table, torch.nn.Parameter(table[7].clone())

        def forward(self, text: torch.Tensor) -> torch.Tensor:
            return torch.where((text == 298)[..., None], self.soft, self.table[text])

    tokens = TOKENS.clone()
    tokens[:, 1] = 298
    clip_model.token_embedding = soft = Soft(clip_model.token_embedding.weight)
    clip_model.encode_text(tokens).sum().backward()
    expected = gradient(
        lambda x: judge.encode_embedded(torch.where((tokens == 298)[..., None], x, soft.table[tokens]), tokens),
        soft.soft.detach(),
    )
    assert soft.soft.grad.shape == (VIT.text.width,)
    assert close(soft.soft.grad, expected, 1e-3)


def test_directions_between_texts():
    """StyleGAN-NADA's loss: the direction between two pictures follows that between two texts."""
    clip_model, judge = model(), paper()

    def loss(m, pixels: torch.Tensor) -> torch.Tensor:
        text = F.normalize(m.encode_text(TOKENS[:1]), dim=-1) - F.normalize(m.encode_text(TOKENS[1:2]), dim=-1)
        image = F.normalize(m.encode_image(pixels), dim=-1) - F.normalize(m.encode_image(PIXELS[:1]), dim=-1)
        return 1 - F.cosine_similarity(image, text)

    assert close(loss(clip_model, PIXELS[1:]), loss(judge, PIXELS[1:]))
    ours, theirs = (gradient(lambda x, m=m: loss(m, x), PIXELS[1:]) for m in (clip_model, judge))
    assert close(ours, theirs, 1e-3)
