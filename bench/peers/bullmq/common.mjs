// What the three programs share: the queue, and a clock that all processes of a machine have in common.
import IORedis from 'ioredis';

export const QUEUE = 'bench';

// BullMQ's documentation asks for `maxRetriesPerRequest: null` on the connections of workers.
export const connection = () => new IORedis({ path: process.env.BENCH_REDIS_SOCKET, maxRetriesPerRequest: null });

// CLOCK_MONOTONIC, in milliseconds.
export const now = () => Number(process.hrtime.bigint()) / 1e6;
