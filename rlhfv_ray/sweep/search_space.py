"""The search space of a sweep: values to try, and the trials that follow from them.

Beta has one range for summed log-probs and one for normalised log-probs. The same beta means
different things for the two, by about a factor of an answer's length.
"""

import importlib.util
import itertools
import math
import random
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rlhfv_ray.command_line import flag_words
from rlhfv_ray.config import DDPOConfig, fingerprint
from rlhfv_ray.errors import ConfigError

TrialParams = dict[str, Any]  # values by the field's dotted name, as on the command line
FIELDS = {
    "normalize": "loss.normalize",
    "gamma": "loss.gamma",
    "rule": "data.rule",
    "learning_rate": "optim.learning_rate",
    "epochs": "optim.epochs",
}
BETA, SEED = "loss.beta", "seed"
CHOICES = ("normalize", "rule")  # categories; all other values are numbers on a scale
DIGITS = 3  # significant digits of a drawn number


@dataclass(frozen=True)
class SpaceConfig:
    """Values to try; a field without values stays as --ddpo sets it.

    A random or Bayesian search draws numbers between the least and the greatest value.
    """

    beta: tuple[float, ...] = ()
    """Values of loss.beta for trials with summed log-probs."""
    beta_normalized: tuple[float, ...] = ()
    """Values of loss.beta for trials with loss.normalize (log-probs divided by their total weight).
    These betas are larger than those for summed log-probs by a factor of about the length of an
    answer."""
    gamma: tuple[float, ...] = ()
    """Values of loss.gamma, the weight of corrected tokens; each >= 1."""
    normalize: tuple[bool, ...] = ()
    """Values of loss.normalize to try: False sums log-probs, True divides them by their total
    weight."""
    rule: tuple[Literal["muffin", "both_sides"], ...] = ()
    """Values of data.rule: which tokens count as corrected."""
    learning_rate: tuple[float, ...] = ()
    """Values of optim.learning_rate."""
    epochs: tuple[float, ...] = ()
    """Values of optim.epochs; needs --ddpo.optim.steps 0."""
    seed: tuple[int, ...] = ()
    """Seeds with which every setting is repeated. Settings are ranked by their mean score over
    seeds, and the spread is shown."""


@dataclass(frozen=True)
class SearchConfig:
    """The search method, and the rule for the best trial."""

    kind: Literal["grid", "random", "bayes"] = "grid"
    """`grid` tries every combination, `random` samples settings at random, and `bayes` samples
    settings that resemble the best ones so far (Optuna's TPE, of the extra `bayes`)."""
    trials: int = 16
    """Number of settings that `random` and `bayes` try, each with every seed."""
    seed: int = 0
    """Random seed for the drawn settings."""
    rungs: int = 2
    """Number of evaluations of each trial, >= 1. The last one is at the end of training. At each
    earlier one the worse settings are stopped with all their seeds (successive halving). With 1, no
    setting is stopped early."""
    reduction: int = 2
    """Factor between rungs, at least 2: one in so many settings continues, and each rung has so
    many times the updates of the one before."""
    metric: str = "response_rate"
    """The score of the benchmark to improve. The benchmark says if less or more of it is better."""
    guard: str = "object_recall"
    """Guard: a score that may not get worse than the base model's by more than `within`, in the
    mean over seeds. Empty: none."""
    within: float = 2.0
    """How far the guard may get worse than the base model's, in the unit that tables show:
    percentage points of a rate, points of a rating. Missing this by as much again costs a setting
    as much as the whole way from the base model's score to a perfect one."""
    concurrent: int = 0
    """Number of trials that run at a time; 0: as many as fit into the cluster."""
    keep: int = 1
    """Number of best settings whose models and checkpoints stay on disk, one for each seed. 0: they
    are deleted at the end."""

    def __post_init__(self) -> None:
        for name, least in (
            ("trials", 1),
            ("rungs", 1),
            ("reduction", 2),
            ("concurrent", 0),
            ("keep", 0),
            ("within", 0),
        ):
            value = getattr(self, name)
            if not value >= least:
                raise ConfigError(f"search.{name} = {value!r}: must be >= {least}.")

    def rung_steps(self, steps: int) -> list[int]:
        """Return the numbers of updates at which a trial of `steps` updates is evaluated.

        Example:
            >>> SearchConfig(rungs=3, reduction=2).rung_steps(100)
            [25, 50, 100]
        """
        shares = [self.reduction**-rung for rung in range(self.rungs)]  # the last rung first
        return [max(1, round(steps * share)) for share in reversed(shares)]


