# SPDX-License-Identifier: Apache-2.0
"""What the runtime keeps that must not be the same in two machines, and its renewal.

The thread that parks holds the GIL, so no other thread runs Python while the machine is cloned. It
must not give it up before everything is renewed. CPython gives the GIL up at the ends of calls and
of turns of a loop, and in functions that release it, such as os.urandom. So parking and renewing
are *one call* of a function in C that calls functions in C: the steps below. None of them runs
bytecode or releases the GIL.

Generators of numpy are drawn from without the GIL, but under a lock of their own. These locks are
taken before, and given back when the generators are renewed.
"""

import collections
import contextlib
import ctypes
import functools
import gc
import itertools
import operator
import os
import socket
import sys
import threading
import time
import traceback
import _random

from ._device import libc

try:
    # One for all threads: they see that the primary generator was reseeded.
    from _ssl import RAND_add
except ImportError:
    RAND_add = None

_SEED = 64
_TCP_REPAIR = getattr(socket, "TCP_REPAIR", 19)
# Of one wait for threads that draw from numpy's generators.
LOCKS_SECONDS = 1.0
# Lets a fork(2) of another thread come in between.
_PAUSE = 0.001

_step = functools.partial
_call = functools.partial.__call__

# No fork(2) while locks are held: nobody would give them back in the child.
_forks = threading.Lock()
os.register_at_fork(
    before=_forks.acquire, after_in_parent=_forks.release, after_in_child=_forks.release
)


class Renewal:
    """Everything that there is to renew at this moment."""

    def __init__(self, registered=(), connections=False):
        self.outcome = []
        self.steps = []
        self.in_clone = []
        self._drawn = []
        self._random = []
        self._numpy = []
        self._open = []
        self._sockets = []
        for generator in itertools.chain(_of_the_runtime(), registered):
            if isinstance(generator, _random.Random):
                self._random.append(generator)
                self._add_random(generator)
            else:
                self._numpy.append(generator)
        self._add_uuid()
        if RAND_add is not None:
            self.steps.append(_step(RAND_add, self._fresh(_SEED), 0.0))
        self._connections = connections
        if connections:
            self._add_connections()

    def _fresh(self, length):
        """A buffer that a step fills from the kernel's generator."""
        buffer = (ctypes.c_char * length)()
        draw = _step(libc.getrandom, buffer, length, 0)
        self.steps.append(_step(next, map(self._drawn.append, map(_call, itertools.repeat(draw)))))
        return buffer

    def _fresh_int(self, length):
        """An iterator of integers, each made of the buffer when it is asked for."""
        repeat = itertools.repeat
        return map(int.from_bytes, repeat(self._fresh(length)), repeat("little"))

    def _add_random(self, generator):
        numbers = self._fresh_int(_SEED)
        seed = map(_random.Random.seed, itertools.repeat(generator), numbers)
        self.steps.append(_step(next, seed))
        if type(generator) is sys.modules["random"].Random:
            generator.__class__ = _forgetful()
        elif not isinstance(getattr(type(generator), "gauss_next", None), property):
            self.steps.append(_step(setattr, generator, "gauss_next", None))

    def _add_uuid(self):
        uuid = sys.modules.get("uuid")
        if uuid is None:
            return
        for name, value in vars(uuid).copy().items():
            if name.startswith("_last_") and isinstance(value, int):
                self.steps.append(_step(setattr, uuid, name, None))
        # A random node, as RFC 4122 has it in 4.5: clones may have one address of the network.
        repeat = itertools.repeat
        node = map(operator.or_, self._fresh_int(6), repeat(1 << 40))
        self.steps.append(_step(next, map(setattr, repeat(uuid), repeat("_node"), node)))
        # The C library has a clock and a node of its own.
        for name in ("_generate_time_safe", "_UuidCreate"):
            if hasattr(uuid, name):
                self.steps.append(_step(setattr, uuid, name, None))

    def _add_connections(self):
        """In a clone: takes the sockets from all connections of http.client and urllib3."""
        client = sys.modules.get("http.client")
        if client is None:
            return
        repeat, objects = itertools.repeat, []
        # By their types: asking an object for its class may run its code.
        kinds = map(issubclass, map(type, objects), repeat(client.HTTPConnection))
        sockets = map(getattr, self._open, repeat("sock"), repeat(None))
        cut = map(setattr, self._open, repeat("sock"), repeat(None))
        self.in_clone = [
            _step(next, map(objects.extend, map(_call, repeat(_step(gc.get_objects))))),
            _step(self._open.extend, itertools.compress(objects, kinds)),
            _step(objects.clear),
            _step(self._sockets.extend, sockets),
            _step(collections.deque, cut, 0),
        ]

    def run(self, park):
        """Parks and renews; returns what parking returned. Raises if something was not renewed."""
        well, late = True, []
        with _forks, contextlib.ExitStack() as locks:
            busy = [generator for generator in self._numpy if not _lock(locks, generator)]
            try:
                self._run(park)
            finally:
                for generator in self._numpy:
                    if generator not in busy:
                        well &= _renew_numpy(generator)
        while busy:
            # Whoever draws from it ends at some time; a later version of numpy waits in any case.
            with _forks, contextlib.ExitStack() as locks:
                if _lock(locks, busy[0]):
                    late.append(busy.pop(0))
                    well &= _renew_numpy(late[-1])
            time.sleep(_PAUSE)
        for _ in late:
            _say("a generator of numpy was drawn from for long; it was renewed late")
        self._close()
        if not well:
            raise RuntimeError("a generator of numpy could not be renewed")
        return self.outcome[0]

    def _run(self, park):
        # Looked at after parking.
        cloned = map((1).__eq__, itertools.cycle(self.outcome))
        chain = itertools.chain(
            map(self.outcome.append, map(_call, (park,))),
            map(_call, self.steps),
            map(_call, itertools.compress(self.in_clone, cloned)),
        )
        # Collecting garbage may run bytecode, in the older versions of Python at any time.
        collects = gc.isenabled()
        gc.disable()
        failed = None
        try:
            collections.deque(chain, 0)
        except Exception as error:
            failed = error
        finally:
            if collects:
                gc.enable()
        self._check(failed)

    def _check(self, failed):
        """What went wrong is done again, in the ordinary way: late, but done."""
        if failed is None and all(drawn > 0 for drawn in self._drawn):
            return
        if failed is not None:
            traceback.print_exception(type(failed), failed, failed.__traceback__)
        _say("renewing failed and is done again; other threads may have run in between")
        if not self.outcome:
            raise failed
        self._drawn.clear()
        again = list(self.steps)
        if self.outcome[0] == 1 and self._connections:
            self._add_connections()
            again += self.in_clone
        well = True
        for step in again:
            try:
                step()
            except Exception:
                traceback.print_exc()
                well = False
        for generator in self._random:
            _random.Random.seed(generator, int.from_bytes(os.urandom(_SEED), "little"))
        if not well or any(drawn <= 0 for drawn in self._drawn):
            raise RuntimeError("renewing has failed twice")

    def _close(self):
        """Without a word to the peer where that is allowed: the original may still use it."""
        for sock in self._sockets:
            if sock is None:
                continue
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
            with contextlib.suppress(OSError):
                sock.close()
        # They have no sockets any more.
        for connection in self._open:
            with contextlib.suppress(Exception):
                connection.close()


