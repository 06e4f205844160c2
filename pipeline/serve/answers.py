"""What answers hold, for the server's own description of itself at `/openapi.json`."""

from typing import Literal

from pydantic import BaseModel, Field

Phase = Literal["diffusion", "sequential"]


class Usage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Logprobs(BaseModel):
    """As OpenAI's. None: of a first token that the network never predicts."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One text."""

    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"] | None


class CompletionAnswer(BaseModel):
    """Of `/v1/completions`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class Segment(BaseModel):
    """A text that was given, or what a gap was filled with."""

    text: str
    given: bool


class InfilledToken(BaseModel):
    """pass: of which it is, None for a given one."""

    position: int
    id: int
    text: str
    given: bool
    pass_: int | None = Field(alias="pass")
    phase: Phase | None


class InfillAnswer(BaseModel):
    """Of `/v1/infill`. seconds: of writing.

    log_likelihood: of the whole text from left to right, in nats, what was given included;
    nats_per_token: the same with the other sign, by the tokens that the network predicts. Both are
    null where `likelihood` was not asked for, and where the network has none.
    """

    id: str
    object: Literal["infill"]
    created: int
    model: str
    text: str
    segments: list[Segment]
    tokens: list[InfilledToken]
    passes: int
    seed: int
    seconds: float
    log_likelihood: float | None
    nats_per_token: float | None
    usage: Usage


class TextScore(BaseModel):
    """log_likelihood: in nats. nats_per_token: by the tokens that the network predicts."""

    log_likelihood: float
    tokens: int
    nats_per_token: float
    bits_per_byte: float


class ScoreAnswer(BaseModel):
    """Of `/v1/score`, in the order of the texts."""

    object: Literal["score"]
    model: str
    scores: list[TextScore]


class TokensAnswer(BaseModel):
    """Of `/tokenize`."""

    tokens: list[int]
    count: int
    max_model_len: int


class TextAnswer(BaseModel):
    """Of `/detokenize`."""

    prompt: str


class ModelCard(BaseModel):
    """The network, the tokens of its longest text, and its defaults."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    objective: str
    seq_len: int
    defaults: dict[str, bool | float | int | str]


class ModelsAnswer(BaseModel):
    """Of `/v1/models`."""

    object: Literal["list"]
    data: list[ModelCard]


class StatusAnswer(BaseModel):
    """Of `/health` and `/ready`."""

    status: str


class ErrorDetail(BaseModel):
    """param: the field at fault, if one is. code: the status."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorAnswer(BaseModel):
    """Every answer that is no success."""

    error: ErrorDetail
