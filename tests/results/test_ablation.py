from __future__ import annotations

import io
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from nas.errors import InputError, StorageError, StudyError
from nas.results.ablation import (
    AblationResult,
    Estimate,
    bootstrap_difference,
    holm,
    independent_difference,
    paired_p,
    t_interval,
)
from nas.results.ablation_view import ablation_figure, ablation_table, write_ablation
from nas.searcher.database import Database

values = st.lists(st.floats(-1, 1).map(lambda value: round(value, 4)), min_size=2, max_size=8)
ARGUMENTS = {
    "subject": "digits:middle",
    "iterations": 1200,
    "data_name": "digits",
    "device": "a CPU",
}


# Statistics


@given(values)
def test_t_interval__is_that_of_the_paired_t_test(differences):
    assume(np.ptp(differences) > 1e-5)  # scipy warns of what has no spread
    found = t_interval(differences)
    test = stats.ttest_1samp(differences, 0)
    low, high = test.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert paired_p(differences) == pytest.approx(test.pvalue)
    # The interval excludes 0 exactly if the test says so at 5 %.
    if abs(test.pvalue - 0.05) > 1e-6:
        assert (found.low > 0 or found.high < 0) == (test.pvalue < 0.05)


@pytest.mark.parametrize(("seeds", "quantile"), [(2, 12.706), (3, 4.303), (5, 2.776), (31, 2.042)])
def test_t_interval__tabulated_quantiles(seeds, quantile):
    sample = np.linspace(0, 1, seeds)
    half = quantile * sample.std(ddof=1) / math.sqrt(seeds)
    found = t_interval(sample.tolist())
    assert (found.value, found.high - found.value) == pytest.approx((0.5, half), rel=1e-3)


def test_t_interval__holds_the_truth_19_times_in_20():
    samples = np.random.default_rng(0).normal(0.3, 0.1, (4000, 3)).tolist()
    found = [t_interval(sample) for sample in samples]
    held = np.mean([each.low <= 0.3 <= each.high for each in found])
    assert held == pytest.approx(0.95, abs=0.012)


def test_paired_p__without_spread():
    assert paired_p([0.0, 0.0]) == 1
    assert paired_p([0.5, 0.5]) == 0


@pytest.mark.parametrize("function", [t_interval, paired_p])
def test_statistics__one_value_has_no_spread(function):
    with pytest.raises(InputError, match="at least 2"):
        function([0.5])


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=50).map(lambda draws: [*draws, 2.0]),
    st.floats(-0.5, 0.5),
)
def test_bootstrap_difference__what_both_share_cancels(draws, shift):
    found = bootstrap_difference(shift, [draw + shift for draw in draws], draws)
    assert (found.low, found.high) == pytest.approx((shift, shift))


def test_bootstrap_difference__draws_of_one_image_know_no_other():
    found = bootstrap_difference(0.01, [0.13] * 5, [0.12] * 5)
    assert math.isnan(found.low)
    assert found.verdict("better", "worse") == "no difference seen"
    same = bootstrap_difference(0.0, [0.13] * 5, [0.13] * 5)
    assert (same.low, same.high) == (0, 0)


def test_bootstrap_difference__needs_the_same_draws():
    with pytest.raises(InputError, match="equally many draws, got 2 and 1"):
        bootstrap_difference(0.0, [0.1, 0.2], [0.1])
    with pytest.raises(InputError, match="got 0 and 0"):
        bootstrap_difference(0.0, [], [])


estimates = st.tuples(st.floats(0.1, 9), st.floats(0, 1), st.floats(0, 1)).map(
    lambda each: Estimate(each[0], each[0] - each[1], each[0] + each[2])
)


@given(estimates, estimates)
def test_independent_difference__mirrors_when_turned_round(one, other):
    forth, back = independent_difference(one, other), independent_difference(other, one)
    assert (forth.value, forth.low, forth.high) == pytest.approx(
        (-back.value, -back.high, -back.low)
    )
    # Wider than each of the two alone, narrower than both added up.
    assert forth.value - forth.low >= max(one.value - one.low, other.high - other.value) - 1e-12
    assert forth.value - forth.low <= one.value - one.low + other.high - other.value + 1e-12


