"""PyTorch's files without PyTorch: what it wrote is read exactly, and it reads exactly what was written."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import warnings
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from clip_core.buffers import from_bfloat16
from clip_core.errors import CheckpointError
from converters import ModelFile, torch_archive, torch_legacy, write
from tests.converters.bare import read

ROOT = Path(__file__).resolve().parents[2]


def module_tree(weights: dict[str, np.ndarray], buffers: dict[str, int]) -> torch.nn.Module:
    """Modules whose state dictionary has exactly these names."""
    root = torch.nn.Module()
    for name, array in weights.items():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, torch.nn.Module())
            module = module._modules[part]
        tensor = torch.from_numpy(np.array(array))
        if leaf.startswith(("running_", "num_batches")):
            module.register_buffer(leaf, tensor)
        else:
            module.register_parameter(leaf, torch.nn.Parameter(tensor))
    for name, value in buffers.items():
        root.register_buffer(name, torch.tensor(value))
    return root


class Traced(torch.nn.Module):
    def forward(self, value):
        return value + self.logit_scale


def test_torchscript_in_half_precision(any_checkpoint, tmp_path):
    """A file like OpenAI's: a traced module in half precision, with its constants among the weights."""
    root = module_tree(any_checkpoint.weights, {"input_resolution": 32, "context_length": 16, "vocab_size": 50}).half()
    root.__class__ = Traced
    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch deprecates TorchScript, OpenAI's files stay
        torch.jit.trace(root, torch.zeros(())).save(str(path))
    expected = {name: tensor.numpy() for name, tensor in root.state_dict().items()}
    script = (
        "import sys, hashlib, converters\n"
        f"found = converters.read({str(path)!r}, activation='quick_gelu')\n"
        "assert found.container == 'torch archive', found.container\n"
        "assert not {'torch', 'paddle', 'nnabla'} & sys.modules.keys()\n"
        "for name, array in found.weights.items():\n"
        "    print(name, array.dtype, array.shape, hashlib.sha256(array.tobytes()).hexdigest(), sep='|')\n"
    )
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [
        f"{name}|{expected[name].dtype}|{expected[name].shape}|{hashlib.sha256(expected[name].tobytes()).hexdigest()}"
        for name in any_checkpoint.weights
    ]
    assert found.splitlines() == lines
    assert set(expected) - set(any_checkpoint.weights) == {"input_resolution", "context_length", "vocab_size"}


class Scripted(torch.nn.Module):
    def forward(self, value):
        return value + self.logit_scale + self.sizes[0] + len(self.names) + self.pair[0]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.filterwarnings("ignore")  # PyTorch deprecates TorchScript
def test_scripted_modules(any_checkpoint, half, tmp_path):
    root = module_tree(any_checkpoint.weights, {"context_length": 16})
    root.__class__ = Scripted
    root.sizes, root.names, root.nothing, root.pair = [1, 2], {"a": 0.5}, None, (3, "b")
    root.where, root.kind, root.flag, root.rate = torch.device("cpu"), torch.float16, True, 1e-5
    root = root.half() if half else root
    torch.jit.script(root).save(str(tmp_path / "a.pt"))
    found = torch_archive.read((tmp_path / "a.pt").read_bytes())
    assert found.container == "torch archive"
    assert found.tensors.keys() == root.state_dict().keys()
    for name, tensor in root.state_dict().items():
        assert found.tensors[name].dtype == tensor.numpy().dtype
        np.testing.assert_array_equal(found.tensors[name], tensor.numpy())
    read(tmp_path / "a.pt")


