# SPDX-License-Identifier: Apache-2.0
"""Renewal without a device: a call that sleeps and keeps the GIL stands for parking."""

import contextlib
import copy
import ctypes
import functools
import gc
import http.client
import io
import itertools
import os
import random
import socket
import sys
import tempfile
import threading
import time
import unittest
import unittest.mock
import weakref
import uuid

import numpy

from sysgenid import _renewal
from sysgenid._device import libc
from sysgenid._renewal import Renewal

THREADS = 4
ROUNDS = 10
ORIGINAL = functools.partial(int, 0)
CLONE = functools.partial(int, 1)

libc.usleep.argtypes = (ctypes.c_uint,)
# Much longer than the time after which a waiting thread asks for the GIL.
SWITCH_SECONDS = 0.0005
sleep = functools.partial(libc.usleep, 10_000)
now = time.monotonic_ns


class Draws:
    """Threads that draw from the module's generator, and how many old values came after parking."""

    def __init__(self, seed):
        random.seed(seed)
        self.reference = random.Random(seed)
        self.logs = [[] for _ in range(THREADS)]
        self.end = False
        self.threads = [threading.Thread(target=self._draw, args=(log,)) for log in self.logs]

    def _draw(self, log):
        while not self.end:
            begun = now()
            log.append((begun, random.getrandbits(64)))

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        while not all(self.logs):
            time.sleep(0.001)
        return self

    def __exit__(self, *_):
        # Each thread draws after the renewal as well.
        lengths = [len(log) for log in self.logs]
        while any(len(log) <= length for log, length in zip(self.logs, lengths)):
            time.sleep(0.001)
        self.end = True
        for thread in self.threads:
            thread.join()

    def old_after(self, moment):
        drawn = list(itertools.chain(*self.logs))
        old = {self.reference.getrandbits(64) for _ in range(len(drawn) + 100)}
        late = [value for begun, value in drawn if begun > moment]
        assert late, "nobody drew after parking"
        return sum(value in old for value in late)


def sleep_and_look(moments):
    """Parking, and the time at its end, without a bytecode in between."""
    steps = map(functools.partial.__call__, (sleep, functools.partial(now)))
    return functools.partial(max, map(moments.append, steps), key=id)


