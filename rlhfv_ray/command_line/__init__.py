"""The common parts of all command lines: `--config FILE`, a short help, and renamed flags.

A file's settings become flags in front of those that people typed, which therefore win.
"""

import functools
import inspect
import json
import logging
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml
from rich.table import Table

from rlhfv_ray.command_line.help_text import (
    HELP,
    JOINED,
    field_texts,
    first_paragraph,
    introduce,
    parse,
    wrapped,
)
from rlhfv_ray.console import new_console
from rlhfv_ray.errors import ConfigError
from rlhfv_ray.redaction import HIDDEN

C = TypeVar("C")
RENAMED = {"data.max-rejected": "data.max-unusable"}  # old name: new name, without the dashes
FOOTER = {
    "--config FILE": "Settings from a YAML file, or from a run's config.json. Flags change them.",
    "--help-all": "Every setting.",
}

logger = logging.getLogger(__name__)


def read_arguments(recipes: Sequence[str] = (), config: type | None = None) -> list[str]:
    """Return the arguments of this process, as flags of today and without `--config`.

    Args:
        recipes: names that the first argument can have. A file of a finished run has every setting,
            so that none has to be named with it; a YAML file can name one (`recipe: paper`).
        config: dataclass whose fields a run's file must have; None: any.

    Raises:
        ConfigError: the file cannot be read, is of a run of another command, or has a secret that
            was left out when it was written.
    """
    arguments = _arguments(recipes, config)
    return current_flags(["--help" if word == "--help-all" else word for word in arguments])


def _arguments(recipes: Sequence[str], config: type | None = None) -> list[str]:
    arguments = sys.argv[1:]
    files = [index for index, word in enumerate(arguments) if word.partition("=")[0] == "--config"]
    if not files:
        return arguments
    return _with_file(arguments, files, recipes, config)


def recipe_named(recipes: Collection[str]) -> str:
    """Return the recipe that the command line or its file names."""
    return _arguments(list(recipes))[0]


def wants_short_help() -> bool:
    """Say whether the command line asks for help, but not for every setting."""
    return any(word in HELP for word in sys.argv[1:])


def choose(
    recipes: Mapping[str, Callable[[], C]],
    *,
    description: str | None,
    main_flags: Sequence[str],
    default: str = "",
) -> C:
    """Read a command line that begins with a recipe's name.

    Args:
        recipes: makers of a configuration, by name.
        description: of the command, for its help.
        main_flags: settings that the short help shows, without dashes.
        default: recipe of a command line that begins with a flag, or is empty. If the default is
            empty, a recipe must be named.
    """
    config = type(next(iter(recipes.values()))())
    arguments = read_arguments(list(recipes), config)
    is_unnamed = not arguments or arguments[0].startswith("-")
    if default and is_unnamed and not set(arguments) & set(HELP):
        arguments = [default, *arguments]
    if arguments and arguments[0] in recipes:
        return _chosen(arguments[0], recipes, arguments[1:], description, main_flags)
    introduce(description, arguments)
    configs = {name: (first_paragraph(recipe), recipe()) for name, recipe in recipes.items()}
    return tyro.extras.overridable_config_cli(
        configs, description="", args=arguments, registry=JOINED
    )


def _chosen(
    name: str,
    recipes: Mapping[str, Callable[[], C]],
    arguments: Sequence[str],
    description: str | None,
    main_flags: Sequence[str],
) -> C:
    """Read the arguments behind a recipe's name; errors and help are of this recipe alone."""
    config = recipes[name]()
    if wants_short_help():
        print_short_help(config, main_flags, command=name)
        raise SystemExit(0)
    introduce(description, arguments)
    return tyro.cli(
        type(config),
        default=config,
        prog=f"{Path(sys.argv[0]).name} {name}",
        description=first_paragraph(recipes[name]),
        args=arguments,
        config=(tyro.conf.AvoidSubcommands,),
        registry=JOINED,
    )


