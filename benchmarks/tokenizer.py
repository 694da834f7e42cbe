"""Texts per second from text to a row of tokens, side by side with open_clip's copy of OpenAI's tokenizer.

    python benchmarks/tokenizer.py --texts 10000 --rounds 5

Captions are made of the words that people write about photographs. Prose is the documents of this repository, line by
line, with their punctuation. The difference is the share of texts, of the first 50, whose tokens are not open_clip's;
ours may have none. instant-clip-tokenizer repairs no text and leaves HTML as it is.
"""

from __future__ import annotations

import importlib
import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import harness
import numpy as np

from clip_core.models import MODELS
from clip_core.text.vocabulary import openai_merges
from converters import tokenizer_files

THINGS = "man woman dog cat train bus table pizza plate street sign giraffe bench umbrella surfboard racket field beach"
DEEDS = "sitting standing riding holding eating walking playing looking driving flying"
KINDS = "red blue large small white black old young wooden tall two several"


PACKAGES = {"transformers": "transformers", "instant-clip-tokenizer": "instant_clip_tokenizer"}
CONTENDERS = ("open_clip", "transformers", "instant-clip-tokenizer", "clip")
CONTEXT = 77
COMPARED = 50


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--texts", type=int, default=5000, help="of each kind")
    arguments = parser.parse_args()
    if not arguments.contender:
        harness.compare(__file__, CONTENDERS, "texts", arguments, PACKAGES)
        return
    tokenize, expected, found = make(arguments.contender), make("open_clip"), {}
    for kind, texts in {"captions": captions(arguments.texts), "prose": prose(arguments.texts)}.items():
        others = share_of_others(tokenize(texts[:COMPARED]), expected(texts[:COMPARED]))
        if arguments.contender == "clip" and others:
            sys.exit(f"{others:.0%} of the {kind} have other tokens than open_clip's")
        seconds = harness.seconds_of(lambda: tokenize(texts), arguments.calls)  # noqa: B023
        found[kind] = {"seconds": seconds, "amount": len(texts), "first": [others]}
    print(json.dumps(found))


def make(contender: str) -> Callable[[list[str]], np.ndarray]:
    """Texts -> rows of 77 tokens."""
    if contender == "open_clip":
        from open_clip.tokenizer import SimpleTokenizer

        peer = SimpleTokenizer()
        return lambda texts: peer(texts).numpy()
    if contender == "transformers":
        return make_transformers()
    if contender == "instant-clip-tokenizer":
        return importlib.import_module("instant_clip_tokenizer").Tokenizer().tokenize_batch
    from clip_core.text.bpe import openai

    tokenizer = openai()
    return lambda texts: tokenizer.tokenize(texts, truncate=True)


def make_transformers() -> Callable[[list[str]], np.ndarray]:
    """Its tokenizer, which runs in Rust, with OpenAI's vocabulary."""
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:
        for name, text in tokenizer_files.texts(openai_merges(), MODELS["ViT-B/32"].architecture.text).items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        peer = CLIPTokenizer.from_pretrained(folder)
    options = {"padding": "max_length", "truncation": True, "max_length": CONTEXT, "return_tensors": "np"}
    return lambda texts: peer(texts, **options)["input_ids"]


def share_of_others(found: np.ndarray, expected: np.ndarray) -> float:
    """The share of texts whose tokens up to the end of text are not the expected ones."""
    others = 0
    for row, right in zip(found, expected):
        length = int(right.argmax()) + 1
        others += not np.array_equal(row[:length], right[:length])
    return others / len(expected)


def captions(count: int) -> list[str]:
    random_ = random.Random(0)
    things, deeds, kinds = THINGS.split(), DEEDS.split(), KINDS.split()

    def caption() -> str:
        some = [random_.choice(words) for words in (kinds, things, deeds, kinds, things, things)]
        return "A {} {} {} on a {} {} near the {}.".format(*some)

    return [caption() for _ in range(count)]


def prose(count: int) -> list[str]:
    root = Path(__file__).resolve().parents[1]
    documents = [*root.glob("*.md"), *root.glob("docs/*.md")]
    lines = [line for path in sorted(documents) for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if len(line) > 60]
    return [lines[number % len(lines)] for number in range(count)]


if __name__ == "__main__":
    main()
