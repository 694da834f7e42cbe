"""Hugging Face's and open_clip's own models load what is written, strictly, and give the reference's features."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from backends import numpy as reference
from clip_core.architecture import Architecture
from clip_core.errors import CheckpointError
from clip_core.naming import Weights
from clip_core.towers.vision_transformer import VisionTransformer
from converters import ModelFile, convert, read, write

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import open_clip
    from transformers import CLIPModel


@pytest.fixture(params=["quick_gelu", "gelu"])
def trained(request, vit) -> ModelFile:
    """Weights of the size that training gives, so that differences mean something; heads that shapes do not tell."""
    architecture = replace(
        vit.architecture,
        image=replace(vit.architecture.image, heads=2),
        text=replace(vit.architecture.text, heads=4),
    ).with_activation(request.param)
    weights = {
        name: array
        if name == "logit_scale" or (name.endswith("weight") and ".ln_" in name)
        else array * np.float32(0.1)
        for name, array in vit.weights.items()
    }
    return ModelFile(weights, architecture)


def inputs(architecture: Architecture) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    resolution = architecture.image.resolution
    pixels = generator.standard_normal((3, 3, resolution, resolution)).astype(np.float32)
    tokens = generator.integers(1, 48, (4, architecture.text.context_length))
    for row, end in enumerate((3, 7, 15, 9)):
        tokens[row, end:] = 0
        tokens[row, end] = 49  # the highest id: the end of text
    return pixels, tokens


def expected_features(weights: Weights, architecture: Architecture) -> tuple[np.ndarray, np.ndarray]:
    model = reference.CLIP(architecture, weights)
    pixels, tokens = inputs(architecture)
    return model.embed_image(pixels), model.embed_text(tokens)


def assert_close(found: tuple[torch.Tensor, torch.Tensor], expected: tuple[np.ndarray, np.ndarray]) -> None:
    for one, other in zip(found, expected, strict=True):
        one, other = one.numpy(), np.asarray(other)
        np.testing.assert_allclose(
            one / np.linalg.norm(one, axis=-1, keepdims=True),
            other / np.linalg.norm(other, axis=-1, keepdims=True),
            atol=1e-5,
            rtol=0,
        )


def huggingface_features(folder, architecture: Architecture) -> tuple[torch.Tensor, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, report = CLIPModel.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    pixels, tokens = map(torch.from_numpy, inputs(architecture))
    with torch.no_grad():
        image = model.visual_projection(model.vision_model(pixels).pooler_output)
        text = model.text_projection(model.text_model(tokens).pooler_output)
    return image, text


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_transformers_loads_the_folder(trained, name, tmp_path, assert_equal_weights):
    write(trained, tmp_path / name, layout="huggingface")
    expected = expected_features(trained.weights, trained.architecture)
    assert_close(huggingface_features(tmp_path, trained.architecture), expected)
    # And back, from what transformers itself saves, without a manifest: the configuration tells the rest.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        CLIPModel.from_pretrained(tmp_path).save_pretrained(tmp_path / "saved")
    found = read(tmp_path / "saved" / "model.safetensors")
    assert found.layout == "huggingface"
    assert found.architecture == trained.architecture
    assert_equal_weights(found.weights, trained.weights)
    convert(tmp_path / "saved" / "model.safetensors", tmp_path / "back.pt")
    assert_equal_weights(read(tmp_path / "back.pt").weights, trained.weights)


def test_a_perturbed_weight_is_seen(trained, tmp_path):
    """The twin of the test above: square matrices hide a missing transpose from everything but the numbers."""
    name = "transformer.resblocks.1.attn.out_proj.weight"
    twisted = ModelFile(trained.weights | {name: trained.weights[name].T}, trained.architecture)
    write(twisted, tmp_path / "model.safetensors", layout="huggingface")
    with pytest.raises(AssertionError):
        assert_close(
            huggingface_features(tmp_path, trained.architecture),
            expected_features(trained.weights, trained.architecture),
        )


def open_clip_model(architecture: Architecture) -> torch.nn.Module:
    image, text = architecture.image, architecture.text
    vision = {"image_size": image.resolution, "width": image.width}
    if isinstance(image, VisionTransformer):
        vision |= {"layers": image.layers, "patch_size": image.patch, "head_width": image.width // image.heads}
    else:
        vision |= {"layers": image.blocks, "head_width": image.feature_width // image.heads}
    return open_clip.model.CLIP(
        embed_dim=architecture.embed_dim,
        vision_cfg=vision,
        text_cfg={
            "context_length": text.context_length,
            "vocab_size": text.vocabulary_size,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
        },
        quick_gelu=text.activation == "quick_gelu",
    ).eval()


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_open_clip_loads_the_file_strictly(tower, trained, resnet, tmp_path):
    checkpoint = trained if tower == "vit" else resnet
    write(checkpoint, tmp_path / "a.pt", layout="open_clip")
    model = open_clip_model(checkpoint.architecture)
    model.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True), strict=True)
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), checkpoint.weights[name])
    if tower == "vit":
        pixels, tokens = map(torch.from_numpy, inputs(checkpoint.architecture))
        with torch.no_grad():
            found = model.encode_image(pixels), model.encode_text(tokens)
        assert_close(found, expected_features(checkpoint.weights, checkpoint.architecture))


def test_open_clip_makes_the_model_from_the_folder(trained, tmp_path):
    write(trained, tmp_path / "open_clip_model.safetensors", layout="open_clip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    pixels, tokens = map(torch.from_numpy, inputs(trained.architecture))
    with torch.no_grad():
        found = model.encode_image(pixels), model.encode_text(tokens)
    assert_close(found, expected_features(trained.weights, trained.architecture))


def test_a_model_of_open_clip_without_a_manifest(trained, tmp_path):
    """The configuration beside the file tells the activation and the heads."""
    write(trained, tmp_path / "open_clip_model.safetensors", layout="open_clip")
    state = open_clip_model(trained.architecture).state_dict()
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    found = read(tmp_path / "open_clip_pytorch_model.bin")
    assert found.architecture == trained.architecture
    for name, tensor in state.items():
        np.testing.assert_array_equal(found.weights[name], tensor.numpy())


def test_a_custom_text_model_of_open_clip(vit, tmp_path, assert_equal_weights):
    text = ("positional_embedding", "text_projection", "transformer.", "token_embedding.", "ln_final.")
    state = {
        f"text.{name}" if name.startswith(text) else name: torch.from_numpy(np.array(array))
        for name, array in vit.weights.items()
    }
    state["logit_scale"] = state["logit_scale"].reshape(1)
    state["text.transformer.embeddings.position_ids"] = torch.arange(16)[None]
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "a.pt")
    found = read(tmp_path / "a.pt", activation="quick_gelu")
    assert found.layout == "open_clip"
    assert_equal_weights(found.weights, vit.weights)


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ("{", r"config\.json beside it cannot be used: it is not JSON \(JSONDecodeError"),
        ("[]", "it is list, expected an object"),
        ('{"text_config": 5}', "text_config is int, expected an object"),
        ('{"model_type": "blip"}', "it is of a model of the type 'blip'; known here are clip, metaclip_2, siglip"),
        ('{"auto_map": {"AutoModel": "own.Model"}}', "its auto_map names code of its own"),
        ("[" * 100_000, r"it is not JSON \(RecursionError"),
        (" " * (1 << 20) + "{}", "at most 1048576 are read here"),
    ],
)
def test_a_configuration_that_is_none(config, what, bare_huggingface, tmp_path):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=what):
        read(bare_huggingface)


@pytest.mark.parametrize(
    ("tower", "changes", "what"),
    [
        ("text", {"num_attention_heads": 7}, "The text tower's width 128 cannot be divided into 7 heads"),
        ("text", {"num_attention_heads": "2"}, r"text\.heads is '2'; it must be a whole number"),
        ("vision", {"hidden_act": "relu"}, "it sets hidden_act to 'relu', which cannot be computed here"),
        ("text", {"layer_norm_eps": 0.5}, r"text\.epsilon is 0\.5; it must be a number from 1e-12 to 0\.001"),
        ("text", {"eos_token_id": 50}, "text.end_of_text is 50, which is outside the vocabulary of 50"),
        ("vision", {"hidden_size": 128}, r"image\.width is 128 by config\.json beside it, but 64 by the weights"),
        ("vision", {"image_size": 64}, r"image\.resolution is 64 by config\.json beside it, but 32 by the weights"),
        ("text", {"num_hidden_layers": 12}, r"text\.layers is 12 by config\.json beside it, but 3 by the weights"),
    ],
)
def test_a_configuration_that_cannot_be(tower, changes, what, bare_huggingface, tmp_path):
    config = json.loads((tmp_path / "config.json").read_text())
    config[f"{tower}_config"] |= changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=what):
        read(bare_huggingface)


@pytest.fixture
def bare_huggingface(vit, tmp_path) -> Path:
    """A folder of Hugging Face's whose weights carry no manifest."""
    write(vit, tmp_path / "model.safetensors", layout="huggingface")
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"
