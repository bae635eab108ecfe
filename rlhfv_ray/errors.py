"""Errors that a user can cause or fix.

Every message says what happened, what was given, and how to fix it. Each class is also the
standard-library class that a caller would expect. Each survives pickling, because Ray carries
errors between processes.
"""

import errno

# A full disk or quota, a read-only disk, a file that may not be used, a folder in place of a file
# or a file in place of a folder: users can mend these, and see them without a traceback.
MENDED_BY_USERS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST),
}


class RlhfvError(Exception):
    """Base of every error this project raises on purpose."""


class ConfigError(RlhfvError, ValueError):
    """A setting is unknown, out of range, or contradicts another."""


class DataError(RlhfvError, ValueError):
    """Input data cannot be used. A row's error sets the row aside; a file's error stops the job."""


class StaleReferenceError(DataError):
    """Reference log-probs were computed by a model other than the one about to be trained."""


class CheckpointError(RlhfvError, RuntimeError):
    """A checkpoint is missing, torn, or belongs to another run."""


class StageFailedError(RlhfvError, RuntimeError):
    """A stage of the pipeline stopped before it was complete."""


class StorageError(StageFailedError):
    """Storage behind an address does not answer now.

    Unlike other failures of a stage, this one may go away by itself and affects one process only.
    """


class JudgeError(RlhfvError, RuntimeError):
    """A judge could not be reached or gave no usable verdict."""
