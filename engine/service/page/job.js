// One job in detail, as the daemon streams it.

import { Away, Problem, at, change, events, get } from "./api.js";
import { ask, trouble } from "./ask.js";
import { Chart } from "./chart.js";
import { fill, h, keep, say, show, table } from "./dom.js";
import { badge } from "./list.js";
import { AT_WORK, FINAL, amount, count, counted, duration, left, moment, next, nothing, percent, plain, rate, rows, size, since, told, why } from "./words.js";

const SILENT_MS = 40_000; // the daemon says something every 15 s
const DELAYS_S = [0.2, 1, 2, 3, 5];
const MOST_PAGES = 20;
const MOST_KEPT = 300;
const SHOWN = 50; // lines of the history at first, and more with every press
const wait = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

const ACTIONS = {
  pause: {
    label: "Pause", when: (job) => AT_WORK.includes(job.state), title: "Pause the job?", verb: "Pause",
    text: "The chunks in hand are finished, then nothing moves until somebody resumes it. No work is lost.",
  },
  resume: {
    label: "Resume", when: (job) => job.state === "paused" || (job.state === "failed" && job.error?.resumable), title: "Resume the job?", verb: "Resume",
    text: "It goes on where it stopped.",
  },
  pace: { label: "Change limit", when: (job) => !FINAL.includes(job.state), title: "Limit the rate", verb: "Set limit",
    text: "Takes effect within seconds, and holds until it is changed again. Signals may still slow the job down further." },
  cancel: {
    label: "Cancel", when: (job) => !FINAL.includes(job.state) || (job.state === "failed" && job.error?.resumable), title: "Cancel the job?", verb: "Cancel the job", danger: true,
    text: "It ends for good, and can only be begun anew. Rows that were written stay written.",
  },
};

export class JobView {
  #stop = new AbortController();
  #entries = [];
  #shown = SHOWN;
  #quarantined = 0;
  #gone = false;

