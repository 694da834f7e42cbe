"""Fine-tune a CLIP on Food-101 in Paddle, with the `CLIPWrapper` that PASSL's users know and Paddle's own optimiser.

    python examples/finetune_food101_paddle.py ViT-B-32.pdparams food-101 --steps 100

The weights are read without executing anything in the file; the model is written in PASSL's names.
"""

import argparse

import numpy as np
import paddle

import converters
from backends.paddle import CLIPWrapper
from clip_core.architecture import differences
from clip_core.data.food101 import Food101
from clip_core.data.loader import Loader
from clip_core.text.loading import tokenizer_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="a weights file in any layout")
    parser.add_argument("food101", help="the folder that holds images/ and meta/")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--output", default="food101.pdparams")
    arguments = parser.parse_args()

    file = converters.read(arguments.weights)
    shape = file.architecture
    model = CLIPWrapper(
        architecture={
            "name": "CLIP",
            "embed_dim": shape.embed_dim,
            "image_resolution": shape.image.resolution,
            "vision_layers": shape.image.layers,
            "vision_width": shape.image.width,
            "vision_patch_size": shape.image.patch,
            "context_length": shape.text.context_length,
            "vocab_size": shape.text.vocabulary_size,
            "transformer_width": shape.text.width,
            "transformer_heads": shape.text.heads,
            "transformer_layers": shape.text.layers,
            "qkv_bias": True,
        },
        head={"name": "CLIPHead"},
    )
    if found := differences(model.model.architecture, shape):
        raise SystemExit(f"PASSL's dictionary has no key for what these weights need: {', '.join(found)}.")
    model.model.load(file.weights, arguments.weights)
    optimizer = paddle.optimizer.AdamW(arguments.learning_rate, parameters=model.parameters(), weight_decay=5e-4)

    tokenizer = tokenizer_of(arguments.weights, shape, file.vocabulary)
    pictures = Food101(folder=arguments.food101).open(seed=0)
    batches = Loader(pictures, tokenizer, shape, arguments.batch_size, seed=0)
    losses = []
    for step in range(1, arguments.steps + 1):
        batch = next(batches)
        loss = model(batch.pixels, batch.tokens, mode="train")["loss"]
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
        print(f"step {step}: loss {losses[-1]:.4f}, mean of the last ten {np.mean(losses[-10:]):.4f}")

    tuned = converters.ModelFile(model.model.export(), shape, vocabulary=file.vocabulary)
    converters.write(tuned, arguments.output, layout="passl", force=True)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
