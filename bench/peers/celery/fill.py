"""Enqueues so many no-op tasks."""

import sys

from tasks import app, noop

with app.producer_pool.acquire(block=True) as producer:
    for n in range(int(sys.argv[1])):
        noop.apply_async((n,), producer=producer)
