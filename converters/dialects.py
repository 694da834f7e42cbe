"""The spellings of a CLIP's weights in other projects' files, and the way from each to the canonical names and back.

A layout is a spelling of the names, the kinds of tensor it stores transposed, axes of length 1 that it adds, and
whether it keeps the three attention inputs apart. Nothing but `Parameter.kind` decides what is transposed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from clip_core.architecture import Architecture, infer
from clip_core.buffers import Tensor
from clip_core.errors import CheckpointError, ClipError
from clip_core.naming import Weights, parameters
from clip_core.towers.parts import Kind
from clip_core.towers.vision_transformer import VisionTransformer

# Parts that wrappers put into names: compilation, sharding, recomputation. At the start they are a prefix like others.
_WRAPPERS = re.compile(r"(?<=[./])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)[./]")
MAX_MODELS = 100  # CLIPs in one file
# Constants that some files store among the weights; the architecture already tells them.
_CONSTANTS = ("input_resolution", "context_length", "vocab_size", "position_ids", "attn_mask")
_BLOCK = re.compile(r"((?:visual\.)?transformer\.resblocks)\.([0-9]+)\.(.+)")
_ATTENTION_INPUT = re.compile(r"(.+\.attn\.in_proj)_(weight|bias)")
_PROJECTIONS = ("text_projection", "visual.proj")


@dataclass(frozen=True)
class Renaming:
    """Names that differ by a table: of the towers, of what is inside a block, and of everything else."""

    towers: Mapping[str, str]
    block: Mapping[str, str]
    top: Mapping[str, str]

    def __call__(self, name: str) -> str:
        if match := _BLOCK.fullmatch(name):
            tower, index, inner = match.groups()
            return f"{self.towers[tower]}.{index}.{self.block.get(inner, inner)}"
        return self.top.get(name, name)

    def inverse(self) -> Callable[[str], str]:
        """The canonical name for a name in this spelling; an unknown name stays as it is."""
        towers = {theirs: ours for ours, theirs in self.towers.items()}
        block = {theirs: ours for ours, theirs in self.block.items()}
        top = {theirs: ours for ours, theirs in self.top.items()}
        pattern = re.compile(rf"({'|'.join(map(re.escape, towers))})\.([0-9]+)\.(.+)")

        def canonical(name: str) -> str:
            if match := pattern.fullmatch(name):
                tower, index, inner = match.groups()
                return f"{towers[tower]}.{index}.{block.get(inner, inner)}"
            return top.get(name, name)

        return canonical


def _modules(names: Mapping[str, str]) -> dict[str, str]:
    """A table of modules, as the table of their weights and biases."""
    return {f"{ours}.{leaf}": f"{theirs}.{leaf}" for ours, theirs in names.items() for leaf in ("weight", "bias")}


_PASSL = Renaming(
    towers={"visual.transformer.resblocks": "visual.blocks", "transformer.resblocks": "transformer.blocks"},
    block=_modules(
        {
            "attn.out_proj": "attn.proj",
            "ln_1": "norm1",
            "ln_2": "norm2",
            "mlp.c_fc": "mlp.fc1",
            "mlp.c_proj": "mlp.fc2",
        }
    )
    | {"attn.in_proj_weight": "attn.qkv.weight", "attn.in_proj_bias": "attn.qkv.bias"},
    top=_modules({"visual.ln_pre": "visual.norm_pre", "visual.ln_post": "visual.norm_post"})
    | {"visual.conv1.weight": "visual.patch_embed.proj.weight"},
)

_HUGGINGFACE = Renaming(
    towers={
        "visual.transformer.resblocks": "vision_model.encoder.layers",
        "transformer.resblocks": "text_model.encoder.layers",
    },
    block=_modules(
        {
            # q, k and v are stored apart; `_join_attention` and `_split_attention` are the bridge to these names.
            **{f"attn.{part}_proj": f"self_attn.{part}_proj" for part in "qkv"},
            "attn.out_proj": "self_attn.out_proj",
            "ln_1": "layer_norm1",
            "ln_2": "layer_norm2",
            "mlp.c_fc": "mlp.fc1",
            "mlp.c_proj": "mlp.fc2",
        }
    ),
    top=_modules(
        {
            "ln_final": "text_model.final_layer_norm",
            "visual.ln_pre": "vision_model.pre_layrnorm",  # spelled like this
            "visual.ln_post": "vision_model.post_layernorm",
        }
    )
    | {
        "text_projection": "text_projection.weight",
        "visual.proj": "visual_projection.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    },
)


def _same(name: str) -> str:
    return name


def _to_nnabla(name: str) -> str:
    # NNabla's own converter replaces plain substrings in this order.
    name = name.replace("running_mean", "mean").replace("running_var", "var")
    return name.replace("weight", "W").replace("bias", "b").replace(".", "/")


def _from_nnabla(name: str) -> str:
    canonical = re.sub("(?<=[/_])W$", "weight", name)
    canonical = re.sub("(?<=[/_])b$", "bias", canonical)
    canonical = re.sub("/(mean|var)$", r"/running_\1", canonical).replace("/", ".")
    # Files written by a general converter keep the statistics' own names.
    spelled = name.replace("running_mean", "mean").replace("running_var", "var")
    return canonical if _to_nnabla(canonical) == spelled else name


def _from_open_clip(name: str) -> str:
    return name.removeprefix("text.")  # models with a text tower of their own


@dataclass(frozen=True)
class Layout:
    """How one project stores a CLIP."""

    spell: Callable[[str], str]
    canonical: Callable[[str], str]
    transposed: tuple[Kind, ...] = ()
    added_axes: Mapping[str, int] | None = None  # canonical name -> axes of length 1 put in front
    split_attention: bool = False
    prefix: str = ""
    towers: tuple[type, ...] | None = None  # None: every image tower


LAYOUTS: dict[str, Layout] = {
    "openai": Layout(_same, _same),
    "nnabla": Layout(_to_nnabla, _from_nnabla),
    "paddle": Layout(_same, _same, transposed=("linear",)),
    "passl": Layout(
        _PASSL,
        _PASSL.inverse(),
        transposed=("linear",),
        added_axes={"logit_scale": 1, "visual.class_embedding": 2, "visual.positional_embedding": 1},
        prefix="model.",
        towers=(VisionTransformer,),
    ),
    "huggingface": Layout(
        _HUGGINGFACE,
        _HUGGINGFACE.inverse(),
        transposed=("projection",),
        split_attention=True,
        towers=(VisionTransformer,),
    ),
    # open_clip's own CLIP has OpenAI's names, which is what is written.
    "open_clip": Layout(_same, _from_open_clip),
}


# The two names by which a CLIP is found inside a larger module, in each spelling.
_TOKENS, _PATCHES = "token_embedding.weight", "visual.conv1.weight"
_MARKS = {(layout.spell(_TOKENS), layout.spell(_PATCHES)) for layout in LAYOUTS.values()}
_MARKS.add((f"text.{_TOKENS}", _PATCHES))


@dataclass(frozen=True)
class Selection:
    """The tensors of a file that are a CLIP's, without the prefix that the rest of their names shares."""

    weights: Weights
    prefix: str
    left_out: tuple[str, ...]  # the names of the tensors that are not below the prefix


