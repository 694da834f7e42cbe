"""What PyTorch's own tools make of a model gives the model's numbers."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
import torch.distributed as distributed
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.parallel import DataParallel, DistributedDataParallel

from tests.dropin.samples import PIXELS, TOKENS, close, model, paper, resnet
from tests.models import RESNET, VIT, sample_pixels, sample_weights

RESNET_PIXELS = torch.tensor(sample_pixels(RESNET))
OTHERS = torch.roll(TOKENS, 3, dims=1)[:, :16]  # other lengths than the traced ones


class Image(nn.Module):
    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.clip.encode_image(image)


class Text(Image):
    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return self.clip.encode_text(text)


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))  # noqa: S301  # of our own making


@pytest.fixture(scope="module")
def clip():
    return model().requires_grad_(False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled], ids=["deepcopy", "pickle"])
def test_copies(copied):
    clip = model()
    expected = clip.encode_image(PIXELS), clip.encode_text(TOKENS)
    assert clip.transformer.resblocks[0].attn_mask.shape == (16, 16)
    twin = copied(clip)
    with torch.no_grad():
        clip.text_projection.zero_()
        clip.visual.proj.zero_()
    assert torch.equal(twin.encode_image(PIXELS), expected[0])
    assert torch.equal(twin.encode_text(TOKENS), expected[1])
    assert twin.architecture == VIT


def test_a_whole_model_in_a_file():
    clip, stream = model(), io.BytesIO()
    torch.save(clip, stream)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=False)
    assert torch.equal(loaded.encode_text(TOKENS), clip.encode_text(TOKENS))


def test_data_parallel(clip):
    per_image, per_text = DataParallel(clip)(PIXELS, TOKENS)
    expected = clip(PIXELS, TOKENS)
    assert torch.equal(per_image, expected[0])
    assert torch.equal(per_text, expected[1])


@pytest.fixture
def process_group(tmp_path):
    distributed.init_process_group("gloo", f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel():
    clip, alone = model(), model()
    parallel = DistributedDataParallel(clip)
    parallel(PIXELS, TOKENS)[0].sum().backward()
    alone(PIXELS, TOKENS)[0].sum().backward()
    for (name, found), expected in zip(clip.named_parameters(), alone.parameters()):
        assert close(found.grad, expected.grad, 1e-2), name


@pytest.mark.usefixtures("process_group")
def test_fully_sharded():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    clip, expected = model(), model()(PIXELS, TOKENS)[0]
    mesh = init_device_mesh("cpu", (1,))
    for part in (*clip.visual.transformer.resblocks, *clip.transformer.resblocks, *clip.children()):
        fully_shard(part, mesh=mesh)
    assert not clip.transformer.is_whole(TOKENS), "sharding looks at no token"
    assert close(clip(PIXELS, TOKENS)[0], expected, 1e-3)


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
@pytest.mark.parametrize("fullgraph", [True, False])
def test_compiled(clip, fullgraph):
    compiled = torch.compile(clip, backend="eager", fullgraph=fullgraph)
    for pixels, tokens in ((PIXELS, TOKENS), (PIXELS[:1], TOKENS[1:])):
        assert close(compiled(pixels, tokens)[0], clip(pixels, tokens)[0], 1e-3)


@pytest.mark.parametrize("part", [Image, Text])
def test_traced(clip, part):
    """Nothing of our own is taken for a constant, and other numbers and lengths of inputs are right."""
    inputs, others = (PIXELS, PIXELS[:2]) if part is Image else (TOKENS[:2], OTHERS)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        traced = torch.jit.trace(part(clip), inputs, check_trace=False)
    assert {warning.filename for warning in seen if "backends" in warning.filename} == set()
    for x in (inputs, others, inputs[:1]):
        assert close(traced(x), part(clip)(x))


@pytest.mark.parametrize("part", [Image, Text])
def test_exported(clip, part):
    inputs, others = (PIXELS, PIXELS[:2]) if part is Image else (TOKENS, OTHERS[:2])
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(part(clip), (inputs,), dynamic_shapes=({0: batch},)).module()
    for x in (inputs, others):
        assert close(exported(x), part(clip)(x))


def test_exported_for_texts_of_any_length(clip):
    """From an example as long as the context, as tokens usually are."""
    assert TOKENS.shape[1] == VIT.text.context_length
    shapes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=VIT.text.context_length)}
    exported = torch.export.export(Text(clip), (TOKENS,), dynamic_shapes=(shapes,), strict=False).module()
    for x in (TOKENS, TOKENS[:2, :9]):
        assert close(exported(x), Text(clip)(x))


def test_functional_call(clip):
    other = model().requires_grad_(False)
    other.text_projection.mul_(2)
    weights = dict(other.named_parameters())
    assert torch.equal(functional_call(clip, weights, (PIXELS, TOKENS))[0], other(PIXELS, TOKENS)[0])
    assert close(clip.encode_text(TOKENS), paper().encode_text(TOKENS))


@pytest.mark.filterwarnings(r"ignore:There is a performance drop")
def test_vectorised_over_models(clip):
    """An ensemble of two models in one call."""
    ensemble = [copy.deepcopy(clip), copy.deepcopy(clip)]
    ensemble[1].visual.proj.mul_(-2)
    weights, buffers = stack_module_state(ensemble)

    def image_features(weights, buffers):
        return functional_call(Image(clip), ({f"clip.{name}": x for name, x in weights.items()}, buffers), (PIXELS,))

    found = vmap(image_features)(weights, buffers)
    assert close(found[0], clip.encode_image(PIXELS))
    assert close(found[1], -2 * clip.encode_image(PIXELS))


@pytest.mark.filterwarnings(r"ignore:There is a performance drop")
def test_vectorised_over_examples(clip):
    """Per-example gradients, as influence and privacy methods take them."""
    found = vmap(grad(lambda pixels: clip.encode_image(pixels[None]).sum()))(PIXELS)
    x = PIXELS.clone().requires_grad_()
    clip.encode_image(x).sum().backward()
    assert close(found, x.grad)
    texts = vmap(lambda text: clip.encode_text(text[None])[0])(TOKENS)
    assert close(texts, clip.encode_text(TOKENS))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("made", [model, resnet])
def test_quantized_dynamically(made):
    clip = made()
    pixels = PIXELS if made is model else RESNET_PIXELS
    engines = [engine for engine in torch.backends.quantized.supported_engines if engine != "none"]
    torch.backends.quantized.engine = "fbgemm" if "fbgemm" in engines else engines[0]
    quantized = torch.ao.quantization.quantize_dynamic(clip, {nn.Linear}, dtype=torch.qint8)
    assert "DynamicQuantizedLinear" in repr(quantized.transformer.resblocks[0].mlp.c_fc)
    for found, expected in (
        (quantized.encode_text(TOKENS), clip.encode_text(TOKENS)),
        (quantized.encode_image(pixels), clip.encode_image(pixels)),
    ):
        assert nn.functional.cosine_similarity(found, expected).min() > 0.99
        assert not torch.equal(found, expected)


def test_without_values():
    clip = model().to("meta")
    per_image, per_text = clip(PIXELS.to("meta"), TOKENS.to("meta"))
    assert (per_image.shape, per_text.shape, per_image.device.type) == ((3, 3), (3, 3), "meta")
    clip.to_empty(device="cpu")
    clip.load(sample_weights(VIT))
    assert close(clip.encode_text(TOKENS), paper().encode_text(TOKENS))


def test_under_autocast(clip):
    with torch.autocast("cpu", torch.bfloat16):
        image, text = clip.encode_image(PIXELS), clip.encode_text(TOKENS)
    for found, expected in ((image, clip.encode_image(PIXELS)), (text, clip.encode_text(TOKENS))):
        assert nn.functional.cosine_similarity(found.float(), expected).min() > 0.99


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
@pytest.mark.filterwarnings("ignore:`torch.jit.trace", "ignore::torch.jit.TracerWarning")
def test_texts_without_their_end_where_no_value_is_known(clip):
    """They end at their largest id, as in OpenAI's package; where values are known, they are refused."""
    tokens = TOKENS.clone()
    tokens[0] = torch.randint(1, 299, (16,), generator=torch.Generator().manual_seed(0))
    expected = paper().encode_text(tokens)
    traced = torch.jit.trace(Text(clip), TOKENS, check_trace=False)
    assert close(traced(tokens), expected)
    assert close(torch.compile(Text(clip), backend="eager")(tokens), expected)


