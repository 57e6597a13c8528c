// The page: who is looking, which view, whether the daemon is there.

import { Away, Problem, get, token } from "./api.js";
import { ask, trouble } from "./ask.js";
import { Samples } from "./chart.js";
import { h, say, show } from "./dom.js";
import { JobView } from "./job.js";
import { List } from "./list.js";
import { FINAL, moment, since } from "./words.js";

const EVERY_S = 2;
const THEME = "backfill.theme";
const $ = (id) => document.getElementById(id);
const wait = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));
const keyOf = (job) => JSON.stringify([job.connection, job.job]);

const samples = new Map();
const holds = new Map();
let answered = Date.now();
let away = null;
let asking = null;
let view = null;

/** What the views need of the page. */
const context = {
  me: { scopes: [], connections: [] },
  fresh() {
    answered = Date.now();
    if (away) context.said("The daemon answers again");
    away = null;
    report();
  },
  failed(error) {
    if (error instanceof Problem && error.status === 401) return void askToken(error);
    if (error instanceof Problem && error.status === 403) learn().catch(() => {});
    away ??= { since: Date.now(), why: error };
    report();
  },
  isAway: () => away !== null,
  said: (text) => say($("said"), text),
  samples: (job) => samples.get(keyOf(job)),
  remember(job, past) {
    const key = keyOf(job);
    if (!samples.has(key)) samples.set(key, new Samples());
    samples.get(key).begin(past);
  },
  seen(job) {
    const key = keyOf(job);
    if (!FINAL.includes(job.state)) {
      if (!samples.has(key)) samples.set(key, new Samples());
      samples.get(key).add(job);
    }
    if (!job.pace.held_by) holds.delete(key);
    else if (holds.get(key)?.by !== job.pace.held_by) holds.set(key, { by: job.pace.held_by, at: Date.now() });
  },
  /** ", for 24 s": as the daemon says, else since this page has seen it. */
  heldFor(job) {
    const seen = holds.get(keyOf(job));
    if (job.pace.since) return `, since ${moment(job.pace.since)} (${since(job.pace.since)})`;
    return seen ? `, for ${since(seen.at)} at least` : "";
  },
};

function report() {
  show($("away"), away !== null);
  $("content").classList.toggle("stale", away !== null);
  if (!away) return;
  const what = away.why instanceof Away || !(away.why instanceof Problem) ? "The daemon does not answer" : `The daemon says: ${away.why.message}`;
  say($("away"), `${what}, since ${moment(away.since)}. Trying again. What you see is as of ${moment(answered)}.`);
}

/** Who is looking, and what that allows. */
async function learn() {
  context.me = await get("/v1/me");
  const { kind, name, scopes } = context.me;
  say($("who"), `${kind === name ? name : `${kind} ${name}`}: ${scopes.join(", ")}`);
  show($("forget"), token.get() !== null);
}

/** A token, until one is good. */
function askToken(problem) {
  asking ??= ask({
    title: "Who is looking?",
    text: token.get() ? `The token is no longer good: ${problem.message}.` : "This daemon wants a token. It is kept in this tab, until the tab is closed.",
    verb: "Look", insist: true,
    fields: [{ name: "token", label: "Token", type: "password", required: true, hint: "The operator makes one with: backfill token NAME --scope read. The buttons need --scope control as well." }],
    act: async (values) => {
      token.set(values.token.trim());
      try {
        await learn();
      } catch (error) {
        token.forget();
        throw error;
      }
    },
  }).then(() => {
    asking = null;
    open();
  });
  return asking;
}

// -- views

function open() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const name = wanted.get("job");
  view?.close?.();
  view = name ? new JobView(context, name, wanted.get("connection")) : new List(context);
  $("content").replaceChildren(view.element);
  view.refresh?.();
}

addEventListener("hashchange", () => {
  if (location.hash === "#content") return;
  open();
  view.title.focus();
});

$("forget").addEventListener("click", () => {
  token.forget();
  location.reload();
});

$("you").addEventListener("click", () => {
  const open = $("identity").classList.toggle("open");
  $("you").setAttribute("aria-expanded", open);
});

const theme = $("theme");
theme.value = localStorage.getItem(THEME) ?? "";
const paint = () => (document.documentElement.dataset.theme = theme.value);
theme.addEventListener("change", () => {
  localStorage.setItem(THEME, theme.value);
  paint();
});
paint();

document.addEventListener("visibilitychange", () => document.hidden || view?.refresh?.());

async function main() {
  for (;;) {
    try {
      await learn();
      break;
    } catch (error) {
      if (error instanceof Problem && error.status === 401) {
        await askToken(error);
        break;
      }
      if (error instanceof Problem && error.status !== 503) return $("content").replaceChildren(h("h1", {}, "Jobs"), trouble(error));
      context.failed(error);
      await wait(EVERY_S);
    }
  }
  context.fresh();
  if (!view) open();
  for (;;) {
    await wait(EVERY_S);
    if (!document.hidden && !asking) await view.refresh?.();
  }
}

main();
