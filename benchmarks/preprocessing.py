"""Pictures per second and core from JPEG files to pixels, side by side with OpenAI's transform of torchvision's parts.

    python benchmarks/preprocessing.py --sizes 640x480,2000x1500

Both contenders give the same pixels, bit for bit, which is checked first.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import harness
import numpy as np
from PIL import Image

from clip_core.image import open_image
from clip_core.pixels import DEVIATION, MEAN
from clip_core.preprocess import preprocess, resize


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--sizes", default="640x480,480x640,2000x1500", help="of the pictures, in pixels")
    parser.add_argument("--resolution", type=int, default=224)
    parser.set_defaults(calls=50)
    arguments = parser.parse_args()
    if not arguments.contender:
        return harness.compare(__file__, ["torchvision", "clip"], "pictures", arguments)
    theirs, found = torchvision(arguments.resolution), {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.jpg"
        for size in arguments.sizes.split(","):
            noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3)).astype(np.uint8)
            width, height = map(int, size.split("x"))
            resize(Image.fromarray(noise), (width, height)).save(path, quality=90)
            ways = {
                "clip": lambda: preprocess(open_image(path), arguments.resolution),
                "torchvision": lambda: theirs(Image.open(path).convert("RGB")).numpy(),
            }
            np.testing.assert_array_equal(ways["clip"](), ways["torchvision"]())
            seconds = harness.seconds_of(ways[arguments.contender], arguments.calls)
            found[size] = {"seconds": seconds, "amount": 1}
    print(json.dumps(found))


def torchvision(resolution: int):
    import torch
    from torchvision import transforms

    torch.set_num_threads(1)
    return transforms.Compose(
        [
            transforms.Resize(resolution, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(resolution),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, DEVIATION),
        ]
    )


if __name__ == "__main__":
    main()
