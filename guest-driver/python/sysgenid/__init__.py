# SPDX-License-Identifier: Apache-2.0
"""This process takes part when its virtual machine is snapshotted, cloned or restored.

    import sysgenid
    sysgenid.install()

README.md says what that renews, when, and what it cannot.
"""

import logging
import os
import sys
import weakref

from ._device import DEVICE, Counter, Device, libc
from ._participant import Participant
from ._renewal import is_generator

__all__ = [
    "DEVICE",
    "NotInstalled",
    "after_fork",
    "before_fork",
    "changed",
    "generation",
    "install",
    "register",
    "uninstall",
    "unregister",
]


class NotInstalled(RuntimeError):
    """This process cannot take part; the message says why."""


class _Hooks:
    def __init__(self):
        self.before = []
        self.after = []
        self._generators = {}

    def generators(self):
        found = [reference() for reference in list(self._generators.values())]
        return [generator for generator in found if generator is not None]

    def register(self, generator):
        if not is_generator(generator):
            raise TypeError(f"this is no random.Random and no generator of numpy: {generator!r}")
        key = id(generator)
        try:
            reference = weakref.ref(generator, lambda _: self._generators.pop(key, None))
        except TypeError:
            # One that cannot be referred to weakly is kept until unregister().
            def reference():
                return generator

        self._generators[key] = reference

    def unregister(self, generator):
        self._generators.pop(id(generator), None)


_hooks = _Hooks()
_participant = None
_arguments = None
_counter = None


def install(device=DEVICE, *, required=True, close_connections=False):
    """Starts the thread that takes part. Once for each process; children of os.fork have it too.

    required=False: where this process cannot take part, that is logged, and nothing is done.
    close_connections: in clones, close connections of http.client, so of urllib3 and requests.

    Raises NotInstalled. Returns whether the thread runs.
    """
    global _participant, _arguments
    if _participant is not None:
        return True
    try:
        _participant = _start(device, close_connections)
    except NotInstalled as error:
        if required:
            raise
        logging.getLogger("sysgenid").warning("%s", error)
        return False
    _arguments = (device, close_connections)
    return True


def _start(path, close_connections):
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        # Parking stops other threads by the GIL. Without it they would draw old numbers unseen.
        raise NotInstalled("Python runs without its GIL; set PYTHON_GIL=1, or see README.md")
    if libc.getrandom(bytes(1), 1, 0) != 1:
        raise NotInstalled("the kernel has no getrandom(2)")
    try:
        device = Device(path)
    except OSError as error:
        raise NotInstalled(
            f"could not use {path}: {error.strerror or error}; is the module sysgenid loaded?"
        ) from error
    if not device.parks:
        logging.getLogger("sysgenid").warning(
            "%s tells of generations, but not before snapshots: renewal is late", path
        )
    participant = Participant(device, _hooks, close_connections)
    participant.start()
    return participant


def uninstall():
    """Ends the thread."""
    global _participant, _arguments
    if _participant is not None:
        _participant.end()
    _participant = _arguments = None


def _in_child():
    """The child of a fork(2) takes part by itself, with a file of its own."""
    global _participant
    if _participant is None:
        return
    _participant.abandon()
    _participant = None
    device, close_connections = _arguments
    install(device, required=False, close_connections=close_connections)


os.register_at_fork(after_in_child=_in_child)


def register(generator):
    """Has a random.Random, or a Generator, RandomState or BitGenerator of numpy renewed as well."""
    _hooks.register(generator)
    return generator


def unregister(generator):
    """Undoes register()."""
    _hooks.unregister(generator)


def before_fork(function):
    """Calls function() when the host asks for a snapshot; the one registered last comes first.

    If it raises, this process does not park, and the snapshot may be refused.
    """
    _hooks.before.append(function)
    return function


def after_fork(function):
    """Calls function(role, generation) after it, the one registered first comes first.

    role: "clone", or "original", also if nothing came of the snapshot. If it raises in a clone, the
    generation is not acknowledged.
    """
    _hooks.after.append(function)
    return function


def generation(device=DEVICE):
    """The counter, by one load from mapped memory."""
    global _counter
    if _counter is None:
        _counter = Counter(device)
    return _counter.generation()


def changed(since):
    """Whether the counter is another than `since`, which generation() has returned."""
    return generation() != since
