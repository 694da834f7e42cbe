"""The page of examples/deploy/browser/ in Chromium: its tokens, pixels and logits are clip's, or it refuses.

`make test-browser` gets Chromium and the packages of npm, and runs these tests; nothing is fetched here.
"""

# ruff: noqa: RUF001

from __future__ import annotations

import base64
import html
import io
import json
import os
import random
import re
import shlex
import shutil
import struct
import subprocess
import sys
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import ftfy
import numpy as np
import pytest
from ftfy import chardata
from PIL import Image, PngImagePlugin
from playwright.sync_api import Browser, Page, expect

import converters
from clip import samples
from clip.api import open_model
from clip.export import export
from clip.zero_shot import Classifier
from clip_core.architecture import Architecture
from clip_core.image import open_image
from clip_core.initialize import random_weights
from clip_core.pixels import OPENAI_PIXELS, Pixels
from clip_core.preprocess import preprocess
from clip_core.text import bpe, bpe_training, vocabulary
from clip_core.text.bpe import BytePairTokenizer
from clip_core.text.definitions import byte_level, wordpiece
from clip_core.text.loading import tokenizer_from
from clip_core.tolerances import logit_bound
from clip_core.towers.distilbert import DistilBERT
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.vision_transformer import VisionTransformer
from tests.chromium import chromium

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "examples" / "deploy" / "browser"
CIRCLE = samples.pictures()["a large solid red circle"]
LABELS = ["a red circle", "a blue circle", "the <b>Red</b> Star &amp; ½ “x”"]
(COMMANDS,) = re.findall(r"```sh\n(.*?)```", (PAGE / "README.md").read_text(), re.DOTALL)
# The first Pixels is OpenAI's; the others have what else a model may want.
WANTED = {
    "shortest": Pixels(),
    "squash": Pixels((0.5, 0.4, 0.3), (0.5, 0.6, 0.7), "bilinear", "squash"),
}

WORDPIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *(f"{start}{c}" for start in ("", "##") for c in "abcdefrtz好"),
]
WORDPIECES += ["red", "##ed", "photo", "!", "&", "<"]
DEFINITIONS = {
    "wordpiece": wordpiece("\n".join(WORDPIECES) + "\n", {}),
    "byte-level": byte_level(bpe_training.learn_byte_level(["a red bicycle"] * 2, merges=8)),
}


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """Where the page is, once the commands of its README have been run in a copy of it."""
    root = tmp_path_factory.mktemp("checkout")
    folder = root / "examples" / "deploy" / "browser"
    shutil.copytree(PAGE, folder, ignore=shutil.ignore_patterns("node_modules", "model"))
    # What `make test-browser` has fetched is in npm's cache.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "npm_config_offline": "true"}
    *lines, serving = COMMANDS.replace("8000", "0").splitlines()
    for line in lines:
        program, *arguments = shlex.split(line)
        if program == "cd":
            root /= arguments[0]
        else:
            command = [sys.executable, "-m", "clip"] if program == "clip" else [program]
            done = subprocess.run([*command, *arguments], cwd=root, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    program, *arguments = shlex.split(serving)
    assert program == "python"
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as server:
        port = re.search(rb"port (\d+)", server.stdout.readline())[1].decode()
        export_others(folder)
        yield f"http://127.0.0.1:{port}/"
        server.terminate()


def export_others(folder: Path) -> None:
    """Models beside the page, by the names of their folders: each what `shapes` is not."""
    image = VisionTransformer(resolution=32, patch=16, width=64, layers=1, heads=1, pixels=WANTED["squash"])
    merges = bpe_training.learn(["an old red bicycle"] * 2, merges=8)
    tokens = 256 * 2 + 8 + 2
    text = TextTransformer(context_length=12, vocabulary_size=tokens, width=64, layers=1, heads=1)
    write(folder / "sigmoid", Architecture(16, image, text, logit_bias=True), merges)
    openais = TextTransformer(context_length=20, vocabulary_size=49408, width=64, layers=1, heads=1)
    write(folder / "openai", Architecture(16, image, openais), None)
    shutil.copy(vocabulary._installed(), folder / "openai")
    byte_pairs = replace(text, vocabulary_size=3 + 256 + 8, end_of_text=1)
    write(folder / "byte-level", Architecture(16, image, byte_pairs), DEFINITIONS["byte-level"])
    pieces = DistilBERT(context_length=12, vocabulary_size=len(WORDPIECES), width=48, layers=1, heads=4)
    write(folder / "wordpiece", Architecture(16, image, pieces), DEFINITIONS["wordpiece"])


def write(folder: Path, architecture: Architecture, definition: str | None) -> None:
    weights = folder.with_suffix(".safetensors")
    model = converters.ModelFile(random_weights(architecture, 0), architecture, vocabulary=definition)
    converters.write(model, weights)
    export(weights, folder, parts=["image", "text"])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def opened(browser, address) -> Iterator[Page]:
    page = browser.new_page()
    open_page(page, address)
    yield page
    page.close()


@pytest.fixture
def page(opened) -> Page:
    """The page with `shapes` and without what the test before has left."""
    opened.fill("#labels", "\n".join(LABELS))
    opened.fill("#template", "{}")
    opened.uncheck("#truncate")
    return opened


def open_page(page: Page, address: str) -> None:
    page.goto(address)
    expect(page.locator("body[data-ready]")).to_be_attached(timeout=60_000)


def choose(page: Page, data: bytes | Path, name: str = "picture.png") -> None:
    buffer = data.read_bytes() if isinstance(data, Path) else data
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": buffer})


def saved(page: Page) -> dict[str, Any]:
    """What the page has computed, as it saves it."""
    expect(page.locator("#results")).to_be_visible()
    expect(page.locator("body.busy")).not_to_be_attached()
    with page.expect_download() as download:
        page.click("#save")
    return json.loads(Path(download.value.path()).read_text())


def fault(page: Page) -> str:
    """The one sentence that the page shows, in place of scores."""
    expect(page.locator("#fault")).to_be_visible()
    expect(page.locator("#results")).to_be_hidden()
    sentence = page.inner_text("#fault")
    assert re.fullmatch(r"[^\n]+\.", sentence)
    assert "Something went wrong" not in sentence
    return sentence


@pytest.mark.parametrize("name", ["shapes", "sigmoid", "openai", "byte-level", "wordpiece"])
def test_tokens_pixels_and_logits_are_those_of_clip(browser, address, tmp_path, name):
    folder = "model" if name == "shapes" else name
    requests: list[str] = []
    page = browser.new_page()
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: pytest.fail(message.text))
    open_page(page, f"{address}?model={folder}")
    labels = [*LABELS, "a very long label of many words that no model reads to its end"]
    page.fill("#labels", "\n".join(labels))
    page.fill("#template", "a photo of {}!")
    page.check("#truncate")
    choose(page, CIRCLE)
    expect(page.locator("#rows tr")).to_have_count(len(labels))
    found = saved(page)
    page.close()

    weights = "shapes" if name == "shapes" else served(address, f"{name}.safetensors", tmp_path)
    loaded = open_model(weights, backend="numpy", precision="fp64")
    texts = [f"a photo of {label}!" for label in labels]
    length = loaded.model.architecture.text.context_length
    tokens = loaded.model.tokenizer.tokenize(texts, length, truncate=True)
    assert [score["tokens"] for score in found["scores"]] == tokens.tolist()
    pixels = loaded.preprocess.pixels(open_image(CIRCLE))
    assert np.array_equal(np.float32(found["picture"]["pixels"]).reshape(pixels.shape), pixels)
    expected = Classifier(loaded, labels, "a photo of {}!", truncate=True).score(pixels[None])
    logits = [score["logit"] for score in found["scores"]]
    assert np.abs(logits - expected.logits[0]).max() < logit_bound(loaded.logit_scale)
    probabilities = [score["probability"] for score in found["scores"]]
    assert probabilities == pytest.approx(expected.probabilities[0], abs=1e-4)
    assert {re.sub(r"^blob:", "", request).startswith(address) for request in requests} == {True}


def served(address: str, name: str, folder: Path) -> Path:
    with urlopen(address + name) as answer:
        (folder / name).write_bytes(answer.read())
    return folder / name


def test_bars_are_ranked_and_labels_are_shown_as_text(page):
    choose(page, CIRCLE)
    expect(page.locator("#rows tr").first).to_contain_text("a red circle")
    scores = {score["label"]: score for score in saved(page)["scores"]}
    ranked = sorted(LABELS, key=lambda label: -scores[label]["logit"])
    assert page.locator("#rows th").all_inner_texts() == ranked
    assert page.locator("#rows td").all_inner_texts() == [
        text
        for label in ranked
        for text in (f"{100 * scores[label]['probability']:.1f} %", f"{scores[label]['logit']:.2f}")
    ]
    assert page.locator("#rows b").count() == 0
    widths = [box.bounding_box()["width"] for box in page.locator("#rows th").all()]
    bars = page.evaluate(
        "[...document.querySelectorAll('#rows th')].map(e => parseFloat(e.style.getPropertyValue('--share')))"
    )
    assert len(set(widths)) == 1
    assert bars == pytest.approx([100 * scores[label]["probability"] for label in ranked])
    tokens = BytePairTokenizer(open_model("shapes", backend="numpy").model.vocabulary)
    assert page.locator("#tokens dd").all_text_contents()[0] == " ".join(map(str, tokens.row(ranked[0], 77)))


