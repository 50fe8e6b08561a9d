"""Processes that tests fork behave like new interpreters."""

import os
import signal
import subprocess
import sys
import time

import child
import pytest

SLEEP = "print('begun', flush=True)\nimport time\ntime.sleep(60)"


def test_a_command_has_the_output_and_exit_code_of_a_new_interpreter(topicell, tmp_path):
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
def test_a_program_has_the_output_and_exit_code_of_a_new_interpreter(
    program, started, monkeypatch, tmp_path
):
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
        # A program that a shell runs in the background ignores Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        check=False,
    )
    process = started("a", "b c", program=program, cwd=tmp_path, env={"TAKEN": None, "GIVEN": "2"})
    assert process.wait(600) == process.returncode == expected.returncode, process.stderr
    assert process.stdout == expected.stdout
    assert process.stderr == expected.stderr


def test_a_killed_process_does_not_affect_the_next(started):
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSEGV):
        process = started(program=SLEEP)
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(600) == -number
    processes = [started(program=SLEEP) for _ in range(5)]
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)
    assert [process.wait(600) for process in processes] == [-signal.SIGKILL] * 5
    assert started(program="print(1)").wait(600) == 0


def test_an_interrupt_before_the_program_starts_ends_it(capsys):
    def interrupt():
        raise KeyboardInterrupt

    assert child.run_program("print('begun')", [], interrupt) == -signal.SIGINT
    assert "begun" not in capsys.readouterr().out


def test_output_and_exit_code_can_be_read_while_a_process_runs(started):
    process = started(program=SLEEP)
    until = time.monotonic() + 600
    while process.stdout != "begun\n":
        assert time.monotonic() < until
        time.sleep(0.01)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    assert process.returncode is None
    process.kill()
    assert process.wait(600) == process.poll() == -signal.SIGKILL
    process.kill()


def test_pipes_connect_standard_input_and_output(started):
    process = started(
        "!",
        program="import sys\nfor l in sys.stdin: print(l.strip(), *sys.argv[1:], flush=True)",
        piped=True,
    )
    process.stdin.write("a\n")
    process.stdin.flush()
    assert process.stdout.readline() == "a !\n"
    process.stdin.close()
    assert process.wait(600) == 0
    assert process.stdout.read() == ""


@pytest.mark.linux
def test_the_process_that_is_forked_has_no_thread(started):
    program = (
        "import os; print(*(len(os.listdir(f'/proc/{i}/task')) for i in (os.getppid(), 'self')))"
    )
    process = started(program=program)
    assert process.wait(600) == 0, process.stderr
    assert process.stdout == "1 1\n"


def test_each_process_draws_other_random_numbers(started):
    program = "import random, numpy\nprint(random.random(), numpy.random.rand())"
    both = [started(program=program) for _ in range(2)]
    assert [process.wait(600) for process in both] == [0, 0]
    assert not set(both[0].stdout.split()) & set(both[1].stdout.split())


WORKERS = """
import multiprocessing, os, signal, sys, time
context = multiprocessing.get_context("spawn")

def report(number):
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
        process = context.Process(target=report, args=(number,))
        process.start()
        process.join()
        print(process.exitcode, flush=True)
    with context.Pool(2) as pool:
        print(pool.map(abs, [-1, 2, -3]))
"""


@pytest.mark.parametrize("quick", [False, True])
def test_workers_behave_like_new_interpreters(quick, started, tmp_path):
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    expected = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    program = (
        f"import sys; sys.argv[:] = [{str(script)!r}]; __file__ = sys.argv[0]; __spec__ = None\n"
        "exec(compile(open(__file__).read(), __file__, 'exec'))"
    )
    process = started(program=program, cwd=tmp_path, quick_workers=quick)
    assert process.wait(600) == expected.returncode == 0, process.stderr
    assert process.stdout == expected.stdout
    assert expected.stdout.splitlines()[2:5] == ["4", "-9", "-15"]
    assert process.stderr == expected.stderr
