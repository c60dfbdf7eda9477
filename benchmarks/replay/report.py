"""The figures of all searches as one value, as a Markdown table and as pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .catalog import NULL_MODELS, OPTUNA
from .runs import Group, Sample
from .scores import (
    curves,
    mean_reaches,
    probability,
    queries_until,
    summary,
    volumes,
)
from .tables import Values
from .tasks import Task

OURS, OURS_FOR_BUDGETS = "autonac", "autonac_budgets"
_COUNTS = (1, 10, 20, 30, 40, 60, 100, 200, 240)
_BETWEEN = (0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75)
"""Quantiles of latency between those at which a front is judged: no search is told of them."""
_SHOWN = 20  # curves are stored at every count up to here, then at every fifth
_COLOURS = {
    OURS: "#1a7f37",
    OURS_FOR_BUDGETS: "#116329",
    "random": "#9aa5b1",
    "evolution": "#b35900",
    "local_search": "#d4a72c",
    "optuna_tpe": "#1f6feb",
    "optuna_nsga2": "#8250df",
    "optuna_gp": "#cf222e",
    "slowest_first": "#57606a",
    "most_macs_first": "#afb8c1",
}
_TITLES = {
    OURS: "ours",
    OURS_FOR_BUDGETS: "ours, told the 8 budgets",
    "local_search": "local search",
    "optuna_tpe": "TPE",
    "optuna_nsga2": "NSGA-II",
    "optuna_gp": "GP",
    "slowest_first": "slowest first",
    "most_macs_first": "most MACs first",
}


def figures(groups: Iterable[Group], samples: Iterable[Sample]) -> dict[str, Any]:
    """Return group -> what is known of it, and of each method."""
    found: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda one: one.seed):
        found[sample.group, sample.method].append(sample)
    result = {}
    for group in groups:
        mine = {name: part for (owner, name), part in found.items() if owner == group.name}
        result[group.name] = _group(group, mine)
    return result


def _group(group: Group, samples: dict[str, list[Sample]]) -> dict[str, Any]:
    regrets = {name: curves(group, part) for name, part in samples.items()}
    methods = {name: _method(group, part, regrets[name]) for name, part in samples.items()}
    for name, found in methods.items():
        if OURS in regrets and name != OURS and name not in NULL_MODELS:
            found["p_against_ours"] = _against(regrets[OURS], regrets[name], measure(group))
    first = group.tasks[0]
    about = {
        "measure": measure(group),
        "tuned_on": first.tuned_on,
        "networks": [task.pool.n_allowed for task in group.tasks],
        "budgets_ms": [round(ms, 4) for task in group.tasks for ms in task.budgets_ms],
        "optimum": [round(float(value), 4) for task in group.tasks for value in task.optima],
        "noise": first.noise,
    }
    if first.front:
        about["queries_to_regret_after_60_of"] = _needed(regrets)
    return {**about, "methods": methods}


def measure(group: Group) -> str:
    """Say what a group is judged by: `front`, `noise`, `budgets` or `best`."""
    task = group.tasks[0]
    if task.front:
        return "front"
    if task.noise:
        return "noise"
    return "budgets" if len(group.tasks) > 1 else "best"


def _needed(regrets: dict[str, Values]) -> dict[str, dict[str, int | None]]:
    found = {}
    for ours in (OURS, OURS_FOR_BUDGETS):
        if ours in regrets and regrets[ours].shape[1] >= 60:
            target = float(regrets[ours].mean(axis=0)[59])
            found[ours] = {name: mean_reaches(one, target) for name, one in regrets.items()}
    return found


def _method(group: Group, samples: Sequence[Sample], regret: Values) -> dict[str, Any]:
    counts = [n for n in _COUNTS if n <= regret.shape[1] and not np.isnan(regret[0, n - 1])]
    shown = [n for n in range(1, regret.shape[1] + 1) if n <= _SHOWN or n % 5 == 0]
    shown = [n for n in shown if not np.isnan(regret[0, n - 1])]
    result = summary(regret, counts)
    result["cpu_s_per_search"] = round(
        float(np.mean([run.cpu_s for sample in samples for run in sample.runs])), 3
    )
    result["regret"] = _curve(regret, shown, "p90")
    if group.tasks[0].front:
        result["regret_between"] = _between(group.tasks[0], samples)
        result["hypervolume"] = _curve(volumes(group, samples), shown, "p10")
    return result


def _between(task: Task, samples: Sequence[Sample]) -> dict[str, float]:
    """Mean regret at the budgets in between, by number of queries."""
    budgets = np.quantile(task.pool.latency_ms, _BETWEEN)
    between = replace(task, budgets_ms=tuple(budgets.tolist()))
    curves = [between.regret(sample.runs[0].rows) for sample in samples]
    counts = [n for n in _COUNTS if n <= min(map(len, curves))]
    return {str(n): round(float(np.mean([one[n - 1] for one in curves])), 4) for n in counts}


def _curve(values: Values, counts: Sequence[int], worse: str) -> dict[str, list[float]]:
    at = values[:, np.array(counts) - 1]
    tail = np.quantile(at, int(worse[1:]) / 100, axis=0)
    rows = {"mean": at.mean(axis=0), "median": np.median(at, axis=0), worse: tail}
    kept = {name: [round(float(value), 4) for value in row] for name, row in rows.items()}
    return {"queries": list(counts), **kept}


def _against(ours: Values, theirs: Values, judged: str) -> dict[str, float]:
    """Compare with as many queries for both: what the one found with more does not count."""
    length = min(ours.shape[1], theirs.shape[1])
    ours, theirs = ours[:, :length], theirs[:, :length]
    if judged == "best":
        pairs = {"queries_until_near": [queries_until(part, 0.1) for part in (ours, theirs)]}
        pairs["queries_until_optimum"] = [queries_until(part, 0.0) for part in (ours, theirs)]
        return {name: probability(*pair) for name, pair in pairs.items()}
    counts = [n for n in {"budgets": (20, 40)}.get(judged, (60,)) if n <= ours.shape[1]]
    return {f"regret_after_{n}": probability(ours[:, n - 1], theirs[:, n - 1]) for n in counts}


def markdown(result: dict[str, Any]) -> str:
    """Draw a table: a row for each group and measure, a column for each method."""
    names = [name for name in _COLOURS if any(name in one["methods"] for one in result.values())]
    lines = [
        "| table, device | measure | " + " | ".join(_TITLES.get(n, n) for n in names) + " |",
        "|---|---|" + "---|" * len(names),
    ]
    for group, about in result.items():
        table, device, _ = group.split("/")
        title = f"{table}, {device}" + (" (tuned on)" if about["tuned_on"] else "")
        for label, cells in _rows(about):
            shown = " | ".join(cells.get(name, "") for name in names)
            lines.append(f"| {title} | {label} | {shown} |")
    return "\n".join(lines) + "\n"


def p_values(result: dict[str, Any]) -> str:
    """Draw a table: Mann-Whitney p, two-sided, of each method's searches against ours."""
    names = [name for name in _COLOURS if name != OURS and name not in NULL_MODELS]
    names = [name for name in names if any(name in one["methods"] for one in result.values())]
    lines = [
        "| table, device | measure | " + " | ".join(_TITLES.get(n, n) for n in names) + " |",
        "|---|---|" + "---|" * len(names),
    ]
    for group, about in result.items():
        found = {n: about["methods"].get(n, {}).get("p_against_ours", {}) for n in names}
        measures = dict.fromkeys(key for one in found.values() for key in one)
        for key in measures:
            cells = " | ".join(f"{found[n][key]:.1g}" if key in found[n] else "" for n in names)
            lines.append(f"| {group} | {key.replace('_', ' ')} | {cells} |")
    return "\n".join(lines) + "\n"


