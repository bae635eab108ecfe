"""What a user can cause or fix.

Every error says what happened, what was given, and how to fix it; each is also the standard-library
class a caller would expect, and each survives pickling, because Ray carries them between processes.
"""


class RlhfvError(Exception):
    """Base of every error this project raises on purpose."""


class ConfigError(RlhfvError, ValueError):
    """A setting is unknown, out of range, or contradicts another."""


class DataError(RlhfvError, ValueError):
    """Input data cannot be used; one row's error quarantines the row, a file's error stops the job."""


class StaleReferenceError(DataError):
    """Reference log-probs were computed by something other than what is about to be trained."""


class CheckpointError(RlhfvError, RuntimeError):
    """A checkpoint is missing, torn, or belongs to another run."""


class StageFailedError(RlhfvError, RuntimeError):
    """A stage of the line stopped before it was complete."""


class StorageError(StageFailedError):
    """Storage behind an address does not answer now; unlike other failures of a stage it may go away by itself, and meets one process alone."""


class JudgeError(RlhfvError, RuntimeError):
    """A judge could not be reached or gave no usable verdict."""
