"""Options that trade time for memory or the reverse change no number: recomputed blocks, compiled blocks."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import backends
from clip_core.architecture import Architecture
from clip_core.errors import ClipError
from clip_core.initialize import initialize
from clip_core.towers.modified_resnet import ModifiedResNet
from clip_core.towers.text_transformer import TextTransformer
from tests.requested import FRAMEWORKS
from tests.training.distributed_worker import ARCHITECTURE, batches
from tests.training.steps import recipe

# Two blocks in the first stage, so that one has a shortcut of its own and the other has none.
RESNET = Architecture(8, ModifiedResNet(32, 8, (2, 1, 1, 1), 2), TextTransformer(8, 50, 64, 2, 1))
BLOCKS = {"ViT": 4, "ResNet": 7}  # of both towers together
Batches = list[tuple[np.ndarray, np.ndarray]]


def batches_for(image: str) -> Batches:
    if image == "ViT":
        return batches()
    generator = np.random.default_rng(1)
    return [(generator.standard_normal((8, 3, 32, 32)).astype(np.float32), tokens) for _, tokens in batches()]


def trainer_for(framework: str, image: str, **training):
    architecture = ARCHITECTURE if image == "ViT" else RESNET
    model = backends.get(framework).CLIP(architecture, initialize(architecture, 0), device="cpu")
    return backends.get(framework).Trainer(model, recipe({"training": training}))


@pytest.fixture
def calls(monkeypatch):
    """A function that gives a list, to which the blocks of a framework add their kind whenever they are computed."""

    def watch(framework: str) -> list[str]:
        seen: list[str] = []
        method = "__call__" if framework == "nnabla" else "forward"
        for file, name in (("layers", "ResidualAttentionBlock"), ("towers.modified_resnet", "Bottleneck")):

            def watched(compute, name=name):
                def counted(self, *inputs):
                    seen.append(name)
                    return compute(self, *inputs)

                return counted

            block = getattr(importlib.import_module(f"backends.{framework}.{file}"), name)
            monkeypatch.setattr(block, method, watched(getattr(block, method)))
        return seen

    return watch


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    ("image", "training"),
    [("ViT", {}), ("ViT", {"micro_batch_size": 3}), ("ResNet", {})],
    ids=["ViT", "chunks", "ResNet"],
)
def test_recomputed_blocks_give_the_same_numbers_to_the_bit(framework, image, training, calls):
    kept = trainer_for(framework, image, **training)
    recomputed = trainer_for(framework, image, gradient_checkpointing=True, **training)
    seen = calls(framework)
    # In chunks the features are computed first, without a gradient.
    passes = 2 * len(range(0, 8, 3)) if training else 1
    for pixels, tokens in batches_for(image):
        seen.clear()
        expected = kept.step(pixels, tokens, 1e-3)
        assert len(seen) == passes * BLOCKS[image]
        assert ("Bottleneck" in seen) == (image == "ResNet")
        seen.clear()
        assert recomputed.step(pixels, tokens, 1e-3) == expected
        assert len(seen) == (passes + (3 if training else 1)) * BLOCKS[image]
    state = recomputed.state()
    for name, array in kept.state().items():  # running statistics among them
        assert np.array_equal(state[name], array), name
    pixels, tokens = batches_for(image)[0]
    assert np.array_equal(recomputed.model.embed_image(pixels), kept.model.embed_image(pixels))
    assert np.array_equal(recomputed.model.embed_text(tokens), kept.model.embed_text(tokens))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_frozen_tower_is_not_computed_twice(framework, calls):
    architecture = ARCHITECTURE
    what = recipe({"training": {"gradient_checkpointing": True}, "optimizer": {"frozen": ["image"]}})
    model = backends.get(framework).CLIP(architecture, initialize(architecture, 0), device="cpu")
    trainer = backends.get(framework).Trainer(model, what)
    seen = calls(framework)
    trainer.step(*batches()[0], 1e-3)
    assert len(seen) == 2 + 2 * 2


@pytest.mark.parametrize("framework", [name for name in FRAMEWORKS if name != "torch"])
@pytest.mark.parametrize("key", ["compile", "fully_sharded"])
def test_what_only_pytorch_has_is_refused(framework, key):
    with pytest.raises(ClipError, match=rf"training\.{key} works in PyTorch alone; leave it out"):
        trainer_for(framework, "ViT", **{key: True})


def test_without_a_compiler_one_sentence_says_so(tmp_path):
    code = (
        "from tests.training.steps import recipe, trainer_for; from clip_core.errors import ClipError\n"
        "try: trainer_for('torch', recipe({'training': {'compile': True}}))\n"
        "except ClipError as error: print(error)"
    )
    changed = {"PATH": "", "CXX": str(tmp_path / "g++"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    environment = os.environ | changed | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("training.compile needs torch.compile, which does not work here: ")
    assert "Install a C++ compiler" in done.stdout
    assert done.stdout.count("\n") == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # of the compiler's own code
@pytest.mark.parametrize("training", [{}, {"gradient_checkpointing": True}], ids=["kept", "recomputed"])
@pytest.mark.parametrize("image", ["ViT", "ResNet"])
def test_compiled_blocks_give_the_same_numbers_at_every_text_length(image, training):
    import torch._dynamo.utils

    compiled, eager = (trainer_for("torch", image, compile=wanted, **training) for wanted in (True, False))
    assert compiled.state().keys() == eager.state().keys()
    graphs = []
    for length in (8, 5, 7, 6, 4):
        pixels, tokens = batches_for(image)[0]
        tokens = np.where(tokens == 49, 40, tokens)
        tokens[:, length - 1], tokens[:, length:] = 49, 0
        expected, found = (trainer.step(pixels[:6], tokens[:6], 1e-4) for trainer in (eager, compiled))
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)
        assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-4)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs[1:] == graphs[:1] * 4, "a text of another length was compiled anew"
    for pixels, tokens in batches_for(image):
        np.testing.assert_allclose(
            compiled.model.embed_image(pixels), eager.model.embed_image(pixels), rtol=0, atol=1e-5
        )
        np.testing.assert_allclose(compiled.model.embed_text(tokens), eager.model.embed_text(tokens), rtol=0, atol=1e-5)
