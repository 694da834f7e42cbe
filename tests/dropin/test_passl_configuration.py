"""PASSL's configuration files are recognised."""

from __future__ import annotations

import pytest

from clip_core.errors import ClipError
from clip_core.training.recipe import Recipe, installed_recipes

CONFIGURATION = """
epochs: 10
output_dir: output_dir
model:
  name: CLIPWrapper
  architecture: {name: CLIP, embed_dim: 512, image_resolution: 224, vision_layers: 12}
  head: {name: CLIPHead}
optimizer: {name: AdamW, beta1: 0.9, beta2: 0.98, epsilon: 1.0e-8, weight_decay: 0.0005}
"""


def test_a_configuration_of_passl(tmp_path):
    path = tmp_path / "vit-b-32.yaml"
    path.write_text(CONFIGURATION)
    with pytest.raises(ClipError) as caught:
        Recipe.read(path)
    assert str(caught.value) == (
        f"{path} is a configuration of PASSL, expected a recipe; clip/vit-b-32 is that of its CLIP here, and "
        "docs/migrating.md says what each of its keys becomes."
    )
    assert "clip/vit-b-32" in installed_recipes()
