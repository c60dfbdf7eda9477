from __future__ import annotations

import dataclasses

import pytest
import torch

from nas.accuracy.digits import DigitsRecipe, digits_dataset
from nas.accuracy.recipe import Recipe
from nas.accuracy.training import train_detector
from nas.latency.runtimes.openvino import OpenVinoRuntime
from nas.model.detector import Detector
from nas.searcher.ablation_job import Job, run_jobs, train_and_score
from nas.searcher.engines import score_engine, trained_graph
from nas.space.architecture import Architecture, Candidate
from nas.space.space import load_space

SPACE = load_space("digits")


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory):
    """Scored on the images that it is trained on, so that a few steps find something."""
    recipe = DigitsRecipe(train=8, validation=1, test=1, size=96)
    made = digits_dataset(recipe, tmp_path_factory.mktemp("digits"))
    return dataclasses.replace(made, validation=made.train.subset("validation", range(8)))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def job_of(folder, head, iterations):
    data = SPACE.candidate(SPACE.anchors["min"], 10).architecture.canonical()
    data["head"] = {**data["head"], "kind": head}
    candidate = Candidate(architecture=Architecture.parse(data))
    recipe = Recipe(iterations=iterations, batch_size=4, seed=3)
    return Job("a job", candidate, recipe, "openvino", folder / "a.checkpoint")


@pytest.mark.parametrize(
    ("head", "precision"), [("decoupled", "fp32"), ("one_to_one", "fp32"), ("decoupled", "int8")]
)
def test_train_and_score__scores_as_a_search_does(few_digits, tmp_path, head, precision):
    job = job_of(tmp_path, head, 40)
    candidate = job.candidate.model_copy(update={"precision": precision})
    job = dataclasses.replace(job, candidate=candidate)
    steps = []
    outcome = train_and_score(job, few_digits, lambda at: steps.append(at.iteration))
    assert steps == list(range(1, 41))
    detector = Detector(job.candidate.architecture, seed=3)
    train_detector(detector, few_digits.train, job.recipe)
    split = few_digits.validation
    graph = trained_graph(detector, job.candidate, few_digits.train)
    expected, _ = score_engine(graph, job.candidate, OpenVinoRuntime(), split, weights="trained")
    assert outcome.accuracy == expected
    assert outcome.accuracy.agreement.images == 8
    assert outcome.accuracy.map50_95 > 0  # else anything equals anything; how much, rounding says


def test_run_jobs__continues_from_checkpoints_and_counts_all_steps(few_digits, tmp_path):
    job = job_of(tmp_path, "decoupled", 6)
    heard = []

    def stop(done, note):
        heard.append(done)
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run_jobs([job], few_digits, 1, stop))
    assert job.checkpoint.exists()
    ((_, outcome),) = run_jobs([job], few_digits, 1, lambda done, _: heard.append(done))
    assert heard == list(range(1, 7))
    assert outcome.iterations == 6
