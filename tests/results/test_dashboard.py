from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import threading
import urllib.error
import urllib.request
import uuid

import pytest
from optuna_dashboard import _app

from nas.errors import InputError, MissingPackageError, StorageError
from nas.results.dashboard import application, make_dashboard_server
from nas.searcher.database import Database
from nas.searcher.opening import delete_study, open_study
from nas.units import Budget

PARAMETERS = {"width": (16, 32, 48), "depth": (1, 2, 4)}
N_TRIALS = 9
SLOW = {2, 5, 8}
FRONT = {0, 1, 3, 4, 6, 7}


def search(url, budget_ms=10.0, n_trials=N_TRIALS, name="s"):
    """A study in which accuracy grows with latency, and every third trial is over budget."""
    names = {"parameters": PARAMETERS, "fingerprint": {"space": "s"}, "budget": Budget(budget_ms)}
    with Database(url) as database, open_study(database, name, "random", **names) as study:
        for _ in range(n_trials):
            proposal = study.ask()
            digest, step = f"d{proposal.number}", proposal.number + 1
            if proposal.number in SLOW:
                study.tell_infeasible(proposal, digest, latency_ms=10.0 + step)
            else:
                values = {"accuracy": step / 20, "latency_ms": step / 2}
                study.tell_feasible(proposal, digest, **values)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    path = tmp_path_factory.mktemp("searched") / "nas.db"
    search(f"sqlite:///{path}")
    return path


@pytest.fixture
def url(searched, tmp_path):
    return f"sqlite:///{shutil.copy(searched, tmp_path)}"


@contextlib.contextmanager
def served(url, **options):
    with make_dashboard_server(url, 0, **options) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def answer(address, method="GET", **headers):
    request = urllib.request.Request(address, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def study_of(url):
    with served(url) as address:
        return json.loads(answer(f"{address}/api/studies/1")[2])


def numbers(trials):
    return {trial["number"] for trial in trials}


def violated(trials):
    return {t["number"] for t in trials if any(value > 0 for value in t["constraints"])}


# What it shows


def test_application__every_trial_has_its_constraints(url):
    study = study_of(url)
    assert len(study["trials"]) == N_TRIALS
    assert all(trial["constraints"] for trial in study["trials"])
    assert violated(study["trials"]) == SLOW
    assert study["objective_names"] == ["mAP50-95", "latency_ms"]


def test_application__the_front_is_of_feasible_trials(url):
    application(url)  # making a second one changes nothing
    assert numbers(study_of(url)["best_trials"]) == FRONT


def test_application__an_infeasible_trial_dominates_nothing(url):
    study = study_of(url)
    trials = {trial["number"]: trial for trial in study["trials"]}
    assert all(trials[number]["values"][0] == 0 for number in SLOW)
    assert not SLOW & numbers(study["best_trials"])


def test_application__a_smaller_budget_shows_at_once(url):
    search(url, budget_ms=2.2, n_trials=0)
    study = study_of(url)
    assert violated(study["trials"]) == set(range(N_TRIALS)) - {0, 1, 3}
    assert numbers(study["best_trials"]) == {0, 1, 3}


def test_application__a_larger_budget_does_not_make_a_placeholder_a_score(url):
    search(url, budget_ms=100.0, n_trials=0)
    study = study_of(url)
    assert violated(study["trials"]) == SLOW
    assert numbers(study["best_trials"]) == FRONT


# What it refuses


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["/api/studies", "/api/studies/1"])
def test_application__changes_are_refused(url, method, path):
    with served(url) as address:
        status, headers, _ = answer(address + path, method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")
        assert len(json.loads(answer(f"{address}/api/studies")[2])["study_summaries"]) == 1


def test_application__says_why_it_refuses_where_its_pages_look_for_it(url):
    with served(url) as address:
        _, headers, body = answer(f"{address}/api/studies/1/note", "PUT")
    assert headers["Content-Type"] == "application/json"
    assert "read-only" in json.loads(body)["reason"]


@pytest.mark.parametrize("path", ["/dashboard", "/dashboard/studies/1/note"])
def test_application__pages_hide_what_is_refused_and_are_whole(url, path):
    with served(url) as address:
        status, headers, page = answer(address + path)
        unchanged = {"If-Modified-Since": "Fri, 31 Dec 2100 00:00:00 GMT"}
        assert answer(address + path, **unchanged)[::2] == (status, page)
    assert status == 200
    assert int(headers["Content-Length"]) == len(page)
    assert "script-src 'self'" in headers["Content-Security-Policy"]
    assert b"DriveFileRenameOutlineIcon" in page.partition(b"</head>")[0]
    assert page.rstrip().endswith(b"</html>")


def test_application__its_connection_cannot_write(url, monkeypatch):
    opened = []
    monkeypatch.setattr(_app, "get_storage", lambda storage: opened.append(storage) or storage)
    application(url)
    with opened[0].engine.connect() as connection, pytest.raises(Exception, match="readonly"):
        connection.exec_driver_sql("DELETE FROM trials")


def test_application__other_names_of_this_machine_are_refused(url):
    with served(url) as address:
        assert answer(f"{address}/api/studies", Host="evil.example")[0] == 403
        assert answer(f"{address}/api/studies", Host="localhost:8080")[0] == 200


def test_application__artifacts_cannot_act_as_the_dashboard(url, tmp_path):
    with served(url, artifact_dir=tmp_path) as address:
        _, headers, _ = answer(f"{address}/artifacts/1/1/nothing")
    assert headers["Content-Security-Policy"] == "sandbox"


@pytest.mark.parametrize("host", ["0.0.0.0", "example.org", "192.168.0.1", ""])
def test_server__other_machines_are_refused(url, host):
    with pytest.raises(InputError, match="this machine"):
        make_dashboard_server(url, 0, host)


def test_server__other_machines_can_be_allowed(url):
    with make_dashboard_server(url, 0, "0.0.0.0", allow_remote=True) as server:
        assert server.server_port


def test_server__a_port_that_is_taken(url):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"{port}: another program") as error:
            make_dashboard_server(url, port)
    assert error.value.remedy


