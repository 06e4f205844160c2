"""The errors that a user can cause. Each message says what, where and what to do."""


class EsolmError(Exception):
    """The base of every error that is reported as one message, without a stack trace."""

    exit_code = 1
    told = False
    """Whether another process of the same run says it already."""


class DataError(EsolmError):
    """A corpus, tokenizer or dataset is missing, damaged or unfit; such a job is not requeued."""

    exit_code = 64


class MissingPackageError(EsolmError):
    """An optional package is not installed, which is no fault of what was to be read."""

    exit_code = 64
