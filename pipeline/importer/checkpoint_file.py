"""The Lightning file: the tensors that it holds, and the states of training made of them."""

from pathlib import Path
from typing import Any

from torch import Tensor

from esolm.model.config import ModelConfig
from esolm.pipeline.errors import ImportCheckpointError
from esolm.pipeline.importer import published
from esolm.pipeline.importer.archive import Archive
from esolm.pipeline.importer.inert import LazyTensor
from esolm.pipeline.importer.published import Parameter
from esolm.pipeline.importer.stored_config import StoredConfig, unwrap
from esolm.pipeline.parallel.fragments import MOMENTS


class PublishedFile:
    """A Lightning file that is open.

    Raises ImportCheckpointError unless it holds a `state_dict` of tensors.
    """

    def __init__(self, path: Path) -> None:
        self.archive = Archive(path)
        content = self.archive.content
        self.content: dict[Any, Any] = content if isinstance(content, dict) else {}
        state = self.content.get("state_dict")
        held: dict[Any, Any] = state if isinstance(state, dict) else {"": state}
        wrong = [key for key, value in held.items() if not isinstance(value, LazyTensor)]
        if wrong or not all(isinstance(key, str) for key in held):
            self.archive.close()
            which = f" (not so '{wrong[0]}')" if wrong and state is held else ""
            raise self.problem(
                f"is no Lightning checkpoint: it has no 'state_dict' of plain tensors{which}"
            )
        self.tensors: dict[str, LazyTensor] = {}
        for key, value in held.items():
            self.tensors[published.clean_key(key)] = value
        if len(self.tensors) != len(held):
            self.archive.close()
            raise self.problem("has the same key twice once '_orig_mod.' is taken out of its keys")

    def __enter__(self) -> "PublishedFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.archive.close()

    def problem(self, text: str) -> ImportCheckpointError:
        return self.archive.problem(text)

    @property
    def config(self) -> StoredConfig:
        """The configuration, which Lightning keeps by its name, or as all hyper-parameters."""
        held = self._hyper_parameters()
        root = held if "config" not in held and "algo" in held else held.get("config")
        return StoredConfig(root, self.archive.read)

    @property
    def tokenizer(self) -> Any:
        return self._hyper_parameters().get("tokenizer")

    @property
    def step(self) -> int:
        step = self.content.get("global_step")
        return step if type(step) is int and step >= 0 else 0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: tensor.size for key, tensor in self.tensors.items()}

    def scalar(self, key: str) -> float | None:
        """Returns the number in a 0-d tensor of the state dict, or None if there is no such tensor.

        Raises ImportCheckpointError if the tensor is not 0-d.
        """
        tensor = self.tensors.get(key)
        if tensor is None:
            return None
        if tensor.size != ():
            raise self.problem(f"has '{key}' of shape {list(tensor.size)}; a single number is due")
        return float(self.archive.read(tensor))

    def weights(self, model: ModelConfig) -> dict[str, Tensor]:
        """Returns the raw weights by our names.

        Raises ImportCheckpointError if a key is missing or unknown, and as `_states` does.
        """
        expected = published.parameters(model)
        known = {p.published for p in expected} | {published.ROTARY, *published.CLIPS}
        missing = [p.published for p in expected if p.published not in self.tensors]
        extra = sorted(self.tensors.keys() - known)
        if missing or extra:
            lines = [f"lacks '{key}'" for key in missing[:5]] + [
                f"has '{key}'" for key in extra[:5]
            ]
            raise self.problem(
                f"does not hold the tensors of a published network ({len(missing)} missing, "
                f"{len(extra)} unknown): its state_dict {', '.join(lines)}"
            )
        return self._states(
            [self.tensors[p.published] for p in expected],
            expected,
            model,
            "state_dict",
        )

    def ema(self, model: ModelConfig) -> dict[str, Tensor] | None:
        """Returns the averaged weights by our names, or None if the file has none."""
        record = self.content.get("ema")
        if record is None:
            return None
        shadows = record.get("shadow_params") if isinstance(record, dict) else None
        if not isinstance(shadows, list):
            raise self.problem("is damaged: its 'ema' has no list 'shadow_params'")
        if not shadows:
            return None
        expected = published.parameters(model)
        if len(shadows) != len(expected):
            raise self.problem(
                f"has {len(shadows)} averaged tensors in ema.shadow_params for {len(expected)} "
                "parameters; import --weights raw from a file without 'ema', or mend the file"
            )
        return self._states(shadows, expected, model, "ema.shadow_params")

    def moments(self, model: ModelConfig) -> tuple[dict[str, dict[str, Tensor]] | None, str]:
        """Returns both moments of Adam by our names, and words on where they come from.

        The moments are None if the optimizer's state is absent, or if it is not that of these
        parameters in this order.
        """
        states = self.content.get("optimizer_states")
        if not isinstance(states, list) or not states:
            return None, "zero (the file holds no optimizer state)"
        slots = states[0].get("state") if isinstance(states[0], dict) else None
        expected = published.parameters(model)
        if (
            not isinstance(slots, dict)
            or set(slots) != set(range(len(expected)))
            or not all(isinstance(slot, dict) for slot in slots.values())
        ):
            return None, "zero (the file's optimizer state is not one entry per parameter)"
        found = {}
        for name in MOMENTS:
            values = [slots[index].get(name) for index in range(len(expected))]
            if [getattr(v, "size", None) for v in values] != [p.shape for p in expected]:
                return None, f"zero (the file's '{name}' does not fit the parameters)"
            where = f"optimizer_states[0] '{name}' of"
            found[name] = self._states(values, expected, model, where)
        return found, "of the file's optimizer"

    def _states(
        self,
        values: list[Any],
        expected: list[Parameter],
        model: ModelConfig,
        where: str,
    ) -> dict[str, Tensor]:
        """Reads one tensor for each parameter and returns them by our names.

        Raises ImportCheckpointError for a wrong shape and for values that are not finite.
        """
        found = {}
        for value, parameter in zip(values, expected, strict=True):
            if not isinstance(value, LazyTensor) or value.size != parameter.shape:
                size = list(value.size) if isinstance(value, LazyTensor) else "no tensor"
                raise self.problem(
                    f"has {size} at {where} '{parameter.published}', where the network has "
                    f"{list(parameter.shape)}"
                )
            tensor = self.archive.read(value)
            bad = int((~tensor.isfinite()).sum())
            if bad:
                raise self.problem(
                    f"has {bad} values that are NaN or infinite at {where} "
                    f"'{parameter.published}'; the download is damaged or the run had diverged"
                )
            found[parameter.name] = published.to_here(parameter, tensor, model)
        return found

    def _hyper_parameters(self) -> dict[Any, Any]:
        held = unwrap(self.content.get("hyper_parameters"))
        return held if isinstance(held, dict) else {}
