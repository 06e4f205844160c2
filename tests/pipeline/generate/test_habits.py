"""What users of transformers do with a bundle that they have loaded as any other."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    GenerationConfig,
    TextStreamer,
    pipeline,
)

from esolm.pipeline.export.writer import AUTO_MAP, CODE, CODE_FILES
from tests.pipeline.generate.test_generate_command import make_bundle

__all__ = ["make_bundle"]


@pytest.fixture(scope="module")
def folder(make_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with its code, as an export writes it."""
    path = tmp_path_factory.mktemp("habits") / "bundle"
    shutil.copytree(make_bundle(eos_token_id=2), path)
    for name in CODE_FILES:
        shutil.copyfile(CODE / name, path / name)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "auto_map": AUTO_MAP}))
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).float().eval()


def test_both_classes_load_it(folder: Path, model: Any, tokenizer: Any) -> None:
    masked = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).float()
    ids = tokenizer("def f", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(masked(ids).logits, model(ids).logits)


def test_text_generation(folder: Path) -> None:
    write = pipeline("text-generation", model=str(folder), trust_remote_code=True)
    found = write("def f(", max_new_tokens=8, do_sample=True, top_k=5, num_return_sequences=2)
    assert len(found) == 2
    assert all(each["generated_text"].startswith("def f(") for each in found)
    batch = write(["def f(", "x"], max_new_tokens=8, batch_size=2)
    assert [each[0]["generated_text"][:1] for each in batch] == ["d", "x"]


def test_padded_batches_and_plain_configurations(model: Any, tokenizer: Any) -> None:
    given = tokenizer(["def f(", "x"], padding=True, return_tensors="pt")
    plain = GenerationConfig(max_new_tokens=6, do_sample=False)
    found = model.generate(**given, generation_config=plain, alpha_0=0.0)
    assert torch.equal(found[:, : given["input_ids"].shape[1]], given["input_ids"])
    alone = model.generate(**tokenizer(["x"], return_tensors="pt"), generation_config=plain,
                           alpha_0=0.0)  # fmt: skip
    new = found[1, given["input_ids"].shape[1] :]
    assert new[: alone.shape[1] - 1].tolist() == alone[0, 1:].tolist()


def test_a_plain_configuration_says_what_belongs_to_the_call(model: Any, tokenizer: Any) -> None:
    """How many texts and what stops them; a single option goes before it."""
    given = tokenizer("def f(", return_tensors="pt")
    size = given["input_ids"].shape[1]
    options = {"max_new_tokens": 40, "min_new_tokens": 40, "alpha_0": 0.0, "seed": 2}
    stop = tokenizer.decode(model.generate(**given, **options)[0, size:])[6:8]
    plain = GenerationConfig(num_return_sequences=3, do_sample=True, stop_strings=[stop])
    options |= {"generation_config": plain, "tokenizer": tokenizer}
    ended, *others = model.generate(**given, **options)
    assert len(others) == 2
    assert not torch.equal(*others)
    single = {"do_sample": False, "num_return_sequences": 2, "stop_strings": ["\0"]}
    assert torch.equal(*model.generate(**given, **options, **single))
    ended = ended[: size + 40].masked_select(ended != tokenizer.pad_token_id)
    assert stop in tokenizer.decode(ended[size:])
    assert len(ended) < size + 40
    with pytest.raises(ValueError, match="options: num_return_sequences, stop_strings"):
        model.infill([[1], 2], generation_config=plain)


def test_options_by_their_usual_names(model: Any, tokenizer: Any) -> None:
    given = tokenizer("def f(", return_tensors="pt")
    size = given["input_ids"].shape[1]
    options = {"seed": 1, "alpha_0": 0.5, "num_steps": 3, "min_new_tokens": 7}
    assert model.generate(**given, max_new_tokens=7, **options).shape == (1, size + 7)
    assert model.generate(**given, max_length=size + 7, **options).shape == (1, size + 7)
    assert model.generate(**given, max_new_tokens=2, num_return_sequences=3).shape[0] == 3
    greedy = [
        model.generate(**given, max_new_tokens=7, do_sample=False, alpha_0=0.0, seed=seed)
        for seed in (1, 2)
    ]
    assert torch.equal(*greedy)


def test_stop_strings(model: Any, tokenizer: Any) -> None:
    given = tokenizer("def f(", return_tensors="pt")
    size = given["input_ids"].shape[1]
    options = {"max_new_tokens": 40, "seed": 2, "alpha_0": 0.0, "min_new_tokens": 40}
    free = tokenizer.decode(model.generate(**given, **options)[0, size:])
    stop = free[6:8]
    ended = model.generate(**given, **options, stop_strings=[stop], tokenizer=tokenizer)
    text = tokenizer.decode(ended[0, size:])
    assert stop in text
    assert len(text) < len(free)
    with pytest.raises(ValueError, match="stop_strings needs the tokenizer"):
        model.generate(**given, stop_strings="x")


def test_a_stop_string_ends_the_text_with_its_last_token(model: Any, tokenizer: Any) -> None:
    """Also where one pass writes all tokens."""
    given = tokenizer("def f(", return_tensors="pt")
    size = given["input_ids"].shape[1]
    options = {"max_new_tokens": 40, "seed": 2, "alpha_0": 1.0, "num_steps": 1}
    options["min_new_tokens"] = 40
    free = model.generate(**given, **options)[0, size:]
    stop = tokenizer.decode(free)[6:8]
    ends = [end for end in range(1, 41) if stop in tokenizer.decode(free[:end])]
    assert 1 < ends[0] < 40
    ended = model.generate(**given, **options, stop_strings=[stop], tokenizer=tokenizer)
    assert ended[0, size:].tolist() == free[: ends[0]].tolist()


def test_a_streamer(model: Any, tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    given = tokenizer("def f(", return_tensors="pt")
    streamer = TextStreamer(tokenizer, skip_prompt=True)
    found = model.generate(**given, streamer=streamer, max_new_tokens=20, seed=1, alpha_0=0.3)
    whole = tokenizer.decode(found[0, given["input_ids"].shape[1] :])
    assert capsys.readouterr().out.rstrip("\n") == whole.rstrip("\n")


def test_what_this_decoder_has_not(model: Any) -> None:
    with pytest.raises(ValueError, match="this decoder has no num_beams, repetition_penalty"):
        model.generate(num_beams=4, repetition_penalty=1.2)
    with pytest.raises(ValueError, match="this decoder has no num_beams"):
        model.generate(generation_config=GenerationConfig(num_beams=2))
    with pytest.raises(ValueError, match="unknown generation options: top_q"):
        model.generate(top_q=1)