def call(function: Callable[..., C], *, description: str | None, group: str) -> C:
    """Call a function with the arguments of the command line.

    Args:
        function: its parameters are the flags, and its docstring their help.
        description: of the command, for its help.
        group: parameter of many settings, which only `--help-all` shows.
    """
    if wants_short_help():
        title_and_examples = (description or "").strip().split("\n\n")[:2]
        all_settings = f"--help-all also lists {group}.*, which most people leave as they are."
        description = "\n\n".join([*title_and_examples, all_settings])
        function = _without(function, group)
    return parse(function, description=description, arguments=read_arguments())


def _without(function: Callable[..., C], name: str) -> Callable[..., C]:
    """Return a function as another, for help that does not show one of its parameters."""

    @functools.wraps(function)
    def shown(*args: Any, **kwargs: Any) -> C:
        return function(*args, **kwargs)

    signature = inspect.signature(function)
    parameters = [each for each in signature.parameters.values() if each.name != name]
    shown.__signature__ = signature.replace(parameters=parameters)  # pyright: ignore
    shown.__annotations__ = {
        key: kind for key, kind in shown.__annotations__.items() if key != name
    }
    return shown


def print_short_help(
    config: Any, main_flags: Sequence[str], *, command: str = "", description: str | None = None
) -> None:
    """Print the settings that most people need.

    Args:
        config: with the values of a recipe, or its class, whose fields have defaults.
        main_flags: names of the settings, without dashes.
        command: recipe that the command line names.
        description: of the command.
    """
    console = new_console()
    console.print(" ".join(f"usage: {sys.argv[0]} {command} [OPTIONS]".split()))
    if description:
        title_and_examples = description.strip().split("\n\n")[:2]
        console.print("\n" + wrapped("\n\n".join(title_and_examples)), soft_wrap=True)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column()
    for name in main_flags:
        text, value = _described(config, name)
        flag = f"--{name.replace('_', '-')}"
        table.add_row(flag, f"{text} ({value})" if value else text)
    for name, text in FOOTER.items():
        table.add_row(name, text)
    console.print()
    console.print(table)


def flag_words(name: str, value: Any) -> list[str]:
    """Return a setting as words of a command line.

    Example:
        >>> flag_words("loss.sft_mean", "tokens"), flag_words("loss.normalize", False)
        (['--loss.sft-mean', 'tokens'], ['--loss.no-normalize'])
        >>> flag_words("space.gamma", (1.0, 5.0))
        ['--space.gamma', '1.0', '5.0']
    """
    group, dot, last = name.replace("_", "-").rpartition(".")
    if isinstance(value, bool):
        return [f"--{group}{dot}{'' if value else 'no-'}{last}"]
    values = value if isinstance(value, list | tuple) else [value]
    return [f"--{group}{dot}{last}", *map(str, values)]


def current_flags(arguments: Sequence[str]) -> list[str]:
    """Replace flags that got another name; each is named once in a warning.

    A flag may stand below a prefix (`--ddpo.data.max-rejected`), with underscores, or with its
    value after an equals sign.

    Example:
        >>> current_flags(["paper", "--ddpo.data.max_rejected=0.1", "--data.limit", "5"])
        ['paper', '--ddpo.data.max-unusable=0.1', '--data.limit', '5']
    """
    current: list[str] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--").replace("_", "-")
        for old, new in RENAMED.items():
            if flag.startswith("--") and (name == old or name.endswith(f".{old}")):
                flag = f"--{name.removesuffix(old)}{new}"
                if not any(earlier.partition("=")[0] == flag for earlier in current):
                    logger.warning("--%s is now called %s.", name, flag)
        current.append(f"{flag}{equals}{value}")
    return current


def _with_file(
    arguments: Sequence[str],
    files: Sequence[int],
    recipes: Sequence[str],
    config: type | None,
) -> list[str]:
    """Put the settings of the file in front of the flags, and its recipe in front of both."""
    if len(files) > 1:
        raise ConfigError("--config was given twice. Give one file, and flags that change it.")
    _, equals, path = arguments[files[0]].partition("=")
    flags = [*arguments[: files[0]], *arguments[files[0] + 1 :]]
    if not equals:
        if files[0] == len(flags):
            raise ConfigError("--config needs a file: YAML, or the config.json of a run.")
        path = flags.pop(files[0])
    settings, is_whole = _read_file(Path(path).expanduser(), config)
    named = [flags.pop(0)] if flags and flags[0] in recipes else []
    recipe = settings.pop("recipe", None)
    if recipes and not named:
        same_name = settings.get("name") if settings.get("name") in recipes else recipes[0]
        named = [_recipe(path, recipe or (same_name if is_whole else None), recipes)]
    return [*named, *_file_words(path, settings, flags, config), *flags]


