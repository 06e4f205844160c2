"""The text that a bundle's README begins with: what its network can do, as code that runs."""

from typing import Any

from esolm.pipeline.export.consolidate import Source

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [text-diffusion, eso-lm]
---
# {title}

{parameters:,} parameters, {dtype}, trained on sequences of {seq_len} tokens to step {step}.

## Write

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(PATH, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(PATH, trust_remote_code=True)
given = tokenizer(["Once", "There was"], padding=True, return_tensors="pt")
ids = model.generate(**given, {length}, seed=0)
print(tokenizer.batch_decode(ids))
```

With the options of any other model; those that it has not are refused by name:

```python
from transformers import GenerationConfig

config = GenerationConfig(do_sample=True, top_k=50, num_return_sequences=2, {length})
print(tokenizer.batch_decode(model.generate(**given, generation_config=config)))
```

```python
from transformers import pipeline

write = pipeline("text-generation", model=PATH, trust_remote_code=True)
print(write("There was", {length}, do_sample=True)[0]["generated_text"])
```
{sections}
`export.json` holds the results of the checks that this bundle passed and the sha256 of every file.
"""
FILL_MASK = """
## Fill one mask

The mask written out is ordinary text, unless the tokenizer is told otherwise:

```python
fill = pipeline("fill-mask", model=PATH, trust_remote_code=True)
with_masks = {"split_special_tokens": False}
text = f"There {tokenizer.mask_token} a house"
print(fill(text, top_k=3, tokenizer_kwargs=with_masks)[0]["sequence"])
```
"""
INFILLING = """
## Fill gaps

```python
print(model.infill(["There", 6, "end"], tokenizer=tokenizer, seed=0).text)
```
"""
LIKELIHOOD = """
## Likelihood

```python
print(model.log_likelihood(tokenizer("There was", return_tensors="pt")["input_ids"]))
```
"""
# Each is followed by how a loss comes about: masked or in order.
LOGITS = """
## Logits and a loss

`forward(input_ids, position_ids, attention_pattern, prefix_length)` returns logits in every
attention pattern by name, and with `labels` the loss of """
MASKED_LOSS = """tokens that are masked.

```python
import torch

labels = tokenizer("There was a house", return_tensors="pt")["input_ids"]
fed = labels.clone()
fed[:, ::2] = tokenizer.mask_token_id
print(model(fed, labels=labels).loss)
```
"""
NEXT_TOKEN_LOSS = """each token given those before it.

```python
labels = tokenizer("There was a house", return_tensors="pt")["input_ids"]
print(model(labels, labels=labels).loss)
```
"""
FINE_TUNING = """
## Fine-tune

```python
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

texts = ["There was a house.", "Once upon a time", "The end."]
rows = [{"input_ids": tokenizer(text)["input_ids"]} for text in texts]
collator = DataCollatorForLanguageModeling(tokenizer, COLLATOR)
arguments = TrainingArguments("tuned", num_train_epochs=1, save_strategy="no")
model = model.float()  # bf16 would round small steps away
Trainer(model, arguments, collator, rows).train()
model.save_pretrained("tuned")
```

By PEFT, which leaves the network as it is and trains an adapter:

```python
from peft import LoraConfig, get_peft_model

adapted = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
Trainer(adapted, arguments, collator, rows).train()
adapted.save_pretrained("adapter")
print(tokenizer.batch_decode(adapted.generate(**given, LENGTH, seed=0)))
```
"""
MASKING = "mlm_probability=0.5, mask_replace_prob=1.0, random_replace_prob=0.0"


def card_of(model: Any, source: Source) -> str:
    """The whole text; what the network cannot do has no example."""
    block = model.config.block_size
    # A text of blocks is whole blocks long.
    length = "max_new_tokens=16" if block is None else f"max_length={8 * block}"
    return CARD.format(
        title=f"Network trained with the objective {source.objective['name']}",
        parameters=sum(p.numel() for p in model.parameters()),
        dtype=str(model.dtype).removeprefix("torch."),
        seq_len=source.seq_len,
        step=source.step,
        length=length,
        sections=_sections(model.config, length),
    )


def _sections(config: Any, length: str) -> str:
    """Of what this network can do."""
    from esolm.pipeline.export.bundle.likelihood_esolm import has_likelihood
    from esolm.pipeline.export.bundle.writing_esolm import walk_of

    in_order = config.predicts_the_next
    tuning = FINE_TUNING.replace("COLLATOR", "mlm=False" if in_order else MASKING)
    sections = [
        "" if in_order else FILL_MASK,
        INFILLING if walk_of(config).fills_gaps else "",
        LIKELIHOOD if has_likelihood(config) else "",
        LOGITS + (NEXT_TOKEN_LOSS if in_order else MASKED_LOSS),
        tuning.replace("LENGTH", length),
    ]
    return "".join(sections)
