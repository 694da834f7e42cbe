"""A run that is killed, whose disk or memory is full, or whose numbers are spoilt: nothing good is lost by it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clip_core.backend import StepResult
from clip_core.errors import ClipError
from clip_core.files import exclusive
from clip_core.training.checkpoint import newest, read
from clip_core.training.loop import train
from clip_core.training.run_log import read_metrics
from tests.clip.running import RECIPE, ended, process
from tests.launching import ENVIRONMENT
from tests.training.disturbances import Wrapped, largest_file
from tests.training.tiny import tiny_data, tiny_recipe, tiny_trainer

ROOT = Path(__file__).parents[2]
STEPS = 8
EVERY = {"every_steps": 2, "keep": 1}

# One process for all runs, since the framework takes long to import: each run is a fork of it, which kills itself at a
# place. A place is a function and how often it is called before; a run writes four checkpoints of three files each.
KILLED = """
import os, shutil, signal, sys, time
from pathlib import Path
import grain
import torch
from clip_core.text.bpe_training import learn
from clip_core.data.shapes import vocabulary_captions
from clip_core.text.bpe import BytePairTokenizer
from clip_core.training import checkpoint
from clip_core.training.loop import train
from clip_core.training.recipe import Recipe
from tests.training.tiny import tiny_data, tiny_trainer

torch.set_num_threads(1)

def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)

