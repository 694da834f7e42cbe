"""Low-resource CLIP's checkpoints: a model with its names, in PyTorch's own layers, is read, inspected and written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from backends.numpy import CLIP as Reference
from clip_core.architecture import Architecture
from clip_core.errors import CheckpointError
from clip_core.similarity import normalize
from clip_core.towers.low_resource import LowResourceTextTransformer, LowResourceVisionTransformer
from converters import ModelFile, inspect, read, write
from tests.models import sample_pixels, sample_tokens, sample_weights

# No two widths are equal, so that no axis can be taken for another.
ARCHITECTURE = Architecture(
    20,
    LowResourceVisionTransformer(24, 8, width=32, layers=2, heads=8, mlp_width=56, head_width=40, feature_width=28),
    LowResourceTextTransformer(12, 300, width=64, layers=2, heads=8, mlp_width=96),
)


class ImageEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embedding = nn.Parameter(torch.randn(1, 192, 32))
        self.class_token = nn.Parameter(torch.randn(1, 1, 32))
        self.pos_embedding = nn.Parameter(torch.randn(1, 10, 32))
        self.layer_norm = nn.LayerNorm(32)
        layer = nn.TransformerEncoderLayer(32, 8, 56, 0.0, "gelu", batch_first=True, norm_first=True)
        self.transformer = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.mlp_head = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 40), nn.Linear(40, 28))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = nn.functional.unfold(x, 8, stride=8).mT.unflatten(-1, (3, 64)).mT.flatten(2)
        x = torch.cat([self.class_token.expand(len(x), 1, -1), patches @ self.patch_embedding], dim=1)
        return self.mlp_head(self.transformer(self.layer_norm(x + self.pos_embedding))[:, 0])


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv = (nn.Parameter(torch.randn(1, 64, 8) / 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = x @ self.wq, x @ self.wk, x @ self.wv
        later = torch.ones(12, 12, dtype=torch.bool).triu(1)
        return (q @ k.mT / 8**0.5).masked_fill(later, -torch.inf).softmax(-1) @ v


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention_heads = nn.ModuleList(Head() for _ in range(8))
        self.fc = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.cat([head(x) for head in self.attention_heads], dim=-1))


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc_hidden, self.fc_out = nn.Linear(64, 96), nn.Linear(96, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc_out(nn.functional.gelu(self.fc_hidden(x)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.masked_self_attention, self.layer_norm_att = SelfAttention(), nn.LayerNorm(64)
        self.mlp, self.layer_norm_mlp = MLP(), nn.LayerNorm(64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.masked_self_attention(self.layer_norm_att(x))
        return x + self.mlp(self.layer_norm_mlp(x))


class TextTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pos_encoder = nn.Parameter(torch.randn(1, 12, 64))
        self.transformers = nn.ModuleList(Block() for _ in range(2))
        self.layer_norm = nn.LayerNorm(64)


class TextEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token_embedder = nn.ModuleDict({"embedding": nn.Embedding(300, 64)})
        self.transformer = TextTransformer()

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        x = self.token_embedder["embedding"](text) + self.transformer.pos_encoder
        for block in self.transformer.transformers:
            x = block(x)
        return self.transformer.layer_norm(x[torch.arange(len(x)), (text == 1).int().argmax(dim=-1)])


class Theirs(nn.Module):
    """With the attention of a causal transformer, which its own code does not compute."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder, self.text_encoder = ImageEncoder(), TextEncoder()
        self.img_mm_encoder = nn.Linear(28, 20, bias=False)
        self.txt_mm_encoder = nn.Linear(64, 20, bias=False)


@pytest.fixture(scope="module")
def theirs() -> Theirs:
    torch.manual_seed(0)
    model = Theirs()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.rand_like(parameter)
    return model


def assert_same_features(file: ModelFile, model: Theirs) -> None:
    pixels, tokens = sample_pixels(ARCHITECTURE), sample_tokens(ARCHITECTURE)
    judge = Reference(file.architecture, file.weights, precision="fp64")
    with torch.no_grad():
        image = model.img_mm_encoder(model.image_encoder(torch.from_numpy(pixels)))
        text = model.txt_mm_encoder(model.text_encoder(torch.from_numpy(tokens)))
    for found, expected in ((judge.encode_image(pixels), image), (judge.encode_text(tokens), text)):
        np.testing.assert_allclose(normalize(found), normalize(expected.numpy()), rtol=0, atol=1e-5)


def test_a_checkpoint_is_read(theirs, tmp_path):
    """It has no suffix, and the state of an optimizer beside the weights."""
    optimizer = torch.optim.AdamW(theirs.parameters())
    checkpoint = {"epoch": 3, "model_state_dict": theirs.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0).state_dict()
    path = tmp_path / "CLIP_epoch_3_2023-07-01"
    torch.save(checkpoint | {"loss_history": [2.5], "scheduler": scheduler}, path)
    found = read(path)
    assert (found.layout, found.entry, found.architecture) == ("low_resource", "model_state_dict", ARCHITECTURE)
    assert found.weights["logit_scale"] == pytest.approx(np.log(1 / 0.07), rel=1e-6)
    assert found.assumed == ("image.pixels",)
    assert_same_features(found, theirs)
    assert (inspect(path).layout, inspect(path).faults) == ("low_resource", ())


def test_what_is_written_is_what_their_model_loads(theirs, tmp_path):
    weights = sample_weights(ARCHITECTURE)
    write(ModelFile(weights, ARCHITECTURE), tmp_path / "theirs.pt", layout="low_resource")
    found = read(tmp_path / "theirs.pt")
    assert found.architecture == ARCHITECTURE
    assert found.weights.keys() == weights.keys()
    assert all(np.array_equal(array, weights[name]) for name, array in found.weights.items())
    stored = torch.load(tmp_path / "theirs.pt", weights_only=True)
    assert set(stored) - set(theirs.state_dict()) == {"logit_scale"}
    model = Theirs()
    model.load_state_dict(stored, strict=False)
    assert_same_features(found, model)


def test_a_missing_head_is_named(theirs, tmp_path):
    missing = "text_encoder.transformer.transformers.1.masked_self_attention.attention_heads.2.wk"
    torch.save({name: value for name, value in theirs.state_dict().items() if name != missing}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"text\.transformer\.resblocks\.1\.attn\.in_proj_weight is missing"):
        read(tmp_path / "a.pt")
