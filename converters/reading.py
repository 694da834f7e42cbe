"""Reading weights: a path becomes a `ModelFile` under the canonical names, and nothing in a file is executed.

A file is taken apart first (`load`), whether or not what it holds is right; `read` then refuses what is not, and
`converters.inspection` tells it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from clip_core import files, naming, resize
from clip_core.architecture import Architecture
from clip_core.buffers import BFLOAT16, START_BYTES, Buffer, Content, from_bfloat16, read_whole, threads
from clip_core.errors import CheckpointError, ClipError
from clip_core.layouts import LAYOUTS
from clip_core.layouts.parts import Layout, Word
from clip_core.layouts.selection import detect, select
from clip_core.models import MODELS, OPENAI_VOCABULARY_SIZE, NamedArchitecture
from clip_core.naming import Weights
from converters import folders, formats, hdf5, tokenizer_files
from converters.knowledge import NOTHING, phrases, question, settle, silent, word_of, word_of_the_user
from converters.manifest import Manifest

MAX_FILE_BYTES = 16 << 30  # the largest official model is 1.3 GB
MAX_SHARING = 2  # tensors may share bytes, but not so that a small file becomes large in memory


@dataclass(frozen=True)
class ModelFile:
    """A CLIP's weights and what the file that held them says about itself."""

    # Canonical names, shapes and axis order; dtypes as stored, bfloat16 as float32, counters int64.
    # What `read` gives may be read-only: views of the file's bytes.
    weights: Weights
    architecture: Architecture  # from the manifest or the shapes
    # "memory", "torch archive", "torch state dict", "safetensors", "hdf5", "pdparams", "protobuf" or "nnp"
    container: str = "memory"
    entry: str = ""  # the dictionary in the file that they are from, as "model.state_dict"; "" where there is no other
    layout: str = "openai"  # one of clip_core.layouts.LAYOUTS
    sha256: str = ""  # of the very bytes that were read; of several files, of the index and them one after the other
    size: int = 0  # bytes of the file, or of all of them
    vocabulary: str | None = None  # what defines the tokenizer: merges, or a tokenizer.json; None: OpenAI's
    source_sha256: str | None = None  # of the file that this one was converted from, by its manifest
    prefix: str = ""  # of the names in the file, where the model is a part of a larger one
    left_out: tuple[str, ...] = ()  # the tensors of the file that are not below the prefix
    assumed: tuple[str, ...] = ()  # fields of the architecture that nobody says, so that they are OpenAI's
    # Of the weights as they were read, by canonical name: dtype and SHA-256, which the file's manifest says of them.
    verified: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def assumptions(self) -> tuple[str, ...]:
        """What is assumed of the architecture, each as a short phrase with its value."""
        return phrases(self.architecture, self.assumed)

    def at_resolution(self, resolution: int) -> ModelFile:
        """This model for pictures of another resolution (`clip_core.resize`).

        Raises:
            ClipError: it cannot have this one.
        """
        architecture, weights = resize.at_resolution(self.architecture, self.weights, resolution)
        return replace(self, architecture=architecture, weights=weights, verified={})


Like = str | os.PathLike[str] | NamedArchitecture


@dataclass(frozen=True)
class Given:
    """What is known about a file before it is read."""

    prefix: str | None = None  # of the names of the one model to read, where a file holds several
    like: Like | None = None  # what the weights come from
    stated: Word = NOTHING  # by the caller
    expected: Architecture | None = None  # what is assumed in place of OpenAI's


@dataclass(frozen=True)
class Original:
    """What the model that weights come from tells of them."""

    word: Word  # of its architecture, where nobody assumed it
    architecture: Architecture
    vocabulary: str | None = None
    tells_vocabulary: bool = False  # False: it says nothing of the tokenizer


