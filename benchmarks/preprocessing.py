"""Pictures per second and core from JPEG files to pixels, side by side with OpenAI's transform of torchvision's parts.

    python benchmarks/preprocessing.py --sizes 640x480,2000x1500

Ours gives the pixels of OpenAI's transform bit for bit, which is checked first. The difference of the others is the
largest of any value; transformers' two processors round in other places.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import harness
import numpy as np
from PIL import Image

from clip_core.image import open_image
from clip_core.layouts import LAYOUTS
from clip_core.models import MODELS
from clip_core.pixels import DEVIATION, MEAN
from clip_core.preprocess import preprocess, resize

PACKAGES = {"transformers": "transformers", "hf-processors-rs": "hf_processors_rs"}
CONTENDERS = ("torchvision", "transformers", "hf-processors-rs", "clip")

Way = Callable[[Path], np.ndarray]  # a picture's file -> pixels float32 [3, r, r]


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--sizes", default="640x480,480x640,2000x1500", help="of the pictures, in pixels")
    parser.add_argument("--resolution", type=int, default=224)
    parser.set_defaults(calls=50)
    arguments = parser.parse_args()
    if not arguments.contender:
        harness.compare(__file__, CONTENDERS, "pictures", arguments, PACKAGES)
        return
    with tempfile.TemporaryDirectory() as folder:
        way, expected = (
            make(name, arguments.resolution, Path(folder)) for name in (arguments.contender, "torchvision")
        )
        path, found = Path(folder) / "picture.jpg", {}
        for size in arguments.sizes.split(","):
            noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3)).astype(np.uint8)
            width, height = map(int, size.split("x"))
            resize(Image.fromarray(noise), (width, height)).save(path, quality=90)
            difference = float(np.abs(way(path) - expected(path)).max())
            if arguments.contender == "clip" and difference:
                raise SystemExit(f"a picture of {size} becomes other pixels than by OpenAI's transform")
            seconds = harness.seconds_of(lambda: way(path), arguments.calls)
            found[size] = {"seconds": seconds, "amount": 1, "first": [difference]}
    print(json.dumps(found))


def make(contender: str, resolution: int, folder: Path) -> Way:
    if contender == "torchvision":
        return torchvision(resolution)
    if contender == "clip":
        return lambda path: preprocess(open_image(path), resolution)
    architecture = MODELS["ViT-B/32"].architecture
    architecture = replace(architecture, image=replace(architecture.image, resolution=resolution))
    settings = LAYOUTS["huggingface"].folder.describe(architecture, True)["preprocessor_config.json"]
    if contender == "transformers":
        peer = importlib.import_module("transformers").CLIPImageProcessorPil(**settings)
        return lambda path: np.asarray(peer(Image.open(path), return_tensors="np")["pixel_values"][0])
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    peer = importlib.import_module("hf_processors_rs").AutoImageProcessor.from_pretrained(str(folder), backend="pil")
    return lambda path: peer(str(path))[0]


def torchvision(resolution: int) -> Way:
    import torch
    from torchvision import transforms

    torch.set_num_threads(1)
    transform = transforms.Compose(
        [
            transforms.Resize(resolution, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(resolution),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, DEVIATION),
        ]
    )
    return lambda path: transform(Image.open(path).convert("RGB")).numpy()


if __name__ == "__main__":
    main()