def half_then_die(path, content):
    path.write_bytes(content[: len(content) // 2])
    time.sleep(0.2)  # in which a run that writes in the background goes on
    die()

def dies_at(call, function, death):
    def counted(*arguments, **options):
        counted.calls += 1
        return (death if counted.calls == call else function)(*arguments, **options)
    counted.calls = 0
    return counted

def train_and_die(place, call, recipe, output, tokenizer):
    trainer = tiny_trainer(recipe)
    if place == "step":
        trainer.step = dies_at(call, trainer.step, die)
    elif place == "write":
        checkpoint.write_bytes = dies_at(call, checkpoint.write_bytes, half_then_die)
    elif place == "rename":
        os.rename = dies_at(call, os.rename, die)
    elif place == "remove":
        shutil.rmtree = dies_at(call, shutil.rmtree, die)
    train(recipe, trainer, tiny_data(recipe), tokenizer, output)

folder = Path(sys.argv[1])
tokenizer = BytePairTokenizer(learn(vocabulary_captions(), 200))
tiny_trainer(Recipe.read(folder / "foreground.yaml"))  # what PyTorch imports for it, it imports once for all processes
for place in sys.argv[2:]:
    function, call, recipe = place.split("-")
    process = os.fork()
    if process == 0:
        try:
            train_and_die(function, int(call), Recipe.read(folder / f"{recipe}.yaml"), folder / place, tokenizer)
        finally:
            os._exit(1)
    status = os.waitpid(process, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (place, status)
"""
PLACES = [
    # From step 5 on there is a complete checkpoint, also when the second one is being written in the background.
    *(f"step-{step}-{'background' if step in (5, 7) else 'foreground'}" for step in range(3, STEPS + 1)),
    # The second checkpoint: half of each of its files, all but its name, and before the first one is removed.
    *("write-5-foreground", "write-5-background", "write-6-foreground", "write-7-foreground", "write-8-background"),
    *("rename-2-foreground", "rename-2-background", "remove-3-background"),
]


def run(recipe, tokenizer, output: Path, trainer=None, **options):
    return train(recipe, trainer or tiny_trainer(recipe), tiny_data(recipe), tokenizer, output, **options)


def losses(output: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(output)]


@pytest.fixture(scope="module")
def whole(tokenizer, tmp_path_factory) -> list[tuple[int, float]]:
    """The losses of a run that was never stopped."""
    output = tmp_path_factory.mktemp("whole") / "run"
    run(tiny_recipe(STEPS), tokenizer, output)
    return losses(output)


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """The folder of a killed run for each place."""
    folder = tmp_path_factory.mktemp("killed")
    for name in ("foreground", "background"):
        tiny_recipe(STEPS, checkpoint=EVERY | {"background": name == "background"}).write(folder / f"{name}.yaml")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(folder), *PLACES]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("place", PLACES)
def test_a_killed_run_resumes_to_the_same_losses(place, killed, whole, tokenizer, capsys, monkeypatch):
    monkeypatch.setattr("clip_core.training.loop.plot", lambda run: None)  # takes longer than the steps
    output = killed / place
    function = place.split("-")[0]
    left = [entry for entry in (output / "checkpoints").iterdir() if entry.suffix == ".partial"]
    if function in ("write", "rename"):
        assert [entry.name for entry in left] == ["step-00000004.partial"]
    capsys.readouterr()
    run(tiny_recipe(STEPS, checkpoint=EVERY), tokenizer, output, resume=output)
    assert losses(output) == whole
    told = capsys.readouterr().err
    assert [f"Passed over: {entry} was cut off while it was written." in told for entry in left] == [True] * len(left)
    assert [entry.name for entry in (output / "checkpoints").iterdir()] == ["step-00000008"]


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_stops_the_run_and_leaves_the_last_good_checkpoint(background, tokenizer, tmp_path):
    recipe = tiny_recipe(STEPS, checkpoint={"every_steps": 3, "keep": 1, "background": background})
    output = tmp_path / "run"

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    sentence = r"checkpoint of step 6 cannot be written: .*File too large.* last good checkpoint is .*step-00000003\.$"
    with largest_file(resource.RLIM_INFINITY), pytest.raises(ClipError, match=sentence):
        run(recipe, tokenizer, output, Wrapped(tiny_trainer(recipe), 5, fill))
    assert [entry.name for entry in (output / "checkpoints").iterdir()] == ["step-00000003"]
    assert read(newest(output)).step == 3
    run(tiny_recipe(STEPS), tokenizer, tmp_path / "whole")
    run(recipe, tokenizer, output, resume=output)
    assert losses(output) == losses(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["weight", "moment"])
def test_weights_and_moments_that_are_not_finite_are_not_written(kind, tokenizer, tmp_path):
    recipe = tiny_recipe()
    trainer = tiny_trainer(recipe)
    name = "visual.ln_post.bias"

    def spoil() -> None:
        tensor = trainer.trained[name]
        target = tensor.data if kind == "weight" else trainer.adam.state[tensor]["exp_avg_sq"]
        target[3] = float("inf")

    found = {"weight": f"weights/{name}", "moment": f"second_moment/{name}"}[kind]
    sentence = (
        rf"stopped at step 8: {found} holds NaN or infinity, on a batch with the examples (\d+, ){{7}}\d+; "
        r"the last good checkpoint is .*step-00000004\. Lower"
    )
    with pytest.raises(ClipError, match=sentence):
        run(recipe, tokenizer, tmp_path / "run", Wrapped(trainer, 8, spoil))
    assert [entry.name for entry in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000004"]
    assert read(newest(tmp_path / "run")).step == 4


def test_a_step_that_overflowed_in_fp16_is_no_fault(tokenizer, tmp_path, capsys):
    recipe = tiny_recipe(6).model_copy(
        update={"training": tiny_recipe(6).training.model_copy(update={"precision": "fp16"})}
    )
    skipped = StepResult(2.0, 14.0, float("inf"), 0.5, 0.75, loss_scale=65536.0, skipped=True)
    run(recipe, tokenizer, tmp_path / "run", Wrapped(tiny_trainer(tiny_recipe(6)), 6, lambda: skipped))
    lines = read_metrics(tmp_path / "run")
    assert [line["skipped"] for line in lines] == [False] * 5 + [True]
    assert (lines[5]["loss_scale"], lines[5]["gradient_norm"], lines[5]["loss"]) == (65536.0, None, 2.0)
    assert "skipped 1" in capsys.readouterr().err


def exhausted_torch() -> None:
    import torch

    torch.empty(1 << 50)


def exhausted_gpu() -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def exhausted_paddle() -> None:
    import paddle

    paddle.empty([1 << 48])


def exhausted_nnabla() -> None:
    import nnabla

    nnabla.NdArray((1 << 47,)).data  # noqa: B018


def exhausted_numpy() -> None:
    np.empty(1 << 50)


@pytest.mark.parametrize(
    "exhausted",
    [
        *(exhausted_torch, exhausted_gpu, exhausted_paddle, exhausted_numpy),
        pytest.param(exhausted_nnabla, marks=pytest.mark.needs("nnabla")),
    ],
)
def test_memory_that_does_not_suffice_is_said_with_what_to_lower(exhausted, tokenizer, tmp_path):
    recipe = tiny_recipe(training={"micro_batch_size": 4})
    with pytest.raises(ClipError) as caught:
        run(recipe, tokenizer, tmp_path / "run", Wrapped(tiny_trainer(recipe), 2, exhausted))
    assert str(caught.value) == (
        "Memory ran out in a step of 8 pairs with pictures of 32 x 32 pixels in fp32, 4 of them at once; lower "
        "data.batch_size or set a lower training.micro_batch_size or set training.gradient_checkpointing."
    )


def test_a_remedy_that_is_used_already_is_not_named(tokenizer, tmp_path):
    recipe = tiny_recipe(training={"micro_batch_size": 1, "gradient_checkpointing": True})
    with pytest.raises(ClipError, match=r"1 of them at once; lower data\.batch_size\.$"):
        run(recipe, tokenizer, tmp_path / "run", Wrapped(tiny_trainer(recipe), 1, exhausted_numpy))


def system_error() -> None:
    try:
        exhausted_numpy()
    except MemoryError as error:
        raise SystemError("returned a result with an exception set") from error


def test_memory_that_runs_out_inside_a_call_from_c_is_said(tokenizer, tmp_path):
    """As in a function of NNabla's that is written in Python."""
    recipe = tiny_recipe()
    with pytest.raises(ClipError, match=r"^Memory ran out in a step of 8 pairs"):
        run(recipe, tokenizer, tmp_path / "run", Wrapped(tiny_trainer(recipe), 2, system_error))


class Starving:
    """Examples that take more memory than there is."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int):
        return np.empty(1 << 50)

    def fingerprint(self) -> str:
        return "as large as they are"


@pytest.mark.parametrize(("workers", "remedy"), [(0, ""), (1, " or data.workers")])
def test_memory_that_runs_out_while_a_batch_is_read_is_said(workers, remedy, tokenizer, tmp_path):
    recipe = tiny_recipe(data={"workers": workers})
    with pytest.raises(ClipError) as caught:
        train(recipe, tiny_trainer(recipe), Starving(), tokenizer, tmp_path / "run")
    assert str(caught.value) == (
        "Memory ran out while a batch of 8 pairs with pictures of 32 x 32 pixels was read; lower data.batch_size"
        f"{remedy}."
    )


def test_memory_that_runs_out_for_the_moments_or_a_checkpoint_is_said(tokenizer, tmp_path, monkeypatch):
    recipe = tiny_recipe()
    trainer = tiny_trainer(recipe)
    monkeypatch.setattr(trainer, "state", exhausted_numpy)
    with pytest.raises(ClipError) as caught:
        run(recipe, tokenizer, tmp_path / "state", trainer)
    count = sum(array.size for array in trainer.model.export().values())
    assert f"for the model itself: training its {count:,} parameters takes {16 * count:,} bytes" in str(caught.value)
    monkeypatch.setattr("clip_core.safetensors.pieces", lambda state: exhausted_numpy())
    with pytest.raises(ClipError, match=r"The checkpoint of step 4 cannot be written: .*step-00000004: memory ran out"):
        run(recipe, tokenizer, tmp_path / "save")
    assert list((tmp_path / "save" / "checkpoints").iterdir()) == []


@pytest.mark.needs("nnabla")
def test_a_fault_of_one_process_ends_them_all(tmp_path):
    """Only the first one finds that another run is going on; the second one waits for it in vain."""
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    (tmp_path / "run").mkdir()
    options = ("--backend", "nnabla", "--num-gpus", 2, "--output", "run")
    with exclusive(tmp_path / "run", "training run"):
        result = ended(process("train", "-c", "tiny.yaml", *options, environment=ENVIRONMENT, cwd=tmp_path))
    assert result.code == 1
    assert "clip: run is in use by another training run" in result.err


def test_another_error_of_a_step_is_not_about_memory(tokenizer, tmp_path):
    def wrong() -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match=r"^shapes do not match$"):
        run(tiny_recipe(), tokenizer, tmp_path / "run", Wrapped(tiny_trainer(tiny_recipe()), 2, wrong))