@given(estimates, st.floats(0, 1), st.floats(0, 1))
def test_independent_difference__symmetric_errors_add_in_squares(one, ours, theirs):
    a = Estimate(one.value, one.value - ours, one.value + ours)
    b = Estimate(1.0, 1.0 - theirs, 1.0 + theirs)
    assert independent_difference(a, b).high == pytest.approx(
        one.value - 1 + math.hypot(ours, theirs)
    )


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.001, 0.999))
def test_holm__rejects_what_the_stepwise_procedure_rejects(p_values, level):
    adjusted = holm(p_values)
    rejected = set()
    for step, index in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[index] * (len(p_values) - step) > level:
            break
        rejected.add(int(index))
    assert {index for index, p in enumerate(adjusted) if p <= level} == rejected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.1, 0.2, "up"), (-0.2, -0.1, "down"), (-0.1, 0.1, "no difference seen")],
)
def test_verdict__only_where_the_interval_excludes_0(low, high, expected):
    assert Estimate(0.0, low, high).verdict("up", "down") == expected


def test_verdict__an_unknown_error_shows_nothing():
    assert Estimate(0.5).verdict("up", "down") == "no difference seen"


# Results


def training(variant, seed, map50_95, *, changed="", architecture="a", ms=1.0, recipe="r"):
    generator = np.random.default_rng(seed)
    return {
        "variant": variant,
        "seed": seed,
        "kind": "choice" if changed else "baseline",
        "changed": changed,
        "before": "none" if changed else "",
        "after": variant if changed else "",
        "architecture": architecture,
        "precision": "fp32",
        "recipe": f"{recipe}{seed}",
        "map50_95": map50_95,
        "map50_95_low": map50_95 - 0.05,
        "map50_95_high": map50_95 + 0.05,
        "map50": map50_95 + 0.1,
        "split": "validation",
        "artifact": "engine",
        "images": 300,
        "resampled": (map50_95 + generator.normal(0, 0.02, 200)).tolist(),
        "latency_ms": ms,
        "latency_low_ms": ms - 0.01,
        "latency_high_ms": ms + 0.02,
        "latency_source": "measured",
        "parameters": 45_000,
        "macs": 2_000_000,
        "cpu_s_per_step": 0.1 * (1 + seed / 10) * (2 if changed else 1),
        "peak_bytes": 2**20 * (100 + seed),
    }


def result_of(*rows):
    return AblationResult("s", ARGUMENTS, pd.DataFrame(rows))


@pytest.fixture
def three_seeds():
    rows = []
    for seed, noise in enumerate((0.0, 0.03, -0.02)):
        dense = {"changed": "p4", "architecture": "b", "ms": 1.2}
        rows += [
            training("baseline", seed, 0.50 + noise),
            training("p4=dense", seed, 0.55 + noise + 0.001 * seed, **dense),
            training("control", seed, 0.55 + noise + 0.001 * seed, **dense),
            training("p3=dense", seed, 0.5 - noise, changed="p3", architecture="c", ms=1.005),
            training("box=5", seed, 0.4 + noise / 2, changed="loss.box", recipe="x"),
            training("box=2.5", seed, 0.50 + noise, changed="loss.box"),
        ]
    return result_of(*rows)


def row_of(result, variant):
    return result.table.set_index("variant").loc[variant]


def text_of(result, width=150):
    console = Console(file=io.StringIO(), width=width)
    console.print(ablation_table(result))
    return console.file.getvalue()


def test_table__differences_are_paired_by_seed(three_seeds):
    row = row_of(three_seeds, "p4=dense")
    expected = t_interval([0.05, 0.051, 0.052])
    found = (row["map_delta"], row["map_delta_low"], row["map_delta_high"])
    assert found == pytest.approx((expected.value, expected.low, expected.high))
    # The noise that seeds share would have hidden it: the means have far wider intervals.
    assert row["map50_95_low"] < row_of(three_seeds, "baseline")["map50_95"]
    assert (row["map_verdict"], row["map_covers"], row["map_pairs"]) == ("better", "seeds", 3)


