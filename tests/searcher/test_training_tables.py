from __future__ import annotations

from dataclasses import replace

import pytest
from stored import ACCURACY, ablation_values, add_architecture

from nas.errors import StorageError


def test_ablations__a_variant_has_one_row_for_each_seed(database):
    digest = add_architecture(database)
    accuracy_id = database.add_accuracy(digest, "int8", ACCURACY, data="d")
    values = ablation_values(digest, accuracy_id)
    for seed, resampled in ((2**40, [0.1, 0.2]), (0, [0.3]), (0, [0.4])):
        database.add_ablation("s", seed=seed, resampled=resampled, **values)
    database.add_ablation("s", seed=0, resampled=[], **values | {"variant": "b", "position": 0})
    database.add_ablation("another", seed=0, resampled=[], **values)
    table = database.ablations("s")
    assert table["variant"].tolist() == ["b", "p4=dense", "p4=dense"]
    assert table["seed"].tolist() == [0, 0, 2**40]
    assert table["resampled"].tolist() == [[], [0.4], [0.1, 0.2]]
    assert set(table["map50_95"]) == {0.31}
    assert set(table["macs"]) == {8_000_000_000}
    rows = database.ablation_rows("s")
    assert [row.variant for row in rows] == ["p4=dense", "p4=dense", "b"]
    assert rows[0].recipe_values == {"loss": {"box": 2.5}}


def test_ablation__needs_a_stored_architecture(database):
    with pytest.raises(StorageError):
        database.add_ablation("s", seed=0, resampled=[], **ablation_values("unknown", None))
    assert database.ablations("s").empty


def test_training__is_kept_once_with_what_it_reached(database):
    values = {
        "purpose": "landmark",
        "name": "trial 3",
        "architecture": add_architecture(database),
        "precision": "fp32",
        "start": "scratch",
        "recipe": "r",
        "seed": 1,
        "iterations": 20,
        "seconds": 1.0,
    }
    database.add_training("s", replace(ACCURACY, map50_95=0.2), [0.1], **values)
    database.add_training("s", ACCURACY, [0.5, 0.6], **values)
    database.add_training("s", replace(ACCURACY, split="test", low=None), [], **values)
    validation, test = database.trainings("s", "landmark")
    assert (validation.split, validation.map50_95, validation.low) == ("validation", 0.31, 0.29)
    assert (validation.high, validation.map50, validation.artifact) == (0.33, 0.5, "engine")
    assert validation.resampled == [0.5, 0.6]
    assert (test.split, test.map50_95, test.low, test.resampled) == ("test", 0.31, None, [])
    assert database.trainings("s", "confirmation") == []
    database.delete_study("s")
    assert database.trainings("s", "landmark") == []


def test_report__the_latest_of_a_kind_counts(database):
    database.add_report("s", "trust", {"tau": 0.1})
    database.add_report("s", "trust", {"tau": 0.2})
    database.add_report("s", "worth", {"tau": 0.3})
    assert database.find_report("s", "trust") == {"tau": 0.2}
    database.delete_study("s")
    assert database.find_report("s", "trust") is None
