"""A whole sweep and a whole study on the shapes world: a trial killed in training, one that does
not stay finite, and what is left behind.
"""

import itertools
import json
import threading
from dataclasses import replace
from io import StringIO
from pathlib import Path

import mlflow
import pytest
from rich.console import Console

from eval.config import JudgeConfig, MMHalBenchConfig
from experiments.over_generalization import RISE, draw, rises
from experiments.recipes import half_cpus, shapes
from experiments.runners.config import StudyConfig, SweepConfig
from experiments.runners.contrasts import Claim
from experiments.runners.picture_parts import part_of_image
from experiments.runners.scoring import score_model
from experiments.runners.study import run_study
from experiments.runners.study_arms import Arm, Study
from experiments.runners.sweep import sweep
from rlhfv_ray.config import DDPOConfig
from rlhfv_ray.endpoint.rate_limit import BURST_S
from rlhfv_ray.errors import ConfigError, JudgeError
from rlhfv_ray.shapes.scenes import make_scenes, render
from rlhfv_ray.sweep.search_space import SearchConfig, SpaceConfig
from rlhfv_ray.tracking.run_folder import HEADLINE
from rlhfv_ray.tracking.target import tracking_uri
from tests.conftest import wait_for
from tests.openai_server import OpenAIServer
from tests.ray.conftest import ray_processes
from tests.unit.experiments.runners.test_picture_parts import write_questions

pytestmark = [pytest.mark.ray, pytest.mark.aside]
GOOD, WILD = 1e-5, 1e30  # learning rates
PER_MINUTE, PRICE = 300, 10e-6  # of calls to the judge; USD
JITTER_S = 1.0  # between the admission of a call and its line in the server's log


def small() -> DDPOConfig:
    """A few updates on a few scenes."""
    base = half_cpus(shapes())
    scenes = replace(base.shapes, scenes=60, evaluation_scenes=30, seed=0)
    loss, optim = replace(base.loss, beta=0.1), replace(base.optim, steps=6, learning_rate=GOOD)
    return replace(base, seed=0, shapes=scenes, loss=loss, optim=optim)


def swept_config(**search) -> SweepConfig:
    space = SpaceConfig(learning_rate=(GOOD, WILD), gamma=(5.0,), beta=(0.1,))
    return SweepConfig(
        name="small",
        ddpo=small(),
        space=space,
        search=SearchConfig(rungs=1, concurrent=1, **search),
    )


def run_sweep_in(storage: Path, **search) -> tuple[dict, str]:
    console = Console(file=StringIO(), width=200)
    return sweep(
        swept_config(**search), storage, recipe=shapes(), console=console
    ), console.file.getvalue()


@pytest.fixture(scope="module")
def swept(cluster, tmp_path_factory):
    """A sweep whose first trial's process is killed in training; its storage, and what it returned
    and printed.
    """
    storage, killed = tmp_path_factory.mktemp("swept"), []

    def kill():
        wait_for(lambda: any(storage.glob("train-*/lease.json")), 500)
        (trial,) = ray_processes("ImplicitFunc")
        trial.kill()
        killed.append(trial.pid)

    helper = threading.Thread(target=kill, daemon=True)
    helper.start()
    best, printed = run_sweep_in(storage)
    helper.join(timeout=1)
    assert killed
    return storage, best, printed


def folder_of(storage: Path) -> Path:
    (folder,) = storage.glob("small-*")
    return folder


def runs(storage: Path) -> list[mlflow.entities.Run]:
    client = mlflow.MlflowClient(tracking_uri(small().tracking, storage))
    return client.search_runs([e.experiment_id for e in client.search_experiments()])


def test_the_sweep_ends_and_tells_of_every_trial(swept):
    """Catches: a lost or failed trial that ends the sweep or is passed over in silence; a reference
    pass for each trial.
    """
    storage, best, printed = swept
    trials = {
        row["trial_params"]["optim.learning_rate"]: row
        for row in json.loads((folder_of(storage) / "trials.json").read_text())
    }
    assert (trials[GOOD]["status"], trials[WILD]["status"]) == ("finished", "failed")
    assert "not finite" in trials[WILD]["error"] and "not finite" in printed
    assert best["trial_params"]["optim.learning_rate"] == GOOD
    assert trials[GOOD]["step"] == 6 and trials[GOOD]["rates"]["n"] == 30
    assert len(list(storage.glob("reference-*"))) == len(list(storage.glob("corrections-*"))) == 1
    assert printed.count("reference log-probs") == 1


