"""NNabla's ``.nnp`` files: zip archives of a network, which is not needed here, and of its parameters in a file."""

from __future__ import annotations

import re

from clip_core.buffers import Buffer, Content
from clip_core.errors import CheckpointError
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
    return Content("nnp", reader.read(archives.content(data, members[names[0]])).tensors)
