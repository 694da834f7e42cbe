"""``clip classify`` with a model that judges each label by itself."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from clip.api import open_model
from clip.zero_shot import Classifier
from tests.siglip import SIGLIP, siglip_folder, transformers_model

LABELS = ["red", "of a circle"]


def test_each_label_has_a_probability_of_its_own(run, tmp_path):
    """The sigmoid of transformers' logits; and the command says so."""
    torch.manual_seed(0)
    folder = siglip_folder(tmp_path / "folder")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    picture.save(tmp_path / "picture.png")
    classifier = Classifier(open_model(folder, backend="numpy"), LABELS, "{}")
    pixels = classifier.loaded.preprocess.pixels(picture)[None]
    scores = classifier.score(pixels)
    theirs = type(transformers_model()).from_pretrained(folder)
    tokens = classifier.loaded.model.tokenize(LABELS)
    assert tokens.shape == (2, SIGLIP.text.context_length)
    with torch.no_grad():
        expected = theirs(input_ids=torch.from_numpy(tokens), pixel_values=torch.from_numpy(pixels)).logits_per_image
    np.testing.assert_allclose(scores.logits, expected.numpy(), atol=1e-4)
    np.testing.assert_allclose(scores.probabilities, torch.sigmoid(expected).numpy(), atol=1e-5)
    options = ["--labels", ",".join(LABELS), "--template", "{}", "--model", folder, "--backend", "numpy", "--json"]
    result = run("classify", tmp_path / "picture.png", *options)
    assert "judges each label by itself, so the probabilities of a picture need not add up to 1." in " ".join(
        result.err.split()
    )
    found = result.json[0]["probabilities"]
    np.testing.assert_allclose([found[label] for label in LABELS], scores.probabilities[0], rtol=1e-6)
    assert abs(sum(found.values()) - 1) > 0.01
