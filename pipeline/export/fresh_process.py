"""A script that loads a bundle as a user would, where the training code does not exist.

    python -I fresh_process.py BUNDLE WORK

WORK/task.safetensors and WORK/task.json say what to compute; the result goes to WORK/result.json.
This repository and the training packages cannot be imported here.
"""

import json
import sys
from pathlib import Path
from typing import Any

BLOCKED = (
    "deepspeed", "megatron", "apex", "transformer_engine", "webdataset", "omegaconf",
    "esolm",
)  # fmt: skip


def main(bundle: Path, work: Path) -> None:
    """Writes the largest difference of logits, how many tokens differ, and which texts differ."""
    for name in BLOCKED:
        sys.modules[name] = None  # type: ignore[assignment]  # so that importing it fails
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

    task = json.loads((work / "task.json").read_text())
    tensors = load_file(work / "task.safetensors")
    options: dict[str, Any] = {"trust_remote_code": True, "local_files_only": True}
    network = AutoModelForMaskedLM.from_pretrained(bundle, dtype=torch.float32, **options).eval()
    with torch.no_grad():
        logits = network(tensors["tokens"], tensors["positions"]).logits
    expected = tensors["logits"]
    finite = expected.isfinite()
    difference = float((logits - expected)[finite].abs().max())
    result = {
        "network": type(network).__name__,
        "logit_difference": difference / max(1.0, float(expected[finite].abs().max())),
        "mask_excluded": torch.equal(finite, logits.isfinite()),
        "backbone": type(AutoModel.from_pretrained(bundle, **options)).__name__,
        "causal_lm": type(AutoModelForCausalLM.from_pretrained(bundle, **options)).__name__,
        "config": type(AutoConfig.from_pretrained(bundle, **options)).__name__,
        **compare_texts(bundle, task["texts"], options),
    }
    sequences = network.double().generate(tensors["prompt"], **task["generate"])
    result["tokens_differing"] = int((sequences != tensors["sequences"]).sum())
    (work / "result.json").write_text(json.dumps(result))


def compare_texts(bundle: Path, texts: list[list[Any]], options: dict[str, Any]) -> dict[str, Any]:
    """Returns the numbers of the texts that have other ids or decode to another text in the bundle.

    texts: each is a text, the ids that training gives it, what these decode to, and the same
    without special tokens.
    """
    if not texts:
        return {"ids_differing": [], "texts_differing": []}
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bundle, **options)
    ids_differing, texts_differing = [], []
    for number, (text, ids, whole, plain) in enumerate(texts):
        if tokenizer(text)["input_ids"] != ids:
            ids_differing.append(number)
        decoded = [tokenizer.decode(ids), tokenizer.decode(ids, skip_special_tokens=True)]
        if decoded != [whole, plain]:
            texts_differing.append(number)
    return {"ids_differing": ids_differing, "texts_differing": texts_differing}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