TEXTS = [
    "",
    " A  Red\tcircle, isn't it? They'LL've 12th ½ ² Ⅷ ③ 東京 한국어 العربية हिन्दी 😀👍🏽 <|ſtartoftext|> it'ſ",
    "l’été d’une forêt «école» – œuvre d’art café — bar",
    "Straße Spaß? В доме О чём армії історії моё «сердце» её» части łódź żółć ÎLE DE LA CITÉ ŁÓDŹ НАДІЇ",
    "Ǆ ĳ ﬁﬂﬅ ＡＢＣ　ｶﾞ ‘a’ “b” ʼn e\u0301 ΑΣ ΣΑΣ. İIı ẞ",
    "\x1b[31mred\x1b[0m \x00\x07\x85\u2028\u2029\r\n\r a\x80\x93b \ufeff\u206a\ufff9 x",
    "&lt;b&gt; &amp;amp; &AMP &notit; &EACUTE; &NTILDE; &nTILDE; &LTIMES; &hearts &copy2 &semi; &SEMI;",
    "&#65; &#x41 &#128; &#0; &#1; &#xD800; &#xFFFE; &#x110000; &#59; &#12ab; &#xZ; &; &#",
    "&nosuch; &Tab;&NewLine;&nbsp;x",
    "a < b &eacute; &amp;eacute;",
    "&lt;\n&EACUTE;\n<\n&EACUTE;",
    "CounterClockwise &CounterClockwiseContourIntegral; &CounterClockwiseContourIntegralx; &fjlig;&ngE;",
    "o'clock 'S 'D''ll \u00a0\u1680\u180e\u200b\u202f\u3000z \u0345\u0301",
    "a" * 300 + " " + "lo" * 200 + "!?" * 50,
]
MISREAD = [
    "schÃ¶n",
    "â€œquoteâ€�",
    "voilÃ le travail",
    "Ð¿Ñ€Ð¸Ð²ÐµÑ‚",
    "РїСЂРёРІРµС‚",
    "ðŸ˜€",
    "na√Øve",
    "&Atilde;&para;x",
    "IÃ\x81",
]


@cache
def tokenizer() -> BytePairTokenizer:
    return bpe.openai()


def tokens_of(page: Page, texts: list[str]) -> list[list[int] | None]:
    """The tokens of each text by OpenAI's merges; None for one that the page refuses as read in a wrong encoding."""
    return page.evaluate(
        """async ({ texts, merges }) => {
          const { BytePairTokenizer } = await import("./bpe.js");
          const tokenizer = new BytePairTokenizer(merges);
          return texts.map((text) => {
            try {
              return tokenizer.encode(text);
            } catch (error) {
              if (!/seems to have been read in a wrong encoding/.test(error.message)) throw error;
              return null;
            }
          });
        }""",
        {"texts": texts, "merges": tokenizer().definition},
    )


def test_ordinary_texts_have_the_same_tokens(page):
    # Of the first planes, what every version of Unicode that Python and the browser may know has assigned.
    every = [chr(code) for code in range(1, 0x3000) if unicodedata.ucd_3_2_0.category(chr(code)) != "Cn"]
    texts = [*TEXTS, *(f"{character}ab " for character in every)]
    assert tokens_of(page, texts) == [tokenizer().encode(text) for text in texts]


def test_every_entity_has_the_same_tokens(page):
    names = sorted({name.rstrip(";") for name in html.entities.html5})
    texts = [f"x&{spelt}{end}" for name in names for spelt in {name, name.upper()} for end in (";", "", "1;")]
    found = tokens_of(page, texts)
    refused = sum(tokens is None for tokens in found)
    assert refused < 20
    assert [tokens for tokens in found if tokens] == [
        tokenizer().encode(text) for text, tokens in zip(texts, found) if tokens
    ]


