"""``clip.Index``: embeddings on disk, searched by texts, pictures and vectors, with the model that made them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from clip.api import LoadedModel
from clip.embedding import open_stamped
from clip.zero_shot import label_tokens, template_for
from clip_core.batching import embed_texts
from clip_core.embedding.parts import PICTURE_COLUMNS, Part, Parts, Place
from clip_core.embedding.stamp import Stamp
from clip_core.errors import ClipError
from clip_core.evaluation.features import encode_texts
from clip_core.evaluation.zero_shot import image_features
from clip_core.image import open_image
from clip_core.models import MODELS
from clip_core.search import store
from clip_core.search.store import Change, Hit, Store
from clip_core.similarity import normalize

if TYPE_CHECKING:
    from clip.embedding import Embeddings

LEAST_LENGTH = 1e-3  # of a sum of unit vectors that has a direction


def direction(total: np.ndarray) -> np.ndarray:
    """A sum [d] of unit vectors, made unit again.

    Raises:
        ClipError: they cancel each other out.
    """
    if not np.linalg.norm(total) > LEAST_LENGTH:
        raise ClipError("What is searched for and what is not cancel each other out; give other texts.")
    return normalize(total)


class Index:
    """An index on disk.

    Args:
        folder: of the index.
        model: what made the embeddings, a name or a file; by default what the stamp of the index names. It is loaded
            when a text or a picture is searched for, and has to be the model of the stamp.
        backend, device, precision, like, activation, heads: as for `clip.load`.

    Attributes:
        store: the table itself (`clip_core.search.store.Store`).

    Raises:
        ClipError: there is no index in the folder, or it is damaged.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        model: str | os.PathLike[str] | None = None,
        backend: str | None = None,
        device: Any = None,
        precision: str = "fp32",
        like: str | os.PathLike[str] | None = None,
        activation: str | None = None,
        heads: tuple[int, int] | None = None,
    ) -> None:
        self.store = Store(folder)
        self._model = model
        self._options = {
            "backend": backend,
            "device": device,
            "precision": precision,
            "like": like,
            "activation": activation,
            "heads": heads,
        }

    @classmethod
    def build(
        cls,
        embeddings: str | os.PathLike[str] | Embeddings,
        folder: str | os.PathLike[str],
        *,
        force: bool = False,
        approximate: bool = False,
        least_recall: float = 0.95,
        **options: Any,
    ) -> Index:
        """Write an index, whole or not at all, and open it.

        Args:
            embeddings: what ``clip.embed`` gives, or a folder that ``clip embed`` wrote.
            folder: of the index.
            force, approximate, least_recall: as for `clip_core.search.store.build`.
            options: as for the class.

        Raises:
            ClipError: as `clip_core.search.store.build`.
        """
        store.build(folder, _source(embeddings), force=force, approximate=approximate, least_recall=least_recall)
        return cls(folder, **options)

    def __len__(self) -> int:
        return len(self.store)

    @property
    def stamp(self) -> Stamp:
        """What made the embeddings."""
        return self.store.stamp

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model that made the embeddings.

        Raises:
            ClipError: it cannot be found or used, or is another one.
        """
        folder, name = self.store.folder, self._model
        if name is None:
            name = self.stamp.source
            if name not in MODELS and not os.path.exists(name):
                raise ClipError(f"{folder} was made by {name}, which is not in this folder; give it with --model.")
        loaded, stamp = open_stamped(name, **self._options)
        if difference := self.stamp.difference(stamp):
            raise ClipError(f"{name} is not the model that {folder} was made by: {difference}")
        return loaded

    def add(self, embeddings: str | os.PathLike[str] | Embeddings) -> Change:
        """Add embeddings; a row whose id is there is replaced if its file has changed, and else left as it is.

        Raises:
            ClipError: as `Store.add`.
        """
        return self.store.add(_source(embeddings))

    def remove(self, ids: Iterable[str] = (), paths: Iterable[str] = (), where: str | None = None) -> int:
        """Remove rows, and give their number (`Store.remove`)."""
        return self.store.remove(ids, paths, where)

    def search(
        self,
        text: str | None = None,
        *,
        image: str | os.PathLike[str] | Image.Image | None = None,
        minus: str | Sequence[str] = (),
        count: int = 20,
        where: str | None = None,
    ) -> list[Hit]:
        """The rows that are nearest to a text, to a picture, or to both, the nearest first.

        Args:
            minus: texts that rows shall be far from.
            count: of rows.
            where: a condition on the columns, as SQL.

        Raises:
            ClipError: as `loaded`, `query` and `Store.search`.
        """
        return self.nearest(self.query(text, image=image, minus=minus)[None], count, where)[0]

    def nearest(self, vectors: np.ndarray, count: int = 20, where: str | None = None) -> list[list[Hit]]:
        """The rows that are nearest to each of ``vectors`` [m, d] (`Store.search`)."""
        return self.store.search(vectors, count, where)

    def query(
        self,
        text: str | None = None,
        *,
        image: str | os.PathLike[str] | Image.Image | None = None,
        minus: str | Sequence[str] = (),
    ) -> np.ndarray:
        """The vector float32 [d] that `search` looks for: the sum of unit vectors, made unit again.

        Raises:
            ClipError: there is neither text nor picture, one cannot be used, or they cancel each other out.
        """
        if text is None and image is None:
            raise ClipError("There is nothing to search for; give a text, or a picture with --image.")
        model, tokenizer = self.loaded.model, self.loaded.model.tokenizer
        texts = [*([] if text is None else [text]), *([minus] if isinstance(minus, str) else minus)]
        vectors = encode_texts(model, tokenizer, texts) if texts else np.empty((0, self.store.dimension), np.float32)
        signs = np.full(len(texts), -1, np.float32)
        signs[: 0 if text is None else 1] = 1
        total = signs @ vectors
        if image is not None:
            picture = image if isinstance(image, Image.Image) else open_image(os.fspath(image))
            total = total + image_features(model, self.loaded.preprocess.pixels(picture)[None])[0]
        return direction(total)

    def label_vectors(self, labels: Sequence[str], template: str | None = None) -> np.ndarray:
        """Unit vectors float32 [m, d] of labels.

        Args:
            template: a text with one ``{}`` for the label; by default the one that suits the model.

        Raises:
            TextError: as `clip.zero_shot.label_tokens`.
        """
        template = template_for(self.loaded) if template is None else template
        tokens = label_tokens(self.loaded, labels, template, "shorten it")
        return normalize(embed_texts(self.loaded.model, tokens))


class _InMemory:
    """Embeddings in memory as an index takes them."""

    texts = False

    def __init__(self, embeddings: Embeddings) -> None:
        self._embeddings, self.stamp, self.dimension = embeddings, embeddings.stamp, embeddings.array.shape[1]

    def __iter__(self) -> Iterator[Part]:
        ids = list(self._embeddings.ids)
        columns: dict[str, list[Any]] = {name: [None] * len(ids) for name in PICTURE_COLUMNS}
        yield Part(Place(0, len(ids), len(ids), ""), self._embeddings.array, columns | {"id": ids, "path": ids})


def _source(embeddings: str | os.PathLike[str] | Embeddings) -> store.Source:
    return Parts(Path(embeddings)) if isinstance(embeddings, str | os.PathLike) else _InMemory(embeddings)
