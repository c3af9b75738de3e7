// The requests that were seen, as they happen; a list with filters, and one in detail.

import { ask as command, stream } from "./api.js";
import { ask, failure, showText, toast } from "./dialogs.js";
import { button, copy, download, fill, h, say } from "./dom.js";
import { detail } from "./inspector_detail.js";
import { live } from "./live.js";
import { Table, state } from "./table.js";
import { clock, count, ms, size } from "./words.js";

const MOST = 5_000; // requests in the list; the process may keep more
const FIND_MS = 300; // after the last key
const AGAIN_MS = 1_000;
const STATUSES = [["", "Any status"], ["2", "2xx"], ["3", "3xx"], ["4", "4xx"], ["5", "5xx"], ["0", "no answer"], ["1", "WebSocket"]];
const TIMES = [["", "Any time"], ["100", "over 100 ms"], ["1000", "over 1 s"], ["10000", "over 10 s"]];

export const methodTone = (row) => (row.state === "failed" || row.status >= 500 ? "bad" : row.status >= 400 ? "wait" : row.status ? "good" : "still");

const COLUMNS = [
  { name: "number", label: "#", width: "4.5em", from: 900, end: true, sort: (row) => row.number, text: (row) => row.number },
  { name: "at", label: "Time", width: "6em", from: 700, sort: (row) => row.number, text: (row) => clock(row.at) },
  { name: "path", label: "Request", width: "minmax(8em, 3fr)", mono: true, sort: (row) => row.path, text: (row) => `${row.method} ${row.path}` },
  { name: "status", label: "Status", width: "5.5em", sort: (row) => row.status ?? 0, part: state((row) => row.status ?? (row.state === "failed" ? "failed" : "…"), methodTone) },
  { name: "size", label: "Size", width: "6em", from: 640, end: true, sort: (row) => row.received_bytes, text: (row) => size(row.received_bytes) },
  { name: "took", label: "Took", width: "6em", from: 520, end: true, sort: (row) => row.ended_ms, text: (row) => (row.state === "tunnel" ? "open" : ms(row.ended_ms)) },
  { name: "host", label: "Host", width: "minmax(7em, 1fr)", from: 1150, sort: (row) => row.host, text: (row) => row.host },
];

function choice(label, options, change) {
  return h("select", { "aria-label": label, on: { change } }, ...options.map(([value, said]) => h("option", { value }, said)));
}

