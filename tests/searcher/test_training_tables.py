from __future__ import annotations

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


def test_database__a_training_is_kept_once_and_the_latest_report_counts(database):
    database.add_architecture("a" * 8, space="space", text="text")
    values = {
        "purpose": "landmark",
        "name": "trial 3",
        "architecture": "a" * 8,
        "precision": "fp32",
        "start": "scratch",
        "recipe": "r",
        "seed": 1,
        "split": "validation",
        "artifact": "engine",
        "resampled": [0.5, 0.6],
        "iterations": 20,
        "seconds": 1.0,
    }
    database.add_training("s", **values, map50_95=0.4)
    database.add_training("s", **values, map50_95=0.5)
    database.add_training("s", **{**values, "split": "test"}, map50_95=0.3)
    assert [(row.split, row.map50_95) for row in database.trainings("s", "landmark")] == [
        ("validation", 0.5),
        ("test", 0.3),
    ]
    assert database.trainings("s", "confirmation") == []
    database.add_report("s", "trust", {"tau": 0.1})
    database.add_report("s", "trust", {"tau": 0.2})
    assert database.find_report("s", "trust") == {"tau": 0.2}
    database.delete_study("s")
    assert database.find_report("s", "trust") is None
    assert database.trainings("s", "landmark") == []
