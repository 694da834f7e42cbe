"""Scores while a model is trained: right by hand, the same in every framework, and without a trace in the training."""

from __future__ import annotations

import random
from math import exp, log, log1p
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clip_core
import converters
from clip_core.data.families import Shapes
from clip_core.data.shapes import TrainingSet
from clip_core.errors import ClipError
from clip_core.evaluation.sets import SETS
from clip_core.initialize import initialize
from clip_core.naming import Weights
from clip_core.pixels import DEVIATION, MEAN
from clip_core.text.bpe import BytePairTokenizer
from clip_core.training.evaluation import Evaluator
from clip_core.training.loop import train
from clip_core.training.recipe import Recipe
from clip_core.training.run_log import EVALUATION, read_metrics
from clip_core.training.trainable import with_initial_scale
from tests.data.numbered import SMALL, STEP, TOKENIZER, write_picture
from tests.requested import load_backend
from tests.training.tiny import TINY, tiny_data, tiny_recipe, tiny_trainer
from tests.world import known

PACKAGED = Path(clip_core.__file__).parent / "resources" / "shapes.safetensors"


class Known:
    """A model whose features are written down: by the number that a picture shows, and by the text."""

    architecture = SMALL

    def __init__(self, images: Any, texts: dict[str, Any], bias: float = 0.0) -> None:
        self.images, self.texts = np.array(images, np.float32), texts
        self.weights: Weights = {"logit_scale": np.array(log(10), np.float32), "logit_bias": np.array(bias, np.float32)}
        self.sizes: list[int] = []

    def export(self) -> Weights:
        return dict(self.weights)

    def load(self, weights, source="") -> None:
        self.weights = dict(weights)

    def embed_image(self, pixels):
        self.sizes.append(len(pixels))
        red = (pixels[:, 0, 8, 8] * DEVIATION[0] + MEAN[0]) * 255
        return self.images[np.rint(red / STEP).astype(int)]

    def embed_text(self, tokens):
        words = [TOKENIZER.decode(row[1 : row.tolist().index(TOKENIZER.end)]).replace(" ", "") for row in tokens]
        return np.array([self.texts[word] for word in words], np.float32)


class Training:
    """A trainer of which only the weights and their moving average are asked for."""

    def __init__(self, model: Any, average: Weights | None = None) -> None:
        self.model, self._average = model, average

    def average(self) -> Weights | None:
        return self._average


def recipe(architecture: Any = SMALL, loss: dict[str, Any] | None = None, **evaluation: Any) -> Recipe:
    return Recipe.parse(
        {
            "model": {"architecture": architecture if isinstance(architecture, str) else architecture.to_dict()},
            "training": {"steps": 1, "seed": 3},
            "loss": loss or {},
            "evaluation": {"every_steps": 1} | evaluation,
        },
        "r.yaml",
    )


# Pictures 0, 1 and 2. The first has two captions: a, which is nearer to picture 1, and b. Those of the other two are c,
# nearer to picture 2, and d.
PAIRS = [(0, "a"), (0, "b"), (1, "c"), (2, "d")]
IMAGES = np.eye(3)
TEXTS = {"a": [0.6, 0.8, 0], "b": [1, 0, 0], "c": [0, 0.6, 0.8], "d": [0, 0, 1]}


@pytest.fixture
def pairs(tmp_path) -> dict[str, Any]:
    for number in range(3):
        write_picture(tmp_path / f"{number}.png", number)
    rows = "".join(f"{number}.png\t{caption}\n" for number, caption in PAIRS)
    (tmp_path / "pairs.tsv").write_text("filepath\ttitle\n" + rows)
    return {"kind": "table", "file": str(tmp_path / "pairs.tsv")}


