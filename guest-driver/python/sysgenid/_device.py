# SPDX-License-Identifier: Apache-2.0
"""The device: /dev/sysgenid, as its header describes it."""

import ctypes
import errno
import fcntl
import functools
import mmap
import os
import select
import sys

DEVICE = "/dev/sysgenid"

_SET_ROLE, _PARTICIPANT = 0xE405, 1
_PARK = 0xE407
_DEPLOYED_SET_TRACKING = 0xE401
_LEN = 8

# Functions of a PyDLL keep the GIL while they run. That is what this package is built on.
libc = ctypes.PyDLL(None, use_errno=True)
libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong)
libc.ioctl.restype = ctypes.c_int
libc.getrandom.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint)
libc.getrandom.restype = ctypes.c_ssize_t


class Counter:
    """The mapped page: the counter, and whether the host has asked for a snapshot."""

    def __init__(self, path):
        # Read-only: a mapping keeps its file open, and others would wait for one that can write.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            page = mmap.mmap(fd, _LEN, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(fd)
        self._words = memoryview(page).cast("I")

    def generation(self):
        return self._words[0]

    def pending(self):
        return self._words[1] != 0


class Device:
    """An open file that is told of requests and generations, and waited for."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self.counter = Counter(path)
            self._track(path)
            self.parks = self._become_participant()
            self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except BaseException:
            os.close(self.fd)
            raise

    def _track(self, path):
        """Both numberings refuse a write of one byte, each in its own way."""
        try:
            os.write(self.fd, b"\0")
        except OSError as error:
            if error.errno == errno.EINVAL:
                return
            if error.errno == errno.ENOBUFS:
                fcntl.ioctl(self.fd, _DEPLOYED_SET_TRACKING, 1)
                return
            raise
        raise OSError(errno.ENODEV, "this is no device for generations", path)

    def _become_participant(self):
        try:
            fcntl.ioctl(self.fd, _SET_ROLE, _PARTICIPANT)
        except OSError as error:
            # An older driver.
            if error.errno in (errno.EINVAL, errno.ENOTTY):
                return False
            raise
        return True

    def close(self):
        for fd in (self.fd, self._wake, self._waker):
            os.close(fd)

    def wake(self):
        """Ends a wait() of another thread, for good."""
        os.write(self._waker, b"\0")

    def wait(self, seconds=None, moved=True):
        """Sleeps until something happens; whether the host asks, and whether the generation is new.

        moved=False: a new generation does not end the sleep.
        """
        poll = select.poll()
        poll.register(self.fd, select.POLLPRI | (select.POLLIN if moved else 0))
        poll.register(self._wake, select.POLLIN)
        events = dict(poll.poll(None if seconds is None else seconds * 1000)).get(self.fd, 0)
        return bool(events & select.POLLPRI), bool(events & select.POLLIN)

    def read(self):
        """The new generation if it was not acknowledged yet, else None."""
        try:
            return int.from_bytes(os.read(self.fd, 4), sys.byteorder)
        except BlockingIOError:
            return None

    def acknowledge(self, generation):
        """False: another one has begun meanwhile."""
        try:
            os.write(self.fd, generation.to_bytes(4, sys.byteorder))
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            raise
        return True

    def park(self):
        """What parks when it is called, and keeps the GIL: 0 original, 1 clone, -1 an error."""
        return functools.partial(libc.ioctl, self.fd, _PARK, 0)


