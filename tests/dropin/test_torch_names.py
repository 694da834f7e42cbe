"""Modules, functions and attributes that code expects where OpenAI's package has them."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import clip
import clip.clip
import clip.model
import clip.simple_tokenizer
from clip.simple_tokenizer import SimpleTokenizer
from clip_core.errors import ClipError, ImageError
from clip_core.models import MODELS
from clip_core.text.bpe import openai
from tests.dropin.samples import PIXELS, TOKENS, close, model, paper, resnet
from tests.models import OPENAI_NAMES, RESNET, VIT, sample_weights


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("clip", "available_models load tokenize clip model simple_tokenizer"),
        (
            "clip.clip",
            "available_models load tokenize build_model _MODELS _download _transform _tokenizer _Tokenizer "
            "_convert_image_to_rgb",
        ),
        (
            "clip.model",
            "CLIP build_model convert_weights VisionTransformer ModifiedResNet Transformer ResidualAttentionBlock "
            "AttentionPool2d Bottleneck LayerNorm QuickGELU",
        ),
        (
            "clip.simple_tokenizer",
            "SimpleTokenizer default_bpe bytes_to_unicode get_pairs basic_clean whitespace_clean",
        ),
    ],
)
def test_names_of_modules(module, names):
    found = importlib.import_module(module)
    assert [name for name in names.split() if not hasattr(found, name)] == []
    with pytest.raises(AttributeError, match=f"'?{module}'? has no attribute 'nothing'"):
        found.nothing  # noqa: B018


def test_modules_are_there_without_being_imported():
    code = "import clip; print(clip.clip.load is clip.load, clip.model.CLIP, clip.simple_tokenizer.SimpleTokenizer)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("True <class 'backends.torch.openai.CLIP'>")


def test_addresses(tmp_path):
    assert sorted(clip.clip._MODELS) == sorted(OPENAI_NAMES)
    assert set(clip.available_models()) == {"shapes", *OPENAI_NAMES}
    assert clip.clip._MODELS["ViT-B/32"] == MODELS["ViT-B/32"].url
    (tmp_path / "ViT-B-32.pt").write_bytes(b"not these weights")
    with pytest.raises(ClipError, match=r"^There is no model at 'https://example.org/x.pt'; the addresses are"):
        clip.clip._download("https://example.org/x.pt", tmp_path)


def test_attributes_of_a_model():
    vit, convolutional = model(), resnet()
    for clip_model, architecture in ((vit, VIT), (convolutional, RESNET)):
        assert clip_model.visual.input_resolution == architecture.image.resolution
        assert clip_model.visual.output_dim == architecture.embed_dim
        assert clip_model.context_length == architecture.text.context_length
        assert clip_model.vocab_size == architecture.text.vocabulary_size
        assert clip_model.transformer.width == architecture.text.width
        assert clip_model.transformer.layers == architecture.text.layers
        assert clip_model.dtype == torch.float32
    assert convolutional.visual.attnpool.num_heads == RESNET.image.heads
    assert isinstance(convolutional.visual.layer4, nn.Sequential)
    assert isinstance(convolutional.visual.layer2[0].downsample[0], nn.AvgPool2d)
    block = vit.visual.transformer.resblocks[0]
    assert isinstance(vit.visual.transformer.resblocks, nn.Sequential)
    assert isinstance(block.attn, nn.MultiheadAttention)
    assert block.attn.num_heads == VIT.image.heads
    assert block.attn_mask is None
    assert isinstance(block.mlp, nn.Sequential)
    assert isinstance(block.mlp.gelu, clip.model.QuickGELU)
    assert block.mlp[0] is block.mlp.c_fc
    expected = torch.full((16, 16), -torch.inf).triu(1)
    assert torch.equal(vit.build_attention_mask(), expected)
    assert torch.equal(vit.transformer.resblocks[2].attn_mask, expected)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(
    ("convert", "dtype"),
    [
        (lambda model: model.float(), torch.float32),
        (lambda model: model.half(), torch.float16),
        (lambda model: model.bfloat16(), torch.bfloat16),
        (lambda model: model.double(), torch.float64),
        (lambda model: model.to(torch.bfloat16), torch.bfloat16),
    ],
    ids=["float", "half", "bfloat16", "double", "to"],
)
@pytest.mark.parametrize("made", [model, lambda precision: model(RESNET, precision)], ids=["vit", "resnet"])
def test_the_precision_follows_the_weights(made, precision, convert, dtype):
    clip_model = convert(made(precision=precision))
    pixels = torch.randn(2, 3, *[clip_model.visual.input_resolution] * 2, generator=torch.Generator().manual_seed(0))
    assert clip_model.dtype == dtype
    image, text = clip_model.encode_image(pixels), clip_model.encode_text(TOKENS)
    assert image.dtype == text.dtype == dtype
    exact = made(precision="fp32")
    for found, expected in ((image, exact.encode_image(pixels)), (text, exact.encode_text(TOKENS))):
        assert nn.functional.cosine_similarity(found.float(), expected).min() > 0.995
    assert [logits.shape for logits in clip_model(pixels, TOKENS)] == [(2, 3), (3, 2)]


def test_half_precision_as_of_convert_weights():
    clip_model = model()
    clip.model.convert_weights(clip_model)
    half = {name for name, tensor in clip_model.state_dict().items() if tensor.dtype == torch.float16}
    others = {"logit_scale", "positional_embedding", "visual.positional_embedding", "visual.class_embedding"}
    assert half == {
        name
        for name in clip_model.state_dict()
        if name not in others | {"token_embedding.weight"} and ".ln_" not in f".{name}"
    }
    assert close(clip_model.encode_image(PIXELS).float(), model().encode_image(PIXELS), 0.1)


@pytest.mark.parametrize("made", [model, resnet])
def test_a_model_of_a_state_dictionary(made):
    expected = made()
    state = expected.state_dict() | {"input_resolution": torch.tensor(64), "context_length": torch.tensor(16)}
    state["vocab_size"] = torch.tensor(300)
    found = clip.model.build_model(state)
    assert isinstance(found, clip.model.CLIP)
    assert not found.training
    assert found.dtype == torch.float16
    pixels = torch.randn(2, 3, *[found.visual.input_resolution] * 2)
    # The widths of heads are OpenAI's.
    assert found.architecture.image.heads == found.architecture.image.attention_width // 64
    found.float()
    assert nn.functional.cosine_similarity(found.encode_text(TOKENS), expected.encode_text(TOKENS)).min() > 0.999
    assert found.encode_image(pixels).shape == (2, found.visual.output_dim)


def test_kinds_of_parts_and_constructors():
    clip_model = model()
    names = clip.model
    assert isinstance(clip_model, names.CLIP)
    assert isinstance(clip_model.visual, names.VisionTransformer)
    assert not isinstance(clip_model.visual, names.ModifiedResNet)
    assert isinstance(resnet().visual.attnpool, names.AttentionPool2d)
    assert isinstance(clip_model.ln_final, names.LayerNorm)
    block = names.ResidualAttentionBlock(64, 2, torch.full((5, 5), -torch.inf).triu(1))
    assert isinstance(block, type(clip_model.transformer.resblocks[0]))
    x = torch.randn(5, 2, 64)
    with torch.no_grad():
        changed = block(torch.cat([x[:3], x[3:] + 1]))
        assert torch.equal(changed[:3], block(x)[:3]), "later tokens are not seen"
        stack = names.Transformer(64, 3, 2)
        assert stack(x).shape == x.shape
        assert [block.attn.num_heads for block in stack.resblocks] == [2, 2, 2]
        assert names.VisionTransformer(32, 8, 64, 2, 1, 16)(torch.randn(2, 3, 32, 32)).shape == (2, 16)
        assert names.ModifiedResNet((1, 1, 1, 1), 16, 8, 64, 8)(torch.randn(2, 3, 64, 64)).shape == (2, 16)
        assert names.AttentionPool2d(2, 64, 4, 10)(torch.randn(3, 64, 2, 2)).shape == (3, 10)
    assert list(inspect.signature(names.CLIP).parameters) == [
        *("embed_dim", "image_resolution", "vision_layers", "vision_width", "vision_patch_size"),
        *("context_length", "vocab_size", "transformer_width", "transformer_heads", "transformer_layers"),
    ]


def test_a_model_made_from_numbers_starts_from_pytorchs_seed():
    for layers, patch in ((2, 8), ((1, 1, 1, 1), None)):
        made = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            made.append(clip.model.CLIP(16, 64, layers, 64, patch, 8, 50, 64, 1, 2))
        first, again, other = (model.state_dict() for model in made)
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not torch.equal(first["text_projection"], other["text_projection"])
        assert made[0].training
        before = made[2].text_projection.clone()
        made[2].initialize_parameters()
        assert not torch.equal(made[2].text_projection, before)


def test_a_derived_class_is_a_class_of_its_own():
    class Own(clip.model.VisionTransformer):
        pass

    own = Own(32, 8, 64, 1, 1, 16)
    assert isinstance(own, clip.model.VisionTransformer)
    assert not isinstance(model().visual, Own)
    Own.mark = "own"
    assert not hasattr(model().visual, "mark")


def test_a_method_set_on_a_class_reaches_loaded_models(monkeypatch):
    expected = model().encode_image(PIXELS)
    forward = clip.model.ResidualAttentionBlock.__mro__[1].attention
    monkeypatch.setattr(forward.__globals__["ResidualAttentionBlock"], "attention", lambda self, x: 0 * x)
    judge = paper()
    judge.attention = lambda name, x, heads, mask: 0 * x
    found = model().encode_image(PIXELS)
    assert not close(found, expected)
    assert close(found, judge.encode_image(PIXELS))


def test_the_tokenizer():
    tokenizer, expected = SimpleTokenizer(), openai()
    for text in ("a photo of a cat", "Łódź's 12 naïve cafés… <b>&amp;</b>  <|endoftext|>"):
        tokens = tokenizer.encode(text)
        assert tokens == expected.encode(text)
        assert tokenizer.decode(tokens) == expected.decode(tokens)
    assert tokenizer.encoder["<|startoftext|>"] == 49406
    assert tokenizer.decoder[49407] == "<|endoftext|>"
    assert len(tokenizer.encoder) == len(tokenizer.decoder) == 49408
    assert tokenizer.bpe("photograph") == "photograph</w>"
    assert tokenizer.bpe("<|endoftext|>") == "<|endoftext|>"
    for word in ("antidisestablishmentarianism", "xqzw", "a", "zzzz"):
        parts = tokenizer.bpe(word).split(" ")
        assert [tokenizer.encoder[part] for part in parts] == expected.encode(word)
    assert tokenizer.byte_decoder[tokenizer.byte_encoder[32]] == 32
    assert tokenizer.bpe_ranks["i", "n"] == 0
    with pytest.raises(ClipError, match="is not OpenAI's"):
        SimpleTokenizer(__file__)


def test_functions_of_the_tokenizer():
    names, tokenizer = clip.simple_tokenizer, SimpleTokenizer()
    assert SimpleTokenizer(names.default_bpe()).encode("a cat") == tokenizer.encode("a cat")
    assert names.basic_clean("  &amp;amp; caf\u00c3\u00a9 ") == "& caf\u00e9"
    assert names.whitespace_clean(" a \n  b\t") == "a b"
    assert names.get_pairs(("a", "b", "c")) == {("a", "b"), ("b", "c")}
    assert list(names.bytes_to_unicode().items())[:2] == [(33, "!"), (34, '"')]
    assert tokenizer.byte_encoder == names.bytes_to_unicode()
    assert tokenizer.pat.findall("it's 3 cats?!") == ["it", "'s", "3", "cats", "?!"]
    tokenizer.cache["zzq"] = "cat</w>"
    assert tokenizer.encode("zzq cat") == 2 * openai().encode("cat")
    tokenizer.encoder["<new>"], tokenizer.decoder[49408] = 49408, "<new>"
    assert tokenizer.decode([49408]) == "<new>"
    with pytest.raises(ClipError, match=r"^token id 49409 is not of this vocabulary; give ids"):
        tokenizer.decode([49409])


def test_jit_gives_the_plain_model():
    with pytest.warns(UserWarning, match="jit=True gives the plain model"):
        loaded, _ = clip.load("shapes", "cpu", True, backend="torch")
    assert isinstance(loaded, clip.model.CLIP)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
@pytest.mark.parametrize("size", [(90, 61), (40, 40), (33, 100)])
def test_preprocessing_in_single_steps(mode, size):
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(values).convert(mode)
    preprocess = clip.clip._transform(32)
    x = image
    for step in preprocess.transforms:
        x = step(x)
    assert torch.equal(x, preprocess(image))
    assert x.shape == (3, 32, 32)


def test_steps_for_pixels():
    """Resizing, cropping and normalising tensors, with gradient, as guided generation does, like torchvision."""
    from torchvision.transforms import CenterCrop, InterpolationMode, Normalize, Resize

    resize, crop, _, _, normalize = clip.clip._transform(32).transforms
    pixels = torch.rand(2, 3, 50, 71, generator=torch.Generator().manual_seed(0), requires_grad=True)
    theirs = [
        Resize(32, InterpolationMode.BICUBIC),
        CenterCrop(32),
        Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    ]
    assert (normalize.mean, normalize.std) == (theirs[2].mean, theirs[2].std)
    found = expected = pixels
    for step, their in zip((resize, crop, normalize), theirs):
        found, expected = step(found), their(expected)
        assert close(found, expected, 1e-5)
    assert resize(pixels[0]).shape == (3, 32, 45)
    found.sum().backward()
    assert pixels.grad.abs().sum() > 0


def test_other_frameworks_have_no_steps():
    _, preprocess = clip.load("shapes", backend="numpy")
    assert not hasattr(preprocess, "transforms")


def test_what_is_refused_stays_refused():
    with pytest.raises(ImageError, match=r"^The pixels have shape \(3, 3, 32, 32\), expected \(n, 3, 64, 64\)"):
        model().encode_image(torch.zeros(3, 3, 32, 32))
    assert sample_weights(VIT).keys() == dict(model().named_parameters()).keys()


def test_classes_of_parts():
    """By their classes, and not by ``isinstance`` alone: PyTorch's own where OpenAI's package has them."""
    vit, convolutional, names = model(), resnet(), clip.model
    block = vit.transformer.resblocks[0]
    assert type(block.attn) is nn.MultiheadAttention
    assert type(convolutional.visual.bn1) is nn.BatchNorm2d
    assert names.ResidualAttentionBlock in (type(block),)
    assert {names.ResidualAttentionBlock: 1}[type(block)] == 1
    assert names.Transformer not in (type(block),)
    assert issubclass(type(vit.visual), names.VisionTransformer)
    assert not issubclass(type(vit.visual), names.ModifiedResNet)

    class Derived(names.ResidualAttentionBlock):
        pass

    assert names.ResidualAttentionBlock not in (Derived,)
    assert not isinstance(block, Derived)
    assert [name for name, _ in vit.visual.named_children()] == ["conv1", "ln_pre", "transformer", "ln_post"]
    assert names.Bottleneck.expansion == 4
    assert names.Bottleneck(inplanes=16, planes=4).downsample is None
    assert names.Bottleneck(16, 4, stride=2).downsample is not None


def test_attributes_that_other_code_sets():
    class Wrapped(clip.model.CLIP):
        def __init__(self, *numbers: int) -> None:
            super().__init__(*numbers)
            self.device = "of the user"

    made = Wrapped(16, 64, 1, 64, 32, 16, 300, 64, 1, 1)
    assert made.device == "of the user"
    assert made(PIXELS, TOKENS)[0].shape == (3, 3)
    assert model().device == torch.device("cpu")


@pytest.mark.parametrize("made", [model, resnet])
def test_parameters_that_are_drawn_anew(made):
    """Those that OpenAI's class draws; the rest of a loaded model stays."""
    clip_model = made()
    before = {name: tensor.clone() for name, tensor in clip_model.state_dict().items()}
    clip_model.initialize_parameters()
    drawn = {name for name, tensor in clip_model.state_dict().items() if not torch.equal(tensor, before[name])}
    expected = {name for name, tensor in before.items() if tensor.ndim == 2 and not name.startswith("visual.")}
    if made is resnet:
        expected |= {f"visual.attnpool.{part}_proj.weight" for part in "qkvc"}
        expected |= {name for name in before if name.startswith("visual.layer") and name.endswith("bn3.weight")}
    assert drawn == expected