@pytest.mark.parametrize(
    ("rows", "of_images", "of_texts"),
    [
        ([(0, "a"), (1, "A"), (2, "d")], (1, 1), 1),  # a is right for pictures 0 and 1, and they for it
        # Picture 0 has a, then p: one text, however often it is a caption of picture 1. p lies nearer to picture 2.
        ([(0, "p"), *[(1, "a")] * 6, (2, "d")], (2 / 3, 1), 7 / 8),
    ],
)
def test_captions_with_the_same_tokens_are_one_text(rows, of_images, of_texts, pairs):
    lines = "".join(f"{number}.png\t{caption}\n" for number, caption in rows)
    Path(pairs["file"]).write_text("filepath\ttitle\n" + lines)
    model = Known(IMAGES, TEXTS | {"p": [0.5, 0, 0.75**0.5]})
    scores = Evaluator(recipe(retrieval=pairs, batch_size=2), TOKENIZER)(Training(model))
    assert (scores["image_to_text_recall_at_1"], scores["image_to_text_recall_at_5"]) == of_images
    assert scores["text_to_image_recall_at_1"] == of_texts


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_and_recall_of_known_features(pairs, reduction):
    what = recipe(loss={"reduction": reduction}, retrieval=pairs, batch_size=2)
    scores = Evaluator(what, TOKENIZER)(Training(Known(IMAGES, TEXTS)))
    # The one full batch has pictures 0 and 1 with captions a and c: 10 times the cosines 0.6, 0 and 0.8, 0.6.
    assert scores.pop("validation_loss") == pytest.approx((log1p(exp(-6)) + log1p(exp(2))) / 2, rel=1e-6)
    assert scores == {
        "image_to_text_recall_at_1": 2 / 3,  # picture 1 has a, then c
        "image_to_text_recall_at_5": 1,
        "text_to_image_recall_at_1": 2 / 4,  # a and c lie nearer to other pictures
        "text_to_image_recall_at_5": 1,
        "faults": 0,
    }


def test_the_sigmoid_loss_of_known_features(pairs):
    what = recipe(loss={"kind": "sigmoid"}, retrieval=pairs, batch_size=2)
    scores = Evaluator(what, TOKENIZER)(Training(Known(IMAGES, TEXTS, bias=-3)))
    expected = log1p(exp(-3)) + log1p(exp(-3)) + log1p(exp(-3)) + log1p(exp(5))  # margins 3, 3, 3 and -5
    assert scores["validation_loss"] == pytest.approx(expected / 2, rel=1e-6)


def test_top1_and_top5_of_known_features(tmp_path):
    for number, name in enumerate("abcdef"):
        write_picture(tmp_path / name / "x.png", number)
    order = [6, 5, 4, 3, 2, 1]  # class a is the nearest to every picture, class f the sixth
    model = Known([order] * 6, {f"aphotoofa{name}.": row for name, row in zip("abcdef", np.eye(6))})
    scores = Evaluator(recipe(zero_shot={"folder": str(tmp_path)}), TOKENIZER)(Training(model))
    assert scores == {"zero_shot_top1": 1 / 6, "zero_shot_top5": 5 / 6, "faults": 0}


def test_scores_that_every_model_has_are_said(pairs, tmp_path):
    classes = tmp_path / "classes"
    for number in range(5):
        write_picture(classes / f"{number}/x.png", number)
    few = Evaluator(recipe(retrieval=pairs, zero_shot={"folder": str(classes)}, batch_size=2), TOKENIZER)
    assert few.cautions == [
        f"evaluation.retrieval has {len(IMAGES)} pictures, so each is among the nearest five.",
        "evaluation.zero_shot has 5 classes, so zero_shot_top5 is 1 for every model.",
    ]
    write_picture(classes / "5/x.png", 5)
    assert Evaluator(recipe(zero_shot={"folder": str(classes)}), TOKENIZER).cautions == []


