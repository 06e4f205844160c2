"""A model small enough to enumerate: every sequence, every order, every set of masks."""

import itertools
import math
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from esolm.model.attention import AttentionPattern
from esolm.model.inputs import NetworkInput
from esolm.model.likelihood import order_log_likelihood
from esolm.model.network import Network

TOKENS, MASK_ID, LENGTH = 3, 3, 4
ORDERS = list(itertools.permutations(range(LENGTH)))
SEQUENCES = torch.tensor(list(itertools.product(range(TOKENS), repeat=LENGTH)))


def order_probabilities(alpha_0: float) -> Tensor:
    """[24]: each token in the prefix with chance alpha_0; that in random order, the rest not."""
    chance = dict.fromkeys(ORDERS, 0.0)
    for size in range(LENGTH + 1):
        for prefix in itertools.permutations(range(LENGTH), size):
            rest = tuple(i for i in range(LENGTH) if i not in prefix)
            of_set = alpha_0**size * (1 - alpha_0) ** (LENGTH - size)
            chance[prefix + rest] += of_set / math.factorial(size)
    return torch.tensor([chance[order] for order in ORDERS], dtype=torch.float64)


class EnumeratedModel:
    """Exact quantities of a network over 3 ** 4 sequences; Eso-LM (B)."""

    def __init__(self, network: Network) -> None:
        self.network = network

    @cached_property
    def log_p_of_order(self) -> Tensor:
        """[81, 24]: log p(x | order), by one-token steps."""
        columns = [
            order_log_likelihood(
                self.network.all_logits, SEQUENCES, np.tile(order, (len(SEQUENCES), 1)), MASK_ID
            ).sum(1)
            for order in ORDERS
        ]
        return torch.stack(columns, dim=1)

    def nll(self, alpha_0: float) -> Tensor:
        """[81]: -log p(x), the orders summed out."""
        return -(self.log_p_of_order + order_probabilities(alpha_0).log()).logsumexp(1)

    @cached_property
    def diffusion_nll(self) -> dict[tuple[int, ...], Tensor]:
        """Masked set -> [81]: mean over both parts' orders of the masked tokens' summed -log p."""
        found = {}
        for size in range(1, LENGTH + 1):
            for masked in itertools.combinations(range(LENGTH), size):
                clean = [i for i in range(LENGTH) if i not in masked]
                orders = [
                    front + back
                    for front in itertools.permutations(clean)
                    for back in itertools.permutations(masked)
                ]
                sums = [self._masked_nll(order, len(clean)) for order in orders]
                found[masked] = torch.stack(sums).mean(0)
        return found

    def _masked_nll(self, order: tuple[int, ...], num_clean: int) -> Tensor:
        labels = SEQUENCES[:, list(order)]
        z = labels.clone()
        z[:, num_clean:] = MASK_ID
        zeros = torch.zeros(len(z), dtype=torch.int64)
        inputs = NetworkInput(
            z, torch.tensor(order).expand_as(z), AttentionPattern.CAUSAL, zeros, zeros
        )
        with torch.no_grad():
            log_p = self.network.all_logits(inputs).log_softmax(-1)
        return -log_p.gather(-1, labels[..., None])[:, num_clean:, 0].sum(1)

    def nelbo(self, alpha_0: float) -> Tensor:
        """[81]: the expectation of the published bound: sums over masks, quadrature over t."""
        nodes, weights = np.polynomial.legendre.leggauss(20)
        t = 0.001 + 0.999 * (nodes + 1) / 2
        total = torch.zeros(len(SEQUENCES), dtype=torch.float64)
        for masked, nll in self.diffusion_nll.items():
            alpha = alpha_0 * (1 - 0.999 * t)
            chance = (1 - alpha) ** len(masked) * alpha ** (LENGTH - len(masked))
            density = 0.999 * alpha_0 / (1 - alpha) * chance
            total += float((density * weights).sum() / 2) * nll
        return total + self._sequential_nelbo(alpha_0)

    def _sequential_nelbo(self, alpha_0: float) -> Tensor:
        """Mean over z_0 and the prefix's order of what one-token steps pay for the rest."""
        total = torch.zeros(len(SEQUENCES), dtype=torch.float64)
        for size in range(LENGTH + 1):
            for prefix in itertools.permutations(range(LENGTH), size):
                order = prefix + tuple(i for i in range(LENGTH) if i not in prefix)
                chance = alpha_0**size * (1 - alpha_0) ** (LENGTH - size) / math.factorial(size)
                if chance == 0:
                    continue
                log_p = order_log_likelihood(
                    self.network.all_logits,
                    SEQUENCES,
                    np.tile(order, (len(SEQUENCES), 1)),
                    MASK_ID,
                )
                total -= chance * log_p[:, size:].sum(1)
        return total

    def expected_importance_bound(self, alpha_0: float, num_orders: int) -> Tensor:
        """[81]: the mean of the K-order bound over all tuples of K independent orders."""
        chance = order_probabilities(alpha_0)
        possible = chance.nonzero().squeeze(1).tolist()
        total = torch.zeros(len(SEQUENCES), dtype=torch.float64)
        for drawn in itertools.product(possible, repeat=num_orders):
            log_p = self.log_p_of_order[:, list(drawn)]
            bound = math.log(num_orders) - log_p.logsumexp(1)
            total += math.prod(float(chance[k]) for k in drawn) * bound
        return total
