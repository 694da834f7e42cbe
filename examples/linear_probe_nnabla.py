"""Train a linear classifier on the image features of a frozen CLIP in NNabla, with NNabla's own solver.

    python examples/linear_probe_nnabla.py shapes --steps 200

The pictures are drawn: nine shapes in all colours, of which some combinations occur in the test alone.
"""

import argparse
from random import Random

import nnabla as nn
import nnabla.functions as F
import nnabla.parametric_functions as PF
import nnabla.solvers as S
import numpy as np

import clip
from clip_core.data.shapes import HELD_OUT, SHAPES, TRAINED, Scene, Thing, draw
from clip_core.preprocess import pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model's name or a weights file")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--pictures", type=int, default=10, help="of each combination of shape and colour")
    arguments = parser.parse_args()

    model, preprocess = clip.load(arguments.model, backend="nnabla")
    train, train_labels = features(model, preprocess.resolution, TRAINED, arguments.pictures, Random(0))
    test, test_labels = features(model, preprocess.resolution, HELD_OUT, arguments.pictures, Random(1))

    with nn.parameter_scope("probe"):  # beside the model's parameters, which stay as they are
        x, labels = nn.Variable(train.shape), nn.Variable((len(train), 1))
        loss = F.mean(F.softmax_cross_entropy(PF.affine(x, len(SHAPES)), labels))
        solver = S.Adam(alpha=0.05)
        solver.set_parameters(nn.get_parameters())
        x.d, labels.d = train, train_labels[:, None]
        for _ in range(arguments.steps):
            loss.forward()
            solver.zero_grad()
            loss.backward()
            solver.update()
        weights = nn.get_parameters()
        scores = test @ weights["affine/W"].d + weights["affine/b"].d
    accuracy = float((scores.argmax(axis=1) == test_labels).mean())
    print(f"loss {float(loss.d):.4f}, accuracy on unseen combinations {accuracy:.3f}")


def features(model, resolution: int, kinds, count: int, random: Random) -> tuple[np.ndarray, np.ndarray]:
    """Image features float32 [n, d] of drawn pictures, scaled to length 1, and the number of each one's shape [n]."""
    things = [Thing(shape, colour, random.choice(["small", "large"]), "solid") for shape, colour in kinds] * count
    found = model.embed_image(pixels([draw(Scene(thing), random) for thing in things], resolution))
    labels = np.array([list(SHAPES).index(thing.shape) for thing in things])
    return found / np.linalg.norm(found, axis=1, keepdims=True), labels


if __name__ == "__main__":
    main()