@dataclass(frozen=True)
class Loaded:
    """A parsed file, whether or not its content is valid. Arrays are views of the file."""

    path: Path  # of the file, or of the index of several
    size: int
    sha256: str
    container: str
    entry: str
    prefix: str
    left_out: tuple[str, ...]
    layout: str
    weights: Weights
    architecture: Architecture | None
    assumed: tuple[str, ...]
    manifest: Manifest | None
    vocabulary: str | None
    question: str | None  # what must be stated before these weights can be used
    faults: tuple[str, ...]  # of the manifest, and why there is no architecture


def find(path: str | os.PathLike[str]) -> Path:
    """The weights file that `read` reads for a path: of a folder the one in it, of a cut model its index.

    Raises:
        ClipError: a folder has no weights file, or several different ones.
    """
    return folders.find(path, formats.SUFFIXES)


def files_of(path: str | os.PathLike[str]) -> list[Path]:
    """The files that `read` takes the weights for a path from: one, or an index and all that it names.

    Raises:
        ClipError: as `find`, or the index cannot be used.
    """
    path = find(path)
    if not folders.is_index(path):
        return [path]
    with _about(path):
        return [path, *folders.parts(path, bytes(_bytes_of(path, folders.MAX_INDEX_BYTES)))]


def read(
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    prefix: str | None = None,
    like: Like | None = None,
    activation: str | None = None,
    heads: tuple[int, int] | None = None,
    expected: Architecture | None = None,
    as_stored: bool = False,
) -> ModelFile:
    """Read weights of any format and layout; the bytes, read once, are what is hashed and parsed.

    Args:
        path: a weights file, a folder with one, or the index or any file of a model that is cut into several.
        strict: False gives weights whose names, shapes, dtypes or values do not fit the architecture as they are; what
            the file says of itself is verified all the same.
        prefix: which CLIP to take of a file that holds several, by what its names start with.
        like: the file that these weights come from, by fine-tuning say: what they do not tell of the architecture, and
            the vocabulary, are taken from it; or an architecture that is known by name, which has no vocabulary.
        activation: what both towers need; heads: of the image tower and of the text tower. Weights tell neither. Files
            that `write` made carry both, and so do configurations beside a file; without any of these, the weights are
            taken to be like OpenAI's, and `ModelFile.assumed` says so.
        expected: what is assumed in place of OpenAI's, as a recipe has it.
        as_stored: True gives arrays that may be views of the file in another axis order, or not aligned.

    Raises:
        ClipError: the path cannot be read.
        CheckpointError: the file is damaged, of another kind than its suffix says, not a CLIP, or does not fit.
    """
    with enough_memory(path):
        model = open_model(path, Given(prefix, like, word_of_the_user(activation, heads), expected), strict)
        weights = model.weights
        for name in () if as_stored else weights:  # in place, so that the old array can go before the next one is made
            # Not ascontiguousarray, which turns a scalar into a vector.
            weights[name] = np.require(weights[name], requirements=["C", "A"])
        return model


def open_model(path: str | os.PathLike[str], given: Given, strict: bool = False) -> ModelFile:
    """`read`, with arrays that may be views of the file in another axis order or not aligned."""
    like = given.like
    original = original_of(like)
    loaded = load(path, given, original)
    if loaded.faults or loaded.architecture is None:
        raise CheckpointError(f"{loaded.path}: {'; '.join(loaded.faults)}")
    if strict or like is not None:
        named = like.name if isinstance(like, NamedArchitecture) else like
        naming.check(loaded.architecture, loaded.weights, f"{loaded.path}{'' if like is None else f' (like {named})'}")
    if loaded.question is not None:
        raise CheckpointError(f"{loaded.path}: {loaded.question}.")
    vocabulary = loaded.vocabulary
    if vocabulary is None and original is not None:
        vocabulary = original.vocabulary
    return ModelFile(
        weights=loaded.weights,
        architecture=loaded.architecture,
        container=loaded.container,
        entry=loaded.entry,
        layout=loaded.layout,
        sha256=loaded.sha256,
        size=loaded.size,
        vocabulary=vocabulary,
        source_sha256=None if loaded.manifest is None else loaded.manifest.source_sha256,
        prefix=loaded.prefix,
        left_out=loaded.left_out,
        assumed=loaded.assumed,
        verified={} if loaded.manifest is None else loaded.manifest.tensors,
    )


