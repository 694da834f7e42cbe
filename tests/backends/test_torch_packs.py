"""Packed weights are those of the moment, in whatever way these were changed."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from backends.torch import CLIP, layers, packs
from clip_core.similarity import normalize
from tests.models import sample_pixels, sample_weights
from tests.towers import EXAMPLES

SIZE = 64


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Linear(SIZE, SIZE)


def multiplied(layer: nn.Linear) -> torch.Tensor:
    with torch.no_grad():
        x = torch.arange(3 * SIZE).reshape(3, SIZE) / SIZE
        return torch.ops.mkldnn._linear_pointwise(x, packs.packed(layer.weight), layer.bias, "none", [], "")


def expected(layer: nn.Linear) -> torch.Tensor:
    with torch.no_grad():
        return layer(torch.arange(3 * SIZE).reshape(3, SIZE) / SIZE)


def is_packed(layer: nn.Linear) -> bool:
    return packs.packed(layer.weight) is not layer.weight


def trained(layer: nn.Linear) -> None:
    optimiser = torch.optim.SGD(layer.parameters(), 0.01)
    layer(torch.ones(3, SIZE)).sum().backward()
    optimiser.step()


@torch.no_grad()
def in_place(layer: nn.Linear) -> None:
    layer.weight[0, 0] += 1


def through_data(layer: nn.Linear) -> None:
    layer.weight.data[0, 0] += 1


def through_data_of_a_view(layer: nn.Linear) -> None:
    layer.weight.data.view(-1)[1].zero_()


def through_numpy(layer: nn.Linear) -> None:
    layer.weight.detach().numpy()[0, 0] += 1


def other_data(layer: nn.Linear) -> None:
    layer.weight.data = layer.weight.data + 1


def transposed(layer: nn.Linear) -> None:
    layer.weight.data = layer.weight.data.t()


def data_of_another(layer: nn.Linear) -> None:
    other = nn.Linear(SIZE, SIZE)
    for _ in range(3):
        multiplied(other)
    layer.weight.data = other.weight.data


def another_parameter(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(layer.weight + 1)


def loaded(layer: nn.Linear) -> None:
    layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()})


def assigned(layer: nn.Linear) -> None:
    layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()}, assign=True)


def through_a_vector(layer: nn.Linear) -> None:
    vector_to_parameters(parameters_to_vector(layer.parameters()) + 1, layer.parameters())


CHANGES = (
    *(trained, in_place, through_data, through_data_of_a_view, through_numpy, other_data, transposed, data_of_another),
    *(another_parameter, loaded, assigned, through_a_vector),
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_seen_at_once(layer, change):
    before = [multiplied(layer) for _ in range(3)][-1]
    assert is_packed(layer) == packs.AVAILABLE
    change(layer)
    for _ in range(3):
        assert (multiplied(layer) - expected(layer)).abs().max() < 1e-4
    assert (multiplied(layer) - before).abs().max() > 1e-2


def test_what_others_may_write_unseen_is_not_packed(layer):
    """An array holds the memory before anything is packed."""
    array = layer.weight.detach().numpy()
    for value in range(4):
        array[0, 0] = value
        assert (multiplied(layer) - expected(layer)).abs().max() < 1e-4
    assert not is_packed(layer)


def test_the_memory_of_others_is_not_packed(layer):
    array = np.zeros((SIZE, SIZE), np.float32)
    layer.weight.data = torch.from_numpy(array)
    for value in range(4):
        array[0, 0] = value
        assert (multiplied(layer) - expected(layer)).abs().max() < 1e-4
    assert not is_packed(layer)


def test_a_copy_and_its_original_do_not_see_each_others_changes(layer):
    for _ in range(3):
        multiplied(layer)
    twin = copy.deepcopy(layer)
    through_data(twin)
    for each in (layer, twin):
        for _ in range(3):
            assert (multiplied(each) - expected(each)).abs().max() < 1e-4
    assert (expected(layer) - expected(twin)).abs().max() > 1e-2


def test_packs_end_with_their_weights_and_with_training(layer):
    key = id(layer.weight)
    for _ in range(3):
        multiplied(layer)
    assert key in packs._uses
    layers.linear(torch.ones(1, SIZE), layer.weight, layer.bias)
    assert key not in packs._uses
    multiplied(layer)
    assert key in packs._uses
    del layer.weight
    assert key not in packs._uses


def test_threads_that_use_a_weight_for_the_first_time_at_once():
    size, threads = 512, 6
    x = torch.ones(8, size, dtype=torch.bfloat16)
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(30):
            layer = nn.Linear(size, size).bfloat16()
            expected = layers.linear(x, layer.weight, layer.bias)
            begin = Barrier(threads)

            @torch.no_grad()
            def difference(_, layer=layer, expected=expected, begin=begin):
                begin.wait()
                return max((layers.linear(x, layer.weight, layer.bias) - expected).abs().max() for _ in range(6))

            assert max(pool.map(difference, range(threads))) < 2**-6
    assert not packs._reads


def test_bf16_computes_with_packs_what_it_computes_without(monkeypatch):
    architecture = EXAMPLES["vit and transformer"]
    model = CLIP(architecture, sample_weights(architecture), device="cpu", precision="bf16")
    found = [normalize(model.embed_image(sample_pixels(architecture))) for _ in range(3)][-1]
    monkeypatch.setattr(packs, "DTYPES", set())
    expected = normalize(model.embed_image(sample_pixels(architecture)))
    assert np.abs(found - expected).max() < 2**-7