def searches(result: dict[str, Any]) -> str:
    """Say how many searches of each method a table's figures are of, where they are fewer."""
    most = max(one["searches"] for about in result.values() for one in about["methods"].values())
    fewer: dict[str, set[int]] = defaultdict(set)
    for about in result.values():
        for name, one in about["methods"].items():
            if name not in NULL_MODELS and one["searches"] < most:
                fewer[_TITLES.get(name, name)].add(one["searches"])
    words = [f"{name} {min(counts)} on some tables" for name, counts in fewer.items()]
    limit = "`> n`: not reached within the n queries that a search had; p is of as many for both."
    return f"{limit} {most} searches each" + (f"; {', '.join(words)}." if words else ".")


def _rows(about: dict[str, Any]) -> list[tuple[str, dict[str, str]]]:
    methods, judged = about["methods"], about["measure"]
    if judged == "best":
        near = {name: _until(one, "near", "p90") for name, one in methods.items()}
        best = {name: _until(one, "optimum") for name, one in methods.items()}
        return [
            ("queries to regret <= 0.1, median / 90th pct", near),
            ("queries to the optimum, median", best),
        ]
    if judged == "noise":
        cells = {name: _after(one, 60) for name, one in methods.items()}
        return [("true regret of the pick after 60, mean", cells)]
    if judged == "budgets":
        cells = {name: f"{_after(one, 20)} / {_after(one, 40)}" for name, one in methods.items()}
        nulls = {name: _after(methods[name], 1) for name in NULL_MODELS if name in methods}
        return [
            ("8 budgets: mean regret after 20 / 40", cells),
            ("the same after 1: the null models", nulls),
        ]
    cells = {name: _after(one, 60) for name, one in methods.items()}
    rows = [("front: mean regret over 8 budgets after 60", cells)]
    between = {
        name: f"{one['regret_between']['60']:.3f}"
        for name, one in methods.items()
        if "60" in one["regret_between"]
    }
    rows.append(("the same at 7 budgets between them, that none is told", between))
    for ours, needed in about["queries_to_regret_after_60_of"].items():
        counts = {
            name: str(count) if count else f"> {methods[name]['regret']['queries'][-1]}"
            for name, count in needed.items()
        }
        rows.append((f"queries to that mean regret of: {_TITLES[ours]}", counts))
    return rows