def test_state_dictionaries_with_views(tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(20, 30, generator=generator)
    state = OrderedDict(
        whole=base,
        transposed=base.t(),
        slice=base[3:7, ::2],
        row=base[5],
        half=base.half(),
        double=base[0].double(),
        scalar=torch.tensor(1.5),
        empty=torch.zeros(0, 3),
        single=base[:1, :1],
        five=base[:4].reshape(1, 2, 2, 3, 10).permute(4, 0, 2, 1, 3),
        long=torch.tensor([1, -2]),
        flags=torch.tensor([True, False]),
        brain=base[:2].bfloat16(),
        parameter=torch.nn.Parameter(base[1].clone()),
    )
    torch.save(state, tmp_path / "a.pt")
    found = torch_archive.read((tmp_path / "a.pt").read_bytes()).tensors
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        expected = tensor.detach()
        if expected.dtype == torch.bfloat16:
            expected, found[name] = expected.float(), from_bfloat16(found[name])
        expected = expected.numpy()
        assert (found[name].dtype, found[name].shape) == (expected.dtype, expected.shape), name
        np.testing.assert_array_equal(found[name], expected)
    # One storage in the file, read once, behind all views of it.
    assert np.shares_memory(found["whole"], found["five"])


def test_a_training_checkpoint(vit, tmp_path, assert_equal_weights):
    model = module_tree(vit.weights, {})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 3, "name": "x", "state_dict": state, "optimizer": optimizer.state_dict()}, tmp_path / "a.pt")
    expected = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    assert_equal_weights(read(tmp_path / "a.pt").weights, {name: expected[name] for name in vit.weights})


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_extras_beside_the_weights(protocol, tmp_path):
    extras = {
        "size": torch.Size([2, 3]),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "random state": torch.get_rng_state(),
        "scheduler": torch.optim.lr_scheduler.MultiStepLR(torch.optim.SGD([torch.zeros(1)]), [1, 1, 2]).state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "complex": torch.zeros(2, dtype=torch.complex64),
        "small": torch.zeros(2, dtype=torch.float8_e4m3fn),
        "layer": torch.nn.Linear(2, 2),
        "array": np.zeros(3),
        "score": np.float64(0.5),
        "counter": Counter("ab"),
        "set": {1, 2},
        "keys": {0.1: 1, (1, 2): 2},
    }
    content = {"model": {"visual.proj": torch.ones(2)}, "extras": extras, **extras}
    torch.save(content, tmp_path / "a.pt", pickle_protocol=protocol)
    found = torch_archive.read((tmp_path / "a.pt").read_bytes())
    assert found.entry == "model"
    assert {name: array.tolist() for name, array in found.tensors.items()} == {"visual.proj": [1, 1]}
    for name in ("complex", "small", "layer", "array", "score", "counter", "set"):
        torch.save({"model": {"visual.proj": torch.ones(2), "a.b": extras[name]}}, tmp_path / "a.pt")
        with pytest.raises(
            CheckpointError, match=r"which weights files have no use for; it was not run|holds tensors of"
        ):
            torch_archive.read((tmp_path / "a.pt").read_bytes())


def test_a_state_dictionary_with_metadata(vit, tmp_path, assert_equal_weights):
    state = module_tree(vit.weights, {}).state_dict()
    assert state._metadata
    torch.save(state, tmp_path / "a.bin")
    assert_equal_weights(read(tmp_path / "a.bin").weights, vit.weights)


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_what_is_written(any_checkpoint, mmap, tmp_path):
    write(any_checkpoint, tmp_path / "a.pt")
    found = torch.load(tmp_path / "a.pt", weights_only=True, mmap=mmap)
    assert list(found) == list(any_checkpoint.weights)
    for name, array in any_checkpoint.weights.items():
        assert found[name].numpy().dtype == array.dtype
        assert found[name].shape == array.shape
        assert not found[name].requires_grad
        np.testing.assert_array_equal(found[name].numpy(), array)
    module_tree(any_checkpoint.weights, {}).load_state_dict(found, strict=True)


def test_torch_reads_half_precision(vit, tmp_path):
    write(vit, tmp_path / "a.pt", dtype="float16")
    found = torch.load(tmp_path / "a.pt", weights_only=True)
    for name, array in vit.weights.items():
        np.testing.assert_array_equal(found[name].numpy(), array.astype(np.float16))
        assert found[name].dtype == torch.float16


