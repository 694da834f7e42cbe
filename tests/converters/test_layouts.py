"""The table of layouts: every project's file is in it, and what one cannot hold is known from the towers' kinds."""

from __future__ import annotations

import importlib
import pkgutil
from itertools import product

import numpy as np

from clip_core import layouts
from clip_core.architecture import Architecture
from clip_core.layouts import LAYOUTS
from clip_core.naming import parameters
from clip_core.towers import IMAGE_TOWERS, TEXT_TOWERS
from tests.converters.small import ARCHITECTURES
from tests.siglip import SIGLIP
from tests.towers import IMAGES, TEXTS


def test_every_project_is_in_the_table():
    modules = [
        importlib.import_module(f"clip_core.layouts.{found.name}") for found in pkgutil.iter_modules(layouts.__path__)
    ]
    assert {id(module.LAYOUT) for module in modules if hasattr(module, "LAYOUT")} == {
        id(one) for one in LAYOUTS.values()
    }
    assert {name: layout.name for name, layout in LAYOUTS.items()} == {name: name for name in LAYOUTS}


def test_each_names_kinds_of_towers_that_there_are():
    for layout in LAYOUTS.values():
        for image, text in layout.towers or ():
            assert (image in IMAGE_TOWERS, text in TEXT_TOWERS) == (True, True), layout.name


def test_what_each_holds():
    held = {
        name: [kind for kind, one in ARCHITECTURES.items() if layout.holds(one)] for name, layout in LAYOUTS.items()
    }
    everything = {name: list(ARCHITECTURES) for name in ("openai", "nnabla", "paddle")}
    assert held == everything | {
        "open_clip": ["vit", "resnet"],
        "passl": ["vit"],
        "huggingface": ["vit"],
        "mixer_clip": ["mixer"],
        "timm": [],
        "simple_clip": ["torchvision", "efficientnet"],
        "low_resource": ["low_resource"],
    }
    held_of_siglip = [name for name, layout in LAYOUTS.items() if layout.holds(SIGLIP)]
    assert held_of_siglip == ["openai", "nnabla", "paddle", "huggingface", "timm"]


def test_the_two_names_by_which_a_model_is_found():
    assert set(LAYOUTS["huggingface"].marks()) == {
        ("text_model.embeddings.token_embedding.weight", "vision_model.embeddings.patch_embedding.weight")
    }
    assert ("token_embedding/W", "visual/conv1/W") in LAYOUTS["nnabla"].marks()
    assert ("text.token_embedding.weight", "visual.conv1.weight") in LAYOUTS["open_clip"].marks()


def test_paddle_s_shapes_tell_the_architecture_whatever_the_towers():
    paddle = LAYOUTS["paddle"]
    for image, text in product(IMAGES, TEXTS):
        table = parameters(Architecture(image.output_width or 16, image, text))
        plain = {each.name: np.broadcast_to(np.float32(0), each.shape) for each in table}
        turned = {each.name: plain[each.name].T if each.kind == "linear" else plain[each.name] for each in table}
        assert paddle.infer(turned) == LAYOUTS["openai"].infer(plain), (image, text)
