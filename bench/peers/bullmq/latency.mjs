// Enqueues so many jobs, one after the other has ended, and prints for each the milliseconds until it started.
import { Queue, QueueEvents } from 'bullmq';
import { QUEUE, connection, now } from './common.mjs';

const redis = connection();
const queue = new Queue(QUEUE, { connection: redis });
const events = new QueueEvents(QUEUE, { connection: connection() });
await events.waitUntilReady();
for (let n = 0; n < Number(process.argv[2]); n += 1) {
  const asked = now();
  const job = await queue.add('stamp', { n });
  // An event can be missed: then the job itself tells when it started.
  const started = await job.waitUntilFinished(events, 2000).catch(async () => (await queue.getJob(job.id)).returnvalue);
  console.log(started - asked);
  await new Promise((resolve) => setTimeout(resolve, 2));
}
process.exit(0);
