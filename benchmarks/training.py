"""Training speed and memory of each framework, side by side with open_clip's training step on PyTorch, in one run.

    python benchmarks/training.py --model ViT-B/32 --batch 32 --precision fp32 --calls 5

Every contender runs in a process of its own with the same batches, the same AdamW and the same threads, alternating in
rounds so that a busy machine is unfair to none. Reported are samples per second of the steps after a warm-up, the
ratio to open_clip, how far the first loss is from open_clip's, peak resident memory, and on a GPU the share of its peak
arithmetic that the model uses.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from typing import Any

import harness
import numpy as np

from clip_core.models import MODELS
from clip_core.towers.vision_transformer import VisionTransformer

CONTENDERS = ("open_clip", "torch", "paddle", "nnabla", "nnabla native")
PACKAGES = {"nnabla": "nnabla", "nnabla native": "nnabla"}
IN_BF16 = ("open_clip", "torch")
LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY = 1e-4, (0.9, 0.98), 1e-6, 0.2
KIND = "training step"


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--model", default="ViT-B/32", choices=list(MODELS))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--peak-tflops", type=float, help="of the GPU in this precision, for the share of it")
    parser.set_defaults(rounds=2, calls=5, threads=harness.CORES)
    arguments = parser.parse_args()
    if arguments.contender:
        return print(json.dumps({KIND: measure(arguments)}))
    names = CONTENDERS if arguments.precision == "fp32" else IN_BF16
    rows = harness.compare(__file__, names, "samples", arguments, PACKAGES)["works"][KIND]
    if arguments.peak_tflops:
        for name, row in rows.items():
            flops = 3 * forward_flops(arguments.model) * row["median"]
            print(f"{name:22}{flops / (arguments.peak_tflops * 1e12):8.1%} of the peak arithmetic")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each step but the first, the first loss, and the peak memory of this process."""
    step = make_open_clip(arguments) if arguments.contender == "open_clip" else make_ours(arguments)
    batch = harness.batch(arguments.model, arguments.batch)
    first_loss = step(*batch)
    return {
        # A step reads its loss, which waits for the device.
        "seconds": harness.seconds_of(lambda: step(*batch), arguments.calls, before=0),
        "amount": arguments.batch,
        "first": [first_loss],
        "peak_memory_mib": harness.peak_memory_mib(),
    }


def make_ours(arguments: argparse.Namespace):
    """One of our trainers, exactly as `clip train` drives it."""
    import backends
    from clip_core.initialize import initialize
    from clip_core.training.recipe import Recipe

    backend, _, native = arguments.contender.partition(" ")
    framework = backends.get(backend)
    if backend == "torch":
        importlib.import_module("torch").set_num_threads(arguments.threads)
    if native:
        importlib.import_module("backends.nnabla.functions").on_cpu = lambda: False
    architecture = MODELS[arguments.model].architecture
    recipe = Recipe.parse(
        {
            "model": {"architecture": arguments.model},
            "training": {"steps": 1, "precision": arguments.precision},
            "optimizer": {"betas": BETAS, "epsilon": EPSILON, "weight_decay": WEIGHT_DECAY},
        }
    )
    model = framework.CLIP(architecture, initialize(architecture, 0))
    trainer = framework.Trainer(model, recipe)
    return lambda pixels, tokens: trainer.step(pixels, tokens, LEARNING_RATE).loss


def make_open_clip(arguments: argparse.Namespace):
    """open_clip's model, loss and optimiser groups, as its training loop uses them."""
    import torch
    from open_clip.loss import ClipLoss

    from clip_core.initialize import initialize

    torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = harness.open_clip_model(arguments.model, initialize(MODELS[arguments.model].architecture, 0))
    model.to(device).train()
    loss_of = ClipLoss()
    small = [p for n, p in model.named_parameters() if p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n]
    large = [p for p in model.parameters() if not any(p is other for other in small)]
    groups = [{"params": small, "weight_decay": 0.0}, {"params": large, "weight_decay": WEIGHT_DECAY}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON)
    dtype = {"fp32": None, "bf16": torch.bfloat16}[arguments.precision]

    def step(pixels: np.ndarray, tokens: np.ndarray) -> float:
        images, texts = torch.from_numpy(pixels).to(device), torch.from_numpy(tokens).to(device)
        optimizer.zero_grad()
        with torch.autocast(device, dtype, enabled=dtype is not None):
            image_features, text_features, scale = model(images, texts)
            loss = loss_of(image_features, text_features, scale)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        return loss.item()

    return step


def forward_flops(name: str) -> float:
    """Multiplications and additions of one picture and one text of full length, forward (matrix products only)."""
    architecture = MODELS[name].architecture
    image, text = architecture.image, architecture.text
    if not isinstance(image, VisionTransformer):
        sys.exit("The share of peak arithmetic is defined here for ViT models only; leave out --peak-tflops.")
    total = 2 * image.grid**2 * image.width * 3 * image.patch**2
    for tower, length in ((image, image.grid**2 + 1), (text, text.context_length)):
        total += tower.layers * (24 * length * tower.width**2 + 4 * length**2 * tower.width)
    return float(total)


if __name__ == "__main__":
    main()
