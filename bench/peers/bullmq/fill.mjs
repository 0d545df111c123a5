// Enqueues so many no-op jobs.
import { Queue } from 'bullmq';
import { QUEUE, connection } from './common.mjs';

const redis = connection();
const queue = new Queue(QUEUE, { connection: redis });
const jobs = Number(process.argv[2]);
for (let from = 0; from < jobs; from += 500) {
  const chunk = Array.from({ length: Math.min(500, jobs - from) }, (_, n) => ({ name: 'noop', data: { n: from + n } }));
  await queue.addBulk(chunk);
}
await queue.close();
redis.disconnect();
