"""Pictures of prompts on their way to actors: a file with each picture once.

Many questions are about one picture. Pickled with their prompts, the pictures of a benchmark would
go through the driver and Ray's object store several times.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhfv_ray.records import Prompt
from rlhfv_ray.storage.folder import publish

PICTURES = "pictures.bin"  # in a folder of answers until all are there


@dataclass(frozen=True)
class StoredPrompt:
    """A prompt whose image is a range of bytes of a file."""

    id: str
    question: str
    start: int
    stop: int


def store_pictures(prompts: Sequence[Prompt], path: Path) -> list[StoredPrompt]:
    """Write every image once into a file, and return the prompts with the places of theirs."""
    places: dict[bytes, tuple[int, int]] = {}
    stop = 0
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("wb") as stream:
        for prompt in prompts:
            if prompt.image not in places:
                start, stop = stop, stop + stream.write(prompt.image)
                places[prompt.image] = start, stop
    draft.replace(path)
    publish(path)
    return [StoredPrompt(prompt.id, prompt.question, *places[prompt.image]) for prompt in prompts]


def load_prompts(rows: Sequence[StoredPrompt], path: Path) -> list[Prompt]:
    """Return prompts with their images, read from the file of `store_pictures`."""
    with path.open("rb") as stream:
        prompts = []
        for row in rows:
            stream.seek(row.start)
            prompts.append(Prompt(row.id, stream.read(row.stop - row.start), row.question))
    return prompts
