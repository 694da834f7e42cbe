"""One process of a run whose weights are spread over all: each writes what it took, held and gave.

Usage: sharding_worker.py FOLDER, under torchrun. FOLDER holds recipes.json, name -> sections of a recipe, and
start.npz, the state of a trainer after its first step by the recipe "plain".
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from backends.torch.model import CLIP
from backends.torch.process_group import ProcessGroup
from backends.torch.training import Trainer
from clip_core.architecture import Architecture
from clip_core.initialize import initialize
from clip_core.towers.modified_resnet import ModifiedResNet
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.vision_transformer import VisionTransformer
from clip_core.training.recipe import Recipe
from clip_core.training.trainable import with_initial_scale
from tests.training.distributed_worker import BATCH, batches

# An odd number of image tokens, so that the processes have different shares of their positional embedding.
ARCHITECTURE = Architecture(16, VisionTransformer(16, 8, 64, 2, 1), TextTransformer(8, 50, 64, 2, 1))
RESNET = Architecture(16, ModifiedResNet(32, 8, (1, 1, 1, 1), 2), TextTransformer(8, 50, 64, 1, 1))
RATE = 1e-3


def trainer_for(
    sections: dict, processes: ProcessGroup | None = None, architecture: Architecture = ARCHITECTURE
) -> Trainer:
    """A trainer from seeded weights."""
    recipe = Recipe.parse({"model": {"architecture": "shapes"}} | sections)
    architecture = replace(architecture, logit_bias=recipe.loss.kind == "sigmoid")
    weights = with_initial_scale(initialize(architecture, 0), recipe.loss)
    return Trainer(CLIP(architecture, weights, device="cpu"), recipe, processes)


def batches_for(trainer: Trainer) -> list[tuple[np.ndarray, np.ndarray]]:
    """The seeded batches, their pictures as large as the trainer's model wants them."""
    times = trainer.model.architecture.image.resolution // 16
    return [(pixels.repeat(times, axis=2).repeat(times, axis=3), tokens) for pixels, tokens in batches()]


def steps(trainer: Trainer, first: int = 0) -> np.ndarray:
    """Loss and gradient norm [n, 2] of the steps of three from ``first`` on, each process with its share."""
    share = BATCH // trainer.processes.size
    own = slice(trainer.processes.rank * share, (trainer.processes.rank + 1) * share)
    results = [trainer.step(*(side[own] for side in batch), RATE) for batch in batches_for(trainer)[first:]]
    return np.array([(result.loss, result.gradient_norm) for result in results])


def held(trainer: Trainer) -> int:
    """How many numbers this process holds: trained weights, their moments and averages."""
    moments = [
        trainer.adam.state[tensor][key] for tensor in trainer.trained.values() for key in ("exp_avg", "exp_avg_sq")
    ]
    tensors = [*trainer.trained.values(), *moments, *trainer.averages.values()]
    return sum(tensor.untyped_storage().nbytes() // tensor.itemsize for tensor in tensors)


def main(folder: Path) -> None:
    processes = ProcessGroup()
    found: dict[str, np.ndarray] = {}
    for name, sections in json.loads((folder / "recipes.json").read_text()).items():
        trainer = trainer_for(sections, processes, RESNET if name.endswith("ResNet") else ARCHITECTURE)
        if name.startswith("resumed"):
            trainer.restore(dict(np.load(folder / "start.npz")))
            found[f"{name}: steps"] = steps(trainer, first=1)
        else:
            found[f"{name}: steps"] = steps(trainer)
        found[f"{name}: held"] = np.array(held(trainer))
        found |= {f"{name}: {key}": array for key, array in trainer.state().items()}
        found |= {f"{name}: exported/{key}": array for key, array in trainer.model.export().items()}
        found |= {f"{name}: averaged/{key}": array for key, array in (trainer.average() or {}).items()}
        pixels, tokens = batches_for(trainer)[0]
        found[f"{name}: image"] = trainer.model.embed_image(pixels)
        found[f"{name}: text"] = trainer.model.embed_text(tokens)
    np.savez(folder / f"rank-{processes.rank}.npz", **found)
    processes.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # threads of gloo may abort a process while its interpreter ends
