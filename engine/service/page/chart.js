// The last ten minutes of a job as this page saw them: rate against limit, and how long others wait.

import { fill, h, say, svg, table } from "./dom.js";
import { amount, moment, rate } from "./words.js";

export const SPAN_MS = 600_000;
const MINUTE_MS = 60_000;
const GAP_MS = 8_000; // without a sample for so long, nothing is known in between
const LEFT = 54;
const HEIGHT = 140;
const TITLE = 22; // above each half
const FOOT = 20;
const LATENCY = /^(read_latency|commit_latency)(@|$)/;

/** Samples of one job. */
export class Samples {
  all = [];

  /** What the daemon remembers goes before what this page has seen; its clock may differ from ours. */
  begin({ now, moments }) {
    const ahead = Date.now() - new Date(now);
    const first = this.all[0]?.at ?? Infinity;
    const past = moments.map((one) => ({
      at: new Date(one.at).getTime() + ahead, rate: one.rows_per_s, limit: one.held_by ? 0 : one.limit_rows_per_s, held: one.held_by,
      latencies: Object.fromEntries(one.signals.filter(({ value }) => value !== null).map(({ name, value, target }) => [name, { value, target }])),
    }));
    this.all.unshift(...past.filter((one) => one.at < first - 900));
  }

  add(job, at = Date.now()) {
    const last = this.all.at(-1);
    const soon = last && at - last.at < 900; // one a second: what comes sooner takes the place of the last, and its time
    if (soon) this.all.pop();
    const latencies = {};
    for (const one of job.signals) if (LATENCY.test(one.name) && one.value !== null) latencies[one.name] = { value: one.value, target: one.target };
    this.all.push({ at: soon ? last.at : at, rate: job.rows_per_s, limit: job.pace.held_by ? 0 : job.pace.limit_rows_per_s, held: job.pace.held_by, latencies });
    while (this.all[0].at < at - SPAN_MS - GAP_MS) this.all.shift();
  }
}

/** The least round number that is not below. */
function round(value) {
  const power = 10 ** Math.floor(Math.log10(value || 1));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((step) => step * power >= value * 0.999) * power;
}

export class Chart {
  #picture = svg("svg", { role: "img" });
  #readout = h("p", { class: "readout", "aria-hidden": "true" });
  #legend = h("ul", { class: "legend", "aria-hidden": "true" });
  #pointer = null;
  #samples = new Samples();