def test_symbolically_traced():
    """Feature extraction of torchvision."""
    from torchvision.models.feature_extraction import create_feature_extractor

    visual, seen = resnet().visual.requires_grad_(False), []
    found = create_feature_extractor(visual, {"layer3": "map", "attnpool.getitem": "feature"})
    visual.layer3.register_forward_hook(lambda module, given, x: seen.append(x))
    visual(RESNET_PIXELS)
    assert close(found(RESNET_PIXELS)["map"], seen[0])


def test_made_without_values_and_filled():
    import clip as package

    with torch.device("meta"):
        empty = package.model.CLIP(VIT.embed_dim, 64, 2, 128, 32, 16, 300, 128, 2, 3)
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    with torch.device("meta"):
        tower = package.model.VisionTransformer(64, 32, 128, 2, 2, 16)
    tower.to_empty(device="cpu")


def test_counted_operations(clip):
    """PyTorch's own counter sees those of all tokens."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        clip.encode_image(PIXELS)
    tower, n, length = VIT.image, len(PIXELS), VIT.image.grid**2 + 1
    matrices = tower.layers * n * length * 12 * tower.width**2
    scores = tower.layers * n * length * 2 * length * tower.width  # counted on some devices only
    others = n * (length - 1) * 3 * tower.patch**2 * tower.width + n * tower.width * VIT.embed_dim
    assert counter.get_total_flops() / 2 in (matrices + others, matrices + scores + others)


def test_objects_that_openais_package_pickled():
    """Parts whose state has what OpenAI's classes set, and a model without the architecture."""
    import clip as package

    made = package.model.CLIP(16, 64, 1, 64, 32, 16, 300, 64, 1, 1).eval()
    expected = made(PIXELS, TOKENS)[0]
    state = {name: value for name, value in vars(made).items() if name not in ("architecture", "source", "vocabulary")}
    found = package.model.CLIP.__new__(package.model.CLIP)
    found.__setstate__(state)
    assert close(found(PIXELS, TOKENS)[0], expected)
    assert found.architecture == made.architecture
    tower = package.model.VisionTransformer.__new__(package.model.VisionTransformer)
    tower.__setstate__({name: value for name, value in vars(made.visual).items() if name != "patch_dropout"})
    assert close(tower(PIXELS), made.encode_image(PIXELS))
