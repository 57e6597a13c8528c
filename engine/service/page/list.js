// All jobs, the newest first.

import { get } from "./api.js";
import { command } from "./ask.js";
import { h, keep, say, show } from "./dom.js";
import { AT_WORK, count, left, percent, rate, why } from "./words.js";

const PAGE = 50;
const STATES = ["planned", "running", "paused", "verifying", "done", "failed", "cancelled"];

/** The address of a job within the page. */
export const link = (job) => `#${new URLSearchParams({ job: job.job, connection: job.connection })}`;

export function badge(element, job) {
  const held = AT_WORK.includes(job.state) && job.pace.held_by;
  say(element, held ? "held" : job.state);
  element.className = `badge ${held ? "held" : job.state}`;
}

export class List {
  #pages = 1;
  #state = h("select", { id: "state", onchange: () => this.#reset() }, h("option", { value: "" }, "all"), STATES.map((name) => h("option", {}, name)));
  #body = h("tbody");
  #older = h("button", { type: "button", onclick: () => { this.#pages += 1; this.refresh(); } }, "Older jobs");
  #none = h("div", { class: "card empty" });
  #away = h("p", { class: "banner warn", role: "status", hidden: true });
  #table = h("table", { class: "jobs" }, h("caption", { class: "unseen" }, "Jobs, the newest first"),
    h("thead", {}, h("tr", {}, ["Job", "State", "Progress", "Rows/s of limit", "Left", "Workers"].map((name, n) => h("th", { scope: "col", class: n > 1 ? "number wide" : null }, name)))), this.#body);

  /** `context`: {me, fresh(), failed(error), seen(job), said(text)}. */
  constructor(context) {
    this.context = context;
    this.title = h("h1", { tabindex: "-1" }, "Jobs");
    this.element = h("section", {}, h("div", { class: "row between" }, this.title, h("label", { for: "state" }, "State ", this.#state)), this.#away, this.#none, this.#table, h("div", { class: "row" }, this.#older));
    [this.#none, this.#table, this.#older].forEach((one) => show(one, false));
  }

  async #reset() {
    this.#pages = 1;
    await this.refresh();
  }

  /** Ask the daemon, and show what it says. */
  async refresh() {
    const jobs = [];
    const unreachable = new Set();
    let cursor = null;
    try {
      for (let page = 0; page < this.#pages; page += 1) {
        const query = new URLSearchParams({ limit: PAGE, ...(cursor ? { cursor } : {}), ...(this.#state.value ? { state: this.#state.value } : {}) });
        const answer = await get(`/v1/jobs?${query}`);
        jobs.push(...answer.jobs);
        (answer.unreachable || []).forEach((name) => unreachable.add(name));
        cursor = answer.next;
        if (!cursor) break;
      }
    } catch (error) {
      this.context.failed(error);
      return;
    }
    this.context.fresh();
    jobs.filter((job) => AT_WORK.includes(job.state)).forEach((job) => this.context.seen(job));
    show(this.#away, unreachable.size > 0);
    say(this.#away, `Jobs of ${[...unreachable].join(", ")} are missing here: the database cannot be reached.`);
    this.#show(jobs, cursor);
  }

  #show(jobs, cursor) {
    document.title = "Jobs · backfill";
    const many = this.context.me.connections.length > 1;
    keep(this.#body, jobs, (job) => JSON.stringify([job.connection, job.job]), (job) => this.#row(job), (row, job) => this.#change(row, job, many));
    show(this.#table, jobs.length > 0);
    show(this.#older, cursor !== null);
    show(this.#none, !jobs.length);
    const wanted = this.#state.value;
    if (!jobs.length && this.#none.dataset.of !== wanted) {
      this.#none.dataset.of = wanted;
      this.#none.replaceChildren(...(wanted ? [h("p", {}, `No job is ${wanted}.`)] : this.#empty()));
    }
  }

  #empty() {
    const { scopes, connections } = this.context.me;
    const place = connections.length ? `A job names its tables and the connection ${connections.join(" or ")}, and is submitted from any terminal:` : "Your identity has no connection yet: the operator grants them.";
    return [h("h2", {}, "No jobs yet"), h("p", {}, place), command(`backfill run job.yaml --daemon ${location.origin}`),
      scopes.includes("submit") ? null : h("p", { class: "quiet" }, "That takes the scope submit, which you do not have here.")].filter(Boolean);
  }

  #row(job) {
    const place = h("span", { class: "quiet" });
    const bars = [1, 2].map(() => h("progress", { max: "1", "aria-hidden": "true" }));
    const texts = { place, bars, why: h("p", { class: "why" }), state: h("span"), shares: [h("span"), h("span")], rate: h("span"), left: h("td", { class: "number wide" }), workers: h("td", { class: "number wide" }) };
    const row = h("tr", {}, h("th", { scope: "row" }, h("a", { href: link(job) }, job.job), place, texts.why), h("td", {}, texts.state, h("div", { class: "narrow number" }, texts.shares[0], bars[0])),
      h("td", { class: "number wide" }, texts.shares[1], bars[1]), h("td", { class: "number wide" }, texts.rate), texts.left, texts.workers);
    row.texts = texts;
    return row;
  }

  #change(row, job, many) {
    const { texts } = row;
    const going = AT_WORK.includes(job.state);
    if (row.state && row.state !== job.state) this.context.said(`${job.job} is ${job.state}`);
    row.state = job.state;
    badge(texts.state, job);
    say(texts.place, many ? ` on ${job.connection}` : "");
    say(texts.why, why(job) + (job.pace.held_by ? this.context.heldFor(job) : ""));
    texts.shares.forEach((share) => say(share, percent(job.progress)));
    texts.bars.forEach((bar) => { bar.value = job.progress; });
    const most = job.pace.limit_rows_per_s;
    say(texts.rate, going ? `${rate(job.rows_per_s)}${most === null || job.pace.held_by ? "" : ` of ${count(most)}`}` : "");
    say(texts.left, left(job));
    say(texts.workers, going ? job.workers : "");
  }
}
