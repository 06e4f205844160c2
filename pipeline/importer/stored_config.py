"""Reads values of a pickled omegaconf configuration and tokenizer out of their inert records."""

import json
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from esolm.pipeline.importer.inert import Inert, LazyTensor

_INTERPOLATION = re.compile(r"\$\{(\.*)([\w.]+)\}")
# No honest file has deeper wrapping or longer chains of interpolations; a hostile one could loop.
_MAX_DEPTH = 16


class StoredConfig:
    """The configuration of the published code, whether stored as a DictConfig or as plain dicts.

    read: reads a tensor of the file, because numbers may be stored as tensors.
    """

    def __init__(self, root: Any, read: Callable[[LazyTensor], Tensor]) -> None:
        self._root, self._read = root, read

    def has(self, path: str) -> bool:
        """Whether there is anything at a dotted path, even if `get` cannot read it."""
        return self._node(path) not in (None, "???")

    def get(self, path: str) -> Any:
        """Returns the plain value at a dotted path, or None if there is none.

        Interpolations are followed.
        """
        for _ in range(_MAX_DEPTH):
            value = self._node(path)
            if isinstance(value, LazyTensor) and value.size == ():
                return self._read(value).item()
            if not isinstance(value, str | int | float):
                return None
            match = _INTERPOLATION.fullmatch(value) if isinstance(value, str) else None
            if match is None:
                unknown = isinstance(value, str) and ("${" in value or value == "???")
                return None if unknown else value
            dots, name = match.groups()
            parents = path.split(".")[: -len(dots)] if dots else []
            path = ".".join([*parents, name])
        return None

    def number(self, path: str) -> float | None:
        """Returns the number at a path, or None if there is no finite one."""
        try:
            number = float(self.get(path))
        except (TypeError, ValueError, OverflowError):
            return None
        return number if math.isfinite(number) else None

    def count(self, path: str) -> int | None:
        """Returns the positive whole number at a path, or None if there is none."""
        value = self.number(path)
        return int(value) if value is not None and value >= 1 and value == int(value) else None

    def _node(self, path: str) -> Any:
        node = unwrap(self._root)
        for part in path.split("."):
            if not isinstance(node, dict):
                return None
            node = unwrap(node.get(part))
        return node


def unwrap(node: Any) -> Any:
    """Returns the dict, list or value inside a node of omegaconf, or an object's attributes."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(node, Inert):
            return node
        if node.name.endswith(".multiarray.scalar"):
            return _numpy_scalar(node.args)
        state = node.state if isinstance(node.state, dict) else {}
        if "_val" in state:
            node = state["_val"]
        elif "_content" in state:
            node = state["_content"]
        else:
            return state or node.entries
    return None


def _numpy_scalar(args: Any) -> Any:
    """Returns the number in `numpy.float64(0.25)` and its like, or else the arguments as given."""
    match args:
        case (Inert(name="numpy.dtype", args=(str() as kind, *_)), raw):
            if isinstance(raw, Inert) and raw.name == "_codecs.encode":
                raw = str(raw.args[0]).encode("latin1", "replace")
            if isinstance(raw, bytes) and re.fullmatch("f[248]|[iu][1248]", kind):
                values = np.frombuffer(raw[: int(kind[1])], dtype=f"<{kind}")
                return values[0].item() if len(values) else args
    return args


def stored_mask_id(tokenizer: Any, rows: int) -> int | None:
    """Returns the row of the mask according to a pickled tokenizer, or None if it cannot be told.

    The published code takes the tokenizer's own mask token, and adds a last row if it has none.
    """
    special = _special_tokens(tokenizer)
    if not special:
        return None
    token = _token_text(special.get("mask"))
    return rows - 1 if token is None else _row_of(token, tokenizer, rows)


def stored_bos_id(tokenizer: Any, rows: int) -> int | None:
    """Returns the row of bos according to a pickled tokenizer, or None if it cannot be told.

    The published code takes [CLS] if there is no bos.
    """
    special = _special_tokens(tokenizer)
    token = _token_text(special.get("bos")) or _token_text(special.get("cls"))
    return None if token is None else _row_of(token, tokenizer, rows)


def _special_tokens(tokenizer: Any) -> dict[str, Any]:
    """Returns the special tokens by `mask`, `bos` and so on; none if the record tells nothing.

    Older tokenizers hold None for a token that they do not have; newer ones may leave it out.
    """
    if not isinstance(tokenizer, Inert) or not isinstance(tokenizer.state, dict):
        return {}
    named = unwrap(tokenizer.state.get("_special_tokens_map"))
    found = dict(named) if isinstance(named, dict) else {}
    for name in ("mask", "bos", "cls"):
        if f"_{name}_token" in tokenizer.state:
            found[f"{name}_token"] = tokenizer.state[f"_{name}_token"]
    return {str(key).removesuffix("_token"): value for key, value in found.items()}


def _row_of(token: str, tokenizer: Inert, rows: int) -> int | None:
    index = _vocabulary(tokenizer.state).get(token)
    return index if isinstance(index, int) and 0 <= index < rows else None


def _token_text(token: Any) -> str | None:
    """Returns the text of a special token, which is a string or the `content` of an AddedToken."""
    if isinstance(token, Inert) and isinstance(token.state, dict):
        token = token.state.get("content")
    return token if isinstance(token, str) else None


def _vocabulary(state: dict[Any, Any]) -> dict[Any, Any]:
    """Returns the ids by token, as far as the tokenizer's state lists them."""
    for name in ("vocab", "encoder"):
        found = unwrap(state.get(name))
        if isinstance(found, dict) and found:
            return found
    backend = state.get("_tokenizer")
    content = backend.state if isinstance(backend, Inert) else None
    if isinstance(content, Inert) and content.name == "_codecs.encode" and content.args:
        content = content.args[0]
    if not isinstance(content, str | bytes):
        return {}
    try:
        record = json.loads(content)
        return {entry["content"]: entry["id"] for entry in record["added_tokens"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