def test_misread_texts_are_refused_and_never_tokenized_otherwise(page):
    assert tokens_of(page, MISREAD) == [None] * len(MISREAD)
    generator = random.Random(0)
    texts = []
    for encoding in chardata.CHARMAP_ENCODINGS:
        high = bytes(range(128, 256)).decode(encoding)
        for _ in range(1500):
            letters = generator.choices(high + "  ?aA\ufffd", k=generator.randrange(1, 7))
            texts.append("".join(letters))
    expected = [tokenizer().encode(text) for text in texts]
    found = tokens_of(page, texts)
    assert [tokens or right for tokens, right in zip(found, expected)] == expected
    changed = [ftfy.fix_encoding(text) != text for text in texts]
    assert sum(changed) > 1000
    assert sum(tokens is not None for tokens in found) > 5000


def json_tokens(page: Page, definition: dict[str, Any], texts: list[str]) -> list[list[int]] | str:
    """What the page makes of texts by a tokenizer.json, or why it does not."""
    return page.evaluate(
        """async ({ definition, texts }) => {
          const { JsonTokenizer } = await import("./json_tokenizer.js");
          try {
            const tokenizer = new JsonTokenizer(definition);
            return texts.map((text) => tokenizer.encode(text));
          } catch (error) {
            return error.message;
          }
        }""",
        {"definition": json.dumps(definition), "texts": texts},
    )


