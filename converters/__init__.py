"""Weights files in and out: every format and layout in use, read and written without any framework.

`read` gives a `Checkpoint` under the canonical names; `write` and `convert` publish a file only after it was read back
and compared bit for bit; `inspect` tells what a file is and everything that is wrong with it. Reading executes nothing.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from clip_core import files, naming
from clip_core.architecture import MODELS, OPENAI_VOCABULARY_SIZE, Architecture, name_of
from clip_core.errors import CheckpointError, ClipError
from clip_core.naming import Weights
from converters import (
    companions,
    configurations,
    dialects,
    folders,
    hdf5,
    nnp,
    pdparams,
    protobuf,
    safetensors,
    tokenizer_files,
    torch_archive,
    torch_legacy,
    verify,
)
from converters.buffers import (
    BFLOAT16,
    START_BYTES,
    Buffer,
    Content,
    Tensor,
    from_bfloat16,
    map_file,
    pieces,
    sha256,
    shown,
)
from converters.knowledge import NOTHING, Word, phrases, question, settle, silent, word_of, word_of_the_user
from converters.manifest import Manifest

MAX_FILE_BYTES = 16 << 30  # the largest official model is 1.3 GB
MAX_SHARING = 2  # tensors may share bytes, but not so that a small file becomes large in memory

_FORMATS: dict[str, ModuleType] = {
    ".pt": torch_archive,
    ".pth": torch_archive,
    ".bin": torch_archive,
    ".safetensors": safetensors,
    ".h5": hdf5,
    ".pdparams": pdparams,
}
_READ_ONLY_SUFFIXES: dict[str, ModuleType] = {".hdf5": hdf5, ".pd": pdparams, ".protobuf": protobuf, ".nnp": nnp}
_OLD_FORMATS = {torch_archive: torch_legacy}  # of the same suffixes
_KINDS: dict[ModuleType, str] = {  # in the order in which they are looked for: the first two are special cases
    nnp: "an archive of NNabla",
    torch_legacy: "a file of PyTorch before 1.6",
    torch_archive: "a PyTorch zip archive",
    hdf5: "an HDF5 file",
    pdparams: "a pickle, as Paddle writes it",
    protobuf: "parameters of NNabla in Protocol Buffers",
    safetensors: "a safetensors file",
}
_DEFAULT_LAYOUTS = {torch_archive: "openai", safetensors: "openai", hdf5: "nnabla", pdparams: "paddle"}


@dataclass(frozen=True)
class Checkpoint:
    """A CLIP's weights and what the file that held them says about itself."""

    # Canonical names, shapes and axis order; dtypes as stored, bfloat16 as float32, counters int64.
    # What `read` gives may be read-only: views of the file's bytes.
    weights: Weights
    architecture: Architecture  # from the manifest or the shapes
    # "memory", "torch archive", "torch state dict", "safetensors", "hdf5", "pdparams", "protobuf" or "nnp"
    container: str = "memory"
    entry: str = ""  # the dictionary in the file that they are from, as "model.state_dict"; "" where there is no other
    layout: str = "openai"  # one of dialects.LAYOUTS
    sha256: str = ""  # of the very bytes that were read; of several files, of the index and them one after the other
    size: int = 0  # bytes of the file, or of all of them
    vocabulary: str | None = None  # the merges of the byte-pair encoding, one a line; None: OpenAI's
    source_sha256: str | None = None  # of the file that this one was converted from, by its manifest
    prefix: str = ""  # of the names in the file, where the model is a part of a larger one
    left_out: tuple[str, ...] = ()  # the tensors of the file that are not below the prefix
    assumed: tuple[str, ...] = ()  # fields of the architecture that nobody says, so that they are OpenAI's

    def assumptions(self) -> tuple[str, ...]:
        """What is assumed of the architecture, each as a short phrase with its value."""
        return phrases(self.architecture, self.assumed)


