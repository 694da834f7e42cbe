"""The README snippet of OpenAI's package and of the CLIPs that follow it, with a random ViT-B/32."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from clip_core import tolerances
from clip_core.models import MODELS
from clip_core.preprocess import preprocess
from clip_core.similarity import probabilities
from clip_core.text.bpe import openai
from tests.serving import serving
from tests.tolerances import difference

pytestmark = pytest.mark.slow


SNIPPET = """
    import torch
    import clip
    from PIL import Image

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, preprocess = clip.load("ViT-B/32", device=device)

    image = preprocess(Image.open("CLIP.png")).unsqueeze(0).to(device)
    text = clip.tokenize(["a diagram", "a dog", "a cat"]).to(device)

    with torch.no_grad():
        image_features = model.encode_image(image)
        text_features = model.encode_text(text)

        logits_per_image, logits_per_text = model(image, text)
        probs = logits_per_image.softmax(dim=-1).cpu().numpy()

    print("Label probs:", probs)
"""


def test_snippet(run_snippet, convert, judge, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CLIP_CACHE", str(tmp_path / "cache"))
    with serving(monkeypatch) as serve:
        asked = serve("ViT-B/32", convert("ViT-B-32.pt", dtype="float16"), MODELS["ViT-B/32"].architecture)
        found = run_snippet(SNIPPET)
    assert asked == ["/ViT-B-32.pt"]
    pixels = preprocess(Image.open("CLIP.png"), 224)[None]
    tokens = openai().tokenize(["a diagram", "a dog", "a cat"])
    expected, _ = judge(pixels, tokens)
    np.testing.assert_array_equal(found["image"].cpu(), pixels)
    np.testing.assert_array_equal(found["text"].cpu(), tokens)
    for name, features in (("image", judge.encode_image(pixels)), ("text", judge.encode_text(tokens))):
        values = found[f"{name}_features"].cpu().numpy()
        assert difference(values / np.linalg.norm(values), features / np.linalg.norm(features)) <= tolerances.EMBEDDING
    assert difference(found["logits_per_image"].cpu().numpy(), expected) <= tolerances.logit_bound(100)
    assert difference(found["logits_per_text"].cpu().numpy(), expected.T) <= tolerances.logit_bound(100)
    assert difference(found["probs"], probabilities(expected)) <= tolerances.logit_bound(100)
    assert np.ptp(expected) > 10 * tolerances.logit_bound(100)  # so that the labels differ for a reason
    assert capsys.readouterr().out == f"Label probs: {found['probs']}\n"
