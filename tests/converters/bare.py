"""The readers, told the activation: the small models here are none of OpenAI's, and bare files do not say it."""

from __future__ import annotations

from functools import partial

import converters

read = partial(converters.read, activation="quick_gelu")
inspect = partial(converters.inspect, activation="quick_gelu")
convert = partial(converters.convert, activation="quick_gelu")
