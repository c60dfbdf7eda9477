"""What landmarks say about a ranking, on figures whose answer is known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nas.searcher.landmarks import Landmark
from nas.searcher.tables import TrainingRow
from nas.searcher.trust import BASELINES, SCORE, Trust
from nas.space.architecture import Candidate
from nas.space.space import load_space

SPACE = load_space("digits")
CANDIDATE = SPACE.candidate(SPACE.anchors["min"], 10)


def landmarks_of(scores, latencies=None):
    latencies = latencies if latencies is not None else np.repeat(np.arange(1, 20), 3)
    return [
        Landmark(
            name=f"trial {number}",
            candidate=CANDIDATE.model_copy(update={"precision": f"p{number}"}),
            score=float(score),
            score_low=float(score) - 0.01,
            score_high=float(score) + 0.01,
            latency_ms=float(latency) + number / 1000,
            latency_source="measured",
            macs=int(1e6 * (1 + (7 * number) % len(scores))),
            parameters=1000 + number,
        )
        for number, (score, latency) in enumerate(zip(scores, latencies, strict=False))
    ]


def trust_of(scores, references, *, iterations=100, seeds=2, **values):
    landmarks = landmarks_of(scores)
    references = np.asarray(references)
    table = references[:, None] + np.zeros((1, seeds)) if references.ndim == 1 else references
    return Trust(
        **{
            "study": "s",
            "landmarks": landmarks,
            "references": table,
            "resampled": table.mean(axis=1)[:, None] + np.linspace(-0.02, 0.02, 41),
            "iterations": iterations,
            "recipe_iterations": 100,
            "threshold": 0.5,
            "failed": {},
            "cpu_s": 12.0,
            **values,
        }
    )


GOOD = np.linspace(0.3, 0.6, 15)
NOISE = np.random.default_rng(3).permutation(GOOD)


def test_verdict__equal_orders_pass():
    trust = trust_of(GOOD - 0.05, GOOD)
    assert trust.rankings[SCORE].overall.value == 1
    assert trust.verdict.outcome == "pass"
    assert "surely better than counting MACs" in trust.verdict.text
    assert "Short" not in trust.verdict.text


def test_verdict__opposite_orders_fail():
    trust = trust_of(GOOD[::-1], GOOD)
    assert trust.verdict.outcome == "fail"
    assert "does NOT hold" in trust.verdict.text
    assert "-1.00" in trust.verdict.text


def test_verdict__a_wide_interval_tells_nothing():
    scores = GOOD.copy()
    scores[:3], scores[9:12] = scores[:3][::-1], scores[9:12][::-1]
    trust = trust_of(scores, GOOD)
    overall = trust.rankings[SCORE].window
    assert overall.low < 0.5 < overall.high
    assert trust.verdict.outcome == "cannot tell"
    assert "More landmarks" in trust.verdict.text


def test_verdict__few_pairs_in_order_may_be_luck():
    trust = trust_of(GOOD[:8], GOOD[:8])
    assert (trust.rankings[SCORE].window.pairs, trust.rankings[SCORE].window.low) == (7, 1)
    assert trust.verdict.outcome == "cannot tell"
    assert "7 pairs of about equal latency may be in order by luck" in trust.verdict.text


def test_verdict__a_lower_threshold_is_easier():
    scores = GOOD + 0.02 * np.sin(np.arange(15) * 2.0)
    strict, easy = (trust_of(scores, GOOD, threshold=one) for one in (0.99, -0.9))
    assert strict.verdict.outcome != "pass"
    assert easy.verdict.outcome == "pass"


@pytest.mark.parametrize(
    ("scores", "references", "words"),
    [
        (GOOD[::-1], GOOD / 100, "no landmark reached more than 0.006"),
        (GOOD[::-1], GOOD / 4, "trained too little"),
        (GOOD[::-1], np.stack([GOOD, GOOD[::-1]], axis=1) + GOOD[:, None] / 99, "are noise"),
    ],
)
def test_verdict__references_that_cannot_judge_convict_nothing(scores, references, words):
    verdict = trust_of(scores, references).verdict
    assert verdict.outcome == "cannot tell"
    assert words in verdict.text


def test_verdict__references_that_are_all_equal_order_nothing():
    text = trust_of(GOOD, np.zeros_like(GOOD)).verdict.text
    assert "no landmark reached more than 0.000 mAP" in text
    assert "Nor can that of counting MACs be told." in text
    assert "nan" not in text


def test_verdict__a_short_check_says_that_it_underestimates():
    text = trust_of(GOOD, GOOD, iterations=25).verdict.text
    assert "25 of 100 steps" in text
    assert "underestimates" in text
    assert "nas trust" not in text  # it is kept, and where the study is may change


def test_table__reference_is_the_mean_over_seeds_with_an_interval_over_images():
    references = np.stack([GOOD - 0.01, GOOD + 0.01], axis=1)
    table = trust_of(GOOD, references).table
    assert table["reference"].to_numpy() == pytest.approx(GOOD)
    assert (table["reference_high"] - table["reference_low"]).to_numpy() == pytest.approx(0.038)
    assert table["reference_seed_1"].to_numpy() == pytest.approx(GOOD + 0.01)


def test_regrets__grow_with_what_keeps_the_budget():
    trust = trust_of(GOOD[::-1], GOOD)
    table = trust.regrets
    assert table["landmarks"].is_monotonic_increasing
    assert table["landmarks"].iloc[-1] == 15
    assert table[SCORE].iloc[-1] == pytest.approx(30)
    assert set(BASELINES) <= set(table.columns)


def test_as_dict__is_json_without_nan():
    constant = trust_of(np.full(15, 0.4), GOOD, seeds=1)
    report = constant.as_dict()
    text = json.dumps(report, allow_nan=False)
    assert json.loads(text) == report
    assert report["tau"][SCORE]["overall"]["value"] is None
    assert report["tau_between_seeds"]["value"] is None
    assert report["verdict"]["outcome"] == "cannot tell"
    assert set(report["tau"]) == {SCORE, *BASELINES}
    assert report["cpu_s"] == 12


def test_of_rows__leaves_out_what_lacks_a_seed():
    landmarks = landmarks_of(GOOD[:5])
    rows = [
        TrainingRow(
            architecture=one.candidate.architecture.digest,
            precision=one.candidate.precision,
            seed=seed,
            map50_95=0.1 * number + 0.01 * seed,
            resampled=[0.1, 0.2, 0.1 * number],
            seconds=2.0,
        )
        for number, one in enumerate(landmarks)
        for seed in (0, 1)
        if (number, seed) != (2, 1)
    ]
    values = {"iterations": 1, "recipe_iterations": 1, "threshold": 0.5, "failed": {}}
    trust = Trust.of_rows("s", landmarks[::-1], rows, **values)
    assert [one.name for one in trust.landmarks] == ["trial 0", "trial 1", "trial 3", "trial 4"]
    assert trust.references[:, 1].tolist() == pytest.approx([0.01, 0.11, 0.31, 0.41])
    assert trust.cpu_s == 16
    assert isinstance(trust.landmarks[0].candidate, Candidate)
