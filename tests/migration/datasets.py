"""Data in the layouts of the other projects; each picture and its caption tell their number."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from PIL import Image

import converters
from clip_core.architecture import Architecture
from clip_core.initialize import initialize
from clip_core.pixels import DEVIATION, MEAN
from clip_core.text.bpe import BytePairTokenizer
from clip_core.text.bpe_training import HEADER
from converters import ModelFile
from tests.data.numbered import save, shard

ROOT = Path(__file__).parents[2]
PICTURES = 256
TOKENIZER = BytePairTokenizer(HEADER)  # letter by letter
TINY = {
    "embed_dim": 16,
    "image": {"kind": "vit", "resolution": 32, "patch": 32, "width": 64, "layers": 1, "heads": 1},
    "text": {"context_length": 32, "vocabulary_size": 514, "width": 64, "layers": 1, "heads": 1},
    "activation": "quick_gelu",
}


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (12, 8), (16 * (number % 16) + 8, 16 * (number // 16) + 8, 128))


def ramp(width: int) -> Image.Image:
    """32 rows of pixels that tell their column by red and their row by green."""
    rows, columns = np.mgrid[:32, :width]
    return Image.fromarray(np.stack([4 * columns, 4 * rows, 0 * rows], axis=-1).astype(np.uint8))


def number_in(pixels: np.ndarray) -> int:
    """Of normalised pixels [3, r, r]."""
    red, green, _ = (pixels.mean(axis=(1, 2)) * DEVIATION + MEAN) * 255
    return round((red - 8) / 16) + 16 * round((green - 8) / 16)


def caption_in(tokens: np.ndarray) -> str:
    return TOKENIZER.decode(tokens[1 : tokens.tolist().index(TOKENIZER.end)]).replace(" ", "")


def table(columns: tuple[str, str], rows: list[tuple[str, str]], separator: str) -> str:
    return "".join(separator.join(row) + "\n" for row in [columns, *rows])


def write_data(root: Path) -> None:
    """The same pictures in each layout, the small model's weights, and this project's recipes."""
    encoded = []
    for number in range(PICTURES):
        stream = io.BytesIO()
        picture(number).save(stream, "JPEG", quality=95)
        encoded.append(stream.getvalue())
    for folder in ("pictures", "classes/one", "classes/two"):
        (root / folder).mkdir(parents=True)
    for number, bytes_ in enumerate(encoded):
        (root / "pictures" / f"{number}.jpg").write_bytes(bytes_)
        (root / "pictures" / f"{number}.txt").write_text(f"n{number}\n")
    for number in range(8):
        (root / "classes" / ("one", "two")[number % 2] / f"{number}.jpg").write_bytes(encoded[number])
    (root / "names.txt").write_text("tench\ngoldfish\n")

    numbers, names = range(PICTURES), [f"{number}.jpg" for number in range(PICTURES)]
    rows = [(name, f"n{number}") for number, name in enumerate(names)]
    turned = [(text, name) for name, text in rows]
    (root / "listed").mkdir()
    for name in names:
        (root / "listed" / name).symlink_to(root / "pictures" / name)
    (root / "listed" / "cc.csv").write_text(table(("filepath", "title"), rows, "\t"))
    (root / "WKIT_local.csv").write_text(table(("Q", "IMG"), turned, ","))
    (root / "query.csv").write_text(table(("query", "image"), turned, ","))

    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    texts = [{"image_id": number, "caption": f"n{number}"} for number in numbers]
    (root / "coco.json").write_text(json.dumps({"images": images, "annotations": texts}))
    entries = [{"image_id": str(number), "caption_str": f"n{number}"} for number in numbers]
    (root / "textcaps.json").write_text(json.dumps({"data": entries}))
    lists = {"urls": [f"http://static.example/{name}" for name in names], "captions": [text for _, text in rows]}
    for kind, lines in lists.items():
        (root / f"SBU_captioned_photo_dataset_{kind}.txt").write_text("\n".join(lines) + "\n")

    labels = [f"n{number}" for number in numbers]
    stored = [[base64.b64encode(bytes_).decode()] for bytes_ in encoded]
    save(root / "m3it" / "train", [pyarrow.table({"image_base64_str": stored, "outputs": labels})])
    stored = [{"bytes": bytes_, "path": None} for bytes_ in encoded]
    save(root / "saved" / "train", [pyarrow.table({"image": stored, "caption": labels})])
    for folder in ("m3it", "saved"):
        (root / folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    for number in range(2):
        members = []
        for own in numbers[number::2]:
            metadata = json.dumps({"caption": f"n{own}"}).encode()
            members += [(f"{own:09}.jpg", encoded[own]), (f"{own:09}.txt", f"n{own}".encode())]
            members += [(f"{own:09}.json", metadata)]
        shard(root / f"{number:05}.tar", members)
    for folder, width in (("wide", 48), ("square", 32)):
        (root / folder).mkdir()
        for number in range(8):
            ramp(width).save(root / folder / f"{number}.png")
            (root / folder / f"{number}.txt").write_text(f"n{number}\n")
    rows[7] = ("7.jpg", "")
    (root / "one-fault.csv").write_text(table(("filepath", "title"), rows, "\t"))
    rows[8:16] = [("8.jpg", "")] * 8
    (root / "many-faults.csv").write_text(table(("filepath", "title"), rows, "\t"))

    (root / "configs").symlink_to(ROOT / "configs")
    weights = initialize(Architecture.from_dict(TINY), 99)
    weights["logit_scale"] = np.array(np.log(20.0), np.float32)
    for name in ("ViT-B-32.h5", "ViT-B-32.pdparams", "weights.safetensors"):
        converters.write(ModelFile(weights, Architecture.from_dict(TINY), vocabulary=HEADER), root / name)


def places(data: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Where FILE and DIR are for a source, or for pictures with classes."""
    tables = {"title": data / "listed" / "cc.csv", "Q": data / "WKIT_local.csv", "query": data / "query.csv"}
    folder = {"m3it": data / "m3it", "saved": data / "saved", "sbu": data, "paired": data / "pictures"}
    source = settings.get("source", "folders")
    return {
        "file": tables.get(settings.get("caption_column", "title")),
        "annotations": data / f"{source}.json",
        "images": data / "pictures",
        "folder": folder.get(source, data / "classes"),
        "names": data / "names.txt",
        "shards": data,
    }


def filled(settings: Any, data: Path, number: int) -> Any:
    """The same with something in place of FILE, DIR and N."""
    if isinstance(settings, list):
        return [filled(item, data, number) for item in settings]
    if not isinstance(settings, dict):
        return number if settings == "N" else settings
    found = {key: filled(value, data, number) for key, value in settings.items()}
    for key, place in places(data, settings).items():
        if isinstance(found.get(key), str):
            found[key] = re.sub(r"\b(FILE|DIR)\b", str(place), found[key])
    return found
