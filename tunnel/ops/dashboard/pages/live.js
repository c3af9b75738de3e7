// What the process is and does now: one stream, kept as maps that views read. A view
// subscribes; it is called at most once a frame, and not at all while nobody looks.

import { Failed, stream } from "./api.js";

export const SAMPLES = 600; // ten minutes, one a second
const SILENT_MS = 10_000; // there is a line a second: so much silence is a lost process
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 8_000;
const HIDDEN_MS = 60_000; // a hidden tab gives its connection back; a browser has six

export const live = {
  state: "connecting", // "live", "lost"
  retryAt: 0,
  at: 0,
  process: null,
  commands: new Set(),
  inspects: false,
  links: new Map(),
  entries: new Map(),
  users: new Map(),
  certificates: [],
  faults: [],
  series: { at: [], sent: [], received: [], connections: [] },
};

const views = new Set();
let changed = new Set();
let drawn = 0;
let ending = null; // AbortController of the stream
let wake = null; // ends the pause before the next attempt
let watchdog = 0;
let hidden = 0;
let running = false;

/** Call `take(changed)` when something has changed; return what ends that. */
export function subscribe(take) {
  views.add(take);
  return () => views.delete(take);
}

/** Which process it is: one that was started anew counts all of its own anew. */
export function born() {
  return live.process && `${live.process.name} ${live.process.began_at}`;
}

/** Say whether a command may be offered. */
export function can(command) {
  return live.commands.has(command);
}

function tell(...what) {
  for (const one of what) changed.add(one);
  if (drawn || document.hidden) return;
  drawn = requestAnimationFrame(() => {
    drawn = 0;
    const now = changed;
    changed = new Set();
    for (const take of [...views]) take(now);
  });
}

// A frame that was asked for before the tab was hidden comes when it is seen again, but
// what changed meanwhile has asked for none.
document.addEventListener("visibilitychange", () => {
  clearTimeout(hidden);
  if (document.hidden) hidden = setTimeout(() => ending?.abort(), HIDDEN_MS);
  else {
    wake?.();
    tell("shown");
  }
});

/** Follow the process for ever; a lost one is asked again, ever less often. */
export async function follow() {
  if (running) return;
  running = true;
  let pause = FIRST_PAUSE_MS;
  while (running) {
    if (document.hidden && live.state !== "connecting") await pauseFor(2 ** 31 - 1);
    ending = new AbortController();
    alive();
    try {
      await stream("live", {}, ending.signal, (said) => {
        alive();
        pause = FIRST_PAUSE_MS;
        take(said);
      });
    } catch (error) {
      if (error instanceof Failed && error.status === 401) break;
    }
    clearTimeout(watchdog);
    const wait = pause * (0.75 + Math.random() / 2); // many pages do not come at once
    pause = Math.min(pause * 2, LONGEST_PAUSE_MS);
    live.state = "lost";
    live.retryAt = Date.now() + wait;
    tell("state");
    await pauseFor(wait);
  }
  running = false;
}

/** Try again now, and not after the pause. */
export function tryNow() {
  wake?.();
}

function pauseFor(time) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, time);
    wake = () => {
      clearTimeout(timer);
      resolve();
    };
  });
}

function alive() {
  clearTimeout(watchdog);
  watchdog = setTimeout(() => ending.abort(), SILENT_MS);
}

function take(said) {
  const first = said.commands !== undefined;
  if (live.state !== "live") tell("state");
  live.state = "live";
  const since = said.at - live.at;
  live.at = said.at;
  if (first) begin(said);
  if (said.process) {
    live.process = said.process;
    if (!first || !said.history) sample(said.at, said.process);
    tell("process");
  }
  keep(live.links, said.links, said.links_gone, linkKey, "links");
  rates(said, first ? 0 : since);
  keep(live.entries, said.entries, said.entries_gone, (one) => one.key, "entries");
  keep(live.users, said.users, said.users_gone, (one) => one.name, "users");
  for (const name of ["certificates", "faults"]) {
    if (said[name]) {
      live[name] = said[name];
      tell(name);
    }
  }
}

/** A client may begin anew under its id. Its beginning is computed from another clock
each time, so it may differ by some milliseconds: the second beside is the same one. */
function linkKey({ id, began_at }) {
  if (live.process?.role === "up") return id; // one link, whose session may begin later
  const second = Math.round(began_at ?? 0);
  const near = [0, -1, 1].map((more) => `${id} ${second + more}`);
  return near.find((key) => live.links.has(key)) ?? near[0];
}

function begin(said) {
  live.commands = new Set(said.commands);
  live.inspects = Boolean(said.inspects);
  for (const map of [live.links, live.entries, live.users]) map.clear();
  live.certificates = [];
  live.faults = [];
  live.series = { at: [], sent: [], received: [], connections: [] };
  for (const [at, sent, received, connections] of said.history ?? []) {
    push(at, sent, received, connections);
  }
  tell("begun", "links", "entries", "users", "certificates", "faults");
}

function sample(at, { passed, connections }) {
  push(at, passed.sent_per_s, passed.received_per_s, connections);
}

function push(at, sent, received, connections) {
  const { series } = live;
  if (series.at.length && at <= series.at.at(-1)) return; // a clock that was set back
  series.at.push(at);
  series.sent.push(-sent); // below the line, as what is received is above it
  series.received.push(received);
  series.connections.push(connections);
  if (series.at.length > SAMPLES) for (const each of Object.values(series)) each.shift();
}

/** Entries come with totals alone: their rates are the difference to the line before. */
function rates(said, seconds) {
  for (const entry of live.entries.values()) {
    if (entry.rate) {
      entry.rate = 0;
      tell("entries");
    }
  }
  if (!(seconds > 0.2)) return;
  for (const entry of said.entries ?? []) {
    const before = live.entries.get(entry.key)?.passed;
    if (!before || !entry.passed) continue;
    const more =
      entry.passed.sent_bytes + entry.passed.received_bytes - before.sent_bytes - before.received_bytes;
    entry.rate = Math.max(more / seconds, 0);
  }
}

function keep(map, came, gone, key, name) {
  for (const one of gone ?? []) {
    // A link goes by its id: its key has the time at which its session began.
    for (const had of map.has(one) ? [one] : [...map.keys()].filter((k) => k.split(" ")[0] === one)) {
      map.delete(had);
    }
  }
  for (const one of came ?? []) map.set(key(one), one);
  if (came?.length || gone?.length) tell(name);
}