def grid(space: SpaceConfig, base: DDPOConfig) -> list[TrialParams]:
    """Return every combination once for every seed, seed by seed."""
    settings = []
    for normalize in space.normalize or (base.loss.normalize,):
        values = {FIELDS[name]: getattr(space, name) for name in FIELDS if getattr(space, name)}
        values[BETA] = betas(space, normalize) or (base.loss.beta,)
        for combination in itertools.product(*values.values()):
            trial_params = dict(zip(values, combination, strict=True))
            if trial_params.get("loss.normalize", normalize) == normalize:
                settings.append(trial_params)
    return with_seeds(space, settings)


def drawn(space: SpaceConfig, base: DDPOConfig, search: SearchConfig) -> list[TrialParams]:
    """Return settings drawn at random, numbers log-uniformly, once for every seed."""
    draw = random.Random(search.seed)
    settings: list[TrialParams] = []
    for _ in range(100 * search.trials):
        trial_params = sample_setting(
            space, base, lambda _, values: draw.choice(values), lambda *_: draw.random()
        )
        if trial_params not in settings:
            settings.append(trial_params)
        if len(settings) == search.trials:
            break
    return with_seeds(space, settings)


def sample_setting(
    space: SpaceConfig,
    base: DDPOConfig,
    choose: Callable[[str, Sequence[Any]], Any],
    place: Callable[[str], float],
) -> TrialParams:
    """Return a setting of the conditional space: its form of log-probs decides which beta it has.

    Args:
        space: values to try.
        base: configuration that the space varies.
        choose: takes the name of a category and its values, and returns one.
        place: takes the name of a number (`beta_normalized` is one of its own) and returns a
            position from 0 to 1 in the logarithm of its range.
    """
    trial_params: TrialParams = {}
    for name in CHOICES:
        if getattr(space, name):
            trial_params[FIELDS[name]] = choose(name, getattr(space, name))
    is_normalized = trial_params.get("loss.normalize", base.loss.normalize)
    beta = "beta_normalized" if is_normalized else "beta"
    numbers = {name: field for name, field in FIELDS.items() if name not in CHOICES}
    for name, field in {**numbers, beta: BETA}.items():
        values = getattr(space, name)
        if values:
            trial_params[field] = between(min(values), max(values), place(name))
    return trial_params


def between(low: float, high: float, position: float) -> float:
    """Return the number at a position, from 0 to 1, of a range's logarithm, to three digits.

    Example:
        >>> between(0.1, 10, 0.5), between(5, 5, 0.3)
        (1.0, 5.0)
    """
    value = math.exp(math.log(low) + position * (math.log(high) - math.log(low)))
    return float(f"{value:.{DIGITS}g}")


def varied(space: SpaceConfig) -> Mapping[str, Sequence[Any]]:
    """Return the fields that have values."""
    names = ("beta", "beta_normalized", *FIELDS)
    return {name: getattr(space, name) for name in names if getattr(space, name)}


def betas(space: SpaceConfig, normalize: bool) -> tuple[float, ...]:
    """Return the values of beta for summed or for normalised log-probs."""
    return tuple(space.beta_normalized if normalize else space.beta)


def with_seeds(space: SpaceConfig, settings: Iterable[TrialParams]) -> list[TrialParams]:
    """Return every setting with every seed; all settings with the first seed come first."""
    settings = list(settings)
    return (
        [trial_params | {SEED: seed} for seed in space.seed for trial_params in settings]
        if space.seed
        else settings
    )


def plan_trials(space: SpaceConfig, search: SearchConfig, base: DDPOConfig) -> list[TrialParams]:
    """Return all trials of a grid or random search.

    A Bayesian search draws its trials later. For it, return the corners of its space, so that their
    values are checked.

    Raises:
        ConfigError: nothing varies, the space contradicts itself, or a value is outside its field's
            range.
    """
    check_space(space, search, base)
    if search.kind == "grid":
        trials = grid(space, base)
    elif search.kind == "random":
        trials = drawn(space, base, search)
    else:
        ends = {name: _ends(space, name) for name in ("beta", "beta_normalized", *FIELDS)}
        trials = grid(replace(space, **ends), base)
    for trial_params in trials:
        apply_params(base, trial_params)
    return trials


def _ends(space: SpaceConfig, name: str) -> tuple[Any, ...]:
    values = getattr(space, name)
    return values if name in CHOICES or not values else (min(values), max(values))


