"""The configuration of a run: defaults <- YAML files <- `key=value` on the command line."""

import difflib
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from esolm.pipeline.errors import ConfigError
from esolm.pipeline.run.environment import from_environment, stated_value, with_names
from esolm.pipeline.run.sections import RunConfig, keys_of

SHIPPED = Path(__file__).parents[2]
"""The folder that holds `configs/`: of a checkout, or of the installed package."""

Schema = TypeVar("Schema")
Layer: TypeAlias = dict[Any, Any]
"""What one file or one override says, nested, with its interpolations unresolved."""


def load_config(path: str | Path, overrides: list[str]) -> RunConfig:
    """Resolves a run configuration.

    A path that begins with `configs/` names the file that is shipped, if the user has none there.
    Raises ConfigError with every unknown key (and the nearest valid one), every value of the wrong
    type and every missing value at once.
    """
    return load_structured(RunConfig, path, overrides)


def load_recorded(path: Path) -> RunConfig:
    """Resolves the configuration that a run has written down, for a look at it.

    A variable of the environment that is not set here stands as `$NAME`. Raises ConfigError, which
    names the file in every line.
    """
    try:
        return _resolve(RunConfig, [with_names(layer) for layer in _layers(path, [])], [])
    except ConfigError as error:
        advice = f"{path} is damaged, or not of a run; the next start of the run writes it anew"
        raise ConfigError([*(f"{path}: {each}" for each in error.problems), advice]) from error


def load_structured(schema: type[Schema], path: str | Path, overrides: list[str]) -> Schema:
    """Does what `load_config` does, for any dataclass of keys with defaults."""
    layers = _layers(_own_or_shipped(Path(path)), [])
    problems: list[str] = []
    for text in overrides:
        try:
            layers.append(_parse_override(text))
        except ConfigError as error:
            problems += error.problems
    return _resolve(schema, layers, problems)


def _resolve(schema: type[Schema], layers: list[Layer], problems: list[str]) -> Schema:
    config = OmegaConf.structured(schema)
    for section in config.values():
        if isinstance(section, DictConfig):
            OmegaConf.set_readonly(section, False)  # a frozen dataclass makes it read-only
    known = keys_of(schema)
    for layer in layers:
        for key, value in _leaves(layer, known):
            problems += _set(config, known, key, value)
    for key in known:
        problems += _value_problems(config, key)
    if schema is RunConfig and not any(_plain(config.data)[key] for key in ("path", "sources")):
        problems.append("'data.path' is missing (or 'data.sources', for a mixture)")
    if problems:
        raise ConfigError(problems)
    resolved = OmegaConf.to_object(config)
    assert isinstance(resolved, schema)
    if isinstance(resolved, RunConfig):
        resolved.from_environment = from_environment(config, known)
    return resolved


def stated_settings(path: Path) -> dict[str, Any]:
    """Returns the settings that a file and its `defaults:` state, by dotted key.

    Interpolations are not resolved. Raises ConfigError if a file cannot be read.
    """
    known = valid_keys()
    path = _own_or_shipped(path)
    return {key: value for layer in _layers(path, []) for key, value in _leaves(layer, known)}


def to_yaml(config: RunConfig) -> str:
    """Returns the resolved configuration as YAML that `load_config` reads back.

    What came from the environment may be a secret: the variable's name is written, not its value.
    """
    content = OmegaConf.structured(config)
    for key in config.from_environment:
        OmegaConf.update(content, key, stated_value(config, key))
    return OmegaConf.to_yaml(content)


def _own_or_shipped(path: Path) -> Path:
    shipped = SHIPPED / path
    is_shipped = path.parts[:1] == ("configs",) and not path.exists() and shipped.is_file()
    return shipped if is_shipped else path


def _layers(path: Path, seen: list[Path]) -> list[Layer]:
    """Reads the file's `defaults:`, depth first, then the file itself."""
    path = path.resolve()
    if path in seen:
        raise ConfigError(f"{path} includes itself through 'defaults'")
    if path.is_dir():
        raise ConfigError(f"{path} is a directory; name a YAML file, of a run its config.yaml")
    try:
        content = OmegaConf.load(path)
    except FileNotFoundError:
        raise ConfigError(f"no configuration file at {path}") from None
    except YAMLError as error:
        tab = "; indent with spaces, YAML takes no tabs" if b"\t" in path.read_bytes() else ""
        raise ConfigError(f"{path} is not valid YAML: {error}{tab}") from error
    except (OSError, ValueError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, DictConfig):
        raise ConfigError(f"{path} must hold keys and values, not a list")
    # Interpolations stay as they are: what they name may stand in another layer.
    layer = _plain(content)
    defaults = layer.pop("defaults", [])
    if not isinstance(defaults, list) or not all(isinstance(name, str) for name in defaults):
        raise ConfigError(
            f"{path}: 'defaults' is {defaults!r}; it must be a list of names such as model/demo"
        )
    layers = []
    for name in defaults:
        layers += _layers(_find(name, path), [*seen, path])
    return [*layers, layer]


def _plain(layer: DictConfig) -> Layer:
    return cast(Layer, OmegaConf.to_container(layer, resolve=False))


def _find(name: str, including: Path) -> Path:
    """Finds a file named in `defaults:`, in a folder above the including file or in our configs."""
    relative = Path(name).with_suffix(".yaml")
    roots = [including.parent, *including.parents, SHIPPED / "configs"]
    for root in roots:
        if (root / relative).is_file():
            return root / relative
    raise ConfigError(f"{including}: 'defaults' names '{name}', but there is no {relative}")


def _parse_override(text: str) -> Layer:
    if "=" not in text:
        raise ConfigError(f"'{text}' is not of the form key=value")
    try:
        return _plain(OmegaConf.from_dotlist([text]))
    except (YAMLError, OmegaConfBaseException, LookupError, ValueError) as error:
        raise ConfigError(f"'{text}' cannot be read: {_in_one_line(error)}") from error


def _leaves(layer: Layer, known: list[str], prefix: str = "") -> list[tuple[str, Any]]:
    leaves = []
    for key, value in layer.items():
        name = f"{prefix}{key!s}"
        if isinstance(value, dict) and name not in known:
            leaves += _leaves(value, known, f"{name}.")
        else:
            leaves.append((name, value))
    return leaves


def _set(config: DictConfig, known: list[str], key: str, value: Any) -> list[str]:
    if key not in known:
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
        return [f"unknown key '{key}'; the nearest valid one is '{nearest}'"]
    try:
        OmegaConf.update(config, key, value)
    except OmegaConfBaseException as error:
        whole = isinstance(value, float) and value.is_integer()
        advice = f"; write {value:.0f}" if whole else ""
        return [f"'{key}' = {value!r}: {_in_one_line(error)}{advice}"]
    return []


def _value_problems(config: DictConfig, key: str) -> list[str]:
    """Names a value that is missing, or an interpolation that leads nowhere or to a wrong type."""
    try:
        value = OmegaConf.select(config, key, throw_on_missing=True)
        if isinstance(value, str) and value.startswith("~"):
            return [f"'{key}' = '{value}': no shell expands this ~; write ${{oc.env:HOME}} for it"]
        if isinstance(value, Container):
            OmegaConf.to_container(value, resolve=True)
    except MissingMandatoryValue:
        return [f"'{key}' is missing"]
    except OmegaConfBaseException as error:
        return [f"'{key}' cannot be resolved: {_in_one_line(error)}"]
    return []


def _in_one_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def valid_keys() -> list[str]:
    """Returns every key of a run configuration, dotted."""
    return keys_of(RunConfig)