  constructor(context, name, connection) {
    Object.assign(this, { context, name, connection, job: null });
    this.query = connection ? `?${new URLSearchParams({ connection })}` : "";
    this.title = h("h1", { tabindex: "-1" }, name);
    this.chart = new Chart();
    const part = (key, ...children) => (this[key] = h(...children));
    const buttons = Object.entries(ACTIONS).map(([action, { label, danger }]) =>
      part(action, "button", { type: "button", class: danger ? "danger quietly" : null, hidden: true, onclick: () => this.#order(action) }, `${label}…`));
    const [signals, signalRows] = table("Signals: what the databases say", ["Signal", "Value", "Target", "Maximum", "Age", "Note"], "stack");
    const [waits, waitRows] = table("Time that workers have waited, by reason", ["Reason", "Time"]);
    const [history, historyRows] = table("What happened, the newest first", ["When (UTC)", "What", "Who", "Detail"], "stack tall");
    const [setAside, asideRows] = table("Rows that were set aside, by error", ["SQLSTATE", "Rows"]);
    Object.assign(this, { signals: signalRows, waits: waitRows, history: historyRows, aside: asideRows });
    this.content = h("div", { hidden: true },
      h("div", { class: "card" },
        h("div", { class: "row between" }, h("p", { class: "big" }, part("share", "span"), " ", part("rows", "small")), part("left", "p", { class: "quiet" })),
        part("bar", "progress", { max: "1", "aria-label": "Progress" }),
        h("p", { class: "row wrap" }, part("rate", "strong"), part("limit", "span"), part("workers", "span", { class: "quiet" })),
        part("held", "p", { class: "banner warn", hidden: true }), part("error", "div", { class: "banner bad" }), part("next", "p", { class: "quiet" })),
      this.chart.element,
      h("div", { class: "columns" },
        h("div", {},
          part("listening", "section", { class: "card" }, h("h2", {}, "Signals"), signals, part("noSignals", "p", { class: "quiet" }, "Nobody listens to signals now.")),
          part("waiting", "section", { class: "card" }, h("h2", {}, "Waits"), waits),
          part("quarantine", "section", { class: "card" }, h("h2", {}, "Quarantine"), part("asideText", "p"), setAside)),
        h("div", {},
          h("section", { class: "card" }, h("h2", {}, "The job"), part("facts", "dl")),
          part("verification", "section", { class: "card" }, h("h2", {}, "Verification"), part("proof", "dl")))),
      h("section", { class: "card" }, h("h2", {}, "History"), history, part("older", "button", { type: "button", class: "small", hidden: true, onclick: () => this.#olderEntries() }, "Older"), part("before", "p", { class: "quiet", hidden: true }, `backfill history ${name} tells what was before.`)));
    this.element = h("section", {}, h("nav", { "aria-label": "Back" }, h("a", { href: "#" }, "← All jobs")),
      h("div", { class: "row between top" }, h("div", { class: "row wrap" }, this.title, part("state", "span")), h("div", { class: "row wrap actions" }, buttons)),
      part("problem", "div"), part("database", "p", { class: "banner warn", role: "status", hidden: true }), this.content);
    this.timer = setInterval(() => this.#tick(), 1000);
    this.#follow();
  }

  close() {
    this.#stop.abort();
    clearInterval(this.timer);
  }

  #path(rest = "") {
    return at`/v1/jobs/${this.name}` + rest + this.query;
  }

  // -- what the daemon says

  /** History first, then the stream from there on; again and again, since daemons are restarted. */
  async #follow() {
    const { signal } = this.#stop;
    for (let tries = 0; !signal.aborted;) {
      try {
        if (!this.job) {
          this.#show(await get(this.#path(), signal));
          this.#remember(signal);
        }
        await this.#readHistory(signal);
        this.context.fresh();
        for await (const event of this.#heard(signal)) {
          tries = 0;
          this.context.fresh();
          this.#take(event);
        }
        if (this.job && FINAL.includes(this.job.state)) {
          await wait(4); // the stream has ended with the job, and somebody may begin it again
          if (!signal.aborted) this.#show(await get(this.#path(), signal));
          continue;
        }
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof Problem && error.status === 401) this.close(); // the page asks for a token, and begins anew
        if (error instanceof Problem && [403, 404, 409].includes(error.status)) return this.#lost(error);
        this.context.failed(error);
      }
      await wait(DELAYS_S[Math.min(tries++, DELAYS_S.length - 1)]);
    }
  }

  async *#heard(signal) {
    const silence = new AbortController();
    let timer = 0;
    const heard = () => {
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), SILENT_MS);
    };
    heard();
    try {
      for await (const event of events(this.#path("/events"), String(this.#entries.at(-1)?.id ?? 0), AbortSignal.any([signal, silence.signal]))) {
        heard();
        yield event;
      }
      if (silence.signal.aborted) throw new Away("the stream fell silent");
    } finally {
      clearTimeout(timer);
    }
  }

  #take({ event, data }) {
    show(this.database, event === "trouble");
    if (event === "status") this.#show(data);
    else if (event === "history") this.#enter([data]);
    else if (event === "trouble") say(this.database, `${data?.message ?? "The database does not answer"}. What you see is from before.`);
  }

  /** The chart begins with what the daemon saw before this page was opened. */
  async #remember(signal) {
    const past = await get(this.#path("/recent"), signal).catch(() => null);
    if (!past?.moments.length) return;
    this.context.remember(this.job, past);
    this.#draw(this.job);
  }

  async #readHistory(signal) {
    let after = this.#entries.at(-1)?.id ?? null;
    for (let page = 0; page < MOST_PAGES; page += 1) {
      const query = new URLSearchParams({ limit: MOST_KEPT, ...(after === null ? { last: MOST_KEPT } : { after }), ...(this.connection ? { connection: this.connection } : {}) });
      const answer = await get(`${at`/v1/jobs/${this.name}/history`}?${query}`, signal);
      this.#enter(answer.entries);
      after = answer.next;
      if (after === null || !answer.entries.length) return;
    }
  }

  #enter(entries) {
    const last = this.#entries.at(-1)?.id ?? 0;
    this.#entries = [...this.#entries, ...entries.filter((one) => one.id > last)].slice(-MOST_KEPT);
    this.#tell();
  }

  #tell() {
    const shown = this.#entries.slice(-this.#shown).reverse();
    const more = this.#entries.length - shown.length;
    say(this.older, `Older: ${Math.min(more, SHOWN)} more`);
    show(this.older, more > 0);
    show(this.before, !more && this.#entries.length === MOST_KEPT);
    fill(this.history, shown.map((one) => [one.id, [moment(one.at), one.what, one.who, told(one)]]));
  }

