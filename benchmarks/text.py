"""Speed of encoding texts in every framework, side by side with open_clip's model: short captions, captions as long as
those of the web, and the prompts of a zero-shot classifier (OpenAI's 80 templates for ImageNet).

    python benchmarks/text.py --model ViT-B/32 --rounds 5
    python benchmarks/text.py --contenders open_clip,torch --precision bf16 --classes 100

Contenders run as in `benchmarks/inference.py`. Ours encode all prompts of the classes through
`clip_core.batching.embed_texts`, as every command does; open_clip encodes class by class, as its classifier does, and
only `PEER_CLASSES` of them, since that does not change its speed. Reported are texts per second, their ratio to
open_clip, and how far the first embedding of length 1 is from that of open_clip. Needs open_clip, which has the
vocabulary and the templates; the weights are random.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import harness
import numpy as np

from clip_core.batching import embed_texts
from clip_core.evaluation.prompts import openai_names, prompts_of, resolved
from clip_core.initialize import initialize
from clip_core.models import MODELS
from clip_core.similarity import normalize
from clip_core.text.bpe import openai

CONTENDERS = ("open_clip", "torch", "paddle", "nnabla", "numpy")
CAPTIONS = 64
PEER_CLASSES = 1
IMAGENET_CLASSES = 1000


def main() -> None:
    arguments = parse()
    if arguments.contender:
        print(json.dumps(measure(arguments)))
    else:
        compare(arguments)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B/32", choices=[name for name in MODELS if name != "shapes"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--classes", type=int, default=20, help="of the classifier, each with 80 prompts")
    parser.add_argument("--calls", type=int, default=3, help="timed calls of each round, after one that is not")
    parser.add_argument("--rounds", type=int, default=3)
    return harness.parsed(parser, CONTENDERS)


def compare(arguments: argparse.Namespace) -> None:
    """Run every contender in turn, round by round, and print a table for each kind of texts."""
    names = arguments.contenders.split(",")
    options = {key: getattr(arguments, key) for key in ("model", "precision", "classes", "calls")}
    found = harness.in_rounds(__file__, names, arguments.rounds, arguments.threads, options)
    base = "open_clip" if "open_clip" in names else names[0]
    facts = harness.machine()
    print(f"{arguments.model}, {arguments.precision}, {arguments.threads} threads, {facts['processor']}")
    rows: dict[str, dict[str, Any]] = {}
    for kind in found[base][0]:
        rows[kind] = {name: figures(rounds, kind, found[base][0][kind]) for name, rounds in found.items()}
        print(f"{kind:18}" + "".join(f"{head:>15}" for head in ("texts/s best", "ratio", "median", "difference")))
        for name, row in rows[kind].items():
            row["ratio_of_best"] = row["best"] / rows[kind][base]["best"]
            print(
                f"{name:18}{row['best']:15.1f}{row['ratio_of_best']:15.2f}{row['median']:15.1f}{row['difference']:15.1e}"
            )
    if arguments.json:
        settings = {key: value for key, value in vars(arguments).items() if key not in ("json", "contender")}
        arguments.json.write_text(json.dumps({"settings": settings, "machine": facts, "kinds": rows}, indent=2))


def figures(rounds: list[dict[str, Any]], kind: str, expected: dict[str, Any]) -> dict[str, float]:
    """Texts per second by the best and by the median call, and the largest difference of the first embedding."""
    speeds = [speed for each in rounds for speed in each[kind]["texts_per_second"]]
    difference = np.abs(np.subtract(rounds[0][kind]["first_embedding"], expected["first_embedding"])).max()
    return {"best": max(speeds), "median": statistics.median(speeds), "difference": float(difference)}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of each kind of texts: texts per second of each call but the first, and the first embedding."""
    encode = make(arguments)
    found = {}
    for kind, tokens in workloads(arguments).items():
        first = normalize(encode(tokens))[0]
        speeds = []
        for _ in range(arguments.calls):
            started = perf_counter()
            encode(tokens)
            speeds.append(len(tokens) / (perf_counter() - started))
        found[kind] = {"texts_per_second": speeds, "first_embedding": first.tolist()}
    return found


def workloads(arguments: argparse.Namespace) -> dict[str, np.ndarray]:
    """Tokens int64 [n, context] of each kind of texts."""
    names = openai_names("imagenet", IMAGENET_CLASSES)
    classes = PEER_CLASSES if arguments.contender == "open_clip" else arguments.classes
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
    name, architecture = arguments.contender, MODELS[arguments.model].architecture
    if name in ("open_clip", "torch"):
        importlib.import_module("torch").set_num_threads(arguments.threads)
    if name == "open_clip":
        return make_open_clip(arguments)
    backend = importlib.import_module("backends").get(name)
    clip = backend.CLIP(architecture, initialize(architecture, 0), device="cpu", precision=arguments.precision)
    return lambda tokens: embed_texts(clip, tokens)


def make_open_clip(arguments: argparse.Namespace) -> Callable[[np.ndarray], np.ndarray]:
    """open_clip's model, called as its documentation and its zero-shot classifier call it: with 80 prompts at most."""
    import torch
    from open_clip.model import convert_weights_to_lp

    peer = harness.open_clip_model(arguments.model, initialize(MODELS[arguments.model].architecture, 0)).eval()
    if arguments.precision == "bf16":
        convert_weights_to_lp(peer, torch.bfloat16)

    def encode(tokens: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            parts = [peer.encode_text(part) for part in torch.from_numpy(tokens).split(80)]
            return torch.cat(parts).float().numpy()

    return encode


if __name__ == "__main__":
    main()
