"""The directory of a zip archive, held to the narrow form in which PyTorch writes it; nothing is ever inflated.

The format is described in PKWARE's APPNOTE. Every field that is said twice must agree, members must not overlap or
leave room between them for others, and the archive must fill the file from the first byte to the last, so that no other
reader can see a different archive.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from clip_core.buffers import MAX_NAME_LETTERS, Buffer, pieces, shown
from clip_core.errors import CheckpointError

MAX_MEMBERS = 20_000  # RN50x64, the largest official model, has about 2,000

_END = struct.Struct("<4s4H2LH")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_ENCRYPTED = 0x1 | 0x20 | 0x40 | 0x2000  # encrypted, patched, strongly encrypted, masked
_DESCRIPTOR = 0x8  # the local header leaves sizes and CRC-32 to a record behind the data
_MAX_DESCRIPTOR_BYTES = 24  # of that record
_FULL_2, _FULL_4 = 0xFFFF, 0xFFFFFFFF  # "see the 64-bit field"


@dataclass(frozen=True)
class Member:
    """One member, whose header has been checked and whose data has not."""

    name: str
    stored: bool  # not compressed
    crc: int
    size: int
    start: int  # of the data


def members(data: Buffer) -> dict[str, Member]:
    """The members of an archive by name.

    Raises:
        CheckpointError: the archive is cut short, has data before, between or after its parts, says two things about
            one member, or has a member that is encrypted or named in a way that no weights file needs.
    """
    try:
        count, size, start, end = _end(data)
        if count > MAX_MEMBERS:
            raise CheckpointError(f"the archive has {count} members; at most {MAX_MEMBERS} are read.")
        if start + size != end:
            raise CheckpointError("the archive's directory is not where it says: there is data before or after it.")
        found: dict[str, Member] = {}
        extents = []
        position = start
        for _ in range(count):
            member, offset, position = _central(data, position, end)
            if member.name in found:
                raise CheckpointError(f"the archive has two members named {member.name}.")
            found[member.name] = member
            extents.append((offset, member.start + member.size, member.name))
        if position != end:
            raise CheckpointError("the archive's directory holds more than its members.")
    except struct.error as error:
        raise CheckpointError("the archive is damaged or cut short; download it again.") from error
    last = 0
    for offset, stop, name in sorted(extents):
        if offset < last:
            raise CheckpointError(f"the archive's member {name} overlaps another.")
        if last == 0 and offset != 0:
            raise CheckpointError("the archive does not start with a member.")
        if offset - last > _MAX_DESCRIPTOR_BYTES:
            raise CheckpointError(f"the archive has data before its member {name} that belongs to none.")
        last = stop
    if last > start:
        raise CheckpointError("the archive's members overlap its directory.")
    if start - last > _MAX_DESCRIPTOR_BYTES:
        raise CheckpointError("the archive has data before its directory that belongs to no member.")
    return found


def content(data: Buffer, member: Member) -> memoryview:
    """The bytes of a stored member, whose CRC-32 is checked.

    Raises:
        CheckpointError: it is compressed, or its CRC-32 differs.
    """
    if not member.stored:
        raise CheckpointError(f"the archive's member {member.name} is compressed; it must be stored as it is.")
    crc = 0
    for piece in pieces(data, member.start, member.start + member.size):
        crc = zlib.crc32(piece, crc)
    if crc != member.crc:
        raise CheckpointError(f"the archive's member {member.name} does not match its CRC-32; download the file again.")
    return memoryview(data)[member.start : member.start + member.size]


def _end(data: Buffer) -> tuple[int, int, int, int]:
    """(members, bytes of the directory, start of the directory, start of the record behind it)"""
    position = len(data) - _END.size
    if position < 0 or data[position : position + 4] != b"PK\5\6":
        raise CheckpointError("the archive is cut short, or something follows it; download it again.")
    _, disk, first_disk, here, count, size, start, comment = _END.unpack_from(data, position)
    if disk or first_disk or here != count or comment:
        raise CheckpointError("the archive is split, or its end says two things.")
    locator = position - _LOCATOR_64.size
    if locator >= 0 and data[locator : locator + 4] == b"PK\6\7":
        _, _, position_64, disks = _LOCATOR_64.unpack_from(data, locator)
        if position_64 != locator - _END_64.size or data[position_64 : position_64 + 4] != b"PK\6\6" or disks != 1:
            raise CheckpointError("the archive's 64-bit end is not where it says.")
        _, length, _, _, disk, first_disk, here, count_64, size_64, start_64 = _END_64.unpack_from(data, position_64)
        agree = count in (count_64, _FULL_2) and size in (size_64, _FULL_4) and start in (start_64, _FULL_4)
        if length != _END_64.size - 12 or disk or first_disk or here != count_64 or not agree:
            raise CheckpointError("the archive's two ends say different things.")
        return count_64, size_64, start_64, position_64
    return count, size, start, position


def _central(data: Buffer, position: int, end: int) -> tuple[Member, int, int]:
    """(the member, the start of its local header, the end of this entry)"""
    fields = _CENTRAL.unpack_from(data, position)
    signature, _, _, flags, method, _, _, crc, packed, size, name_size, extra_size, comment_size, disk = fields[:14]
    offset = fields[16]
    stop = position + _CENTRAL.size + name_size + extra_size + comment_size
    if signature != b"PK\1\2" or stop > end:
        raise CheckpointError("the archive's directory is damaged; download it again.")
    raw_name = data[position + _CENTRAL.size : position + _CENTRAL.size + name_size]
    name = _checked_name(raw_name)
    extra = data[position + _CENTRAL.size + name_size : stop - comment_size]
    size, packed, offset = _wide((size, packed, offset), extra, name)
    if flags & _ENCRYPTED:
        raise CheckpointError(f"the archive's member {name} is encrypted.")
    if disk or comment_size:
        raise CheckpointError(f"the archive's member {name} has a comment or is on another disk.")
    if offset > len(data):
        raise CheckpointError(f"the archive's member {name} starts behind the file.")
    local = _LOCAL.unpack_from(data, offset)
    signature, _, local_flags, local_method, _, _, local_crc, local_packed, local_size, local_name, local_extra = local
    name_start = offset + _LOCAL.size
    start = name_start + local_name + local_extra
    local_size, local_packed = _wide((local_size, local_packed), data[name_start + local_name : start], name)
    expected = (b"PK\3\4", flags, method, raw_name)
    agree = (signature, local_flags, local_method, data[name_start : name_start + local_name]) == expected
    if not flags & _DESCRIPTOR or (local_crc, local_packed, local_size) != (0, 0, 0):
        agree &= (local_crc, local_packed, local_size) == (crc, packed, size)
    if not agree:
        raise CheckpointError(f"the archive's two headers of {name} say different things.")
    if method == 0 and packed != size:
        raise CheckpointError(f"the archive's member {name} is stored in {packed} bytes but {size} long.")
    if start + packed > len(data):
        raise CheckpointError(f"the archive's member {name} ends behind the file.")
    return Member(name, method == 0, crc, packed, start), offset, stop


def _wide(values: tuple[int, ...], extra: bytes, name: str) -> tuple[int, ...]:
    """``values`` with those that say so taken from the 64-bit extra field."""
    if _FULL_4 not in values:
        return values
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{size // 8}Q", extra, position + 4))
            try:
                return tuple(next(wide) if value == _FULL_4 else value for value in values)
            except (StopIteration, RuntimeError):
                break
        position += 4 + size
    raise CheckpointError(f"the archive's member {name} has no 64-bit size.")


def _checked_name(raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"the archive has a member named {raw[:100]!r}, which is not UTF-8.") from error
    long = len(name) > MAX_NAME_LETTERS
    if long or not name.isprintable() or set(name) & set("\\:") or {"", ".", ".."} & set(name.split("/")):
        raise CheckpointError(f"the archive has a member named {shown(name)}; weights files have no such names.")
    return name
