"""The loader: what a folder is, where a bundle's counts as ours, and a kind of one's own."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import esolm.data_prep.tokenizers as tokenizers
from esolm.data_prep.errors import DataError
from esolm.data_prep.manifest import read_manifest
from esolm.data_prep.tokenizers import KINDS, Vocabulary, has_tokenizer, load_tokenizer
from esolm.data_prep.verify import verify_dataset
from esolm.pipeline.data.dataset import TokenDataset
from tests.data_prep.corpus import make_job, run_job, text_of, write_jsonl
from tests.foreign_tokenizers import like_bert, like_gpt2, saved
from tests.processes import run_python


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> type[tokenizers.Tokenizer]:
    """The class that the package's documentation tells how to add, made from its very text."""
    block = re.search(r"^```python\n(.*?)^```$", tokenizers.__doc__ or "", re.M | re.S)
    assert block is not None
    monkeypatch.setattr("esolm.data_prep.tokenizers.load.KINDS", before := list(KINDS))
    monkeypatch.setattr(tokenizers, "KINDS", before)
    names: dict[str, Any] = {}
    exec(compile(block[1], "the example", "exec"), names)
    added: type[tokenizers.Tokenizer] = names["Utf8Bytes"]
    assert before[0] is added
    return added


def test_the_documented_example_makes_a_dataset(
    example: type[tokenizers.Tokenizer], tmp_path: Path
) -> None:
    folder = tmp_path / "bytes"
    folder.mkdir()
    (folder / "utf8_bytes").touch()
    tokenizer = load_tokenizer(folder)
    assert type(tokenizer) is example
    source = write_jsonl(tmp_path / "text.jsonl", 6)
    job = make_job(source, folder, tmp_path / "data", valid_fraction=0.0)
    run_job(job, folder)
    verify_dataset(tmp_path / "data", read_manifest(tmp_path / "data"), lambda count: None)
    dataset = TokenDataset(tmp_path / "data", "train")
    expected = [token for i in range(6) for token in (*text_of(i).encode(), 256)]
    assert dataset.read(0, dataset.num_tokens).tolist() == expected
    assert (dataset.vocab_size, dataset.mask_id) == (258, 257)
    copy = load_tokenizer(dataset.tokenizer_directory)
    assert copy.decode(expected) == "".join(text_of(i) for i in range(6))
    assert copy.decode_with_specials([104, 105, 257, 256]) == "hi<mask><end>"
    assert copy.num_bytes(np.array([[104, 257], [105, 106]])).tolist() == [1, 2]
    with pytest.raises(DataError, match="a bundle cannot carry it"):
        copy.save_for_bundle(tmp_path)


def test_a_bundle_holds_a_tokenizer_of_ours(tokenizer_directory: Path, tmp_path: Path) -> None:
    ours = load_tokenizer(tokenizer_directory)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    ours.save_for_bundle(bundle)
    assert not (bundle / "tokenizer.json").exists()
    of_bundle = load_tokenizer(bundle)
    assert type(of_bundle) is type(ours)
    assert of_bundle.vocabulary == ours.vocabulary
    of_bundle.save(tmp_path / "copy")
    for name in ("tokenizer.model", "tokenizer.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (tokenizer_directory / name).read_bytes()


def test_the_model_file_names_its_directory(tokenizer_directory: Path) -> None:
    found = load_tokenizer(tokenizer_directory / "tokenizer.model")
    assert found.vocabulary == load_tokenizer(tokenizer_directory).vocabulary


def test_the_folder_above_a_tokenizer_is_not_one(tokenizer_directory: Path, tmp_path: Path) -> None:
    inner = tmp_path / "tokenizer"
    shutil.copytree(tokenizer_directory, inner)
    assert has_tokenizer(inner)
    assert not has_tokenizer(tmp_path)
    with pytest.raises(DataError, match=f"{inner} is one"):
        load_tokenizer(tmp_path)


def test_a_sentencepiece_model_of_transformers_is_not_taken_for_ours(
    tokenizer_directory: Path, tmp_path: Path
) -> None:
    """Both keep it as tokenizer.model; the class in the configuration tells."""
    directory = saved(like_gpt2(), tmp_path / "theirs")
    expected = load_tokenizer(directory).encode("the cat")
    shutil.copy(tokenizer_directory / "tokenizer.model", directory)
    assert load_tokenizer(directory).encode("the cat") == expected


def test_vocabularies_of_transformers(tmp_path: Path) -> None:
    """As published: a mask is added after the last token, [CLS] and [SEP] are bos and eos."""
    gpt2, bert = like_gpt2(), like_bert()
    size, end = gpt2.vocab_size, gpt2.eos_token_id
    found = load_tokenizer(saved(gpt2, tmp_path / "gpt2")).vocabulary
    expected = Vocabulary(
        size + 1, size, found.fingerprint, None, end, end, True, fingerprint_is_of_files=True
    )
    assert found == expected
    assert (found.num_tokens, found.identity) == (size, None)
    found = load_tokenizer(saved(bert, tmp_path / "bert")).vocabulary
    assert (found.num_rows, found.num_tokens) == (bert.vocab_size, bert.vocab_size)
    assert found.mask_id == bert.mask_token_id
    assert (found.unk_id, found.bos_id, found.eos_id) == (1, 2, 3)


def test_names_of_special_tokens_are_recognised_on_request(
    tokenizer_directory: Path, tmp_path: Path
) -> None:
    theirs = like_bert()
    tokenizer = load_tokenizer(saved(theirs, tmp_path / "bert"))
    ids: Any = theirs("a [MASK]", add_special_tokens=False)["input_ids"]
    assert tokenizer.encode("a [MASK]", recognise_specials=True) == ids
    assert ids[-1] == 4
    assert 4 not in tokenizer.encode("a [MASK]")
    by_default: Any = theirs("a [MASK]")["input_ids"]
    assert tokenizer.encode_in_bundle("a [MASK]") == by_default
    ours = load_tokenizer(tokenizer_directory)
    assert ours.encode("[MASK]</s>", recognise_specials=True) == ours.encode("[MASK]</s>")


LIGHT = """
import sys
from esolm.data_prep.tokenizers import load_tokenizer
tokenizer = load_tokenizer(sys.argv[1])
assert tokenizer.decode(tokenizer.encode("ba be")) == "ba be"
print([name for name in ("torch", "transformers", "tokenizers") if name in sys.modules])
"""


def test_loading_ours_imports_neither_transformers_nor_torch(tokenizer_directory: Path) -> None:
    done = run_python("-c", LIGHT, str(tokenizer_directory))
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
