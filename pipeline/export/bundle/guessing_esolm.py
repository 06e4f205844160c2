# mypy: ignore-errors
"""Speculation without a second network: a pass checks guesses and makes the next ones.

In the sequential phase a pass feeds [what is certain | k guesses, as if they were written | masks].
Mask i sees what is certain and the first i guesses, so it gives the distribution p of its token if
these guesses hold. They are accepted one after the other with chance p / q, q being what they were
drawn from; the first that is not is drawn anew from what p has more than q, and if all hold the
next mask gives one more token (speculative sampling, arXiv 2211.17192). So every pass writes at
least one token, and each follows p whatever q was. The masks behind it give the next guesses.
"""

import torch
from torch import Tensor

from .requests_esolm import TextRequest
from .sampling_esolm import Rules, Stream, inverted, probabilities_of, random_numbers


class Guesses:
    """Those of one text. tokens: the guesses that the next pass checks. ahead: how many it makes.

    checked, held: how many have been checked, and how many of them held.
    """

    def __init__(self, request: TextRequest) -> None:
        self._request, self._number = request, 0
        self._acceptance = random_numbers(request.seed, request.sample, Stream.ACCEPTANCE).random(
            request.length
        )
        self.tokens: list[int] = []
        self.ahead = request.guesses
        self.checked = self.held = 0
        self._chances: Tensor | None = None

    def settle(self, logits: Tensor, places: list[int], uniforms: Tensor) -> list[int]:
        """The tokens that a pass writes at the first of the places.

        logits: [M, V] of the masks at the places, int [M]. uniforms: float64 [M].
        """
        chances = self._chances_of(logits[: len(self.tokens) + 1])
        written, rejected = [], None
        for i, token in enumerate(self.tokens):
            if self._acceptance[places[i]] * self._chances[i, token] >= chances[i, token]:
                rejected = i
                break
            written.append(token)
        self._count(len(written), rejected is not None)
        if len(written) < len(places):
            last = len(written)
            left = chances[last] if rejected is None else chances[last] - self._chances[last]
            written += inverted(left.clamp(min=0)[None], uniforms[last : last + 1]).tolist()
        self._guess(logits[len(written) :][: self.ahead])
        return written

    def _count(self, held: int, is_rejected: bool) -> None:
        self.checked += held + is_rejected
        self.held += held
        if self._request.adaptive and self.tokens:
            change = -1 if is_rejected else 1
            self.ahead = min(max(self.ahead + change, 1), self._request.guesses)

    def _guess(self, logits: Tensor) -> None:
        """[K, V]: of the places behind what is written."""
        self._number += 1
        request = self._request
        draws = random_numbers(request.seed, request.sample, Stream.GUESSES, self._number)
        uniforms = torch.from_numpy(draws.random(len(logits))).to(logits.device)
        self._chances = self._chances_of(logits)
        self.tokens = inverted(self._chances, uniforms).tolist() if len(logits) else []

    def _chances_of(self, logits: Tensor) -> Tensor:
        """[K, V] -> float64 [K, V']."""
        one = self._request
        rules = Rules.alike(len(logits), one.temperature, one.top_p, one.top_k, logits.device)
        return probabilities_of(logits, rules)
