"""Parts of a Paddle model, as Paddle's own tools call and hook them."""

from __future__ import annotations

import numpy as np
import paddle
import pytest

from backends.paddle import CLIP
from tests.models import RESNET, VIT, sample_pixels, sample_tokens, sample_weights


@pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")  # in Paddle's count of operations
@pytest.mark.parametrize("architecture", [VIT, RESNET], ids=["vit", "resnet"])
def test_parts_and_summaries(architecture, capsys):
    model = CLIP(architecture, sample_weights(architecture), "cpu")
    pixels = sample_pixels(architecture)
    assert np.array_equal(model.visual(paddle.to_tensor(pixels)).numpy(), model.embed_image(pixels))
    shape = (1, 3, architecture.image.resolution, architecture.image.resolution)
    parameters = sum(x.size for name, x in model.export().items() if name.startswith("visual.") and x.size > 1)
    assert parameters / 2 < paddle.summary(model.visual, shape)["total_params"] <= parameters
    if np.lib.NumpyVersion(np.__version__) < "2.4.0":  # which Paddle's own count of operations does not know
        assert paddle.flops(model.visual, list(shape)) > 10**6
        assert "Total Flops" in capsys.readouterr().out


def test_hooks():
    model, seen = CLIP(VIT, sample_weights(VIT), "cpu"), {}
    for name, layer in model.named_sublayers():
        layer.register_forward_post_hook(lambda layer, inputs, output, name=name: seen.update({name: output}))
    pixels, tokens = sample_pixels(VIT), sample_tokens(VIT)[:2]
    layers = model.layers(pixels, tokens)
    for name in ("visual.transformer.resblocks.0", "transformer.resblocks.1", "visual.ln_post", "ln_final"):
        assert np.array_equal(seen[name].numpy(), layers[name])
    assert seen["visual.transformer.resblocks.1"].shape == [3, VIT.image.width]
