// Numbers and states as people read them; the same words as the command line's.

export const AT_WORK = ["planned", "running", "verifying"];
const ORDERED = ["max_rows_per_s", "max_wal_bytes_per_s"];
export const FINAL = ["done", "failed", "cancelled"];
const AT = new Intl.DateTimeFormat(undefined, { timeZone: "UTC", hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const DAY = new Intl.DateTimeFormat(undefined, { timeZone: "UTC", year: "numeric", month: "short", day: "numeric" });
const LARGE = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
const BINARY = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

const grouped = (value, digits = 0) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const three = (value) => value.toFixed(value >= 100 ? 0 : value >= 10 ? 1 : 2);
const digits = (value, many = 3) => (Math.abs(value) >= 100 ? grouped(value) : String(Number(value.toPrecision(many))));

/** 9,999 and 12.4 k and 19.7 M. */
export function count(value) {
  if (value < 10_000) return grouped(value);
  const [size, letter] = LARGE.find(([least]) => value >= least);
  return `${three(value / size)} ${letter}`;
}

export const rate = (value) => (value < 10 ? String(Number(value.toPrecision(2))) : count(value));
export const percent = (share) => `${Math.floor(share * 100)} %`;
export const counted = (number, noun) => `${grouped(number)} ${noun}${number === 1 ? "" : "s"}`;

export function size(bytes) {
  const step = bytes < 1 ? 0 : Math.min(Math.floor(Math.log2(bytes) / 10), BINARY.length - 1);
  return step ? `${three(bytes / 1024 ** step)} ${BINARY[step]}` : `${Math.round(bytes)} B`;
}

/** 0.42 s, 24 s, 4 min 10 s, 3 h 20 min, 2 d 4 h. */
export function duration(seconds) {
  if (seconds < 10) return seconds < 0.01 ? "0 s" : `${Number(seconds.toPrecision(2))} s`;
  const whole = Math.round(seconds);
  if (whole < 120) return `${whole} s`;
  const [large, name, small, rest] = [[86400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"]]
    .find(([least]) => whole >= least);
  const left = Math.floor((whole % large) / small);
  return `${Math.floor(whole / large)} ${name}${left ? ` ${left} ${rest}` : ""}`;
}

/** A value in the unit of a signal: 5 ms, 16.0 MiB, 20 %. */
export function amount(value, unit) {
  if (value === null || value === undefined) return "–";
  switch (unit) {
    case "s": return value >= 1 || value === 0 ? `${digits(value)} s` : `${digits(value * 1000)} ms`;
    case "ratio": return `${digits(value * 100)} %`;
    case "bytes": return size(value);
    case "bytes/s": return `${size(value)}/s`;
    default: return digits(value, 6);
  }
}

/** 22:31:05 UTC, with the day where it is not today.  The page says once that its times are UTC, as the command line's are. */
export function moment(when) {
  if (!when) return "–";
  const at = new Date(when);
  const day = DAY.format(at);
  return `${day === DAY.format(new Date()) ? "" : `${day}, `}${AT.format(at)}`;
}

export const since = (when) => duration(Math.max(0, (Date.now() - new Date(when)) / 1000));

export function rows(job) {
  const done = count(job.rows_done);
  return job.state === "done" || job.rows_done >= job.rows_estimated ? `${done} rows` : `${done} of ${count(job.rows_estimated)} rows`;
}

/** Whether the pace is being found, or measured anew: its limit tells nothing yet of signals, nor of how long the job will take. */
export function starting({ pace, rows_per_s: now }) {
  if (!["baseline", "slow start", "slowdown"].includes(pace.stage) || ORDERED.includes(pace.leads)) return false;
  return pace.stage !== "slow start" || pace.limit_rows_per_s === null || now >= pace.limit_rows_per_s / 2; // else it is as fast as it can be
}

/** How long it will take, where that is known. */
export const left = (job) => (AT_WORK.includes(job.state) && job.eta_s !== null && !starting(job) ? duration(job.eta_s) : "");

/** "limit 3,200 by read_latency 6.1ms > 5ms": what keeps it from going faster. */
export function limit(job) {
  const { limit_rows_per_s: most, held_by, because, stage, leads, pressure } = job.pace;
  if (most === null || held_by || FINAL.includes(job.state)) return "";
  const said = ORDERED.includes(leads) && because?.startsWith(leads) ? leads : because; // its number stands before it
  // Before it is steady, a signal below its target leads nothing: the start itself is slow.
  const slow = stage === "slow start" && !ORDERED.includes(leads) && !(pressure >= 1);
  const by = (slow ? "" : said) || (["steady", "alone"].includes(stage) ? "" : stage);
  return `limit ${rate(most)} rows/s${by ? ` by ${by}` : ""}`;
}

/** Why it does not move, or why it ended so. */
export function why(job) {
  if (job.state === "failed") return job.error?.message || "for an unknown reason";
  if (job.state === "done") {
    const left = job.quarantined ? `${counted(job.quarantined, "row")} in quarantine` : "";
    const proof = { true: "verified", false: "verified: the sides differ" }[job.verified] || "";
    return [left, proof].filter(Boolean).join(", ");
  }
  const { waiting, held_by, leads } = job.pace;
  if (!AT_WORK.includes(job.state)) return waiting || "";
  if (held_by) return `held: ${waiting || held_by}`;
  if (!job.workers) return ["nobody works on it", job.aside || waiting].filter(Boolean).join("; ");
  const said = ["rate limit", ...ORDERED, leads, ...job.signals.map((one) => one.name)].includes(waiting);
  const wait = waiting && !(said && limit(job)) ? (waiting.startsWith("no pacer") ? waiting : `waiting for: ${waiting}`) : "";
  return [limit(job), wait].filter(Boolean).join("; ");
}

/** What a person may do about the state it is in. */
export function next(job) {
  const name = job.job;
  if (job.state === "failed") return job.error?.hint || (job.error?.resumable ? "Mend the cause, then resume it." : `backfill restart ${name} begins it anew.`);
  if (job.state === "cancelled") return `backfill restart ${name} begins it anew.`;
  if (job.state === "done" && job.verified === false) return `backfill verify ${name} --repair mends what differs.`;
  if (job.state === "paused") return "It waits until somebody resumes it.";
  if (AT_WORK.includes(job.state) && !job.workers) return "It goes on when a daemon or backfill worker works the ledger of its connection.";
  if (job.pace.held_by) return "It gives way, and goes on by itself. Being held is no failure.";
  return "";
}

/** Whether a value tells nothing: not there, or none of it. */
export const nothing = (value) => value === null || value === undefined || value === false || value === 0 || value === ""
  || (Array.isArray(value) ? !value.length : typeof value === "object" && Object.values(value).every(nothing));

/** Any value of the API as text. */
export function plain(value) {
  if (value === true) return "yes";
  if (value === null || value === undefined) return "none";
  if (typeof value === "number") return Number.isInteger(value) ? grouped(value) : digits(value, 6);
  if (Array.isArray(value)) return value.map(plain).join(", ");
  if (typeof value === "object") return Object.entries(value).filter(([, one]) => !nothing(one)).map(([name, one]) => `${name} ${plain(one)}`).join(", ");
  return String(value);
}

function* changes(before, after, path = "") {
  const both = (one) => one !== null && typeof one === "object" && !Array.isArray(one);
  for (const name of new Set([...Object.keys(before), ...Object.keys(after)])) {
    const [old, now, place] = [before[name], after[name], path + name];
    if (both(old) && both(now)) yield* changes(old, now, `${place}.`);
    else if (JSON.stringify(old) !== JSON.stringify(now)) yield `${place.replace(/^signals\./, "")}: ${plain(old)} → ${plain(now)}`;
  }
}

/** "workers: 2"; "settle_s" is in seconds, and so on. */
function named(name, value) {
  const [, noun, unit] = typeof value === "number" ? /^(.*?)(?:(?<!_per)_(s|bytes))?$/.exec(name) : [null, name];
  if (noun === "settle") return `looks again after ${duration(value)}`;
  return `${noun.replaceAll("_", " ")}: ${unit === "s" ? duration(value) : unit ? size(value) : plain(value)}`;
}

/** What one line of the history tells besides when, what and who. */
export function told(entry) {
  const { from, to, reason, message, ...rest } = entry.detail || {};
  const parts = [];
  if (from && to && typeof from === "object" && typeof to === "object") parts.push(...changes(from, to));
  else if (nothing(to) === false && nothing(from) === false) parts.push(`${plain(from)} → ${plain(to)}`);
  else if (!nothing(from)) parts.push(`was ${plain(from)}`);
  for (const [name, value] of Object.entries(rest)) if (!nothing(value)) parts.push(named(name, value));
  if (message) parts.push(message);
  if (reason) parts.push(`“${reason}”`);
  return parts.join(", ");
}
