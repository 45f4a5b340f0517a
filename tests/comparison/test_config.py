"""Comparisons as configs: the paper's are the published recipes, and an agenda is in the order of work."""

import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopt.comparison.config import Budget, ComparisonConfig, Published, Rival, make_agenda
from lopt.comparison.races import Bench
from lopt.config import differences, from_dict, load_file, to_dict
from lopt.estimators.pes import PESConfig
from lopt.evaluation.baselines import SCHEDULES, find_baseline
from lopt.evaluation.evaluate import EvaluationConfig
from lopt.networks.update import DeepSetsConfig, NFNConfig, UNFConfig
from lopt.optimizers.momentum import LearnedMomentumConfig, LearnedSGDMConfig
from lopt.task.families import MixtureConfig
from lopt.training.held_out import HeldOutConfig
from lopt.training.mixture import optimizer_of
from lopt.training.outer import OuterConfig
from lopt.training.trainer import MetaTrainConfig
from lopt.unroll import UnrollConfig
from tasks.mlp import MLPConfig
from tests.comparison.toy import COMPARISON, EXPERIMENT

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "configs" / "paper").glob("*.py"))
PUBLISHED = {"mlp": "fashion_mlp", "cnn": "cifar_cnn", "rnn": "lm1b_rnn", "transformer": "lm1b_transformer"}

NETWORKS = ["DeepSets", "UNF"]
MUON = ["SGDM", *NETWORKS, "Muon_DeepSets", "Muon_UNF"]
RULES = {
    "cnn_rules": ["SGDM", "DeepSets", "NFN", "UNF"],
    "mlp_rules": ["SGDM", *NETWORKS, "Adam_DeepSets", "Adam_UNF", "Muon_DeepSets", "Muon_UNF"],
    "rnn_rules": MUON,
    "transformer_rules": MUON,
}

each = pytest.mark.parametrize("name", sorted(PUBLISHED))


def load(name):
    return load_file(ROOT / "configs" / "paper" / f"{name}.py")


def test_every_task_of_the_paper_has_its_comparison():
    assert [file.stem for file in FILES] == sorted([*PUBLISHED, *RULES])


@pytest.mark.parametrize("name", sorted(RULES))
def test_the_rules_are_compared_beside_scheduled_rivals(name):
    """The paper's rule and gated ones, each with DeepSets and UNF, NFN on the CNN; the loss to reach is a scheduled Adam's."""
    comparison = load(name)
    assert from_dict(to_dict(comparison), trust=True) == comparison
    for budget in comparison.budgets:
        agenda = make_agenda(name, comparison, budget.name, "runs")
        assert [run.label for run in agenda.runs] == RULES[name] * budget.seeds
        evaluation = budget.experiment.evaluation
        assert find_baseline(evaluation.baselines[0]).label == "tuned Adam"
        assert {"nadamw", "muon", "adam@constant"} < set(evaluation.baselines)
        assert set(evaluation.schedules) == set(SCHEDULES)
        assert budget.experiment.outer.decay_steps == budget.experiment.outer_steps


@each
def test_a_comparison_says_how_to_run_it_and_has_three_budgets(name):
    comparison = load(name)
    assert from_dict(to_dict(comparison), trust=True) == comparison
    assert [budget.name for budget in comparison.budgets] == ["paper", "cpu", "smoke"]
    assert all(budget.differs for budget in comparison.budgets)
    text = (ROOT / "configs" / "paper" / f"{name}.py").read_text().split('"""')[1]
    assert re.match(r"[^\n]+\.\n\n", text)
    assert f"python scripts/paper_tables.py figure2 --task {name} --budget cpu" in text


@each
def test_the_paper_budget_is_the_published_recipe_but_for_the_optimizer(name):
    comparison, published = load(name), load_file(ROOT / "configs" / f"{PUBLISHED[name]}.py")
    agenda = make_agenda(name, comparison, "paper", "runs")
    assert agenda.budget.seeds == (3 if name == "transformer" else 5)
    assert len(agenda.runs) == agenda.budget.seeds * len(comparison.rivals)
    for run in agenda.runs:
        for path, _, new in differences(published, run.experiment):
            assert path == "seed" or path.startswith("optimizer"), (path, new)
        assert run.experiment.seed == run.seed
    optimizers = {run.label: run.experiment.optimizer for run in agenda.runs}
    assert optimizers["SGDM"] == LearnedSGDMConfig(alpha=0.1, g0=0.9)
    assert optimizers["UNF"] == published.optimizer
    assert optimizers["DeepSets"] == dataclasses.replace(published.optimizer, network=DeepSetsConfig((32, 32, 32)))
    assert ("NFN" in optimizers) == (name == "cnn")


