"""``topicell doctor``: check what topicell needs on this machine, and say what to do.

It works when something is broken: each check reports its own failure. Libraries are imported in
another process, because a broken one can end the process that imports it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Any

from topicell import memory
from topicell.cli.command import Command
from topicell.cli.errors import DONE, FAILED
from topicell.cli.options import read
from topicell.cli.terminal import BOLD, GREEN, RED, YELLOW, is_quiet, styled
from topicell.config import PreprocessConfig, TrackingConfig
from topicell.config.checks import POSITIVE, check_fields, setting
from topicell.errors import InputError
from topicell.files import writable
from topicell.progress import step
from topicell.redaction import without_password

NAMED = (
    *("torch", "pyro-ppl", "scanpy", "anndata", "mlflow", "hydra-core", "optuna"),
    *("numpy", "scipy", "pandas"),
)
"""Libraries with a line of their own; all others have one together."""
IMPORTED = (
    *("numpy", "scipy", "pandas", "h5py", "anndata", "matplotlib", "scanpy", "igraph"),
    *("leidenalg", "umap", "torch", "pyro", "mlflow", "hydra", "optuna", "topicell.run"),
)
"""Modules that are imported in turn."""
FOR_DEVELOPERS = ("dev", "test")
"""Extras that users do not need."""
IMPORT_SECONDS = 300
"""How long all imports may take."""
SMALL_MEMORY = 2 * 2**30
"""Free memory that is enough for few cells only, bytes."""
GIB = 2**30
IMPORTER = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
for name in sys.argv[1:]:
    print(json.dumps({"module": name}), flush=True)
    try:
        importlib.import_module(name)
    except BaseException as error:
        told = {"module": name, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(told), flush=True)
print(json.dumps({"module": "the question of torch for its GPUs"}), flush=True)
try:
    from topicell.model.devices import devices
    print(json.dumps({"devices": devices()}), flush=True)
except BaseException as error:
    print(json.dumps({"no_devices": f"{type(error).__name__}: {error}"}), flush=True)
"""
"""Program that imports modules, and asks torch for its GPUs; each line that it prints is JSON."""


class Status(Enum):
    """How a check ended."""

    ok = "ok"
    warning = "warning"
    problem = "problem"


COLOURS = {Status.ok: GREEN, Status.warning: YELLOW, Status.problem: RED}


@dataclass(frozen=True, slots=True)
class Check:
    """A line of the table: what was checked, what was found, and what to do."""

    name: str
    found: str
    status: Status = Status.ok
    fix: str = ""


