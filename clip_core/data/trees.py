"""Files by their paths: those in a folder, or those in an archive, which is read as it is.

Tar files and zip files are read at the places of their members; nothing of them is unpacked. A tar file that is
compressed by gzip can only be read from its beginning, so its content is kept in the cache folder (`cache_folder`) as a
tar file, which later runs find there.
"""

from __future__ import annotations

import gzip
import io
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple, Protocol

from PIL import Image

from clip_core.data.example import Texts, fingerprint_of
from clip_core.data.listing import tree, warn_of_rest
from clip_core.data.settings import brief
from clip_core.data.tars import regular_members
from clip_core.download import cache_folder
from clip_core.errors import ClipError, ImageError
from clip_core.files import PIECE, atomic_open, errors_about, open_regular, read_regular, reason
from clip_core.image import MAX_FILE_BYTES, open_image

MOST_EXPANSION = 50
"""Times its own size that a compressed file may have inside; text compresses tenfold, and pictures hardly at all."""

_SMALL = 1 << 24  # bytes that a compressed file may have inside whatever its own size

MOST_BYTES = 1 << 30
"""Of one file that is read whole; the largest published one, STL-10's test pictures, has 221,184,000."""

_ZIP_HEADER_BYTES = 30
_SHOWN = 5  # names in a message


class Tree(Protocol):
    """Files by their paths, which have ``/`` between their parts."""

    @property
    def source(self) -> str:
        """The folder or archive, for messages."""

    def by_folder(self) -> dict[str, list[str]]:
        """Each folder that is directly in it, and the paths of all files in that and below; under ``""`` the others.

        Names that begin with a dot are left out.
        """

    def has(self, path: str) -> bool:
        """Whether there is a file of that path."""

    def read(self, path: str) -> bytes:
        """The content of a file.

        Raises:
            ClipError: it is missing, damaged, or larger than `MOST_BYTES`.
        """

    def picture(self, path: str) -> Image.Image:
        """A file as a picture.

        Raises:
            ImageError: it cannot be used.
        """

    def fingerprint(self, paths: Sequence[str]) -> str:
        """Of the files of these paths, without reading them."""

    def files(self, paths: Iterable[str]) -> Iterable[str]:
        """The files on disk that have the files of these paths."""


@dataclass(frozen=True)
class Folder:
    """The files in a folder."""

    source: str

    def by_folder(self) -> dict[str, list[str]]:
        try:
            with os.scandir(self.source) as found:
                entries = sorted((each for each in found if not each.name.startswith(".")), key=lambda each: each.name)
        except (OSError, ValueError) as error:
            raise ClipError(f"{self.source} cannot be read: {reason(error).lower()}; give a folder.") from error
        below, again = len(os.path.join(self.source, "")), []
        found_in = {"": [entry.name for entry in entries if not entry.is_dir()]}
        for entry in entries:
            if entry.is_dir():
                files, met_again = tree(os.path.join(self.source, entry.name))
                found_in[entry.name] = [path[below:].replace(os.sep, "/") for path in files]
                again += met_again
        warn_of_rest(self.source, (), again)
        return found_in

    def has(self, path: str) -> bool:
        return os.path.isfile(os.path.join(self.source, path))

    def read(self, path: str) -> bytes:
        return read_regular(os.path.join(self.source, path), MOST_BYTES)

    def picture(self, path: str) -> Image.Image:
        return open_image(os.path.join(self.source, path))

    def fingerprint(self, paths: Sequence[str]) -> str:
        return fingerprint_of(Texts(paths), [size_of(os.path.join(self.source, path)) for path in paths])

    def files(self, paths: Iterable[str]) -> Iterable[str]:
        return (os.path.join(self.source, path) for path in paths)


def size_of(path: str) -> int:
    """Of a file, in bytes; -1 where it is missing."""
    try:
        return os.path.getsize(path)
    except (OSError, ValueError):
        return -1


class Place(NamedTuple):
    """Where a member of an archive lies."""

    start: int
    stored: int  # bytes
    size: int  # bytes, as many unless it is deflated
    deflated: bool = False
    checksum: int | None = None  # CRC-32, which a tar file does not have


