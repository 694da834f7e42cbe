"""The manifest: where a converted file came from, and the SHA-256 of each tensor: one flipped bit is an error."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from clip_core.architecture import Architecture
from clip_core.buffers import sha256, threads
from clip_core.errors import CheckpointError, ClipError
from clip_core.text.loading import MAXIMUM_BYTES, is_json

FORMAT = 2
OLD_FORMATS = (1,)  # whose architecture has one activation beside its towers
_COMPRESSED = "zlib, base64"  # the name of a vocabulary that is stored like this
_REMEDY = "the file is damaged or was changed by another program; convert it again from its source"


@dataclass(frozen=True)
class Manifest:
    """What a file says of itself. Tensors go by their canonical names and axis order."""

    architecture: Architecture
    tensors: dict[str, tuple[str, str]]  # name -> dtype, SHA-256 of the bytes in C order, little-endian
    vocabulary: str | None = None  # what defines the tokenizer: merges, or a tokenizer.json; None: OpenAI's
    source_sha256: str | None = None  # of the file that this one was converted from
    assumed: tuple[str, ...] = ()  # the fields of the architecture that nobody has stated (`converters.knowledge`)

    def to_text(self) -> str:
        """One line of ASCII JSON that ends in the SHA-256 of the rest of it."""
        body: dict[str, object] = {
            "format": FORMAT,
            "source_sha256": self.source_sha256,
            "architecture": self.architecture.to_dict(),
            "assumed": list(self.assumed),
            "tensors": {name: {"dtype": dtype, "sha256": digest} for name, (dtype, digest) in self.tensors.items()},
            "vocabulary": _packed(self.vocabulary),
        }
        return _dump(body | {"sha256": _digest(body)})

    @classmethod
    def from_text(cls, text: str) -> Manifest:
        """Read what `to_text` wrote.

        Raises:
            CheckpointError: it is not whole, or of a format that is not known here.
        """
        try:
            body = json.loads(text)
            digest = body.pop("sha256")
            if digest != _digest(body):
                raise CheckpointError(f"the manifest does not match its own SHA-256: {_REMEDY}.")
            if body["format"] not in (FORMAT, *OLD_FORMATS):
                raise CheckpointError(
                    f"the manifest has format {body['format']!r:.50}, expected {FORMAT}; update this package."
                )
            body["vocabulary"] = _unpacked(body["vocabulary"])
            for name in ("vocabulary", "source_sha256"):
                if not isinstance(body[name], str | None):
                    raise TypeError(f"its {name} is {type(body[name]).__name__}, expected a text")
            architecture, assumed = Architecture.from_dict(body["architecture"]), body.get("assumed", [])
            if unknown := set(assumed) - architecture.named_fields.keys():
                raise ValueError(f"it assumes {sorted(unknown)[0]!r}, which is no field of the architecture")
            return cls(
                architecture=architecture,
                tensors={name: (entry["dtype"], entry["sha256"]) for name, entry in body["tensors"].items()},
                vocabulary=body["vocabulary"],
                source_sha256=body["source_sha256"],
                assumed=tuple(assumed),
            )
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, zlib.error) as error:
            raise CheckpointError(f"the manifest cannot be read ({error!r:.200}): {_REMEDY}.") from error
        except CheckpointError:
            raise
        except ClipError as error:
            raise CheckpointError(f"the manifest cannot be read: {error}") from error

    def faults(self, weights: Mapping[str, np.ndarray]) -> list[str]:
        """Everything in which ``weights`` differ from this manifest, each as a short phrase, sorted by name."""
        found = []
        with threads() as pool:
            digests = dict(zip(weights, pool.map(sha256, weights.values())))
        for name in sorted(self.tensors.keys() | weights.keys()):
            if name not in weights:
                found.append(f"{name} is in the manifest but not in the file")
            elif name not in self.tensors:
                found.append(f"{name} is not in the manifest")
            else:
                dtype, digest = self.tensors[name]
                if weights[name].dtype.name != dtype:
                    found.append(f"{name} has dtype {weights[name].dtype}, the manifest says {dtype}")
                elif digests[name] != digest:
                    found.append(f"{name} does not match its SHA-256 in the manifest")
        return [f"{fault}: {_REMEDY}" for fault in found]


def _packed(vocabulary: str | None) -> str | dict[str, str] | None:
    """A tokenizer.json, which may have 34 MB, compressed; merges as they are."""
    if vocabulary is None or not is_json(vocabulary):
        return vocabulary
    return {_COMPRESSED: base64.b64encode(zlib.compress(vocabulary.encode(), 9)).decode()}


def _unpacked(packed: object) -> object:
    """What `_packed` has packed.

    Raises:
        ValueError, zlib.error: it is damaged, or too large.
    """
    if not isinstance(packed, dict) or packed.keys() != {_COMPRESSED}:
        return packed
    stream = zlib.decompressobj()
    text = stream.decompress(base64.b64decode(packed[_COMPRESSED], validate=True), MAXIMUM_BYTES)
    if not stream.eof:
        raise ValueError(f"its vocabulary is cut short, or has more than {MAXIMUM_BYTES} bytes")
    return text.decode()


def _dump(body: dict[str, object]) -> str:
    return json.dumps(body, separators=(",", ":"))


def _digest(body: dict[str, object]) -> str:
    return hashlib.sha256(_dump(body).encode()).hexdigest()