@pytest.mark.parametrize("name", DEFINITIONS)
def test_tokens_of_a_tokenizer_json_are_the_same(page, name):
    generator = random.Random(0)
    letters = "abcdefrtz  \t\n.,!?'-_éÉßñ你好ひ가אב😀\u0301\u200d\x07\u0085\ufeff0123456789ΣİＡ"
    texts = [*TEXTS, *("".join(generator.choices(letters, k=generator.randrange(1, 40))) for _ in range(500))]
    expected = [tokenizer_from(DEFINITIONS[name]).encode(text) for text in texts]
    assert json_tokens(page, json.loads(DEFINITIONS[name]), texts) == expected


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("wordpiece", {"model": {"type": "Unigram", "vocab": []}}, "The model's tokenizer has the model Unigram, or a"),
        (
            "wordpiece",
            {"normalizer": {"type": "NFKC"}},
            "has the normalizer NFKC, or a setting of it, that this page does",
        ),
        ("byte-level", {"pre_tokenizer": {"type": "Metaspace"}}, "has the pre-tokenizer Metaspace, or a setting"),
        (
            "byte-level",
            {"post_processor": {"type": "RobertaProcessing"}},
            "has the post-processor RobertaProcessing, or",
        ),
        ("wordpiece", {}, '"a [MASK] b" has the special token "[MASK]" in it; remove that.'),
    ],
)
def test_an_unknown_part_of_a_tokenizer_json_is_refused(page, name, change, sentence):
    assert sentence in json_tokens(page, json.loads(DEFINITIONS[name]) | change, ["a [MASK] b"])


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int, bands: int = 3, dtype: type = np.uint8) -> np.ndarray:
    """Values of all sizes, with edges and flat parts."""
    generator = np.random.default_rng(width)
    values = generator.integers(0, np.iinfo(dtype).max, (height, width, bands), dtype, endpoint=True)
    values[: height // 3, : width // 2] = np.iinfo(dtype).max
    values[height // 2 :, width // 3 : width // 2] = 0
    return values


def rgb(width: int, height: int) -> Image.Image:
    return Image.fromarray(noise(width, height))


def photograph(width: int, height: int) -> Image.Image:
    return rgb(width // 9 + 2, height // 9 + 2).resize((width, height), Image.Resampling.BICUBIC)


def raw_png(values: np.ndarray, depth: int, colour: int, palette: bytes = b"", interlaced: bool = False) -> bytes:
    """A PNG of samples [h, w, bands] of any depth, which Pillow cannot write; each line has another filter."""
    height, width, bands = values.shape

    def packed(part: np.ndarray) -> bytes:
        if depth == 16:
            rows = [line.astype(">u2").tobytes() for line in part.reshape(len(part), -1)]
        else:
            bits = (part.reshape(len(part), -1, 1) >> np.arange(depth - 1, -1, -1)) & 1
            rows = [np.packbits(line.ravel()).tobytes() for line in bits]
        step, before, lines = max(1, bands * depth // 8), bytes(len(rows[0])), []
        for number, row in enumerate(rows):
            kind = number % 5
            left, corner = bytes(step) + row, bytes(step) + before
            guess = [
                [0] * len(row),
                left,
                before,
                [(a + b) // 2 for a, b in zip(left, before)],
                [paeth(a, b, c) for a, b, c in zip(left, before, corner)],
            ][kind]
            lines.append(bytes([kind]) + bytes((value - guess[x]) % 256 for x, value in enumerate(row)))
            before = row
        return b"".join(lines)

    steps = [(0, 0, 1, 1)]
    if interlaced:
        steps = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    passes = [values[top::down, left::right] for left, top, right, down in steps]
    content = b"".join(packed(part) for part in passes if part.size)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    parts = [
        (b"IHDR", header),
        *([(b"PLTE", palette)] if palette else []),
        (b"IDAT", zlib.compress(content)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def paeth(left: int, up: int, corner: int) -> int:
    estimate = left + up - corner
    return min((left, up, corner), key=lambda value: abs(value - estimate))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def palette_picture(width: int, height: int) -> bytes:
    return file_of(rgb(width, height).quantize(50), transparency=3)


def turned(width: int, height: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return file_of(photograph(width, height), "JPEG", exif=exif, icc_profile=b"no profile", comment=b"\xff\xd9" * 9)


def with_gamma(width: int, height: int) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", struct.pack(">I", 100_000))
    return file_of(rgb(width, height), pnginfo=info)


PICTURES: dict[str, Callable[[], bytes]] = {
    "RGB, wide": lambda: file_of(rgb(301, 97)),
    "RGB, high": lambda: file_of(rgb(65, 300)),
    "RGB, enlarged": lambda: file_of(rgb(7, 5)),
    "RGB, one pixel": lambda: file_of(rgb(1, 1)),
    "RGB, as large as the model wants": lambda: file_of(rgb(64, 64)),
    "RGB, with gamma": lambda: with_gamma(90, 80),
    "RGBA": lambda: file_of(Image.fromarray(noise(150, 101, 4))),
    "LA": lambda: file_of(Image.fromarray(noise(131, 90, 2))),
    "L": lambda: file_of(Image.fromarray(noise(99, 131, 1)[..., 0])),
    "1": lambda: file_of(rgb(170, 91).convert("1")),
    "1, enlarged": lambda: file_of(rgb(17, 9).convert("1")),
    "P with transparency": lambda: palette_picture(133, 77),
    "P, enlarged": lambda: palette_picture(31, 37),
    "P of 2 bits": lambda: raw_png(noise(91, 83, 1) % 4, 2, 3, bytes(range(12))),
    "L of 2 bits": lambda: raw_png(noise(91, 83, 1) % 4, 2, 0),
    "L of 4 bits, interlaced": lambda: raw_png(noise(73, 69, 1) % 16, 4, 0, interlaced=True),
    "L of 16 bits": lambda: raw_png(noise(97, 72, 1, np.uint16), 16, 0),
    "LA of 16 bits": lambda: raw_png(noise(97, 72, 2, np.uint16), 16, 4),
    "RGB of 16 bits": lambda: raw_png(noise(97, 72, 3, np.uint16), 16, 2),
    "RGBA of 16 bits, interlaced": lambda: raw_png(noise(79, 71, 4, np.uint16), 16, 6, interlaced=True),
    "RGB, interlaced, smaller than a pass": lambda: raw_png(noise(3, 2), 8, 2, interlaced=True),
    "JPEG 4:2:0": lambda: file_of(photograph(211, 173), "JPEG", quality=80),
    "JPEG 4:4:4": lambda: file_of(photograph(120, 131), "JPEG", quality=92, subsampling=0),
    "JPEG 4:2:2, progressive": lambda: file_of(photograph(163, 90), "JPEG", subsampling=1, progressive=True),
    "JPEG of noise": lambda: file_of(rgb(140, 99), "JPEG", quality=30),
    "JPEG, grey": lambda: file_of(photograph(140, 99).convert("L"), "JPEG"),
    "JPEG, turned by EXIF": lambda: turned(140, 99),
    "WebP": lambda: file_of(photograph(160, 121), "WEBP", quality=70),
    "WebP, lossless, with EXIF and a profile": lambda: file_of(
        rgb(90, 81), "WEBP", lossless=True, exif=b"Exif\0\0x", icc_profile=b"no profile"
    ),
}


@pytest.mark.parametrize("wanted", WANTED.values(), ids=WANTED)
@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.filterwarnings("ignore:.*nearly black")
def test_pixels_are_equal(page, name, wanted):
    data = PICTURES[name]()
    found = pixels_of(page, data, wanted)
    assert found["notes"] == []
    expected = preprocess(open_image(data), 64, wanted)
    assert np.array_equal(found["pixels"], expected)


def pixels_of(page: Page, data: bytes, wanted: Pixels) -> dict[str, Any]:
    """What the page's modules make of a picture for a model of 64 x 64 pixels."""
    found = page.evaluate(
        """async ({ base64, wanted }) => {
          const [{ decode }, { preprocess }] = [await import("./picture.js"), await import("./preprocessing.js")];
          const picture = await decode(Uint8Array.from(atob(base64), (one) => one.charCodeAt(0)));
          const { pixels } = preprocess(picture, wanted);
          const bytes = new Uint8Array(pixels.buffer);
          return { notes: picture.notes, pixels: btoa(Array.from(bytes, (one) => String.fromCharCode(one)).join("")) };
        }""",
        {"base64": base64.b64encode(data).decode(), "wanted": {"resolution": 64} | vars(wanted)},
    )
    found["pixels"] = np.frombuffer(base64.b64decode(found["pixels"]), np.float32).reshape(3, 64, 64)
    return found


def test_a_changed_mean_is_noticed(page):
    data = PICTURES["RGB, wide"]()
    found = pixels_of(page, data, replace(OPENAI_PIXELS, mean=(0.4814, *OPENAI_PIXELS.mean[1:])))["pixels"]
    equal = found == preprocess(open_image(data), 64)
    assert not equal[0].any()
    assert equal[1:].all()


def test_a_dark_picture_has_a_note(page):
    choose(page, raw_png(noise(80, 70, 1, np.uint16) // 40, 16, 0))
    expect(page.locator("#notes")).to_contain_text("so it is nearly black; scale it to its whole range.")


def test_a_browser_that_decodes_otherwise_says_so(browser, address):
    """The checksums of the known pictures are Pillow's; with another, there is a note."""
    source = (PAGE / "known_pictures.js").read_text()
    known = re.findall(r"sum: (\d+),\s+base64:([^,]+),", source)
    assert len(known) == 2
    for expected, text in known:
        data = base64.b64decode("".join(re.findall(r'"(.*?)"', text)))
        hash_of = 0x811C9DC5
        for byte in open_image(data).convert("RGB").tobytes():
            hash_of = (hash_of ^ byte) * 0x01000193 % 2**32
        assert hash_of == int(expected)
    page = browser.new_page()
    other = re.sub(r"sum: \d+", "sum: 1", source)
    page.route("**/known_pictures.js", lambda route: route.fulfill(body=other, content_type="text/javascript"))
    open_page(page, address)
    found = pixels_of(page, PICTURES["JPEG 4:2:0"](), OPENAI_PIXELS)["notes"]
    page.close()
    assert found == [
        "This browser decodes JPEG otherwise than clip does, so pixels may differ by a few levels and logits by a "
        "little; save the picture as PNG for clip's own numbers."
    ]


PNG = file_of(rgb(40, 30))
BAD_PICTURES = {
    "empty": (b"", "The picture is empty; give a PNG, JPEG or WebP file."),
    "text": (b"no picture", "The file is not a picture, or its header is damaged; give a PNG, JPEG or WebP file."),
    "GIF": (file_of(rgb(9, 9), "GIF"), "The picture is a GIF, which this page does not read; save it as PNG."),
    "BMP": (file_of(rgb(9, 9), "BMP"), "The picture is a BMP, which"),
    "CMYK": (file_of(rgb(40, 30).convert("CMYK"), "JPEG"), "The picture is a JPEG in CMYK, which this page"),
    "WebP with alpha": (file_of(Image.fromarray(noise(9, 9, 4)), "WEBP"), "is a WebP that has an alpha channel, which"),
    "animated WebP": (
        file_of(rgb(9, 9), "WEBP", save_all=True, append_images=[rgb(9, 9).transpose(0)]),
        "is a WebP that is animated, which",
    ),
    "cut PNG": (PNG[:-300], "cannot be decoded whole: its part IDAT is cut short; it is cut short or damaged"),
    "wrong checksum": (PNG.replace(b"IDATx", b"IDATy"), "the checksum of its part IDAT is wrong"),
    "header behind": (
        PNG[:8] + chunk(b"tEXt", struct.pack(">II", 1, 1)) + PNG[8:],
        "its header is not where that of a PNG is; it is",
    ),
    "too few lines": (
        PNG.replace(PNG[8:33], chunk(b"IHDR", struct.pack(">II", 40, 31) + PNG[24:29])),
        "cannot be decoded whole: it ends before its last pixel; it is cut short or damaged, get the file again.",
    ),
    "too large": (
        PNG[:16] + struct.pack(">II", 30_000, 30_000) + PNG[24:],
        "The picture has 30000 x 30000 pixels; the limit is 67108864: save it in a smaller size.",
    ),
    "too narrow": (
        file_of(Image.new("L", (40_000, 1))),
        "is too long and narrow: resized to 64 along its shorter side",
    ),
    "cut JPEG": (file_of(rgb(40, 30), "JPEG")[:100], "is a JPEG without a frame; it is cut short or damaged"),
    "colour without a palette": (
        raw_png(noise(9, 9, 1) % 4, 2, 3, bytes(9)),
        "it uses a colour that its palette lacks",
    ),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_a_bad_picture_is_one_sentence(page, name):
    data, sentence = BAD_PICTURES[name]
    choose(page, CIRCLE)
    expect(page.locator("#results")).to_be_visible()
    choose(page, data)
    assert sentence in fault(page)


@pytest.mark.parametrize(
    ("labels", "template", "sentence"),
    [
        (" \n", "{}", "There are no labels; give one on each line."),
        ("a\nb\na", "{}", 'The label "a" occurs more than once; give each label once.'),
        ("a", "a photo", 'The template "a photo" has 0 places for the label; it needs one {}.'),
        ("a", "{} {}", 'The template "{} {}" has 2 places for the label; it needs one {}.'),
        (
            "a " * 90,
            "{}",
            "is too long: with start and end it has 92 tokens, and the model reads 77; shorten it, or let",
        ),
        ("x <|endoftext|>", "{}", "has <|endoftext|> in it, where a model takes a text to begin or end; remove that."),
        ("schÃ¶n", "{}", 'seems to have been read in a wrong encoding, at "Ã¶", which clip repairs'),
        ("x" * 30_001, "{}", "A text has more than 30000 characters; shorten it."),
        ("\n".join(map(str, range(1001))), "{}", "There are 1001 labels; give at most 1000."),
    ],
)
def test_bad_labels_are_one_sentence(page, labels, template, sentence):
    choose(page, CIRCLE)
    page.fill("#labels", labels)
    page.fill("#template", template)
    expect(page.locator("#fault")).to_contain_text(sentence)
    fault(page)
    page.fill("#labels", "a red circle")
    page.fill("#template", "{}")
    expect(page.locator("#fault")).to_be_hidden()
    expect(page.locator("#rows tr")).to_have_count(1)


def altered(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def alter(body: bytes) -> bytes:
        description = json.loads(body)
        change(description)
        return json.dumps(description).encode()

    return alter


@pytest.mark.parametrize(
    ("model", "file", "change", "sentence"),
    [
        (
            "absent",
            "",
            None,
            "export.json is not there (the server answered 404); put what clip export writes into the",
        ),
        ("model", "image.onnx", None, "image.onnx is not there (the server answered 404)"),
        ("model", "text.onnx", lambda body: body[:-9], "text.onnx has the SHA-256"),
        ("openai", "bpe_simple_vocab_16e6.txt.gz", None, "bpe_simple_vocab_16e6.txt.gz is not there"),
        ("openai", "bpe_simple_vocab_16e6.txt.gz", lambda body: b"x", "it is not OpenAI's file, so get that."),
        (
            "model",
            "ort.wasm.bundle.min.mjs",
            None,
            "onnxruntime-web is not there; run npm ci in the folder of this page",
        ),
        ("model", "export.json", lambda body: b"[", "export.json is not JSON; export the model again."),
        ("model", "export.json", altered(lambda told: told.update(to="openvino")), "tells of an export to openvino"),
        (
            "model",
            "export.json",
            altered(lambda told: told["files"].pop("text.onnx")),
            "The export has no text.onnx; run",
        ),
        (
            "model",
            "export.json",
            altered(lambda told: told["preprocessing"].update(resize="longest")),
            'wants "longest" as the resize of its preprocessing, and this page knows shortest and squash alone; use',
        ),
        (
            "model",
            "export.json",
            altered(lambda told: told["preprocessing"].update(in_graph=True)),
            "export it without --preprocessing.",
        ),
        (
            "model",
            "export.json",
            altered(lambda told: told["tokenizer"].update(end=5)),
            "texts end with the token 5, and",
        ),
    ],
)
def test_a_model_that_cannot_be_used_is_one_sentence(browser, address, model, file, change, sentence):
    page = browser.new_page()

    def answer(route: Any) -> None:
        if change is None:
            route.fulfill(status=404)
        else:
            route.fulfill(body=change(route.fetch().body()))

    if file:
        page.route(f"**/{file}", answer)
    page.goto(f"{address}?model={model}")
    expect(page.locator("#fault")).to_be_visible(timeout=30_000)
    assert sentence in fault(page)
    assert page.inner_text("#model") == "No model is loaded."
    page.close()


def test_a_phone_has_no_horizontal_scrolling(browser, address):
    page = browser.new_page(viewport={"width": 320, "height": 640})
    open_page(page, address)
    page.fill("#labels", "a red circle\n" + "incomprehensibilities" * 4)
    choose(page, file_of(rgb(900, 200)))
    expect(page.locator("#rows tr")).to_have_count(2)
    page.click("summary")
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    assert page.locator("#rows td").last.bounding_box()["x"] < 320 - 30
    page.close()


def test_the_keyboard_alone_is_enough(browser, address):
    page = browser.new_page()
    page.on("filechooser", lambda chooser: chooser.set_files(CIRCLE))  # before a key can open one
    open_page(page, address)
    page.keyboard.press("Tab")
    expect(page.locator("#file")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#results")).to_be_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Control+A")
    page.keyboard.type("red star\nred circle")
    page.keyboard.press("Tab")
    page.keyboard.press("Control+A")
    page.keyboard.type("a {}")
    expect(page.locator("#rows th")).to_have_text(["red circle", "red star"])
    expect(page.locator("#tokens dt")).to_have_text(["a red circle", "a red star"])
    for _ in range(2):
        page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(page.locator("#tokens")).to_be_visible()
    page.keyboard.press("Tab")
    with page.expect_download():
        page.keyboard.press("Enter")
    page.close()


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_pictures_are_dropped_and_pasted(page, event):
    choose(page, b"")
    fault(page)
    page.evaluate(
        """({ event, base64 }) => {
          const data = new DataTransfer();
          data.items.add(new File([Uint8Array.from(atob(base64), (one) => one.charCodeAt(0))], "some.png"));
          const given = { dataTransfer: data, clipboardData: data, bubbles: true };
          const made = event === "drop" ? new DragEvent(event, given) : new ClipboardEvent(event, given);
          document.body.dispatchEvent(made);
        }""",
        {"event": event, "base64": base64.b64encode(CIRCLE.read_bytes()).decode()},
    )
    assert saved(page)["picture"]["name"] == "some.png"
    assert page.get_attribute("#preview", "alt") == "The chosen picture, some.png"


def test_what_is_dropped_and_no_file_is_refused(page):
    page.evaluate(
        """() => {
          const dataTransfer = new DataTransfer();
          dataTransfer.setData("text/plain", "words");
          document.body.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
        }"""
    )
    assert fault(page) == "What was dropped is no file; save the picture, and choose its file."


def test_the_page_runs_no_text_and_asks_no_other_server(browser, address):
    """By its Content-Security-Policy, which its worker obeys as well."""
    source = "".join(path.read_text() for path in [*PAGE.glob("*.js"), PAGE / "index.html"])
    assert not re.search(r"\beval\(|new Function|innerHTML|insertAdjacentHTML|document\.write|https?://", source)
    probe = """
      const refused = [];
      const told = (directive) => (document.title = refused.push(directive) && refused.sort().join(" "));
      addEventListener("securitypolicyviolation", ({ effectiveDirective }) => told(effectiveDirective));
      const code = `
        const told = ({ effectiveDirective }) => postMessage("worker's " + effectiveDirective);
        addEventListener("securitypolicyviolation", told);
        fetch("http://127.0.0.2:9/").catch(() => {});`;
      const blob = new Blob([code], { type: "text/javascript" });
      const worker = new Worker(URL.createObjectURL(blob), { type: "module" });
      worker.onmessage = ({ data }) => told(data);
      fetch("http://127.0.0.2:9/").catch(() => {});
      try { (0, eval)("document.title = 'run'"); } catch { }
    """
    page = browser.new_page()
    page.route("**/probe.js", lambda route: route.fulfill(body=probe, content_type="text/javascript"))
    open_page(page, address)
    page.evaluate("import('./probe.js')")
    expect(page).to_have_title("connect-src script-src worker's connect-src")
    page.close()


def test_versions_are_pinned_without_an_address():
    lock = json.loads((PAGE / "package-lock.json").read_text())
    wanted = json.loads((PAGE / "package.json").read_text())["dependencies"]
    assert wanted == {"onnxruntime-web": lock["packages"]["node_modules/onnxruntime-web"]["version"]}
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert all(package["integrity"].startswith("sha512-") for package in packages.values())
    assert not any("resolved" in package for package in packages.values())
