"""What the server has to write, by the bundle itself."""

from typing import Any

import torch

NAMES = {"max_tokens": "max_new_tokens", "steps": "num_steps"}


def offline(bundle: Any, prompt: str, **fields: Any) -> str:
    """The text of a completion. fields: of the request, by the server's names."""
    ids = list(bundle.tokenizer.encode(prompt))
    options = {NAMES.get(name, name): value for name, value in fields.items()}
    [row] = bundle.model.generate(torch.tensor([ids]), **options).tolist()
    return str(bundle.tokenizer.decode(row)[len(bundle.tokenizer.decode(ids)) :])
