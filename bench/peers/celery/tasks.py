"""The Celery side of the comparison, set up as its documentation recommends for tasks that must not be lost."""

import os
import time

from celery import Celery

url = f"redis+socket://{os.environ['BENCH_REDIS_SOCKET']}"
app = Celery("tasks", broker=url, backend=url)
app.conf.update(
    # Acknowledged after the task has run, and again to the queue when the process that runs it dies.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    # "Optimizing" says 1 for long tasks, and 64 or 128 for many short ones.
    worker_prefetch_multiplier=64,
    result_expires=24 * 3600,
    broker_connection_retry_on_startup=True,
    # What a dead worker had taken comes back after an hour: Celery's default for Redis. Shorter is quicker, and runs
    # tasks twice that take, or wait for their eta, longer.
    broker_transport_options={"visibility_timeout": 3600},
)


@app.task
def noop(n):
    return None


@app.task
def stamp(n):
    return time.monotonic()
