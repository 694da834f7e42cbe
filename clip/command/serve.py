"""``clip serve``: a model behind HTTP."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from clip.api import open_model
from clip.command.output import Activation, Backend, Device, Heads, Like, Precision, heads_of
from clip_core.errors import ClipError
from clip_core.installation import requirement

PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")


def run(
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="A model; by default that of the index, and without one, shapes."),
    ] = None,
    index: Annotated[Path | None, typer.Option(help="The folder of an index, for searches.")] = None,
    backend: Backend = None,
    device: Device = None,
    precision: Precision = "fp32",
    like: Like = None,
    activation: Activation = None,
    heads: Heads = None,
    host: Annotated[str, typer.Option(help="A name or address of this machine; others need a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one, which the log names.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="A file with the token that clients have to send, private to its owner.")
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Texts or pictures of one forward pass.")] = 32,
    max_wait: Annotated[
        float, typer.Option(min=0, max=1000, help="Milliseconds that a text or picture waits for others at most.")
    ] = 5.0,
    max_queue: Annotated[
        int, typer.Option(min=1, help="Texts and pictures that are accepted and not answered; more are refused.")
    ] = 1024,
    index_memory: Annotated[
        int, typer.Option(min=0, help="MiB of vectors up to which an exact index is held in memory, for fast searches.")
    ] = 1024,
    allow_fetch: Annotated[
        bool, typer.Option("--allow-fetch", help="Fetch pictures at public addresses that clients send.")
    ] = False,
) -> None:
    """Serve a model over HTTP: embeddings as OpenAI's API gives them, labels of pictures, and searches."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ClipError(f"Serving needs {missing[0]}, which is not installed; run: pip install {requirement('serve')}.")
    from clip.serving import server
    from clip.serving.limits import Limits

    options: dict[str, Any] = {
        "backend": backend,
        "device": device,
        "precision": precision,
        "like": like,
        "activation": activation,
        "heads": heads_of(heads),
    }
    limits = Limits(batch=max_batch, wait=max_wait / 1000, queue=max_queue, index=index_memory << 20)
    if index is None:
        name = model or "shapes"
        server.run(name, partial(open_model, name, **options), host, port, limits, token_file, allow_fetch)
    else:
        from clip.search import Index

        opened = Index(index, model=model, **options)
        name = model or opened.stamp.source
        server.run(name, lambda: opened.loaded, host, port, limits, token_file, allow_fetch, opened)
