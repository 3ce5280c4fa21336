// Push a job as plain JSON, wait for its end and print its text.
//
//   REDIS_URL=redis://127.0.0.1:6379/0 node producer.mjs "Three uses of a water mill:" [WEBHOOK_URL]
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { Redis } from "ioredis";

const [prompt, webhook] = process.argv.slice(2);
const redis = new Redis(process.env.REDIS_URL ?? "redis://127.0.0.1:6379/0");

// With our own id, pushing the same document again after a lost reply does not make a second job.
const id = randomUUID();
const job = { id, prompt, webhook, max_tokens: 48, metadata: { from: "node" } };
await redis.lpush("batchmill:inbox", JSON.stringify(job));

try {
  console.log((await waitForResult(id)).text);
} finally {
  redis.disconnect();
}

async function waitForResult(id) {
  for (;;) {
    const [state, result, error] = await redis.hmget(`batchmill:job:${id}`, "state", "result", "error");
    if (state === "completed") return JSON.parse(result);
    if (state && !["queued", "in_progress"].includes(state)) throw new Error(`${state}: ${error}`);
    // A document that was refused has no record, but a dead letter with the reason.
    const reason = state ? null : await redis.hget(`batchmill:dead:${id}`, "reason");
    if (reason) throw new Error(reason);
    await sleep(200);
  }
}
