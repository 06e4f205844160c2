"""All objectives by name: those of this package, and those that installed packages add."""

from importlib.metadata import EntryPoint, entry_points

from esolm.model.objectives import ar, bd3lm, esolm, mdlm
from esolm.model.objectives.base import ObjectiveKind

GROUP = "esolm.objectives"
"""The entry points of this group name the `ObjectiveKind` that an installed package adds."""

SHIPPED = {kind.name: kind for kind in (esolm.KIND, ar.KIND, mdlm.KIND, bd3lm.KIND)}


def objective_names() -> list[str]:
    """The names that `objective.name` may have."""
    return [*SHIPPED, *_added()]


def objective_kind(name: str) -> ObjectiveKind:
    """Returns the entry of a name.

    Raises ValueError, which lists the names, if there is no such entry, and if an entry point names
    something else than an `ObjectiveKind` of that name.
    """
    if name in SHIPPED:
        return SHIPPED[name]
    added = _added()
    if name not in added:
        *most, last = objective_names()
        raise ValueError(f"objective.name is '{name}'; choose {', '.join(most)} or {last}")
    kind = added[name].load()
    if not isinstance(kind, ObjectiveKind) or kind.name != name:
        raise ValueError(f"the entry point {GROUP}: {name} is no ObjectiveKind of that name")
    return kind


def _added() -> dict[str, EntryPoint]:
    return {each.name: each for each in entry_points(group=GROUP) if each.name not in SHIPPED}
