# SPDX-License-Identifier: Apache-2.0
"""The thread, with a stand-in for the device."""

import contextlib
import functools
import io
import os
import queue
import random
import sys
import tempfile
import threading
import unittest

import sysgenid
from sysgenid._device import Counter
from sysgenid._participant import Participant


class Page:
    def __init__(self):
        self.number = 1
        self.asks = False

    def generation(self):
        return self.number

    def pending(self):
        return self.asks


class Fake:
    """A driver: events() makes it ask or move, and what it is told is in `said`."""

    def __init__(self):
        self.counter = Page()
        self.acknowledged = 1
        self.said = queue.Queue()
        self.outcome = 0
        self.moves_at_write = False
        self.late = False
        self._changed = threading.Condition()
        self._ends = False

    def happen(self, **changes):
        with self._changed:
            for name, value in changes.items():
                setattr(self.counter, name, value)
            self._changed.notify_all()

    def wait(self, seconds=None, moved=True):
        def ready():
            new = moved and self.counter.number != self.acknowledged
            return self._ends or self.counter.asks or new

        with self._changed:
            # Who has not acknowledged looks again at once here.
            self._changed.wait_for(ready, 0.001 if seconds else None)
            return self.counter.asks, moved and self.counter.number != self.acknowledged

    def read(self):
        return None if self.counter.number == self.acknowledged else self.counter.number

    def acknowledge(self, generation):
        if self.moves_at_write:
            self.moves_at_write = False
            self.counter.number += 1
        if generation != self.counter.number:
            return False
        self.acknowledged = generation
        self.said.put(("acknowledged", generation))
        return True

    def park(self):
        return functools.partial(next, self._parks())

    def _parks(self):
        self.said.put("parked")
        self.counter.asks = False
        self.counter.number += self.outcome
        # Over before anybody parked: the device does not say what this is.
        yield 0 if self.late else self.outcome

    def wake(self):
        self._ends = True
        self.happen()

    def close(self):
        pass


class TakesPart(unittest.TestCase):
    def setUp(self):
        self.device = Fake()
        self.hooks = sysgenid._Hooks()
        for name in "ab":
            self.hooks.before.append(functools.partial(self.say, f"before {name}"))
            self.hooks.after.append(functools.partial(self.say, f"after {name}"))
        self.participant = Participant(self.device, self.hooks, False)
        self.errors = io.StringIO()
        redirect = contextlib.redirect_stderr(self.errors)
        redirect.__enter__()
        self.addCleanup(redirect.__exit__, None, None, None)
        self.participant.start()
        self.addCleanup(self.participant.end)

    def say(self, *words):
        self.device.said.put(words if len(words) > 1 else words[0])

    def hears(self, *expected):
        heard = [self.device.said.get(timeout=60) for _ in expected]
        self.assertEqual(heard, list(expected))

    def fails(self, *_):
        raise RuntimeError("this one fails")

    def test_in_the_original_what_came_last_before_comes_first_and_nothing_is_acknowledged(self):
        self.device.happen(asks=True)
        self.hears("before b", "before a", "parked")
        self.hears(("after a", "original", 1), ("after b", "original", 1))
        self.device.happen(number=2)
        self.hears(("after a", "clone", 2), ("after b", "clone", 2), ("acknowledged", 2))

    def test_a_clone_renews_calls_and_acknowledges(self):
        state = random.getstate()
        stale = random.random()
        random.setstate(state)
        self.device.outcome = 1
        self.device.happen(asks=True)
        self.hears("before b", "before a", "parked")
        self.hears(("after a", "clone", 2), ("after b", "clone", 2), ("acknowledged", 2))
        self.assertNotEqual(random.random(), stale)

    def test_a_clone_that_parks_too_late_is_no_original(self):
        self.device.outcome, self.device.late = 1, True
        self.device.happen(asks=True)
        self.hears("before b", "before a", "parked")
        self.hears(("after a", "clone", 2), ("after b", "clone", 2), ("acknowledged", 2))

    def test_a_program_is_told_that_it_is_over_if_renewal_fails(self):
        self.hooks.generators = self.fails
        self.device.happen(asks=True)
        self.hears("before b", "before a")
        self.device.happen(asks=False)
        self.hears(("after a", "original", 1), ("after b", "original", 1))

    def test_a_callback_that_ends_its_thread_does_not_end_this_one(self):
        self.hooks.before[0] = sys.exit
        self.device.happen(asks=True)
        self.hears("before b")
        self.device.happen(asks=False)
        self.hears(("after a", "original", 1), ("after b", "original", 1))

    def test_a_restore_that_nobody_asked_for_is_told_as_well(self):
        state = random.getstate()
        stale = random.random()
        random.setstate(state)
        self.device.happen(number=7)
        self.hears(("after a", "clone", 7), ("after b", "clone", 7), ("acknowledged", 7))
        self.assertNotEqual(random.random(), stale)

    def test_a_process_that_is_not_ready_does_not_park(self):
        self.hooks.before[0] = self.fails
        self.device.happen(asks=True)
        self.hears("before b")
        # Its after-callbacks come when the request is over, and not before.
        with self.assertRaises(queue.Empty):
            self.device.said.get(timeout=0.1)
        self.device.happen(asks=False)
        self.hears(("after a", "original", 1), ("after b", "original", 1))
        self.assertIn("this one fails", self.errors.getvalue())

    def test_one_that_was_cloned_without_parking_adapts(self):
        self.hooks.before[0] = self.fails
        self.device.happen(asks=True)
        self.hears("before b")
        self.device.happen(asks=False, number=2)
        self.hears(("after a", "clone", 2), ("after b", "clone", 2), ("acknowledged", 2))

    def test_a_generation_that_a_callback_fails_in_stays_unacknowledged(self):
        self.hooks.after[0] = self.fails
        self.device.happen(number=2)
        self.hears(("after b", "clone", 2))
        with self.assertRaises(queue.Empty):
            self.device.said.get(timeout=0.1)
        self.assertIn("this one fails", self.errors.getvalue())
        # The next one is a new chance, and requests are still answered.
        self.hooks.after.pop(0)
        self.device.happen(number=3)
        self.hears(("after b", "clone", 3), ("acknowledged", 3))
        self.device.happen(asks=True)
        self.hears("before b", "before a", "parked", ("after b", "original", 3))

    def test_a_generation_that_begins_meanwhile_is_adapted_to(self):
        self.device.moves_at_write = True
        self.device.happen(number=2)
        self.hears(("after a", "clone", 2), ("after b", "clone", 2))
        self.hears(("after a", "clone", 3), ("after b", "clone", 3), ("acknowledged", 3))


