"""The page behind its guard, from a socket to its end."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI

from clip.serving.protocol import configuration
from clip.serving.sockets import Server, allow_connections
from clip.web.guard import LIMITS, Guard
from clip.web.page import KEPT_SECONDS, STYLE, SWEEP_SECONDS

UPLOAD_BYTES = 20 << 20  # of one file
FONT = ("system-ui", "sans-serif")  # the reader's own, so that no browser asks another server
MONOSPACE = ("ui-monospace", "monospace")


def is_local(listener: socket.socket) -> bool:
    """Whether this machine only reaches a socket."""
    return ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def run(blocks: Any, listener: socket.socket, folder: Path) -> None:
    """Serve a page until a signal ends this process.

    Args:
        folder: where Gradio keeps files, as its environment says.
    """
    application = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        blocks,
        "/",
        css=STYLE,
        theme=gr.themes.Default(primary_hue="blue", font=FONT, font_mono=MONOSPACE),
        max_file_size=UPLOAD_BYTES,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
    )
    blocks.has_launched = True  # else Gradio does not check where the files are that clients name
    allow_connections(LIMITS.connections)
    guard = Guard(application, folder, is_local(listener), KEPT_SECONDS + SWEEP_SECONDS)
    _Server(guard, configuration(guard, LIMITS, lifespan="on")).run([listener])


class _Server(Server):
    def __init__(self, guard: Guard, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._guard = guard

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._guard.end()
        await super().shutdown(sockets)