def test_half_precision_leaves_the_rest_of_a_layer():
    layer = nn.Linear(3, 3)
    layer.added = nn.Parameter(torch.ones(2))
    clip.model.convert_weights(layer)
    assert (layer.weight.dtype, layer.bias.dtype, layer.added.dtype) == (torch.float16, torch.float16, torch.float32)
    state = model().state_dict() | {"input_resolution": torch.tensor(64)}
    clip.model.build_model(state)
    assert "input_resolution" not in state, "as in OpenAI's package"


def test_steps_that_are_changed():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 71, 3), np.uint8))
    plain, changed = clip.clip._transform(32), clip.clip._transform(32)
    pixels = plain(image)
    normalize = changed.transforms.pop()
    assert torch.equal(normalize(changed(image)), pixels)
    changed.transforms.insert(0, lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert not torch.equal(normalize(changed(image)), pixels)
    changed.transforms = plain.transforms[:-1]
    assert torch.equal(
        changed(image), plain.transforms[3](plain.transforms[2](plain.transforms[1](plain.transforms[0](image))))
    )


def test_steps_for_other_pixels():
    """Integers, maps smaller than the crop, pictures of one channel and arrays, like torchvision."""
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize
    from torchvision.transforms.functional import to_tensor

    resize, crop, _, to_pixels, _ = clip.clip._transform(32).transforms
    values = np.random.default_rng(0).integers(0, 256, (50, 71, 3), np.uint8)
    integers = torch.from_numpy(values.transpose(2, 0, 1).copy())
    found, expected = resize(integers), Resize(32, InterpolationMode.BICUBIC)(integers)
    assert found.dtype == torch.uint8
    assert (found.int() - expected.int()).abs().max() <= 1
    for shape in ((3, 20, 60), (3, 60, 21), (2, 3, 9, 9)):
        assert torch.equal(crop(torch.ones(shape)), CenterCrop(32)(torch.ones(shape)))
    for picture in (values, Image.fromarray(values), Image.fromarray(values[..., 0])):
        assert torch.equal(to_pixels(picture), to_tensor(picture))


def test_names_of_archives_and_of_other_packages():
    """They are absent, so that nothing is taken for what it is not; what the documents name instead is there."""
    clip_model = model()
    absent = [
        *("input_resolution", "text", "vision_model", "text_model", "config", "get_image_features"),
        *("get_text_features", "set_grad_checkpointing", "lock_image_tower", "lock_text_tower"),
    ]
    assert [name for name in absent if hasattr(clip_model, name)] == []
    assert [name for name in ("image_size", "preprocess_cfg") if hasattr(clip_model.visual, name)] == []
    with pytest.raises(AttributeError):
        clip_model.context_length.item()
    with pytest.raises(AttributeError, match="create_model_and_transforms"):
        clip.create_model_and_transforms  # noqa: B018
    with pytest.raises(TypeError, match="normalize"):
        clip_model.encode_image(PIXELS, normalize=True)
    clip_model.recompute_blocks()
    clip_model.encode_image(PIXELS).sum().backward()
    found = clip_model.visual.conv1.weight.grad
    clip_model = model()
    clip_model.encode_image(PIXELS).sum().backward()
    assert close(found, clip_model.visual.conv1.weight.grad, 1e-2)
