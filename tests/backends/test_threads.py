"""One model in several threads: each call gives what it gives alone, and changes nothing that another call sees."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier, Event

import numpy as np
import pytest

from tests import tolerances
from tests.models import RESNET, sample_pixels, sample_tokens, sample_weights

ROUNDING = 1e-5  # of features up to 4
PATIENCE = 60  # seconds until a test gives up on a thread


@pytest.mark.parametrize("mode", ["evaluation", "training"])
def test_many_threads_at_once(backend, mode):
    model = backend.CLIP(RESNET, sample_weights(RESNET), device="cpu")
    calls: list[Callable[[], np.ndarray]] = [
        *(lambda n=n: model.embed_image(sample_pixels(RESNET, n)) for n in (1, 2, 5)),
        *(lambda n=n: model.embed_text(sample_tokens(RESNET, n)) for n in (1, 3)),
        lambda: model.layers(sample_pixels(RESNET), sample_tokens(RESNET))["text_features"],
    ]
    expected = [call() for call in calls]
    if mode == "training" and model.backend != "numpy":
        model.train()
    together = Barrier(len(calls))

    def meet(call: Callable[[], np.ndarray]) -> list[np.ndarray]:
        together.wait(PATIENCE)
        return [call() for _ in range(3)]

    with ThreadPoolExecutor(len(calls)) as pool:
        for found, value in zip(pool.map(meet, calls), expected):
            assert [tolerances.difference(one, value) < ROUNDING for one in found] == [True] * 3
    assert all(np.array_equal(array, sample_weights(RESNET)[name]) for name, array in model.export().items())


@pytest.fixture
def interrupted(framework, monkeypatch) -> Callable[..., np.ndarray]:
    """Embed pixels from the beginning to the end while another call, in a thread, is at its first block."""

    def embed(model, pixels: np.ndarray, other: Callable[[], object]) -> np.ndarray:
        modules = (type(model.visual).__module__, f"backends.{model.backend}.layers")
        definition = next(sys.modules[name] for name in modules if hasattr(sys.modules[name], "run"))
        compute, begun, ended = definition.run, Event(), Event()

        def run_later(*arguments: object) -> object:
            if not begun.is_set():
                begun.set()
                # NNabla holds the second call up until the first ends.
                ended.wait(0.2 if model.backend == "nnabla" else PATIENCE)
            return compute(*arguments)

        with monkeypatch.context() as patch, ThreadPoolExecutor(1) as pool:
            patch.setattr(definition, "run", run_later)
            running = pool.submit(other)
            assert begun.wait(PATIENCE)
            features = model.embed_image(pixels)
            ended.set()
            running.result(PATIENCE)
        return features

    return embed


def test_a_call_that_ends_while_another_embeds(framework, interrupted):
    """In training, neither is left to the other's mode: each has its own answer, and no statistic moves."""
    model = framework.CLIP(RESNET, sample_weights(RESNET), device="cpu")
    pixels = sample_pixels(RESNET)
    expected = model.embed_image(pixels)
    model.train()
    found = []
    found.append(interrupted(model, pixels, lambda: found.append(model.embed_image(pixels))))
    assert [tolerances.difference(features, expected) < ROUNDING for features in found] == [True, True]
    assert all(np.array_equal(array, sample_weights(RESNET)[name]) for name, array in model.export().items())
    assert model.training
    assert model.visual.bn1.training
    if model.backend == "nnabla":
        import nnabla

        assert not nnabla.get_auto_forward()


def test_a_call_that_ends_while_another_trains(framework, interrupted):
    """What computes with the statistics of its batch, and moves the running ones, does so to its end."""
    pixels = sample_pixels(RESNET)
    alone, model = (framework.CLIP(RESNET, sample_weights(RESNET), device="cpu") for _ in range(2))
    alone.train()
    model.train()
    with computing_at_once(model):
        alone.encode_image(pixels)
        interrupted(model, sample_pixels(RESNET, seed=1), lambda: model.encode_image(pixels))
    moved = alone.export()
    assert (
        tolerances.difference(
            moved["visual.layer4.0.bn1.running_mean"], sample_weights(RESNET)["visual.layer4.0.bn1.running_mean"]
        )
        > 1e-3
    )
    for name, array in model.export().items():
        assert tolerances.difference(array, moved[name]) < ROUNDING, name


@contextmanager
def computing_at_once(model) -> Iterator[None]:
    """NNabla's switch for all threads; the others have none."""
    if model.backend != "nnabla":
        yield
        return
    import nnabla

    nnabla.set_auto_forward(True)
    yield
    nnabla.set_auto_forward(False)