def original_of(like: Like | None) -> Original | None:
    """What is known of weights that come from ``like``.

    Raises:
        ClipError: as `read`, of its file.
    """
    if like is None:
        return None
    if isinstance(like, NamedArchitecture):
        return Original(word_of(f"{like.name}, which it should be like", like.architecture), like.architecture)
    model = open_model(like, Given())
    architecture = model.architecture
    return Original(
        word_of("the file it should be like", architecture, model.assumed),
        architecture,
        model.vocabulary,
        model.vocabulary is not None or architecture.text.vocabulary_size == OPENAI_VOCABULARY_SIZE,
    )


def load(path: str | os.PathLike[str], given: Given, original: Original | None = None) -> Loaded:
    """Parse a file.

    Args:
        original: of ``given.like``.

    Raises:
        ClipError: the path cannot be read.
        CheckpointError: nothing can be said of what the file holds.
    """
    path = find(path)
    with _opened(path) as (content, size, digest), _about(path):
        return _understand(path, content, size, digest, given, original)


def tensors_of(path: str | os.PathLike[str]) -> tuple[Weights, str]:
    """The tensors of any weights file by their own names, and its SHA-256; arrays are views of the file.

    Raises:
        ClipError: as `read`, but for what a CLIP must have.
    """
    path = find(path)
    with enough_memory(path), _opened(path) as (content, size, digest), _about(path):
        return _plain(content.tensors, size), digest()


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Content, int, Callable[[], str]]]:
    """The content of a file or of all that an index names, the bytes of it, and what waits for their digest."""
    if folders.is_index(path):
        content, size, joined = _joined(path)
        yield content, size, lambda: joined
        return
    data = _bytes_of(path, MAX_FILE_BYTES, formats.of)
    with threads() as pool:
        digest = pool.submit(hashlib.sha256, data)
        yield _content(path, data), len(data), lambda: digest.result().hexdigest()


def _joined(index: Path) -> tuple[Content, int, str]:
    """The tensors of all files that ``index`` names, their bytes and the index's, and the digest of these."""
    data = bytes(_bytes_of(index, folders.MAX_INDEX_BYTES))
    with _about(index):
        parts = folders.parts(index, data)
    size, digest = len(data), hashlib.sha256(data)
    container = ""
    tensors: Weights = {}
    for part, names in parts.items():
        own = _bytes_of(part, MAX_FILE_BYTES - size, formats.of)
        size += len(own)
        digest.update(own)
        content = _content(part, own)
        for name in sorted(content.tensors.keys() ^ names):
            found = "is not in it" if name in names else "is in it"
            raise CheckpointError(f"{part}: {name!r:.200} {found}, and {index.name} says otherwise; fetch both again.")
        container = content.container
        tensors |= content.tensors
    return Content(container, tensors), size, digest.hexdigest()


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Put the file's name in front of a fault."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


