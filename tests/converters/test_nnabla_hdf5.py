"""NNabla reads what is written, and what NNabla writes is read."""

from __future__ import annotations

import h5py
import nnabla
import numpy as np
import pytest

from clip_core.layouts import LAYOUTS
from clip_core.naming import parameters
from converters import write
from tests.converters.bare import read


@pytest.fixture(autouse=True)
def _no_parameters():
    nnabla.clear_parameters()
    yield
    nnabla.clear_parameters()


def test_nnabla_reads_what_is_written(any_checkpoint, tmp_path):
    write(any_checkpoint, tmp_path / "a.h5")
    nnabla.load_parameters(str(tmp_path / "a.h5"))
    found = nnabla.get_parameters(grad_only=False)
    table = parameters(any_checkpoint.architecture)
    spell = LAYOUTS["nnabla"].spell
    assert list(found) == [spell(parameter.name) for parameter in table]
    for parameter in table:
        variable = found[spell(parameter.name)]
        assert variable.shape == parameter.shape
        assert variable.need_grad == parameter.trainable
        np.testing.assert_array_equal(variable.d, any_checkpoint.weights[parameter.name])


def test_what_nnabla_writes_is_read(any_checkpoint, tmp_path, assert_equal_weights):
    """Without batch counters, which NNabla has none of, and without a manifest."""
    spell = LAYOUTS["nnabla"].spell
    for parameter in parameters(any_checkpoint.architecture):
        if parameter.kind != "counter":
            variable = nnabla.parameter.get_parameter_or_create(
                spell(parameter.name), parameter.shape, need_grad=parameter.trainable
            )
            variable.d = any_checkpoint.weights[parameter.name]
    nnabla.save_parameters(str(tmp_path / "a.h5"))
    expected = {
        name: np.zeros((), np.int64) if array.dtype == np.int64 else array
        for name, array in any_checkpoint.weights.items()
    }
    found = read(tmp_path / "a.h5")
    assert found.layout == "nnabla"
    assert_equal_weights(found.weights, expected)


def test_the_structure_is_that_of_nnabla(any_checkpoint, tmp_path):
    """Superblock, storage, attributes and their types, each against a file that NNabla wrote."""

    def structure(path):
        with h5py.File(path, "r") as file:
            result = {"superblock": path.read_bytes()[8]}

            def visit(name, item):
                if isinstance(item, h5py.Dataset):
                    attributes = {
                        key: (item.attrs.get_id(key).dtype, item.attrs.get_id(key).shape, item.attrs[key])
                        for key in item.attrs
                    }
                    plan = item.id.get_create_plist()
                    result[name] = (item.dtype, item.shape, plan.get_layout(), plan.get_nfilters(), attributes)

            file.visititems(visit)
            return result

    write(any_checkpoint, tmp_path / "ours.h5")
    nnabla.load_parameters(str(tmp_path / "ours.h5"))
    nnabla.save_parameters(str(tmp_path / "theirs.h5"))
    ours, theirs = structure(tmp_path / "ours.h5"), structure(tmp_path / "theirs.h5")
    assert len(ours) == len(any_checkpoint.weights) + 1
    assert ours == theirs


def test_statistics_may_keep_their_own_names(resnet, tmp_path, assert_equal_weights):
    spell = LAYOUTS["nnabla"].spell
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for index, (name, array) in enumerate(resnet.weights.items()):
            name = name.replace(".", "/") if "running" in name else spell(name)
            dataset = file.create_dataset(name, data=array)
            dataset.attrs["need_grad"] = True
            dataset.attrs["index"] = index
    assert_equal_weights(read(tmp_path / "a.h5").weights, resnet.weights)
