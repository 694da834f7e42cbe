"""``clip web``: a page for a browser on this machine."""

from __future__ import annotations

import os
import tempfile
import threading
from contextlib import suppress
from typing import Annotated

import typer

from clip.command.output import Backend, console
from clip_core.errors import ClipError

LOCAL = ("127.0.0.1", "localhost", "::1")


def run(
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|FILE", help="A model to choose from; may be given several times. [default: shapes]"),
    ] = None,
    backend: Backend = None,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8889,
    share: Annotated[bool, typer.Option("--share", hidden=True)] = False,
) -> None:
    """Serve a page on which pictures are classified and compared, in every framework that is installed."""
    if share:
        raise ClipError(
            "--share is not offered: it would lead strangers to this machine through the servers of another company; "
            "listen with --host, behind a proxy of your own."
        )
    # Uploaded pictures are kept in a folder that is removed at the end.
    with tempfile.TemporaryDirectory(prefix="clip-web-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            import gradio  # noqa: F401
        except ImportError as error:
            raise ClipError(f"The page needs Gradio ({error}); install it with: pip install 'triclip[web]'.") from error
        from clip.web import page
        from clip.web.answers import Answers

        blocks = page.page(Answers(model or ["shapes"], backend))
        if host not in LOCAL:
            console.print(
                "Everyone who reaches this machine can use the page; put a proxy that asks for a password before it."
            )
        try:
            page.serve(blocks, host, port)
        except OSError as error:
            raise ClipError(
                f"The page cannot listen at {host}:{port}: {error}; choose another --port or --host."
            ) from error
        print(f"http://{host}:{blocks.server_port}", flush=True)
        try:
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
        finally:
            blocks.close(verbose=False)
