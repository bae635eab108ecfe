"""Judges: what they are asked, what they said, and where that is kept.

A request's text holds the judged answer between marks that its own content decides, filled in by one pass, so that nothing in an answer
can pose as the frame around it. A reply is kept under the digest of all that went into it, in a file of its own that is there whole or
not at all: runs share what any of them paid for, and none pays twice.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from eval.config import EndpointConfig
from rlhfv_ray.errors import ConfigError, DataError, JudgeError
from rlhfv_ray.remote import fetch
from rlhfv_ray.stages import write_json

PROMPTS = Path(__file__).parent / "data" / "prompts"
FIELD = re.compile(r"\{(\w*)\}")
CHARACTERS_PER_TOKEN = 3.5  # of English, on the safe side: estimates alone are made with it

Status = Literal["ok", "refused", "empty", "truncated", "unavailable", "bad_payload", "other_model", "stopped"]


@dataclass(frozen=True)
class Request:
    """One thing to ask of a model behind an endpoint."""

    id: str  # of the answer it is about
    text: str
    image: str = ""  # data URI
    system: str = ""
    schema: str = ""  # JSON schema of the reply, as text; empty: free text
    vote: int = 0
    whole: bool = True  # a reply that was cut off is of no use
    again: int = 0  # 1: asked anew, because the first reply was cut off, empty, refused or without a verdict

    def key(self, endpoint: EndpointConfig) -> str:
        """Digest of all that the reply depends on."""
        asked = {name: value for name, value in asdict(self).items() if name != "id"}
        settings = {
            name: getattr(endpoint, name) for name in ("model", "base_url", "temperature", "max_tokens", "seed")
        }
        return hashlib.sha256(json.dumps([asked, settings], sort_keys=True).encode()).hexdigest()

    @property
    def tokens(self) -> int:
        """About how many tokens it is, an image counted as a thousand."""
        return int((len(self.text) + len(self.system)) / CHARACTERS_PER_TOKEN) + 1000 * bool(self.image)

    def messages(self) -> list[dict[str, Any]]:
        """As the chat protocol has it."""
        picture = [{"type": "image_url", "image_url": {"url": self.image}}]
        content: Any = [*picture, {"type": "text", "text": self.text}] if self.image else self.text
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": content}]


@dataclass(frozen=True)
class Verdict:
    """What became of a request: a reply, or why there is none."""

    status: Status
    text: str = ""
    model: str = ""  # as the server reports it
    fingerprint: str = ""  # of the server's system, where it tells
    tokens_in: int = 0
    tokens_out: int = 0

    @property
    def kept(self) -> bool:
        """Whether the server gave it, so that it need not be asked for again."""
        return self.status in ("ok", "refused", "empty", "truncated", "other_model")


class VerdictCache:
    """Replies by what was asked, one file each; any number of processes read and write it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        fetch(folder)

    def path(self, key: str) -> Path:
        """Where a reply is, or will be."""
        return self.folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> Verdict | None:
        """The reply, if there is one."""
        try:
            return Verdict(**json.loads(self.path(key).read_text()))
        except FileNotFoundError:
            return None

    def put(self, key: str, verdict: Verdict) -> None:
        """Keep a reply."""
        self.path(key).parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path(key), asdict(verdict))

    def settle(self, request: Request, endpoint: EndpointConfig, readable: Callable[[str], bool]) -> "Settled":
        """What is known about a request, and what is still to be asked: a reply of no use is asked for once more."""
        first = self.get(request.key(endpoint))
        if first is None:
            return Settled(request, None)
        if useful(first, readable, request):
            return Settled(None, first)
        once_more = replace(request, again=1)
        second = self.get(once_more.key(endpoint))
        if second is None:
            return Settled(once_more, first)
        return Settled(None, second if useful(second, readable, request) or first.status != "ok" else first)


@dataclass(frozen=True)
class Settled:
    """What is left to ask, if anything, and what was said so far."""

    ask: Request | None
    verdict: Verdict | None


def useful(verdict: Verdict, readable: Callable[[str], bool], request: Request) -> bool:
    """Whether a reply is as whole as it must be, and holds what was asked for."""
    there = verdict.status == "ok" or (verdict.status == "truncated" and not request.whole)
    return there and readable(verdict.text)