def test_table__verdicts(three_seeds):
    verdicts = three_seeds.table.set_index("variant")["map_verdict"].to_dict()
    assert verdicts == {
        "baseline": "",
        "p4=dense": "better",
        "control": "better",
        "p3=dense": "no difference seen",
        "box=5": "worse",
        "box=2.5": "",
    }
    speeds = three_seeds.table.set_index("variant")["latency_verdict"].to_dict()
    assert speeds["p4=dense"] == "slower"
    assert speeds["p3=dense"] == "no difference seen"
    assert speeds["box=5"] == ""  # the same network


def test_table__what_is_the_baseline_has_no_difference(three_seeds):
    row = row_of(three_seeds, "box=2.5")
    assert (row["same_as"], row["map_delta"], row["latency_delta_ms"]) == ("baseline", 0, 0)
    assert math.isnan(row["map_delta_low"])


def test_table__names_of_one_network_count_once(three_seeds):
    assert row_of(three_seeds, "control")["same_as"] == "p4=dense"
    assert three_seeds.compared == 3
    table = three_seeds.table
    tested = table[table["variant"].isin(["p4=dense", "p3=dense", "box=5"])]
    assert tested["map_p_holm"].tolist() == pytest.approx(holm(tested["map_p"].tolist()))
    assert table["map_p_holm"].notna().sum() == 3


def test_table__latency_has_interval_share_and_source(three_seeds):
    row = row_of(three_seeds, "p4=dense")
    assert row["latency_delta_ms"] == pytest.approx(0.2)
    assert row["latency_delta_low_ms"] == pytest.approx(0.2 - math.hypot(0.01, 0.02))
    assert row["latency_delta_high_ms"] == pytest.approx(0.2 + math.hypot(0.02, 0.01))
    assert row["latency_delta_share"] == pytest.approx(0.2)
    assert row["latency_source"] == "measured"


def test_table__one_seed_has_a_paired_bootstrap_over_images():
    better = training("p4=dense", 0, 0.52, changed="p4", architecture="b")
    result = result_of(training("baseline", 0, 0.5), better)
    row = row_of(result, "p4=dense")
    assert (row["map_covers"], row["map_pairs"], row["map_verdict"]) == ("images", 1, "better")
    assert (row["map_delta_low"], row["map_delta_high"]) == pytest.approx((0.02, 0.02))
    assert (row["map50_95_low"], row["map50_95_high"]) == pytest.approx((0.47, 0.57))
    assert math.isnan(row["map_p"])
    assert "how much a second training would differ is not known" in result.caption
    assert "better †" in text_of(result)
    assert "Holm" not in result.caption


def test_table__a_study_that_was_stopped_pairs_what_it_has():
    rows = [training("baseline", seed, 0.5 + 0.1 * seed) for seed in (0, 1)]
    rows += [training("p4=dense", 1, 0.58, changed="p4", architecture="b")]
    result = result_of(*rows)
    row = row_of(result, "p4=dense")
    assert (row["seeds"], row["map_pairs"]) == (1, 1)
    assert row["map_delta"] == pytest.approx(-0.02)  # to the baseline with that seed, not its mean
    assert "1†" in text_of(result)


def test_table__without_a_baseline_nothing_is_compared():
    result = result_of(training("p4=dense", 0, 0.5, changed="p4", architecture="b"))
    row = row_of(result, "p4=dense")
    assert math.isnan(row["map_delta"])
    assert math.isnan(row["latency_delta_ms"])
    assert (row["map_verdict"], row["latency_verdict"]) == ("", "")
    assert "p4=dense" in text_of(result)


def test_table__no_map_lies_below_0():
    rows = [training("baseline", seed, value) for seed, value in enumerate((0.0, 0.2))]
    row = row_of(result_of(*rows), "baseline")
    assert row["map50_95_low"] == 0
    assert row["map50_95_high"] == 1


