"""``clip evaluate`` in rows of docs/migrating.md: small sets as they are published, and scores by the reference."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression

import converters
from backends.numpy import CLIP as Reference
from clip_core.architecture import Architecture
from clip_core.evaluation.sets import SETS
from clip_core.image import open_image
from clip_core.initialize import initialize
from clip_core.preprocess import preprocess
from clip_core.similarity import normalize
from clip_core.text.bpe_training import HEADER
from converters import ModelFile
from tests.evaluation import layouts
from tests.migration.datasets import TINY, TOKENIZER
from tests.migration.document import Row
from tests.migration.trainings import Trainings

PAIRS = [("a cat", "a cat sits", 4.5), ("a dog", "an aeroplane", 1.0), ("snow", "it snows", 4.0), ("one", "two", 2.0)]
IMAGENET = [f"n{1440764 + 7 * number:08}" for number in range(1000)]


def published(data: Path, kind: str) -> Path:
    """The folder of a small set in its published layout, which is made once."""
    folder = data / "published" / kind
    if not folder.exists():
        layouts.write(folder, _FILES[kind]())
    return folder


def _cifar10() -> dict[str, bytes]:
    """Photographs with labels in turn: each of ten classes has two for the test and four for training."""
    rows = [
        bytes([number % 10]) + layouts.values([(picture, 0)]).tobytes()
        for number, (picture, _) in enumerate(layouts.photographs("cifar10"))
    ]
    trained = 2 * rows
    parts = {f"data_batch_{part + 1}.bin": b"".join(trained[8 * part : 8 * part + 8]) for part in range(5)}
    return {**parts, "test_batch.bin": b"".join(rows), "batches.meta.txt": "\n".join(layouts.CIFAR10).encode()}


def _imagenet(folders: list[str]) -> dict[str, bytes]:
    """A picture for each class."""
    photographs = [layouts.jpeg(picture) for picture, _ in layouts.photographs("imagenet")]
    return {f"{folder}/{number:04}.JPEG": photographs[number % 20] for number, folder in enumerate(folders)}


def _caltech101() -> dict[str, bytes]:
    """Five pictures for each of four folders, of which one is the background."""
    photographs = [layouts.jpeg(picture) for picture, _ in layouts.photographs("imagenet")]
    folders = ("BACKGROUND_Google", "accordion", "airplanes", "wild_cat")
    return {
        f"101_ObjectCategories/{folders[number % 4]}/image_{number:04}.jpg": picture
        for number, picture in enumerate(photographs)
    }


def _retrieval() -> dict[str, bytes]:
    """COCO's layout: ten photographs with two captions each."""
    names = [f"{number}.jpg" for number in range(10)]
    photographs = dict(zip(names, (layouts.jpeg(picture) for picture, _ in layouts.photographs("imagenet"))))
    captions = [(number, f"photograph {number}, {word}") for number in range(10) for word in ("one", "two")]
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    annotations = [{"image_id": number, "caption": caption} for number, caption in captions]
    content = json.dumps({"images": images, "annotations": annotations}).encode()
    files = {f"val2017/{name}": picture for name, picture in photographs.items()}
    return {**files, "annotations/captions_val2017.json": content}


def _sick() -> dict[str, bytes]:
    lines = ["pair_ID\tsentence_A\tsentence_B\trelatedness_score\tSemEval_set"]
    lines += [f"{number}\t{one}\t{two}\t{score}\tTEST" for number, (one, two, score) in enumerate(PAIRS)]
    return {"SICK.txt": "\n".join(lines).encode()}


def _sts(year: int) -> dict[str, bytes]:
    sentences = "".join(f"{one}\t{two}\n" for one, two, _ in PAIRS).encode()
    scores = "".join(f"{score}\n" for *_, score in PAIRS).encode()
    folder = f"STS{year}-en-test"
    return {f"{folder}/STS.input.headlines.txt": sentences, f"{folder}/STS.gs.headlines.txt": scores}


