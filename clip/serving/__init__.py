"""A model behind HTTP: what `clip serve` runs.

A request goes through `gate` (who may ask, how long, how much), a route of `app`, decoding in the threads of `service`,
and one forward pass of `batcher`, which it shares with other requests.
"""