def test_the_first_examples_count_batch_by_batch(pairs, tmp_path):
    model = Known(IMAGES, TEXTS)
    scores = Evaluator(recipe(retrieval=pairs, batch_size=1, examples=2), TOKENIZER)(Training(model))
    assert model.sizes == [1, 1]
    assert scores["validation_loss"] == 0  # a picture alone has no other caption to be taken for
    assert scores["image_to_text_recall_at_1"] == 1 / 2
    assert scores["text_to_image_recall_at_1"] == 2 / 3  # c has lost picture 2


def test_the_average_is_scored_as_well_and_leaves_no_trace(pairs):
    model = Known(IMAGES, TEXTS)
    before = model.export()
    average = before | {"logit_scale": np.array(log(20), np.float32)}
    scores = Evaluator(recipe(retrieval=pairs, batch_size=2), TOKENIZER)(Training(model, average))
    assert scores["validation_loss"] == pytest.approx((log1p(exp(-6)) + log1p(exp(2))) / 2, rel=1e-6)
    assert scores["average_validation_loss"] == pytest.approx((log1p(exp(-12)) + log1p(exp(4))) / 2, rel=1e-6)
    own = {name for name in scores if not name.startswith("average_")}
    assert {name for name in scores if name.startswith("average_")} == {f"average_{name}" for name in own - {"faults"}}
    assert model.weights == before


def test_own_weights_come_back_when_scoring_the_average_fails(pairs, tmp_path):
    class Failing(Known):
        def embed_text(self, tokens):
            if self.weights["logit_scale"] == 0:
                raise ClipError("the average cannot be used")
            return super().embed_text(tokens)

    model = Failing(IMAGES, TEXTS)
    before = model.export()
    evaluator = Evaluator(recipe(retrieval=pairs, batch_size=2), TOKENIZER)
    with pytest.raises(ClipError, match="the average cannot be used"):
        evaluator(Training(model, before | {"logit_scale": np.array(0, np.float32)}))
    assert model.weights == before


def test_faulty_pictures_are_counted_and_left_out(pairs, tmp_path):
    (tmp_path / "0.png").write_bytes(b"no picture")
    for path, number in (("classes/a/x.png", 1), ("classes/a/y.png", 2), ("classes/b/z.png", 0)):
        write_picture(tmp_path / path, number)
    (tmp_path / "classes" / "a" / "y.png").write_bytes(b"")
    texts = TEXTS | {"aphotoofaa.": [0, 1, 0], "aphotoofab.": [0, 0, 1]}
    what = recipe(retrieval=pairs, zero_shot={"folder": str(tmp_path / "classes")}, batch_size=2)
    scores = Evaluator(what, TOKENIZER)(Training(Known(IMAGES, texts)))
    assert scores["faults"] == 2
    assert scores["image_to_text_recall_at_1"] == 1  # without caption a, picture 1 finds c
    assert scores["text_to_image_recall_at_1"] == 1 / 2
    assert scores["zero_shot_top1"] == 1 / 2  # the picture of class b shows number 0, as near to a as to b


@pytest.mark.parametrize("size", [2, 3])
def test_too_few_usable_pairs_are_refused_before_training(pairs, tmp_path, size):
    for number in range(size):
        (tmp_path / f"{number}.png").unlink()
    message = rf"evaluation.retrieval has {3 - size} examples that can be used, out of 3, and needs 2.*{size - 1}\.png"
    with pytest.raises(ClipError, match=message):
        Evaluator(recipe(retrieval=pairs, batch_size=2), TOKENIZER)


def test_data_that_is_spoilt_during_training_ends_it(pairs, tmp_path):
    evaluator = Evaluator(recipe(retrieval=pairs, batch_size=2), TOKENIZER)
    for number in range(3):
        (tmp_path / f"{number}.png").unlink()
    with pytest.raises(ClipError, match=r"evaluation.retrieval has 0 examples that can be used"):
        evaluator(Training(Known(IMAGES, TEXTS)))


def test_classes_without_a_usable_picture_are_refused_before_training(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"no picture")
    with pytest.raises(ClipError, match=r"evaluation.zero_shot has 0 examples.*x\.png"):
        Evaluator(recipe(zero_shot={"folder": str(tmp_path)}), TOKENIZER)


