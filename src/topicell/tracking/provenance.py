"""Tags that say which code made a run, and who started it."""

from __future__ import annotations

import getpass
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path


def provenance() -> dict[str, str]:
    """Return the version of topicell and, in a checkout, the commit."""
    tags = {
        "topicell.version": version("topicell"),
        "topicell.started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    # An installed topicell may lie in another repository without being part of it.
    if _git("ls-files", "--error-unmatch", __file__):
        tags["topicell.git_commit"] = _git("rev-parse", "HEAD")
        tags["topicell.git_dirty"] = str(bool(_git("status", "--porcelain"))).lower()
    return tags


def _git(*arguments: str) -> str:
    try:
        answer = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def source_tags() -> dict[str, str]:
    """Return the tags from which MLflow's table of runs shows user and program."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return {
        "mlflow.user": user,
        "mlflow.source.name": "topicell train",
        "mlflow.source.type": "LOCAL",
    }
