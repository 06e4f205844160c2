# mypy: ignore-errors
"""Architecture and provenance of an exported Eso-LM network."""

from transformers import PreTrainedConfig


class EsoLMConfig(PreTrainedConfig):
    """One pre-norm transformer, whatever objective trained it.

    The constant modulation of adaLN is already folded into the weights: norms then have a bias
    (`norm_bias`) and the gates live in the output projections.

    norm: `layernorm` or `rmsnorm`. activation: `gelu_tanh` or `swiglu`.
    objective: `esolm`, `mdlm`, `ar` or `bd3lm`; it decides how `generate` decodes.
    variant: `A` or `B` for `esolm`. alpha_0: share of tokens that training gave to diffusion.
    prepend_token_id: what an `ar` network was fed before the first token, or None.
    block_size, keep_first: of `bd3lm`; keep_first: the first token of a sequence is given.
    seq_len: training length; decoding may go beyond it at the user's risk.
    """

    model_type = "esolm"

    vocab_size: int = 32768
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    norm_bias: bool = True
    activation: str = "gelu_tanh"
    mlp_bias: bool = True
    output_bias: bool = True
    rope_base: float = 10000.0
    initializer_range: float = 0.02
    mask_token_id: int = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    objective: str = "esolm"
    variant: str | None = "B"
    alpha_0: float | None = None
    prepend_token_id: int | None = None
    block_size: int | None = None
    keep_first: bool = False
    seq_len: int = 1024
    tie_word_embeddings: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def trained_as(self) -> str:
        """The objective, and the variant where it has variants."""
        return f"esolm {self.variant}" if self.objective == "esolm" else self.objective

    @property
    def first_is_given(self) -> bool:
        """Whether the network was never asked for the first token of a sequence."""
        return self.keep_first or (self.objective == "ar" and self.prepend_token_id is None)
