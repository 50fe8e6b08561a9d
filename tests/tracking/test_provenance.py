"""What made a run: tags, installed packages, uncommitted changes."""

import re
import subprocess
from importlib.metadata import version
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from topicell.redaction import without_secrets
from topicell.tracking import provenance
from topicell.tracking.provenance import (
    environment,
    uncommitted_changes,
    write_provenance,
)

CODE = "first = 1\nsecond = 2\n"


def git(folder, *arguments):
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
    )


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Return a checkout with one commit, in which topicell lies for `provenance`."""
    folder = tmp_path / "checkout"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "code.py").write_text(CODE)
    (folder / "notes.txt").write_text("")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    monkeypatch.setattr(provenance, "_checkout", lambda: folder)
    return folder


def test_tags_name_version_and_commit(checkout):
    tags = provenance.provenance()
    assert tags["topicell.version"] == version("topicell")
    assert re.fullmatch("[0-9a-f]{40}", tags["topicell.git_commit"])
    assert tags["topicell.git_dirty"] == "false"
    (checkout / "notes.txt").write_text("not code")
    assert provenance.provenance()["topicell.git_dirty"] == "false"
    (checkout / "src" / "code.py").write_text("")
    assert provenance.provenance()["topicell.git_dirty"] == "true"


def test_git_apply_restores_changed_new_and_removed_code(checkout, tmp_path):
    git(tmp_path, "clone", "-q", "checkout", "clone")
    (checkout / "src" / "code.py").write_text(CODE.replace("2", "3") + "é = '→'\n")
    (checkout / "src" / "new file.py").write_text("new = True\n")
    changes = uncommitted_changes()
    (tmp_path / "git.diff").write_text(changes, encoding="utf-8")
    git(tmp_path / "clone", "apply", "../git.diff")
    for name in ("code.py", "new file.py"):
        assert (tmp_path / "clone/src" / name).read_bytes() == (
            checkout / "src" / name
        ).read_bytes()
    (checkout / "src" / "new file.py").unlink()
    (checkout / "src" / "code.py").unlink()
    assert "deleted file" in uncommitted_changes()


def test_secrets_are_masked_and_long_changes_are_cut(checkout, monkeypatch):
    (checkout / "src" / "code.py").write_text('API_KEY = "1234abcd"\nlast = 1\n')
    changes = uncommitted_changes()
    assert "1234abcd" not in changes
    assert "last = 1" in changes
    assert changes.startswith("# secrets are masked")
    monkeypatch.setattr(provenance, "LARGEST_DIFF", 150)
    first, second, *rest = uncommitted_changes().splitlines(keepends=True)
    assert first.startswith("# secrets are masked")
    assert second.startswith("# cut: the first ")
    assert 0 < len("".join(rest).encode()) <= 150


@pytest.mark.parametrize(
    "line",
    [
        'os.environ["DB_PASSWORD"] = "hunter2-x"',
        'password: str = "hunter2-x"',
        'password = b"hunter2-x"',
        'MY_SECRET = """hunter2-x"""',
        "client = OpenAI('sk-proj-hunter2-xxxxxxxxxxxxxx')",
        'headers = {"Authorization": "Bearer hunter2-xxxxxxxxxxxxxx"}',
        'uri = "postgresql://me:hunter2-x@host/db"',
    ],
)
def test_secrets_in_code_are_masked(line):
    masked = without_secrets(f"first = 1\n{line}\nn_tokens = 5\ntoken: str\n")
    assert "hunter2" not in masked
    assert masked.startswith("first = 1\n")
    assert masked.endswith("\nn_tokens = 5\ntoken: str\n")


def test_secrets_in_settings_need_no_quotes(checkout):
    (checkout / "conf").mkdir()
    (checkout / "conf" / "own.yaml").write_text("password: hunter2\nn_topics: 5\n")
    (checkout / "src" / "code.py").write_text("password: int\n")
    changes = uncommitted_changes()
    assert "hunter2" not in changes
    assert "+n_topics: 5" in changes
    assert "+password: int" in changes


def test_one_long_line_is_masked_in_linear_time():
    # The search was quadratic: this would take minutes.
    assert without_secrets("a" * 1_000_000).startswith("aaa")


def test_a_package_with_damaged_metadata_is_a_comment(monkeypatch):
    def damaged(name):
        raise ValueError(name)

    package = SimpleNamespace(metadata={"Name": "odd"}, version=None, read_text=damaged)
    monkeypatch.setattr(provenance, "distributions", lambda: [package])
    lines = environment.__wrapped__().splitlines()
    assert lines[2:] == ["# odd (its metadata cannot be read)"]


def test_a_folder_has_a_diff_only_if_code_is_changed(checkout, tmp_path):
    write_provenance(tmp_path)
    assert not (tmp_path / "git.diff").exists()
    (checkout / "src" / "code.py").write_text("")
    write_provenance(tmp_path)
    assert "-first = 1" in (tmp_path / "git.diff").read_text()
    # A run that is resumed with committed code has no changes any more.
    (checkout / "src" / "code.py").write_text(CODE)
    write_provenance(tmp_path)
    assert not (tmp_path / "git.diff").exists()


def test_code_that_is_not_in_a_checkout_has_no_commit(monkeypatch):
    monkeypatch.setattr(provenance, "_checkout", lambda: None)
    assert "topicell.git_commit" not in provenance.provenance()
    assert uncommitted_changes() == ""


def test_the_environment_is_a_file_of_requirements_that_this_environment_meets():
    lines = environment().splitlines()
    requirements = [Requirement(line.partition("#")[0]) for line in lines if line[0] != "#"]
    assert {"torch", "numpy", "mlflow"} <= {requirement.name for requirement in requirements}
    for requirement in requirements:
        found = version(requirement.name)
        assert requirement.specifier.contains(found, prereleases=True), requirement
    names = [requirement.name.lower() for requirement in requirements]
    assert len(names) == len(set(names))


def test_what_no_index_has_is_a_comment():
    def written(origin):
        files = {"direct_url.json": origin}
        package = SimpleNamespace(version="1.2+cpu", read_text=files.get)
        return provenance._requirement("local-tool", package)

    assert written(None) == "local-tool==1.2  # build cpu"
    assert written('{"url": "https://x", "archive_info": {}}') == "local-tool==1.2  # build cpu"
    editable = '{"url": "file:///x", "dir_info": {"editable": true}}'
    assert written(editable) == "# local-tool==1.2 (installed from a checkout)"
    assert written('{"url": "file:///x", "dir_info": {}}').endswith("(installed from a folder)")
