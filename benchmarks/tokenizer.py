"""Texts per second from text to a row of tokens, side by side with open_clip's copy of OpenAI's tokenizer.

    python benchmarks/tokenizer.py --texts 10000 --rounds 5

Captions are made of the words that people write about photographs. Prose is the documents of this repository, line by
line, with their punctuation. Both contenders give the same tokens, which is checked first.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import harness
import numpy as np

THINGS = "man woman dog cat train bus table pizza plate street sign giraffe bench umbrella surfboard racket field beach"
DEEDS = "sitting standing riding holding eating walking playing looking driving flying"
KINDS = "red blue large small white black old young wooden tall two several"


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--texts", type=int, default=5000, help="of each kind")
    arguments = parser.parse_args()
    if not arguments.contender:
        return harness.compare(__file__, ["open_clip", "clip"], "texts", arguments)
    tokenize = make(arguments.contender)
    works = {"captions": captions(arguments.texts), "prose": prose(arguments.texts)}
    for texts in works.values():
        np.testing.assert_array_equal(tokenize(texts[:50]), make("open_clip")(texts[:50]))
    found = {
        kind: {
            "seconds": harness.seconds_of(lambda texts=texts: tokenize(texts), arguments.calls),
            "amount": len(texts),
        }
        for kind, texts in works.items()
    }
    print(json.dumps(found))


def make(contender: str):
    """Texts -> rows of 77 tokens."""
    if contender == "open_clip":
        from open_clip.tokenizer import SimpleTokenizer

        peer = SimpleTokenizer()
        return lambda texts: peer(texts).numpy()
    from clip_core.text.bpe import openai

    tokenizer = openai()
    return lambda texts: tokenizer.tokenize(texts, truncate=True)


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
