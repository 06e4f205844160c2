"""Who imports whom: `python -m tests.import_graph` prints it, and the circles in it.

Names stand without `esolm.`, as the folders lie. The nodes are `data_prep`, `model`, and of
`pipeline` every sub-package and every module beside them (`pipeline.train`, `pipeline.errors`). An
import counts wherever it stands, in a function too: one that is postponed joins two packages as
firmly as one at the top. Under `if TYPE_CHECKING` none counts, for nothing runs it.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.processes import ROOT

PACKAGES = ("data_prep", "model", "pipeline")

Graph = dict[str, dict[str, set[str]]]
"""node -> node that it imports -> the modules that do."""


def import_graph(root: Path = ROOT) -> Graph:
    """Of the packages below a root. A node's imports of itself are left out."""
    modules = {name: path for package in PACKAGES for name, path in _modules(root, package)}
    graph: Graph = {_node(name): {} for name in modules if name != "pipeline"}
    for name, path in modules.items():
        for target in _imported(ast.parse(path.read_text()), name, path, modules):
            source, node = _node(name), _node(target)
            if node != source and "pipeline" not in (source, node):
                graph[source].setdefault(node, set()).add(name)
    return graph


def circles(graph: Graph) -> list[list[str]]:
    """The largest sets of nodes each of which leads to every other, in alphabetical order."""
    reached = {node: _reached(graph, node) for node in graph}
    mutual = {tuple(sorted(m for m in reached[n] if n in reached[m])) for n in graph}
    return [list(nodes) for nodes in sorted(mutual) if nodes]


def _modules(root: Path, package: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _node(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "pipeline" else parts[0]


def _imported(tree: ast.AST, module: str, path: Path, modules: dict[str, Path]) -> Iterator[str]:
    """The modules of the packages that a file imports, anywhere in it."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for statement in _that_run(tree):
        if isinstance(statement, ast.Import):
            names = [alias.name.removeprefix("esolm.") for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            origin = (statement.module or "").removeprefix("esolm.")
            if statement.level:
                above = package.split(".")[: len(package.split(".")) - statement.level + 1]
                origin = ".".join([*above, *([statement.module] if statement.module else [])])
            # `from esolm.pipeline import generate` names a module, `import Head` from one does not.
            inner = [f"{origin}.{alias.name}" for alias in statement.names]
            names = [name if name in modules else origin for name in inner]
        else:
            continue
        yield from (name for name in names if name in modules)


def _that_run(tree: ast.AST) -> Iterator[ast.AST]:
    """Every part of a file but what stands under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield other
                yield from _that_run(other)
            continue
        yield child
        yield from _that_run(child)


def _reached(graph: Graph, start: str) -> set[str]:
    """The nodes that a node's imports lead to, itself only along a circle."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = set(graph[waiting.pop()]) - found
        found |= new
        waiting += new
    return found


def main() -> None:
    graph = import_graph()
    for node, imports in sorted(graph.items()):
        print(f"{node}: {', '.join(sorted(imports)) or 'nothing'}")
    for circle in circles(graph):
        print(f"\na circle of {', '.join(circle)}:")
        for node in circle:
            for target in sorted(set(graph[node]) & set(circle)):
                print(f"  {node} -> {target} in {', '.join(sorted(graph[node][target]))}")


if __name__ == "__main__":
    main()