def test_a_prompt_with_a_special_token_names_its_class(tmp_path):
    write_picture(tmp_path / "red &lt;|endoftext|&gt; or blue" / "x.png", 0)
    with pytest.raises(
        ClipError,
        match=r"has a class with the prompt 'a photo of a red &lt;.*: the text has <\|endoftext\|> in it, where",
    ):
        Evaluator(recipe(zero_shot={"folder": str(tmp_path)}), TOKENIZER)


def test_a_prompt_that_is_too_long_names_its_class(tmp_path):
    write_picture(tmp_path / ("long" * 20) / "x.png", 0)
    with pytest.raises(
        ClipError, match=r"evaluation.zero_shot has a class with the prompt 'a photo of a long.*too long"
    ):
        Evaluator(recipe(zero_shot={"folder": str(tmp_path)}), TOKENIZER)


def test_drawn_pairs_are_none_that_a_run_trains_on():
    opened: list[int] = []

    class Noted(Shapes):
        def open(self, seed: int) -> TrainingSet:
            opened.append(seed)
            return super().open(seed)

    what = recipe(retrieval={"kind": "shapes", "examples": 4}, batch_size=4)
    noted = what.evaluation.model_copy(update={"retrieval": Noted(examples=4)})
    Evaluator(what.model_copy(update={"evaluation": noted}), TOKENIZER)
    assert opened == [what.training.seed + 2**32]  # the seed of a run is below 2**32
    shown = {TrainingSet(opened[0], 4)[index].picture.tobytes() for index in range(4)}
    assert not shown & {TrainingSet(what.training.seed, 4)[index].picture.tobytes() for index in range(4)}


def test_a_recipe_with_evaluation_survives_writing_and_reading(pairs, tmp_path):
    what = recipe(retrieval=pairs, zero_shot={"kind": "food101", "folder": "f"}, examples=7)
    what.write(tmp_path / "r.yaml")
    assert Recipe.read(tmp_path / "r.yaml") == what
    written = what.model_dump(mode="json")["evaluation"]
    assert (written["examples"], written["batch_size"]) == (7, 128)
    assert written["retrieval"] == pairs | {
        "images": None,
        "image_column": "filepath",
        "caption_column": "title",
        "separator": "\t",
    }
    assert written["zero_shot"] == {
        "kind": "food101",
        "folder": "f",
        "split": "test",
        "templates": None,
        "names": None,
    }


def test_sections_of_before_call_the_kind_source(pairs):
    now = recipe(retrieval=pairs, zero_shot={"kind": "folders", "folder": "f"})
    before = {"source": pairs["kind"], "file": pairs["file"]}
    assert recipe(retrieval=before, zero_shot={"folder": "f"}) == now
    assert recipe(retrieval=before, zero_shot={"source": "folders", "folder": "f"}) == now


