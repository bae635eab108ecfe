"""JOB: settings drawn by Optuna's TPE from the conditional space, as a searcher of Ray Tune.

Optuna sees settings, not seeds: it is told the mean loss of a setting at the first rung, when all
its seeds have ended there. The two betas are different parameters, of which a setting has one. A
setting that was drawn before is not run again: Optuna is told its loss once more.
"""

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from rlhfv_ray.sweep.record import ENDED, add_drawn, drawn_samples, read_rung
from rlhfv_ray.sweep.search_space import (
    TrialParams,
    name_of,
    sample_setting,
    setting_of,
    with_seeds,
)
from rlhfv_ray.sweep.trials import REPORTED, SweepJob

RANDOM_SHARE = 4  # one setting in so many, and at least two, is drawn at random first
DRAWS = 100  # draws for one new setting, before the space counts as used up


class SettingSearch(Searcher):
    """Draws one setting after another, and hands out its trials, one per seed."""

    def __init__(self, job: SweepJob) -> None:
        super().__init__(metric=REPORTED, mode="max")
        self.job = job
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=job.search.seed,
                multivariate=True,
                group=True,  # a model for each branch of the conditional space
                constant_liar=True,  # settings that still run are not drawn again
                n_startup_trials=max(2, job.search.trials // RANDOM_SHARE),
            )
        self.study = optuna.create_study(sampler=sampler)
        for sample in drawn_samples(job.folder):
            self.study.enqueue_trial(sample)
        self.remembered = len(drawn_samples(job.folder))
        self.drawn: dict[str, list[TrialParams]] = {}  # trials by setting
        self.open: dict[str, optuna.Trial] = {}  # settings that Optuna waits for
        self.waiting: list[TrialParams] = []  # trials of the last setting, not handed out yet
        self.running: dict[str, TrialParams] = {}  # by Tune's name of the trial

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """Accept Tune's metric, which decides nothing here."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Return the next trial."""
        while not self.waiting:
            if len(self.drawn) == self.job.search.trials or not self._draw():
                return Searcher.FINISHED
        self.running[trial_id] = self.waiting.pop(0)
        return {"params": json.dumps(self.running[trial_id])}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna about a setting when the last of its trials has ended."""
        trial_params = self.running.pop(trial_id, None)
        if trial_params is not None:
            self._tell(name_of(setting_of(trial_params)))

    def _draw(self) -> bool:
        """Draw a setting that was not drawn before; return False if there seems to be none."""
        for _ in range(DRAWS):
            trial = self.study.ask()
            setting = self._sample(trial)
            name = name_of(setting)
            if name in self.drawn:
                self._answer(trial, name)
                continue
            self.drawn[name] = with_seeds(self.job.space, [setting])
            self.open[name] = trial
            if len(self.drawn) > self.remembered:
                add_drawn(self.job.folder, trial.params, self.drawn[name])
            self.waiting = [item for item in self.drawn[name] if not self._has_ended(item)]
            if not self.waiting:
                self._tell(name)
            return True
        return False

    def _sample(self, trial: optuna.Trial) -> TrialParams:
        return sample_setting(
            self.job.space,
            self.job.base,
            lambda name, values: trial.suggest_categorical(name, list(values)),
            lambda name: trial.suggest_float(name, 0.0, 1.0),
        )

    def _has_ended(self, trial_params: TrialParams) -> bool:
        folder = self.job.trial_folder(trial_params)
        return read_rung(folder, 0) is not None or (folder / ENDED).exists()

    def _tell(self, name: str) -> None:
        running = {name_of(setting_of(trial_params)) for trial_params in self.running.values()}
        waiting = {name_of(setting_of(trial_params)) for trial_params in self.waiting}
        if name not in running | waiting and name in self.open:
            self._answer(self.open.pop(name), name)

    def _answer(self, trial: optuna.Trial, name: str) -> None:
        """Tell Optuna a setting's loss; one without a value, or that still runs, has failed."""
        value = None if name in self.open else self.job.value(self.drawn[name], 0)
        if value is None or value.missing:
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, value.loss)

    def save(self, checkpoint_path: str) -> None:
        """Write the study for Tune's snapshot; a resumed sweep reads its own record instead."""
        Path(checkpoint_path).write_bytes(pickle.dumps(self.study))

    def restore(self, checkpoint_path: str) -> None:
        """Read the study of `save`."""
        self.study = pickle.loads(Path(checkpoint_path).read_bytes())
