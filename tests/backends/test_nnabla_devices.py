"""NNabla on GPUs, as far as a machine without one can tell.

The extension is a stand-in whose contexts fall back to the CPU's kernels. What NNabla would choose on a GPU is run, its
native functions, solvers and half precision, by other kernels.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest
from nnabla.ext_utils import get_extension_context

from backends.nnabla import CLIP, functions
from backends.nnabla.process_group import CPUCommunicator, ProcessGroup
from backends.nnabla.training import Trainer
from clip_core.errors import ClipError
from clip_core.initialize import initialize
from clip_core.models import MODELS
from clip_core.training.recipe import Recipe
from clip_core.training.scaling import LossScaling
from clip_core.training.trainable import with_initial_scale
from tests.training.distributed_worker import ARCHITECTURE, batches

RATE = 1e-3
EXTENSION = """
import nnabla as nn
from nnabla_ext import cpu

BACKENDS = {"float": ["cudnn:float", "cuda:float", "cpu:float"], "half": ["cudnn:half", "cpu:half", "cpu:float"]}

def context(device_id="0", type_config="float"):
    return nn.Context(BACKENDS[type_config], cpu.array_classes()[0], str(device_id))

def get_devices():
    return ["0", "1"]
"""
NUMBERS = (1 / 3, -1e300)  # of two processes


@pytest.fixture
def extension(tmp_path, monkeypatch) -> Path:
    """The folder of the stand-in for ``nnabla_ext.cudnn``, which can be imported from now on."""
    path = tmp_path / "nnabla_ext" / "cudnn" / "__init__.py"
    path.parent.mkdir(parents=True)
    path.write_text(EXTENSION)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("nnabla_ext.cudnn", None)


def trainer_on(device: str | None, changes: dict | None = None, processes: ProcessGroup | None = None) -> Trainer:
    data: dict = {"model": {"architecture": "shapes"}, "training": {"steps": 6}, "optimizer": {"learning_rate": RATE}}
    for section, values in (changes or {}).items():
        data[section] = data.get(section, {}) | values
    recipe = Recipe.parse(data)
    weights = with_initial_scale(initialize(ARCHITECTURE, 0), recipe.loss)
    return Trainer(CLIP(ARCHITECTURE, weights, device=device), recipe, processes)


def without_key_biases(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state without the biases of the keys, whose gradient is rounding alone."""
    third = ARCHITECTURE.text.width
    return {
        name: np.delete(array, np.s_[third : 2 * third]) if name.endswith("attn.in_proj_bias") else array
        for name, array in state.items()
    }


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    expected = without_key_biases(expected)
    for name, array in without_key_biases(found).items():
        bound = 1e-3 * max(np.abs(expected[name]).max(), RATE)
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": {"weight_decay": 0.3, "betas": [0.8, 0.9], "epsilon": 1e-3}},
        {"optimizer": {"name": "adam", "decay": "all", "gradient_clip": 1.0, "epsilon": 1e-3, "ema_decay": 0.5}},
        {
            "optimizer": {"text_learning_rate": 1e-4, "logit_scale_bounds": [14.2, 14.25], "epsilon": 1e-3},
            "training": {"micro_batch_size": 3},
        },
    ],
    ids=["AdamW", "Adam, clipped, averaged", "rates, bounds, chunks"],
)
def test_solvers_compute_the_update_that_is_written_out_for_the_cpu(extension, changes):
    """Epsilon is large: it shows where it is put."""
    cpu, gpu = trainer_on("cpu", changes), trainer_on("cuda:1", changes)
    for pixels, tokens in batches() * 2:
        expected, found = cpu.step(pixels, tokens, RATE), gpu.step(pixels, tokens, RATE)
        assert found.loss == pytest.approx(expected.loss, rel=1e-4)
        assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-3)
        assert (found.top1, found.top5) == (expected.top1, expected.top5)
    assert_close(gpu.state(), cpu.state())


def test_a_run_goes_on_on_another_device(extension):
    cpu, gpu = trainer_on("cpu"), trainer_on("cuda:0")
    cpu.step(*batches()[0], RATE)
    gpu.restore(cpu.state())
    cpu.step(*batches()[1], RATE)
    gpu.step(*batches()[1], RATE)
    assert_close(gpu.state(), cpu.state())


def test_half_precision_follows_float32(extension):
    exact, half = trainer_on("cpu"), trainer_on("cuda:0", {"training": {"precision": "fp16"}})
    assert half.scaling == LossScaling(2.0**16, 0)
    half.scaling = LossScaling(2.0**6)
    for pixels, tokens in batches() * 2:
        expected, found = exact.step(pixels, tokens, RATE), half.step(pixels, tokens, RATE)
        assert not found.skipped
        assert found.loss == pytest.approx(expected.loss, rel=0.01)
        assert found.loss != expected.loss
        assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=0.05)
    weights = half.model.export()
    assert all(array.dtype == np.float32 for array in weights.values())
    features = CLIP(ARCHITECTURE, weights, device="cpu").embed_image(batches()[0][0])
    assert half.model.embed_image(batches()[0][0]) == pytest.approx(features, abs=1e-5)  # evaluation is float32


