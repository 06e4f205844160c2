'''Text to token ids and back: every kind of tokenizer behind one protocol, and one loader.

`load_tokenizer(folder)` returns a `Tokenizer`, or raises DataError in the same words whichever
command was given the folder. The first kind in `KINDS` that recognises the folder reads it:

- ours: `tokenizer.model` of `esolm prep tokenizer`, beside the record of its ids;
- a bundle's: `tokenizer.model` beside a `tokenizer_config.json` that names `EsoLMTokenizer`;
- one of transformers, such as that of gpt2; no code of the folder is run.

The contract of a `Tokenizer`, which `data_prep/tokenizers/protocol.py` states method by method:

- `encode` adds no special token, and takes the names of special tokens in a text for plain text.
- `decode(encode(text))` is the text, wherever `is_lossless`.
- `vocabulary` says how many rows a network under it has, which row is the mask's, which ids are
  special, and what it is known by.
- `save` writes a copy that this loader reads again, `save_for_bundle` one for transformers.

Importing this package, and loading a tokenizer of ours, imports neither transformers nor torch.

To add one of your own, write a class like this one, import it in `data_prep/tokenizers/load.py` and
put it into `KINDS` there, where workers find it too; the last line does so for one process alone.

```python
from pathlib import Path
from esolm.data_prep.files import write_atomic
from esolm.data_prep.tokenizers import KINDS, Tokenizer, Vocabulary

class Utf8Bytes(Tokenizer):
    """The bytes of a text. A folder with a file `utf8_bytes` is one."""

    is_lossless = True

    def __init__(self, directory: Path) -> None:
        self.path = directory / "utf8_bytes"
        self.vocabulary = Vocabulary(258, mask_id=257, eos_id=256, fingerprint="utf8_bytes")

    @staticmethod
    def recognises(directory: Path) -> bool:
        return (directory / "utf8_bytes").is_file()

    def encode(self, text: str, recognise_specials: bool = False) -> list[int]:
        return list(text.encode())

    def decode(self, ids) -> str:
        return bytes(int(i) for i in ids if i < 256).decode(errors="replace")

    def decode_with_specials(self, ids) -> str:
        names = {256: b"<end>", 257: b"<mask>"}
        return b"".join(names.get(int(i)) or bytes([i]) for i in ids).decode(errors="replace")

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomic(directory / "utf8_bytes", b"")

KINDS.insert(0, Utf8Bytes)
```
'''

from esolm.data_prep.tokenizers.load import KINDS, has_tokenizer, load_tokenizer
from esolm.data_prep.tokenizers.own import save_tokenizer
from esolm.data_prep.tokenizers.protocol import Tokenizer, TokenizerInfo, Vocabulary
from esolm.data_prep.tokenizers.training import train_model

__all__ = [
    "KINDS",
    "Tokenizer",
    "TokenizerInfo",
    "Vocabulary",
    "has_tokenizer",
    "load_tokenizer",
    "save_tokenizer",
    "train_model",
]