@dataclass(frozen=True)
class Report:
    """What a conversion did."""

    source: str | None  # None: weights from memory
    target: str
    beside: tuple[str, ...]  # the names of the files that a library needs beside the target, and that were written, too
    source_sha256: str
    target_sha256: str
    tensors: int  # in the target
    parameters: int  # trained scalars
    dtype: str  # of the target's tensors, counters apart; "float16 + float32" for a mixture
    layout: str
    prefix: str  # of the names in the source, where the model is a part of a larger one
    left_out: tuple[str, ...]  # the tensors of the source that are not below the prefix
    assumed: tuple[str, ...]  # what nobody says of the architecture, so that it is OpenAI's
    max_abs_difference: float  # between the source's values and the target's, read back: 0.0 unless dtype was narrowed
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Inspection:
    """What a file is, and everything that is wrong with it."""

    path: str
    size: int  # bytes
    sha256: str
    container: str
    entry: str  # the dictionary in the file that they are from, as "model.state_dict"; "" where there is no other
    layout: str
    model: str | None  # the registry's name for the architecture
    architecture: Architecture | None  # None: the first of the faults says why
    assumed: tuple[str, ...]  # what nobody says of the architecture, so that it is OpenAI's
    prefix: str  # of the names in the file, where the model is a part of a larger one
    left_out: tuple[str, ...]  # the tensors of the file that are not below the prefix
    tensors: int
    scalars: int  # in all tensors, counters and statistics included
    dtypes: dict[str, int]  # dtype -> tensors
    manifest: bool  # whether the file carries one
    source_sha256: str | None
    own_vocabulary: bool  # False: OpenAI's
    zeros: tuple[str, ...]  # weights that are zero everywhere, which training seldom leaves
    faults: tuple[str, ...]  # empty: the file is sound

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"architecture": self.architecture and self.architecture.to_dict()}


@dataclass(frozen=True)
class _Loaded:
    """A file that could be taken apart, whether or not what it holds is right. Arrays are views of the file."""

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
    return folders.find(path, [*_FORMATS, *_READ_ONLY_SUFFIXES])


def files_of(path: str | os.PathLike[str]) -> list[Path]:
    """The files that `read` takes the weights for a path from: one, or an index and all that it names.

    Raises:
        ClipError: as `find`, or the index cannot be used.
    """
    path = find(path)
    if not folders.is_index(path):
        return [path]
    with _about(path):
        return [path, *folders.parts(path, _bytes_of(path, folders.MAX_INDEX_BYTES))]


def read(
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    prefix: str | None = None,
    like: str | os.PathLike[str] | None = None,
    activation: str | None = None,
    heads: tuple[int, int] | None = None,
    expected: Architecture | None = None,
) -> Checkpoint:
    """Read weights of any format and layout; the bytes, read once, are what is hashed and parsed.

    Args:
        path: a weights file, a folder with one, or the index or any file of a model that is cut into several.
        strict: False gives weights whose names, shapes, dtypes or values do not fit the architecture as they are; what
            the file says of itself is verified all the same.
        prefix: which CLIP to take of a file that holds several, by what its names start with.
        like: the file that these weights come from, by fine-tuning say: what they do not tell of the architecture, and
            the vocabulary, are taken from it.
        activation: what both towers need; heads: of the image tower and of the text tower. Weights tell neither. Files
            that `write` made carry both, and so do configurations beside a file; without any of these, the weights are
            taken to be like OpenAI's, and `Checkpoint.assumed` says so.
        expected: what is assumed in place of OpenAI's, as a recipe has it.

    Raises:
        ClipError: the path cannot be read.
        CheckpointError: the file is damaged, of another kind than its suffix says, not a CLIP, or does not fit.
    """
    with _enough_memory(path):
        return _finished(_open(path, strict, prefix, like, word_of_the_user(activation, heads), expected))


