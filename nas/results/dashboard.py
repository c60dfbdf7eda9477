"""optuna-dashboard on a study database: read-only, on this machine, and aware of the budget.

The dashboard 0.21 looks for constraints where Optuna 4 kept them. It would draw candidates over
budget as feasible ones and put them on the front. So the storage that it is given offers every
constraint at the old place as well, and the one function that computes the front leaves violated
trials out. Both are tested against the dashboard's own answers, and its version is pinned.

A trial counts as violated if it was over the budget of its time, or is over the study's budget of
now. The dashboard has no login, so it is served to this machine only, its database connection
cannot write, and requests that would change something are refused before it sees them. Its pages
hide the buttons of such requests: it has no option for that. Nor is there one to write here: our
tables know a study by its name, and would lose one that the dashboard renames.
"""

from __future__ import annotations

import errno
import ipaddress
import json
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import sqlalchemy
from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL, NullPool

from nas.errors import InputError, MissingPackageError, StorageError
from nas.searcher.connection import (
    create_engine,
    engine_options,
    masked,
    parse_url,
    require_file,
    set_pragmas,
    sqlite_path,
    translated,
)

__all__ = ["Application", "application", "make_dashboard_server", "serve"]

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
"""A WSGI application."""

_READING = ("GET", "HEAD")
_LOOPBACK = "127.0.0.1"
_FRONT = "get_pareto_front_trials"
_PAGES = "/dashboard"
_ICONS = ("AddBox", "Delete", "DriveFileRenameOutline", "Edit")  # of buttons that change a study
_HIDDEN = ",".join(f"button:has(svg[data-testid={icon}Icon])" for icon in _ICONS)
_STYLE = f"<style>{_HIDDEN}{{display:none!important}}</style>"
_REFUSAL = "this dashboard is read-only, as searches rely on what is stored."
_ABOUT_A_FILE = {"HTTP_IF_MODIFIED_SINCE", "HTTP_IF_NONE_MATCH", "HTTP_RANGE"}
_OF_A_FILE = {"accept-ranges", "content-length", "etag", "last-modified"}


def serve(
    url: str,
    port: int = 8080,
    host: str = _LOOPBACK,
    artifact_dir: Path | None = None,
    *,
    allow_remote: bool = False,
) -> None:
    """Serve the dashboard until the process is interrupted.

    Args:
        url: of a database that has studies.
        port: where to listen; 0 takes a free one.
        host: a loopback address, unless `allow_remote`.
        artifact_dir: folder of Optuna's artifacts, if there are any.
        allow_remote: let other machines in; there is no login.

    Raises:
        InputError: the host is not this machine, or the port is taken or none.
        StorageError: the database does not exist, cannot be read, or has no studies.
        MissingPackageError: optuna-dashboard is not installed.
    """
    with make_dashboard_server(url, port, host, artifact_dir, allow_remote=allow_remote) as server:
        server.serve_forever()


