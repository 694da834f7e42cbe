"""The README snippet of NNabla-CLIP, with a random ViT-B/32."""

from __future__ import annotations

import nnabla as nn
import numpy as np
import pytest
from PIL import Image

from clip_core import tolerances
from clip_core.preprocess import preprocess
from clip_core.similarity import probabilities
from clip_core.text.bpe import openai
from tests.tolerances import difference

pytestmark = pytest.mark.slow


SNIPPET = """
    import nnabla as nn
    import nnabla.functions as F
    from PIL import Image

    import clip

    with nn.auto_forward():
        clip.load('data/ViT-B-32.h5')

        image = nn.Variable.from_numpy_array(clip.preprocess(Image.open("CLIP.png")))
        image = F.reshape(image, (1, image.shape[0], image.shape[1], image.shape[2]))
        text = nn.Variable.from_numpy_array(clip.tokenize(["a diagram", "a dog", "a cat"]))

        image_features = clip.encode_image(image)
        text_features = clip.encode_text(text)

        logits_per_image, logits_per_text = clip.logits(image, text)
        probs = F.softmax(logits_per_image, axis=-1)

        print("Label probs:", probs.d)
"""


def test_snippet(run_snippet, convert, judge, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    convert("ViT-B-32.h5").rename(tmp_path / "data" / "ViT-B-32.h5")
    found = run_snippet(SNIPPET)
    pixels = preprocess(Image.open("CLIP.png"), 224)[None]
    tokens = openai().tokenize(["a diagram", "a dog", "a cat"])
    expected, _ = judge(pixels, tokens)
    np.testing.assert_array_equal(found["image"].d, pixels)
    np.testing.assert_array_equal(found["text"].d, tokens)
    for name, features in (("image", judge.encode_image(pixels)), ("text", judge.encode_text(tokens))):
        values = found[f"{name}_features"].d
        assert difference(values / np.linalg.norm(values), features / np.linalg.norm(features)) <= tolerances.EMBEDDING
    assert difference(found["logits_per_image"].d, expected) <= tolerances.logit_bound(100)
    assert difference(found["logits_per_text"].d, expected.T) <= tolerances.logit_bound(100)
    assert difference(found["probs"].d, probabilities(expected)) <= tolerances.logit_bound(100)
    assert np.ptp(expected) > 10 * tolerances.logit_bound(100)  # so that the labels differ for a reason
    assert capsys.readouterr().out == f"Label probs: {found['probs'].d}\n"
    assert len(nn.get_parameters()) == 302
    nn.clear_parameters()
