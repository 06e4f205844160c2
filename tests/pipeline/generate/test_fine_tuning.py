"""A bundle is fine-tuned with transformers' Trainer and with LoRA: the loss falls."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

from tests.pipeline.generate.whole_bundles import (
    Bundles,
    loaded,
    tokenizer_directory,
    whole_bundle,
)

__all__ = ["tokenizer_directory", "whole_bundle"]

TEXTS = ["def add(self, a, b):", "    return a + b", "class Sum:", "import inspect", "x = 1"] * 2
STEPS = 10


def rows(tokenizer: Any, is_ar: bool) -> list[dict[str, list[int]]]:
    """Texts of different lengths; half of their tokens masked, unless they are read in order."""
    generator, found = torch.Generator().manual_seed(0), []
    for text in TEXTS:
        ids = torch.tensor(tokenizer(text)["input_ids"])
        is_masked = torch.rand(len(ids), generator=generator) < 0.5
        fed = ids if is_ar else ids.masked_fill(is_masked, tokenizer.mask_token_id)
        found.append({"input_ids": fed.tolist(), "labels": ids.tolist()})
    return found


def padded(tokenizer: Any) -> Callable[[list[dict[str, list[int]]]], dict[str, torch.Tensor]]:
    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        most = max(len(row["labels"]) for row in batch)
        fills = {"input_ids": tokenizer.pad_token_id, "labels": -100, "attention_mask": 0}
        full = [{**row, "attention_mask": [1] * len(row["labels"])} for row in batch]
        return {
            name: torch.tensor([row[name] + [fill] * (most - len(row[name])) for row in full])
            for name, fill in fills.items()
        }

    return collate


def losses(model: Any, collate: Any, data: Any, folder: Path, **options: Any) -> tuple[float, ...]:
    """Of the same rows, before and after ten steps."""
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=5, learning_rate=1e-2,
        per_device_eval_batch_size=10, use_cpu=True, report_to=[], save_strategy="no",
        logging_steps=STEPS, disable_tqdm=True, seed=0, **options,
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=arguments, data_collator=collate, train_dataset=data, eval_dataset=data
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.state.global_step == STEPS
    return before, trainer.evaluate()["eval_loss"]


@pytest.mark.parametrize("name", ["esolm_a", "esolm_b", "mdlm", "bd3lm", "ar"])
def test_trainer(whole_bundle: Bundles, name: str, tmp_path: Path) -> None:
    model, tokenizer = loaded(whole_bundle(name))
    data = rows(tokenizer, is_ar=name == "ar")
    before, after = losses(
        model, padded(tokenizer), data, tmp_path, activation_checkpointing=name == "esolm_b"
    )
    assert after < 0.7 * before
    model.save_pretrained(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved")
    batch = padded(tokenizer)(data)
    with torch.no_grad():
        assert again(**batch).loss.item() == pytest.approx(after, rel=1e-4)


def test_the_collator_of_masked_models(whole_bundle: Bundles, tmp_path: Path) -> None:
    model, tokenizer = loaded(whole_bundle("mdlm"))
    collator = DataCollatorForLanguageModeling(
        tokenizer, mlm_probability=0.5, mask_replace_prob=1.0, random_replace_prob=0.0, seed=0
    )
    data = [{"input_ids": tokenizer(text)["input_ids"]} for text in TEXTS]
    before, after = losses(model, collator, data, tmp_path)
    assert after < 0.8 * before


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
@pytest.mark.parametrize("name", ["esolm_b", "ar"])
def test_lora(whole_bundle: Bundles, name: str, task_type: str | None, tmp_path: Path) -> None:
    """Only the adapter changes; saved and loaded again it gives the same loss and text."""
    path = whole_bundle(name)
    model, tokenizer = loaded(path)
    config = LoraConfig(r=8, lora_alpha=32, target_modules=["qkv", "up"], task_type=task_type)
    adapted = get_peft_model(model, config)
    data = rows(tokenizer, is_ar=name == "ar")
    weight = model.model.layers[0].attention.qkv.base_layer.weight.clone()
    before, after = losses(adapted, padded(tokenizer), data, tmp_path)
    assert after < 0.9 * before
    assert torch.equal(model.model.layers[0].attention.qkv.base_layer.weight, weight)
    adapted.save_pretrained(tmp_path / "adapter")
    plain, _ = loaded(path)
    again = PeftModel.from_pretrained(plain, tmp_path / "adapter")
    batch = padded(tokenizer)(data)
    with torch.no_grad():
        assert again(**batch).loss.item() == pytest.approx(after, rel=1e-4)
    prompt = tokenizer("def", return_tensors="pt")
    options = {"max_new_tokens": 5, "num_steps": 2, "seed": 1}
    written = again.generate(**prompt, **options)
    assert torch.equal(written, again.merge_and_unload().generate(**prompt, **options))
