"""Logs: one JSON object a line on standard error, without what clients have sent."""

from __future__ import annotations

import json
import logging
import sys
import traceback
import warnings
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from clip_core.errors import ClipError

LOG = logging.getLogger("clip.serving")


def log_as_json() -> None:
    """Write all logs and warnings of this process that way.

    Libraries' own logs are kept from ERROR on: below that, they may quote what a client has sent.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_AsJson())
    logging.basicConfig(handlers=[handler], level=logging.ERROR, force=True)
    logging.disable(logging.NOTSET)
    LOG.setLevel(logging.INFO)
    warnings.showwarning = lambda message, *_, **__: LOG.warning("warning", extra={"values": {"message": str(message)}})


def log_event(event: str, **values: object) -> None:
    LOG.info(event, extra={"values": values})


def log_failure(error: BaseException, **values: object) -> None:
    """An error of the program: its type and where it was raised; its sentence may quote what a client has sent."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames[-5:]]
    LOG.error("failure", extra={"values": {"type": type(error).__name__, "at": places, **values}})


def log_fault(event: str, error: ClipError) -> None:
    """What is wrong with something that the server itself was given; its sentence quotes no client."""
    LOG.error(event, extra={"values": {"fault": str(error)}})


class _AsJson(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        found: dict[str, Any] = {"time": time, "level": record.levelname.lower()}
        if record.name == LOG.name:
            found |= {"event": record.getMessage()} | getattr(record, "values", {})
        else:
            found |= {"event": "message", "logger": record.name, "message": record.getMessage().strip()}
            if record.exc_info and record.exc_info[0]:
                found["type"] = record.exc_info[0].__name__
        return json.dumps(found)
