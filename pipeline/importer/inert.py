"""What an untrusted pickle may become: plain data, tensors by reference, and inert records.

A global that a pickle names is never looked up, let alone imported. Only its name is kept.
"""

import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from dataclasses import dataclass, field
from typing import Any

import torch

from esolm.pipeline.errors import ImportCheckpointError


@dataclass(frozen=True)
class Global:
    """The name of a global of a module in a pickle, such as `torch.FloatStorage`."""

    name: str


@dataclass(eq=False)
class Inert:
    """A record of an object that a pickle wants made: its name, arguments and contents."""

    name: str
    args: Any = ()
    state: Any = None
    entries: dict[Any, Any] = field(default_factory=dict)
    elements: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Storage:
    """A storage of `numel` elements, in the record `data/KEY` of the archive."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is not read yet."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
# The names in the standard library and torch that honest checkpoints make objects of. To make an
# object here is to write down its name, so this list decides what is reported, not what is safe.
ORDINARY = frozenset(
    ["builtins." + name for name in (
        "bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list",
        "long", "object", "range", "set", "slice", "str", "tuple", "unicode",
    )]
    + ["collections." + name for name in ("Counter", "OrderedDict", "defaultdict", "deque")]
    + ["datetime." + name for name in ("date", "datetime", "time", "timedelta", "timezone")]
    + ["pathlib." + name for name in (
        "Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath",
    )]
    + ["_codecs.encode", "copyreg.__newobj__", "copyreg._reconstructor", "decimal.Decimal"]
    + ["argparse.Namespace", "types.SimpleNamespace", "uuid.UUID"]
    + ["torch.Size", "torch.Tensor", "torch.device", "torch.dtype"]
    + ["torch.nn.parameter.Parameter", "torch.torch_version.TorchVersion"]
    # These make tensors that no published network consists of, but that may lie beside one.
    + ["torch.serialization._get_layout"]
    + ["torch._utils._rebuild_" + name for name in (
        "meta_tensor_no_storage", "nested_tensor", "qtensor", "sparse_csr_tensor", "sparse_tensor",
        "tensor_v3",
    )]
    + ["re._compile"]
)  # fmt: skip


def global_of(module: str, name: str) -> Global:
    """Returns the global by its Python 3 name; pickles up to protocol 2 use those of Python 2."""
    module, name = NAME_MAPPING.get((module, name), (module, name))
    return Global(f"{IMPORT_MAPPING.get(module, module)}.{name}")


def call(callee: Any, args: Any) -> Any:
    """Returns what a call in a pickle becomes; only the tensor rules below are ever computed.

    Raises ImportCheckpointError for a call that exploits need and no checkpoint does, namely of
    functions of the standard library or of torch.
    """
    if not isinstance(callee, Global):
        raise _hostile(f"the result of `{getattr(callee, 'name', type(callee).__name__)}`")
    if callee.name in RULES:
        try:
            return RULES[callee.name](*args)
        except (TypeError, ValueError) as error:
            raise ImportCheckpointError(f"it calls {callee.name} in a wrong way: {error}") from None
    package = callee.name.partition(".")[0]
    if callee.name in ORDINARY or package not in (sys.stdlib_module_names | {"torch"}):
        return Inert(callee.name, args)
    # A partial only keeps a function with its arguments; a call of the result is refused above.
    if callee.name == "functools.partial" and isinstance(next(iter(args), None), Global):
        return Inert(callee.name, args)
    raise _hostile(f"`{callee.name}`")


def _hostile(what: str) -> ImportCheckpointError:
    return ImportCheckpointError(
        f"it asks for a call of {what}, which no checkpoint needs: it looks hostile. "
        "Nothing of it was executed; do not load it with other tools"
    )


def storage(reference: Any) -> Storage | Inert:
    """Returns the storage that a persistent id of torch names.

    It is inert if its elements are no plain numbers. Raises ImportCheckpointError for an id that
    torch.save does not write.
    """
    match reference:
        case ("storage", Global(name=kind), str() as key, _, int() as numel):
            if kind in STORAGES:
                return Storage(key, STORAGES[kind], numel)
            if kind.startswith("torch.") and kind.endswith("Storage"):
                return Inert(kind, (key, numel))
    raise ImportCheckpointError("it refers to a storage in a way that torch.save does not")


def _tensor(source: Any, offset: Any, size: Any, stride: Any, *_: Any) -> LazyTensor | Inert:
    """Returns a view of a storage. Raises ValueError unless the view lies within the storage.

    The result is inert if reading it would be useless or would take more memory than the file has
    bytes: for complex or quantised numbers, and for a view with one element in many places.
    """
    if isinstance(source, Inert):
        return Inert("a tensor", (source,))
    if not isinstance(source, Storage) or not isinstance(size, tuple | list):
        raise ValueError("a tensor needs a storage and a size")
    numbers = [offset, *size, *stride]
    if len(size) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError("offset, size and stride of a tensor must be whole numbers")
    elements, last = 1, offset
    for length, step in zip(size, stride, strict=True):
        elements *= length
        last += (length - 1) * step
    if elements and last >= source.numel:
        raise ValueError(f"a tensor of size {list(size)} does not fit its storage")
    if elements > source.numel:
        return Inert("a tensor", (source,))
    return LazyTensor(source, offset, tuple(size), tuple(stride))


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    return dict(pairs) if isinstance(pairs, list | tuple | dict) else {}


def _size(sizes: Any) -> tuple[Any, ...]:
    return tuple(sizes)


RULES: dict[str, Any] = {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