def test_the_best_can_be_used_and_made_again(swept):
    """Catches: a best trial whose model was deleted; fresh pictures that are the old ones; a
    command that leaves out what was changed.
    """
    storage, best, _ = swept
    assert (Path(best["model"]) / "model.safetensors").exists()
    config = swept_config()
    scored = score_model(
        config, best["model"], storage, storage / "again", pictures=config.pictures("choice")
    ).rates()
    assert scored == best["rates"]
    fresh, chosen_by = best["fresh"], best["base"]
    assert fresh["pictures"] == 30 and fresh["metric"]["base"] != 100 * chosen_by["response_rate"]
    low, high = fresh["metric"]["interval"]
    assert low <= fresh["metric"]["mean"] <= high
    assert best["setting"]["loss.gamma"] == 5.0 and best["value"]["seeds"] == 1
    assert f"base {fresh['metric']['base']:.1f} %" in best["sentence"]
    words = best["retrain"].split()
    assert words[1:3] == ["train", "shapes"]
    given = dict(zip(words[3::2], words[4::2], strict=True))
    assert (
        given["--optim.steps"] == "6"
        and given["--shapes.scenes"] == "60"
        and given["--loss.gamma"] == "5.0"
    )
    assert Path(given["--data.reference"]) == next(storage.glob("reference-*"))
    assert {path.name for path in folder_of(storage).glob("*.png")} >= {
        "pareto.png",
        "beta_gamma.png",
    }


def test_one_parent_and_a_child_for_each_trial(swept):
    """Catches: runs that the UI cannot lay side by side; one twice after a kill; an error that is
    not there.
    """
    storage, best, _ = swept
    tracked = runs(storage)
    (parent,) = [run for run in tracked if "mlflow.parentRunId" not in run.data.tags]
    children = {run.data.params["optim.learning_rate"]: run for run in tracked if run is not parent}
    assert len(tracked) == 3
    assert parent.data.tags[HEADLINE] == best["sentence"]
    assert {rate: run.info.status for rate, run in children.items()} == {
        str(GOOD): "FINISHED",
        str(WILD): "FAILED",
    }
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {
        parent.info.run_id
    }
    assert "not finite" in children[str(WILD)].data.tags["error"]
    assert "response_rate" in children[str(GOOD)].data.metrics
    assert children[str(GOOD)].data.tags["verdict"] == "1 of 1: best"
    names = {
        item.path
        for item in mlflow.MlflowClient(tracking_uri(small().tracking, storage)).list_artifacts(
            parent.info.run_id
        )
    }
    assert names >= {"best.json", "trials.json", "figures"}


def test_again_it_keeps_what_ended(swept):
    """Catches: a second run that trains again, or a second set of runs."""
    storage, best, _ = swept
    made = {path: path.stat().st_mtime_ns for path in storage.glob("*/SUCCESS")}
    again, _ = run_sweep_in(storage)
    assert again == best
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert len(runs(storage)) == 3


def test_a_metric_that_is_not_there_is_refused_before_any_trial(swept):
    """Catches: trials that are trained for a number that nobody measures."""
    storage, _, _ = swept
    before = set(storage.glob("train-*"))
    with pytest.raises(ConfigError, match=r"search\.metric = 'f1'.*response_rate"):
        run_sweep_in(storage, metric="f1")
    with pytest.raises(ConfigError, match=r"search\.guard = 'recalled'"):
        run_sweep_in(storage, guard="recalled")
    console = Console(file=StringIO(), width=200)
    tried = replace(swept_config(), dry_run=True)
    assert sweep(tried, storage, recipe=shapes(), console=console) == {}
    assert "2 settings x 1 seeds" in console.file.getvalue()
    assert "CPU hours: about " in console.file.getvalue()
    larger = replace(tried.ddpo, scale=replace(tried.ddpo.scale, cpus=9))
    elsewhere = replace(tried, ddpo=larger)  # planned on a machine that cannot run it
    assert sweep(elsewhere, storage, recipe=shapes(), console=console) == {}
    assert "cannot run it: ddpo.scale.workers = 2 needs" in console.file.getvalue()
    with pytest.raises(ConfigError, match=r"ddpo.scale.workers = 2 needs"):
        sweep(replace(elsewhere, dry_run=False), storage, recipe=shapes(), console=console)
    assert set(storage.glob("train-*")) == before