@dataclass
class DoctorCommand:
    """Check versions, extras, GPU, memory, disks, tracking store and cache, and say what to do.

    The exit code is 1 if there is a problem; a warning is none. json=true prints the table as JSON,
    for a bug report; passwords are masked.
    """

    json: bool = False
    """Print the table as JSON."""
    min_free_gb: float = setting(2.0, POSITIVE)
    """Free space of a disk below which there is a warning, and a problem below a tenth of it."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        check_fields("", self)


def doctor(arguments: list[str]) -> None:
    """Print the table of checks, and exit with 1 if there is a problem."""
    asked: DoctorCommand = read(COMMAND, arguments)
    checks = [masked(check) for check in checked(asked)]
    counts = {status: sum(check.status is status for check in checks) for status in Status}
    if asked.json:
        rows = [asdict(check) | {"status": check.status.value} for check in checks]
        totals = {f"{status.value}s": counts[status] for status in (Status.warning, Status.problem)}
        print(json.dumps({"checks": rows} | totals, indent=2))
    else:
        for check in checks:
            if check.status is not Status.ok or not is_quiet():
                print_check(check)
        print(styled(conclusion(counts[Status.problem], counts[Status.warning]), BOLD))
    sys.exit(FAILED if counts[Status.problem] else DONE)


def print_check(check: Check) -> None:
    """Print the line of a check, and what to do below it."""
    status = styled(f"{check.status.value:<9}", COLOURS[check.status])
    print(f"{status}{check.name:<20}{check.found}")
    if check.fix:
        print(f"{'':29}→ {check.fix}")


def conclusion(n_problems: int, n_warnings: int) -> str:
    """Return the last line."""
    words = [
        f"{n} {what}{'s' if n > 1 else ''}"
        for n, what in ((n_problems, "problem"), (n_warnings, "warning"))
        if n
    ]
    return ", ".join(words) or "no problems"


def masked(check: Check) -> Check:
    """Return a check without passwords."""
    found, fix = without_password(check.found), without_password(check.fix)
    return Check(check.name, found, check.status, fix)


def checked(asked: DoctorCommand) -> Iterator[Check]:
    """Yield all checks; one that fails is a problem of its own."""
    parts: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("versions", versions),
        ("extras", extras),
        ("libraries", libraries),
        ("processor", processor),
        ("memory", free_memory),
        ("tracking store", lambda: tracking_store(asked.tracking)),
        ("folders", lambda: folders(asked)),
        ("cache", cache),
        ("data sets", data_sets),
    ]
    for name, part in parts:
        try:
            with step(name):
                yield from part()
        except Exception as error:
            yield Check(
                name,
                f"could not be checked ({type(error).__name__}: {error})",
                Status.problem,
                "install topicell again in a new virtual environment",
            )


def versions() -> Iterator[Check]:
    """Yield whether Python and the libraries have the versions that topicell requires."""
    from packaging.specifiers import SpecifierSet

    own = metadata.metadata("topicell")
    python, wanted = ".".join(map(str, sys.version_info[:3])), str(own["Requires-Python"] or "")
    fine = python in SpecifierSet(wanted)
    yield Check(
        "Python",
        f"{python} ({wanted}), {sys.executable}",
        Status.ok if fine else Status.problem,
        "" if fine else f"make a virtual environment with a Python {wanted}",
    )
    yield Check("topicell", str(own["Version"]))
    others = 0
    for requirement in requirements():
        check = version_of(requirement)
        if requirement.name in NAMED or check.status is not Status.ok:
            yield check
        else:
            others += 1
    yield Check("other libraries", f"{others} have versions in the required ranges")


def requirements(extra: str | None = None) -> list[Any]:
    """Return what topicell requires, or what an extra of it requires besides."""
    from packaging.requirements import Requirement

    every = [Requirement(line) for line in metadata.requires("topicell") or ()]
    return [
        one
        for one in every
        if one.marker is None
        or (
            one.marker.evaluate({"extra": extra or ""})
            and (extra is None or not one.marker.evaluate({"extra": ""}))
        )
        if extra is None or one.marker is not None
    ]


def version_of(requirement: Any) -> Check:
    """Return whether a library is installed in a version that is required."""
    wanted, name = str(requirement.specifier), str(requirement.name)
    install = f"pip install {shlex.quote(f'{name}{wanted}')}"
    try:
        installed = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, f"is not installed ({wanted or 'any version'})", Status.problem, install)
    found = f"{installed} ({wanted or 'any version'})"
    if requirement.specifier.contains(installed, prereleases=True):
        return Check(name, found)
    return Check(name, found, Status.problem, install)


def extras() -> Iterator[Check]:
    """Yield which extras are installed, and how to install the others."""
    for extra in metadata.metadata("topicell").get_all("Provides-Extra") or ():
        if extra in FOR_DEVELOPERS:
            continue
        checks = [version_of(one) for one in requirements(extra)]
        lacking = [check for check in checks if check.status is not Status.ok]
        install = f"pip install 'topicell[{extra}]'"
        name = f"extra {extra}"
        if not lacking:
            yield Check(name, ", ".join(f"{one.name} {one.found.split()[0]}" for one in checks))
            continue
        old = [check for check in lacking if "not installed" not in check.found]
        words = ", ".join(f"{one.name} {one.found}" for one in old) or ", ".join(
            f"{one.name} is not installed" for one in lacking
        )
        # Extras are optional, but one in a wrong version fails in the middle of a run.
        yield Check(name, f"{words}", Status.warning if old else Status.ok, f"{install} adds it")


def libraries() -> Iterator[Check]:
    """Yield which libraries cannot be imported, and which GPUs torch has."""
    broken, told = imported(IMPORTED)
    for name, error in broken.items():
        yield Check(
            f"import {name}",
            " ".join(error.split())[:300],
            Status.problem,
            f"install {name.partition('.')[0]} again, in a new virtual environment if that fails",
        )
    if not broken:
        yield Check("imports", f"{len(IMPORTED)} libraries can be imported")
    yield gpu(told)


def imported(modules: Sequence[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """Import modules in another process: return their errors, and what it says of GPUs."""
    broken: dict[str, str] = {}
    left = list(modules)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    while True:
        program = [sys.executable, "-c", IMPORTER, *left]
        try:
            ended = subprocess.run(
                program, capture_output=True, text=True, timeout=IMPORT_SECONDS, env=environment
            )
            out, how = ended.stdout, f"ends the process (exit code {ended.returncode})"
        except subprocess.TimeoutExpired as late:
            out, how = (late.stdout or b"").decode(), f"takes more than {IMPORT_SECONDS} s"
        lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        broken |= {line["module"]: line["error"] for line in lines if "error" in line}
        if lines and "module" not in lines[-1]:
            return broken, lines[-1]
        begun = [line["module"] for line in lines]
        last = begun[-1] if begun else left[0]
        if last not in left:
            return broken, {"no_devices": how}
        broken[last] = how
        left = left[left.index(last) + 1 :]
        if not left:
            return broken, {"no_devices": f"{last} {how}"}


def gpu(told: dict[str, Any]) -> Check:
    """Return which GPUs torch can use, from what another process told."""
    name = "GPU"
    if "devices" not in told:
        return Check(name, f"torch cannot be asked ({told['no_devices']})", Status.warning)
    found = told["devices"]
    if found["gpus"]:
        words = ", ".join(f"{one} with {size / GIB:.1f} GiB" for one, size in found["gpus"])
        return Check(name, f"{words} (CUDA {found['build']})")
    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not driver:
        return Check(name, "no CUDA device; runs use the CPU")
    if hidden is not None and not hidden.strip("-1 "):
        return Check(name, f"CUDA_VISIBLE_DEVICES = {hidden!r} hides it; runs use the CPU")
    if found["build"] is None:
        return Check(
            name,
            "the machine has an NVIDIA driver, but this torch is built for the CPU",
            Status.warning,
            "install a build of torch for CUDA to use the GPU (pytorch.org, Get started)",
        )
    why = found["problem"] or "torch finds no device"
    return Check(
        name,
        f"torch, built for CUDA {found['build']}, cannot use it: {why}",
        Status.warning,
        "update the NVIDIA driver, or install a build of torch for the CUDA of this driver",
    )


def processor() -> Iterator[Check]:
    """Yield how many cores this process may use."""
    every = os.cpu_count() or 1
    affinity = getattr(os, "sched_getaffinity", None)
    allowed = len(affinity(0)) if affinity is not None else every
    limit = core_limit()
    words = f"{allowed} of {every} cores" if allowed < every else f"{every} cores"
    if limit is not None and limit < allowed:
        words += f", and a limit of {limit:g} cores by a control group"
    threads = os.environ.get("OMP_NUM_THREADS")
    yield Check("processor", words + (f"; OMP_NUM_THREADS={threads}" if threads else ""))


def core_limit(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Return the limit of cores of a container, control groups of version 2 or 1; None if none."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            numbers = " ".join((root / name).read_text("ascii") for name in names).split()
            quota, period = int(numbers[0]), int(numbers[1])
        except (OSError, ValueError, IndexError):  # no such file, or "max"
            continue
        return quota / period if quota > 0 else None
    return None


def free_memory() -> Iterator[Check]:
    """Yield how much memory this process can get."""
    free = memory.free()
    if free is None:
        yield Check("memory", "the system does not say how much is free")
    elif free < SMALL_MEMORY:
        fix = "end other programs; data.backed=true needs less for many cells (docs/large.md)"
        yield Check("memory", f"{free / GIB:.1f} GiB free", Status.warning, fix)
    else:
        yield Check("memory", f"{free / GIB:.1f} GiB free")


def tracking_store(config: TrackingConfig) -> Iterator[Check]:
    """Yield whether the tracking store answers, and has tables of the installed MLflow."""
    from topicell.tracking.health import examine
    from topicell.tracking.store import Unreachable, shown_uri

    name = "tracking store"
    if not config.enabled:
        yield Check(name, "tracking=off")
        return
    uri = shown_uri(config)
    try:
        yield Check(name, f"{uri} {examine(config)}")
    except InputError as error:
        upgrade = f"copy the database, then run: mlflow db upgrade {shlex.quote(uri)}"
        old = "out-of-date" in str(error)
        yield Check(name, f"{uri}: {error}", Status.problem, upgrade if old else "")
    except Unreachable as error:
        yield Check(
            name,
            f"{uri}: {error}",
            Status.problem,
            "start the server or correct tracking.uri or MLFLOW_TRACKING_URI; until then, runs "
            "keep their results, and `topicell sync` delivers them",
        )


def folders(asked: DoctorCommand) -> Iterator[Check]:
    """Yield free disk space, and whether files can be written, where a run writes."""
    from topicell.tracking.store import sqlite_path

    places = {"working folder": Path.cwd(), "temporary files": Path(tempfile.gettempdir())}
    try:
        store = sqlite_path(asked.tracking) if asked.tracking.enabled else None
    except InputError:
        store = None  # the check of the store says why
    if store is not None and store.parent != Path.cwd():
        places["store's folder"] = store.parent
    places["cache"] = cache_folder()
    for name, place in places.items():
        # What does not exist yet is made in the nearest folder that does.
        there = next((one for one in (place, *place.parents) if one.exists()), place)
        if not there.is_dir():
            fix = f"remove the file {there}, or name another folder"
            yield Check(name, f"{place}: {there} is a file", Status.problem, fix)
            continue
        if problem := writable(there):
            yield Check(
                name,
                f"{place} cannot be written to ({problem})",
                Status.warning if name == "cache" else Status.problem,
                "set XDG_CACHE_HOME to another folder"
                if name == "cache"
                else "change the permissions of the folder, or work in another one",
            )
            continue
        free = shutil.disk_usage(there).free / GIB
        status = Status.ok
        if free < asked.min_free_gb:
            status = Status.problem if free < asked.min_free_gb / 10 else Status.warning
        fix = "" if status is Status.ok else "free disk space; a run needs 30 MB to several GB"
        yield Check(name, f"{place}, {free:.1f} GiB free", status, fix)


def cache_folder() -> Path:
    """Return the folder of prepared data."""
    import pooch

    return Path(pooch.os_cache("topicell")) / "prepared"


def cache() -> Iterator[Check]:
    """Yield the size of the prepared data that are kept."""
    folder, limit = cache_folder(), PreprocessConfig().cache_limit_mb
    size = sum(path.stat().st_size for path in folder.glob("*.h5ad")) / 1e6
    words = f"{size:,.0f} MB of prepared data in {folder}"
    if limit is not None:
        words += f", limit {limit:,} MB (preprocess.cache_limit_mb)"
    yield Check("cached data", words + (f"; rm -r {folder} removes them" if size else ""))


def data_sets() -> Iterator[Check]:
    """Yield which data sets are downloaded, and whether their folder exists."""
    from topicell.data.catalogue import CATALOGUE, data_folder

    folder, name = data_folder(), "data sets"
    if folder.exists() and not folder.is_dir():
        fix = "set TOPICELL_DATA to a folder"
        yield Check(name, f"{folder} is not a folder", Status.problem, fix)
        return
    named = os.environ.get("TOPICELL_DATA")
    if named and not folder.exists():
        yield Check(
            name,
            f"TOPICELL_DATA = {named} does not exist",
            Status.warning,
            "correct TOPICELL_DATA; otherwise the first download makes the folder",
        )
        return
    downloads = [one for one in CATALOGUE.values() if one.url is not None]
    there = [one.name for one in downloads if (folder / one.file_name).is_file()]
    others = [one.name for one in downloads if one.name not in there]
    words = f"downloaded in {folder}: {', '.join(there) or 'none'}"
    yield Check(name, words + (f"; when needed: {', '.join(others)}" if others else ""))


COMMAND = Command(
    name="doctor",
    summary="check versions, GPU, memory, disks and tracking store, and say what to do",
    examples=(("topicell doctor", "json=true for a bug report"),),
    settings=DoctorCommand,
    function=doctor,
)