def _recipe(path: str, recipe: object, recipes: Sequence[str]) -> str:
    """Return the recipe that a file names.

    Raises:
        ConfigError: it names none, or there is none of that name.
    """
    if recipe is None:
        raise ConfigError(
            f"{path} names no recipe. Add a line `recipe: NAME`, or name one before --config: "
            f"{', '.join(recipes)}."
        )
    if not isinstance(recipe, str) or recipe not in recipes:
        raise ConfigError(f"{path}: recipe = {recipe!r} is not one of {', '.join(recipes)}.")
    return recipe


def _file_words(
    path: str, settings: Mapping[str, Any], flags: Sequence[str], config: type | None
) -> list[str]:
    """Return a file's settings as words of a command line, which go before the flags.

    Raises:
        ConfigError: a value is of a kind that the setting does not have, or lacks its secret.
    """
    words: list[str] = []
    for name, value in leaves(settings):
        if config and (fault := _fault_of(name, value, config)):
            raise ConfigError(f"{path}: {fault}.")
        flag, *values = flag_words(name, value)
        typed = any(word.replace("_", "-").partition("=")[0] == flag for word in flags)
        if HIDDEN in " ".join(values) and not typed:
            raise ConfigError(
                f"{path}: {name} = {value} was written without its password. Add {flag} VALUE."
            )
        words += [flag, *values] if isinstance(value, list | bool) else [f"{flag}={values[0]}"]
    return words


def _fault_of(name: str, value: Any, config: type) -> str:
    """Return what is wrong with the kind of a file's value; nothing if a flag can have it.

    Unknown names and values that cannot be read are found with the flags.
    """
    kind: Any = config
    parts = name.split(".")
    for depth, part in enumerate(parts):
        if not is_dataclass(kind):
            return f"{'.'.join(parts[:depth])} is one setting, and no group with {part} in it"
        kind = next((spec.type for spec in fields(kind) if spec.name == part), None)
        if kind is None:
            return ""
    setting = f"{name} = {json.dumps(value)}"
    if is_dataclass(kind):
        members = ", ".join(spec.name for spec in fields(kind))
        return f"{setting}: it is a group of settings ({members})"
    if isinstance(value, list) and "tuple" not in str(kind):
        return f"{setting}: it takes one value, and no list"
    if isinstance(value, bool) != (kind is bool):
        return f"{setting}: {'true or false' if kind is bool else 'no true or false'} is expected"
    return ""


def _read_file(path: Path, config: type | None) -> tuple[dict[str, Any], bool]:
    """Return nested settings; True if a run wrote them, which then are all of its settings.

    Raises:
        ConfigError: it cannot be read, or a run of another command wrote it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--config {path} cannot be read: {reason}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path} is no mapping of names to settings.")
    settings = content.get("config")
    if not isinstance(settings, dict):
        return content, False
    known = {spec.name for spec in fields(config)} if config else set(settings)
    foreign = sorted(set(settings) - known)
    if foreign:
        raise ConfigError(
            f"--config {path} is of a run named {settings.get('name')!r}, whose settings "
            f"{', '.join(foreign)} this command does not have. Give it to the command of that run: "
            "train, sft, sweep, study or eval."
        )
    return settings, True


def leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested settings with dotted names."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _described(config: Any, name: str) -> tuple[str, str]:
    """Return the help of a setting, and its value as a text."""
    *groups, last = name.replace("-", "_").split(".")
    for group in groups:
        config = _value(config, group)
    value = _value(config, last)
    if isinstance(value, tuple | list):
        value = " ".join(map(str, value))
    text = field_texts(config if isinstance(config, type) else type(config))[last]
    return text.partition(". ")[0].rstrip(".") + ".", str(value)


def _value(config: Any, name: str) -> Any:
    if not isinstance(config, type):
        return getattr(config, name)
    factories = {spec.name: spec.default_factory for spec in fields(config)}
    factory = factories[name]
    return factory() if callable(factory) else getattr(config, name)
