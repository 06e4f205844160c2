"""The elementwise work between matrix products and attention, each piece compiled into one graph.

A piece is a function of tensors without parameters of its own. So it has the same graph in every
layer, and hooks that gather weights, collectives and recomputation stay outside of it: what is
compiled is the same under every layout. The tokens are a symbol in the graph from their second
number on, so rows of other lengths take no new one.
"""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar, cast

import torch

from esolm.model.kernels import kernels_in_use

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# With and without gradients, of each precision, with the first number of tokens and with any.
MOST_GRAPHS = 64


def piece(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Has a function compiled where this process's choice of kernels says so."""

    @wraps(function)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        backend = kernels_in_use().compiled
        if not backend or torch.compiler.is_compiling():
            return function(*args, **kwargs)
        return cast(Result, _compiled(function, backend)(*args, **kwargs))

    return run


@cache
def _compiled(function: Callable[..., Any], backend: str) -> Any:
    from torch._dynamo import config
    from torch._functorch import config as functorch_config
    from torch._inductor import config as inductor_config

    config.recompile_limit = max(config.recompile_limit, MOST_GRAPHS)
    # A stage of DeepSpeed's goes back from each tensor that it passed on, so a graph serves twice.
    functorch_config.donated_buffer = False
    # Of kernels that differ in the order of their sums none is chosen by its speed on this rank.
    inductor_config.deterministic = True
    return torch.compile(function, backend=backend, fullgraph=True)


def num_graphs() -> int:
    """Returns how many graphs this process has compiled."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def compile_seconds() -> float:
    """Returns the time that it has taken, with what is compiled in the first backward pass."""
    from torch._dynamo.utils import compilation_time_metrics

    compiled = ("_compile.compile_inner", "backward._backward_impl")
    return float(sum(sum(compilation_time_metrics.get(name, [])) for name in compiled))