def test_without_a_section_there_is_nothing_to_score():
    what = tiny_recipe()
    assert what.evaluation is None
    with pytest.raises(ClipError, match="has no section evaluation"):
        Evaluator(what, TOKENIZER)


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        (
            {},
            "evaluation: there is nothing to score the model on; give evaluation.retrieval, evaluation.zero_shot or ",
        ),
        ({"every_steps": 0}, "evaluation.every_steps is 0"),
        ({"retreival": {}}, "there is no key evaluation.retreival; did you mean evaluation.retrieval?"),
        ({"retrieval": {"file": "f"}}, "the key evaluation.retrieval.kind is missing"),
        ({"retrieval": {"kind": "tabel"}}, "evaluation.retrieval.kind is 'tabel'; choose one of shapes, table"),
        ({"retrieval": {"kind": "table"}}, "the key evaluation.retrieval.file is missing"),
        (
            {"retrieval": {"kind": "coco", "annotation": "f"}},
            "there is no key evaluation.retrieval.annotation; did you mean evaluation.retrieval.annotations?",
        ),
        ({"zero_shot": {}}, "the key evaluation.zero_shot.folder is missing"),
        (
            {"zero_shot": {"kind": "folder"}},
            f"evaluation.zero_shot.kind is 'folder'; choose one of {', '.join(SETS)}.",
        ),
        (
            {"zero_shot": {"folder": "f", "templats": ["a {}"]}},
            "there is no key evaluation.zero_shot.templats; did you mean evaluation.zero_shot.templates?",
        ),
        (
            {"zero_shot": {"kind": "shapes", "pictures": 3}},
            "there is no key evaluation.zero_shot.pictures; did you mean evaluation.zero_shot.pictures_per_class?",
        ),
        ({"zero_shot": {"folder": "f", "templates": ["a {}", "b"]}}, "evaluation.zero_shot.templates.1 is 'b'"),
        ({"zero_shot": {"folder": "f", "templates": []}}, "evaluation.zero_shot.templates is []"),
        ({"retrieval": "coco"}, "evaluation.retrieval is 'coco'"),
    ],
)
def test_a_fault_in_the_section_names_the_key(evaluation, message):
    with pytest.raises(ClipError) as caught:
        recipe(**evaluation)
    assert str(caught.value).startswith("r.yaml: ")
    assert message in str(caught.value)


DRAWN_PAIRS = {"retrieval": {"kind": "shapes", "examples": 40}, "batch_size": 20}
DRAWN_CLASSES = {"zero_shot": {"kind": "shapes", "pictures_per_class": 2}}


class Guessing:
    """A model whose features are sums of its inputs, weighted at random."""

    architecture = SMALL

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)
        self.pixels, self.tokens = (self.generator.standard_normal((n, 4)) for n in (3 * 16 * 16, 48))

    def export(self) -> Weights:
        return {"logit_scale": np.zeros((), np.float32)}

    def embed_image(self, pixels):
        return (pixels.reshape(len(pixels), -1) @ self.pixels).astype(np.float32)

    def embed_text(self, tokens):
        return (np.sin(tokens) @ self.tokens).astype(np.float32)


def test_held_out_combinations_score_as_in_the_evaluation_of_shapes():
    zero_shot = {"kind": "shapes", "pictures_per_class": 15}
    found = Evaluator(recipe(zero_shot=zero_shot), TOKENIZER)(Training(Guessing()))["held_out_top1"]
    assert found == known(Guessing(), TOKENIZER, pictures_per_class=15, scenes=2)["held_out_top1"]
    assert 0 < found < 0.1


def packaged_scores(backend: str) -> dict[str, float]:
    checkpoint = converters.read(PACKAGED)
    model = load_backend(backend).CLIP(checkpoint.architecture, checkpoint.weights, device="cpu")
    return Evaluator(recipe("shapes", **DRAWN_PAIRS, **DRAWN_CLASSES), BytePairTokenizer(checkpoint.vocabulary))(
        Training(model)
    )


@pytest.fixture(scope="module")
def expected() -> dict[str, float]:
    """The scores of the packaged model in NumPy."""
    return packaged_scores("numpy")


def test_the_scores_are_the_same_in_every_framework(framework, expected):
    found = packaged_scores(framework.name)
    assert found.pop("validation_loss") == pytest.approx(expected["validation_loss"], rel=1e-4)
    assert found == {name: score for name, score in expected.items() if name != "validation_loss"}
    assert 0.01 < expected["validation_loss"] < 0.2  # chance is log 20
    assert found["held_out_top1"] > 0.9
    assert found["image_to_text_recall_at_1"] > 0.9


