"""Hooks see what they see in OpenAI's package: all tokens as [l, n, d], each module once."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.dropin.samples import PIXELS, TOKENS, close, model, paper, resnet
from tests.models import RESNET, VIT, sample_pixels


def outputs(model: nn.Module, *inputs: torch.Tensor) -> tuple[dict[str, torch.Tensor], Counter[str]]:
    """What each module gives, and how often it is called."""
    seen, calls = {}, Counter()

    def hook(name: str):
        def see(module, arguments, output):
            seen[name] = output[0] if isinstance(output, tuple) else output
            calls[name] += 1

        return see

    handles = [part.register_forward_hook(hook(name)) for name, part in model.named_modules() if name]
    with torch.no_grad():
        model(*inputs)
    for handle in handles:
        handle.remove()
    return seen, calls


def test_every_module_gives_all_its_tokens():
    clip, judge = model(), paper()
    seen, calls = outputs(clip, PIXELS, TOKENS)
    judge(PIXELS, TOKENS)
    # PyTorch's attention takes the weights of its last layer, without calling it.
    expected = {name for name, _ in clip.named_modules() if name and not name.endswith("attn.out_proj")}
    assert set(calls.values()) == {1}
    assert set(calls) == expected
    assert set(judge.seen) == expected - {"visual.conv1"}
    assert [name for name, value in judge.seen.items() if not close(seen[name], value)] == []
    assert seen["transformer.resblocks.2"].shape == (VIT.text.context_length, len(TOKENS), VIT.text.width)


@pytest.mark.parametrize(
    "name",
    ["transformer.resblocks.1", "transformer.resblocks.2.attn", "transformer.resblocks.0.mlp.c_fc", "ln_final"],
)
def test_a_single_hook_sees_as_much(name):
    clip, judge = model(), paper()
    seen: list[torch.Tensor] = []
    clip.get_submodule(name).register_forward_hook(
        lambda module, arguments, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    features = clip.encode_text(TOKENS)
    assert close(features, judge.encode_text(TOKENS))
    assert len(seen) == 1
    assert close(seen[0], judge.seen[name])


def test_a_hook_on_one_tower_leaves_the_savings_of_the_other():
    clip = model()
    seen: list[torch.Size] = []
    clip.visual.transformer.register_forward_hook(lambda module, arguments, output: seen.append(output.shape))
    lengths: list[torch.Size] = []
    embed = clip.token_embedding.forward
    clip.encode_image(PIXELS)
    clip.token_embedding.forward = lambda text: lengths.append(text.shape) or embed(text)
    clip.encode_text(TOKENS)
    del clip.token_embedding.forward
    assert seen == [(VIT.image.grid**2 + 1, len(PIXELS), VIT.image.width)]
    assert lengths == [TOKENS.shape], "another forward looks at all of the text"


def test_what_a_hook_changes_counts():
    """Tokens that the last block gives besides the pooled one are changed, and then the pooled one."""
    clip = model()
    expected = clip.encode_image(PIXELS)

    def scale(places: slice):
        def hook(module, arguments, output):
            output = output.clone()
            output[places] *= 3  # [l, n, d]
            output[places, :, :8] = 1
            return output

        return hook

    for places, changes in ((slice(1, None), False), (slice(1), True)):
        handle = clip.visual.transformer.resblocks[-1].register_forward_hook(scale(places))
        assert close(clip.encode_image(PIXELS), expected) != changes
        handle.remove()
    assert torch.equal(clip.encode_image(PIXELS), expected)


def test_hooks_before_and_with_keywords():
    clip, judge = model(), paper()
    judge.encode_image(PIXELS)
    block = clip.visual.transformer.resblocks[1]
    seen = {}
    block.register_forward_pre_hook(lambda module, arguments: seen.update(before=arguments))
    block.attn.register_forward_pre_hook(
        lambda module, arguments, keywords: seen.update(attention=(arguments, keywords)), with_kwargs=True
    )
    clip.encode_image(PIXELS)
    (before,) = seen["before"]
    assert close(before, judge.seen["visual.transformer.resblocks.0"])
    (query, key, value), keywords = seen["attention"]
    assert query is key is value
    assert close(query, judge.seen["visual.transformer.resblocks.1.ln_1"])
    assert keywords == {"need_weights": False, "attn_mask": None}


def test_backward_hooks_see_gradients_of_all_tokens():
    clip = model()
    seen = []
    clip.visual.transformer.resblocks[0].register_full_backward_hook(
        lambda module, inputs, outputs: seen.append((inputs[0].shape, outputs[0].shape))
    )
    clip.encode_image(PIXELS.clone().requires_grad_()).sum().backward()
    shape = (VIT.image.grid**2 + 1, len(PIXELS), VIT.image.width)
    assert seen == [(shape, shape)]


def test_global_hooks():
    seen = Counter()
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, arguments, output: seen.update([type(module).__name__])
    )
    try:
        model().encode_text(TOKENS)
    finally:
        handle.remove()
    assert seen["ResidualAttentionBlock"] == seen["MultiheadAttention"] == VIT.text.layers
    assert seen["Transformer"] == 1


def test_every_module_of_a_resnet_is_called_once():
    clip, pixels = resnet(), torch.tensor(sample_pixels(RESNET))
    expected = clip.encode_image(pixels)
    seen, calls = outputs(clip.visual, pixels)
    # The pool takes the weights of its layers, without calling them, as in OpenAI's package.
    assert set(calls) == {name for name, part in clip.visual.named_modules() if name and not name.endswith("_proj")}
    assert set(calls.values()) == {1}
    blocks = seen["layer4"]
    assert blocks.shape == (len(pixels), RESNET.image.feature_width, RESNET.image.grid, RESNET.image.grid)
    assert torch.equal(seen["layer4"], seen[f"layer4.{RESNET.image.blocks[3] - 1}.relu3"])
    assert close(seen["attnpool"], expected)
    assert (seen["layer1.0.relu1"] == seen["layer1.0.bn1"].clamp(min=0)).all()


def test_hooks_that_change_sizes_decide_what_pictures_fit():
    clip, pixels = model(), torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    clip.visual.register_forward_pre_hook(lambda module, given: (F.interpolate(given[0], (64, 64)),))
    assert close(clip.encode_image(pixels), paper().encode_image(F.interpolate(pixels, (64, 64))))
    convolutional = resnet()
    side = RESNET.image.grid
    convolutional.visual.layer4.register_forward_hook(lambda module, given, x: F.adaptive_avg_pool2d(x, side))
    assert convolutional.encode_image(torch.randn(2, 3, 192, 192)).shape == (2, RESNET.embed_dim)


@pytest.mark.parametrize("name", ["multi_head_attention_forward", "scaled_dot_product_attention", "layer_norm"])
def test_replaced_functions_see_all_tokens(name, monkeypatch):
    plain, shapes = getattr(F, name), []

    def function(x, *others, **options):
        shapes.append(x.shape)
        return plain(x, *others, **options)

    clip = model()
    expected = clip.encode_image(PIXELS)
    monkeypatch.setattr(F, name, function)
    assert close(clip.encode_image(PIXELS), expected)
    length = VIT.image.grid**2 + 1
    of_blocks = [shape for shape in shapes if length in shape]
    assert len(of_blocks) == VIT.image.layers * (2 if name == "layer_norm" else 1) + (name == "layer_norm")


def test_replaced_attention_of_a_resnet(monkeypatch):
    clip, pixels = resnet(), torch.tensor(sample_pixels(RESNET))
    expected, plain = clip.encode_image(pixels), F.multi_head_attention_forward
    monkeypatch.setattr(F, "multi_head_attention_forward", lambda *x, **options: (2 * plain(*x, **options)[0], None))
    assert close(clip.encode_image(pixels), 2 * expected, 1e-3)


def test_modes_see_all_tokens():
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    shapes: list[torch.Size] = []

    class Functions(TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), options=None):
            if function is F.layer_norm:
                shapes.append(arguments[0].shape)
            return function(*arguments, **(options or {}))

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            if function is torch.ops.aten.native_layer_norm.default:
                shapes.append(arguments[0].shape)
            return function(*arguments, **(options or {}))

    clip = model()
    expected = [(VIT.text.context_length, len(TOKENS), VIT.text.width)] * 2 * VIT.text.layers
    expected.append((len(TOKENS), VIT.text.context_length, VIT.text.width))
    for mode in (Functions(), Operators()):
        with mode, torch.no_grad():
            clip.encode_text(TOKENS)
        assert shapes == expected
        shapes.clear()
    with torch.device("cpu"), torch.no_grad():
        assert not clip.transformer.is_whole(TOKENS), "a default device looks at no token"
