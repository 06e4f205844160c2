"""The gate checks of a fresh process: the bundle alone gives the same logits, tokens and ids."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from esolm.data_prep.tokenizers import Tokenizer
from esolm.model.attention import AttentionPattern
from esolm.pipeline.errors import ExportError
from esolm.pipeline.export.consolidate import Source
from esolm.pipeline.export.gate_network import (
    MAX_LENGTH,
    TOLERANCE,
    bundle_logits,
    decoding_length,
    parity_inputs,
    some_tokens,
)

# A text, the ids that training gives it, and what they decode to with and without special tokens.
Text = tuple[str, list[int], str, str]
SCRIPT = Path(__file__).with_name("fresh_process.py")
TIMEOUT_SECONDS = 1800
MAX_DOCUMENTS = 1000
MAX_CHARACTERS = 2000
READ_TOKENS = 1 << 16
EDGE_TEXTS = (
    "", " ", "  two  spaces  ", "\n", "\r\n", "a\tb\t\tc", "trailing \n\n ", "no\u00a0break",
    "\u2581", "a\u2581b \u2581", "[MASK] <s> </s> <unk> <0x41>",
    "\U0001f600\U0001f468\u200d\U0001f469", "e\u0301 \u00e9 \ufb01 \u212b",
    "\u4f60\u597d \u043f\u0440\u0438\u0432\u0435", "0123456789", "\x01\x7f\ufeff", "x" * 500,
)  # fmt: skip


def check_reload(
    directory: Path, source: Source, stored: Any, tokenizer: Tokenizer | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Checks the bundle in a fresh process; returns the figures of the reload and of the tokenizer.

    stored: the bundle's network as saved, upcast to fp32, in this process.
    """
    texts = list(_texts(source, tokenizer)) if tokenizer else []
    with tempfile.TemporaryDirectory(prefix="esolm-gate-") as work:
        _write_task(Path(work), source, stored, texts)
        _run(directory, Path(work))
        result = json.loads((Path(work) / "result.json").read_text())
    if result["tokens_differing"] or not result["mask_excluded"]:
        raise ExportError(
            f"reload: {result['tokens_differing']} tokens differ in a fresh process, mask id "
            f"excluded: {result['mask_excluded']}"
        )
    if not result["logit_difference"] <= TOLERANCE:
        raise ExportError(
            f"reload: logits differ by {result['logit_difference']:.2e} in a fresh process; "
            f"{TOLERANCE:.0e} is allowed"
        )
    for kind in ("ids_differing", "texts_differing"):
        if result[kind]:
            text = texts[result[kind][0]][0]
            raise ExportError(
                f"tokenizer: {len(result[kind])} of {len(texts)} texts have other "
                f"{kind.split('_')[0]} in the bundle; the first is {text[:80]!r}"
            )
    reload = {key: result[key] for key in ("network", "backbone", "causal_lm", "logit_difference")}
    edge = len(EDGE_TEXTS) if texts else 0
    return reload, {"documents": len(texts) - edge, "edge_texts": edge, "differing": 0}


def _write_task(work: Path, source: Source, stored: Any, texts: list[Text]) -> None:
    length = min(source.seq_len, MAX_LENGTH)
    inputs = parity_inputs(source.model, length, AttentionPattern.CAUSAL)
    tensors = {
        "tokens": inputs.tokens,
        "positions": inputs.positions.contiguous(),
        "logits": bundle_logits(stored, inputs),
    }
    options = {
        "alpha_0": 0.5, "num_steps": 4, "length": decoding_length(source), "seed": 0,
        "eos_token_id": None,
    }  # fmt: skip
    tensors["prompt"] = some_tokens(source.model, 2, 1)
    tensors["sequences"] = stored.double().generate(tensors["prompt"], **options)
    stored.float()
    save_file(tensors, work / "task.safetensors")
    (work / "task.json").write_text(json.dumps({"texts": texts, "generate": options}))


def _run(directory: Path, work: Path) -> None:
    """Runs the script isolated (-I) from this repository, the network and the user's caches."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(work / "home"),
        "HF_MODULES_CACHE": str(work / "modules"),
    }
    command = [sys.executable, "-I", str(SCRIPT), str(directory.resolve()), str(work)]
    try:
        done = subprocess.run(
            command, cwd=work, env=environment, capture_output=True, text=True,
            timeout=TIMEOUT_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ExportError(f"reload: a fresh process took over {TIMEOUT_SECONDS} s") from None
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise ExportError(f"reload: a fresh process cannot load the bundle:\n{tail}")


def _texts(source: Source, tokenizer: Tokenizer) -> Iterator[Text]:
    """Yields edge texts and documents with what they decode to.

    A lossless tokenizer must give back the text itself, which another tokenizer may not.
    """
    for text in (*EDGE_TEXTS, *_documents(source, tokenizer)):
        ids = tokenizer.encode_in_bundle(text)
        if tokenizer.is_lossless:
            yield text, ids, text, text
        else:
            yield text, ids, tokenizer.decode_with_specials(ids), tokenizer.decode(ids)


def _documents(source: Source, tokenizer: Tokenizer) -> list[str]:
    """Returns up to 1,000 documents of the training data, or random text if it is not at hand."""
    if source.data_path is None or not source.data_path.exists():
        generator = torch.Generator().manual_seed(0)
        rows = torch.randint(tokenizer.vocabulary.num_tokens, (100, 64), generator=generator)
        return [tokenizer.decode_with_specials(row.numpy()) for row in rows]
    from esolm.pipeline.data.dataset import TokenDataset

    dataset = TokenDataset(source.data_path, "train")
    documents: list[str] = []
    stride = max(READ_TOKENS, dataset.num_tokens // 32)
    for start in range(0, dataset.num_tokens, stride):
        ids = dataset.read(start, min(READ_TOKENS, dataset.num_tokens - start))
        ends = (ids == dataset.eos_id).nonzero()[0].tolist()
        spans = zip([0, *(end + 1 for end in ends)], [*ends, len(ids)], strict=True)
        texts = (tokenizer.decode_with_specials(ids[first:last]) for first, last in spans)
        documents += [text[:MAX_CHARACTERS] for text in texts]
    return documents[:MAX_DOCUMENTS]
