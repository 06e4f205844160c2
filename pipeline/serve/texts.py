"""Between tokens and text: segments, stop strings, and text as far as it is whole."""

from dataclasses import dataclass, field

from esolm.data_prep.tokenizers import Tokenizer

UNFINISHED = "\ufffd"


@dataclass
class Draft:
    """A text in the making. tokens: ids in its order, None where nothing is written.

    sizes: tokens of its segments, which are decoded one behind the other.
    """

    tokenizer: Tokenizer
    tokens: list[int | None]
    sizes: list[int] = field(default_factory=list)

    def put(self, places: list[int], ids: list[int]) -> None:
        """What a pass has written."""
        for place, token in zip(places, ids, strict=True):
            self.tokens[place] = token

    @property
    def num_whole(self) -> int:
        """Tokens up to the first that is not written."""
        return next((i for i, token in enumerate(self.tokens) if token is None), len(self.tokens))

    def text(self, first: int, end: int) -> str:
        """Text of the tokens from first to end; masks are left out.

        A token's text depends on what stands in front, so all of it is decoded.
        """
        ids = [token for token in self.tokens[:end] if token is not None]
        front = [token for token in self.tokens[:first] if token is not None]
        return self.tokenizer.decode(ids)[len(self.tokenizer.decode(front)) :]

    def segments(self) -> list[str]:
        """Text of each segment."""
        found, first = [], 0
        for size in self.sizes:
            found.append(self.text(first, first + size))
            first += size
        return found


def piece(tokenizer: Tokenizer, token: int) -> str:
    """Text of a token by itself, as it stands in the middle of a text."""
    anchor = list(tokenizer.encode("a"))
    return tokenizer.decode([*anchor, token])[len(tokenizer.decode(anchor)) :]


def cut(text: str, stops: list[str]) -> str:
    """The text up to its first stop string."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


def safe(text: str, stops: list[str]) -> str:
    """What can be told of an unfinished text.

    Its end may still become another character, or be the beginning of a stop string.
    """
    text = cut(text, stops).rstrip(UNFINISHED)
    longest = max((len(stop) - 1 for stop in stops), default=0)
    for size in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops):
            return text[:-size]
    return text