@functools.lru_cache(maxsize=None)
def _forgetful():
    """random.Random that keeps nothing: gauss() may be about to, while it is renewed."""
    import random

    class Random(random.Random):
        gauss_next = property(lambda self: None, lambda self, value: None)

        def __reduce__(self):
            return random.Random, (), self.getstate()

    return Random


def _of_the_runtime():
    """The generators that modules keep: those of modules that were imported by now."""
    random = sys.modules.get("random")
    if random is not None:
        yield random._inst
    names = getattr(sys.modules.get("tempfile"), "_name_sequence", None)
    if isinstance(getattr(names, "_rng", None), _random.Random):
        yield names._rng
    numpy = sys.modules.get("numpy.random.mtrand")
    if hasattr(numpy, "_rand"):
        yield numpy._rand


def _bits(generator):
    """The bit generator of one of numpy's generators, or itself."""
    for name in ("bit_generator", "_bit_generator"):
        if hasattr(generator, name):
            return getattr(generator, name)
    return generator


def _lock(stack, generator):
    lock = _bits(generator).lock
    held = lock.acquire(timeout=LOCKS_SECONDS)
    if held:
        stack.callback(lock.release)
    return held


def _renew_numpy(generator):
    """Whether it went well. If not, the others are renewed all the same."""
    try:
        bits = _bits(generator)
        state = type(bits)(int.from_bytes(os.urandom(_SEED), "little")).state
        if hasattr(generator, "set_state"):
            # The old RandomState, which keeps every other normal number for later.
            generator.set_state({**state, "has_gauss": 0, "gauss": 0.0})
        else:
            bits.state = state
    except Exception:
        traceback.print_exc()
        return False
    return True


def is_generator(generator):
    """Whether it can be renewed."""
    if isinstance(generator, _random.Random):
        return True
    bits = _bits(generator)
    return hasattr(bits, "lock") and hasattr(bits, "state")


def _say(text):
    print(f"sysgenid: {text}", file=sys.stderr, flush=True)