def test_a_study_says_what_its_seeds_support(swept):
    """Catches: arms that do not share what they can, a seed that changes nothing, a verdict without
    its interval.
    """
    storage, _, _ = swept
    config = StudyConfig(name="study", ddpo=small(), seeds=(0, 1), concurrent=1)
    study = Study(
        "So it is.",
        (Arm("base"), Arm("DDPO", lambda ddpo, line: ddpo)),
        Claim("DDPO", "base", measure=RISE),
        rises,
        draw,
    )
    made = {path: path.stat().st_mtime_ns for path in storage.glob("*/SUCCESS")}
    printed = Console(file=StringIO(), width=200)
    assert run_study(replace(config, dry_run=True), study, storage, console=printed) == {}
    assert "finished so far: 0 of 4 scored models" in printed.file.getvalue()
    assert not list(storage.glob("study-*"))
    outcome = run_study(config, study, storage, console=Console(file=StringIO()))
    assert (
        len(list(storage.glob("train-*"))) == 3
    )  # the sweep's two, of which seed 0 is one, and seed 1
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert outcome["seeds"] == [0, 1]
    for arm in ("base", "DDPO"):
        one, other = outcome["arms"][arm]["response_rate"]["values"]
        assert one != other
        assert outcome["arms"][arm][RISE]["interval"][0] <= outcome["arms"][arm][RISE]["mean"]
    assert (
        outcome["sentences"][0].startswith("So it is. ")
        and "over generalization" in outcome["sentences"][0]
    )
    (folder,) = storage.glob("study-*")
    assert {"study.json", "table.md", "study.png"} <= {path.name for path in folder.iterdir()}
    names = {run.info.run_id: run.data.tags["mlflow.runName"] for run in runs(storage)}
    arms = [f"arm {arm}, seed {seed}" for arm in ("DDPO", "base") for seed in (0, 1)]
    expected = [*arms, "study study, 2 seeds"]
    assert sorted(name for name in names.values() if name.startswith(("arm", "study"))) == expected


def test_trial_processes_are_gone(swept):
    """Catches: trials that outlive their sweep."""
    assert not ray_processes("ImplicitFunc")


def judged_config(key: Path, url: str, questions: MMHalBenchConfig, max_cost: float) -> SweepConfig:
    """Two settings at a time on a judged benchmark."""
    judge = JudgeConfig(
        model="judge",
        base_url=url,
        key_file=str(key),
        max_tokens=100,
        requests_per_minute=PER_MINUTE,
        price_out=1.0,
        max_cost=max_cost,
        actors=1,
    )
    # Rates at which six updates change every answer: equal ones are judged once.
    space = SpaceConfig(learning_rate=(1e-3, 3e-3), gamma=(5.0,), beta=(0.1,))
    search = SearchConfig(rungs=1, concurrent=2, metric="average_score", guard="")
    ddpo = replace(small(), scale=replace(small().scale, cpus=0.25))  # two trials fit
    config = replace(swept_config(), name="judged", space=space, search=search, judge=judge)
    return replace(config, ddpo=ddpo, benchmark="mmhal_bench", mmhal_bench=questions)


def rate_by_length(text: str) -> str:
    return f"Rating: {len(text) % 7}"


@pytest.mark.soak  # `test_sweep_pace.py` shows the same without trainings
def test_all_trials_together_keep_one_budget_and_one_pace(swept, tmp_path: Path):
    """Catches: a budget or a pace for each trial; replies paid for twice; a spent budget whose
    sweep cannot go on with a larger one; questions about other images than those of the part.

    A reply has 10 tokens of at most 100: a call claims 100 micro-USD and costs 10.
    """
    storage, _, _ = swept
    images = [render(scene) for scene in make_scenes(30, seed=5)]
    questions = write_questions(tmp_path / "questions.json", images)
    parts = [part_of_image(image) for image in images]
    key = tmp_path / "key"
    key.write_text("sk-canary")
    key.chmod(0o600)
    console = Console(file=StringIO(), width=200)
    asked = 2 * parts.count("choice")  # of every model
    limit = PRICE * (2 * asked + 6)
    with OpenAIServer(rate_by_length, log=tmp_path / "log") as server:
        with pytest.raises(JudgeError, match="max_cost"):
            spent = judged_config(key, server.url, questions, limit)
            sweep(spent, storage, recipe=shapes(), console=console)
        first = server.requests()
        assert limit - 10 * PRICE <= PRICE * len(first) <= limit
        best = sweep(
            judged_config(key, server.url, questions, 1.0),
            storage,
            recipe=shapes(),
            console=console,
        )
        served = server.requests()
    assert len(list(storage.glob("judged-*"))) == 1
    costs = [json.loads(path.read_text()) for path in storage.glob("judge-cache/spending/*.json")]
    assert sum(cost["settled"] for cost in costs) == pytest.approx(PRICE * len(served))
    assert {cost["under_way"] for cost in costs} == {0}
    assert len(served) <= 1 + 3 * asked + 4 * parts.count("fresh")
    paid = {entry["prompt"] for entry in first}
    assert paid.isdisjoint(entry["prompt"] for entry in served[len(first) :])
    assert best["fresh"]["pictures"] == 2 * parts.count("fresh")
    assert best["value"]["mean"] == pytest.approx(best["rates"]["average_score"])
    times = [entry["at"] for entry in served]
    for start, stop in itertools.combinations(range(len(times)), 2):
        seconds = times[stop] - times[start] + JITTER_S
        assert stop - start + 1 <= PER_MINUTE / 60 * (seconds + BURST_S)
