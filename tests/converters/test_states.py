"""Dictionaries as people save them: the weights inside of others, and beside them whatever training had at hand."""

from __future__ import annotations

import argparse
import datetime
import pathlib
import pickle
import sys
from collections import Counter, OrderedDict, defaultdict
from typing import Any

import numpy as np
import pytest

from clip_core.buffers import Content
from clip_core.errors import CheckpointError
from converters import pdparams, states

WEIGHTS = {"visual.proj": np.arange(6, dtype=np.float32).reshape(2, 3), "logit_scale": np.array(4.6, np.float32)}
OTHER = {"visual.proj": np.zeros((2, 3), np.float32), "logit_scale": np.zeros((), np.float32)}
OPTIMIZER = {"state": {0: {"step": 3, "exp_avg": np.zeros((2, 3))}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}


def read(content: Any, protocol: int = 4) -> Content:
    return pdparams.read(pickle.dumps(content, protocol=protocol))


def assert_weights(found: Content, entry: str) -> None:
    assert found.entry == entry
    assert found.tensors.keys() == WEIGHTS.keys()
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(found.tensors[name], array)


@pytest.mark.parametrize("wrapper", states.WRAPPERS)
def test_weights_in_a_training_checkpoint(wrapper):
    assert_weights(read({"epoch": 3, wrapper: WEIGHTS, "optimizer": OPTIMIZER, "loss": [0.5, 0.25]}), wrapper)


def test_weights_inside_of_two_dictionaries():
    assert_weights(read({"model": {"state_dict": OrderedDict(WEIGHTS), "args": {"model": "x"}}}), "model.state_dict")
    assert_weights(read({"model": {"net": {"module": WEIGHTS}}}), "model.net.module")
    with pytest.raises(CheckpointError, match="holds no weights"):
        read({"model": {"net": {"module": {"params": WEIGHTS}}}})


def test_arrays_that_are_no_weights_do_not_stand_in_the_way():
    found = read({"best": np.ones(3), "ema": {"decay": np.ones(1), "module": WEIGHTS}, "weights": {"lr": np.ones(1)}})
    assert_weights(found, "ema.module")


def test_values_among_the_weights():
    assert_weights(read(WEIGHTS | {"epoch": 3, "bias": None, "logit_bias": None, "args": {"a": 1}, "loss": [1]}), "")


@pytest.mark.parametrize(
    ("content", "places"),
    [
        ({"state_dict": WEIGHTS, "ema": OTHER}, "state_dict and ema"),
        ({"ema": {"module": OTHER}, "model": {"state_dict": WEIGHTS}}, "model.state_dict and ema.module"),
        (WEIGHTS | {"model": OTHER}, "the outermost dictionary and model"),
        ({"model": WEIGHTS | {"ema": OTHER}}, "model and model.ema"),
    ],
)
def test_weights_in_several_places_are_not_chosen_between(content, places):
    with pytest.raises(CheckpointError, match=f"holds weights in several places, {places}; save the ones"):
        read(content)


def test_one_dictionary_under_two_names():
    assert_weights(read({"model": WEIGHTS, "state_dict": WEIGHTS}), "state_dict")


CALLS: list[str] = []


class Witness:
    """What notes everything that is done with it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _witness, ("called",), {"state": 1}, iter([1, 2]), iter([("key", 3)])


def _witness(word: str) -> Witness:
    CALLS.append(word)
    return Witness()


class Subclass(dict):
    def __setitem__(self, key, value):
        CALLS.append(key)


class WithArguments:
    def __getnewargs_ex__(self):
        return (1,), {"a": 2}

    def __new__(cls, *arguments, **named):
        CALLS.append("made")
        return super().__new__(cls)


EXTRAS = {
    "witness": Witness(),
    "a subclass of dict": Subclass(),
    "arguments by name": WithArguments(),
    "counter": Counter("ab"),
    "set": {1, 2},
    "empty set": set(),
    "frozen set": frozenset({1, 2}),
    "bytes": b"abc",
    "bytearray": bytearray(b"abc"),
    "default": defaultdict(list, a=[1]),
    "namespace": argparse.Namespace(lr=1e-3, path=pathlib.PurePosixPath("/x")),
    "time": datetime.datetime(2024, 1, 1),
    "score": np.float64(0.5),
    "texts": np.array(["a", "b"]),
    "objects": np.array([None, {}], dtype=object),
    "big-endian": np.zeros(3, ">f4"),
    "complex": np.zeros(3, complex),
    "class": Witness,
    "function": print,
    "keys": {0.1: 1, (1, 2): 2, None: 3, b"x": 4, True: 5, 7: 6, frozenset(): 7},
    "numbers": [2**70, -(2**500), float("nan"), True],
    "tuple": ((1, (2, ())), [[]]),
}
CALLS.clear()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_extras_are_passed_over_and_not_built(protocol):
    extras = dict(EXTRAS)
    if protocol == 5:  # in which NumPy pickles arrays in another way, which is none of Paddle's
        extras = {name: extra for name, extra in extras.items() if not isinstance(extra, np.ndarray)}
        stream = pickle.dumps({"model": {}, "extras": extras}, protocol=5)
        with pytest.raises(CheckpointError, match="holds no weights"):
            pdparams.read(stream)
    else:
        assert_weights(read({"model": WEIGHTS, "extras": extras}, protocol), "model")
        assert_weights(read(WEIGHTS | {"extra": EXTRAS["witness"]}, protocol), "")
    assert CALLS == []


def test_what_an_extra_names_is_not_imported():
    stream = pickle.dumps({"model": WEIGHTS, "x": EXTRAS["counter"]}, protocol=2)
    assert b"ccollections\nCounter\n" in stream
    assert "antigravity" not in sys.modules
    assert_weights(pdparams.read(stream.replace(b"ccollections\nCounter\n", b"cantigravity\nfly\n")), "model")
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("weight", "what"),
    [
        (EXTRAS["witness"], r"refers to .*_witness, which weights files have no use for; it was not run\. Save"),
        (EXTRAS["score"], r"refers to numpy\..*\.scalar, .* it was not run"),
        (EXTRAS["default"], r"refers to collections\.defaultdict, .* it was not run"),
        (EXTRAS["texts"], "an array of the pickle has dtype 'U1'"),
        (1.5, "'logit_scale' is 1.5, where a tensor is expected"),
        ("4.6\x1b[2J", r"'logit_scale' is '4.6\\x1b\[2J', where a tensor is expected"),
        ([1.5], "'logit_scale' is an object of the type list, where a tensor is expected"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_weight_that_is_no_array_is_refused(weight, what, protocol):
    with pytest.raises(CheckpointError, match=what):
        read({"model": WEIGHTS | {"logit_scale": weight}}, protocol)
    with pytest.raises(CheckpointError, match=what.replace("logit_scale", "a.b")):
        read(WEIGHTS | {"a.b": weight}, protocol)
    assert CALLS == []


@pytest.mark.parametrize("content", [EXTRAS["witness"], {"model": EXTRAS["witness"]}, {"ema": {"model": Witness()}}])
def test_a_whole_object_is_refused(content):
    with pytest.raises(CheckpointError, match=r"refers to .*_witness.* Save layer\.state_dict\(\) instead of a whole"):
        read(content)
    assert CALLS == []