@dataclass(frozen=True)
class Archive:
    """The members of a tar or zip file."""

    source: str
    file: str  # that has them, which is another one for an archive that was compressed
    places: dict[str, Place]

    def by_folder(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {"": []}
        for path in sorted(self.places):
            folder = path.rpartition("/")[0]
            if not any(part.startswith(".") for part in path.split("/")):
                found.setdefault(folder.partition("/")[0], []).append(path)
        return found

    def has(self, path: str) -> bool:
        return path in self.places

    def picture(self, path: str) -> Image.Image:
        try:
            return open_image(self.read(path, MAX_FILE_BYTES))
        except ClipError as error:
            raise ImageError(f"{path} in {self.source}: {error}") from error

    def fingerprint(self, paths: Sequence[str]) -> str:
        return fingerprint_of(Texts(paths), [self.places[path].size for path in paths if path in self.places])

    def files(self, paths: Iterable[str]) -> Iterable[str]:
        return [self.file]

    def within(self, folder: str) -> Archive:
        """The members below a folder, by their paths there."""
        inside = {path[len(folder) + 1 :]: at for path, at in self.places.items() if path.startswith(f"{folder}/")}
        return Archive(f"{self.source}/{folder}", self.file, inside)

    def read(self, path: str, limit: int = MOST_BYTES) -> bytes:
        if path not in self.places:
            raise ClipError(f"{self.source} has no {path}; get it again.")
        place = self.places[path]
        if max(place.size, place.stored) > limit:
            raise ClipError(f"{path} in {self.source} has {place.size} bytes, and at most {limit} are read.")
        with open_regular(self.file) as file:
            start = place.start
            if place.checksum is not None:  # a zip file has a header of its own before each member
                file.seek(start)
                names, extra = struct.unpack("<26x2H", file.read(_ZIP_HEADER_BYTES).ljust(_ZIP_HEADER_BYTES, b"\0"))
                start += _ZIP_HEADER_BYTES + names + extra
            file.seek(start)
            data = file.read(place.stored)
        if place.checksum is not None:
            data = self._checked(data, place, path)
        if len(data) != place.size:
            raise ClipError(f"{self.source} is cut short within {path}; get it again.")
        return data

    def _checked(self, data: bytes, place: Place, path: str) -> bytes:
        try:
            if place.deflated:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, max(1, place.size))
        except zlib.error as error:
            raise ClipError(f"{path} in {self.source} is damaged: {error}; get the archive again.") from error
        if zlib.crc32(data) != place.checksum:
            raise ClipError(f"{path} in {self.source} is damaged: its checksum is another; get the archive again.")
        return data


def archive(path: str) -> Archive:
    """A tar file, also one that is compressed by gzip, or a zip file.

    Args:
        path: which may go on inside of a zip file: ``caltech-101.zip/caltech-101/101_ObjectCategories.tar.gz``.

    Raises:
        ClipError: it is missing, damaged or something else.
    """
    outer, zipped, inner = path.partition(".zip/")
    if zipped:
        return _tar(path, _unpacked(path, io.BytesIO(archive(f"{outer}.zip").read(inner)), f"{outer}.zip"))
    with open_regular(path) as file:
        start = file.read(4)
        file.seek(0)
        if start == b"PK\3\4":
            return _zip(path, file)
        if start[:2] == b"\x1f\x8b":
            return _tar(path, _unpacked(path, file, path))
    return _tar(path, path)


def gunzipped(data: bytes, source: str) -> bytes:
    """What is compressed by gzip.

    Raises:
        ClipError: it is damaged, or far larger than its compressed form.
    """
    return b"".join(_pieces(source, io.BytesIO(data), max(_SMALL, MOST_EXPANSION * len(data))))


def _tar(source: str, path: str) -> Archive:
    places: dict[str, Place] = {}
    with open_regular(path) as file:
        for member in regular_members(file, source):
            name = member.name.removeprefix("./")
            if name in places:
                raise ClipError(f"{source} has {name} twice; get it again.")
            places[name] = Place(member.offset_data, member.size, member.size)
    return Archive(source, path, places)