def select(tensors: Mapping[str, np.ndarray], prefix: str | None = None) -> Selection:
    """The one CLIP in ``tensors``, which may be a part of a larger module; constants that are no weights go.

    A CLIP is where both an embedding of tokens and one of patches are. Where there is none, the names stay as they are.

    Args:
        prefix: which one to take of several, like ``teacher.``; the separator at its end may be left out.

    Raises:
        CheckpointError: there are several and ``prefix`` is None, there is none below ``prefix``, or two names become
            one without what wrappers put in.
    """
    plain: Weights = {}
    for name, array in tensors.items():
        unwrapped = _WRAPPERS.sub("", name)
        if re.split(r"[./]", unwrapped)[-1] in _CONSTANTS:
            continue
        if unwrapped in plain:
            raise CheckpointError(f"{name} and another name both become {unwrapped} without their wrapper; remove one.")
        plain[unwrapped] = array
    found = _prefixes(plain)
    chosen = _choose(plain, found, prefix)
    # Of models inside each other, a tensor belongs to the innermost.
    inner = tuple(other for other in found if other != chosen and other.startswith(chosen))
    weights = {
        name[len(chosen) :]: array
        for name, array in plain.items()
        if name.startswith(chosen) and not (inner and name.startswith(inner))
    }
    left_out = (name for name in plain if not name.startswith(chosen) or (inner and name.startswith(inner)))
    return Selection(weights, chosen, tuple(left_out))


