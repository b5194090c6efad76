import signal
import subprocess
import sys

import pytest

LOOP = """
from threading import Event
from services.loops import stopped_by_signals
stop = Event()
stopped_by_signals(stop)
print("ready", flush=True)
while not stop.wait(0):
    pass
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_loop_wherever_they_meet_it_and_however_many_come(number: signal.Signals) -> None:
    loops = [subprocess.Popen([sys.executable, "-c", LOOP], stdout=subprocess.PIPE) for _ in range(3)]
    try:
        for loop in loops:
            assert loop.stdout is not None
            assert loop.stdout.readline() == b"ready\n"
        for loop in loops * 20:
            loop.send_signal(number)
        # a signal may still come when the interpreter is already taken down
        assert {loop.wait(20) for loop in loops} <= {0, -number}
    finally:
        for loop in loops:
            loop.kill()
            loop.communicate()