  constructor() {
    const [numbers, body] = table("The chart in numbers", ["Line", "Now", "Least", "Most"], "stack");
    this.numbers = body;
    this.title = h("h2");
    this.element = h("figure", { class: "card chart" }, h("div", { class: "row between" }, this.title, this.#legend),
      this.#picture, this.#readout, h("details", {}, h("summary", {}, "In numbers"), numbers));
    this.#picture.addEventListener("pointermove", (event) => {
      this.#pointer = event.offsetX;
      this.draw();
    });
    this.#picture.addEventListener("pointerleave", () => {
      this.#pointer = null;
      this.draw();
    });
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  draw(samples = this.#samples) {
    this.#samples = samples;
    const width = this.#picture.clientWidth;
    if (!width || !samples.all.length) return;
    const now = samples.all.at(-1).at;
    const minutes = [1, 2, 5].find((many) => samples.all[0].at >= now - many * MINUTE_MS) ?? 10;
    const span = minutes * MINUTE_MS;
    const seen = samples.all.filter((one) => one.at >= now - span);
    say(this.title, minutes === 1 ? "The last minute" : `The last ${minutes} minutes`);
    const names = [...new Set(seen.flatMap((one) => Object.keys(one.latencies)))].sort();
    const lines = [
      { name: "rows/s", kind: "rate", of: (one) => one.rate, words: rate },
      { name: "limit", kind: "limit", of: (one) => one.limit, words: rate, steps: true },
    ];
    const waits = names.flatMap((name, n) => [
      { name: `${name} target`, kind: `target n${n % 4}`, of: (one) => one.latencies[name]?.target ?? null, words: (value) => amount(value, "s"), steps: true },
      { name, kind: `latency n${n % 4}`, of: (one) => one.latencies[name]?.value ?? null, words: (value) => amount(value, "s") },
    ]);
    const most = (one) => Math.max(0, ...seen.map(one.of).filter((value) => value !== null));
    const fastest = most(lines[0]);
    const top = round(Math.max(fastest * 1.1, Math.min(most(lines[1]) * 1.05, (fastest || Infinity) * 3)) || 1);
    const slowest = Math.max(0, ...waits.filter((one) => one.kind.startsWith("latency")).map(most));
    const targets = Math.max(0, ...waits.filter((one) => one.kind.startsWith("target")).map(most));
    const halves = waits.length ? 2 : 1;
    const height = halves * (HEIGHT + TITLE) + (halves - 1) * FOOT + FOOT;
    this.#picture.setAttribute("height", height);
    this.#picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const x = (at) => LEFT + ((at - now + span) / span) * (width - LEFT - 4);
    const parts = [...held(seen, x, height - FOOT), ...panel("Rows a second", TITLE, top, lines, seen, x, width)];
    if (waits.length) parts.push(...panel("How long others wait", HEIGHT + 2 * TITLE + FOOT, round(Math.max(slowest * 1.1, Math.min(targets * 1.15, (slowest || Infinity) * 3), 0.001)), waits, seen, x, width));
    const every = minutes === 10 ? 2 : minutes === 1 ? 0.25 : minutes / 4;
    for (let ago = minutes; ago >= 0; ago -= width < 500 ? minutes / 2 : every) {
      const text = ago === 0 ? "now" : ago < 1 || ago % 1 ? `−${Math.round(ago * 60)} s` : `−${ago} min`;
      parts.push(svg("text", { class: "axis", x: x(now - ago * MINUTE_MS), y: height - 4, "text-anchor": ago === minutes ? "start" : ago ? "middle" : "end" }, text));
    }
    const shown = this.#pointer === null ? seen.at(-1) : seen.reduce((best, one) => (Math.abs(x(one.at) - this.#pointer) < Math.abs(x(best.at) - this.#pointer) ? one : best));
    if (this.#pointer !== null) parts.push(svg("line", { class: "cursor", x1: x(shown.at), x2: x(shown.at), y1: TITLE, y2: height - FOOT }));
    this.#picture.replaceChildren(...parts);
    const all = [...lines, ...waits].filter((one) => seen.some((sample) => one.of(sample) !== null));
    const at = (sample) => all.filter((one) => !one.kind.startsWith("target")).map((one) => [one, one.of(sample)]).filter(([, value]) => value !== null).map(([one, value]) => `${one.name} ${one.words(value)}`);
    say(this.#readout, [moment(shown.at), shown.held ? `held by ${shown.held}` : null, ...at(shown)].filter(Boolean).join(" · "));
    this.#tell(all, seen);
  }

  #tell(all, seen) {
    const rows = all.map((one) => {
      const values = seen.map(one.of).filter((value) => value !== null);
      const last = one.of(seen.at(-1));
      return [one.name, [one.name, last === null ? "–" : one.words(last), one.words(Math.min(...values)), one.words(Math.max(...values))]];
    });
    fill(this.numbers, rows);
    const names = all.filter((one) => !one.kind.startsWith("target")).map((one) => [one.name, one.kind]);
    if (names.length < all.length) names.push(["their targets", "target"]);
    if (seen.some((one) => one.held)) names.push(["held", "heldspan"]);
    if (this.#legend.dataset.of !== JSON.stringify(names)) {
      this.#legend.dataset.of = JSON.stringify(names);
      this.#legend.replaceChildren(...names.map(([name, kind]) => h("li", {}, svg("svg", { width: 22, height: 8 }, kind === "heldspan" ? svg("rect", { class: kind, width: 22, height: 8 }) : svg("path", { class: `line ${kind}`, d: "M1 4H21" })), name)));
    }
    const label = `Chart: ${this.title.textContent.toLowerCase()}. ${rows.map(([name, [, last, least, most]]) => `${name} now ${last}, from ${least} to ${most}`).join("; ")}.`;
    if (this.#picture.getAttribute("aria-label") !== label) this.#picture.setAttribute("aria-label", label);
  }
}

/** Where nothing was let through. */
function held(seen, x, height) {
  const found = [];
  for (const [n, one] of seen.entries()) {
    const next = seen[n + 1];
    if (!one.held || !next || next.at - one.at > GAP_MS) continue;
    const last = found.at(-1);
    if (last && last.to === one.at) last.to = next.at;
    else found.push({ from: one.at, to: next.at });
  }
  return found.map(({ from, to }) => svg("rect", { class: "heldspan", x: x(from), width: Math.max(1, x(to) - x(from)), y: TITLE, height: height - TITLE }));
}

function panel(title, above, top, lines, seen, x, width) {
  const y = (value) => above + HEIGHT - (value / top) * HEIGHT;
  const parts = [0, 0.5, 1].flatMap((share) => [
    svg("line", { class: "grid", x1: LEFT, x2: width - 4, y1: y(share * top), y2: y(share * top) }),
    svg("text", { class: "axis", x: LEFT - 8, y: y(share * top) + 4, "text-anchor": "end" }, lines[0].words(share * top)),
  ]);
  parts.push(svg("text", { class: "axis title", x: LEFT, y: above - 8 }, title));
  for (const { kind, of, steps } of lines) {
    let path = "";
    let before = null;
    for (const one of seen) {
      const value = of(one);
      const place = value === null ? null : `${x(one.at).toFixed(1)} ${Math.max(above - 3, y(value)).toFixed(1)}`;
      const joined = before && before.place && one.at - before.at <= GAP_MS;
      if (place) path += !joined ? `M${place}` : steps && before.y !== y(value) ? `H${x(one.at).toFixed(1)}L${place}` : `L${place}`;
      before = { at: one.at, place, y: value === null ? null : y(value) };
    }
    parts.push(svg("path", { class: `line ${kind}`, d: path }));
  }
  return parts;
}
