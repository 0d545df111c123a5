"""Enqueues so many tasks, one after the other has ended, and prints for each the milliseconds until it started."""

import sys
import time

from tasks import stamp

for n in range(int(sys.argv[1])):
    asked = time.monotonic()
    print((stamp.delay(n).get(timeout=10) - asked) * 1000)
    time.sleep(0.002)