@contextmanager
def enough_memory(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn a lack of memory into one sentence."""
    try:
        yield
    except MemoryError as error:
        raise CheckpointError(
            f"{path} needs more memory than there is; close other programs, or use a machine with more."
        ) from error


def _bytes_of(path: Path, limit: int, check: Callable[[Path, bytes], object] | None = None) -> Buffer:
    """The bytes of a file, which is read whole when its first ones have passed ``check``."""
    with files.open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ClipError(f"{path} has {size} bytes; at most {limit} are read here.")
        if check is not None:
            with _about(path):
                check(path, file.read(START_BYTES))
            file.seek(0)
        return read_whole(file, size)


def _content(path: Path, data: Buffer) -> Content:
    with _about(path):
        module = formats.of(path, data[:START_BYTES])
        if module is hdf5:
            hdf5.check_unlocked(path)
        return module.read(data)


def _understand(
    path: Path,
    content: Content,
    size: int,
    sha256: Callable[[], str],
    given: Given,
    original: Original | None,
) -> Loaded:
    manifest = None if content.manifest is None else Manifest.from_text(content.manifest)
    selection = select(_plain(content.tensors, size), given.prefix)
    layout = detect(selection.weights)
    weights = layout.to_canonical(selection.weights)
    architecture: Architecture | None = None
    assumed: tuple[str, ...] = ()
    vocabulary = None if manifest is None else manifest.vocabulary
    asked: str | None = None
    faults: list[str] = []
    try:
        owners = [one for one in LAYOUTS.values() if one.has_tokenizer(path, layout.name)]
        if manifest is None and owners:
            cleaning = next((found for one in owners if (found := one.cleaning(path)) is not None), None)
            vocabulary = _vocabulary_beside(path, cleaning, original)
        architecture, assumed = _architecture(path, weights, layout, sha256, manifest, given, original)
        weights = layout.reorder(weights, architecture)
        if given.expected is None:
            asked = question(architecture, assumed, vocabulary is not None)
    except CheckpointError as error:
        faults.append(str(error))
    if manifest is not None:
        faults += manifest.faults(weights)
    return Loaded(
        path=path,
        size=size,
        sha256=sha256(),
        container=content.container,
        entry=content.entry,
        prefix=selection.prefix,
        left_out=selection.left_out,
        layout=layout.name,
        weights=weights,
        architecture=architecture,
        assumed=assumed,
        manifest=manifest,
        vocabulary=vocabulary,
        question=asked,
        faults=tuple(faults),
    )


def _vocabulary_beside(path: Path, cleaning: str | None, original: Original | None) -> str | None:
    """What defines the tokenizer beside ``path``; None where there is none, or it is OpenAI's.

    Raises:
        CheckpointError: it cannot be used, or is another than that of ``original``.
    """
    found = tokenizer_files.read(path.parent, cleaning)
    if found is None:
        return None
    if original is not None and original.tells_vocabulary and not tokenizer_files.equal(found, original.vocabulary):
        raise CheckpointError(
            "the tokenizer beside it is another than that of the file it should be like; leave out --like (like=...), "
            "or the files of the tokenizer if they are wrong."
        )
    return None if tokenizer_files.is_openai(found) else found


def _architecture(
    path: Path,
    weights: Weights,
    layout: Layout,
    sha256: Callable[[], str],
    manifest: Manifest | None,
    given: Given,
    original: Original | None,
) -> tuple[Architecture, tuple[str, ...]]:
    """The architecture by all that is known, and the fields of it that are assumed.

    Raises:
        CheckpointError: the weights are not those of a CLIP, or what is known does not go together.
    """
    words = [given.stated]
    if manifest is not None:
        words.append(word_of("its manifest", manifest.architecture, manifest.assumed))
        found = manifest.architecture
    elif original is not None:
        found = original.architecture
    else:
        found = layout.infer(weights)
    if original is not None:
        words.append(original.word)
    # A manifest is believed before the digest, which is still being computed.
    named = None if manifest else next((model for model in MODELS.values() if model.sha256 == sha256()), None)
    if named is not None:
        words.append(word_of(f"its SHA-256, which is that of {named.name}", named.architecture))
    if silent(found, words):
        for one in LAYOUTS.values():
            words += one.words(path, layout.name, found)
    return settle(found, words, None if given.expected is None else word_of("the recipe", given.expected))


def _plain(tensors: Weights, size: int) -> Weights:
    """``tensors`` of a file of ``size`` bytes, bfloat16 as float32, once it is sure that copies of them are bounded.

    Raises:
        CheckpointError: many tensors are made of the same bytes.
    """
    if sum(array.nbytes for array in tensors.values()) > MAX_SHARING * size:
        raise CheckpointError(f"its tensors together are more than {MAX_SHARING} times as large as the file.")
    return {name: from_bfloat16(array) if array.dtype == BFLOAT16 else array for name, array in tensors.items()}