function make() {
  const seen = new Map();
  let version = 0;
  let began = null; // when the process began to look: another one counts anew
  let ending = new AbortController();
  let ended = false;
  let found = null; // numbers that have the text in them; null: all
  let finding = 0;
  let shownNumber = null;
  let showAgain = null; // shows what is shown once more, changed
  let drawn = 0;

  const path = h("input", { type: "search", class: "search", placeholder: "Path has", "aria-label": "Path has", on: { input: () => draw() } });
  const text = h("input", { type: "search", class: "search", placeholder: "Text in heads and bodies", "aria-label": "Text in heads and bodies", on: { input: findSoon } });
  const status = choice("Status", STATUSES, () => draw());
  const method = choice("Method", [["", "Any method"], ...["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"].map((one) => [one, one])], () => draw());
  const time = choice("Time", TIMES, () => draw());
  const told = h("p", { class: "note", role: "status" });
  const pane = h("section", { class: "detail", "aria-label": "One request", hidden: true });
  const table = new Table({
    label: "Requests", columns: COLUMNS, key: (row) => row.number, open: show, sort: { name: "at", down: true },
    empty: "Nothing was asked yet.",
    brief: (row) => `${clock(row.at)} · ${size(row.received_bytes)} · ${ms(row.ended_ms)} · ${row.host}`,
  });

  function fits(row) {
    if (path.value && !row.path.toLowerCase().includes(path.value.toLowerCase())) return false;
    if (method.value && row.method !== method.value) return false;
    if (time.value && !(row.ended_ms > Number(time.value))) return false;
    if (status.value === "0" ? row.status !== null : status.value === "1" ? !row.websocket : status.value && String(row.status)[0] !== status.value) return false;
    return found === null || found.has(row.number);
  }

  function draw() {
    drawn = 0;
    const rows = [...seen.values()].filter(fits);
    say(told, rows.length === seen.size ? `${count(seen.size)} requests` : `${count(rows.length)} of ${count(seen.size)} requests`);
    table.setRows(rows);
  }

  function take(said) {
    if (said.version === undefined) return;
    if (began !== said.began_at) {
      if (began !== null) forget();
      began = said.began_at;
      if (version) return (version = 0), ending.abort(); // and asks for all of it
    }
    version = said.version;
    for (const one of said.seen) {
      seen.set(one.number, one);
      if (one.number === shownNumber && one.state !== "asked") again(one);
    }
    for (const number of seen.keys()) {
      if (number < said.first || seen.size > MOST) seen.delete(number);
    }
    drawn ||= requestAnimationFrame(draw);
  }

  function forget() {
    seen.clear();
    if (found) {
      found = new Set();
      findSoon();
    }
    if (shownNumber !== null) close();
    draw();
  }

  function findSoon() {
    clearTimeout(finding);
    finding = setTimeout(async () => {
      if (!text.value) found = null;
      else {
        try {
          found = new Set((await command("inspect.find", { text: text.value })).numbers);
        } catch (error) {
          fill(told, failure(error));
          return;
        }
      }
      draw();
    }, FIND_MS);
  }

  async function followRequests() {
    while (!ended) {
      ending = new AbortController();
      try {
        await stream("inspect.live", { after: version }, ending.signal, take);
      } catch (error) {
        if (ended) return;
        if (error.status === 400) fill(told, failure(error));
      }
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
  }

  let late = 0;
  function again(one) {
    clearTimeout(late);
    late = setTimeout(() => shownNumber === one.number && show(one, true), one.state === "done" || one.state === "failed" ? 0 : AGAIN_MS);
  }

  async function show(row, quietly = false) {
    if (shownNumber !== row.number) showAgain = null;
    shownNumber = row.number;
    table.select(row.number);
    try {
      const whole = await command("inspect.show", { number: row.number });
      if (shownNumber !== row.number) return;
      if (quietly && showAgain && row.state === "tunnel" && whole.state === "tunnel") return await showAgain(whole);
      const focused = pane.contains(document.activeElement);
      showAgain = detail(pane, whole, { close, replay, edit, curl, har: (number) => exportHar([number]), show: (number) => seen.has(number) && show(seen.get(number)) });
      pane.hidden = false;
      element.classList.add("split");
      if (!quietly || focused) pane.querySelector("h2")?.focus();
    } catch (error) {
      if (quietly) return;
      showAgain = null;
      fill(pane, failure(error));
      pane.hidden = false;
    }
  }

  function close() {
    shownNumber = null;
    pane.hidden = true;
    element.classList.remove("split");
    table.select(undefined);
    table.focusRow(table.places.get(table.active) ?? 0);
  }

  async function replay(number) {
    try {
      const done = await command("inspect.replay", { number });
      toast(`Asked again: request ${done.number}.`);
      show({ number: done.number, state: "asked" });
    } catch (error) {
      toast(`${error.what}${error.cause ? `: ${error.cause}` : ""}`, true);
    }
  }

  function edit(whole) {
    const [asked, ...rest] = whole.request.line.split(" ");
    rest.pop();
    ask({
      title: "Edit and replay", wide: true, verb: "Replay",
      text: "It is sent to the target as a request of its visitor. *** stands for a value that is hidden, and stays what it was.",
      fields: [
        { name: "method", label: "Method", value: asked, needed: true },
        { name: "path", label: "Path", value: rest.join(" "), needed: true },
        { name: "fields", label: "Header fields", kind: "lines", rows: 8, value: whole.request.fields.map(([name, value]) => `${name}: ${value}`).join("\n") },
        ...(whole.request.body.text !== null || !whole.request.body.size ? [{ name: "body", label: "Body", kind: "lines", rows: 8, value: whole.request.body.text ?? "" }] : []),
      ],
      run: async (values) => {
        const fields = values.fields.split("\n").filter((one) => one.includes(":")).map((one) => {
          const at = one.indexOf(":");
          return [one.slice(0, at).trim(), one.slice(at + 1).trim()];
        });
        const done = await command("inspect.replay", { number: whole.number, edit: { method: values.method.trim(), path: values.path.trim(), fields, body: values.body ?? null } });
        show({ number: done.number, state: "asked" });
        return `Asked: request ${done.number}.`;
      },
    });
  }

  async function curl(whole) {
    const shown = async (reveal) => {
      const { command: text } = await command("inspect.curl", { number: whole.number, reveal });
      return text;
    };
    try {
      showText("As a curl command", await shown(false), copy, whole.hidden.length ? `*** stands for what is hidden: ${whole.hidden.join(", ")}.` : "");
      if (whole.hidden.length) document.querySelector("dialog[open] footer").prepend(button("Copy with what is hidden", async () => toast((await copy(await shown(true))) ? "Copied, with what is hidden." : "The browser does not allow it."), { kind: "plain" }));
    } catch (error) {
      toast(`${error.what}${error.cause ? `: ${error.cause}` : ""}`, true);
    }
  }

  function exportHar(numbers) {
    ask({
      title: "Export as HAR", verb: "Export",
      text: `${numbers ? "This request" : `${count(table.rows.length)} requests, as they are filtered,`} as a file that browsers’ tools read.`,
      fields: [{ name: "reveal", label: "With passwords, cookies and what else is hidden", kind: "yes" }],
      run: async ({ reveal }) => {
        const { har } = await command("inspect.har", { numbers: numbers ?? table.rows.map((row) => row.number), reveal });
        download("tunnel.har", "application/json", JSON.stringify(har, null, 1));
        return "Exported: tunnel.har";
      },
    });
  }

  function clear() {
    ask({
      title: "Forget all requests", danger: true, verb: "Forget", text: "They are kept nowhere else.",
      run: async () => {
        await command("inspect.clear");
        forget();
        return "Forgotten.";
      },
    });
  }

  const filters = h("div", { class: "filters", role: "search", "aria-label": "Filter the requests" }, path, text, method, status, time);
  const element = h("div", { class: "stack inspector" }, filters, told, h("div", { class: "panes" }, table.element, pane));
  followRequests();
  return {
    element,
    tools: [button("Export HAR", () => exportHar(null), { kind: "plain" }), button("Forget all", clear, { kind: "plain" })],
    update: () => {},
    end() {
      ended = true;
      ending.abort();
      clearTimeout(late);
      table.end();
    },
  };
}

export default { name: "inspector", icon: "inspector", title: () => "Inspector", shown: () => live.inspects, count: () => "", make };
