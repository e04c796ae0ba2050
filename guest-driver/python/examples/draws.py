# SPDX-License-Identifier: Apache-2.0
"""Draws random numbers all the time, and shows 1,000 of each kind when it is told to.

    draws.py [--cure] TRIGGER OUTPUT

With --cure it takes part when its machine is cloned. When the file TRIGGER exists, it writes OUTPUT,
a line "NAME HEX" for each number, and ends.

In clones of one machine all of these numbers differ with --cure. Without it they are those of the
original, from where each clone has come to. To see them equal one by one, make the file
TRIGGER.hold before the snapshot: the program says "held", and draws nothing until TRIGGER is there.
"""

import argparse
import os
import random
import ssl
import struct
import sys
import threading
import time

try:
    import numpy
except ImportError:
    numpy = None

COUNT = 1000
THREADS = 2
PAUSE_SECONDS = 0.002


def generators(own):
    """Each name, and what draws 64 bits."""
    known = {
        "random": lambda: random.getrandbits(64).to_bytes(8, "big"),
        "random-normal": lambda: struct.pack(">d", random.gauss(0, 1)),
        "random-own": lambda: own[0].getrandbits(64).to_bytes(8, "big"),
        "openssl": lambda: ssl.RAND_bytes(8),
    }
    if numpy is not None:
        known["numpy"] = lambda: numpy.random.bytes(8)
        known["numpy-normal"] = lambda: struct.pack(">d", numpy.random.standard_normal())
        known["numpy-own"] = lambda: own[1].bytes(8)
    return known


class Drawing(threading.Thread):
    """Draws and pauses for an instant, so that a snapshot comes anywhere in it."""

    def __init__(self, known, hold, trigger):
        super().__init__(daemon=True)
        self.known, self.hold, self.trigger = known, hold, trigger

    def run(self):
        while not os.path.exists(self.trigger) and not os.path.exists(self.hold):
            for draw in self.known.values():
                draw()
            time.sleep(PAUSE_SECONDS)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cure", action="store_true")
    parser.add_argument("trigger")
    parser.add_argument("output")
    arguments = parser.parse_args()

    own = [random.Random()]
    if numpy is not None:
        own.append(numpy.random.default_rng())
    known = generators(own)
    for draw in known.values():
        draw()
    if arguments.cure:
        import sysgenid

        for generator in own:
            sysgenid.register(generator)
        sysgenid.install()
    print("warm:", *known, flush=True)

    hold = arguments.trigger + ".hold"
    threads = [Drawing(known, hold, arguments.trigger) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if os.path.exists(hold):
        print("held", flush=True)
    while not os.path.exists(arguments.trigger):
        time.sleep(0.05)

    unfinished = arguments.output + ".unfinished"
    with open(unfinished, "w") as output:
        for name, draw in known.items():
            for _ in range(COUNT):
                print(name, draw().hex(), file=output)
    os.rename(unfinished, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
