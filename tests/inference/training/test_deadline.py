"""A process that cannot stop when asked to ends by its deadline."""

import signal
import subprocess
import sys
import time

WAITING = """
import time
from inference.training.deadline import Deadline
from inference.training.interrupts import StopSignals

with StopSignals(), Deadline({seconds}, "this one was stuck", 2):
    print("ready", flush=True)
    time.sleep({work})
print("done", flush=True)
"""


def ended(seconds: float, work: float) -> tuple[int, str, str, float]:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING.format(seconds=seconds, work=work)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    stdout, stderr = process.communicate(timeout=60)
    return process.returncode, stdout, stderr, time.monotonic() - asked


def test_who_is_stuck_ends_with_a_line() -> None:
    code, stdout, stderr, seconds = ended(0.2, 50)
    assert (code, stdout, stderr) == (2, "", "this one was stuck\n")
    assert seconds < 50


def test_who_ends_by_itself_is_left_alone() -> None:
    assert ended(50, 0.2)[:3] == (0, "done\n", "")
