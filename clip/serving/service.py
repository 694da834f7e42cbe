"""What the routes ask for: embeddings, labels and matches of what clients send, within the limits."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clip.api import LoadedModel
from clip.search import Index, direction
from clip.serving.batcher import Batcher, Pass
from clip.serving.bodies import Picture
from clip.serving.limits import Limits
from clip.serving.logs import log_event, log_fault
from clip.serving.metrics import Metrics
from clip.serving.pictures import is_address, pixels_of
from clip.serving.refusals import Refusal, busy
from clip.zero_shot import Scores, label_tokens, scores, template_for
from clip_core.batching import embed_texts, lengths
from clip_core.data.collection import fetching
from clip_core.errors import ClipError, DownloadError, ImageError, TextError
from clip_core.image import MAX_FILE_BYTES
from clip_core.memory import enough_memory
from clip_core.models import MODELS
from clip_core.search.store import Hit, Store
from clip_core.similarity import normalize

TEXT, PICTURE = "text", "picture"
FETCHES = 8  # pictures that are fetched at once
BATCHES_DECODED = 4  # forward passes whose pictures are decoded, while others wait as files
KNOWN_LABELS = 64  # sets of labels whose features are kept


def unit(features: np.ndarray) -> np.ndarray:
    """Features [n, d] scaled to length 1.

    Raises:
        Refusal: one has no direction.
    """
    scaled = normalize(features)
    if not np.isfinite(scaled).all():
        raise Refusal(500, "The model gives a feature of length 0, which has no direction; ask with normalize false.")
    return scaled


class Service:
    """A model and the threads that serve it: one for forward passes, some that tokenize and decode, some that fetch.

    All methods but `start` and `close` belong to the loop of the server.

    Args:
        name: of the model, or its file.
        load: opens the model; called in the thread of the forward passes.
        fetch: whether pictures at addresses are fetched.
        index: for `search`; the model is that of its embeddings.
        failed: called when the model cannot be loaded, with `failure` set.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], LoadedModel],
        limits: Limits,
        metrics: Metrics,
        fetch: bool,
        index: Index | None,
        failed: Callable[[], None],
    ) -> None:
        self.name = name if name in MODELS else Path(name).name  # clients need not know the server's folders
        self.limits, self._load, self._index, self._failed = limits, load, index, failed
        self.loaded: LoadedModel | None = None
        self.failure: Exception | None = None
        self.accepted = 0  # inputs that are not answered
        self._metrics = metrics
        self._batcher = Batcher((TEXT, PICTURE), self._passes, limits.batch, limits.wait, metrics.observe_pass)
        self._decoding = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "decoding")
        self._fetching = ThreadPoolExecutor(FETCHES, "fetching") if fetch else None
        self._fetcher = (
            fetching.Fetcher(fetching.Limits(limits.fetch_seconds, min(limits.body, MAX_FILE_BYTES), attempts=1))
            if fetch
            else None
        )
        # Of pictures that wait, files are kept, whose sum has a limit, and pixels of few.
        self._room = asyncio.Semaphore(BATCHES_DECODED * limits.batch)
        self._label_features: OrderedDict[tuple[str, ...], np.ndarray] = OrderedDict()

    def start(self) -> None:
        self._batcher.start()

    def close(self) -> None:
        """End all threads; what they compute now is not waited for while the model is being loaded."""
        if self._fetcher is not None:
            self._fetcher.stop()
        self._batcher.close()
        for pool in (self._decoding, self._fetching):
            if pool is not None:
                pool.shutdown(cancel_futures=True)
        if self.loaded is not None:
            self._batcher.join()

    @property
    def waiting(self) -> int:
        """Inputs that wait for a forward pass."""
        return self._batcher.waiting

    @property
    def ready(self) -> bool:
        return self.loaded is not None and self._batcher.alive

    def model(self) -> LoadedModel:
        """The model.

        Raises:
            Refusal: it is not loaded yet.
        """
        if self.loaded is None:
            raise busy("The model is being loaded; come again.")
        return self.loaded

    async def embed_texts(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        """Features float32 [n, d] of texts, as `Model.embed_text` gives them, and the number of tokens computed.

        Raises:
            Refusal: a text cannot be used, or there are too many.
        """
        loaded = self.model()
        with self._places(len(texts)):
            tokens = await self._decoded("input", _tokens, loaded, texts)
            features = await self._computed(TEXT, tokens)
        return features, int(lengths(tokens, loaded.model.architecture.text).sum())

    async def embed_pictures(self, pictures: Sequence[Picture]) -> np.ndarray:
        """Features float32 [n, d] of pictures, as `Model.embed_image` gives them.

        Raises:
            Refusal: a picture cannot be used, or there are too many.
        """
        loaded = self.model()
        with self._places(len(pictures)):
            named = [(picture, f"input {place}") for place, picture in enumerate(pictures)]
            return np.concatenate(await _together([self._picture(loaded, *each) for each in named]))

    async def classify(self, picture: Picture, labels: Sequence[str], template: str | None) -> Scores:
        """Compare a picture with labels: [1, m].

        Raises:
            Refusal: the picture, a label or the template cannot be used, or there are too many labels.
        """
        loaded = self.model()
        template = template_for(loaded) if template is None else template
        key = (template, *labels)
        texts = self._label_features.get(key)
        with self._places(1 if texts is not None else 1 + len(labels)):
            image = await self._picture(loaded, picture, "the picture")
            if texts is None:
                tokens = await self._decoded("labels", label_tokens, loaded, labels, template, "shorten it")
                texts = await self._computed(TEXT, tokens)
                self._keep(key, texts)
        return scores(loaded, image, texts)

    async def search(self, text: str | None, picture: Picture | None, count: int) -> list[Hit]:
        """The rows of the index that are nearest to a text, a picture or both, the nearest first.

        Raises:
            Refusal: there is no index or nothing to search for, or the text or the picture cannot be used.
        """
        index, loaded = self._index, self.model()
        if index is None:
            raise Refusal(404, "This server has no index; it is given one by clip serve --index.")
        if text is None and picture is None:
            raise Refusal(400, "There is nothing to search for; give a text, an image, or both.")
        total = np.zeros(loaded.model.architecture.embed_dim, np.float32)
        with self._places((text is not None) + (picture is not None)):
            if text is not None:
                tokens = await self._decoded("text", _tokens, loaded, [text])
                total += normalize(await self._computed(TEXT, tokens))[0]
            if picture is not None:
                total += normalize(await self._picture(loaded, picture, "the picture"))[0]
            try:
                query = direction(total)[None]
            except ClipError as error:
                raise Refusal(400, str(error)) from error
            try:
                nearest = await asyncio.get_running_loop().run_in_executor(self._decoding, index.nearest, query, count)
            except ClipError as error:  # whose sentence names folders of this machine
                log_fault("index", error)
                raise Refusal(500, "The index cannot be searched; the log of the server says why.") from error
        return nearest[0]

    def _keep(self, key: tuple[str, ...], features: np.ndarray) -> None:
        self._label_features[key] = features
        while len(self._label_features) > KNOWN_LABELS:
            self._label_features.popitem(last=False)

    @contextmanager
    def _places(self, inputs: int) -> Iterator[None]:
        """Count inputs as accepted until the block ends.

        Raises:
            Refusal: they are too many, for one request or now.
        """
        if inputs > self.limits.most_inputs:
            most = self.limits.most_inputs
            raise Refusal(
                413, f"The request has {inputs} texts and pictures, and at most {most} are taken; send several."
            )
        if self.accepted + inputs > self.limits.queue:
            raise busy(f"The server has {self.accepted} texts and pictures to embed, and room for no more; come again.")
        self.accepted += inputs
        try:
            yield
        finally:
            self.accepted -= inputs

    async def _picture(self, loaded: LoadedModel, picture: Picture, name: str) -> np.ndarray:
        """Features float32 [1, d] of what a client calls ``name``."""
        fetched = isinstance(picture, str) and is_address(picture)
        arguments = (picture, self._fetcher, loaded.preprocess, self.limits.pixels)
        async with self._room:
            pixels = await self._decoded(name, pixels_of, *arguments, pool=self._fetching if fetched else None)
            return await self._computed(PICTURE, pixels[None])

    async def _decoded(
        self, name: str, function: Callable[..., Any], *arguments: object, pool: ThreadPoolExecutor | None = None
    ) -> Any:
        """What a function gives of something that a client calls ``name``, in a thread of its own.

        Raises:
            Refusal: it cannot be used.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(pool or self._decoding, function, *arguments)
        except (ImageError, TextError, DownloadError) as error:
            raise Refusal(400, f"{name}: {error}") from error

    async def _computed(self, kind: str, inputs: np.ndarray) -> np.ndarray:
        """Features [n, d] of inputs [n, ...]."""
        try:
            with enough_memory("during a forward pass", "lower --max-batch"):
                features = await self._batcher.compute(kind, inputs)
        except ClipError as error:
            raise Refusal(500, str(error)) from error
        if not np.isfinite(features).all():
            raise Refusal(500, "The model gives features that are not finite numbers; its weights are damaged.")
        return features

    def _passes(self) -> Mapping[str, Pass] | None:
        """Load the model and compute once, so that the first client does not wait for what frameworks do then."""
        try:
            loaded = self._load()
            tower = loaded.model.architecture.image
            passes: dict[str, Pass] = {TEXT: partial(embed_texts, loaded.model), PICTURE: loaded.model.embed_image}
            passes[TEXT](loaded.model.tokenizer.tokenize(["a text"], loaded.model.architecture.text.context_length))
            passes[PICTURE](np.zeros((1, 3, tower.resolution, tower.resolution), np.float32))
            if self._index is not None:
                self._hold(self._index.store)
        except Exception as error:  # which the main thread raises
            self.failure = error
            self._failed()
            return None
        self.loaded = loaded
        self._metrics.model.labels(self.name, loaded.model.backend).set(1)
        log_event("ready", model=self.name, backend=loaded.model.backend)
        return passes

    def _hold(self, store: Store) -> None:
        """Read an exact index into memory if it is small enough, since searches read all of it."""
        held = store.vector_bytes if store.recall is None and store.vector_bytes <= self.limits.index else 0
        if held:
            with enough_memory("while the index was read", "lower --index-memory"):
                store.hold()
        self._metrics.index_rows.set(len(store))
        self._metrics.index_held.set(held)
        log_event("index", rows=len(store), search="exact" if store.recall is None else "approximate", held_bytes=held)


async def _together(works: list[Coroutine[Any, Any, np.ndarray]]) -> list[np.ndarray]:
    """What all of them give; when one fails, the others are cancelled."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _tokens(loaded: LoadedModel, texts: Sequence[str]) -> np.ndarray:
    """Tokens int64 [n, context] of texts.

    Raises:
        TextError: one cannot be used; the sentence gives its place.
    """
    tokenizer, length = loaded.model.tokenizer, loaded.model.architecture.text.context_length
    for place, text in enumerate(texts):
        try:
            tokenizer.check(text, length, "shorten it")
        except TextError as error:
            raise TextError(f"text {place} cannot be used: {error}") from error
    return tokenizer.tokenize(texts, length)
