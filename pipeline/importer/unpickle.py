"""A reader of untrusted pickles: it runs their opcodes on a machine that cannot call anything.

`pickletools.genops` splits the bytes into opcodes and never evaluates them; the machine below keeps
the stack and the memo. Globals stay names, and calls become `Inert` records (see `importer.inert`),
so there is nothing that a file could make this process do.
"""

import pickletools
from typing import Any

from esolm.pipeline.errors import ImportCheckpointError
from esolm.pipeline.importer.inert import Global, Inert, call, global_of, storage

_MARK = object()
# The opcodes whose argument is the value that they push.
_VALUES = frozenset(
    [
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
        "UNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "BINUNICODE8",
        "FLOAT",
        "BINFLOAT",
    ]
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


def unpickle(data: bytes) -> Any:
    """Returns the content of a pickle, made inert.

    Raises ImportCheckpointError if the pickle is malformed or asks for a suspicious call.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return machine.pop()
            machine.execute(opcode.name, argument)
    except ImportCheckpointError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, UnicodeError) as error:
        raise ImportCheckpointError(f"its pickle is damaged ({error!r})") from None
    raise ImportCheckpointError("its pickle has no end")


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def execute(self, name: str, argument: Any) -> None:
        """Executes one opcode.

        Sets are read as lists and frozen sets as tuples, so that their elements stay as they are.
        """
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name not in ("PROTO", "FRAME"):
            method = getattr(self, f"_op_{name.lower()}", None)
            if method is None:
                raise ImportCheckpointError(f"its pickle uses {name}, which no checkpoint needs")
            if argument is None:
                method()
            else:
                method(argument)

    def pop(self) -> Any:
        if self.stack[-1] is _MARK:
            raise ValueError("a mark where a value should be")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        index = len(self.stack) - 1
        while self.stack[index] is not _MARK:
            index -= 1
            if index < 0:
                raise ValueError("no mark on the stack")
        items = self.stack[index + 1 :]
        del self.stack[index:]
        return items

    def _op_mark(self) -> None:
        self.stack.append(_MARK)

    def _op_pop(self) -> None:
        self.stack.pop()

    def _op_pop_mark(self) -> None:
        self.pop_to_mark()

    def _op_dup(self) -> None:
        self.stack.append(self.stack[-1])

    def _op_empty_list(self) -> None:
        self.stack.append([])

    _op_empty_set = _op_empty_list

    def _op_empty_dict(self) -> None:
        self.stack.append({})

    def _op_list(self) -> None:
        self.stack.append(self.pop_to_mark())

    def _op_tuple(self) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    _op_frozenset = _op_tuple

    def _op_tuple1(self) -> None:
        self.stack[-1:] = [tuple(self.stack[-1:])]

    def _op_tuple2(self) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def _op_tuple3(self) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def _op_dict(self) -> None:
        items = self.pop_to_mark()
        self.stack.append({})
        self._update(items)

    def _op_append(self) -> None:
        self._extend([self.pop()])

    def _op_appends(self) -> None:
        self._extend(self.pop_to_mark())

    _op_additems = _op_appends

    def _op_setitem(self) -> None:
        value, key = self.pop(), self.pop()
        self._update([key, value])

    def _op_setitems(self) -> None:
        self._update(self.pop_to_mark())

    def _op_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(global_of(module, name))

    def _op_stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a global without a name")
        self.stack.append(global_of(module, name))

    def _op_inst(self, argument: str) -> None:
        args = tuple(self.pop_to_mark())
        self._op_global(argument)
        self.stack.append(call(self.pop(), args))

    def _op_obj(self) -> None:
        callee, *args = self.pop_to_mark()
        self.stack.append(call(callee, tuple(args)))

    def _op_reduce(self) -> None:
        args, callee = self.pop(), self.pop()
        if not isinstance(args, tuple):
            raise ValueError("a call without arguments")
        self.stack.append(call(callee, args))

    _op_newobj = _op_reduce

    def _op_newobj_ex(self) -> None:
        keywords, args, callee = self.pop(), self.pop(), self.pop()
        self.stack.append(call(callee, (*args, keywords)))

    def _op_build(self) -> None:
        """Sets the state of an object; that of a dict (of an OrderedDict) has no use here."""
        state = self.pop()
        if isinstance(self.stack[-1], Inert):
            self.stack[-1].state = state
        elif isinstance(self.stack[-1], Global):
            raise ValueError("a state for something that is no object")

    def _op_binpersid(self) -> None:
        self.stack.append(storage(self.pop()))

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        (target.elements if isinstance(target, Inert) else target).extend(items)

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        entries = target.entries if isinstance(target, Inert) else target
        for key, value in zip(items[::2], items[1::2], strict=True):
            # A nested tuple is refused, because it can take for ever to hash.
            if isinstance(key, tuple) and not all(isinstance(part, str | int) for part in key):
                raise ValueError("a key that is no plain value")
            entries[key] = value
