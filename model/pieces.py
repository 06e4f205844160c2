"""How many logits the loss computes at a time."""

from esolm.model.config import ModelConfig
from esolm.model.kernels import kernels_in_use

LOGITS_MB = 1024


def piece_rows(config: ModelConfig, ranks: int, element: int, logits_mb: int) -> int:
    """Returns how many rows of logits are computed at a time, one at least.

    element: the bytes of a value of the network, 2 or 4.
    """
    size = config.padded_vocab_size(ranks) // ranks
    return max(1, logits_mb * 10**6 // (bytes_per_logit(config, element) * size))


def bytes_per_logit(config: ModelConfig, element: int) -> int:
    """Returns the bytes that are alive for each logit of a piece.

    They are the fp32 logit, which becomes its probability and then its gradient, and beside it,
    with a bound of the logits, its tanh, or what the matrix products of bf16 make and take. Of what
    is compiled they are the logit and its gradient as matrix products make and take them.
    """
    if kernels_in_use().compiled:
        return 2 * element
    return 4 + (4 if config.logit_softcap else element % 4)
