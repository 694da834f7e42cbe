"""OpenAI's package, whose names are the canonical ones: every tower has them."""

from __future__ import annotations

from clip_core.layouts.parts import Layout

LAYOUT = Layout("openai", recognises=lambda weights: True)
