// Receive webhooks: verify the signature over the raw body before using it.
//
//   BATCHMILL_WEBHOOK_SECRET=whsec_… PORT=9000 node webhook_receiver.mjs
import { createServer } from "node:http";
import { Webhook } from "standardwebhooks";

const MAX_BODY_BYTES = 1024 * 1024;
const webhook = new Webhook(process.env.BATCHMILL_WEBHOOK_SECRET);
// Delivery is at least once: in production, store ids in the transaction that uses the event.
const seen = new Set();

const server = createServer(async (request, response) => {
  const body = await readBody(request);
  let event;
  try {
    if (body === null) throw new Error("too large");
    event = webhook.verify(body, request.headers);
  } catch {
    response.writeHead(body === null ? 413 : 401).end();
    return;
  }
  const id = request.headers["webhook-id"];
  if (!seen.has(id)) {
    seen.add(id);
    console.log(event.type, event.data.id);
  }
  response.writeHead(204).end();
});

async function readBody(request) {
  const chunks = [];
  let size = 0;
  for await (const chunk of request) {
    size += chunk.length;
    if (size > MAX_BODY_BYTES) return null;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}

server.listen(Number(process.env.PORT ?? 9000), "127.0.0.1", () => {
  console.log("listening on", server.address().port);
});
