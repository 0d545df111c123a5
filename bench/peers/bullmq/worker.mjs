// A worker process. Locks (30 s), stalled checks (every 30 s) and `maxStalledCount` are BullMQ's defaults; the
// concurrency is that of its documentation's example; results are kept for 24 hours.
import { Worker } from 'bullmq';
import { QUEUE, connection, now } from './common.mjs';

const run = async (job) => (job.name === 'stamp' ? now() : null);
const worker = new Worker(QUEUE, run, {
  connection: connection(),
  concurrency: 50,
  removeOnComplete: { age: 24 * 3600 },
});
worker.on('error', (error) => console.error(error));
