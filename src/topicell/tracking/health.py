"""Whether the tracking store answers and can be written to, for ``topicell doctor``."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

from topicell.config import TrackingConfig
from topicell.errors import InputError
from topicell.files import writable
from topicell.tracking import store
from topicell.tracking.store import SQLITE, Unreachable, first_line, is_server, sqlite_path

SECONDS = 5.0
"""How long to wait for an answer."""


def examine(config: TrackingConfig) -> str:
    """Return what is known of a store that is well; nothing is created or changed.

    Raises
    ------
    InputError
        There can be no store at this address, or it was made by another version of MLflow.
    Unreachable
        It does not answer within `SECONDS`, or cannot be written to.
    """
    uri, path = store.tracking_uri(config), sqlite_path(config)
    if path is not None and not path.exists():
        folder = next(parent for parent in path.parents if parent.is_dir())
        if problem := writable(folder):
            raise Unreachable(f"{path} cannot be created ({problem})")
        return "does not exist yet; the first run creates it"
    # Imports take seconds, which are not the store's.
    store._import(uri)
    found: list[BaseException | str] = []

    def ask() -> None:
        try:
            found.append(_of_server(config) if is_server(config) else _of_database(uri, path))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if not found:
        raise Unreachable(f"no answer within {SECONDS:g} s")
    answer = found[0]
    if isinstance(answer, (InputError, Unreachable)):
        raise answer
    if isinstance(answer, BaseException):
        raise Unreachable(first_line(answer)) from answer
    return answer


def _of_server(config: TrackingConfig) -> str:
    experiments = store.client(config).search_experiments(max_results=1)
    return "answers" if experiments else "answers; it has no experiments yet"


def _of_database(uri: str, path: Path | None) -> str:
    import sqlalchemy
    from mlflow.exceptions import MlflowException
    from mlflow.store.db.utils import _verify_schema

    if path is not None:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=2)) as file:
            file.execute("BEGIN IMMEDIATE")
            file.rollback()
        if problem := writable(path.parent):
            raise Unreachable(f"{path.parent} cannot be written to ({problem})")
        uri = f"{SQLITE}{path}"
    engine = sqlalchemy.create_engine(uri)
    try:
        if not sqlalchemy.inspect(engine).has_table("alembic_version"):
            return "is empty; the first run creates the tables"
        _verify_schema(engine)
    except MlflowException as error:
        raise InputError(first_line(error)) from error
    finally:
        engine.dispose()
    return "can be read and written"