class Atomicity(unittest.TestCase):
    def setUp(self):
        self.addCleanup(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(SWITCH_SECONDS)

    def test_no_thread_draws_an_old_value_between_parking_and_renewal(self):
        for turn in range(ROUNDS):
            with Draws(turn) as draws:
                moments = []
                Renewal().run(sleep_and_look(moments))
            self.assertEqual(draws.old_after(moments[1]), 0, f"round {turn}")

    def test_threads_draw_old_values_if_each_step_is_a_call_of_its_own(self):
        """The control: the same steps in the same order, with bytecode in between."""
        for turn in range(ROUNDS):
            with Draws(turn) as draws:
                moments = []
                sleep_and_look(moments)()
                random.seed(os.urandom(64))
            if draws.old_after(moments[1]) > 0:
                return
        self.fail("the test would not see a renewal that other threads can cut")


class Renewed(unittest.TestCase):
    """Two renewals of one state give two states, as in two clones of one snapshot."""

    def renew(self, *generators, **options):
        return Renewal(generators, **options).run(CLONE)

    def differ(self, draw, restore):
        restore()
        stale = draw()
        restore()
        self.assertEqual(draw(), stale, "the control: without renewal it is the same")
        seen = {stale}
        for _ in range(3):
            restore()
            self.renew(*self.generators)
            seen.add(draw())
        self.assertEqual(len(seen), 4)

    generators = ()

    def test_the_modules_generator(self):
        state = random.getstate()
        self.differ(random.random, lambda: random.setstate(state))

    def test_a_normal_number_that_was_kept_for_later(self):
        generator, twin = random.Random(1), random.Random(1)
        for each in (generator, twin):
            each.gauss(0, 1)
        self.renew(generator)
        self.assertNotEqual(generator.gauss(0, 1), twin.gauss(0, 1))
        self.assertIs(type(copy.copy(generator)), random.Random)

    def test_a_normal_number_that_a_thread_keeps_too_late_is_not_given(self):
        generator, twin = random.Random(1), random.Random(1)
        twin.gauss(0, 1)
        inside, goes_on, sine = threading.Event(), threading.Event(), random._sin

        def slow(angle):
            inside.set()
            goes_on.wait()
            return sine(angle)

        with unittest.mock.patch.object(random, "_sin", slow):
            thread = threading.Thread(target=generator.gauss, args=(0, 1))
            thread.start()
            inside.wait()
            self.renew(generator)
            goes_on.set()
            thread.join()
        self.assertNotEqual(generator.gauss(0, 1), twin.gauss(0, 1))

    def test_a_child_of_a_fork_has_no_lock_that_nobody_gives_back(self):
        generator = numpy.random.default_rng(1)
        held, forks = threading.Event(), threading.Event()
        lock = _renewal._lock

        def slow(*given):
            result = lock(*given)
            if given[1] is generator:
                held.set()
                forks.wait(0.2)
            return result

        with unittest.mock.patch.object(_renewal, "_lock", slow):
            thread = threading.Thread(target=self.renew, args=(generator,))
            thread.start()
            held.wait()
            child = os.fork()
            if child == 0:
                os._exit(0 if generator.bit_generator.lock.acquire(timeout=1) else 9)
            forks.set()
            thread.join()
        self.assertEqual(os.waitpid(child, 0)[1], 0)

    def test_registered_generators_get_states_of_their_own(self):
        one, other = random.Random(1), random.Random(1)
        Renewal((one, other)).run(CLONE)
        values = {generator.random() for generator in (one, other, random)}
        self.assertEqual(len(values), 3)

    def test_an_unregistered_generator_goes_on(self):
        other = random.Random(1)
        self.renew()
        self.assertEqual(other.random(), random.Random(1).random())

    def test_names_of_temporary_files(self):
        names = tempfile._get_candidate_names()
        next(names)
        state = names._rng.getstate()
        self.differ(lambda: next(names), lambda: names._rng.setstate(state))

    def test_numpys_global_generator(self):
        numpy.random.standard_normal()
        state = numpy.random.get_state(legacy=False)
        self.assertEqual(state["has_gauss"], 1)
        restore = functools.partial(numpy.random.set_state, state)
        self.differ(numpy.random.standard_normal, restore)
        self.differ(numpy.random.random, restore)

    def test_every_bit_generator_of_numpy(self):
        for kind in ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"):
            generator = numpy.random.Generator(getattr(numpy.random, kind)(7))
            # One half of 64 bits is kept for later by some of them.
            generator.integers(0, 9, dtype="uint32")
            state = generator.bit_generator.state
            self.generators = (generator,)

            def restore(generator=generator, state=state):
                generator.bit_generator.state = state

            with self.subTest(kind):
                self.differ(generator.random, restore)
                self.differ(lambda: int(generator.integers(0, 2**32, dtype="uint32")), restore)

    def test_a_thread_that_draws_from_numpy_without_the_gil_is_waited_for(self):
        generator = numpy.random.default_rng(1)
        lock, events = generator.bit_generator.lock, []
        lock.acquire()

        park = functools.partial(list.__len__, events)
        thread = threading.Thread(
            target=lambda: events.append(Renewal((generator,)).run(park))
        )
        thread.start()
        time.sleep(0.05)
        self.assertEqual(events, [])
        lock.release()
        thread.join()
        self.assertEqual(events, [0])

    def test_a_generator_of_numpy_that_is_drawn_from_for_long_is_renewed_late(self):
        generator, limit = numpy.random.default_rng(1), _renewal.LOCKS_SECONDS
        lock, parked = generator.bit_generator.lock, threading.Event()
        stale = numpy.random.default_rng(1).random()
        _renewal.LOCKS_SECONDS = 0.01
        self.addCleanup(setattr, _renewal, "LOCKS_SECONDS", limit)
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            lock.acquire()
            run = functools.partial(Renewal((generator,)).run, functools.partial(parked.set))
            thread = threading.Thread(target=run)
            thread.start()
            # Not for ever, or the host's request would be over.
            self.assertTrue(parked.wait(60))
            lock.release()
            thread.join()
        self.assertNotEqual(generator.random(), stale)
        self.assertIn("renewed late", errors.getvalue())

    def test_uuids_of_the_first_version(self):
        uuid.uuid1()
        self.renew()
        nodes = set()
        for _ in range(3):
            self.renew()
            made = uuid.uuid1()
            self.assertEqual((made.version, made.node >> 40 & 1), (1, 1))
            nodes.add(made.node)
        self.assertEqual(len(nodes), 3)

    def test_garbage_is_collected_again_afterwards(self):
        self.renew()
        self.assertTrue(gc.isenabled())

    def test_a_step_that_fails_does_not_leave_the_others_out(self):
        class Odd(random.Random):
            def __setattr__(self, name, value):
                if name == "gauss_next" and "odd" in self.__dict__:
                    raise ValueError("this one is odd")
                super().__setattr__(name, value)

        state = random.getstate()
        stale = random.random()
        random.setstate(state)
        odd = Odd(1)
        odd.odd = True
        with contextlib.redirect_stderr(io.StringIO()), self.assertRaises(RuntimeError):
            Renewal((odd,)).run(CLONE)
        self.assertNotEqual(random.random(), stale)
        self.assertNotEqual(odd.random(), random.Random(1).random())

    def test_a_renewal_whose_bits_did_not_come_is_done_again(self):
        state, getrandom = random.getstate(), libc.getrandom
        seen = set()
        libc.getrandom = lambda *_: -1
        try:
            for _ in range(2):
                random.setstate(state)
                with contextlib.redirect_stderr(io.StringIO()), self.assertRaises(RuntimeError):
                    Renewal().run(CLONE)
                seen.add(random.random())
        finally:
            libc.getrandom = getrandom
        self.assertEqual(len(seen), 2)


class Connections(unittest.TestCase):
    def setUp(self):
        self.server = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.server.close)
        self.client = http.client.HTTPConnection(*self.server.getsockname())
        self.client.connect()
        self.addCleanup(self.client.close)

    def test_a_clone_has_no_connection_of_the_originals(self):
        before = self.client.sock
        Renewal(connections=True).run(CLONE)
        self.assertIsNone(self.client.sock)
        self.assertEqual(before.fileno(), -1)

    def test_whatever_else_there_is_in_memory(self):
        ran = []

        class Lazy:
            @property
            def __class__(self):
                ran.append(1)
                return Lazy

        lazy = Lazy()
        kept = [lazy, weakref.proxy(lambda: None)]
        lazy.itself = kept
        Renewal(connections=True).run(CLONE)
        self.assertEqual(ran, [])
        self.assertIsNone(self.client.sock)

    def test_also_if_another_step_fails(self):
        renewal = Renewal(connections=True)
        # It can be called, but not in the one call: that ends, and is done again.
        renewal.steps.append(unittest.mock.Mock())
        with contextlib.redirect_stderr(io.StringIO()):
            renewal.run(CLONE)
        self.assertIsNone(self.client.sock)

    def test_the_original_keeps_its_own(self):
        Renewal(connections=True).run(ORIGINAL)
        self.assertIsNotNone(self.client.sock)

    def test_nobody_loses_connections_unless_asked(self):
        Renewal().run(CLONE)
        self.assertIsNotNone(self.client.sock)


if __name__ == "__main__":
    unittest.main()
