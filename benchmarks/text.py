"""Speed of encoding texts in every framework, side by side with open_clip's model: short captions, captions as long as
those of the web, and the prompts of a zero-shot classifier (OpenAI's 80 templates for ImageNet).

    python benchmarks/text.py --model ViT-B/32 --rounds 5
    python benchmarks/text.py --contenders open_clip,torch --precision bf16 --classes 100

Contenders run as in `benchmarks/inference.py`. Ours encode all prompts of the classes through
`clip_core.batching.embed_texts`, as every command does; the peers encode class by class, as open_clip's classifier
does, and only `PEER_CLASSES` of them, since that does not change their speed. open_clip computes the whole context of
every text, transformers as much as the longest text of a call has, as their documentation calls them. Needs open_clip,
which has the vocabulary and the templates; the weights are random.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable
from typing import Any

import harness
import numpy as np

from clip_core.batching import embed_texts
from clip_core.evaluation.prompts import openai_names, prompts_of, resolved
from clip_core.initialize import initialize
from clip_core.models import MODELS
from clip_core.similarity import normalize
from clip_core.text.bpe import openai

PEERS = ("open_clip", "transformers")
CONTENDERS = (*PEERS, "torch", "paddle", "nnabla", "numpy")
PACKAGES = {"transformers": "transformers", "nnabla": "nnabla"}
IN_BF16 = (*PEERS, "torch")
CAPTIONS = 64
PEER_CLASSES = 1
IMAGENET_CLASSES = 1000


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--model", default="ViT-B/32", choices=[name for name in MODELS if name != "shapes"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--classes", type=int, default=20, help="of the classifier, each with 80 prompts")
    parser.set_defaults(rounds=3, threads=harness.CORES)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(measure(arguments)))
    else:
        names = CONTENDERS if arguments.precision == "fp32" else IN_BF16
        harness.compare(__file__, names, "texts", arguments, PACKAGES)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of each kind of texts: seconds of each call but the first, and the first embedding."""
    encode = make(arguments)
    found = {}
    for kind, tokens in workloads(arguments).items():
        found[kind] = {
            "first": normalize(encode(tokens[:1]))[0].tolist(),
            "seconds": harness.seconds_of(lambda: encode(tokens), arguments.calls),  # noqa: B023
            "amount": len(tokens),
        }
    return found


def workloads(arguments: argparse.Namespace) -> dict[str, np.ndarray]:
    """Tokens int64 [n, context] of each kind of texts."""
    names = openai_names("imagenet", IMAGENET_CLASSES)
    classes = PEER_CLASSES if arguments.contender in PEERS else arguments.classes
    prompts = [prompt for own in prompts_of(names[:classes], resolved("openai", "imagenet")) for prompt in own]
    short = [f"a photo of a {name}." for name in names[:CAPTIONS]]
    length = MODELS[arguments.model].architecture.text.context_length
    return {
        "short captions": openai().tokenize(short, length),
        "captions": harness.batch(arguments.model, CAPTIONS)[1],
        "classifier": openai().tokenize(prompts, length),
    }


def make(arguments: argparse.Namespace) -> Callable[[np.ndarray], np.ndarray]:
    """What a contender makes features [n, d] of tokens with."""
    name, architecture, precision = arguments.contender, MODELS[arguments.model].architecture, arguments.precision
    weights = initialize(architecture, 0)
    if name in (*PEERS, "torch"):
        importlib.import_module("torch").set_num_threads(arguments.threads)
    if name == "open_clip":
        return harness.encoder(harness.open_clip_model(arguments.model, weights, precision).encode_text)
    if name == "transformers":
        peer = harness.transformers_model(arguments.model, weights, precision)
        return harness.encoder(harness.transformers_encoders(peer)[1])
    clip = importlib.import_module("backends").get(name).CLIP(architecture, weights, device="cpu", precision=precision)
    return lambda tokens: embed_texts(clip, tokens)


if __name__ == "__main__":
    main()
