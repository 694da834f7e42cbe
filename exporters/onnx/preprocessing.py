"""Pillow's resizing as a graph of ONNX: decoded pictures become what an image tower takes.

Pillow filters along one axis after the other in integers: weights of 22 bits behind the point, sums that are rounded
and cut to 8 bits. Here each axis is a product with a matrix of these weights. They are computed in float64, as Pillow
computes them. A weight is the sum of a coarse and a fine part of 11 bits each, so that float32 holds every product and
every sum exactly. Runtimes that have no float64, such as OpenVINO, round some weights otherwise; then few values differ
from Pillow's, by 1 of 255.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clip_core.pixels import Interpolation
from clip_core.towers.parts import ImageTower
from exporters.onnx.graph import Graph, Value

HALF_BITS = 11  # of each part of a weight; Pillow has 22 behind the point
Filter = Callable[[Value], Value]


def write(tower: ImageTower) -> Graph:
    """The graph from ``image``, decoded pictures uint8 [images, height, width, 3] of one size, with the channels red,
    green and blue, to ``pixels`` float32 [images, 3, r, r].

    A picture is resized and cropped as `clip_core.preprocess` does it; height and width may be any.
    """
    graph = Graph({}, np.float64)
    side = tower.resolution
    pictures = graph.input("image", np.uint8, ["images", "height", "width", 3])
    height, width = (pictures.length(axis).reshape() for axis in (1, 2))
    if tower.pixels.resize == "squash":
        resized = [graph.constant(np.int64(side))] * 2
    else:
        shorter = graph.node("Min", height, width)
        resized = [length * graph.constant(np.int64(side)) / shorter for length in (height, width)]
    rows, columns = (
        weights(length, after, side, tower.pixels.interpolation) for length, after in zip((height, width), resized)
    )
    x = pictures.transpose(0, 3, 1, 2).astype(np.float32)  # [n, h, w, 3] -> [n, 3, h, w]
    x = in_eight_bits(*((x @ each.T) for each in columns))  # [n, 3, h, r]
    x = in_eight_bits(*((each @ x) for each in rows))  # [n, 3, r, r]
    x = x / graph.constant(np.float32(255))
    mean, deviation = (
        np.array(each, np.float32)[:, None, None] for each in (tower.pixels.mean, tower.pixels.deviation)
    )
    x = (x - graph.constant(mean)) / graph.constant(deviation)
    graph.output("pixels", x, ["images", 3, side, side])
    return graph


def weights(length: Value, resized: Value, side: int, interpolation: Interpolation) -> tuple[Value, Value]:
    """What each value along an axis contributes to those that are left of it: two matrices float32 [side, length],
    the coarse and the fine part of weights in units of 2 ** -22.

    Args:
        length: of the axis, int64.
        resized: its length once it is resized, int64, of which the ``side`` in the middle are kept.
    """
    graph = length.graph
    zero, one = (graph.constant(np.int64(number)) for number in (0, 1))
    before = graph.node("Range", zero, length, one).astype(np.float64)  # [length]
    after = graph.node("Range", zero, graph.constant(np.int64(side)), one).astype(np.float64).expand(1)  # [side, 1]
    length, resized = length.astype(np.float64), resized.astype(np.float64)
    first = graph.node("Round", (resized - side) / 2)  # to the even one of two that are equally near
    # From the middle of a value to that of another, as a fraction of two whole numbers, which float32 holds, too.
    distance = (before * 2.0 + 1.0) * resized - ((after + first) * 2.0 + 1.0) * length
    distance = distance / (graph.node("Max", length, resized) * 2.0)
    shares = FILTERS[interpolation](graph.node("Abs", distance))
    shares = shares / shares.sum(axis=1, keepdims=True)
    whole = rounded(shares * 2.0 ** (2 * HALF_BITS))
    coarse = rounded(whole / 2.0**HALF_BITS)
    return coarse.astype(np.float32), (whole - coarse * 2.0**HALF_BITS).astype(np.float32)


def bicubic(distance: Value) -> Value:
    """The piecewise cubic polynomial of Keys with a = -0.5."""
    graph, x = distance.graph, distance
    near = (x * 1.5 - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    far = graph.node("Where", graph.node("Less", x, graph.constant(2.0)), far, 0.0)
    return graph.node("Where", graph.node("Less", x, graph.constant(1.0)), near, far)


def bilinear(distance: Value) -> Value:
    """The triangle."""
    return distance.graph.node("Max", distance * -1.0 + 1.0, 0.0)


FILTERS: dict[Interpolation, Filter] = {"bicubic": bicubic, "bilinear": bilinear}


def rounded(x: Value) -> Value:
    """The nearest whole number; of two, that further from 0."""
    graph = x.graph
    return graph.node("Sign", x) * graph.node("Floor", graph.node("Abs", x) + 0.5)


def in_eight_bits(coarse: Value, fine: Value) -> Value:
    """Sums of values by the two parts of weights as whole numbers from 0 to 255, rounded as Pillow rounds them."""
    graph = coarse.graph
    unit, half = (graph.constant(np.float32(number)) for number in (2**HALF_BITS, 2 ** (2 * HALF_BITS - 1)))
    carried = graph.node("Floor", (fine + half) / unit)
    whole = graph.node("Floor", (coarse + carried) / unit)
    return graph.node("Clip", whole, graph.constant(np.float32(0)), graph.constant(np.float32(255)))