def _zip(source: str, file: BinaryIO) -> Archive:
    places: dict[str, Place] = {}
    try:
        with zipfile.ZipFile(file) as content:
            members = content.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OverflowError) as error:
        raise ClipError(f"{source} is not a whole zip file: {error}; get it again.") from error
    for member in members:
        if member.is_dir():
            continue
        if member.filename in places:
            raise ClipError(f"{source} has {member.filename} twice; get it again.")
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ClipError(f"{source} has {member.filename} encrypted or in a rare compression; unpack it yourself.")
        deflated = member.compress_type == zipfile.ZIP_DEFLATED
        sizes = member.compress_size, member.file_size
        places[member.filename] = Place(member.header_offset, *sizes, deflated, member.CRC)
    return Archive(source, source, places)


def _unpacked(source: str, compressed: BinaryIO, file: str) -> str:
    """The path of a tar file in the cache folder with what is compressed by gzip.

    Args:
        source: what is compressed, for messages.
        file: on disk, which has it.
    """
    found = os.stat(file)
    key = fingerprint_of(source, os.path.realpath(file), [found.st_size, found.st_mtime_ns])[:32]
    target = cache_folder() / "archives" / f"{key}.tar"
    if not target.exists():
        warnings.warn(
            f"{source} is compressed, so its content is kept in {target} for this run and later ones.", stacklevel=2
        )
        with errors_about(target.parent, "written"):
            target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_open(target) as copy:
            for piece in _pieces(source, compressed, max(_SMALL, MOST_EXPANSION * found.st_size)):
                copy.write(piece)
    return str(target)


def _pieces(source: str, compressed: BinaryIO, limit: int) -> Iterator[bytes]:
    size = 0
    with gzip.GzipFile(fileobj=compressed) as stream:
        while True:
            try:
                piece = stream.read(PIECE)
            except (OSError, EOFError, zlib.error) as error:
                raise ClipError(f"{source} is damaged or cut short: {error}; get it again.") from error
            if not piece:
                return
            size += len(piece)
            if size > limit:
                raise ClipError(
                    f"{source} has more than {limit} bytes inside, {MOST_EXPANSION} times its own; get it again."
                )
            yield piece


def pictures_in(place: str, example: str) -> Tree:
    """A folder, or an archive from its folder on that has the file ``example``.

    Raises:
        ClipError: the archive cannot be read, or has no such file.
    """
    if not os.path.isfile(place):
        return Folder(place)
    content = archive(place)
    if content.has(example):
        return content
    for folder in content.by_folder():
        if content.has(f"{folder}/{example}"):
            return content.within(folder)
    raise ClipError(f"{place} has no picture {example}; give the archive that has it.")


@dataclass(frozen=True)
class Layout:
    """One of the forms in which a set of files is published."""

    mark: str  # a file or folder that is in it
    folders: tuple[str, ...] = ()  # that have it, where it is not in the given folder itself
    archives: tuple[str, ...] = ()  # that hold it
    inside: str = ""  # the folder of the archive that has it

    def place(self, folder: str) -> str | None:
        """The folder that has the mark, or the archive; None where it is not there in this form."""
        for inner in ("", *self.folders):
            if os.path.exists(os.path.join(folder, inner, self.mark)):
                return os.path.join(folder, inner) if inner else folder
        for name in self.archives:
            path = os.path.join(folder, name)
            outer, zipped, _ = path.partition(".zip/")
            if os.path.isfile(f"{outer}.zip" if zipped else path):
                return path
        return None


def tree_of(folder: str, layouts: Sequence[Layout]) -> tuple[Layout, Tree]:
    """The first of some layouts that is in a folder, and its files.

    Raises:
        ClipError: there is none, or an archive cannot be read.
    """
    for layout in layouts:
        place = layout.place(folder)
        if place is not None and os.path.isdir(place):
            return layout, Folder(place)
        if place is not None:
            content = archive(place)
            return layout, content.within(layout.inside) if layout.inside else content
    wanted = dict.fromkeys(name for layout in layouts for name in (*layout.folders, layout.mark, *layout.archives))
    raise ClipError(f"{folder} has {_listed(folder)}, but not {' or '.join(wanted)}; give the folder that has them.")


def _listed(folder: str) -> str:
    """What is in a folder, for a message."""
    try:
        found = sorted(os.listdir(folder))
    except (OSError, ValueError) as error:
        raise ClipError(f"{folder} cannot be read: {reason(error).lower()}; give a folder.") from error
    names = ", ".join(map(brief, found[:_SHOWN])) or "nothing in it"
    return names if len(found) <= _SHOWN else f"{names} and {len(found) - _SHOWN} more"