def test_caption__says_what_the_intervals_cover(three_seeds):
    for words in (
        "digits:middle: 3 seeds, 1200 iterations from scratch on digits",
        "engine on 300 validation images",
        "4.3 standard errors",
        "the images are the same throughout",
        "3 variants are compared",
        "Holm's correction",
        "Latency on a CPU",
    ):
        assert words in three_seeds.caption


def test_ablation_table__shows_every_number_with_its_interval(three_seeds):
    text = text_of(three_seeds)
    assert "1.200 [1.190, 1.220]" in text
    assert "+0.051 [+0.049, +0.053]" in text
    assert "+0.200 [+0.178, +0.222] +20%" in text
    assert "better *" in text
    assert "is baseline" in text
    assert "220 x2.00" in text
    assert "101 MB" in text
    assert max(len(line) for line in text.splitlines()) <= 150


def test_ablation_figure__dots_with_intervals_by_what_was_changed(three_seeds):
    figure = ablation_figure(three_seeds)
    names = [trace.name for trace in figure.data]
    assert names == ["p4", "p4", "p3", "p3", "loss.box", "loss.box"]
    left = [trace for trace in figure.data if trace.xaxis == "x"]
    assert [name for trace in left for name in trace.y] == [
        name for name in three_seeds.table["variant"] if name != "baseline"
    ]
    row = row_of(three_seeds, "p4=dense")
    assert left[0].x[0] == pytest.approx(row["map_delta"])
    assert left[0].error_x.array[0] == pytest.approx(row["map_delta_high"] - row["map_delta"])
    right = figure.data[1]
    assert right.x[0] == pytest.approx(0.2)
    assert "mAP50-95" in figure.layout.xaxis.title.text
    assert "ms" in figure.layout.xaxis2.title.text
    panels = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
    assert panels >= 28 * len(left)
    assert figure.layout.legend.yref == "container"  # below the panels, however many there are
    assert figure.layout.xaxis.exponentformat == "none"  # else 0.0002 mAP has a prefix


def test_write_ablation__csv_comes_back(three_seeds, tmp_path):
    table, trainings, figure = write_ablation(three_seeds, tmp_path / "deep")
    back = pd.read_csv(table, keep_default_na=False)
    assert back["variant"].tolist() == three_seeds.table["variant"].tolist()
    assert len(pd.read_csv(trainings)) == 18
    assert figure.stat().st_size > 1_000_000  # plotly itself is inside
    with pytest.raises(StorageError, match="cannot be written"):
        write_ablation(three_seeds, table / "folder")


def test_load__a_study_that_does_not_exist(tmp_path):
    with Database(f"sqlite:///{tmp_path}/nas.db") as database:
        with pytest.raises(StudyError, match="no ablation study 's'"):
            AblationResult.load(database, "s")
        digests = {"space": "s", "data": "d", "recipe": "r", "versions": {}, "arguments": {}}
        names = {"command": "ablate", "hardware": "cpu", "runtime": "openvino", "seed": 0}
        database.add_run("s", **digests, **names)
        with pytest.raises(StudyError, match="'s' has no training yet"):
            AblationResult.load(database)


def test_table__a_switch_is_compared_with_what_it_makes_up_for():
    rows = []
    for seed, noise in enumerate((0.0, 0.03, -0.02)):
        rows += [
            training("baseline", seed, 0.5 + noise),
            training("labelled_part", seed, 0.4 + noise, changed="x", recipe="l"),
            training("pseudo_labels", seed, 0.45 + noise, changed="y", recipe="p"),
        ]
    result = result_of(*rows)
    assert row_of(result, "labelled_part")["map_delta"] == pytest.approx(-0.1)
    pseudo = row_of(result, "pseudo_labels")
    assert pseudo["reference"] == "labelled_part"
    assert pseudo["map_delta"] == pytest.approx(0.05)
    assert pseudo["time_ratio"] == pytest.approx(2)  # of the baseline's
    assert "against labelled_part" in text_of(result)
