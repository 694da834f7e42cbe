"""``clip web``: a page for a browser on this machine."""

from __future__ import annotations

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from clip.command.output import Backend, console, errors
from clip_core.errors import ClipError
from clip_core.installation import requirement


def run(
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FILE",
            help="A model to choose from; may be given several times. By default that of the index, or else shapes.",
        ),
    ] = None,
    index: Annotated[Path | None, typer.Option(help="The folder of an index, for searches.")] = None,
    backend: Backend = None,
    host: Annotated[str, typer.Option(help="A name or address of this machine to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8889,
    share: Annotated[bool, typer.Option("--share", hidden=True)] = False,
) -> None:
    """Serve a page on which pictures are classified, compared and searched, in every framework that is installed."""
    if share:
        raise ClipError(
            "--share is not offered: it would lead strangers to this machine through the servers of another company; "
            "listen with --host, behind a proxy of your own."
        )
    if find_spec("gradio") is None:
        raise ClipError(f"The page needs Gradio, which is not installed; run: pip install {requirement('web')}.")
    from clip.serving.sockets import address_of, listening

    # Uploaded pictures are kept in a folder that is removed at the end.
    with listening(host, port, alone=False) as listener, tempfile.TemporaryDirectory(prefix="clip-web-") as name:
        folder = Path(name).resolve()  # as Gradio calls it
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        with errors.status("Making the page"):  # on a terminal; it takes seconds
            from clip.web import page, server
            from clip.web.answers import Answers

            blocks = page.page(Answers(model or [], backend, index))
        if not server.is_local(listener):
            console.print(
                "Everyone who reaches this machine can use the page; put a proxy that asks for a password before it."
            )
        print(address_of(listener), flush=True)
        server.run(blocks, listener, folder)