def write(
    checkpoint: Checkpoint,
    path: str | os.PathLike[str],
    *,
    layout: str | None = None,
    dtype: str | None = None,
    force: bool = False,
) -> Report:
    """Write a checkpoint in the format of the path's suffix: whole and read back, or not at all.

    With the layouts huggingface and open_clip, a path without a suffix is a folder, which is made with the file and all
    that these libraries need beside it; so is what they need beside a file of a name that they look for. The old
    configuration and what else changes beside the file goes first, then the new weights come, which say all about
    themselves, and the new configuration is the last. So whenever this is cut off, no weights lie beside the
    configuration of others, and these libraries, which want one, load no part of a folder.

    Args:
        layout: one of `dialects.LAYOUTS`; None: nnabla for ``.h5``, paddle for ``.pdparams``, else openai.
        dtype: ``float16`` or ``float32`` for everything but counters; None: each tensor as it is.
        force: replace files that are there already.

    Raises:
        ClipError: the suffix, the layout or the dtype is none there is, a file is there already, or the path cannot be
            written.
        CheckpointError: the weights do not fit their architecture, or a value does not fit ``dtype``.
    """
    return _publish([], lambda: checkpoint, path, layout, dtype, force)


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    layout: str | None = None,
    dtype: str | None = None,
    prefix: str | None = None,
    like: str | os.PathLike[str] | None = None,
    activation: str | None = None,
    heads: tuple[int, int] | None = None,
    force: bool = False,
) -> Report:
    """`read` and `write` in one; memory stays near the source's size.

    Args:
        layout, dtype, force: as for `write`.
        prefix, like, activation, heads: as for `read`.

    Raises:
        ClipError: also when the target is a file of the source or of ``like``.
    """
    stated = word_of_the_user(activation, heads)
    with _enough_memory(source):
        sources = [source] if like is None else [source, like]
        return _publish(sources, lambda: _open(source, False, prefix, like, stated), target, layout, dtype, force)


def inspect(
    path: str | os.PathLike[str],
    *,
    prefix: str | None = None,
    activation: str | None = None,
    heads: tuple[int, int] | None = None,
) -> Inspection:
    """What a file is and everything that is wrong with it, as far as it can be taken apart.

    Args:
        prefix, activation, heads: as for `read`.

    Raises:
        ClipError: the path cannot be read.
        CheckpointError: the file is damaged so that nothing can be said of what it holds, or is of another kind.
    """
    with _enough_memory(path):
        loaded = _load(path, prefix, word_of_the_user(activation, heads))
    architecture, manifest = loaded.architecture, loaded.manifest
    faults = list(loaded.faults)
    if architecture is not None:
        faults += naming.faults(architecture, loaded.weights)
    if loaded.question is not None:
        faults.append(loaded.question)
    return Inspection(
        path=os.fspath(loaded.path),
        size=loaded.size,
        sha256=loaded.sha256,
        container=loaded.container,
        entry=loaded.entry,
        layout=loaded.layout,
        model=None if architecture is None else name_of(architecture),
        architecture=architecture,
        assumed=() if architecture is None else phrases(architecture, loaded.assumed),
        prefix=loaded.prefix,
        left_out=loaded.left_out,
        tensors=len(loaded.weights),
        scalars=sum(array.size for array in loaded.weights.values()),
        dtypes=dict(sorted(Counter(array.dtype.name for array in loaded.weights.values()).items())),
        manifest=manifest is not None,
        source_sha256=None if manifest is None else manifest.source_sha256,
        own_vocabulary=loaded.vocabulary is not None,
        zeros=tuple(name for name, array in loaded.weights.items() if array.size and array.ndim and not array.any()),
        faults=tuple(faults),
    )


def _open(
    path: str | os.PathLike[str],
    strict: bool,
    prefix: str | None,
    like: str | os.PathLike[str] | None,
    stated: Word,
    expected: Architecture | None = None,
) -> Checkpoint:
    """`read`, with arrays that may be views of the file in another axis order or not aligned."""
    original = None if like is None else _open(like, False, None, None, NOTHING)
    loaded = _load(path, prefix, stated, original, expected)
    if loaded.faults or loaded.architecture is None:
        raise CheckpointError(f"{loaded.path}: {'; '.join(loaded.faults)}")
    if strict or like is not None:
        naming.check(loaded.architecture, loaded.weights, f"{loaded.path}{'' if like is None else f' (like {like})'}")
    if loaded.question is not None:
        raise CheckpointError(f"{loaded.path}: {loaded.question}.")
    vocabulary = loaded.vocabulary
    if vocabulary is None and original is not None:
        vocabulary = original.vocabulary
    return Checkpoint(
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
    )


def _finished(checkpoint: Checkpoint) -> Checkpoint:
    weights = checkpoint.weights
    for name in weights:  # in place, so that the old array can go before the next one is made
        # Not ascontiguousarray, which turns a scalar into a vector.
        weights[name] = np.require(weights[name], requirements=["C", "A"])
    return checkpoint