def test_the_cpu_budget_of_the_mlp_is_spelled_out():
    """Runs of hours have been made with it: a change of any value would refuse to go on with them."""
    networks = {"UNF": UNFConfig((32, 32, 32), terms=None), "DeepSets": DeepSetsConfig((32, 32, 32))}
    agenda = make_agenda("mlp", load("mlp"), "cpu", "runs/paper")
    runs = {run.directory: run.experiment for run in agenda.runs}
    assert len(runs) == 9
    for label, network in networks.items():
        expected = MetaTrainConfig(
            task=MLPConfig(dataset="fashion_mnist", image_size=8, hidden=(32,), batch_size=128),
            optimizer=LearnedMomentumConfig(alpha=0.1, g0=0.9, beta=0.01, network=network),
            estimator=PESConfig(particles=16, sigma=0.01),
            unroll=UnrollConfig(horizon=2000, truncation=50, meta_loss="mean"),
            outer=OuterConfig(learning_rate=1e-3, clip_norm=1.0, decay_steps=10_000),
            held_out=HeldOutConfig(every=250, steps=2000, seeds=4),
            evaluation=EvaluationConfig(steps=2000, seeds=10),
            outer_steps=10_000,
            save_every=100,
        )
        assert runs[pathlib.Path(f"runs/paper/mlp-cpu-{label}-0")] == expected


def test_on_an_mlp_the_nfn_is_the_unf():
    """Why the MLP's comparison has no runs of it: the same theta, and the same steps, bit for bit."""
    problem = MLPConfig(dataset="digits", hidden=(4,), batch_size=16).make()
    params = problem.init(jax.random.key(1))
    grads = jax.tree.map(jnp.cos, params)
    steps = []
    for network in (UNFConfig((3,)), NFNConfig((3,))):
        optimizer = optimizer_of(LearnedMomentumConfig(network=network), problem)
        theta = optimizer.init(jax.random.key(0))
        transform = optimizer.opt_fn(theta)
        steps.append((theta, jax.jit(transform.update)(grads, transform.init(params), params)[0]))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), *steps)


@each
def test_every_rival_applies_to_the_smoke_task(name):
    agenda = make_agenda(name, load(name), "smoke", "runs")
    bench = Bench(agenda)
    assert list(bench.optimizers) == [rival.label for rival in agenda.config.rivals]
    assert bench.inner_steps == 2 * 5 * agenda.budget.experiment.estimator.particles
    assert agenda.title != agenda.config.title


CUT_SHORT = {"rnn": 500, "transformer": 300}  # to what an hour allows: theta is taken before the decay has ended


@each
def test_the_cpu_budget_fits_its_horizon(name):
    budget = load(name).budget("cpu")
    horizon = budget.experiment.unroll.horizon
    assert budget.experiment.evaluation.steps == budget.experiment.held_out.steps == horizon
    assert budget.experiment.outer_steps % budget.experiment.held_out.every == 0
    decay_steps = budget.experiment.outer.decay_steps
    assert budget.experiment.outer_steps == CUT_SHORT.get(name, decay_steps)
    assert decay_steps == {"mlp": 10_000, "cnn": 2000, "rnn": 1000, "transformer": 400}[name]


def test_a_plan_is_seed_0_of_every_rival_and_then_seed_1():
    agenda = make_agenda("toy", COMPARISON, "tiny", "runs")
    assert [run.name for run in agenda.runs] == ["SGDM, seed 0", "DeepSets, seed 0", "SGDM, seed 1", "DeepSets, seed 1"]
    assert [run.directory.name for run in agenda.runs][:2] == ["toy-tiny-SGDM-0", "toy-tiny-DeepSets-0"]
    assert agenda.runs[3].kept_race == agenda.races / "DeepSets-1.npz"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: COMPARISON.budget("huge"), "no budget 'huge'; the budgets are tiny, wild, missing"),
        (lambda: Rival("a/b"), "rival.label is part of a directory's name"),
        (lambda: Budget("a b", EXPERIMENT, 1), "budget.name is part of a directory's name"),
        (lambda: Budget("none", EXPERIMENT, 0), "budget.seeds must be at least 1, got 0"),
        (
            lambda: Budget("mixed", dataclasses.replace(EXPERIMENT, task=MixtureConfig((EXPERIMENT.task,))), 1),
            "task is a mixture",
        ),
        (lambda: dataclasses.replace(COMPARISON, rivals=(Rival("A"), Rival("A"))), "of different names"),
        (lambda: dataclasses.replace(COMPARISON, published=(Published("VeLO", 1.0, 0.1),)), r"\['VeLO'\], which are no rivals"),
        (lambda: ComparisonConfig("t", (), ()), "comparison.rivals must be one or more"),
        (
            lambda: Budget("x", dataclasses.replace(EXPERIMENT, optimizer=LearnedSGDMConfig()), 1).experiment_of(
                Rival("UNF", UNFConfig(terms=None)), 0
            ),
            "its network from the budget.s optimizer, which is LearnedSGDMConfig: give the rival an optimizer of its own",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
