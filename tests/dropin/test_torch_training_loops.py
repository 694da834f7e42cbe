"""Training loops that are written for OpenAI's package."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import clip
from tests.dropin.samples import PIXELS, TOKENS, close, model, paper
from tests.models import VIT


def contrastive(per_image: torch.Tensor, per_text: torch.Tensor) -> torch.Tensor:
    truth = torch.arange(len(per_image))
    return (F.cross_entropy(per_image, truth) + F.cross_entropy(per_text, truth)) / 2


def test_one_step_of_adam_is_that_of_the_paper():
    clip_model, judge = model(), paper()
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in judge.weights.items()}
    judge.weights = leaves
    for parameters, per_image in (
        (clip_model.parameters(), clip_model(PIXELS, TOKENS)[0]),
        (leaves.values(), judge(PIXELS, TOKENS)),
    ):
        optimizer = torch.optim.SGD(parameters, lr=0.01)
        contrastive(per_image, per_image.T).backward()
        optimizer.step()
    for name, found in clip_model.named_parameters():
        assert close(found, leaves[name], 1e-4), name
        assert found.grad.abs().max() > 0, name


def test_half_weights_that_are_updated_in_float32():
    """Convert to float32 for the update and back for the forward pass, as most fine-tuning scripts do."""
    clip_model = model()
    clip.model.convert_weights(clip_model)
    optimizer = torch.optim.Adam(clip_model.parameters(), lr=1e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = contrastive(*clip_model(PIXELS, TOKENS))
        loss.backward()
        for parameter in clip_model.parameters():
            parameter.data = parameter.data.float()
            parameter.grad.data = parameter.grad.data.float()
        optimizer.step()
        clip.model.convert_weights(clip_model)
        losses.append(loss.item())
    assert clip_model.dtype == torch.float16
    assert losses[-1] < 0.7 * losses[0]


def test_from_scratch():
    torch.manual_seed(0)
    clip_model = clip.model.CLIP(16, 64, 1, 64, 32, 16, 300, 64, 1, 1)
    optimizer = torch.optim.AdamW(clip_model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = contrastive(*clip_model(PIXELS, TOKENS))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_autocast_with_a_scaler():
    clip_model = model()
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    optimizer = torch.optim.SGD(clip_model.parameters(), lr=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive(*clip_model(PIXELS, TOKENS))
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(parameter.grad.isfinite().all() for parameter in clip_model.parameters())


def test_a_linear_probe_and_a_frozen_tower():
    clip_model = model()
    for parameter in clip_model.visual.parameters():
        parameter.requires_grad_(False)
    probe = nn.Linear(VIT.embed_dim, 3)
    F.cross_entropy(probe(clip_model.encode_image(PIXELS)), torch.arange(3)).backward()
    assert probe.weight.grad.abs().max() > 0
    contrastive(*clip_model(PIXELS, TOKENS)).backward()
    trained = {name.split(".")[0] for name, parameter in clip_model.named_parameters() if parameter.grad is not None}
    assert trained == {
        "positional_embedding",
        "text_projection",
        "logit_scale",
        "transformer",
        "token_embedding",
        "ln_final",
    }


def test_states_are_saved_and_loaded(tmp_path):
    clip_model = model()
    with torch.no_grad():
        clip_model.text_projection.mul_(0.5)
    torch.save({"epoch": 1, "model_state_dict": clip_model.state_dict()}, tmp_path / "tuned.pt")
    other = model()
    other.load_state_dict(torch.load(tmp_path / "tuned.pt", weights_only=True)["model_state_dict"])
    assert torch.equal(other.encode_text(TOKENS), clip_model.encode_text(TOKENS))
    assert close(2 * other.encode_text(TOKENS), paper().encode_text(TOKENS))


def test_recomputed_by_the_users_own_checkpointing():
    from torch.utils.checkpoint import checkpoint

    clip_model, plain = model(), model()
    for block in clip_model.visual.transformer.resblocks:
        forward = block.forward
        block.forward = lambda x, forward=forward: checkpoint(forward, x, use_reentrant=False)
    for m in (clip_model, plain):
        m.encode_image(PIXELS).sum().backward()
    found, expected = (m.visual.transformer.resblocks[0].attn.in_proj_weight.grad for m in (clip_model, plain))
    assert close(found, expected, 1e-2)
    assert expected.abs().max() > 0.1
