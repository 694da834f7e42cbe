"""Writing weights: a file is published only after it was read back and compared bit for bit."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clip_core import files, naming, safetensors
from clip_core.architecture import Architecture, infer
from clip_core.buffers import Tensor, map_file, threads
from clip_core.errors import CheckpointError, ClipError
from clip_core.layouts import LAYOUTS
from clip_core.layouts.selection import canonical, select
from clip_core.models import NamedArchitecture
from converters import companions, formats, hdf5, pdparams, torch_archive, verify
from converters.knowledge import word_of_the_user
from converters.manifest import Manifest
from converters.reading import Given, Like, ModelFile, enough_memory, files_of, open_model

_DEFAULT_LAYOUTS = {torch_archive: "openai", safetensors: "openai", hdf5: "nnabla", pdparams: "paddle"}


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
    max_abs_difference: float  # that a narrower dtype makes between what was read and the target, read back; else 0.0
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def write(
    model: ModelFile,
    path: str | os.PathLike[str],
    *,
    layout: str | None = None,
    dtype: str | None = None,
    force: bool = False,
) -> Report:
    """Write a model in the format of the path's suffix: whole and read back, or not at all.

    With the layouts huggingface and open_clip, a path without a suffix is a folder, which is made with the file and all
    that these libraries need beside it; so is what they need beside a file of a name that they look for. The old
    configuration and what else changes beside the file goes first, then the new weights come, which say all about
    themselves, and the new configuration is the last. So whenever this is cut off, no weights lie beside the
    configuration of others, and these libraries, which want one, load no part of a folder.

    Args:
        layout: one of `clip_core.layouts.LAYOUTS`; None: nnabla for ``.h5``, paddle for ``.pdparams``, else openai.
        dtype: ``float16`` or ``float32`` for everything but counters; None: each tensor as it is.
        force: replace files that are there already.

    Raises:
        ClipError: the suffix, the layout or the dtype is none there is, a file is there already, or the path cannot be
            written.
        CheckpointError: the weights do not fit their architecture, or a value does not fit ``dtype``.
    """
    return _Publication(path, layout, dtype, force).run(lambda: model)


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    layout: str | None = None,
    dtype: str | None = None,
    prefix: str | None = None,
    like: Like | None = None,
    activation: str | None = None,
    heads: tuple[int, int] | None = None,
    resolution: int | None = None,
    force: bool = False,
) -> Report:
    """`read` and `write` in one; memory stays near the source's size.

    Args:
        layout, dtype, force: as for `write`.
        prefix, like, activation, heads: as for `read`.
        resolution: of the pictures that the model in the target is for, as by `ModelFile.at_resolution`.

    Raises:
        ClipError: also when the target is a file of the source or of ``like``, or there is no model at this resolution.
    """
    given = Given(prefix, like, word_of_the_user(activation, heads))
    with enough_memory(source):
        sources = [source] if like is None or isinstance(like, NamedArchitecture) else [source, like]
        publication = _Publication(target, layout, dtype, force, sources)
        if resolution is None:
            return publication.run(lambda: open_model(source, given))
        return publication.run(lambda: open_model(source, given, strict=True).at_resolution(resolution))


class _Publication:
    """A model on its way into a file: everything that can be refused without the weights is, before they are read.

    Args:
        target: the file, or the folder for it.
        layout, dtype, force: as for `write`.
        sources: what the weights are read from, first the file that they are in, and that is never written.
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        layout: str | None,
        dtype: str | None,
        force: bool,
        sources: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        self.start = time.monotonic()
        self.given = Path(target)
        self.target = _file_of(self.given, layout)
        self.module = formats.WRITTEN[self.target.suffix.lower()]
        self.layout = layout or _DEFAULT_LAYOUTS[self.module]
        files.check_target(self.target, [file for path in sources for file in files_of(path)], force)
        if dtype not in (None, "float16", "float32"):
            raise ClipError(f"There is no dtype {dtype!r} to write; choose float16 or float32.")
        self.dtype, self.force = dtype, force
        self.source = os.fspath(sources[0]) if sources else None
        self.name = self.source or "The checkpoint"

    def run(self, load: Callable[[], ModelFile]) -> Report:
        """Write the model that ``load`` gives.

        The target is opened first, so that one that cannot be written is found before the work.
        """
        folder = nullcontext() if self.target == self.given else files.new_folder(self.given)
        with folder, ExitStack() as others, files.atomic_path(self.target, replace=self.force) as temporary:
            model = load()
            architecture = model.architecture
            architecture.check()  # else nobody could read the file
            naming.check(architecture, model.weights, self.name)
            tensors = self._tensors(model)
            stored = self._stored(tensors, architecture)
            difference = self._largest_difference(tensors)
            beside = companions.beside(self.target, architecture, model.assumed, model.vocabulary, self.layout)
            for path, text in beside.items():
                files.check_target(path, force=self.force or _holds(path, text))
            manifest = Manifest(
                architecture,
                self._digests(model, tensors),
                model.vocabulary,
                model.sha256 or None,
                model.assumed,
            ).to_text()
            self.module.write(temporary, stored, manifest)
            digest = self._read_back(temporary, architecture, tensors, manifest)
            self._write_beside(beside, others)
        self._warn_of_what_others_assume(architecture)
        return Report(
            source=self.source,
            target=os.fspath(self.target),
            beside=tuple(path.name for path in beside),
            source_sha256=model.sha256,
            target_sha256=digest,
            tensors=len(stored),
            parameters=naming.count(architecture),
            dtype=" + ".join(sorted({tensor.dtype.name for tensor in tensors.values()} - {"int64"})),
            layout=self.layout,
            prefix=model.prefix,
            left_out=model.left_out,
            assumed=model.assumptions(),
            max_abs_difference=difference,
            seconds=time.monotonic() - self.start,
        )

    def _tensors(self, model: ModelFile) -> dict[str, Tensor]:
        """The model's weights in the dtypes to be written, under the canonical names."""
        result = {}
        for parameter in naming.parameters(model.architecture):
            array = model.weights[parameter.name]
            keep = self.dtype is None or parameter.kind == "counter"
            result[parameter.name] = Tensor(array, array.dtype if keep else np.dtype(self.dtype), parameter.trainable)
        return result

    def _digests(self, model: ModelFile, tensors: dict[str, Tensor]) -> dict[str, tuple[str, str]]:
        """The dtype and the SHA-256 of each tensor.

        What was verified when the source was read is not computed again, unless somebody else may have changed it.
        """
        verified = model.verified if self.source else {}
        digests = {name: digest for name, (dtype, digest) in verified.items() if dtype == tensors[name].dtype.name}
        others = [name for name in tensors if name not in digests]
        with threads() as pool:
            digests |= zip(others, pool.map(lambda name: tensors[name].digest(), others))
        return {name: (tensor.dtype.name, digests[name]) for name, tensor in tensors.items()}

    def _stored(self, tensors: dict[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
        """The tensors as the layout has them.

        Raises:
            ClipError: it has no names for these towers.
        """
        if not LAYOUTS[self.layout].holds(architecture):
            *others, last = (layout.name for layout in LAYOUTS.values() if layout.holds(architecture))
            raise ClipError(
                f"The layout {self.layout} has no names for a {architecture.image.title} with a "
                f"{architecture.text.title}; choose {', '.join(others)} or {last}."
            )
        return LAYOUTS[self.layout].store(tensors, architecture)

    def _warn_of_what_others_assume(self, architecture: Architecture) -> None:
        """Warn where a project that has no configuration computes otherwise than this model."""
        layout, fields = LAYOUTS[self.layout], architecture.named_fields
        if layout.folder is not None:
            return
        by_shapes = infer({parameter.name: parameter.shape for parameter in naming.parameters(architecture)})
        for word in layout.words(self.target, self.layout, by_shapes):
            if others := [name for name, value in word.fields.items() if fields[name] != value]:
                warnings.warn(
                    f"{self.target} is another model to {word.source}, which has its own {', '.join(others)}; TriCLIP "
                    "reads this model's from the manifest in the file.",
                    stacklevel=1,
                )

    def _largest_difference(self, tensors: dict[str, Tensor]) -> float:
        """The largest absolute difference that narrower dtypes make.

        Raises:
            CheckpointError: a value does not fit its dtype.
        """
        difference = 0.0
        for name, tensor in tensors.items():
            try:
                difference = max(difference, verify.largest_difference(tensor))
            except CheckpointError as error:
                raise CheckpointError(f"{self.name}: {name} {error}") from error
        return difference

    def _read_back(self, temporary: Path, architecture: Architecture, tensors: dict[str, Tensor], manifest: str) -> str:
        """The SHA-256 of the file that was written, once it is sure that it holds what it should.

        Raises:
            CheckpointError: it does not.
        """
        buffer = map_file(temporary)
        with threads() as pool:
            digest = pool.submit(files.sha256, temporary)
            content = self.module.read(buffer)
            found = canonical(select(content.tensors).weights, architecture)
            verify.compare(self.target, tensors, manifest, found, content.manifest, buffer)
            return digest.result()

    def _write_beside(self, texts: dict[Path, str], others: ExitStack) -> None:
        """Write the files beside the target, so that they appear after it, when ``others`` is left."""
        for path, text in texts.items():  # the configuration first, so that it appears last
            file = others.enter_context(files.atomic_open(path))
            file.write(text.encode())
            file.flush()  # a full disk is found while the old files are still there
        for path, text in texts.items():
            if path.exists() and not _holds(path, text):
                others.enter_context(files.set_aside(path))


def _file_of(target: Path, layout: str | None) -> Path:
    """The file to write for a path that may be a folder."""
    if layout not in (None, *LAYOUTS):
        raise ClipError(f"There is no layout {layout!r}; choose one of {', '.join(LAYOUTS)}.")
    if layout is not None and (os.path.isdir(target) or target.suffix.lower() not in formats.WRITTEN):
        folder = LAYOUTS[layout].folder
        target /= folder.weights[0] if folder else ""
    if target.suffix.lower() not in formats.WRITTEN:
        raise ClipError(
            f"{target} has no suffix to write a format by; end it in one of {', '.join(formats.WRITTEN)}, or for a "
            "folder choose the layout huggingface or open_clip; clip export writes for ONNX and other runtimes."
        )
    return target


def _holds(path: Path, text: str) -> bool:
    """Whether a file has this very text."""
    return path.is_file() and path.read_bytes() == text.encode()
