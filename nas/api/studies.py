"""What can be asked of a stored study."""

from __future__ import annotations

from pathlib import Path

from nas.errors import StudyError
from nas.results.delivery import Delivered, deliver
from nas.results.explanation import Explanation
from nas.results.fronts import FrontDifference, side_of
from nas.results.trust import write_trust
from nas.results.worth import KIND, Worth
from nas.searcher.commands import command_on, first_search, reading
from nas.searcher.connection import NoDatabaseError
from nas.searcher.database import Database
from nas.searcher.importance import explain as run_explain
from nas.searcher.importance_sample import Sample
from nas.searcher.opening import study_names
from nas.searcher.progress import Listener, Silent
from nas.searcher.request import (
    Request,
    Workspace,
)
from nas.searcher.result import StudyResult
from nas.searcher.setting import open_setting
from nas.searcher.tables import RunRow
from nas.searcher.trust import Trust
from nas.searcher.trust_job import Effort, check_trust
from nas.searcher.upgrade import Upgrade, upgrade_study

__all__ = [
    "compare",
    "delivered_trial",
    "explain",
    "export",
    "front",
    "is_stored",
    "measure_study",
    "stored_request",
    "trust",
    "worth",
]


def stored_request(study: str | None, storage: str | None, workspace: Path) -> Request:
    """Return the request that a stored study was made with; the latest study if none is named.

    Raises:
        StorageError: there is no such database; none is made.
        StudyError: there is no such study.
    """
    place = Workspace(workspace)
    with (
        reading(study, storage, workspace),
        Database(storage or place.database_url, make=False) as database,
    ):
        run = _latest_run(database, study, first_search(storage, workspace))
    return Request.restored(run.arguments, study=run.study_name, storage=storage, workspace=place)


def _latest_run(database: Database, study: str | None, begin: str) -> RunRow:
    run = database.latest_run(study)
    if run is None:
        known = sorted(study_names(database)) if study else []
        raise StudyError(
            f"There is no study {study!r} in {database}."
            if study
            else f"There is no study in {database}.",
            f"There are: {', '.join(known)}." if known else f"Start one with: {begin}",
        )
    return run


def is_stored(study: str, *, storage: str | None, workspace: Path) -> bool:
    """Say whether a command has run on a study of that name."""
    try:
        with Database(storage or Workspace(workspace).database_url, make=False) as database:
            return bool(database.runs(study))
    except NoDatabaseError:
        return False


def front(request: Request) -> StudyResult:
    """Read a stored study.

    Raises:
        StudyError: there is no such study.
    """
    with Database(request.url, make=False) as database:
        return _load(database, request)


def delivered_trial(
    request: Request, result: StudyResult, *, otherwise: int | None = None
) -> int | None:
    """Return the trial of the network that a search confirmed and delivered.

    Args:
        request: from `stored_request`.
        result: the study.
        otherwise: returned if nothing was confirmed yet.

    Returns:
        None if what was delivered is no trial of the study, but what a plain rule took.
    """
    with Database(request.url, make=False) as database:
        stored = database.find_report(result.study, KIND)
    if stored is None:
        return otherwise
    winner, table = Worth.from_dict(stored).winner, result.scored
    same = (table["architecture"] == winner.architecture) & (table["precision"] == winner.precision)
    return None if table[same].empty else int(table[same].iloc[0]["trial"])


def compare(
    study: str | None,
    against: str | None = None,
    *,
    storage: str | None = None,
    workspace: str | Path = "studies",
) -> FrontDifference:
    """Compare the front of a study with that of another.

    Args:
        study: name; the latest if None.
        against: the other one; the parent of a re-targeted study if None.
        storage: as in `search`.
        workspace: as in `search`.

    Raises:
        StudyError: there is no such study, or none to compare with.
    """
    request = stored_request(study, storage, Path(workspace))
    if against is None and request.parent is None:
        raise StudyError(
            f"The study {request.study!r} was not re-targeted from another.", "Give --against."
        )
    other = stored_request(
        against or (request.parent.study if request.parent else None), storage, Path(workspace)
    )
    with Database(request.url, make=False) as database:
        old, new = _load(database, other), _load(database, request)
        return FrontDifference.of(side_of(old, database), side_of(new, database))


def explain(
    study: str | None = None, *, storage: str | None = None, workspace: str | Path = "studies"
) -> Explanation:
    """Estimate which choices of a stored study moved mAP and latency, and how surely.

    Args:
        study: name; the latest if None.
        storage: as in `search`.
        workspace: as in `search`.

    Raises:
        StudyError: there is no such study, or no candidate of it has a latency.
    """
    request = stored_request(study, storage, Path(workspace))
    with Database(request.url, make=False) as database:
        sample = Sample.load(database, request)
    return Explanation(run_explain(str(request.study), sample))


def trust(
    request: Request, effort: Effort | None = None, listener: Listener | None = None
) -> Trust:
    """Check whether the ranking of a stored study holds, by networks that are trained on their own.

    Whatever was trained for it before is not trained again. The report is stored with the study;
    `trust.html` and `trust.csv` lie in its folder.

    Args:
        request: from `stored_request`.
        effort: how many networks and seeds, and how long; 12 and 2 by the study's recipe if None.
        listener: hears how it goes.

    Raises:
        As `nas.searcher.trust_job.check_trust`.
    """
    listener = listener or Silent()
    with open_setting(request, listener) as setting:
        result = _load(setting.database, request)
        found = check_trust(setting, result, effort or Effort(), listener)
    write_trust(found, request.workspace.bundle(result.study))
    return found


def worth(request: Request) -> Worth:
    """Read what a stored study was worth beside plain choices; nothing is trained or measured.

    Raises:
        StudyError: its winner was not compared with anything yet.
    """
    with Database(request.url, make=False) as database:
        stored = database.find_report(str(request.study), KIND)
    if stored is None:
        raise StudyError(
            f"The winner of the study {request.study!r} was not compared with anything yet.",
            f"Run: {command_on(request, 'search', '--resume')}",
        )
    return Worth.from_dict(stored)


def measure_study(request: Request, listener: Listener | None = None) -> Upgrade:
    """Measure what a stored study predicted or estimated, and put its numbers right in place.

    Args:
        request: from `stored_request`; its hardware must be attached.
        listener: hears how it goes.

    Raises:
        As `nas.searcher.upgrade.upgrade_study`.
    """
    with Database(request.url, make=False) as database:
        return upgrade_study(request, database, listener or Silent())


def export(request: Request, listener: Listener, trial: int | None = None) -> Delivered:
    """Deliver the winner of a stored study, or one of its trials.

    Raises:
        StudyError: there is no such study or trial, or nothing keeps the budget.
        BudgetError: nothing keeps the budget when measured again.
    """
    with open_setting(request, listener) as setting:
        result = _load(setting.database, request)
        return deliver(setting, result, listener, trial)


def _load(database: Database, request: Request) -> StudyResult:
    if request.study is None:
        raise StudyError("A study has a name.", "Give it with --study.")
    result = StudyResult.load(database, request.study, request.budget, request.score)
    if result.evaluations.empty:
        raise StudyError(
            f"The study {request.study!r} in {database} has no evaluations.",
            "Look at its name, or search first.",
        )
    return result
