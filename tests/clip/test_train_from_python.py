"""`clip.train`: what the command does, in Python."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

import clip
from clip_core.training.stopping import SIGNALS
from tests.clip.running import RECIPE, metrics
from tests.requested import FRAMEWORKS

SECTIONS = yaml.safe_load(RECIPE)


@pytest.fixture
def recipe(tmp_path) -> Path:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return tmp_path / "tiny.yaml"


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in metrics(folder)]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_python_trains_as_the_command_does(run, recipe, tmp_path, framework):
    options = ("--steps", 4, "--seed", 3, "-o", "optimizer.ema_decay=0.5", "--output", tmp_path / "command")
    assert run("train", "-c", recipe, "--backend", framework, *options).code == 0
    handlers = [signal.getsignal(number) for number in SIGNALS]
    trained = clip.train(recipe, framework, tmp_path / "python", steps=4, seed=3, override={"optimizer.ema_decay": 0.5})
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    assert losses(tmp_path / "python") == losses(tmp_path / "command")
    assert (trained.step, trained.loss, trained.signal) == (4, losses(tmp_path / "command")[-1], None)
    assert trained.checkpoint == tmp_path / "python" / "checkpoints" / "step-00000004"
    for path, name in ((trained.model, "model.safetensors"), (trained.average, "model-average.safetensors")):
        assert path == tmp_path / "python" / name
        assert path.read_bytes() == (tmp_path / "command" / name).read_bytes()
    assert (tmp_path / "python" / "recipe.yaml").read_text() == (tmp_path / "command" / "recipe.yaml").read_text()


@pytest.mark.needs("torch")
def test_a_mapping_is_a_recipe_and_its_run_resumes(tmp_path):
    before = yaml.dump(SECTIONS)
    whole = clip.train(SECTIONS, output=tmp_path / "whole", override={"model.architecture.image.layers": 2})
    assert (whole.step, whole.average) == (6, None)
    changes = {"model.architecture.image.layers": 2}
    clip.train(SECTIONS, output=str(tmp_path / "parts"), steps=2, override=changes)
    resumed = clip.train(SECTIONS, resume=str(tmp_path / "parts"), override=changes)
    assert resumed.model.read_bytes() == whole.model.read_bytes()
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert clip.train(SECTIONS, resume=tmp_path / "parts", override=changes).loss is None
    assert yaml.dump(SECTIONS) == before
    model, _ = clip.load(resumed.model)
    assert model.architecture.image.layers == 2


@pytest.mark.needs("torch")
def test_a_training_starts_from_a_model_and_outside_of_the_main_thread(tmp_path):
    first = clip.train(SECTIONS, output=tmp_path / "first", steps=1)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(clip.train, SECTIONS, output=tmp_path / "second", load=first.model, steps=1).result()
    assert second.loss != first.loss
    assert metrics(tmp_path / "second")[0]["logit_scale"] != metrics(tmp_path / "first")[0]["logit_scale"]


@pytest.mark.needs("torch")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipe": 5}, "A recipe was given as int; give a YAML file, the name of an installed recipe, or a mapping "),
        ({"recipe": "none.yaml"}, "There is no recipe none.yaml; give a YAML file or the name of an installed one: "),
        ({"recipe": {}}, "The recipe: the key model is missing."),
        ({"output": None}, "A recipe that is no file gives the run no name; give its folder as output."),
        ({"backend": "numpy"}, "There is no training in 'numpy'; choose the backend torch, paddle or nnabla."),
        ({"steps": 0}, "The training is to stop after step 0; give a whole number from 1."),
        ({"seed": -1}, "The override training.seed: training.seed is -1"),
        ({"override": {"data.batch_sise": 4}}, "The override data.batch_sise: there is no key data.batch_sise; did "),
        ({"load": "none.pt"}, "There is no file none.pt and no model of that name; "),
        ({"resume": "nothing"}, "There is no folder nothing; give "),
    ],
)
def test_a_bad_argument_is_one_sentence(tmp_path, arguments, message):
    with pytest.raises(clip.ClipError) as caught:
        clip.train(**{"recipe": SECTIONS, "output": tmp_path / "run"} | arguments)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_training_is_imported_when_it_is_asked_for():
    code = "import sys, clip; assert 'clip.training' not in sys.modules; print(clip.train.__module__)"
    found = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert found.stdout == "clip.training\n", found.stderr
    with pytest.raises(AttributeError, match="module 'clip' has no attribute 'trian'"):
        clip.trian  # noqa: B018
