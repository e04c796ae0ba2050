# SPDX-License-Identifier: Apache-2.0
"""The thread by which this process takes part in a snapshot."""

import ctypes
import errno
import functools
import os
import signal
import sys
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
            except BaseException:
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
            self._go_on(None)

    def _take_part(self):
        parked = self._park() if self._before() else None
        if parked is None:
            # The host's limit decides. Requests that are over are seen in the mapping.
            while self._device.counter.pending() and not self._ends:
                time.sleep(_SOON)
        self._go_on(parked)

    def _park(self):
        """0 or 1 as the device has it; None: not parked, or not everything was renewed."""
        parked = -1
        while parked == -1:
            parked = self._renew(self._device.park(), self._close)
            if parked == -1 and ctypes.get_errno() != errno.EINTR:
                print("sysgenid: could not park:", os.strerror(ctypes.get_errno()), file=sys.stderr)
                return None
        return parked

    def _renew(self, park, close):
        try:
            return Renewal(self._hooks.generators(), connections=close).run(park)
        except BaseException:
            traceback.print_exc()
            return None

    def _go_on(self, parked):
        """As a clone, if there is a generation: one that parks too late is told 0 all the same.

        It is looked at before anything is renewed for it: so none is missed.
        """
        generation = self._device.read()
        if generation is None:
            role = "clone" if parked == 1 else "original"
            self._after(role, self._device.counter.generation())
            return
        self._unhandled = generation
        # Those that were made since a park are the clone's own.
        close = self._close and parked != 1
        well = self._renew(functools.partial(int, 1), close) is not None
        # A generation that began meanwhile is found by the next turn.
        if self._after("clone", generation) and well:
            self._device.acknowledge(generation)
            self._unhandled = None

    def _before(self):
        for hook in reversed(self._hooks.before):
            try:
                hook()
            except BaseException:
                traceback.print_exc()
                return False
        return True

    def _after(self, role, generation):
        well = True
        for hook in list(self._hooks.after):
            try:
                hook(role, generation)
            except BaseException:
                traceback.print_exc()
                well = False
        return well