def test_training_goes_on_as_if_nobody_had_looked(framework, tokenizer):
    tiny = tiny_recipe(optimizer={"learning_rate": 1e-3, "ema_decay": 0.9})
    what = Recipe.parse(tiny.model_dump(mode="json") | {"evaluation": DRAWN_PAIRS | {"every_steps": 1}})
    name = framework.name
    evaluator = Evaluator(what, tokenizer)
    generator = np.random.default_rng(0)
    pixels = generator.standard_normal((4, 4, 3, 32, 32)).astype(np.float32)
    tokens = tokenizer.tokenize([f"{number} red stars" for number in range(4)], TINY.text.context_length)

    def trained(look: bool) -> dict[str, np.ndarray]:
        model = framework.CLIP(TINY, with_initial_scale(initialize(TINY, 0), what.loss), device="cpu")
        trainer = framework.Trainer(model, what)
        for step in range(4):
            trainer.step(pixels[step], tokens, 1e-3)
            if look:
                (model.train if step % 2 else model.eval)()
                before = random_states(name)
                scores = evaluator(trainer)
                assert scores["average_validation_loss"] != scores["validation_loss"]
                assert random_states(name) == before
                assert model.training == bool(step % 2)
        return trainer.state()

    looked, left_alone = trained(True), trained(False)
    assert looked.keys() == left_alone.keys()
    assert [entry for entry in looked if not np.array_equal(looked[entry], left_alone[entry])] == []


def test_a_run_is_scored_every_so_many_steps_and_after_the_last(tokenizer, tmp_path):
    plain = tiny_recipe(5)
    scored = Recipe.parse(plain.model_dump(mode="json") | {"evaluation": DRAWN_PAIRS | {"every_steps": 2}})
    trainers = {}
    for name, what in (("plain", plain), ("scored", scored)):
        trainers[name] = tiny_trainer(what)
        train(what, trainers[name], tiny_data(what), tokenizer, tmp_path / name)
    lines = read_metrics(tmp_path / "scored", EVALUATION)
    assert [line["step"] for line in lines] == [2, 4, 5]
    assert lines[-1] == {"step": 5} | Evaluator(scored, tokenizer)(trainers["scored"])
    assert lines[0]["validation_loss"] != lines[-1]["validation_loss"]
    assert losses(tmp_path / "scored") == losses(tmp_path / "plain")
    assert not (tmp_path / "plain" / EVALUATION).exists()


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run)]


def random_states(framework: str) -> list[Any]:
    """Of Python and NumPy, and what the framework would draw next."""
    own: Any
    if framework == "torch":
        import torch

        own = torch.get_rng_state().tolist()
    elif framework == "paddle":
        import paddle

        state = paddle.get_rng_state()
        own = paddle.rand([4]).tolist()
        paddle.set_rng_state(state)
    else:
        import nnabla

        own = repr(nnabla.random.prng.get_state())
    return [random.getstate(), np.random.get_state()[1].tolist(), own]  # noqa: NPY002


def test_correlations_of_pairs_of_sentences(tmp_path):
    lines = ["a\tb\t1", "a\tc\t3", "c\td\t4", "b\td\t0"]
    (tmp_path / "sts-test.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *lines]) + "\n")
    sentences = {"kind": "stsb", "folder": str(tmp_path)}
    scores = Evaluator(recipe(sentences=sentences), TOKENIZER)(Training(Known(IMAGES, TEXTS)))
    cosines, gold = [0.6, 0.48, 0.8, 0], [1, 3, 4, 0]
    assert scores["sentences_pearson"] == pytest.approx(np.corrcoef(cosines, gold)[0, 1])
    assert scores["sentences_spearman"] == pytest.approx(np.corrcoef([3, 2, 4, 1], [2, 3, 4, 1])[0, 1])
    few = recipe(sentences=sentences, examples=2)
    assert Evaluator(few, TOKENIZER)(Training(Known(IMAGES, TEXTS)))["sentences_spearman"] == pytest.approx(-1)
    (caution,) = Evaluator(recipe(sentences=sentences, examples=1), TOKENIZER).cautions
    assert caution.startswith("evaluation.sentences has pairs that are all judged alike")