def _prefixes(names: Iterable[str]) -> list[str]:
    """What stands before both marks of a CLIP, sorted."""
    before: dict[str, set[str]] = {mark: set() for marks in _MARKS for mark in marks}
    for name in names:
        for mark, prefixes in before.items():
            if name.endswith(mark) and (start := name[: -len(mark)])[-1:] in ("", ".", "/"):
                prefixes.add(start)
    return sorted(set().union(*(before[tokens] & before[patches] for tokens, patches in _MARKS)))


def _choose(names: Iterable[str], found: list[str], prefix: str | None) -> str:
    if len(found) > MAX_MODELS:
        raise CheckpointError(f"it holds {len(found)} CLIPs; at most {MAX_MODELS} in one file are told apart.")
    shown = ", ".join(f"{one!r:.80}" for one in found[:5]) + (" and more" if len(found) > 5 else "")
    if prefix is not None:
        chosen = next((one for one in found if one.rstrip("./") == prefix.rstrip("./")), None)
        if chosen is None:
            there = f"there is one below {shown}" if found else "there is none below any other either"
            raise CheckpointError(f"no CLIP is below the prefix {prefix!r:.80}; {there}.")
        return chosen
    if len(found) > 1:
        others = [name for name in names if not name.startswith(tuple(found))]
        beside = ", ".join(f"{one!r:.80}" for one in others[:3]) + (" and more" if len(others) > 3 else "")
        raise CheckpointError(
            f"it holds several CLIPs, below the prefixes {shown}{f' (and beside them {beside})' if others else ''}; "
            f"clip convert --prefix {found[-1]!r:.80} takes that one out of it."
        )
    return found[0] if found else ""


def detect(weights: Mapping[str, np.ndarray]) -> str:
    """The layout that the names (for Paddle's, the shape of a linear weight) speak for."""

    def any_starts(*prefixes: str) -> bool:
        return any(name.startswith(prefixes) for name in weights)

    if any_starts("text_model.", "vision_model."):
        return "huggingface"
    if any("/" in name for name in weights):
        return "nnabla"
    if any_starts("visual.blocks.", "transformer.blocks.", "visual.patch_embed."):
        return "passl"
    if any_starts("text."):
        return "open_clip"
    # A bias is as long as the output, which is the first axis of a linear weight as OpenAI stores it. All of them are
    # asked, so that one that is wrong does not put the others in the wrong.
    first = second = 0
    for name, array in weights.items():
        bias = weights.get(f"{name.removesuffix('weight')}bias") if _BLOCK.fullmatch(name) else None
        if bias is not None and array.ndim == 2:
            first += bias.shape == array.shape[:1]
            second += bias.shape == array.shape[1:]
    return "paddle" if second > first else "openai"