def _wds() -> dict[str, bytes]:
    samples = {}
    for number, (picture, label) in enumerate(layouts.photographs("cifar10")):
        samples |= {f"s{number:07}.webp": layouts.encoded(picture, "WEBP"), f"s{number:07}.cls": str(label).encode()}
    return {
        "classnames.txt": "\n".join(layouts.CIFAR10).encode(),
        "zeroshot_classification_templates.txt": b"a photo of a {c}.\n",
        "test/nshards.txt": b"1",
        "test/0.tar": layouts.tar(samples),
    }


_FILES = {
    "imagenet": lambda: _imagenet(IMAGENET),
    "imagenetv2": lambda: _imagenet([str(number) for number in range(1000)]),
    "cifar10": _cifar10,
    "stl10": layouts.stl10,
    "mnist": lambda: layouts.mnist("mnist"),
    "caltech101": _caltech101,
    "wds": _wds,
    "coco": _retrieval,
    "sick": _sick,
    **{f"sts{year}": partial(_sts, year) for year in range(12, 17)},
}
MODEL = "scored.safetensors"
LISTS = {
    "NAMES": ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
    "TEMPLATES": ["a {}.", "the {}!"],
}


class Scorer:
    """A small model with room for all prompts, whose file the rows' commands are given, and its scores."""

    def __init__(self, file: Path) -> None:
        architecture = Architecture.from_dict(TINY | {"text": TINY["text"] | {"context_length": 77}})
        weights = initialize(architecture, 99)
        if not file.exists():
            converters.write(ModelFile(weights, architecture, vocabulary=HEADER), file)
        self.model = Reference(architecture, weights, precision="fp64")

    def images(self, pictures: Iterable[Image.Image], at_length_1: bool = True) -> np.ndarray:
        found = self.model.encode_image(np.stack([preprocess(picture, 32) for picture in pictures]))
        return normalize(found) if at_length_1 else found

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        return normalize(self.model.encode_text(TOKENIZER.tokenize(texts, 77)))

    def zero_shot(self, kind: str, folder: Path, keys: Mapping[str, Any]) -> dict[str, float]:
        """Top-k by class weights of length 1."""
        labelled = SETS[kind].model_validate({"kind": kind, "folder": str(folder), **keys}).labelled()
        pictures, labels = zip(*(labelled[index] for index in range(len(labelled))))
        weights = normalize(np.stack([self.texts(prompts).mean(axis=0) for prompts in labelled.prompts]))
        cosines = self.images(pictures) @ weights.T
        ranks = (cosines > cosines[np.arange(len(labels)), labels][:, None]).sum(axis=1)
        return {f"top{k}": np.mean(ranks < k) for k in (1, 5, 10) if k < len(weights)}

    def retrieval(self, folder: Path) -> dict[str, float]:
        content = json.loads((folder / "annotations" / "captions_val2017.json").read_text())
        images = self.images(open_image(folder / "val2017" / each["file_name"]) for each in content["images"])
        texts = self.texts([each["caption"] for each in content["annotations"]])
        owners = np.array([each["image_id"] for each in content["annotations"]])
        cosines = images @ texts.T
        return {
            "image_to_text_recall_at_1": np.mean(owners[cosines.argmax(axis=1)] == np.arange(len(images))),
            "text_to_image_recall_at_1": np.mean(cosines.argmax(axis=0) == owners),
        }

    def sentences(self) -> dict[str, float]:
        one, two, people = zip(*PAIRS)
        cosines = (self.texts(one) * self.texts(two)).sum(axis=1)
        return {"spearman": spearmanr(cosines, people)[0], "pearson": np.corrcoef(cosines, people)[0, 1]}


def small(command: str, folder: Path) -> str:
    """A command of the document on a folder, with the small model."""
    words = re.sub(r"\bDIR\b", str(folder), command.removeprefix("clip "))
    return f"{re.sub(r'--model [^ ]+', f'--model {MODEL}', words)} --backend torch"