def test_tensors_lie_on_cache_lines(vit, tmp_path):
    write(vit, tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    for name, member in torch_archive.archives.members(data).items():
        assert member.start % 64 == 0, name


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: torch.zeros(2, dtype=torch.complex64), r"tensors of torch\.ComplexFloatStorage"),
        (lambda: torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8), r"torch\._utils\._rebuild_qtensor"),
        (lambda: torch.zeros(2, 2).to_sparse(), r"torch\._utils\._rebuild_sparse_tensor"),
        (lambda: torch.zeros(2, dtype=torch.float8_e4m3fn), "float8|_rebuild_tensor_v3"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # PyTorch deprecates quantised and sparse tensors
def test_other_kinds_of_tensor_are_named(make, what, tmp_path):
    torch.save({"a": make()}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=what):
        read(tmp_path / "a.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_tensor_that_is_stored_as_its_opposite_is_refused(zipped, vit, tmp_path, assert_equal_weights):
    """PyTorch keeps the sign of a view of negated numbers beside them."""
    state = module_tree(vit.weights, {}).state_dict()
    negated = torch._neg_view(-state["text_projection"])
    torch.save(state | {"text_projection": negated}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        CheckpointError, match=r"a tensor .* is marked 'neg', .* save tensor\.resolve_conj\(\)\.resolve_"
    ):
        read(tmp_path / "a.pt")
    resolved = state | {"text_projection": negated.resolve_conj().resolve_neg()}
    torch.save(resolved, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    assert_equal_weights(read(tmp_path / "a.pt").weights, vit.weights)


def test_integer_weights_are_named(vit, tmp_path):
    state = module_tree(vit.weights | {"ln_final.bias": np.zeros(128, np.float32)}, {}).state_dict()
    state["ln_final.bias"] = torch.zeros(128, dtype=torch.int32)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"ln_final\.bias has dtype int32, expected float32, float16 or float64"):
        read(tmp_path / "a.pt")


def test_a_whole_model_is_not_unpickled(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear.* Save model\.state_dict\(\)"):
        read(tmp_path / "a.pt")


def test_files_of_pytorch_before_1_6(any_checkpoint, tmp_path, assert_equal_weights):
    state = {name: torch.from_numpy(np.array(array)) for name, array in any_checkpoint.weights.items()}
    name = next(name for name, tensor in state.items() if tensor.ndim == 2)
    saved = {"state_dict": state | {name: state[name].t().contiguous().t()}, "epoch": 3, "of_it": state[name][1:]}
    torch.save(saved, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    found = read(tmp_path / "a.pt")
    assert (found.container, found.entry) == ("torch state dict", "state_dict")
    assert_equal_weights(found.weights, any_checkpoint.weights)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda data: data[:-1], "storage [0-9]+ is said to have 6 elements, which the file does not hold"),
        (lambda data: data + b"x", "1 bytes follow the last storage"),
        (lambda data: data.replace(b"M\xe9\3.", b"M\xe9\4."), "another protocol"),
        (lambda data: data.replace(b"little_endianq\2\x88", b"little_endianq\2\x89"), "numbers are big-endian"),
        (lambda data: data[:-32] + b"\7" + data[-31:], "is said to have 6 elements"),
        (lambda data: data[:-32] + b"\xff" * 8 + data[-24:], "is said to have 6 elements"),
        (lambda data: data.replace(b"FloatStorage", b"ComplexFloatStorage"), "some of unknown numbers"),
        (lambda data: data[:200], "cut short"),
    ],
)
def test_damaged_files_of_pytorch_before_1_6(change, what, tmp_path):
    torch.save({"a.b": torch.arange(6.0)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    data = (tmp_path / "a.pt").read_bytes()
    assert torch_legacy.read(data).tensors["a.b"].tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(CheckpointError, match=what):
        torch_legacy.read(change(data))


def test_bfloat16_weights_become_float32(vit, tmp_path):
    state = {name: torch.from_numpy(np.array(array)).bfloat16() for name, array in vit.weights.items()}
    torch.save(state, tmp_path / "a.pt")
    found = read(tmp_path / "a.pt").weights
    for name, tensor in state.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], tensor.float().numpy())
    write(ModelFile(found, vit.architecture), tmp_path / "b.pt")
