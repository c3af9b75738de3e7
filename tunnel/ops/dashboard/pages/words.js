// Numbers and states as people read them; sizes as `tunnel status` writes them.

const UNITS = ["kB", "MB", "GB", "TB"];

/** A number of bytes: "4.2 MB". */
export function size(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  if (Math.round(bytes) < 1000) return `${Math.round(bytes)} B`;
  let value = bytes;
  for (const unit of UNITS) {
    value /= 1000;
    if (Number(value.toFixed(1)) < 1000 || unit === "TB") return `${value.toFixed(1)} ${unit}`;
  }
}

/** Bytes in a second: "4.2 MB/s"; "–" for nothing, so that a still row looks still. */
export function rate(bytes) {
  return bytes ? `${size(bytes)}/s` : "–";
}

/** A number and its unit apart, for large type. */
export function parts(bytes, behind = "") {
  const [value, unit] = size(bytes ?? 0).split(" ");
  return [value, unit + behind];
}

export function count(number) {
  return number === null || number === undefined ? "–" : number.toLocaleString("en-US");
}

export function many(number, one, more = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : more}`;
}

/** How long something lasts, to one unit. */
export function span(seconds) {
  const s = Math.max(seconds, 0);
  if (s < 60) return `${Math.round(s)} s`;
  if (s < 3600) return `${Math.round(s / 60)} min`;
  if (s < 86_400) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86_400)} d`;
}

export function ago(at, now) {
  return at === null || at === undefined ? "–" : `${span(now - at)} ago`;
}

const CLOCK = new Intl.DateTimeFormat([], {
  hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false,
});
const DAY = new Intl.DateTimeFormat([], { dateStyle: "medium", timeStyle: "medium" });

/** The time of day; a date before it would be the same in nearly every row. */
export function clock(at) {
  return CLOCK.format(at * 1000);
}

export function day(at) {
  return at === null || at === undefined ? "–" : DAY.format(at * 1000);
}

export function ms(value) {
  if (value === null || value === undefined) return "–";
  if (value < 10) return `${value.toFixed(1)} ms`;
  return value < 10_000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;
}

/** What a connection waits for; the words of `tunnel why`. */
export const WAITS = {
  nothing: "nothing",
  credit: "the other end’s reader",
  turn: "its turn on the link",
  line: "the line",
  rate: "the rate of its user or entry",
  local: "the program at this end",
  target: "the target",
  program: "the program that opened it",
  link: "another link",
};

export function waits(word) {
  return WAITS[word] ?? word ?? "–";
}

/** How good a state is: "good", "wait", "bad" or "still"; the word stands beside it. */
export function tone(state) {
  if (["linked", "listening", "open"].includes(state)) return "good";
  if (["waiting", "connecting", "draining"].includes(state)) return "wait";
  return state === "refused" || state === "failed" ? "bad" : "still";
}

export function entryState(entry) {
  return entry.paused ? "paused" : entry.state;
}

export function sum(passed) {
  return passed ? passed.sent_bytes + passed.received_bytes : 0;
}

const FIELD = /([\w.-]+)=("(?:[^"\\]|\\.)*"|\S*)/g;

/** The fields of a line of the log (logfmt), in their order. */
export function fields(text) {
  return Array.from(String(text).matchAll(FIELD), ([, key, value]) => [key, unquoted(value)]);
}

function unquoted(value) {
  if (!value.startsWith('"')) return value;
  try {
    return JSON.parse(value);
  } catch {
    return value.slice(1, -1); // an escape that JSON does not have stays as it is
  }
}

/** A line of the log without its time, level and event, which are shown beside it. */
export function rest(text) {
  return String(text).replace(/^ts=\S+ level=\S+ (?:event=\S+ ?)?/, "");
}
