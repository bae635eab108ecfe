"""Reach the model hub: one question, one answer.

Every file of a checkpoint is asked for by itself, and each request is tried again for half a minute
where there is no network. So the hub is asked once, before the first file.
"""

import logging
from functools import cache
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from rlhfv_ray.errors import ConfigError

logger = logging.getLogger(__name__)

TIMEOUT_S = 10.0


@cache
def hub_commit(name: str) -> str:
    """Return the commit of a model on the hub, or in this machine's cache; asked once per process.

    Where the hub does not answer and the cache has the model, the process goes on offline.

    Args:
        name: owner/model.

    Raises:
        ConfigError: the hub has no such model or keeps it behind terms, or it does not answer and
            the cache does not have the model.
    """
    try:
        return str(HfApi().model_info(name, timeout=TIMEOUT_S).sha)
    except GatedRepoError as error:
        raise ConfigError(
            f"model.path = {name!r}: its authors ask you to accept their terms first. Accept them "
            "on the model's page, then log in here (hf auth login)."
        ) from error
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"model.path = {name!r}: there is no such folder here, and the hub has no such public "
            "model. Check the name; for a private model log in first (hf auth login)."
        ) from error
    except (HTTPError, OfflineModeIsEnabled) as error:
        return _cached_commit(name, error)


def _cached_commit(name: str, error: Exception) -> str:
    """Return the commit of a model in the cache, and keep the process from asking the hub again."""
    config_file = try_to_load_from_cache(name, "config.json")
    if not isinstance(config_file, str):
        raise ConfigError(
            f"model.path = {name!r}: there is no such folder here, and the model hub does not "
            f"answer ({type(error).__name__}). Fetch the model where there is a network "
            f"(hf download {name} --local-dir FOLDER), and give --model.path FOLDER."
        ) from error
    logger.warning(
        "The model hub does not answer (%s): %s is taken from this machine's cache.",
        *(type(error).__name__, name),
    )
    constants.HF_HUB_OFFLINE = True  # else each file would be asked for, for half a minute
    return Path(config_file).parent.name  # snapshots/COMMIT/config.json