class Module(unittest.TestCase):
    def test_without_a_device_it_says_so_or_goes_on(self):
        with self.assertRaisesRegex(sysgenid.NotInstalled, "/nonexistent.*No such file.*module"):
            sysgenid.install("/nonexistent")
        with self.assertLogs("sysgenid", "WARNING"):
            self.assertFalse(sysgenid.install("/nonexistent", required=False))
        sysgenid.uninstall()

    def test_a_file_is_no_device(self):
        with tempfile.NamedTemporaryFile() as file:
            file.write(bytes(8))
            file.flush()
            with self.assertRaises(sysgenid.NotInstalled):
                sysgenid.install(file.name)

    def test_python_without_its_gil_is_refused(self):
        sysgenid.sys._is_gil_enabled, old = (lambda: False), getattr(
            sysgenid.sys, "_is_gil_enabled", None
        )
        try:
            with self.assertRaisesRegex(sysgenid.NotInstalled, "PYTHON_GIL=1"):
                sysgenid.install("/nonexistent")
        finally:
            if old is None:
                del sysgenid.sys._is_gil_enabled
            else:
                sysgenid.sys._is_gil_enabled = old

    def test_the_counter_is_one_load(self):
        with tempfile.NamedTemporaryFile() as file:
            file.write((5).to_bytes(4, sys.byteorder) + (1).to_bytes(4, sys.byteorder))
            file.flush()
            counter = Counter(file.name)
            self.assertEqual((counter.generation(), counter.pending()), (5, True))
            os.pwrite(file.fileno(), (6).to_bytes(4, sys.byteorder) + bytes(4), 0)
            self.assertEqual((counter.generation(), counter.pending()), (6, False))

    def test_only_generators_can_be_registered_and_only_while_they_live(self):
        with self.assertRaises(TypeError):
            sysgenid.register(7)
        generator = sysgenid.register(random.Random())
        self.assertEqual(sysgenid._hooks.generators(), [generator])
        del generator
        self.assertEqual(sysgenid._hooks.generators(), [])


if __name__ == "__main__":
    unittest.main()
