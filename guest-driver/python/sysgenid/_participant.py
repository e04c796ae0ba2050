# SPDX-License-Identifier: Apache-2.0
"""The thread by which this process takes part in a snapshot."""

import ctypes
import errno
import functools
import signal
import threading
import time
import traceback

from ._renewal import Renewal

# How often is looked whether a request is over that this process does not park for.
_SOON = 0.02
# How often a generation is looked at that was not acknowledged.
_LATER = 1.0


class Participant:
    """Waits for requests and generations, and does what is to be done."""

    def __init__(self, device, hooks, close_connections):
        self._device = device
        self._hooks = hooks
        self._close = close_connections
        self._unhandled = None
        self._ends = False
        self._thread = threading.Thread(target=self._run, name="sysgenid", daemon=True)

    def start(self):
        self._thread.start()

    def end(self):
        self._ends = True
        self._device.wake()
        self._thread.join()
        self._device.close()

    def abandon(self):
        """In the child of a fork(2), which has no such thread, but the file of its parent."""
        self._device.close()

    def _run(self):
        # No handler may end the call that parks.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while not self._ends:
            try:
                self._turn()
            except Exception:
                # Whatever it was: the next request is still waited for.
                traceback.print_exc()
                self._device.wait(_LATER, moved=False)

    def _turn(self):
        if self._unhandled is None:
            asked, moved = self._device.wait()
        else:
            asked, _ = self._device.wait(_LATER, moved=False)
            moved = self._device.read() not in (None, self._unhandled)
        if self._ends:
            return
        if asked:
            self._take_part()
        elif moved:
            # A restore that nobody asked for first. Threads have run in the new generation already.
            self._adapt("clone", close=self._close)

    def _take_part(self):
        if not self._before():
            # Not parked: the host's limit decides. Requests that are over are seen in the mapping.
            while self._device.counter.pending() and not self._ends:
                time.sleep(_SOON)
            if self._device.read() is None:
                self._after("original", self._device.counter.generation())
            return
        outcome = -1
        while outcome < 0:
            renewal = Renewal(self._hooks.generators(), connections=self._close)
            outcome = renewal.run(self._device.park())
            if outcome < 0 and ctypes.get_errno() != errno.EINTR:
                code = ctypes.get_errno()
                self._after("original", self._device.counter.generation())
                raise OSError(code, "could not park")
        if outcome == 1:
            self._adapt("clone", close=False)
        else:
            self._after("original", self._device.counter.generation())

    def _adapt(self, role, close):
        """Looks at the generation before anything is renewed for it: so none is missed."""
        generation = self._device.read()
        if generation is None:
            self._after(role, self._device.counter.generation())
            return
        Renewal(self._hooks.generators(), connections=close).run(functools.partial(int, 1))
        self._unhandled = generation
        # A generation that began meanwhile is found by the next turn.
        if self._after(role, generation):
            self._device.acknowledge(generation)
            self._unhandled = None

    def _before(self):
        for hook in reversed(self._hooks.before):
            try:
                hook()
            except Exception:
                traceback.print_exc()
                return False
        return True

    def _after(self, role, generation):
        well = True
        for hook in list(self._hooks.after):
            try:
                hook(role, generation)
            except Exception:
                traceback.print_exc()
                well = False
        return well
