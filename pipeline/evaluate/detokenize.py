"""Undoes the spacing that old corpora were distributed with, as the published zero-shot figures do.

Each rule set is a table of (pattern, replacement) that is applied in order. The rules are
conventions that go back to the evaluation of GPT-2 and of the One Billion Word benchmark. They are
reproduced with their quirks, because perplexities under other rules cannot be compared.
"""

import re
from collections.abc import Callable
from functools import partial

Rules = tuple[tuple[str, str], ...]


def _literal(*pairs: tuple[str, str]) -> Rules:
    """Makes rules that replace plain text instead of patterns."""
    return tuple((re.escape(old), new.replace("\\", r"\\")) for old, new in pairs)


def _attached(marks: str) -> Rules:
    """Makes rules that remove the space before a mark that is followed by a space."""
    return _literal(*((f" {mark} ", f"{mark} ") for mark in marks))


WIKITEXT: Rules = (
    *_literal(("s '", "s'")),
    (r"/' [0-9]/", r"/'[0-9]/"),
    *_literal((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")),
    *_attached(":;.!?,"),
    # These remove the spaces just inside of brackets and quotes.
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    *_literal(("= = = =", "===="), ("= = =", "==="), ("= =", "==")),
    *_literal((" \u00b0 ", "\u00b0"), (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s")),
)

# The rule for numbers stands here ten times, because numbers that overlap (" N N ") need it again.
PTB: Rules = (
    *_literal((" 's", "'s"), ("s ' ", "s' "), (" n't", "n't"), (" \n ", "\n"), ("\\/", "/")),
    *_literal((" N ", " 1 ")) * 10,
    *_literal(("$ 1", "$1"), ("# 1", "#1"), ("<unk>", "?")),
)

LM1B: Rules = (
    *_literal(("http : / / ", "http://"), ("https : / / ", "https://")),
    (r" '(\w+)", r"'\1"),
    (r" (\w+) \. ", r" \1. "),
    (r" (\w+) \.$", r" \1."),
    *_attached("?"),
    (r" \?$", "?"),
    *_attached("!"),
    (r" \!$", "!"),
    *_attached(",:;"),
    *_literal((" / ", "/")),
    (r"\" ([^\"]+) \"", r'"\1"'),
    (r"' ([^']+) '", r"'\1'"),
    (r"\( ([^\(\)]+) \)", r"(\1)"),
    (r"\[ ([^\[\]]+) \]", r"[\1]"),
    *_literal(("$ ", "$"), ("\u00a3 ", "\u00a3")),
)


def _apply(rules: Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


def _lambada(text: str) -> str:
    """Makes quotes straight and puts a line break in front."""
    return "\n" + text.replace("\u201c", '"').replace("\u201d", '"').strip()


DETOKENIZERS: dict[str, Callable[[str], str]] = {
    "none": str,
    "wikitext": partial(_apply, WIKITEXT),
    "ptb": partial(_apply, PTB),
    "lm1b": partial(_apply, LM1B),
    "lambada": _lambada,
    "scientific_papers": partial(_apply, WIKITEXT + LM1B),
}
