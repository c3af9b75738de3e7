// Connections that have carried most, live, and what each waits for.

import { ask as command } from "./api.js";
import { ask, facts, failure, sheet } from "./dialogs.js";
import { button, fill, h, say } from "./dom.js";
import { can, live } from "./live.js";
import { Table, state } from "./table.js";
import { count, many, rate, size, sum, waits } from "./words.js";

const EVERY_MS = 2_000;
const MOST = 200;

const COLUMNS = [
  { name: "visitor", label: "Visitor", width: "minmax(10em, 1.6fr)", sort: (row) => row.visitor ?? row.user, text: (row) => row.visitor ?? row.user ?? "–" },
  { name: "what", label: "Leads to", width: "minmax(8em, 1.4fr)", from: 640, sort: (row) => row.entry ?? row.target ?? "", text: (row) => row.entry ?? row.target ?? "–" },
  { name: "user", label: "User", width: "6.5em", from: 980, sort: (row) => row.user, text: (row) => row.user },
  { name: "in", label: "In", width: "7em", from: 700, end: true, sort: (row) => row.in ?? 0, text: (row) => rate(row.in) },
  { name: "out", label: "Out", width: "7em", from: 700, end: true, sort: (row) => row.out ?? 0, text: (row) => rate(row.out) },
  { name: "bytes", label: "In all", width: "6.5em", end: true, sort: (row) => sum(row.passed), text: (row) => size(sum(row.passed)) },
  { name: "why", label: "Waits for", width: "minmax(9em, 1.3fr)", from: 860, sort: (row) => row.why ?? "", part: state((row) => waits(row.why), (row) => (row.why && row.why !== "nothing" ? "wait" : "still")) },
];

function make() {
  let before = new Map();
  let asked_at = 0;
  let ended = false;
  let timer = 0;
  const told = h("p", { class: "note", role: "status" });
  const table = new Table({
    label: "Connections", columns: COLUMNS, key: (row) => row.id, open, steady: true,
    sort: { name: "bytes", down: true }, empty: "Nothing is open.",
    brief: (row) => `${row.entry ?? row.target ?? row.user} · ${size(sum(row.passed))} · waits for ${waits(row.why)}`,
  });
  async function look() {
    if (!document.hidden && live.state === "live" && can("top")) {
      try {
        draw(await command("top", { most: MOST }));
      } catch (error) {
        fill(told, failure(error));
      }
    }
    if (!ended) timer = setTimeout(look, EVERY_MS);
  }
  function draw({ count: all, connections }) {
    const now = performance.now();
    const seconds = (now - asked_at) / 1000;
    const known = new Map();
    for (const row of connections) {
      const { received_bytes, sent_bytes } = row.passed;
      const had = before.get(row.id);
      row.in = had ? Math.max(received_bytes - had[0], 0) / seconds : 0;
      row.out = had ? Math.max(sent_bytes - had[1], 0) / seconds : 0;
      known.set(row.id, [received_bytes, sent_bytes]);
    }
    before = known;
    asked_at = now;
    say(told, all > connections.length ? `The ${count(connections.length)} of ${many(all, "connection")} that have carried most.` : many(all, "connection"));
    table.setRows(connections);
  }
  look();
  return {
    element: h("div", { class: "stack" }, told, table.element),
    update: () => {},
    end() {
      ended = true;
      clearTimeout(timer);
      table.end();
    },
  };
}

function open(row) {
  const { body, actions, dialog } = sheet(row.visitor ?? row.id, row.id);
  const why = h("div", { role: "status" }, can("why") && h("p", { class: "note" }, "Asking what it waits for …"));
  fill(
    body,
    facts([
      ["Entry", row.entry], ["Target", row.target], ["User", row.user], ["State", row.state],
      ["Received", size(row.passed.received_bytes)], ["Sent", size(row.passed.sent_bytes)], ["Waits for", waits(row.why)],
    ]),
    why,
  );
  fill(actions, can("kick") && button("End it", () => (dialog.close(), kick(row)), { kind: "danger" }));
  if (can("why")) command("why", { connection: row.id }).then((done) => fill(why, ...(done.found ?? []).map(reasons)), (error) => fill(why, failure(error)));
}

function reasons(one) {
  const shares = Object.entries(one.minute ?? {}).map(([word, share]) => `${waits(word)} ${share} %`);
  return h(
    "section",
    { class: "why" },
    h("h3", {}, "Why is it slow?"),
    facts([["Now", waits(one.now)], ["Last minute", shares.join(", ") || "–"], ["Unsent here", one.unsent_bytes === undefined ? null : size(one.unsent_bytes)]]),
    one.help && h("p", { class: "fix" }, h("b", {}, "What helps: "), one.help),
  );
}

function kick(row) {
  ask({
    title: "End a connection", danger: true, verb: "End it",
    text: `${row.visitor ?? row.id} is reset, at both ends. Its program may connect again.`,
    run: async () => (await command("kick", { which: row.id }), `${row.id} has ended.`),
  });
}

export default { name: "connections", icon: "connections", title: () => "Connections", shown: () => can("top"), count: () => count(live.process?.connections ?? 0), make };
