"""What all tests of runs need."""

import signal

import pytest


@pytest.fixture(autouse=True)
def interrupts_are_heard():
    """Whoever runs the tests in the background has SIGINT ignored; here it means what Ctrl-C means."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
