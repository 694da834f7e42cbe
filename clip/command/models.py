"""``clip models``: what can be loaded by name."""

from __future__ import annotations

from clip.command.output import Json, print_json, print_table
from clip_core.models import MODELS
from clip_core.naming import count


def run(json: Json = False) -> None:
    """List the models that can be loaded by name."""
    rows = [
        {
            "name": model.name,
            "image_tower": model.architecture.image.title,
            "resolution": model.architecture.image.resolution,
            "embed_dim": model.architecture.embed_dim,
            "parameters": count(model.architecture),
            "source": model.url or "embedded in this package",
            "sha256": model.sha256,
        }
        for model in MODELS.values()
    ]
    if json:
        print_json(rows)
        return
    columns = ["name", "image_tower", "resolution", "embed_dim", "parameters"]
    print_table([*columns, "source"], ([row[name] for name in columns] + [_short(row["source"])] for row in rows))


def _short(source: object) -> str:
    return "OpenAI" if str(source).startswith("https:") else str(source)