def to_canonical(weights: Mapping[str, np.ndarray], layout: str) -> Weights:
    """``weights`` of a file, after `select`, under the canonical names and with the canonical number of axes.

    The axis order is still the file's: see `reorder`.

    Raises:
        CheckpointError: two names become one.
    """
    rules = LAYOUTS[layout]
    canonical: Weights = {}
    for spelled, array in weights.items():
        name = rules.canonical(spelled)
        if name in canonical:
            raise CheckpointError(f"{spelled} and another name both stand for {name}; remove one.")
        axes = (rules.added_axes or {}).get(name, 0)
        if name in ("logit_scale", "logit_bias") and array.shape == (1,):  # some of open_clip's, and every PASSL
            axes = 1
        if axes and array.shape[:axes] == (1,) * axes:
            array = array.reshape(array.shape[axes:])
        canonical[name] = array
    return _join_attention(canonical) if rules.split_attention else canonical


def infer_architecture(weights: Mapping[str, np.ndarray], layout: str) -> Architecture:
    """The architecture that the shapes of weights in the axis order of ``layout`` tell.

    Raises:
        CheckpointError: they are not those of a CLIP.
    """
    shapes = {name: array.shape for name, array in weights.items()}
    if "projection" in LAYOUTS[layout].transposed:
        shapes |= {name: shapes[name][::-1] for name in _PROJECTIONS if name in shapes}
    return infer(shapes)


def reorder(weights: Mapping[str, np.ndarray], architecture: Architecture, layout: str) -> Weights:
    """Canonical axis order, and the batch counters that most projects leave out; in the order of the table."""
    ordered: Weights = {}
    for parameter in parameters(architecture):
        if parameter.name in weights:
            array = weights[parameter.name]
            transposed = parameter.kind in LAYOUTS[layout].transposed and array.ndim == 2
            ordered[parameter.name] = array.T if transposed else array
        elif parameter.kind == "counter":
            ordered[parameter.name] = np.zeros((), np.int64)
    return ordered | {name: array for name, array in weights.items() if name not in ordered}


def spell(tensors: Mapping[str, Tensor], architecture: Architecture, layout: str) -> dict[str, Tensor]:
    """Canonical ``tensors`` as ``layout`` stores them, prefix included; views, nothing is copied.

    Raises:
        ClipError: the layout has no place for this image tower.
    """
    rules = LAYOUTS[layout]
    if rules.towers is not None and not isinstance(architecture.image, rules.towers):
        raise ClipError(f"The layout {layout} has no names for a ResNet; choose openai, nnabla, paddle or open_clip.")
    spelled: dict[str, Tensor] = {}
    for parameter in parameters(architecture):
        tensor = tensors[parameter.name]
        array = tensor.array.T if parameter.kind in rules.transposed else tensor.array
        array = array.reshape((1,) * (rules.added_axes or {}).get(parameter.name, 0) + array.shape)
        for name, part in (
            _split_attention(parameter.name, array) if rules.split_attention else [(parameter.name, array)]
        ):
            spelled[rules.prefix + rules.spell(name)] = Tensor(part, tensor.dtype, tensor.trainable)
    return spelled


def _split_attention(name: str, array: np.ndarray) -> Iterable[tuple[str, np.ndarray]]:
    match = _ATTENTION_INPUT.fullmatch(name)
    if match is None:
        return [(name, array)]
    stem, leaf = match.groups()
    return [
        (f"{stem.removesuffix('in_proj')}{part}_proj.{leaf}", third) for part, third in zip("qkv", np.split(array, 3))
    ]


def _join_attention(weights: Weights) -> Weights:
    joined = dict(weights)
    for name in weights:
        if match := re.fullmatch(r"(.+\.attn)\.q_proj\.(weight|bias)", name):
            stem, leaf = match.groups()
            names = [f"{stem}.{part}_proj.{leaf}" for part in "qkv"]
            parts = [weights.get(part) for part in names]
            # Parts that do not fit together stay as they are: the table then names them.
            found = [part for part in parts if part is not None and part.ndim]
            if len(found) == 3 and len({(part.shape, part.dtype) for part in found}) == 1:
                joined[f"{stem}.in_proj_{leaf}"] = np.concatenate(found)
                for part in names:
                    del joined[part]
    return joined
