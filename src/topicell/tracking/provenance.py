"""What made a run: code, environment, command and user, as tags and as files of the run folder."""

from __future__ import annotations

import getpass
import json
import platform
import re
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import Distribution, distributions, version
from pathlib import Path

from topicell.files import whole
from topicell.redaction import without_secrets

DIFF = "git.diff"
ENVIRONMENT = "environment.txt"
LARGEST_DIFF = 1_000_000
"""Bytes of the uncommitted changes that are stored."""
CODE = ("src", "conf", "pyproject.toml")
"""Parts of a checkout that determine the results of a run."""
FORM = ("--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")
"""Options of ``git diff`` that give a text for ``git apply`` whatever the user has configured."""
COMMAND_TAG = "topicell.command"
"""Tag with the command that makes the run."""


def provenance() -> dict[str, str]:
    """Return the version of topicell and, in a checkout, the commit."""
    tags = {
        "topicell.version": version("topicell"),
        "topicell.started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if (checkout := _checkout()) is not None:
        tags["topicell.git_commit"] = _git(checkout, "rev-parse", "HEAD").strip()
        changed = _git(checkout, "status", "--porcelain", "--", *CODE)
        tags["topicell.git_dirty"] = str(bool(changed)).lower()
    return tags


def write_provenance(folder: Path) -> None:
    """Write the installed packages, and the uncommitted changes of the code if there are any."""
    changes = uncommitted_changes()
    for name, text in ((ENVIRONMENT, environment()), (DIFF, changes)):
        if text:
            with whole(folder / name) as unfinished:
                unfinished.write_bytes(text.encode())
        else:
            (folder / name).unlink(missing_ok=True)


@cache
def environment() -> str:
    """Return the installed packages as a file of requirements for ``pip install -r``.

    A build of a version, such as ``2.13.0+cpu``, is written as the version, because only some
    package indexes have the build. A package that was not installed from an index is a comment.
    """
    written: dict[str, str] = {}
    for package in distributions():
        name = package.metadata["Name"]
        # Of two with one name, Python imports the first.
        if name and (key := re.sub(r"[-_.]+", "-", name).lower()) not in written:
            try:
                written[key] = _requirement(name, package)
            except Exception:
                # A package of somebody else must not end the run.
                written[key] = f"# {name} (its metadata cannot be read)"
    head = [
        f"# Python {platform.python_version()}, {platform.platform()}",
        "# pip install -r environment.txt",
    ]
    return "\n".join([*head, *(written[key] for key in sorted(written))]) + "\n"


def _requirement(name: str, package: Distribution) -> str:
    public, _, build = package.version.partition("+")
    line = f"{name}=={public}"
    origin = json.loads(package.read_text("direct_url.json") or "{}")
    if origin and "archive_info" not in origin:
        # A folder or a checkout; an archive of a version usually is the one of the index.
        return f"# {line} (installed from {'a checkout' if _is_checkout(origin) else 'a folder'})"
    return f"{line}  # build {build}" if build else line


def _is_checkout(origin: dict[str, object]) -> bool:
    return "vcs_info" in origin or "editable" in str(origin.get("dir_info", ""))


def uncommitted_changes() -> str:
    """Return the uncommitted changes of the code for ``git apply``, with new files, no secrets.

    The text is empty without changes, or if topicell does not lie in a checkout of its own. If
    secrets were masked, or the text is cut at `LARGEST_DIFF` bytes, its first line says so.
    """
    checkout = _checkout()
    whole_text = "" if checkout is None else _uncommitted(checkout)
    files = re.split(r"(?m)^(?=diff --git )", whole_text)
    changes = "".join(without_secrets(file, settings=not _is_code(file)) for file in files)
    head = ""
    if changes != whole_text:
        head = "# secrets are masked with ***, so git apply may refuse this file\n"
    size = len(changes.encode())
    if size > LARGEST_DIFF:
        changes = changes.encode()[:LARGEST_DIFF].decode(errors="ignore").rpartition("\n")[0] + "\n"
        head += f"# cut: the first {len(changes.encode()):,} of {size:,} bytes\n"
    return head + changes


def _is_code(changes: str) -> bool:
    """Return whether the changes are those of a file of code, by the name of the file."""
    return changes.partition("\n")[0].endswith((".py", ".pyi", ".js", ".css", ".html", ".j2"))


@cache
def _checkout() -> Path | None:
    """Return the top of the checkout that the code lies in; None if it is installed."""
    here = Path(__file__).parent
    # An installed topicell may lie in another repository without being part of it.
    if not _git(here, "ls-files", "--error-unmatch", __file__):
        return None
    return Path(_git(here, "rev-parse", "--show-toplevel").strip())


def _uncommitted(checkout: Path) -> str:
    changed = _git(checkout, "diff", "HEAD", *FORM, "--", *CODE)
    listed = _git(checkout, "ls-files", "-z", "--others", "--exclude-standard", "--", *CODE)
    new = [
        # It ends with 1, because the files differ.
        _git(checkout, "diff", "--no-index", *FORM, "--", "/dev/null", name, ends=(0, 1))
        for name in listed.split("\0")
        if name
    ]
    return "".join([changed, *new])


def _git(folder: Path, *arguments: str, ends: tuple[int, ...] = (0,)) -> str:
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    # Not as text: that would change the ends of the lines.
    return answer.stdout.decode(errors="replace") if answer.returncode in ends else ""


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
