# mypy: ignore-errors
"""Architecture and provenance of an exported Eso-LM network."""

from transformers import PreTrainedConfig


class EsoLMConfig(PreTrainedConfig):
    """One pre-norm transformer, whatever objective trained it.

    The constant modulation of adaLN is already folded into the weights: norms then have a bias
    (`norm_bias`) and the gates live in the output projections.

    num_key_value_heads: each is shared by equally many attention heads; None: by one.
    norm: `layernorm` or `rmsnorm`. activation: `gelu_tanh` or `swiglu`.
    qk_norm: queries and keys of each head are normalised before rotation.
    logit_softcap: c, where logits are c tanh(logit / c); 0: none.
    rope_bases: of the rotary frequencies; the layers take them in turn. Empty: all `rope_base`.
    rope_factor: how many times longer YaRN makes the context than `rope_original_length`; 1: none.
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
    num_key_value_heads: int | None = None
    intermediate_size: int = 3072
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    norm_bias: bool = True
    qk_norm: bool = False
    activation: str = "gelu_tanh"
    mlp_bias: bool = True
    output_bias: bool = True
    logit_softcap: float = 0.0
    rope_base: float = 10000.0
    rope_bases: tuple[float, ...] = ()
    rope_factor: float = 1.0
    rope_original_length: int = 0
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
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    def rope_base_of(self, layer: int) -> float:
        bases = self.rope_bases or (self.rope_base,)
        return bases[layer % len(bases)]

    @property
    def predicts_the_next(self) -> bool:
        """Whether logits at a token are for the one behind it, so that no masks are fed."""
        return self.objective == "ar"

    @property
    def trained_as(self) -> str:
        """The objective, and the variant where it has variants."""
        return f"esolm {self.variant}" if self.objective == "esolm" else self.objective

    @property
    def first_is_given(self) -> bool:
        """Whether the network was never asked for the first token of a sequence."""
        return self.keep_first or (self.objective == "ar" and self.prepend_token_id is None)
