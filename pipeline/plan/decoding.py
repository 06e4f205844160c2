"""Counts the host memory of `esolm generate` for one text, in fp32 on a CPU."""

from dataclasses import asdict, dataclass

from esolm.model.config import ModelConfig
from esolm.pipeline.export.bundle.attention_esolm import ALIGNMENT, MASK_ELEMENTS
from esolm.pipeline.plan.host import PROCESS_BYTES
from esolm.pipeline.plan.shapes import parameters_by_part

NUM_STEPS = 64
"""Diffusion steps of a text, unless it is asked for with others."""
BUSIEST_PASS = 2
"""No pass writes more than so many times the tokens of an even share."""


@dataclass(frozen=True)
class DecodingBytes:
    """The bytes that decoding takes of the host."""

    process: int
    """The allowance for the interpreter and the libraries."""
    weights: int
    """The weights, and their copy in the order in which they are multiplied."""
    cache: int
    """Keys and values of all tokens of the text."""
    passing: int
    """What a pass makes: of all tokens of the text, as one that is given as a whole."""
    logits: int
    """Those of the tokens that a pass writes, and what they are drawn from."""
    masks: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


def decoding_bytes(model: ModelConfig, length: int, num_steps: int = NUM_STEPS) -> DecodingBytes:
    """Returns what writing one text of `length` tokens takes, most of which may be given."""
    slots = -(-(length + 1) // ALIGNMENT) * ALIGNMENT
    width = model.ffn_hidden_size * (3 if model.activation == "swiglu" else 2)
    written = min(length, BUSIEST_PASS * -(-length // num_steps))
    return DecodingBytes(
        process=PROCESS_BYTES,
        weights=2 * 4 * sum(parameters_by_part(model).values()),
        cache=4 * 2 * model.num_layers * model.kv_heads * model.head_dim * slots,
        passing=4 * length * (8 * model.hidden_size + width),
        logits=3 * 4 * written * model.vocab_size,
        # As truth values and as numbers; one is made while another is there.
        masks=2 * (1 + 4) * MASK_ELEMENTS,
    )