  #olderEntries() {
    this.#shown += SHOWN;
    this.#tell();
    if (this.older.hidden) this.history.closest(".scroll").focus();
  }

  /** The job cannot be seen any more: say why, and keep nothing on the page that could be taken for true. */
  #lost(error) {
    this.close();
    this.context.fresh();
    show(this.content, false);
    this.#gone = true;
    this.#buttons();
    this.problem.replaceChildren(trouble(error));
  }

  // -- what is shown

  #tick() {
    if (!this.job || this.context.isAway() || !this.database.hidden) return; // nothing is known of now
    this.context.seen(this.job);
    this.#draw(this.job);
    this.#held(this.job);
  }

  #show(job) {
    const before = this.job;
    this.job = job;
    if (before && before.state !== job.state) this.context.said(`${job.job} is ${job.state}`);
    document.title = `${percent(job.progress)} ${job.job} · backfill`;
    this.context.seen(job);
    badge(this.state, job);
    say(this.share, percent(job.progress));
    say(this.rows, rows(job));
    const going = AT_WORK.includes(job.state);
    say(this.left, left(job) ? `${left(job)} left` : job.finished_at && !going ? `ended ${moment(job.finished_at)}` : "");
    this.bar.value = job.progress;
    this.bar.className = job.pace.held_by && going ? "held" : job.state;
    say(this.rate, going ? `${rate(job.rows_per_s)} rows/s` : "");
    const reason = why(job) || (going ? "no limit" : "");
    say(this.limit, job.pace.held_by || job.state === "failed" ? "" : ["paused", "cancelled"].includes(job.state) && reason ? `Reason: ${reason}` : reason);
    say(this.workers, going ? counted(job.workers, "worker") : "");
    this.#held(job);
    show(this.error, Boolean(job.error));
    if (job.error) this.error.replaceChildren(h("strong", {}, job.error.message || "It failed."), h("p", {}, `${next(job)} (${job.error.code})`));
    say(this.next, job.error ? "" : next(job));
    this.#signals(job);
    this.#facts(job);
    fill(this.waits, Object.entries(job.waits).filter(([, seconds]) => seconds > 0).sort(([, a], [, b]) => b - a).map(([name, seconds]) => [name, [name, duration(seconds)]]));
    show(this.waiting, this.waits.children.length > 0);
    this.#proof(job.verification, job.verified);
    this.#aside(job);
    this.#buttons();
    show(this.content, true);
    this.#draw(job);
  }

  #draw(job) {
    const samples = this.context.samples(job);
    show(this.chart.element, samples !== undefined);
    if (samples) this.chart.draw(samples);
  }

  #held(job) {
    const holds = AT_WORK.includes(job.state) && job.pace.held_by;
    show(this.held, Boolean(holds));
    if (holds) say(this.held, `Held by ${holds}: ${job.pace.waiting || ""}${this.context.heldFor(job)}`);
  }

  #signals(job) {
    const { leads, held_by } = job.pace;
    fill(this.signals, job.signals.map((one) => [one.name, [one.name, amount(one.value, one.unit), amount(one.target, one.unit), amount(one.max, one.unit), amount(one.age_s, "s"),
      [one.name === leads ? (held_by ? "holds" : "leads") : "", one.error, one.detail].filter(Boolean).join("; ")]]));
    for (const row of this.signals.children) row.className = row.dataset.key === leads ? (held_by ? "holds" : "leads") : "";
    show(this.signals.closest(".scroll"), job.signals.length > 0);
    show(this.noSignals, !job.signals.length);
    show(this.listening, job.signals.length > 0 || !FINAL.includes(job.state));
  }

  #facts(job) {
    const { pace, spans } = job;
    const ordered = Object.entries(pace.orders || {}).filter(([, value]) => !nothing(value)).map(([name, value]) => `${name} ${plain(value)}`);
    define(this.facts, [
      ["Mode", job.mode], ["Phase", job.phase],
      ...(job.source === job.target ? [["Table", job.source]] : [["Source", job.source], ["Target", job.target]]),
      ["Connection", job.connection], ["Spans", `${spans.done} of ${spans.total} done, ${spans.running} running`],
      ["Moved", `${size(job.bytes_done)} in ${counted(job.chunks, "chunk")}`], ["Retries", job.retries],
      ["Stage", pace.stage && `${pace.stage}${pace.pressure === null ? "" : `, pressure ${pace.pressure.toFixed(2)}`}`],
      ["Ordered", ordered.join(", ")], ["Chunks take", pace.chunk_target_s && (pace.chunk_target_s < 1 ? `${Math.max(1, Math.round(pace.chunk_target_s * 1000))} ms` : duration(pace.chunk_target_s))],
      ["Growth", pace.growth?.ratio !== null && pace.growth?.ratio !== undefined && `${amount(pace.growth.ratio, "ratio")}${pace.growth.max === null ? "" : ` of ${amount(pace.growth.max, "ratio")}`}`],
      ["Deadline", pace.deadline && `missed${pace.deadline.late_by_s ? ` by ${duration(pace.deadline.late_by_s)}` : ""}`],
      ["Pacer", pace.pacer], ["Started", moment(job.started_at)], ["Ended", job.finished_at && moment(job.finished_at)],
    ]);
  }

  #proof(found, verified) {
    show(this.verification, Boolean(found));
    if (!found) return;
    const columns = Object.entries(found.columns || {}).map(([name, many]) => `${name} ${count(many)}`).join(", ");
    define(this.proof, [
      ["Outcome", found.outcome || "running"], ["Verified", { true: "yes", false: "no" }[verified] || "not yet"],
      ...["rows", "mismatched", "missing", "extra", "unsettled", "repaired"].map((name) => [name[0].toUpperCase() + name.slice(1), count(found[name] || 0)]),
      ["Columns that differ", columns], ["Not compared", (found.not_compared || []).join(", ")], ["Begun", moment(found.started_at)],
    ]);
  }

  async #aside(job) {
    show(this.quarantine, job.quarantined > 0);
    say(this.asideText, `${counted(job.quarantined, "row")} set aside. backfill quarantine list ${job.job} shows them.`);
    if (job.quarantined === this.#quarantined) return;
    this.#quarantined = job.quarantined;
    try {
      const answer = await get(this.#path("/quarantine"), this.#stop.signal);
      fill(this.aside, Object.entries(answer.by_sqlstate).map(([state, many]) => [state, [state, count(many)]]));
    } catch {
      this.#quarantined = 0; // asked again with the next status
    }
  }

  #buttons() {
    const may = this.job && !this.#gone && this.context.me.scopes.includes("control");
    for (const [action, { when }] of Object.entries(ACTIONS)) {
      const visible = may && when(this.job);
      if (!visible && this[action] === document.activeElement) this.title.focus();
      show(this[action], visible);
    }
  }

  // -- what is asked of it

  async #order(action) {
    const { title, text, verb, danger } = ACTIONS[action];
    const reason = { name: "reason", label: "Reason", maxlength: "500", hint: "Stands in the job's history, for everybody who may read it." };
    const ordered = this.job.pace.orders?.max_rows_per_s;
    const most = { name: "most", of: "max_rows_per_s", label: "Rows a second, at most", type: "number", min: "1", step: "any", inputmode: "decimal", value: ordered ?? "", hint: "Empty: no order; what the spec says counts." };
    await ask({
      title, text, verb, danger, fields: action === "pace" ? [most, reason] : [reason],
      act: async (values) => {
        const said = values.reason ? { reason: values.reason } : {};
        const body = action === "pace" ? { max_rows_per_s: values.most === "" ? null : Number(values.most), ...said } : said;
        try {
          this.#show(await change(action === "pace" ? "PATCH" : "POST", this.#path(`/${action}`), body, this.job.revision));
        } catch (error) {
          if (error instanceof Problem && error.status === 412) this.#show(await get(this.#path()));
          throw error;
        }
      },
    });
    if (this[action].hidden) this.title.focus();
  }
}

/** A list of names and values; what is empty is left out. */
function define(list, pairs) {
  keep(list, pairs.filter(([, value]) => value !== null && value !== undefined && value !== "" && value !== false), ([name]) => name,
    ([name]) => h("div", {}, h("dt", {}, name), h("dd")), (pair, [, value]) => say(pair.lastChild, value));
}
