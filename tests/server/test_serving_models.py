"""What is served has the numbers of the model in every backend, whatever it was computed with."""

from __future__ import annotations

import asyncio
from functools import partial

import numpy as np

from clip import samples
from clip.api import open_model
from clip.serving.limits import Limits
from clip.serving.metrics import Metrics
from clip.serving.service import Service
from clip_core.image import open_image
from clip_core.similarity import normalize
from clip_core.tolerances import EMBEDDING

TEXTS = ["a red circle", "two small blue squares left of a green star", "a star", "three striped pink hearts"]


def test_features_do_not_depend_on_what_they_were_computed_with(backend):
    metrics = Metrics()
    load = partial(open_model, "shapes", backend=backend.name)
    service = Service("shapes", load, Limits(batch=5, queue=64), metrics, fetch=False, index=None, failed=lambda: None)
    files = [path.read_bytes() for path in samples.pictures().values()]

    async def ask() -> list:
        while not service.ready:
            await asyncio.sleep(0.01)
        texts = [service.embed_texts(TEXTS[:size]) for size in (1, 4, 2, 3)]
        pictures = [service.embed_pictures(files[:size]) for size in (1, 8, 3)]
        return await asyncio.gather(*texts, *pictures)

    service.start()
    try:
        found = asyncio.run(asyncio.wait_for(ask(), 60))
    finally:
        service.close()
    model = service.loaded.model
    for (features, _), size in zip(found[:4], (1, 4, 2, 3)):
        for feature, text in zip(features, TEXTS[:size]):
            alone = model.embed_text(model.tokenizer.tokenize(text, model.architecture.text.context_length))
            assert np.abs(normalize(feature) - normalize(alone[0])).max() < EMBEDDING
    for features, size in zip(found[4:], (1, 8, 3)):
        for feature, file in zip(features, files[:size]):
            alone = model.embed_image(service.loaded.preprocess.pixels(open_image(file))[None])
            assert np.abs(normalize(feature) - normalize(alone[0])).max() < EMBEDDING
    text = metrics.text().decode()
    assert 'clip_inputs_total{kind="text"} 10.0' in text
    assert 'clip_inputs_total{kind="picture"} 12.0' in text
    assert service.accepted == service.waiting == 0
