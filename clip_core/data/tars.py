"""The members of an uncompressed tar file: where each lies, told by its headers alone."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from clip_core.errors import ClipError

MAXIMUM_HEADER_BYTES = 1 << 13  # of what stands before a member: long names, and attributes as pax writes them


def regular_members(file: BinaryIO, name: str) -> Iterator[tarfile.TarInfo]:
    """The files in an open tar file, each whole and behind the one before it; folders and links are passed over.

    Between two of them the file may be read elsewhere.

    Args:
        name: what to call the tar file in a message.

    Raises:
        ClipError: it is compressed, cut short or damaged.
    """
    size = os.fstat(file.fileno()).st_size
    end = -1
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as tar:
            for member in tar:
                if tar.offset <= end or member.size < 0:  # attributes can change a member's size
                    raise ValueError(f"member {member.name!a} states {member.size} bytes")
                end = tar.offset
                if member.isreg():
                    if member.issparse() or member.offset_data + member.size > size:
                        raise ClipError(f"{name} is cut short within {member.name}; get it again.")
                    yield member
            end = tar.offset
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise ClipError(f"{name} is not an uncompressed tar file: {error}; get it again.") from error
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # where tarfile stops without a word
        raise ClipError(f"{name} has no end mark after byte {end}: it is cut short or damaged; get it again.")


class _Header(tarfile.TarInfo):
    """A header whose size is possible; tarfile takes any, and reads a terabyte, or goes back and never ends."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        before_member = header.type in (
            *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
            *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
        )
        if header.size < 0 or (before_member and header.size > MAXIMUM_HEADER_BYTES):
            raise ValueError(f"a header states {header.size} bytes")
        return header
