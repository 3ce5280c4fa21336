// Send a job as a Celery task with celery-node, and wait for its result.
//
//   REDIS_URL=redis://127.0.0.1:6379/0 node celery_producer.mjs "Three uses of a water mill:"
import celery from "celery-node";

const [prompt] = process.argv.slice(2);
const url = process.env.REDIS_URL ?? "redis://127.0.0.1:6379/0";
// The queue of a model is batchmill.<served name>.<priority>.
const client = celery.createClient(url, url, "batchmill.demo.normal");
if (process.env.TASK_PROTOCOL) client.conf.TASK_PROTOCOL = Number(process.env.TASK_PROTOCOL);

const task = client.sendTask("batchmill.generate", [], { job: { prompt, max_tokens: 48 } });
console.log((await task.get(60_000)).text);
await client.disconnect();