def test_server__a_port_that_is_none(url):
    with pytest.raises(InputError, match="70000"):
        make_dashboard_server(url, 70000)


def test_application__a_database_that_does_not_exist(tmp_path):
    with pytest.raises(StorageError, match="no database at"):
        application(f"sqlite:///{tmp_path}/nas.db")
    assert not list(tmp_path.iterdir())


def test_application__a_database_without_studies(tmp_path):
    url = f"sqlite:///{tmp_path}/nas.db"
    Database(url).close()
    with pytest.raises(StorageError, match="has none"):
        application(url)


def test_application__without_its_package(url, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna_dashboard._app", None)
    with pytest.raises(MissingPackageError, match="dashboard"):
        application(url)


@pytest.mark.postgresql
def test_application__on_a_server():
    if not (url := os.environ.get("NAS_TEST_POSTGRESQL")):
        pytest.skip("NAS_TEST_POSTGRESQL names no server")
    name = uuid.uuid4().hex
    search(url, name=name)
    with served(url) as address:
        studies = json.loads(answer(f"{address}/api/studies")[2])["study_summaries"]
        number = next(study["study_id"] for study in studies if study["study_name"] == name)
        study = json.loads(answer(f"{address}/api/studies/{number}")[2])
    assert violated(study["trials"]) == SLOW
    assert numbers(study["best_trials"]) == FRONT
    with Database(url) as database:
        delete_study(database, name)


# What a person sees

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1800",
]
# By plot: name, colour and number of points of every trace that has points.
TRACES = """
const plots = [...document.querySelectorAll('.js-plotly-plot')];
return Object.fromEntries(plots.map(plot => [plot.id,
    plot.data.map(trace => [trace.name, trace.marker?.color, (trace.x ?? []).length])
             .filter(trace => trace[2])]))
"""
GREY = "#cccccc"
# By icon of a button: whether it is shown.
SHOWN = """
const icons = [...document.querySelectorAll('button svg[data-testid]')];
return Object.fromEntries(icons.map(icon => [icon.dataset.testid,
    icon.closest('button').offsetParent !== null]))
"""
# By page: buttons that it has; all of them but the first change something.
BUTTONS = {
    "/dashboard": ["RefreshIcon", "AddBoxIcon", "DriveFileRenameOutlineIcon", "DeleteIcon"],
    "/dashboard/studies/1/note": ["MenuIcon", "EditIcon"],
    "/dashboard/studies/1/trials": ["FilterListIcon", "EditIcon"],
}


@pytest.fixture
def browser(tmp_path):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        message = "no chromium or chromedriver on the path"
        pytest.fail(message) if os.environ.get("NAS_REQUIRE_BROWSER") == "1" else pytest.skip(
            message
        )
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path}/browser"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield driver
    driver.quit()


@pytest.mark.browser
def test_dashboard__shows_no_button_that_is_refused(url, browser):
    from selenium.webdriver.support.ui import WebDriverWait

    with served(url) as address:
        for path, icons in BUTTONS.items():

            def looked_at(browser, icons=icons):
                shown = browser.execute_script(SHOWN)
                return [shown[icon] for icon in icons] if shown.keys() >= set(icons) else None

            browser.get(address + path)
            first, *others = WebDriverWait(browser, 300).until(looked_at)
            assert first
            assert not any(others)
        browser.get("about:blank")


@pytest.mark.browser
def test_dashboard__draws_infeasible_trials_as_such(url, browser):
    from selenium.webdriver.support.ui import WebDriverWait

    def drawn(browser):
        traces = browser.execute_script(TRACES)
        return traces if {"graph-pareto-front", "plot-history"} <= traces.keys() else None

    with served(url) as address:
        browser.get(f"{address}/dashboard/studies/1")
        traces = WebDriverWait(browser, 300).until(drawn)
        browser.get("about:blank")
    pareto = traces["graph-pareto-front"]
    assert [points for _, colour, points in pareto if colour == GREY] == [len(SLOW)]
    assert sum(points for _, _, points in pareto) == N_TRIALS
    history = {name: points for name, _, points in traces["plot-history"]}
    assert history["Infeasible Trial of s"] == len(SLOW)
    assert history["mAP50-95 of s"] == N_TRIALS - len(SLOW)
