// The links: all clients of a server, or the server of a client.

import { ask as command } from "./api.js";
import { ask, facts, sheet } from "./dialogs.js";
import { button, fill } from "./dom.js";
import { can, live } from "./live.js";
import { Table, state } from "./table.js";
import { ago, count, day, many, ms, rate, size, tone } from "./words.js";

const COLUMNS = [
  { name: "user", label: "User", width: "minmax(7em, 1fr)", sort: (row) => row.user ?? "", text: (row) => row.user ?? "–" },
  { name: "peer", label: "Address", width: "minmax(10em, 1.4fr)", from: 560, sort: (row) => row.peer, text: (row) => row.peer || "–" },
  { name: "id", label: "Id", width: "7em", from: 900, mono: true, sort: (row) => row.id, text: (row) => row.id },
  { name: "state", label: "State", width: "6.5em", sort: (row) => row.state, part: state((row) => row.state, (row) => tone(row.state)) },
  { name: "rtt", label: "Round trip", width: "7em", from: 700, end: true, sort: (row) => row.rtt_ms, text: (row) => ms(row.rtt_ms) },
  { name: "connections", label: "Open", width: "5em", from: 640, end: true, sort: (row) => row.connections, text: (row) => count(row.connections) },
  { name: "rate", label: "Now", width: "8em", from: 820, end: true, sort: (row) => row.passed.sent_per_s + row.passed.received_per_s, text: (row) => rate(row.passed.sent_per_s + row.passed.received_per_s) },
  { name: "since", label: "Linked", width: "8em", from: 1000, end: true, sort: (row) => row.linked_at, text: (row) => ago(row.linked_at, live.at) },
];

function make() {
  const isUp = live.process.role === "up";
  const table = new Table({
    label: isUp ? "Link" : "Clients", columns: COLUMNS, key: (row) => `${row.id} ${Math.round(row.began_at ?? 0)}`, open, steady: true,
    sort: { name: "user", down: false }, empty: isUp ? "There is no link." : "No client is here.",
    brief: (row) => `${row.peer || row.reason} · ${count(row.connections)} open · ${ms(row.rtt_ms)}`,
  });
  return {
    element: table.element,
    tools: [isUp && can("retry") && button("Try again now", retry)].filter(Boolean),
    update: (changed) => (changed.has("links") || changed.has("begun")) && table.setRows([...live.links.values()]),
    end: () => table.end(),
  };
}

async function retry() {
  ask({
    title: "Try again now", text: "A client without a link tries at once, and not after its pause.", verb: "Try",
    run: async () => ((await command("retry")).tried ? "It tries now." : "There is a link."),
  });
}

function open(row) {
  const isUp = live.process.role === "up";
  const { body, actions, dialog } = sheet(row.user ?? row.id, row.id);
  fill(
    body,
    facts([
      ["State", row.state], ["Why", row.reason], ["Address", row.peer], ["Encrypted", row.encrypted ? "yes, TLS 1.3" : "no"],
      ["Linked", row.linked_at && day(row.linked_at)], ["Session since", row.began_at && day(row.began_at)], ["Lost", row.lost_at && day(row.lost_at)],
      ["Round trip", ms(row.rtt_ms)], ["Resumed", many(row.resumes, "time")], ["Open connections", count(row.connections)],
      ["Wait for a link", row.waiting ? count(row.waiting) : null], ["Kept for another link", row.kept_bytes ? size(row.kept_bytes) : null],
      ["Received", size(row.passed.received_bytes)], ["Sent", size(row.passed.sent_bytes)], ["Program", row.agent],
    ]),
  );
  fill(actions, can("kick") && button(isUp ? "Cut the link" : "End its session", () => (dialog.close(), kick(row, isUp)), { kind: "danger" }));
}

function kick(row, isUp) {
  ask({
    title: isUp ? "Cut the link" : "End a session", danger: true, verb: isUp ? "Cut it" : "End it",
    text: isUp ? "Its connections go on over the next link." : `The session of ${row.user ?? row.id} ends, and ${many(row.connections, "connection")} with it. The client may begin another.`,
    run: async () => {
      const done = await command("kick", { which: row.id });
      return `${row.id} has ended, ${many(done.connections ?? 0, "connection")} reset.`;
    },
  });
}

export default {
  name: "links", icon: "links", title: () => (live.process?.role === "up" ? "Link" : "Clients"), shown: () => true,
  count: () => (live.process?.role === "up" ? "" : count(live.links.size)), make,
};
