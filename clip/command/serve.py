"""``clip serve``: a model behind HTTP."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from clip.api import open_model
from clip.command.output import Activation, Backend, Device, Heads, Like, Model, Precision, heads_of
from clip_core.errors import ClipError

PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")


def run(
    model: Model = "shapes",
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
    allow_fetch: Annotated[
        bool, typer.Option("--allow-fetch", help="Fetch pictures at public addresses that clients send.")
    ] = False,
) -> None:
    """Serve a model over HTTP: embeddings as OpenAI's API gives them, labels of pictures, and metrics."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ClipError(f"Serving needs {missing[0]}, which is not installed; run: pip install 'triclip[serve]'.")
    from clip.serving import server
    from clip.serving.limits import Limits

    server.run(
        model,
        partial(
            open_model,
            model,
            backend=backend,
            device=device,
            precision=precision,
            like=like,
            activation=activation,
            heads=heads_of(heads),
        ),
        host,
        port,
        Limits(batch=max_batch, wait=max_wait / 1000, queue=max_queue),
        token_file,
        allow_fetch,
    )