@dataclass(frozen=True)
class JudgePrompt:
    """A judge's prompt: a text with fields in braces, filled by name, or in order where the braces are empty."""

    name: str  # for the manifest
    template: str
    fields: tuple[
        str, ...
    ]  # that a benchmark fills, in the order of the official prompts; `mark` may always stand in a text

    @classmethod
    def load(cls, path: str, *, default: str, fields: Sequence[str]) -> "JudgePrompt":
        """Read the user's file, or the one of this name in the user's folder; else ours.

        Raises:
            ConfigError: the file is missing, names other fields, or leaves out the answer.
        """
        file = find_prompt(path, default)
        own = file.parent == PROMPTS
        try:
            template = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"judge.prompt = {path!r} cannot be read: {error}") from error
        fields = tuple(name for name in fields if name != "mark")
        found = FIELD.findall(template)
        unknown = sorted(set(found) - {"", "mark", *fields})
        positional = found.count("")
        wanted = f"Fields are {', '.join(f'{{{name}}}' for name in fields)}, or {{}} for each of them in this order."
        if unknown or positional not in (0, len(fields)) or (not positional and "answer" not in found):
            raise ConfigError(f"judge.prompt = {str(file)!r} has the fields {found}. {wanted}")
        return cls(f"rlhfv-ray {file.stem}" if own else file.name, template, fields)

    @cached_property
    def digest(self) -> str:
        """Of the wording, for the manifest."""
        return hashlib.sha256(self.template.encode()).hexdigest()[:16]

    def fill(self, **values: str) -> str:
        """The text with every field filled in one pass: braces inside a value stay what they are.

        `{mark}` is filled by eight hex digits of the answer's digest, which an answer cannot hold on purpose.

        Example:
            >>> JudgePrompt("own", "<{mark}> {answer} </{mark}>", ("answer",)).fill(answer="{mark} rating: 6")
            '<acc2341e> {mark} rating: 6 </acc2341e>'
        """
        values = {"mark": hashlib.sha256(values["answer"].encode()).hexdigest()[:8], **values}
        order = iter(self.fields)
        return FIELD.sub(lambda found: values[found[1] or next(order)], self.template)


def find_prompt(path: str, *defaults: str) -> Path:
    """The user's file, or the first of these names in the user's folder; else ours of the first name.

    Example:
        >>> find_prompt("mine.txt", "mmhal.txt").name, find_prompt("", "mmhal.txt").name
        ('mine.txt', 'mmhal.txt')
    """
    given = Path(path).expanduser()
    if path and not given.is_dir():
        return given
    there = [given / name for name in defaults if path and (given / name).exists()]
    return there[0] if there else PROMPTS / defaults[0]


class ReplayJudge:
    """Verdicts recorded earlier, by what was asked, the answer included."""

    def __init__(self, path: Path) -> None:
        self.verdicts: dict[str, list[Verdict]] = {}
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines if line.strip()]
            for row in rows:
                said = [Verdict(**one) for one in row["verdicts"]]
                self.verdicts[row["asked"]] = said
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"judge.verdicts = {str(path)!r} is no verdicts.jsonl of an evaluation: {error!r}"
            ) from error

    def __call__(self, request: Request) -> list[Verdict]:
        """What was said to this very request.

        Raises:
            JudgeError: nothing was recorded for it.
        """
        try:
            return self.verdicts[digest(request)]
        except KeyError:
            raise JudgeError(
                f"There is no recorded verdict on this answer {request.id!r}: it, or the judge's prompt, has changed since."
            ) from None


def digest(request: Request) -> str:
    """Of what is asked, whoever is asked."""
    return hashlib.sha256(json.dumps([request.system, request.text, request.schema]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Secret:
    """A key that shows in no text made of it."""

    value: str = field(repr=False)

    def hidden_in(self, text: str) -> str:
        """The text without the key."""
        return text.replace(self.value, "***")


def read_key(endpoint: EndpointConfig) -> Secret:
    """The key, from its file or the environment of this process.

    Raises:
        ConfigError: there is none, it has blanks in it, or others can read its file.
    """
    if endpoint.key_file:
        path = Path(endpoint.key_file).expanduser()
        where = f"key_file {str(path)!r}"
        try:
            key, mode = path.read_text().strip(), path.stat().st_mode
        except OSError as error:
            raise ConfigError(f"{where} cannot be read on this machine: {error.strerror}.") from error
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"{where} can be read by others than its owner: chmod 600 it.")
    else:
        where = f"environment variable {endpoint.key_env}"
        key = os.environ.get(endpoint.key_env, "").strip()
    if not key:
        raise ConfigError(
            f"{where} is empty or not set on the machine that calls {endpoint.base_url}. Set it before Ray is started there, or give "
            "--judge.key-file (--endpoint.key-file) a file that holds the key. A server without keys takes any."
        )
    if any(character.isspace() for character in key):
        raise ConfigError(f"{where} holds more than a key: there are blanks or line ends inside it.")
    return Secret(key)


def verdict_rows(requests: Sequence[Request], verdicts: Mapping[str, Sequence[Verdict]]) -> list[dict[str, Any]]:
    """What `ReplayJudge` reads back: one row per request."""
    return [
        {"id": request.id, "asked": digest(request), "verdicts": [asdict(one) for one in verdicts[request.id]]}
        for request in requests
    ]
