"""Trainings that share a process launch from one thread, and keep the numbers and the modes that they have alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from bench.train import turns

CPU = torch.device("cpu")


def in_threads(*calls):
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(timeout=60) for future in [pool.submit(call) for call in calls]]


def joined(call):
    def run():
        with turns.join(CPU):
            return call()

    return run


def test_all_trainings_launch_from_one_thread_and_a_lone_one_from_its_own():
    here = joined(lambda: turns.launch(threading.get_ident))
    first, second = in_threads(here, here)
    assert first == second != threading.get_ident()
    assert turns.launch(threading.get_ident) == threading.get_ident()


def test_modes_of_the_training_hold_where_it_launches():
    def modes():
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def call():
        found = [turns.launch(modes)]
        with torch.inference_mode():
            found.append(turns.launch(modes))
        with torch.no_grad():
            found.append(turns.launch(modes))
        return [*found, turns.launch(modes)]

    assert in_threads(joined(call)) == [[(True, False), (False, True), (False, False), (True, False)]]


def test_each_draws_the_numbers_it_draws_alone():
    def draws(number, barrier=None):
        turns.seed(number)
        if barrier:
            barrier.wait(60)
        return torch.cat([turns.launch(torch.rand, 3) for _ in range(20)])

    alone = [draws(number) for number in (5, 6)]
    barrier = threading.Barrier(2)
    together = in_threads(joined(lambda: draws(5, barrier)), joined(lambda: draws(6, barrier)))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_seeding_waits_for_no_launch_of_another():
    begun, seeded = threading.Event(), threading.Event()

    def long():
        begun.set()
        return seeded.wait(60)

    def other():
        begun.wait(60)
        turns.seed(7)
        seeded.set()
        return turns.launch(torch.rand, 1)

    waited, drawn = in_threads(joined(lambda: turns.launch(long)), joined(other))
    torch.manual_seed(7)
    assert waited and torch.equal(drawn, torch.rand(1))


def test_an_error_of_a_launch_reaches_its_training_and_no_other():
    def fails():
        raise ValueError("no")

    def call():
        with pytest.raises(ValueError, match="no"):
            turns.launch(fails)
        return turns.launch(turns.joined)

    assert in_threads(joined(call), joined(call)) == [True, True]
