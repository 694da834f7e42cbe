"""Training speed and memory of each framework, side by side with open_clip's training step on PyTorch, in one run.

    python benchmarks/training.py --model ViT-B/32 --batch 32 --precision fp32 --steps 5
    python benchmarks/training.py --loader

Every contender runs in a process of its own with the same batches, the same AdamW and the same threads, alternating in
rounds so that a busy machine is unfair to none. Reported are samples per second (median of the steps after a warm-up),
the ratio to open_clip, peak resident memory, and on a GPU the share of its peak arithmetic that the model uses.
`--loader` measures pictures per second and core from JPEG files of 640 x 480 to pixels instead.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import harness
import numpy as np

from clip_core.models import MODELS
from clip_core.towers.vision_transformer import VisionTransformer

CONTENDERS = ("open_clip", "torch", "paddle", "nnabla", "nnabla native")
LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY = 1e-4, (0.9, 0.98), 1e-6, 0.2


def main() -> None:
    arguments = parse()
    if arguments.contender:
        print(json.dumps(measure(arguments)))
    elif arguments.loader:
        print_loader(arguments)
    else:
        compare(arguments)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B/32", choices=list(MODELS))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each round, after one that is not")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--contenders", default="open_clip,torch,paddle,nnabla", help=", ".join(CONTENDERS))
    parser.add_argument("--peak-tflops", type=float, help="of the GPU in this precision, for the share of it")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--loader", action="store_true")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(arguments: argparse.Namespace) -> None:
    """Run every contender in turn, round by round, and print the table."""
    names = arguments.contenders.split(",")
    options = {key: getattr(arguments, key) for key in ("model", "batch", "precision", "steps")}
    found = harness.in_rounds(__file__, names, arguments.rounds, arguments.threads, options)
    rows = {}
    for name, rounds in found.items():
        seconds = statistics.median(second for each in rounds for second in each["seconds"])
        rows[name] = {
            "samples_per_second": arguments.batch / seconds,
            "peak_memory_mib": max(each["peak_memory_mib"] for each in rounds),
            "first_loss": rounds[0]["first_loss"],
        }
        if arguments.peak_tflops:
            flops = 3 * forward_flops(arguments.model) * arguments.batch / seconds
            rows[name]["model_flops_utilisation"] = flops / (arguments.peak_tflops * 1e12)
    base = rows.get("open_clip", rows[names[0]])
    title = f"{arguments.model}, batch {arguments.batch}, {arguments.precision}, {arguments.threads} threads"
    print(f"{title}\n{'contender':16}{'samples/s':>12}{'ratio':>8}{'peak MiB':>10}{'first loss':>12}")
    for name, row in rows.items():
        row["ratio"] = row["samples_per_second"] / base["samples_per_second"]
        print(
            f"{name:16}{row['samples_per_second']:12.2f}{row['ratio']:8.2f}{row['peak_memory_mib']:10.0f}"
            f"{row['first_loss']:12.6f}"
        )
    if arguments.json:
        settings = {key: value for key, value in vars(arguments).items() if key not in ("json", "contender")}
        figures = {"settings": settings, "machine": harness.machine(), "contenders": rows}
        arguments.json.write_text(json.dumps(figures, indent=2))


def measure(arguments: argparse.Namespace) -> dict:
    """Seconds of each step but the first, the first loss, and the peak memory of this process."""
    step = make_open_clip(arguments) if arguments.contender == "open_clip" else make_ours(arguments)
    pixels, tokens = harness.batch(arguments.model, arguments.batch)
    first_loss = step(pixels, tokens)
    seconds = []
    for _ in range(arguments.steps):
        started = perf_counter()
        step(pixels, tokens)  # it reads its loss, which waits for the device
        seconds.append(perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "first_loss": first_loss, "peak_memory_mib": peak}


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


def print_loader(arguments: argparse.Namespace) -> None:
    """Pictures per second and core from JPEG bytes to pixels, beside torchvision's transform."""
    from PIL import Image
    from torchvision import transforms

    from clip_core.image import open_image
    from clip_core.pixels import DEVIATION, MEAN
    from clip_core.preprocess import preprocess, resize

    resolution = MODELS[arguments.model].architecture.image.resolution
    theirs = transforms.Compose(
        [
            transforms.Resize(resolution, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(resolution),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, DEVIATION),
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.jpg"
        noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3)).astype(np.uint8)
        resize(Image.fromarray(noise), (640, 480)).save(path, quality=90)
        ways = {
            "clip_core": lambda: preprocess(open_image(path), resolution),
            "torchvision": lambda: theirs(Image.open(path).convert("RGB")),
        }
        for way in ways.values():
            way()
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(200):
            for name, way in ways.items():
                started = perf_counter()
                way()
                seconds[name].append(perf_counter() - started)
    base = statistics.median(seconds["torchvision"])
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(f"{name:12} {1 / middle:8.1f} pictures/s and core, ratio {base / middle:.2f}")


if __name__ == "__main__":
    main()
