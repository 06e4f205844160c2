"""What requests may hold; everything else is refused by name."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import PydanticCustomError

MAX_STOPS = 16
MAX_GUESSES = 16
MAX_PROMPTS = 1024
# A plan goes through every step before the first pass.
MAX_STEPS = 10_000
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=1 << 20, fail_fast=True)]
Several = Field(max_length=MAX_PROMPTS, fail_fast=True)
Some = Annotated[str, StringConstraints(min_length=1)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
StreamMode = Literal["prefix", "draft", "events"]


class Strict(BaseModel):
    """Neither unknown fields nor numbers as text."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Sampling(Strict):
    """How a text is written; None stands for the bundle's default."""

    model: str | None = None
    alpha_0: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    schedule: Literal["binomial", "fixed", "strided", "confidence"] | None = Field(
        None,
        description="How diffusion shares its tokens out over the steps. `confidence`, which "
        "writes what is most certain first, is not the model's own distribution.",
    )
    temperature: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=0)
    guesses: int | None = Field(
        None,
        ge=0,
        le=MAX_GUESSES,
        description="Tokens that a pass guesses ahead where an Eso-LM (B) writes from left to "
        "right; the distribution of the text stays what it is.",
    )
    speculate: int | None = Field(
        None,
        ge=0,
        le=MAX_GUESSES,
        description="Another name of `guesses`, of which one may be given.",
    )
    adaptive: bool | None = Field(
        None, description="Guess fewer where guesses do not hold, up to `guesses` where they do."
    )
    seed: int | None = Field(None, ge=0, lt=1 << 63)
    stream: bool | None = False
    user: str | None = None

    @field_validator("speculate")
    @classmethod
    def _one_name(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("guesses") is not None:
            raise PydanticCustomError("twice", "is another name of guesses: give one of the two")
        return value


def only(neutral: Any) -> AfterValidator:
    """Refuses a field that asks for something, which this value does not."""

    def check(value: Any) -> Any:
        if value is not None and value != neutral:
            raise PydanticCustomError(
                "unsupported", "is not supported by this server: leave it out"
            )
        return value

    return AfterValidator(check)


def described(neutral: Any) -> WithJsonSchema:
    """The same for the server's description."""
    return WithJsonSchema({"enum": [neutral, None]})


class StreamOptions(Strict):
    """As of OpenAI."""

    include_usage: bool = False
    include_obfuscation: bool = False


class CompletionRequest(Sampling):
    """`/v1/completions`, as OpenAI's, and the fields of `Sampling`."""

    prompt: str | Annotated[list[str], Several] | Ids | Annotated[list[Ids], Several] = ""
    suffix: str | None = None
    max_tokens: int | None = Field(16, ge=0)
    min_tokens: int | None = Field(0, ge=0)
    n: int | None = Field(1, ge=1, le=128)
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    echo: bool | None = False
    stream_mode: StreamMode = "prefix"
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: int | None = Field(None, ge=1, le=128)
    presence_penalty: Annotated[float | None, only(0), described(0)] = None
    frequency_penalty: Annotated[float | None, only(0), described(0)] = None
    logit_bias: Annotated[dict[str, float] | None, only({}), described({})] = None

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())


class Gap(Strict):
    """So many tokens to be written."""

    gap: int = Field(
        ge=1,
        le=1 << 20,
        description="Tokens of the gap: one length, and no range. Ranges, of which the likeliest "
        "length is taken, are for `esolm generate --infill` and Python.",
    )


class InfillRequest(Sampling):
    """`/v1/infill`: text and gaps, each of one length."""

    segments: list[str | Gap] = Field(min_length=1, max_length=10_000, fail_fast=True)
    stream_mode: StreamMode = "events"
    likelihood: bool = Field(
        False,
        description="Also tell log p of the finished text, from left to right; null where the "
        "network's objective has none.",
    )


class ScoreRequest(Strict):
    """`/v1/score`: log p of texts, each behind `given`."""

    model: str | None = None
    text: Some | Annotated[list[Some], Field(min_length=1, max_length=64, fail_fast=True)]
    given: str = ""
    num_orders: int = Field(
        1,
        ge=1,
        le=128,
        description="1: from left to right. More: the mean of p over so many drawn orders, of an "
        "Eso-LM (B).",
    )
    alpha_0: float | None = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Share of tokens that the drawn orders have at random places; only where "
        "num_orders is above 1.",
    )
    seed: int = Field(0, ge=0, lt=1 << 63, description="Of the drawn orders.")


class TextOfTokens(Strict):
    """`/tokenize`."""

    model: str | None = None
    prompt: str


class TokensOfText(Strict):
    """`/detokenize`."""

    model: str | None = None
    tokens: Ids


def asked(request: Sampling) -> dict[str, Any]:
    """The fields of generation that a request sets, by the bundle's names."""
    names = {
        "alpha_0": "alpha_0", "steps": "num_steps", "schedule": "schedule",
        "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "guesses": "guesses",
        "speculate": "guesses", "adaptive": "adaptive",
    }  # fmt: skip
    found = [(own, getattr(request, field)) for field, own in names.items()]
    return {name: value for name, value in found if value is not None}
