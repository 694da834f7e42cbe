"""Parts of a Paddle model, as Paddle's own tools and other code call, hook, replace and record them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.static import InputSpec

from backends.paddle import CLIP
from clip_core.architecture import Architecture
from tests.models import RESNET, VIT, sample_pixels, sample_tokens, sample_weights
from tests.towers import EXAMPLES

ROUNDING = 1e-4  # of float32 numbers up to 10
PIXELS, TOKENS = sample_pixels(VIT), sample_tokens(VIT)[:3]  # the longest is shorter than the context


def clip(architecture: Architecture = VIT) -> CLIP:
    return CLIP(architecture, sample_weights(architecture), "cpu")


def close(found: paddle.Tensor | np.ndarray, expected: np.ndarray) -> bool:
    found = np.asarray(found)
    return found.shape == expected.shape and bool(np.abs(found - expected).max() < ROUNDING)


def outputs(model: CLIP, pixels: np.ndarray, tokens: np.ndarray) -> tuple[dict[str, np.ndarray], Counter[str]]:
    """What each layer gives, and how often it is called."""
    seen, calls = {}, Counter()

    def hook(name: str):
        def see(layer, inputs, output):
            seen[name] = output.numpy()
            calls[name] += 1

        return see

    handles = [layer.register_forward_post_hook(hook(name)) for name, layer in model.named_sublayers()]
    with paddle.no_grad():
        model(paddle.to_tensor(pixels), paddle.to_tensor(tokens))
    for handle in handles:
        handle.remove()
    return seen, calls


@pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")  # in Paddle's count of operations
@pytest.mark.parametrize("architecture", [VIT, RESNET], ids=["vit", "resnet"])
def test_parts_and_summaries(architecture, capsys):
    model, pixels, tokens = clip(architecture), sample_pixels(architecture), sample_tokens(architecture)
    assert np.array_equal(model.visual(paddle.to_tensor(pixels)).numpy(), model.embed_image(pixels))
    expected = model.layers(pixels, tokens)
    shape, text_shape = (1, 3, *2 * [architecture.image.resolution]), (1, architecture.text.context_length)
    parameters = {name: array.size for name, array in model.export().items() if array.size > 1}
    for part, prefix, shapes, dtypes in (
        (model.visual, "visual.", shape, "float32"),
        (model, "", [shape, text_shape], ["float32", "int64"]),
    ):
        count = sum(size for name, size in parameters.items() if name.startswith(prefix))
        assert count / 2 < paddle.summary(part, shapes, dtypes)["total_params"] <= count + 1
    if np.lib.NumpyVersion(np.__version__) < "2.4.0":  # which Paddle's own count of operations does not know
        assert paddle.flops(model.visual, list(shape)) > 10**6
        assert "Total Flops" in capsys.readouterr().out
    found = model.layers(pixels, tokens)
    assert list(found) == list(expected)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.needs("torch")
def test_every_layer_gives_all_its_tokens():
    import torch

    from tests.dropin.samples import paper

    model, judge = clip(), paper()
    seen, calls = outputs(model, PIXELS, TOKENS)
    judge(torch.tensor(PIXELS), torch.tensor(TOKENS))
    containers = {name for name, layer in model.named_sublayers() if isinstance(layer, nn.LayerList)}
    assert set(calls) == {name for name, _ in model.named_sublayers()} - containers
    assert set(calls.values()) == {1}
    # Paddle's layers take the batch first, the paper's blocks the tokens, and the exact activation is no layer here.
    expected = {
        name: value.numpy().swapaxes(0, 1) if "transformer" in name else value.numpy()
        for name, value in judge.seen.items()
        if not name.endswith(("gelu", "resblocks"))
    }
    of_attention = {name for name in calls if name.endswith("attn.out_proj")}
    assert set(expected) == set(calls) - of_attention - {"visual.conv1", "visual.patch_dropout"}
    assert [name for name, value in expected.items() if not close(seen[name], value)] == []
    assert seen["transformer.resblocks.2"].shape == (len(TOKENS), VIT.text.context_length, VIT.text.width)


@pytest.mark.parametrize("name", ["mixer and distilbert", "resnet and mixer", "siglip and siglip"])
def test_every_block_of_other_towers_gives_all_its_tokens(name):
    architecture = EXAMPLES[name]
    model, pixels, tokens = clip(architecture), sample_pixels(architecture), sample_tokens(architecture)
    expected = model.layers(pixels, tokens)
    seen, calls = outputs(model, pixels, tokens)
    assert set(calls.values()) == {1}
    blocks = [name for name in seen if name.split(".")[-2:-1] == ["resblocks"]]
    assert blocks
    for block in blocks:
        tower = architecture.text if block.startswith("text.") else architecture.image
        length = getattr(tower, "context_length", expected[block.rpartition(".")[0] + ".0"].shape[1])
        assert seen[block].shape == (len(tokens if tower is architecture.text else pixels), length, tower.width)
    assert close(seen["visual"], expected["image_features"])
    assert close(seen["text"], expected["text_features"])


def test_a_hook_on_one_tower_leaves_the_savings_of_the_other():
    model, shapes = clip(), []
    model.visual.transformer.register_forward_post_hook(lambda layer, inputs, output: shapes.append(output.shape))
    found = model.layers(PIXELS, TOKENS)
    assert shapes == [[len(PIXELS), VIT.image.grid**2 + 1, VIT.image.width]]
    assert found["visual.transformer.resblocks.1"].shape == tuple(shapes[0])
    assert found["transformer.resblocks.2"].shape == (len(TOKENS), VIT.text.width)
    assert found["token_embedding"].shape[1] < VIT.text.context_length


def test_what_a_hook_changes_counts():
    """Tokens that the last block gives besides the pooled one are changed, and then the pooled one."""
    model = clip()
    expected = model.embed_image(PIXELS)

    def scale(places: slice):
        def hook(layer, inputs, output):
            output = output.clone()
            output[:, places] *= 3
            output[:, places, :8] = 1
            return output

        return hook

    for places, changes in ((slice(1, None), False), (slice(1), True)):
        handle = model.visual.transformer.resblocks[-1].register_forward_post_hook(scale(places))
        assert close(model.embed_image(PIXELS), expected) != changes
        handle.remove()
    assert np.array_equal(model.embed_image(PIXELS), expected)


def test_replaced_parts():
    """An image tower of another shape, a block with an adapter behind it, and a norm that does nothing."""
    model = clip()
    expected, features = model.embed_text(TOKENS), model.embed_image(PIXELS)

    class Double(nn.Layer):
        def forward(self, x: paddle.Tensor) -> paddle.Tensor:
            return 2 * x

    last = VIT.text.layers - 1
    model.transformer.resblocks[last] = nn.Sequential(model.transformer.resblocks[last], Double())
    changed = model.embed_text(TOKENS)
    # Doubled states are the same behind a normalisation, but for its epsilon.
    assert 0 < np.abs(changed - expected).max() < ROUNDING
    model.transformer.resblocks[0] = nn.Sequential(model.transformer.resblocks[0], Double())
    assert not close(model.embed_text(TOKENS), expected)

    model.visual.ln_post = Double()
    assert not close(model.embed_image(PIXELS), features)
    model.visual = nn.Sequential(nn.AdaptiveAvgPool2D(4), nn.Flatten(), nn.Linear(48, VIT.embed_dim))
    pixels = paddle.to_tensor(PIXELS)
    assert paddle.equal_all(model.encode_image(pixels), model.visual(pixels))
    assert model.encode_image(paddle.rand([2, 3, 50, 70])).shape == [2, VIT.embed_dim]
    assert model(pixels, paddle.to_tensor(TOKENS))[0].shape == [len(PIXELS), len(TOKENS)]


def test_a_block_alone_and_a_forward_pass_from_elsewhere():
    model = clip()
    tokens = paddle.rand([2, 5, VIT.text.width])
    expected = model.transformer(tokens)
    x = tokens
    for block in model.transformer.resblocks:
        x = block(x)
    assert paddle.equal_all(x, expected)
    before, lengths = model.embed_text(TOKENS), []
    embed = model.token_embedding.forward
    model.token_embedding.forward = lambda text: lengths.append(text.shape) or embed(text)
    assert close(model.embed_text(TOKENS), before)
    assert lengths == [list(TOKENS.shape)], "another forward looks at all of the text"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in Paddle's reading of source code
@pytest.mark.filterwarnings("ignore:Tensor do not have 'place' interface")
def test_recorded_by_others(tmp_path):
    model = clip()
    side = VIT.image.resolution
    paddle.jit.save(model.visual, str(tmp_path / "visual"), [InputSpec([None, 3, side, side], "float32", "image")])
    loaded = paddle.jit.load(str(tmp_path / "visual"))
    for pixels in (PIXELS, PIXELS[:1]):
        assert close(loaded(paddle.to_tensor(pixels)), model.embed_image(pixels))
    recorded = paddle.jit.to_static(clip(), full_graph=True)
    expected = model(paddle.to_tensor(PIXELS), paddle.to_tensor(TOKENS))[0].numpy()
    assert close(recorded(paddle.to_tensor(PIXELS), paddle.to_tensor(TOKENS))[0], expected)