def scored(row: Row, train: Trainings) -> None:
    """Each command of the row gives the scores that follow from the reference's features."""
    scorer = Scorer(train.data / MODEL)
    for name, lines in LISTS.items():
        (train.data / name).write_text("\n".join(lines))
    commands = [code for code in row.codes if code.startswith("clip evaluate ")]
    assert commands
    for command in commands:
        kind = command.split()[2]
        folder = published(train.data, kind)
        if kind.startswith("imagenet"):  # two templates for each of 1,000 classes, in place of many
            command = re.sub("--templates (openai|low-resource)", "--templates TEMPLATES", command)
        run = train.command(f"{small(command, folder)} --workers 0 --json")
        (found,) = json.loads(run.out)["results"].values()
        if kind in SETS:
            expected = scorer.zero_shot(
                kind, folder, dict(re.findall("--(names|templates|background) ([^ ]+)", command))
            )
        else:
            expected = scorer.retrieval(folder) if kind == "coco" else scorer.sentences()
        for name, value in expected.items():
            assert found["scores"][name]["value"] == pytest.approx(value, abs=1e-5), (command, name)


def probed(row: Row, train: Trainings) -> None:
    """scikit-learn's regression on the features of the training pictures, with the C that was chosen."""
    scorer, folder = Scorer(train.data / MODEL), published(train.data, "cifar10")
    run = train.command(f"{small(row.command, folder)} --json")
    (found,) = json.loads(run.out)["results"].values()
    images, labels = {}, {}
    for split in ("train", "test"):
        labelled = SETS["cifar10"].model_validate({"kind": "cifar10", "folder": str(folder), "split": split}).labelled()
        pictures, labels[split] = zip(*(labelled[index] for index in range(len(labelled))))
        images[split] = scorer.images(pictures, at_length_1=False)
    fitted = LogisticRegression(C=found["C"], max_iter=1000).fit(images["train"], labels["train"])
    assert found["fitted_pictures"] == len(labels["train"]) == 40
    assert found["scores"]["top1"]["value"] == pytest.approx(fitted.score(images["test"], labels["test"]))


def told_nearest(row: Row, train: Trainings) -> None:
    """The cosine of each picture with each text, and the drawing of them."""
    scorer, folder, plot = Scorer(train.data / MODEL), Path(f"{train.folder()}-pictures"), Path(f"{train.folder()}.png")
    texts = ["an apple fruit", "a piece of paper that says apple on it"]
    pictures = [picture.convert("RGB") for picture, _ in layouts.photographs("imagenet")[:3]]
    files = {f"{number}.png": layouts.encoded(picture, "PNG") for number, picture in enumerate(pictures)}
    layouts.write(folder, files)
    in_folder = "--texts-file" not in row.command
    layouts.write(folder if in_folder else train.data, {"texts.txt": "\n".join(texts).encode()})
    run = train.command(f"{small(row.command, folder).replace('FILE.png', str(plot))} --json")
    found = json.loads(run.out)
    (of_backend,) = found["backends"].values() if "backends" in found else [found]
    expected = scorer.images(pictures) @ scorer.texts(of_backend["texts"]).T
    np.testing.assert_allclose(of_backend["cosines"], expected, atol=1e-5)
    with Image.open(plot) as drawn:
        assert (drawn.format, min(drawn.size) > 200) == ("PNG", True)


def classified(row: Row, train: Trainings) -> None:
    """The softmax over the texts of a picture."""
    scorer, file = Scorer(train.data / MODEL), train.data / "picture.png"
    picture = layouts.photographs("imagenet")[0][0].convert("RGB")
    picture.save(file)
    words = re.sub(r"--model [^ ]+", f"--model {MODEL}", row.command.removeprefix("clip "))
    run = train.command(f"{words.replace('PICTURE.png', str(file))} --json")
    cosines = scorer.images([picture]) @ scorer.texts(["a dog", "a cat"]).T
    expected = softmax(cosines / 0.07)[0]
    (found,) = json.loads(run.out)
    assert list(found["probabilities"].values()) == pytest.approx(expected, abs=1e-5)
