"""NNabla's ``.nnp`` files: zip archives of a network, which is not needed here, and of its parameters in a file.

Those of ``clip export`` have some parameters in another form, and a member with the manifest of a whole model.
"""

from __future__ import annotations

import json
import re

from clip_core.buffers import Buffer, Content
from clip_core.errors import CheckpointError
from clip_core.layouts.nnabla import METADATA, OF_CHANNELS, TRANSPOSED
from clip_core.naming import Weights
from converters import archives, hdf5, protobuf

_PARAMETERS = {".h5": hdf5, ".protobuf": protobuf}
_START = re.compile(rb"PK\x03\x04.{26}[^/]+\.(txt|nntxt|prototxt|protobuf|h5|optimizer)", re.DOTALL)


def recognise(start: bytes) -> bool:
    """Whether a file that starts like this is a zip archive whose first member has a name as NNabla gives it."""
    return _START.match(start, 0, 300) is not None


def read(data: Buffer) -> Content:
    """The parameters of an archive.

    Raises:
        CheckpointError: the archive is damaged or compressed, or does not have parameters in one file.
    """
    members = archives.members(data)
    names = [name for name in members if name.endswith(tuple(_PARAMETERS))]
    if len(names) != 1:
        found = f"several: {', '.join(sorted(names)[:10])}" if names else "none"
        raise CheckpointError(
            f"the archive must have one file of parameters, parameter.h5 or parameter.protobuf; it has {found}."
        )
    reader = next(reader for suffix, reader in _PARAMETERS.items() if names[0].endswith(suffix))
    tensors: Weights = {}
    for name, array in reader.read(archives.content(data, members[names[0]])).tensors.items():
        if name.endswith(TRANSPOSED):
            name, array = name.removesuffix(TRANSPOSED), array.T
        elif name.endswith(OF_CHANNELS):
            name, array = name.removesuffix(OF_CHANNELS), array.reshape(-1)
        if name in tensors:
            raise CheckpointError(f"the archive has {name} in two forms; export it again.")
        tensors[name] = array
    metadata = members.get(METADATA)
    return Content("nnp", tensors, None if metadata is None else _manifest(archives.content(data, metadata)))


def _manifest(metadata: memoryview) -> str | None:
    """The text of the manifest; None where the archive is of one tower alone.

    Raises:
        CheckpointError: the member cannot be read.
    """
    try:
        found: str | None = json.loads(bytes(metadata)).get("manifest")
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"the archive's member {METADATA} is not as clip export writes it; export it again."
        ) from error
    return found
