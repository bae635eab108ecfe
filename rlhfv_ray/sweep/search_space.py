"""What a sweep tries: values of a configuration's knobs, the trials that follow from them, and the configuration of each.

Beta means something else for summed log-probs than for normalised ones, by about an answer's length: it has a range for each.
"""

import itertools
import math
import random
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

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
CHOICES = ("normalize", "rule")  # not numbers on a scale
DIGITS = 3  # that are drawn of a number


@dataclass(frozen=True)
class SpaceConfig:
    """Values to try; what has none stays as --ddpo has it. A random or Bayesian search draws numbers between the least and the greatest."""

    beta: tuple[float, ...] = ()
    """loss.beta where log-probs are summed."""
    beta_normalized: tuple[float, ...] = ()
    """loss.beta where they are divided by their total weight (loss.normalize): about an answer's length times that of sums."""
    gamma: tuple[float, ...] = ()
    """loss.gamma: the weight of corrected tokens."""
    normalize: tuple[bool, ...] = ()
    """loss.normalize."""
    rule: tuple[Literal["muffin", "both_sides"], ...] = ()
    """data.rule: which tokens count as corrected."""
    learning_rate: tuple[float, ...] = ()
    """optim.learning_rate."""
    epochs: tuple[float, ...] = ()
    """optim.epochs."""
    seed: tuple[int, ...] = ()
    """Seeds of every setting; their mean decides, their spread is shown."""


@dataclass(frozen=True)
class SearchConfig:
    """How the space is searched, and what is best."""

    kind: Literal["grid", "random", "bayes"] = "grid"
    """`grid`: every combination; `random`: drawn; `bayes`: each drawn where earlier ones make it promising (Optuna's TPE)."""
    trials: int = 16
    """Settings that `random` and `bayes` try."""
    seed: int = 0
    """Of what is drawn."""
    rungs: int = 2
    """Looks at a trial, the last at its end; at the others, the worse ones of those that got so far are stopped (ASHA). 1: no trial is."""
    reduction: int = 2
    """One in so many goes on from each look, and the updates between looks grow by the same."""
    metric: str = "response_rate"
    """What should be low, of the benchmark's scores."""
    guard: str = "object_recall"
    """What must not fall for it; empty: nothing."""
    within: float = 2.0
    """Points that the guard may fall below the base model's; trials beyond are worse than any that keep it."""
    concurrent: int = 0
    """Trials at a time; 0: as many as fit into the cluster."""
    keep: int = 1
    """Best trials whose models and checkpoints stay on disk; 0: none."""

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
        """After how many updates a trial of `steps` is looked at.

        Example:
            >>> SearchConfig(rungs=3, reduction=2).rung_steps(100)
            [25, 50, 100]
        """
        shares = [self.reduction**-back for back in range(self.rungs)]
        return sorted({max(1, round(steps * share)) for share in shares})

    def objective(
        self, value: float | None, guard: float | None, base_guard: float | None
    ) -> float:
        """What the search makes small: the metric; 1 + what is missing of the guard where that fell too far (Deb 2000); 2 without any.

        Example:
            >>> search = SearchConfig(within=2)
            >>> search.objective(0.2, 0.84, 0.85), round(search.objective(0.1, 0.80, 0.85), 3), search.objective(None, 0.0, 0.85)
            (0.2, 1.03, 2.0)
        """
        if value is None:
            return 2.0
        missing = (
            0.0 if guard is None or base_guard is None else base_guard - self.within / 100 - guard
        )
        return 1 + missing if missing > 0 else value


def grid(space: SpaceConfig, base: DDPOConfig) -> list[TrialParams]:
    """Every combination once for every seed, seed by seed."""
    settings = []
    for normalize in space.normalize or (base.loss.normalize,):
        varied = {FIELDS[name]: values for name in FIELDS if (values := getattr(space, name))}
        varied[BETA] = betas(space, normalize) or (base.loss.beta,)
        combinations = itertools.product(*varied.values())
        settings += [
            trial_params
            for trial_params in (dict(zip(varied, values, strict=True)) for values in combinations)
            if trial_params.get("loss.normalize", normalize) == normalize
        ]
    return with_seeds(space, settings)


def drawn(space: SpaceConfig, base: DDPOConfig, search: SearchConfig) -> list[TrialParams]:
    """Settings at random, numbers evenly in their logarithm, once for every seed."""
    draw = random.Random(search.seed)
    settings: list[TrialParams] = []
    for _ in range(100 * search.trials):
        sample = {
            name: draw.choice(values) for name, values in varied(space).items() if name in CHOICES
        }
        sample |= {name: draw.random() for name in scales(space)}
        trial_params = params_from_sample(space, base, sample)
        if trial_params not in settings:
            settings.append(trial_params)
        if len(settings) == search.trials:
            break
    return with_seeds(space, settings)


def params_from_sample(
    space: SpaceConfig, base: DDPOConfig, sample: Mapping[str, Any]
) -> TrialParams:
    """A drawn setting: choices as they are, numbers from a place between 0 and 1 in the logarithm of their range."""
    trial_params: TrialParams = {
        FIELDS[name]: value for name, value in sample.items() if name in CHOICES
    }
    normalize = trial_params.get("loss.normalize", base.loss.normalize)
    for name, place in sample.items():
        if name not in CHOICES:
            values = betas(space, normalize) if name == "beta" else getattr(space, name)
            trial_params[BETA if name == "beta" else FIELDS[name]] = between(
                min(values), max(values), place
            )
    return trial_params