def _load(
    path: str | os.PathLike[str],
    prefix: str | None,
    stated: Word,
    original: Checkpoint | None = None,
    expected: Architecture | None = None,
) -> _Loaded:
    path = find(path)
    if folders.is_index(path):
        content, size, digest = _joined(path)
    else:
        data = _bytes_of(path, MAX_FILE_BYTES, _format_of)
        content, size, digest = _content(path, data), len(data), hashlib.sha256(data)
    with _about(path):
        return _understand(path, content, size, digest.hexdigest(), prefix, stated, original, expected)


def _joined(index: Path) -> tuple[Content, int, hashlib._Hash]:
    """The tensors of all files that ``index`` names, their bytes and the index's, and the digest of these."""
    data = _bytes_of(index, folders.MAX_INDEX_BYTES)
    with _about(index):
        parts = folders.parts(index, data)
    size, digest = len(data), hashlib.sha256(data)
    container = ""
    tensors: Weights = {}
    for part, names in parts.items():
        data = _bytes_of(part, MAX_FILE_BYTES - size, _format_of)
        size += len(data)
        digest.update(data)
        content = _content(part, data)
        for name in sorted(content.tensors.keys() ^ names):
            found = "is not in it" if name in names else "is in it"
            raise CheckpointError(f"{part}: {name!r:.200} {found}, and {index.name} says otherwise; fetch both again.")
        container = content.container
        tensors |= content.tensors
    return Content(container, tensors), size, digest


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Put the file's name before what is wrong with it."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