def has_optuna() -> bool:
    """Return True if Optuna is installed; the extra `bayes` has it."""
    return importlib.util.find_spec("optuna") is not None


def check_space(space: SpaceConfig, search: SearchConfig, base: DDPOConfig) -> None:
    """Check that something varies, that the space does not contradict itself, and that the search
    is installed.

    Raises:
        ConfigError: with the option to change.
    """
    if search.kind == "bayes" and not has_optuna():
        raise ConfigError(
            "search.kind = 'bayes': Optuna is not installed. Install it (pip install "
            "'rlhfv-ray[bayes]'), or take --search.kind random."
        )
    if search.kind != "grid" and len(space.seed) > search.trials:
        raise ConfigError(
            f"space.seed: {len(space.seed)} seeds, but search.trials = {search.trials} settings. "
            "Give more --search.trials or fewer --space.seed."
        )
    normalized = set(space.normalize or (base.loss.normalize,))
    for name, needs, form in (("beta", False, "summed"), ("beta_normalized", True, "normalised")):
        if getattr(space, name) and needs not in normalized:
            raise ConfigError(
                f"space.{name} = {getattr(space, name)}: no trial has {form} log-probs; "
                "see space.normalize."
            )
    if len(normalized) == 2 and not (space.beta and space.beta_normalized):
        raise ConfigError(
            "space.normalize varies, and each form of log-probs needs its own beta: "
            "give both --space.beta and --space.beta-normalized."
        )
    if space.epochs and base.optim.steps:
        raise ConfigError(
            f"space.epochs: --ddpo.optim.steps {base.optim.steps} overrides epochs; set it to 0."
        )
    if all(len(values) < 2 for values in varied(space).values()):
        raise ConfigError(
            "space: nothing varies, so there is nothing to choose (seeds repeat a setting). "
            "Give at least one field two values, e.g. --space.gamma 1 5 10."
        )
    _check_values(space, search)


def _check_values(space: SpaceConfig, search: SearchConfig) -> None:
    for name in ("beta", "beta_normalized", "seed", *FIELDS):
        values = getattr(space, name)
        if len(set(values)) < len(values):
            raise ConfigError(f"space.{name} = {values}: a value is given twice.")
        if search.kind != "grid" and name not in (*CHOICES, SEED) and min(values, default=1) <= 0:
            raise ConfigError(
                f"space.{name} = {values}: values are drawn log-uniformly, so all must be above 0."
            )


def apply_params(base: DDPOConfig, trial_params: TrialParams) -> DDPOConfig:
    """Return the configuration with a trial's values.

    Raises:
        ConfigError: a value is outside its field's range; the message names the trial.
    """
    config = base
    try:
        for name, value in trial_params.items():
            group, _, field = name.rpartition(".")
            inner = replace(getattr(config, group), **{field: value}) if group else value
            config = replace(config, **{group or field: inner})
    except ConfigError as error:
        raise ConfigError(f"Trial {title_of(trial_params)}: {error}") from error
    return config


def setting_of(trial_params: TrialParams) -> TrialParams:
    """Return a trial's values without its seed."""
    return {name: value for name, value in trial_params.items() if name != SEED}


def by_setting(trials: Iterable[TrialParams]) -> dict[str, list[TrialParams]]:
    """Return the trials by the name of their setting, in the order of their first trials."""
    groups: dict[str, list[TrialParams]] = {}
    for trial_params in trials:
        groups.setdefault(name_of(setting_of(trial_params)), []).append(trial_params)
    return groups


def name_of(trial_params: TrialParams) -> str:
    """Return the name of a trial's folder, or of a setting."""
    return fingerprint(trial_params)


def title_of(trial_params: TrialParams) -> str:
    """Return a trial's name for people.

    Example:
        >>> title_of({"loss.gamma": 5.0, "loss.normalize": True, "seed": 1})
        'gamma 5, normalize True, seed 1'
    """
    words = []
    for name, value in trial_params.items():
        _, _, field = name.rpartition(".")
        words.append(f"{field} {value:g}" if type(value) is float else f"{field} {value}")
    return ", ".join(words)


def arguments_of(trial_params: TrialParams) -> str:
    """Return a trial's values as command-line arguments.

    Example:
        >>> arguments_of({"optim.learning_rate": 1e-05, "loss.normalize": False})
        '--optim.learning-rate 1e-05 --loss.no-normalize'
    """
    words = [word for name, value in trial_params.items() for word in flag_words(name, value)]
    return shlex.join(words)
