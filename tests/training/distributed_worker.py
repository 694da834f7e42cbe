"""One process of a distributed run: four steps with each loss on its share of seeded batches; the first process writes
what came out, into a file LOSS.npz.

The second step overflows, in the first process alone.

Usage: distributed_worker.py BACKEND FOLDER, under the launcher of the backend's framework.
"""

import sys
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np

import backends
from clip_core.architecture import Architecture
from clip_core.backend import ProcessGroup
from clip_core.initialize import initialize
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.vision_transformer import VisionTransformer
from clip_core.training.recipe import Recipe
from clip_core.training.scaling import LossScaling

ARCHITECTURE = Architecture(16, VisionTransformer(16, 8, 64, 2, 1), TextTransformer(8, 50, 64, 2, 1))
BATCH = 8
LOSSES = ("softmax", "sigmoid")


def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    """Pixels float32 [8, 3, 16, 16] and tokens int64 [8, 8] of three steps; texts are 3 to 8 tokens long."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(3):
        tokens = generator.integers(1, 48, (BATCH, 8))
        tokens[:, 0] = 48
        lengths = generator.integers(2, 8, BATCH)
        tokens[np.arange(8) > lengths[:, None]] = 0
        tokens[np.arange(BATCH), lengths] = 49
        found.append((generator.standard_normal((BATCH, 3, 16, 16)).astype(np.float32), tokens))
    return found


def four_steps(backend: str, loss: str, processes: ProcessGroup) -> dict[str, np.ndarray]:
    """``steps/NAME`` of each value of a result, the trainer's last state, and the number of processes as ``size``."""
    architecture = replace(ARCHITECTURE, logit_bias=loss == "sigmoid")
    sections: dict = {"model": {"architecture": "shapes"}, "training": {"steps": 4}}
    noise = {"image": {"dropout": 0.1, "patch_dropout": 0.3}, "text": {"drop_path": 0.2}}
    sections |= {"loss": {"kind": loss}, "optimizer": {"ema_decay": 0.5}, "regularization": noise}
    recipe = Recipe.parse(sections)
    framework = backends.get(backend)
    model = framework.CLIP(architecture, initialize(architecture, 0), device="cpu")
    trainer = framework.Trainer(model, recipe, processes)
    share = BATCH // processes.size
    own = slice(processes.rank * share, (processes.rank + 1) * share)
    results = []
    for index, (pixels, tokens) in enumerate(batches() + batches()[:1]):
        trainer.scaling = LossScaling(inf if index == 1 and processes.rank == 0 else 2.0**12)
        results.append(trainer.step(pixels[own], tokens[own], 1e-3))
    state = trainer.state()
    checksum = float(sum(np.abs(array, dtype=np.float64).sum() for array in state.values()))
    assert set(processes.gather_float(checksum)) == {checksum}, "the processes have come apart"
    steps = {f"steps/{name}": np.array([getattr(result, name) for result in results]) for name in vars(results[0])}
    return {"size": np.array(processes.size)} | steps | state


def main(backend: str, folder: str) -> None:
    framework = backends.get(backend)
    processes = framework.ProcessGroup()
    for loss in LOSSES:
        found = four_steps(backend, loss, processes)
        if processes.rank == 0:
            np.savez(Path(folder, f"{loss}.npz"), **found)
    processes.close()
    framework.exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
