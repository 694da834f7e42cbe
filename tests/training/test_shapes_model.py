"""The packaged model keeps what is claimed of it."""

from __future__ import annotations

from pathlib import Path

import clip_core
import converters
from backends.torch.model import CLIP
from clip_core.models import SHAPES
from clip_core.text.bpe import BytePairTokenizer
from tests.world import known

PACKAGED = Path(clip_core.__file__).parent / "resources" / "shapes.safetensors"


def test_the_packaged_model_names_what_it_never_saw():
    checkpoint = converters.read(PACKAGED)
    assert checkpoint.architecture == SHAPES
    assert checkpoint.size < 5_000_000
    assert checkpoint.vocabulary is not None
    model = CLIP(checkpoint.architecture, checkpoint.weights, device="cpu")
    scores = known(model, BytePairTokenizer(checkpoint.vocabulary), pictures_per_class=20, scenes=500, seed=7)
    assert scores["held_out_top1"] > 0.96
    assert scores["trained_top1"] > 0.98
    assert scores["image_to_text_recall_at_1"] > 0.94
