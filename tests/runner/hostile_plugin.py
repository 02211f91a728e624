"""A plug-in of the tests: networks that do to their process what it must survive, or at least not pass on."""

import ctypes
import os
import signal
import subprocess
import sys

from torch import nn

from bench.registry import register_model


class MuteError(Exception):
    def __str__(self):
        raise ValueError("no text")


class LocalError(Exception):
    """Cannot be pickled: it holds what cannot."""

    def __init__(self):
        super().__init__("holds a lambda")
        self.held = lambda: None


class Own(BaseException):
    pass


def fine(num_classes, in_chans):
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * in_chans, num_classes))


@register_model(family="hostile")
def hostile_segfault(num_classes, in_chans, img_size):
    ctypes.string_at(0)


@register_model(family="hostile")
def hostile_exit(num_classes, in_chans, img_size):
    sys.exit("good bye")


@register_model(family="hostile")
def hostile_end(num_classes, in_chans, img_size):
    os._exit(0)


@register_model(family="hostile")
def hostile_mute(num_classes, in_chans, img_size):
    raise MuteError


@register_model(family="hostile")
def hostile_unpicklable(num_classes, in_chans, img_size):
    raise LocalError


@register_model(family="hostile")
def hostile_own(num_classes, in_chans, img_size):
    raise Own("of its own kind")


@register_model(family="hostile")
def hostile_recursion(num_classes, in_chans, img_size):
    return hostile_recursion(num_classes, in_chans, img_size)


@register_model(family="hostile")
def hostile_no_module(num_classes, in_chans, img_size):
    return "a network, honestly"


@register_model(family="hostile")
def hostile_closes(num_classes, in_chans, img_size):
    os.closerange(0, 256)
    return fine(num_classes, in_chans)


@register_model(family="hostile")
def hostile_noise(num_classes, in_chans, img_size):
    sys.stdout.buffer.write(bytes(range(256)) * 4096 + b"\n\x1b[2J")
    raise ValueError("\x1b[31mred\x1b[0m\nsecond line " + "x" * 10_000)


@register_model(family="hostile")
def hostile_children(num_classes, in_chans, img_size):
    """Leave a process behind and refuse to be asked to end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "600"])
    print(f"child {child.pid}", flush=True)
    return fine(num_classes, in_chans)


@register_model(family="hostile")
def hostile_wanders(num_classes, in_chans, img_size):
    """Change what a process has only one of."""
    os.chdir("/")
    os.environ.clear()
    sys.path.clear()
    os.umask(0o777)
    return fine(num_classes, in_chans)