def make_dashboard_server(
    url: str,
    port: int,
    host: str = _LOOPBACK,
    artifact_dir: Path | None = None,
    *,
    allow_remote: bool = False,
) -> WSGIServer:
    """Bind the server that `serve` runs; same arguments and errors."""
    if not (allow_remote or _is_loopback(host)):
        raise InputError(
            f"The dashboard has no login, so its host must be this machine, got {host!r}.",
            "Use 127.0.0.1, through an SSH tunnel if need be, or allow remote access explicitly.",
        )
    app = application(url, artifact_dir)
    try:
        return make_server(
            host,
            port,
            app if allow_remote else _for_this_machine(app),
            server_class=_Server,
            handler_class=_QuietHandler,
        )
    except (OSError, OverflowError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        raise InputError(
            f"The dashboard needs a free port, and cannot listen on {host}:{port}: "
            f"{'another program does' if taken else error}.",
            "Give another port, such as --port 8081.",
        ) from error


def application(url: str, artifact_dir: Path | None = None) -> Application:
    """Build the read-only WSGI application.

    Raises:
        StorageError: the database does not exist, cannot be read, or has no studies.
        MissingPackageError: optuna-dashboard is not installed.
    """
    try:
        import optuna_dashboard._app as dashboard  # noqa: PLC0415  (optional)
    except ImportError as error:
        raise MissingPackageError(
            f"The dashboard needs the package {error.name!r}.",
            "Install it with: pip install 'nas-detector[dashboard]'.",
        ) from error
    setattr(dashboard, _FRONT, _of_feasible(getattr(dashboard, _FRONT)))
    store = FileSystemArtifactStore(str(artifact_dir)) if artifact_dir else None
    return _read_only(dashboard.wsgi(_open(parse_url(url)), artifact_store=store))


@runtime_checkable
class _Closeable(Protocol):
    def close(self) -> None: ...


class _Storage(RDBStorage):
    """Optuna's storage with the constraints where the dashboard looks for them."""

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        trials = super().get_all_trials(study_id, deepcopy, states)
        budget_ms = self.get_study_user_attrs(study_id).get("budget_ms")
        for trial in trials:
            trial.system_attrs["constraints"] = _violations(trial, budget_ms)
        return trials


def _violations(trial: FrozenTrial, budget_ms: float | None) -> list[float]:
    told = list(trial.constraints.values())
    if budget_ms is None or not told or trial.state != TrialState.COMPLETE:
        return told
    return [*told, trial.values[1] - budget_ms]


def _of_feasible(front: Callable[..., list[FrozenTrial]]) -> Callable[..., list[FrozenTrial]]:
    if getattr(front, "of_feasible", False):  # an earlier application of this process did it
        return front

    def feasible_front(trials: Sequence[FrozenTrial], directions: Any) -> list[FrozenTrial]:
        feasible = [t for t in trials if all(value <= 0 for value in t.constraints.values())]
        return front(trials=feasible, directions=directions)

    feasible_front.of_feasible = True  # type: ignore[attr-defined]
    return feasible_front


def _open(url: URL) -> _Storage:
    path = sqlite_path(url)
    require_file(url)
    engine = create_engine(url)
    with translated(url), engine.connect() as connection:
        has_studies = sqlalchemy.inspect(connection).has_table("studies")
    engine.dispose()
    if not has_studies:
        raise StorageError(
            f"The dashboard shows a database with studies, and {masked(url)} has none.",
            "Start a search, or give the URL of another database.",
        )
    # Every request has a thread of its own, so a pool would only keep connections open.
    options = {**engine_options(url), "poolclass": NullPool}
    if path is None:
        theirs = url.query.get("options", "")
        options["connect_args"]["options"] = f"{theirs} -c default_transaction_read_only=on"
    with translated(url):
        storage = _Storage(
            url.render_as_string(hide_password=False),
            engine_kwargs=options,
            skip_compatibility_check=True,
            skip_table_creation=True,
        )
    if path is not None:
        set_pragmas(storage.engine, "query_only=ON")
    return storage


def _read_only(app: Application) -> Application:
    def guarded(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in _READING:
            headers = [("Content-Type", "application/json"), ("Allow", ", ".join(_READING))]
            start("405 Method Not Allowed", headers)
            return [json.dumps({"reason": _REFUSAL}).encode()]  # which its pages show
        if environ.get("PATH_INFO", "").startswith("/artifacts"):
            return app(environ, _sandboxed(start))
        if environ.get("PATH_INFO", "").startswith(_PAGES):
            return [_styled(app, environ, start)]
        return app(environ, start)

    return guarded


def _styled(app: Application, environ: dict[str, Any], start: Callable[..., Any]) -> bytes:
    """Return a page that hides what is refused; what was said of the file holds of it no more."""

    def started(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
        return start(status, [one for one in headers if one[0].lower() not in _OF_A_FILE], *rest)

    asked = {name: value for name, value in environ.items() if name not in _ABOUT_A_FILE}
    answer = app(asked, started)
    try:
        return b"".join(answer).replace(b"</head>", f"{_STYLE}</head>".encode(), 1)
    finally:
        if isinstance(answer, _Closeable):
            answer.close()


def _sandboxed(start: Callable[..., Any]) -> Callable[..., Any]:
    """An artifact may be a web page; it must not act as a part of the dashboard."""

    def started(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
        own = [("Content-Security-Policy", "sandbox"), ("X-Content-Type-Options", "nosniff")]
        return start(status, [*headers, *own], *rest)

    return started


def _for_this_machine(app: Application) -> Application:
    """Refuse pages of other sites whose name was made to point at this machine."""

    def guarded(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        host = urlsplit(f"//{environ.get('HTTP_HOST', '')}").hostname or ""
        if not _is_loopback(host):
            start("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"This dashboard is for its own machine.\n"]
        return app(environ, start)

    return guarded


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Server(ThreadingMixIn, WSGIServer):
    """Browsers keep idle connections open, and one thread would wait for those."""

    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing."""
