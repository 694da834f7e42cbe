"""A pickle machine that executes nothing: it builds plain containers and calls only the few functions it was given.

The stream is read once, by this machine alone, so no second parser can understand it differently. Every operation must
be on the format's list. A global is looked up by a function of the reader and never imported; what the reader does not
know becomes `Unbuilt`, a note of its name, and so does everything that would be made with it.

Work and memory stay in proportion to the stream: operations and bytes made are counted, bytes are views of the stream,
and no object of the stream is compared, hashed, printed or walked through before its type is known, since a few bytes
can describe one that is deeper than any stack and larger than any memory.
"""

from __future__ import annotations

import pickletools
import struct
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from clip_core.buffers import shown
from clip_core.errors import CheckpointError

MAX_OPERATIONS = 1_000_000  # RN50x64, the largest official model, takes about 50,000
MAX_OPEN_MARKS = 1_000
MAX_GLOBAL_LETTERS = 1_000
MAX_ARGUMENTS = 16
MAX_MADE = 2  # bytes that calls may make for each byte of the stream

# What the pickler of TorchScript writes, always in protocol 2.
SCRIPT_OPERATIONS = frozenset(
    (
        *("PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("BINUNICODE", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS"),
        *("EMPTY_DICT", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
        *("GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"),
    )
)
# What Python's pickler writes of data in protocols 2 to 5, but for references to outside the stream.
PYTHON_OPERATIONS = (SCRIPT_OPERATIONS - {"BINPERSID"}) | {
    *("FRAME", "MEMOIZE", "STACK_GLOBAL", "NEWOBJ_EX", "EMPTY_SET", "ADDITEMS", "FROZENSET"),
    *("SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
# What Python 2's pickler writes of data in protocol 2; its texts are bytes, and read as texts of the same code points.
PYTHON_2_OPERATIONS = (SCRIPT_OPERATIONS - {"BINPERSID"}) | {"SHORT_BINSTRING", "BINSTRING"}

_CODES = {ord(operation.code): operation for operation in pickletools.opcodes}
_LENGTH_WIDTHS = {  # how pickletools marks an argument that starts with its length -> bytes of that length
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}


@dataclass(frozen=True)
class Function:
    """A global that a pickle may call; ``call`` takes whatever it is given and refuses it if it is wrong."""

    call: Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Unbuilt:
    """What stands for a global that the reader does not know, and for everything that would be made with it."""

    module: str
    name: str

    def __str__(self) -> str:
        return shown(f"{self.module}.{self.name}")[1:-1]


class Buildable(ABC):
    """An object of a reader's own whose state a pickle may set."""

    @abstractmethod
    def build(self, state: Any) -> None:
        """Take over the state, or refuse it."""


@dataclass(frozen=True)
class Rules:
    """What a pickle of one format may contain."""

    operations: frozenset[str]
    find: Callable[[str, str], Any]  # (module, name) -> what stands for the global: `Unbuilt` for one that is not known
    persistent: Callable[[Any], Any] | None = None  # the object that a persistent id stands for


def load(data: memoryview, rules: Rules) -> Any:
    """The object that a pickle describes: containers, numbers, texts, views of ``data``, and what ``rules`` make.

    Raises:
        CheckpointError: the stream is cut short, goes on after its end, or holds what ``rules`` do not allow.
    """
    loaded, end = load_first(data, rules)
    if end != len(data):
        raise CheckpointError(f"{len(data) - end} bytes follow the end of the pickle.")
    return loaded


def load_first(data: memoryview, rules: Rules) -> tuple[Any, int]:
    """As `load`, of a pickle that other bytes follow: the object, and where its pickle ends."""
    machine = _Machine(data, rules)
    try:
        return machine.run(), machine.position
    except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise CheckpointError(f"the pickle is damaged near byte {machine.position}: {error!s:.200}.") from error


def _ordered_dictionary(*arguments: Any) -> dict[Any, Any]:
    if arguments:
        raise CheckpointError("an ordered dictionary of the pickle is not made empty.")
    return {}


ORDERED_DICTIONARY = Function(_ordered_dictionary)


class _Machine:
    """One method for each operation, named as in `pickletools`."""

    def __init__(self, data: memoryview, rules: Rules):
        self.data, self.rules = data, rules
        self.position = self.frame_end = self.made = 0
        self.stack: list[Any] = []
        self.covered: list[list[Any]] = []  # for each open mark, the stack below it
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(MAX_OPERATIONS):
            start = self.position
            operation, argument = self.next()
            if start < self.frame_end < self.position:
                raise CheckpointError("the pickle is damaged: a frame ends inside of an operation.")
            if operation == "STOP":
                break
            _OPERATIONS[operation](self, argument)
        else:
            raise CheckpointError(f"the pickle has more than {MAX_OPERATIONS} operations.")
        if self.covered or len(self.stack) != 1:
            raise CheckpointError("the pickle is damaged: it does not end with one object.")
        return self.stack[0]

    def next(self) -> tuple[str, Any]:
        """The next operation and its argument; the position moves behind them."""
        code = _CODES.get(self.take(1)[0])
        if code is None or code.name not in self.rules.operations:
            name = code.name if code else "one that no pickle has"
            raise CheckpointError(
                f"the pickle contains the operation {name} at byte {self.position - 1}; files of this format have no "
                "use for it."
            )
        if code.arg is None:
            return code.name, None
        kind, size = code.arg.name, code.arg.n
        if size == pickletools.UP_TO_NEWLINE:  # GLOBAL: two lines
            return code.name, (self.line(), self.line())
        if size < 0:
            size = int.from_bytes(self.take(_LENGTH_WIDTHS[size]), "little")
        raw = self.take(size)
        if kind.startswith("unicodestring"):
            return code.name, str(raw, "utf-8", "surrogatepass")
        if kind.startswith("string"):
            return code.name, str(raw, "latin-1")
        if kind.startswith("byte"):
            return code.name, raw
        if kind == "float8":
            return code.name, struct.unpack(">d", raw)[0]
        return code.name, int.from_bytes(raw, "little", signed=kind in ("int4", "long1"))

    def take(self, size: int) -> memoryview:
        if self.position + size > len(self.data):
            raise CheckpointError(
                f"the pickle is cut short: {size} bytes are expected at byte {self.position} of {len(self.data)}."
            )
        self.position += size
        return self.data[self.position - size : self.position]

    def line(self) -> str:
        window = bytes(self.data[self.position : self.position + MAX_GLOBAL_LETTERS])
        end = window.find(b"\n")
        if end < 0:
            raise CheckpointError("the pickle is damaged: the name of a global does not end.")
        self.position += end + 1
        return window[:end].decode("utf-8")

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.covered.pop()
        return items

    def proto(self, version: int) -> None:
        if self.position != 2:
            raise CheckpointError("the pickle is damaged: it starts a second time inside itself.")

    def frame(self, size: int) -> None:
        if self.position < self.frame_end or self.position + size > len(self.data):
            raise CheckpointError("the pickle is damaged: a frame does not end where it says.")
        self.frame_end = self.position + size

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self, _: None) -> None:
        if len(self.covered) >= MAX_OPEN_MARKS:
            raise CheckpointError(f"the pickle nests more than {MAX_OPEN_MARKS} deep.")
        self.covered.append(self.stack)
        self.stack = []

    def long_tuple(self, _: None) -> None:
        items = self.pop_mark()
        self.stack.append(tuple(items))

    def short_tuple(self, size: int) -> None:
        if len(self.stack) < size:
            raise IndexError("stack")
        self.stack[-size:] = [tuple(self.stack[-size:])]

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def append(self, _: None) -> None:
        self.extend([self.stack.pop()])

    def appends(self, _: None) -> None:
        self.extend(self.pop_mark())

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is Unbuilt:
            return
        if type(self.stack[-1]) is not list:
            raise CheckpointError("the pickle appends to something that is not a list.")
        self.stack[-1].extend(items)

    def additems(self, _: None) -> None:
        self.pop_mark()
        if type(self.stack[-1]) is not Unbuilt:
            raise CheckpointError("the pickle adds to something that is not a set.")

    def frozenset(self, _: None) -> None:
        self.pop_mark()
        self.push(_FROZENSET)

    def setitem(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.update([key, value])

    def setitems(self, _: None) -> None:
        self.update(self.pop_mark())

    def update(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise CheckpointError("the pickle is damaged: a dictionary has a key without a value.")
        target = self.stack[-1]
        if type(target) is Unbuilt:
            return
        if type(target) is not dict:
            raise CheckpointError("the pickle sets an item of something that is not a dictionary.")
        for key, value in zip(items[::2], items[1::2]):
            if type(key) is not str:
                key = Unbuilt("", "key")  # what it was is not hashed; names of weights are texts
            if key in target:
                raise CheckpointError(f"the pickle has a dictionary with two entries {shown(key)}.")
            target[key] = value

    def global_(self, names: Any) -> None:
        module, name = names
        self.push(self.rules.find(module, name))

    def stack_global(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(module) is not str or type(name) is not str or len(module) + len(name) > MAX_GLOBAL_LETTERS:
            raise CheckpointError("the pickle names a global by something that is not a short text.")
        self.push(self.rules.find(module, name))

    def reduce(self, _: None) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) not in (Function, Unbuilt) or type(arguments) is not tuple:
            raise CheckpointError("the pickle calls something that is not a function.")
        if type(function) is Unbuilt:
            self.push(function)
            return
        if len(arguments) > MAX_ARGUMENTS:
            raise CheckpointError(f"the pickle calls a function with more than {MAX_ARGUMENTS} arguments.")
        unbuilt = next((argument for argument in arguments if type(argument) is Unbuilt), None)
        self.push(function.call(*arguments) if unbuilt is None else unbuilt)
        if type(self.stack[-1]) in (bytes, tuple):
            self.made += sys.getsizeof(self.stack[-1])
        if self.made > MAX_MADE * len(self.data) + 1000:
            raise CheckpointError(f"the pickle makes more than {MAX_MADE} times as many bytes as it has.")

    def newobj(self, _: None) -> None:
        arguments, cls = self.stack.pop(), self.stack.pop()
        if type(cls) is Unbuilt:
            self.push(cls)
            return
        if not (isinstance(cls, type) and issubclass(cls, Buildable)) or type(arguments) is not tuple or arguments:
            raise CheckpointError("the pickle makes an object of something that is not a class.")
        self.push(cls())

    def newobj_ex(self, _: None) -> None:
        self.stack.pop()  # arguments by name, which nothing that can be made here takes
        if type(self.stack[-2]) is not Unbuilt:
            raise CheckpointError("the pickle makes an object of something that is not a class.")
        self.newobj(None)

    def build(self, _: None) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Buildable):
            target.build(state)
        # An ordered dictionary's attributes, such as _metadata, are of no use here.
        elif type(target) not in (dict, Unbuilt):
            raise CheckpointError("the pickle sets the state of something that has none.")

    def persistent(self, _: None) -> None:
        if self.rules.persistent is None:
            raise CheckpointError("the pickle refers to something outside itself.")
        self.stack.append(self.rules.persistent(self.stack.pop()))


_SET, _FROZENSET = Unbuilt("builtins", "set"), Unbuilt("builtins", "frozenset")

_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.proto,
    "FRAME": _Machine.frame,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _Machine.push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _Machine.push),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), _Machine.push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), _Machine.push),
    "MARK": _Machine.mark,
    "TUPLE": _Machine.long_tuple,
    "TUPLE1": lambda machine, _: machine.short_tuple(1),
    "TUPLE2": lambda machine, _: machine.short_tuple(2),
    "TUPLE3": lambda machine, _: machine.short_tuple(3),
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.setitem,
    "SETITEMS": _Machine.setitems,
    "EMPTY_SET": lambda machine, _: machine.push(_SET),
    "ADDITEMS": _Machine.additems,
    "FROZENSET": _Machine.frozenset,
    "GLOBAL": _Machine.global_,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.newobj,
    "NEWOBJ_EX": _Machine.newobj_ex,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}
