"""Test the verdict of a sweep on simulated corpora with known K, and on sorted blood cells.

    python experiments/choose_k/study.py planted FOLDER      30 corpora of 5, 10 and 20 topics
    python experiments/choose_k/study.py blood FOLDER        pbmc_facs: sweeps, and a plain grid
    python experiments/choose_k/study.py overhead FOLDER time of a trial in addition to its run
    python experiments/choose_k/study.py quick FOLDER the same code in a minute

Each runs ``topicell train -m …`` as a user does, in FOLDER, and appends to FOLDER/results.csv.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

from topicell.sweep.selection import verdict_of
from topicell.sweep.trials import Sweep

TOPICS = (5, 10, 20)
N_CORPORA = 10
FIELDS = [
    "study",
    "what",
    "planted",
    "corpus",
    "chosen",
    "best",
    "kind",
    "within",
    "complete",
    "pruned",
    "failed",
    "epochs",
    "seconds",
    "command",
]


def topicell(folder: Path, *settings: str) -> float:
    """Run the command line in a folder; return the seconds it took."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "topicell", "train", "-m", *settings],
        cwd=folder,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - started


def record(folder: Path, out: Path, command: tuple[str, ...], seconds: float, **known) -> dict:
    """Return a row of results from the ``sweep.json`` in a folder."""
    # Hydra's folder of a sweep or a grid; MLflow has a copy.
    (path,) = [*folder.glob("sweeps/*/sweep.json"), *folder.glob("multiruns/*/*/sweep.json")]
    sweep = Sweep.read(path)
    verdict = verdict_of(sweep)
    states = [trial.state for trial in sweep.trials]
    row = known | {
        "chosen": verdict.n_topics,
        "best": verdict.best,
        "kind": verdict.kind.value,
        "within": " ".join(map(str, verdict.within)),
        "complete": states.count("COMPLETE"),
        "pruned": states.count("PRUNED"),
        "failed": states.count("FAIL"),
        "epochs": sum(trial.epochs for trial in sweep.trials),
        "seconds": round(seconds, 1),
        "command": " ".join(command),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    new = not out.exists()
    with out.open("a", newline="") as file:
        table = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if new:
            table.writeheader()
        table.writerow(row)
    print(f"{known}: {verdict.sentence}  ({seconds:.0f} s)", flush=True)
    return row


def planted(folder: Path, topics=TOPICS, n_corpora=N_CORPORA, extra=()) -> None:
    """Compare the verdict with the true number of topics of simulated corpora."""
    for corpus in range(n_corpora):
        for n_topics in topics:
            command = (
                "sweep=topics",
                "data=simulated",
                f"data.simulation.n_topics={n_topics}",
                f"data.simulation.seed={corpus}",
                "tracking=off",
                *extra,
            )
            place = folder / f"planted-{n_topics}-{corpus}"
            seconds = topicell(place, *command)
            row = {"study": "planted", "what": "sweep", "planted": n_topics, "corpus": corpus}
            record(place, folder / "results.csv", command, seconds, **row)


def blood(folder: Path, seeds=(0, 1), extra=()) -> None:
    """Run sweeps on sorted blood cells with and without pruning, and a plain grid of K."""
    whole = "model.n_topics=range(2,31)"
    arms = {
        "sweep": ("sweep=topics",),
        "sweep without pruning": ("sweep=topics", "sweep.pruner=none"),
        "plain grid": (whole, "evaluate.n_splits=3", "report=off", "train.progress=false"),
    }
    for seed in seeds:
        for what, settings in arms.items():
            if what == "plain grid" and seed != seeds[0]:
                continue
            command = (*settings, "data=pbmc_facs", f"seed={seed}", *extra)
            place = folder / f"blood-{what.replace(' ', '-').replace(',', '')}-{seed}"
            seconds = topicell(place, *command)
            row = {"study": "blood", "what": what, "planted": "", "corpus": seed}
            record(place, folder / "results.csv", command, seconds, **row)


def nothing(settings) -> None:
    """Make a run that takes no time, so that the time of a trial is that of the sweeper."""
    from topicell.sweep.tracker import current_trial

    trial = current_trial()
    k = settings.model.n_topics
    for epoch in range(10):
        trial.report(epoch, 100.0 + abs(k - 40) / (epoch + 1))
    noise = [0.01 * replicate for replicate in range(4)]
    values = {str(s): [100.0 + s + abs(k - 40) + e for e in noise] for s in range(3)}
    for seed, of_split in values.items():
        trial.report_split(seed, of_split)
    trial.conclude({"valid/perplexity_folded": values})


def search_of_nothing(folder: Path, n_trials: int, *settings: str) -> float:
    """Return the seconds of a sweep whose runs take no time."""
    import hydra
    from hydra.core.config_store import ConfigStore

    from topicell.cli.train import conf_folder
    from topicell.config import TrainCommand

    ConfigStore.instance().store(name="train_command", node=TrainCommand)
    folder.mkdir(parents=True)
    os.chdir(folder)
    sys.argv = [
        "study",
        "-m",
        "sweep=topics",
        "model.n_topics=range(2,200)",
        "sweep.n_jobs=1",
        f"sweep.n_trials={n_trials}",
        "sweep.pruner=none",
        "sweep.register=null",
        "data=simulated",
        *settings,
    ]
    started = time.perf_counter()
    hydra.main(config_path=str(conf_folder()), config_name="config", version_base=None)(nothing)()
    return time.perf_counter() - started


def overhead(folder: Path, few: int = 5, many: int = 25) -> None:
    """Measure the time of a trial in addition to its run: the slope over the number of trials."""
    from hydra.core.global_hydra import GlobalHydra

    out = folder / "overhead.csv"
    folder.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["storage", "tracking", "seconds_per_trial"])
        for storage in ("sqlite:///optuna.db", "journal:optuna.journal"):
            for tracking in ("tracking=local", "tracking=off"):
                slopes = []
                for repeat in range(3):
                    seconds = []
                    for n in (few, many):
                        name = f"{storage.partition(':')[0]}-{tracking}-{n}-{repeat}"
                        seconds.append(
                            search_of_nothing(
                                folder / name, n, f"sweep.storage={storage}", tracking
                            )
                        )
                        GlobalHydra.instance().clear()
                    slopes.append((seconds[1] - seconds[0]) / (many - few))
                row = [storage, tracking, round(sorted(slopes)[1], 3)]
                table.writerow(row)
                print(row, flush=True)


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    if what == "planted":
        planted(folder)
    elif what == "blood":
        blood(folder)
    elif what == "overhead":
        overhead(folder)
    elif what == "quick":
        small = (
            "data.simulation.n_cells=400",
            "train.n_replicates=2",
            "evaluate.n_splits=2",
            "model.n_topics=range(3,9)",
        )
        planted(folder, topics=(5,), n_corpora=1, extra=small)
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