@contextmanager
def _enough_memory(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn memory that runs out into a sentence."""
    try:
        yield
    except MemoryError as error:
        raise CheckpointError(
            f"{path} needs more memory than there is; close other programs, or use a machine with more."
        ) from error


def _bytes_of(path: Path, limit: int, check: Callable[[Path, bytes], object] | None = None) -> bytes:
    """The bytes of a file, which is read whole when its first ones have passed ``check``."""
    with files.open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ClipError(f"{path} has {size} bytes; at most {limit} are read here.")
        if check is not None:
            with _about(path):
                check(path, file.read(START_BYTES))
            file.seek(0)
        return file.read(size)


def _content(path: Path, data: Buffer) -> Content:
    with _about(path):
        module = _format_of(path, data[:START_BYTES])
        if module is hdf5:
            hdf5.check_unlocked(path)
        return module.read(data)


def _understand(
    path: Path,
    content: Content,
    size: int,
    sha256: str,
    prefix: str | None,
    stated: Word,
    original: Checkpoint | None,
    expected: Architecture | None,
) -> _Loaded:
    manifest = None if content.manifest is None else Manifest.from_text(content.manifest)
    selection = dialects.select(_plain(content.tensors, size), prefix)
    layout = dialects.detect(selection.weights)
    weights = dialects.to_canonical(selection.weights, layout)
    architecture: Architecture | None = None
    assumed: tuple[str, ...] = ()
    vocabulary = None if manifest is None else manifest.vocabulary
    asked: str | None = None
    faults: list[str] = []
    try:
        if manifest is None and configurations.has_tokenizer(path, layout):
            vocabulary = _vocabulary_beside(path, original)
        architecture, assumed = _architecture(path, weights, layout, sha256, manifest, stated, original, expected)
        weights = dialects.reorder(weights, architecture, layout)
        if expected is None:
            asked = question(architecture, assumed, vocabulary is not None)
    except CheckpointError as error:
        faults.append(str(error))
    if manifest is not None:
        faults += manifest.faults(weights)
    return _Loaded(
        path=path,
        size=size,
        sha256=sha256,
        container=content.container,
        entry=content.entry,
        prefix=selection.prefix,
        left_out=selection.left_out,
        layout=layout,
        weights=weights,
        architecture=architecture,
        assumed=assumed,
        manifest=manifest,
        vocabulary=vocabulary,
        question=asked,
        faults=tuple(faults),
    )


def _vocabulary_beside(path: Path, original: Checkpoint | None) -> str | None:
    """The merges of the tokenizer beside ``path``; None where there is none, or it is OpenAI's.

    Raises:
        CheckpointError: it cannot be used, or is another than that of ``original``.
    """
    found = tokenizer_files.read(path.parent)
    if found is None:
        return None
    if original is not None and _tells_vocabulary(original) and not tokenizer_files.equal(found, original.vocabulary):
        raise CheckpointError(
            "the tokenizer beside it is another than that of the file it should be like; leave out --like (like=...), "
            "or the files of the tokenizer if they are wrong."
        )
    return None if tokenizer_files.is_openai(found) else found


def _tells_vocabulary(checkpoint: Checkpoint) -> bool:
    return checkpoint.vocabulary is not None or checkpoint.architecture.text.vocabulary_size == OPENAI_VOCABULARY_SIZE


def _architecture(
    path: Path,
    weights: Weights,
    layout: str,
    sha256: str,
    manifest: Manifest | None,
    stated: Word,
    original: Checkpoint | None,
    expected: Architecture | None,
) -> tuple[Architecture, tuple[str, ...]]:
    """The architecture by all that is known, and the fields of it that are assumed.

    Raises:
        CheckpointError: the weights are not those of a CLIP, or what is known does not go together.
    """
    words = [stated]
    if manifest is not None:
        words.append(word_of("its manifest", manifest.architecture, manifest.assumed))
        found = manifest.architecture
    elif original is not None:
        found = original.architecture
    else:
        found = dialects.infer_architecture(weights, layout)
    if original is not None:
        words.append(word_of("the file it should be like", original.architecture, original.assumed))
    named = next((model for model in MODELS.values() if model.sha256 == sha256), None)
    if named is not None and manifest is None:
        words.append(word_of(f"its SHA-256, which is that of {named.name}", named.architecture))
    if silent(found, words):
        words += configurations.words(path, layout, found)
    return settle(found, words, None if expected is None else word_of("the recipe", expected))


def _plain(tensors: Weights, size: int) -> Weights:
    """``tensors`` of a file of ``size`` bytes, bfloat16 as float32, once it is sure that copies of them are bounded.

    Raises:
        CheckpointError: many tensors are made of the same bytes.
    """
    if sum(array.nbytes for array in tensors.values()) > MAX_SHARING * size:
        raise CheckpointError(f"its tensors together are more than {MAX_SHARING} times as large as the file.")
    return {name: from_bfloat16(array) if array.dtype == BFLOAT16 else array for name, array in tensors.items()}


def _format_of(path: Path, start: bytes) -> ModuleType:
    """The reader for a file, by its first bytes; its suffix, where it has a known one, must agree.

    Raises:
        CheckpointError: it is no weights file, or not of the kind that its suffix says.
    """
    suffix = path.suffix.lower()
    expected = _FORMATS.get(suffix) or _READ_ONLY_SUFFIXES.get(suffix)
    found = next((module for module in _KINDS if module.recognise(start)), None)
    if found is None:
        wanted = f"; expected {_KINDS[expected]}" if expected else ""
        raise CheckpointError(f"the file is {_describe(start)}{wanted}.")
    if expected is not None and found not in (expected, _OLD_FORMATS.get(expected)):
        remedy = "give it the suffix that fits"
        if expected is torch_archive and found is pdparams:
            remedy += ", or save the weights with torch.save"
        raise CheckpointError(f"the file is {_KINDS[found]}; expected {_KINDS[expected]}; {remedy}.")
    return found


def _describe(start: bytes) -> str:
    """What a file that is no weights file is, from its first bytes."""
    if not start:
        return "empty"
    if start[:2] == b"\x1f\x8b":
        return "compressed by gzip: decompress it first"
    if start[257:262] == b"ustar":
        return "a tar archive, as PyTorch before 0.2 wrote it: save it again with a newer one"
    if start[:4] == b"PK\x05\x06":
        return "an empty zip archive"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself: fetch it with git lfs pull"
    try:
        # Incremental, since the last letter may be cut.
        text = codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        text = "\0"
    if all(letter.isprintable() or letter.isspace() for letter in text):
        return f"text that starts with {shown(text.strip()[:40])}: download it again"
    return "none of the known kinds, or cut short"


def _publish(
    sources: Sequence[str | os.PathLike[str]],
    load: Callable[[], Checkpoint],
    target: str | os.PathLike[str],
    layout: str | None,
    dtype: str | None,
    force: bool,
) -> Report:
    start = time.monotonic()
    given = Path(target)
    target, module, layout = _destination(given, layout)
    files.check_target(target, [file for path in sources for file in files_of(path)], force)
    if dtype not in (None, "float16", "float32"):
        raise ClipError(f"There is no dtype {dtype!r} to write; choose float16 or float32.")
    source = sources[0] if sources else None
    name = "The checkpoint" if source is None else os.fspath(source)
    # The target is opened first, so that one that cannot be written is found before the work.
    folder = nullcontext() if target == given else files.new_folder(given)
    with folder, ExitStack() as others, files.atomic_path(target, replace=force) as temporary:
        checkpoint = load()
        architecture = checkpoint.architecture
        architecture.check()  # else nobody could read the file
        naming.check(architecture, checkpoint.weights, name)
        tensors = _tensors(checkpoint, dtype)
        difference = 0.0
        entries = {}
        for tensor_name, tensor in tensors.items():
            try:
                difference = max(difference, verify.largest_difference(tensor))
            except CheckpointError as error:
                raise CheckpointError(f"{name}: {tensor_name} {error}") from error
            entries[tensor_name] = (tensor.dtype.name, sha256(tensor.values()))
        beside = companions.beside(target, architecture, checkpoint.assumed, checkpoint.vocabulary, layout)
        for path, text in beside.items():
            files.check_target(path, force=force or _holds(path, text))
        spelled = dialects.spell(tensors, architecture, layout)
        manifest = Manifest(
            architecture, entries, checkpoint.vocabulary, checkpoint.sha256 or None, checkpoint.assumed
        ).to_text()
        module.write(temporary, spelled, manifest)
        digest = _read_back(temporary, module, target, architecture, tensors, manifest)
        for path, text in beside.items():  # the configuration first, so that it appears last
            file = others.enter_context(files.atomic_open(path))
            file.write(text.encode())
            file.flush()  # a full disk is found while the old files are still there
        for path, text in beside.items():
            if path.exists() and not _holds(path, text):
                others.enter_context(files.set_aside(path))
    return Report(
        source=None if source is None else os.fspath(source),
        target=os.fspath(target),
        beside=tuple(path.name for path in beside),
        source_sha256=checkpoint.sha256,
        target_sha256=digest,
        tensors=len(spelled),
        parameters=naming.count(architecture),
        dtype=" + ".join(sorted({tensor.dtype.name for tensor in tensors.values()} - {"int64"})),
        layout=layout,
        prefix=checkpoint.prefix,
        left_out=checkpoint.left_out,
        assumed=checkpoint.assumptions(),
        max_abs_difference=difference,
        seconds=time.monotonic() - start,
    )


def _destination(target: Path, layout: str | None) -> tuple[Path, ModuleType, str]:
    """The file to write, its format and its layout."""
    if layout not in (None, *dialects.LAYOUTS):
        raise ClipError(f"There is no layout {layout!r}; choose one of {', '.join(dialects.LAYOUTS)}.")
    if layout is not None and (os.path.isdir(target) or target.suffix.lower() not in _FORMATS):
        target /= companions.weights_name(layout) or ""
    if target.suffix.lower() not in _FORMATS:
        raise ClipError(
            f"{target} has no suffix to write a format by; end it in one of {', '.join(_FORMATS)}, or for a folder "
            "choose the layout huggingface or open_clip."
        )
    module = _FORMATS[target.suffix.lower()]
    return target, module, layout or _DEFAULT_LAYOUTS[module]


def _holds(path: Path, text: str) -> bool:
    """Whether a file has this very text."""
    return path.is_file() and path.read_bytes() == text.encode()


def _read_back(
    temporary: Path,
    module: ModuleType,
    target: Path,
    architecture: Architecture,
    tensors: dict[str, Tensor],
    manifest: str,
) -> str:
    """The SHA-256 of the file that was written, once it is sure that it holds what it should.

    Raises:
        CheckpointError: it does not.
    """
    buffer = map_file(temporary)
    content = module.read(buffer)
    found = dialects.select(content.tensors).weights
    layout = dialects.detect(found)
    found = dialects.reorder(dialects.to_canonical(found, layout), architecture, layout)
    verify.compare(target, tensors, manifest, found, content.manifest, buffer)
    digest = hashlib.sha256()
    for piece in pieces(buffer):
        digest.update(piece)
    return digest.hexdigest()


def _tensors(checkpoint: Checkpoint, dtype: str | None) -> dict[str, Tensor]:
    result = {}
    for parameter in naming.parameters(checkpoint.architecture):
        array = checkpoint.weights[parameter.name]
        keep = dtype is None or parameter.kind == "counter"
        result[parameter.name] = Tensor(array, array.dtype if keep else np.dtype(dtype), parameter.trainable)
    return result