def between(low: float, high: float, place: float) -> float:
    """The number at a place of a range's logarithm, to three digits.

    Example:
        >>> between(0.1, 10, 0.5), between(5, 5, 0.3)
        (1.0, 5.0)
    """
    value = math.exp(math.log(low) + place * (math.log(high) - math.log(low)))
    return float(f"{value:.{DIGITS}g}")


def varied(space: SpaceConfig) -> Mapping[str, Sequence[Any]]:
    """The knobs that have values, beta under one name."""
    found: dict[str, Sequence[Any]] = {
        name: getattr(space, name) for name in FIELDS if getattr(space, name)
    }
    return found | (
        {"beta": (*space.beta, *space.beta_normalized)}
        if space.beta or space.beta_normalized
        else {}
    )


def scales(space: SpaceConfig) -> list[str]:
    """The knobs that are numbers to draw."""
    return [name for name in varied(space) if name not in CHOICES]


def betas(space: SpaceConfig, normalize: bool) -> tuple[float, ...]:
    """Beta's values under summed or normalised log-probs."""
    return tuple(space.beta_normalized if normalize else space.beta)


def with_seeds(space: SpaceConfig, settings: Iterable[TrialParams]) -> list[TrialParams]:
    """Every setting under every seed; all settings under the first one come first."""
    settings = list(settings)
    return (
        [trial_params | {SEED: seed} for seed in space.seed for trial_params in settings]
        if space.seed
        else settings
    )


def plan_trials(space: SpaceConfig, search: SearchConfig, base: DDPOConfig) -> list[TrialParams]:
    """All trials of a grid or random search; of a Bayesian one the corners of its space, whose trials come as it goes.

    Raises:
        ConfigError: nothing varies, the space contradicts itself, or a value is outside its field's range.
    """
    check_space(space, search, base)
    if search.kind == "grid":
        trials = grid(space, base)
    elif search.kind == "random":
        trials = drawn(space, base, search)
    else:
        trials = grid(
            replace(
                space, **{name: _ends(space, name) for name in ("beta", "beta_normalized", *FIELDS)}
            ),
            base,
        )
    for trial_params in trials:
        apply_params(base, trial_params)
    return trials


def _ends(space: SpaceConfig, name: str) -> tuple[Any, ...]:
    values = getattr(space, name)
    return values if name in CHOICES or not values else (min(values), max(values))


def check_space(space: SpaceConfig, search: SearchConfig, base: DDPOConfig) -> None:
    """Refuse a space in which nothing varies, or that says two things.

    Raises:
        ConfigError: with what to change.
    """
    if not varied(space) and not space.seed:
        raise ConfigError(
            "space: nothing varies. Give at least one knob values, e.g. --space.gamma 1 5 10."
        )
    normalized = set(space.normalize or (base.loss.normalize,))
    for name, needs, form in (("beta", False, "summed"), ("beta_normalized", True, "normalised")):
        if getattr(space, name) and needs not in normalized:
            raise ConfigError(
                f"space.{name} = {getattr(space, name)}: no trial has {form} log-probs; see space.normalize."
            )
    if len(normalized) == 2 and not (space.beta and space.beta_normalized):
        raise ConfigError(
            "space.normalize varies, and beta means something else under each: give both --space.beta and --space.beta-normalized."
        )
    if space.epochs and base.optim.steps:
        raise ConfigError(
            f"space.epochs: --ddpo.optim.steps {base.optim.steps} overrides epochs; set it to 0."
        )
    if search.kind == "bayes" and space.seed:
        raise ConfigError(
            "space.seed: a Bayesian search tries every setting once; use grid or random to repeat them."
        )
    _check_values(space, search)


def _check_values(space: SpaceConfig, search: SearchConfig) -> None:
    for name in ("beta", "beta_normalized", "seed", *FIELDS):
        values = getattr(space, name)
        if len(set(values)) < len(values):
            raise ConfigError(f"space.{name} = {values}: a value stands there twice.")
        if search.kind != "grid" and name not in (*CHOICES, SEED) and min(values, default=1) <= 0:
            raise ConfigError(
                f"space.{name} = {values}: is drawn in its logarithm, so all must be above 0."
            )


def apply_params(base: DDPOConfig, trial_params: TrialParams) -> DDPOConfig:
    """The configuration with a trial's values.

    Raises:
        ConfigError: one of them is outside its field's range; named with the trial.
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


def name_of(trial_params: TrialParams) -> str:
    """A trial's folder name."""
    return fingerprint(trial_params)


def title_of(trial_params: TrialParams) -> str:
    """A trial's name for people.

    Example:
        >>> title_of({"loss.gamma": 5.0, "loss.normalize": True, "seed": 1})
        'gamma 5, normalize True, seed 1'
    """
    return ", ".join(
        f"{name.rpartition('.')[2]} {value:g}"
        if type(value) is float
        else f"{name.rpartition('.')[2]} {value}"
        for name, value in trial_params.items()
    )


def arguments_of(trial_params: TrialParams) -> str:
    """A trial's values as the command line has them.

    Example:
        >>> arguments_of({"optim.learning_rate": 1e-05, "loss.normalize": False})
        '--optim.learning-rate 1e-05 --loss.no-normalize'
    """
    words = []
    for name, value in trial_params.items():
        group, _, field = name.replace("_", "-").rpartition(".")
        dotted = f"{group}." if group else ""
        if isinstance(value, bool):
            words.append(f"--{dotted}{'' if value else 'no-'}{field}")
        else:
            given = value if isinstance(value, list | tuple) else [value]
            words.append(shlex.join([f"--{dotted}{field}", *map(str, given)]))
    return " ".join(words)
