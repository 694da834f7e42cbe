"""Where a model looks: Grad-CAM, attention rollout with gradients, and gradients of the pixels."""

from __future__ import annotations

import torch

from tests.dropin.paper import gradient
from tests.dropin.samples import PIXELS, TOKENS, close, model, paper, resnet
from tests.models import RESNET, VIT, sample_pixels


def test_grad_cam_of_a_resnet():
    """Activations and gradients of ``layer4``, as most packages collect them; the map is that of the tail alone."""
    clip, pixels = resnet(), torch.tensor(sample_pixels(RESNET))
    target = torch.randn(RESNET.embed_dim, generator=torch.Generator().manual_seed(0))
    seen = {}
    layer = clip.visual.layer4
    layer.register_forward_hook(lambda module, arguments, output: seen.update(activation=output.detach()))
    layer.register_full_backward_hook(lambda module, inputs, outputs: seen.update(gradient=outputs[0]))
    (clip.encode_image(pixels) @ target).sum().backward()
    expected = gradient(lambda x: clip.visual.attnpool(x) @ target, seen["activation"])
    assert close(seen["gradient"], expected)
    weights = seen["gradient"].mean(dim=(2, 3), keepdim=True)
    cam = (weights * seen["activation"]).sum(dim=1).clamp(min=0)
    assert cam.shape == (len(pixels), RESNET.image.grid, RESNET.image.grid)
    assert cam.max() > 0


def test_grad_cam_of_a_vision_transformer():
    """At the last block's first normalisation, where packages for transformers look: gradients of every token."""
    clip, judge = model(), paper()
    seen = {}
    layer = clip.visual.transformer.resblocks[-1].ln_1
    layer.register_forward_hook(lambda module, arguments, output: seen.update(activation=output))
    layer.register_full_backward_hook(lambda module, inputs, outputs: seen.update(gradient=outputs[0]))
    clip.encode_image(PIXELS).sum().backward()
    grabbed = judge.norm

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        result = grabbed(name, x)
        if name == "visual.transformer.resblocks.1.ln_1":
            result = result.detach().requires_grad_()
            seen["expected"] = result
        return result

    judge.norm = norm
    judge.encode_image(PIXELS).sum().backward()
    assert close(seen["activation"], seen["expected"].detach())
    assert close(seen["gradient"], seen["expected"].grad)
    assert seen["gradient"][1:].abs().max() > 1e-3, "all tokens get some"


def test_attention_rollout():
    """The maps of every block of both towers, from blocks whose attention tells its weights."""
    clip, judge = model(), paper()
    maps: list[torch.Tensor] = []

    def telling(block):
        def attention(x: torch.Tensor) -> torch.Tensor:
            mask = None if block.attn_mask is None else block.attn_mask.to(x)
            output, weights = block.attn(x, x, x, need_weights=True, attn_mask=mask, average_attn_weights=False)
            maps.append(weights)
            return output

        return attention

    for block in (*clip.visual.transformer.resblocks, *clip.transformer.resblocks):
        block.attention = telling(block)
    logits, _ = clip(PIXELS, TOKENS)
    assert close(logits, judge(PIXELS, TOKENS), 1e-2)
    length = VIT.image.grid**2 + 1
    assert [weights.shape[1:] for weights in maps] == [
        *[(VIT.image.heads, length, length)] * VIT.image.layers,
        *[(VIT.text.heads, 16, 16)] * VIT.text.layers,
    ]
    rollout = torch.eye(length)
    for weights in maps[: VIT.image.layers]:
        rollout = (weights.mean(dim=1) + torch.eye(length)) / 2 @ rollout
    assert close(rollout.sum(dim=-1), torch.ones(len(PIXELS), length), 1e-5)
    assert (maps[-1].triu(1) == 0).all(), "later tokens are not seen"


def test_gradients_of_pixels_and_integrated_gradients():
    clip, judge = model(), paper()
    text = clip.encode_text(TOKENS[:1]).detach()
    found = gradient(lambda x: clip.encode_image(x) @ text.T, PIXELS)
    assert close(found, gradient(lambda x: judge.encode_image(x) @ text.T, PIXELS), 1e-3)
    steps = torch.linspace(0, 1, 65)[1:] - 1 / 128
    with torch.no_grad():
        change = (clip.encode_image(PIXELS[:1]) - clip.encode_image(0 * PIXELS[:1])) @ text.T
    path = gradient(lambda x: clip.encode_image(x) @ text.T, steps[:, None, None, None] * PIXELS[:1])
    assert abs((path.mean(dim=0) * PIXELS[0]).sum() - change) < 0.02 * abs(change) + 0.05
