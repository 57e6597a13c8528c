// The daemon's API.  The token stays in this tab's storage and goes into a header: never into an address.

const TOKEN = "backfill.token";

export const token = {
  get: () => sessionStorage.getItem(TOKEN),
  set: (text) => sessionStorage.setItem(TOKEN, text),
  forget: () => sessionStorage.removeItem(TOKEN),
};

/** What the daemon said no to (RFC 9457). */
export class Problem extends Error {
  constructor(status, body) {
    super(body.detail || body.title || `the daemon answered ${status}`);
    Object.assign(this, { status, code: body.code || "", hint: body.hint || "", errors: body.errors || [] });
  }
}

/** The daemon did not answer. */
export class Away extends Error {}

/** A path of the API with its parts encoded: at`/v1/jobs/${name}`. */
export const at = (parts, ...values) => parts.reduce((path, part, n) => path + encodeURIComponent(values[n - 1]) + part);

async function call(path, { signal, headers = {}, ...options } = {}) {
  const held = token.get();
  const all = { ...headers, ...(held ? { authorization: `Bearer ${held}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { cache: "no-store", credentials: "omit", redirect: "error", ...options, headers: all, signal });
  } catch (error) {
    if (signal?.aborted && signal.reason?.name !== "TimeoutError") throw error;
    throw new Away("the daemon does not answer");
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  throw new Problem(answer.status, body);
}

export async function get(path, signal) {
  const within = AbortSignal.timeout(10_000);
  const answer = await call(path, { signal: signal ? AbortSignal.any([signal, within]) : within, headers: { accept: "application/json" } });
  try {
    return await answer.json();
  } catch {
    throw new Away("the daemon's answer broke off");
  }
}

/** A change, only if nobody has made another one since `revision`. */
export async function change(method, path, body, revision) {
  const kind = method === "PATCH" ? "application/merge-patch+json" : "application/json";
  const headers = { "content-type": kind, "if-match": `"${revision}"` };
  const answer = await call(path, { method, headers, body: JSON.stringify(body), signal: AbortSignal.timeout(20_000) });
  return answer.json();
}

/** Server-sent events from `path`, from the one after `last` on: {event, data, id}.  Ends when the stream does. */
export async function* events(path, last, signal) {
  const headers = { accept: "text/event-stream", ...(last ? { "last-event-id": last } : {}) };
  const answer = await call(path, { headers, signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const found = parsed(block);
        yield found; // a comment, too: it tells that the daemon is there
      }
    }
  } catch (error) {
    if (signal.aborted) return;
    throw error instanceof SyntaxError ? error : new Away("the stream broke off");
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parsed(block) {
  const found = { event: "", data: null, id: null };
  const lines = [];
  for (const line of block.split(/\r?\n/)) {
    const [, name, value] = /^([^:]*):? ?(.*)$/.exec(line) || [];
    if (name === "event") found.event = value;
    else if (name === "id") found.id = value;
    else if (name === "data") lines.push(value);
  }
  if (lines.length) found.data = JSON.parse(lines.join("\n"));
  return found;
}
