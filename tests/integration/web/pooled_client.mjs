// Node's fetch, which keeps its connections in a pool: reads a list of requests, writes what became of each.
import { readFileSync } from "node:fs";

const { url, requests } = JSON.parse(readFileSync(0, "utf8"));

function bodyOf({ size, text, chunked }) {
  if (text !== null) return text;
  if (!size) return undefined;
  const whole = Buffer.alloc(size, " ");
  if (!chunked) return whole;
  let sent = 0;
  return new ReadableStream({
    pull(controller) {
      if (sent >= size) return controller.close();
      controller.enqueue(whole.subarray(sent, (sent += 50_000)));
    },
  });
}

const found = [];
for (const request of requests) {
  try {
    const answer = await fetch(url + request.path, {
      method: request.method,
      headers: request.headers,
      body: bodyOf(request),
      duplex: "half",
      redirect: "manual",
    });
    await answer.arrayBuffer();
    found.push(String(answer.status));
  } catch (error) {
    found.push(`${error} ${error.cause ?? ""}`);
  }
}
console.log(JSON.stringify(found));