def test_half_precision_that_overflows_updates_nothing(extension):
    trainer = trainer_on("cuda:0", {"training": {"precision": "fp16"}})
    trainer.scaling = LossScaling(2.0**24)
    before = trainer.model.export()
    result = trainer.step(*batches()[0], RATE)
    assert (result.skipped, result.loss_scale, trainer.scaling) == (True, 2.0**24, LossScaling(2.0**23, 0))
    assert all((array == before[name]).all() for name, array in trainer.model.export().items())


def test_bf16_is_refused(extension):
    with pytest.raises(ClipError) as caught:
        trainer_on("cuda:0", {"training": {"precision": "bf16"}})
    assert str(caught.value) == "NNabla trains with precision fp32 or fp16, not bf16; change the recipe."


def test_the_end_of_text_is_found_in_half_precision(extension):
    tokens = nn.Variable.from_numpy_array(np.array([[49406, 5, 49407, 0]]))
    with nn.context_scope(get_extension_context("cudnn", type_config="half")), nn.auto_forward():
        assert F.max(tokens, axis=1, only_index=True).d.tolist() == [0]  # why it is not used
        assert functions.end_of_text(tokens, MODELS["ViT-B/32"].architecture.text).d.tolist() == [2]


def test_half_precision_picks_from_rows_that_it_cannot_count(extension):
    rows = np.arange(4099)
    x = np.stack([rows % 1000, rows % 777], axis=1)[:, :, None].astype(np.float32)  # [n, 2, 1]
    with nn.context_scope(get_extension_context("cudnn", type_config="half")), nn.auto_forward():
        picked = functions.pick(nn.Variable.from_numpy_array(x), nn.Variable.from_numpy_array(rows % 2))
    assert (picked.d == x[rows, rows % 2]).all()


def test_a_process_alone_takes_the_first_gpu(extension):
    assert (ProcessGroup().device, ProcessGroup().size) == ("cuda:0", 1)


@pytest.mark.parametrize(
    "fault", ["raise ImportError('libcudart.so')", "def get_devices(): raise RuntimeError('no driver')"]
)
def test_without_a_usable_gpu_it_is_the_cpu(extension, fault):
    path = extension / "nnabla_ext" / "cudnn" / "__init__.py"
    path.write_text(f"{path.read_text()}\n{fault}\n")
    assert ProcessGroup().device is None


def test_without_the_extension_it_is_the_cpu():
    assert ProcessGroup().device is None


def test_gpus_that_cannot_be_connected(extension, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(
        ClipError, match=r"^NNabla cannot connect the processes over their GPUs \(.*at most one process"
    ):
        ProcessGroup()


def test_two_processes_take_the_steps_of_one(extension, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), str(extension)])
    mpirun = [str(Path(sys.executable).with_name("mpirun")), "--allow-run-as-root", "--oversubscribe", "-n", "2"]
    output = tmp_path / "two.npz"
    command = [*mpirun, sys.executable, __file__, str(output)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = dict(np.load(output))
    assert found.pop("devices").tolist() == ["cuda:0", "cuda:1"]
    assert tuple(found.pop("numbers").tolist()) == NUMBERS
    one = trainer_on("cuda:0")
    losses = [one.step(pixels, tokens, RATE).loss for pixels, tokens in batches()]
    np.testing.assert_allclose(found.pop("losses"), losses, rtol=1e-5)
    assert_close(found, one.state())


class Communicator(CPUCommunicator):
    """A stand-in for NNabla's communicator between GPUs, which is not ready before ``init``."""

    def __init__(self, context: nn.Context) -> None:
        assert context.backend[0] == "cudnn:float"

    def init(self) -> None:
        super().__init__()
        self.local_rank = self.rank


def process_of_two(output: str) -> None:
    import nnabla.communicators

    nnabla.communicators.MultiProcessDataParallelCommunicator = Communicator
    processes = ProcessGroup()
    trainer = trainer_on(processes.device, processes=processes)
    half = slice(4 * processes.rank, 4 * processes.rank + 4)
    losses = [trainer.step(pixels[half], tokens[half], RATE).loss for pixels, tokens in batches()]
    devices = [f"cuda:{number:.0f}" for number in processes.gather_float(float(processes.device.removeprefix("cuda:")))]
    numbers = processes.gather_float(NUMBERS[processes.rank])
    if processes.rank == 0:
        np.savez(output, devices=devices, numbers=numbers, losses=losses, **trainer.state())


if __name__ == "__main__":
    process_of_two(sys.argv[1])
