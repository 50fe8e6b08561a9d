"""Processes that tests start without imports are as those of a new interpreter."""

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHILD = Path(__file__).with_name("child.py")
LIVES = "print('begun', flush=True)\nimport time\ntime.sleep(60)"


def test_a_command_says_and_ends_as_by_an_interpreter(topicell, tmp_path):
    for arguments in (["--version"], [], ["trian"], ["train", "--cfg", "job"]):
        expected = subprocess.run(
            [sys.executable, "-m", "topicell", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )
        done = topicell(*arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (
            expected.returncode,
            expected.stdout,
            expected.stderr,
        )


@pytest.mark.parametrize(
    "program",
    [
        "print('done')",
        "import sys; sys.exit()",
        "import sys; sys.exit(3)",
        "import sys; sys.exit('said')",
        "import sys; sys.exit(-1)",
        "def wrong(): return 1 / 0\nwrong()",
        "raise KeyboardInterrupt",
        "import atexit; atexit.register(print, 'at last'); print('first')",
        "import threading, time\n"
        "threading.Thread(target=lambda: (time.sleep(0.3), print('last'))).start()",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import sys; print(sys.argv, __name__, sys.stdin.read() == '', sys.stdout.line_buffering)",
        "import os; print(os.getcwd(), os.getenv('GIVEN'), os.getenv('TAKEN'), os.getsid(0) == "
        "os.getpid())",
        "import signal; print({n: signal.getsignal(n) for n in sorted(signal.valid_signals())})\n"
        "print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))",
        "import threading, multiprocessing; print(threading.enumerate()[1:], "
        "multiprocessing.active_children())",
        "import warnings; warnings.warn('old', DeprecationWarning); warnings.warn('now')",
        "import multiprocessing as mp\n"
        "with mp.get_context('spawn').Pool(1) as pool: print(pool.map(abs, [-1, 2]))",
    ],
)
def test_a_program_ends_as_by_an_interpreter(program, started, monkeypatch, tmp_path):
    monkeypatch.setenv("TAKEN", "1")
    environment = {k: v for k, v in os.environ.items() if k != "TAKEN"} | {"GIVEN": "2"}
    expected = subprocess.run(
        [sys.executable, "-c", program, "a", "b c"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        start_new_session=True,
        # A shell lets what it runs in the background ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        check=False,
    )
    one = started("a", "b c", program=program, cwd=tmp_path, env={"TAKEN": None, "GIVEN": "2"})
    assert one.wait(600) == one.returncode == expected.returncode, one.stderr
    assert one.stdout == expected.stdout
    assert one.stderr == expected.stderr


def test_nothing_that_befalls_one_harms_the_next(started):
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSEGV):
        one = started(program=LIVES)
        assert one.poll() is None
        one.send_signal(number)
        assert one.wait(600) == -number
    many = [started(program=LIVES) for _ in range(5)]
    for one in many:
        os.killpg(one.pid, signal.SIGKILL)
    assert [one.wait(600) for one in many] == [-signal.SIGKILL] * 5
    assert started(program="print(1)").wait(600) == 0


def test_an_interrupt_as_soon_as_it_may_come_ends_one_as_it_ends_a_program(capsys):
    def interrupted():
        raise KeyboardInterrupt

    work = runpy.run_path(str(CHILD))["work"]
    assert work("print('begun')", [], interrupted) == -signal.SIGINT
    assert "begun" not in capsys.readouterr().out


def test_one_that_runs_is_seen_at_work(started):
    one = started(program=LIVES)
    until = time.monotonic() + 600
    while one.stdout != "begun\n":
        assert time.monotonic() < until
        time.sleep(0.01)
    with pytest.raises(subprocess.TimeoutExpired):
        one.wait(0.1)
    assert one.returncode is None
    one.kill()
    assert one.wait(600) == one.poll() == -signal.SIGKILL
    one.kill()


def test_one_is_spoken_with_by_pipes(started):
    one = started(
        "!",
        program="import sys\nfor l in sys.stdin: print(l.strip(), *sys.argv[1:], flush=True)",
        piped=True,
    )
    one.stdin.write("a\n")
    one.stdin.flush()
    assert one.stdout.readline() == "a !\n"
    one.stdin.close()
    assert one.wait(600) == 0
    assert one.stdout.read() == ""


def test_the_one_that_all_are_forked_from_has_no_thread(started):
    program = (
        "import os; print(*(len(os.listdir(f'/proc/{i}/task')) for i in (os.getppid(), 'self')))"
    )
    one = started(program=program)
    assert one.wait(600) == 0, one.stderr
    assert one.stdout == "1 1\n"


def test_chance_is_their_own(started):
    program = "import random, numpy\nprint(random.random(), numpy.random.rand())"
    both = [started(program=program) for _ in range(2)]
    assert [one.wait(600) for one in both] == [0, 0]
    assert not set(both[0].stdout.split()) & set(both[1].stdout.split())


WORKERS = """
import multiprocessing, os, signal, sys, time
context = multiprocessing.get_context("spawn")

def said(number):
    if number:
        os.kill(os.getpid(), number)
    parent = multiprocessing.parent_process()
    print(os.getppid() == parent.pid, os.getcwd(), os.getenv("GIVEN"), sys.argv, flush=True)
    print(signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.getsignal(signal.SIGINT), flush=True)
    raise SystemExit(4)

if __name__ == "__main__":
    os.environ["GIVEN"] = "late"
    os.chdir("..")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, print)
    for number in (0, signal.SIGKILL, signal.SIGTERM, 0):
        process = context.Process(target=said, args=(number,))
        process.start()
        process.join()
        print(process.exitcode, flush=True)
    with context.Pool(2) as pool:
        print(pool.map(abs, [-1, 2, -3]))
"""


@pytest.mark.parametrize("quick", [False, True])
def test_workers_are_as_of_new_interpreters(quick, started, tmp_path):
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    expected = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    program = (
        f"import sys; sys.argv[:] = [{str(script)!r}]; __file__ = sys.argv[0]; __spec__ = None\n"
        "exec(compile(open(__file__).read(), __file__, 'exec'))"
    )
    one = started(program=program, cwd=tmp_path, quick_workers=quick)
    assert one.wait(600) == expected.returncode == 0, one.stderr
    assert one.stdout == expected.stdout
    assert expected.stdout.splitlines()[2:5] == ["4", "-9", "-15"]
    assert one.stderr == expected.stderr
