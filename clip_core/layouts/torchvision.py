"""torchvision's networks as the image tower of a CLIP: their names, and the files that it publishes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from clip_core.errors import CheckpointError
from clip_core.naming import Weights
from clip_core.towers import IMAGE_TOWERS
from clip_core.towers.parts import ImageTower, Shapes

PUBLISHED = {
    "torchvision/resnet18": "resnet18-f37072fd.pth",
    "torchvision/resnet50": "resnet50-11ad3fa6.pth",  # its second version, as simple-clip takes it
    "torchvision/efficientnet_v2_s": "efficientnet_v2_s-dd5fe13b.pth",
}
"""The files of weights trained on ImageNet; each name ends in the first digits of the file's SHA-256."""
ADDRESS = "https://download.pytorch.org/models/"
_KINDS = ("torchvision_resnet", "efficientnet_v2")
_CLASSIFIERS = ("fc.", "classifier.")


def image_tower(tensors: Mapping[str, np.ndarray]) -> tuple[ImageTower, Weights]:
    """The tower and its weights, by their names in it and without the head, which such a file does not have.

    Args:
        tensors: of torchvision's state dictionary, whose classification layer is left out.

    Raises:
        CheckpointError: they are not those of such a network.
    """
    weights = {f"trunk.{name}": array for name, array in tensors.items() if not name.startswith(_CLASSIFIERS)}
    shapes = Shapes({name: array.shape for name, array in weights.items()}, "")
    for kind in _KINDS:
        if IMAGE_TOWERS[kind].recognises(shapes):
            tower = IMAGE_TOWERS[kind].infer(shapes)
            assert isinstance(tower, ImageTower)
            return tower, weights
    raise CheckpointError("It holds no ResNet and no EfficientNetV2 of torchvision.")