def _until(method: dict[str, Any], what: str, *more: str) -> str:
    found = method["queries_until"][what]
    last = method["regret"]["queries"][-1]
    return " / ".join(f"> {last}" if found[k] is None else str(found[k]) for k in ("median", *more))


def _after(method: dict[str, Any], count: int) -> str:
    found = method["regret_after"].get(str(count))
    return f"{found['mean']:.3f}" if found else "-"


def goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare ours with what was aimed at; only for the groups that were run."""
    rows = []
    for group, (name, path, aim) in _aims():
        methods = result.get(group, {}).get("methods", {})
        for ours in (OURS, OURS_FOR_BUDGETS):
            value = methods.get(ours)
            if value is None:
                continue
            for key in path:
                value = value.get(key) if value is not None else None
            about = {"table": group, "method": ours, "measure": name, "goal": aim}
            rows.append({**about, "value": value, "met": value is not None and value <= aim})
    return rows + _rivals(result)


def _aims() -> list[tuple[str, tuple[str, tuple[str, ...], float]]]:
    found: list[tuple[str, tuple[str, tuple[str, ...], float]]] = []
    path: tuple[str, ...] = ("queries_until", "optimum", "median")
    found.append(("nb201_cifar10/any/best", ("queries to the optimum, median", path, 32.0)))
    for device, median, p90 in (("any/best", 25.0, 50.0), ("tx2_tensorrt/median", 50.0, 90.0)):
        for which, aim in (("median", median), ("p90", p90)):
            path = ("queries_until", "near", which)
            name = f"queries to regret <= 0.1, {which}"
            found.append((f"nb201_cifar10/{device}", (name, path, aim)))
    regrets = (
        ("nb201_cifar10/any/noise", 60, 0.15),
        ("yolobench_voc/a40_tensorrt/budget", 20, 0.10),
        ("yolobench_voc/a40_tensorrt/budget", 40, 0.005),
        ("yolobench_voc/a40_tensorrt/front", 60, 0.10),
    )
    for group, count, aim in regrets:
        path = ("regret_after", str(count), "mean")
        found.append((group, (f"mean regret after {count}", path, aim)))
    return found


def _rivals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """How many times the queries of ours the best of Optuna's samplers needs for a front."""
    group = "yolobench_voc/a40_tensorrt/front"
    methods = result.get(group, {}).get("methods", {})
    rivals = [name for name in OPTUNA if name in methods]
    rows = []
    for ours, needed in result.get(group, {}).get("queries_to_regret_after_60_of", {}).items():
        if rivals:
            counts = [needed[name] for name in rivals if needed[name] is not None]
            last = max(methods[name]["regret"]["queries"][-1] for name in rivals)
            ratio = round((min(counts) if counts else last) / needed[ours], 2)
            name = "queries of Optuna's best over ours, to the mean regret of ours after 60"
            row = {"table": group, "method": ours, "measure": name, "goal": 4.0, "value": ratio}
            rows.append({**row, "met": ratio >= 4, "value_is_a_lower_bound": not counts})
    return rows


def draw(result: dict[str, Any], what: str) -> go.Figure:
    """Draw curves over queries: one panel for each group, mean as a line, 90th percentile dotted.

    Args:
        result: of `figures`.
        what: `regret` or `hypervolume`.
    """
    groups = [
        name for name, one in result.items() if any(what in m for m in one["methods"].values())
    ]
    columns = 2
    panels = make_subplots(-(-len(groups) // columns), columns, subplot_titles=groups)
    shown: set[str] = set()
    for place, group in enumerate(groups):
        where = {"row": place // columns + 1, "col": place % columns + 1}
        for name, method in result[group]["methods"].items():
            for trace in _traces(name, method[what], "p90" if what == "regret" else "p10"):
                trace.showlegend = name not in shown
                shown.add(name)
                panels.add_trace(trace, **where)
    if what == "regret":
        panels.update_yaxes(type="log", range=[-2.5, 1.5])
    panels.update_xaxes(title="accuracy queries", type="log")
    title = {"regret": "Regret, points of accuracy", "hypervolume": "Share of the hypervolume"}
    panels.update_layout(
        title=f"{title[what]}: mean (line), 90th percentile of searches (dotted: the worse end)",
        template="plotly_white",
        width=1200,
        height=380 * -(-len(groups) // columns),
    )
    return panels


def _traces(name: str, curve: dict[str, list[float]], worse: str) -> list[go.Scatter]:
    common = {"x": curve["queries"], "mode": "lines", "legendgroup": name}
    label = _TITLES.get(name, name)
    colour = _COLOURS.get(name, "#000000")
    mean = go.Scatter(y=curve["mean"], name=label, line={"color": colour}, **common)
    dotted = {"color": colour, "dash": "dot", "width": 1}
    return [mean, go.Scatter(y=curve[worse], name=label, line=dotted, hoverinfo="skip", **common)]
