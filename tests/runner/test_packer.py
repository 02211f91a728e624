"""How many trainings share a GPU: decided by speeds that follow a known law."""

import pytest

from bench.runner.executors.packer import Packer


def settle(speed_of, free=lambda n: 1.0, most=8, tell=lambda line: None):
    """Feed a packer until it stays: n trainings each run at ``speed_of(n)``."""
    packer = Packer(most, tell)
    for second in range(100):
        n = packer.places
        for ticket in map(str, range(n)):
            packer.heard(ticket, speed_of(n), 9, second, running=n, free_share=free(n))
    return packer


@pytest.mark.parametrize(
    ("speed_of", "places"),
    [
        (lambda n: 1000 / n, 1),  # they take turns: nothing is gained
        (lambda n: 1000, 8),  # they do not notice each other
        (lambda n: 1000 * min(1, 3 / n), 3),  # the device is full with three
        (lambda n: 1000 / n**0.5, 8),  # each brings less than the one before, but more than 5 %
    ],
)
def test_places_grow_as_long_as_that_pays(speed_of, places):
    packer = settle(speed_of)
    assert packer.places == places
    assert "times the work of" in packer.said


def test_one_line_says_what_was_measured():
    told = []
    packer = settle(lambda n: 1000 * min(1, 3 / n), tell=told.append)
    packer.settle()
    assert told == ["--pack auto: 4 trainings at a time do 1.00 times the work of 3; up to 3 share a GPU"]
    early = []
    packer = Packer(tell=early.append)
    packer.settle()
    assert early == [], "nothing was measured"


def test_memory_is_a_limit():
    assert settle(lambda n: 1000, free=lambda n: 1 - 0.2 * n).places == 4


def test_one_that_ended_says_nothing_of_the_next():
    packer = Packer()
    for second in range(3):
        packer.heard("slow", 10, 9, second, running=1, free_share=1.0)
    assert packer.places == 2
    packer.ended("slow")
    for second in range(3, 8):
        packer.heard("fast", 1000, 9, second, running=2, free_share=1.0)
        packer.heard("other", 1000, 9, second, running=2, free_share=1.0)
    assert packer.places == 3, "with no speed of the same training before, it is tried"


def test_the_start_of_a_training_says_nothing():
    packer = Packer()
    for second in range(60):  # of three epochs, which compile and record
        packer.heard("one", 1, 1 + second // 20, second, running=1, free_share=1.0)
    assert packer.places == 1
    for number in range(100):  # many short epochs in one second are not enough either
        packer.heard("one", 1000, 4 + number, 60 + number / 100, running=1, free_share=1.0)
    assert packer.places == 1
    packer.heard("one", 1000, 104, 62, running=1, free_share=1.0)
    assert packer.places == 2
