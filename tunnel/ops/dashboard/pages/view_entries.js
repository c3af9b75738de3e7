// What is published, and what listens here: both ends of each, and what can be changed.

import { ask as command } from "./api.js";
import { ask, facts, sheet, toast } from "./dialogs.js";
import { button, copy, fill, h } from "./dom.js";
import { can, live } from "./live.js";
import { Table, state } from "./table.js";
import { count, entryState, rate, size, sum, tone } from "./words.js";

const KINDS = [
  ["http", "http: a web service by name"],
  ["tcp", "tcp: a public port"],
  ["udp", "udp: a public UDP port"],
  ["https", "https: TLS by name, passed through"],
  ["reach", "reach: a port here to the server’s side"],
  ["socks", "socks: a proxy here"],
  ["be-exit", "be-exit: other clients leave here"],
];
const FORMS = {
  http: "NAME=TARGET[,WORD=VALUE…], as shop=8000 or shop=8000,inspect",
  tcp: "[REMOTE=]TARGET, as 2222=22",
  udp: "[REMOTE=]TARGET, as 5353=53",
  https: "NAME=TARGET, as shop=8443",
  reach: "LISTEN=TARGET, as 5432=db.lan:5432",
  socks: "LISTEN[,auth=USER:PASSWORD], as 1080",
  "be-exit": "NAME[,network=NET…], as home",
};

function columns() {
  return [
    { name: "public", label: "Public", width: "minmax(11em, 2.2fr)", sort: (row) => row.public ?? row.name, text: (row) => row.public ?? row.name },
    { name: "target", label: "Leads to", width: "minmax(8em, 1.6fr)", from: 640, sort: (row) => row.target ?? "", text: (row) => row.target ?? "–" },
    { name: "kind", label: "Kind", width: "5em", from: 900, sort: (row) => row.kind, text: (row) => row.kind },
    ...(live.process.role === "serve" ? [{ name: "client", label: "Client", width: "7em", from: 760, mono: true, sort: (row) => row.client ?? "", text: (row) => row.client ?? "–" }] : []),
    { name: "state", label: "State", width: "6.5em", sort: entryState, part: state(entryState, (row) => (row.paused ? "wait" : tone(row.state))) },
    ...(live.process.role === "up" ? [{ name: "connections", label: "Open", width: "5em", from: 640, end: true, sort: (row) => row.connections ?? 0, text: (row) => count(row.connections ?? 0) }] : []),
    { name: "rate", label: "Now", width: "7em", from: 760, end: true, sort: (row) => row.rate ?? 0, text: (row) => rate(row.rate) },
    { name: "bytes", label: "In all", width: "6.5em", from: 560, end: true, sort: (row) => sum(row.passed), text: (row) => (row.passed ? size(sum(row.passed)) : "–") },
    ...(can("limit") ? [{ name: "limit", label: "Limit", width: "6.5em", from: 1000, end: true, sort: (row) => row.limit_per_s ?? Infinity, text: (row) => rate(row.limit_per_s) }] : []),
  ];
}

function make() {
  const table = new Table({
    label: "Entries", columns: columns(), key: (row) => row.key, open, steady: true,
    sort: { name: "public", down: false }, empty: "There is no entry.",
    brief: (row) => [row.target && `→ ${row.target}`, `${count(row.connections ?? 0)} open`, row.passed && size(sum(row.passed))].filter(Boolean).join(" · "),
  });
  const search = h("input", { type: "search", class: "search", placeholder: "Search entries", "aria-label": "Search entries", on: { input: () => draw() } });
  const draw = () => {
    const wanted = search.value.trim().toLowerCase();
    const rows = [...live.entries.values()];
    table.setRows(wanted ? rows.filter((row) => [row.name, row.public, row.target, row.kind, row.client].some((one) => one?.toLowerCase().includes(wanted))) : rows);
  };
  return {
    element: table.element,
    tools: [search, can("add") && button("Add an entry", add, { kind: "main" })].filter(Boolean),
    update: (changed) => (changed.has("entries") || changed.has("begun")) && draw(),
    end: () => table.end(),
  };
}

function open(row) {
  const { body, actions, dialog } = sheet(row.public ?? row.name, `${row.kind} · ${row.name}`);
  const published = row.kind !== "reach" && row.kind !== "socks";
  fill(
    body,
    facts([
      ["Public", row.public ?? "not public"],
      ["Leads to", row.target],
      ["State", entryState(row)],
      ["Why", row.reason],
      ["Client", row.client],
      ["Open connections", row.connections === null ? null : count(row.connections)],
      ["Received from visitors", row.passed && size(row.passed.received_bytes)],
      ["Sent to visitors", row.passed && size(row.passed.sent_bytes)],
      ["Limit", row.limit_per_s ? rate(row.limit_per_s) : can("limit") ? "none" : null],
    ]),
  );
  const then = (act) => () => (dialog.close(), act(row));
  fill(
    actions,
    row.public && button("Copy the address", async () => toast((await copy(row.public)) ? "Copied." : "The browser does not allow it.")),
    /^https?:/.test(row.public ?? "") && h("a", { class: "button", href: row.public, target: "_blank", rel: "noreferrer noopener" }, "Open"),
    can("lead") && row.target && button("Change the target", then(lead)),
    can("limit") && published && row.kind !== "udp" && button("Limit", then(limit)),
    can("pause") && published && (row.paused ? button("Resume", then(resume)) : button("Pause", then(pause))),
    can("remove") && button("Remove", then(remove), { kind: "danger" }),
  );
}

function add() {
  ask({
    title: "Add an entry",
    text: "It is there at once, and until this client ends or reads its file again; saved, for good.",
    fields: [
      { name: "flag", label: "Kind", kind: "choice", options: KINDS, value: "http" },
      ...KINDS.map(([kind]) => ({ name: kind, label: "Entry", hint: FORMS[kind], needed: true, shown: ({ flag }) => flag === kind })),
      { name: "save", label: "Save it in the client’s file too", kind: "yes" },
    ],
    verb: "Add",
    run: async (values) => changes(await command("add", { flag: values.flag, text: values[values.flag].trim(), save: values.save })),
  });
}

function changes(done) {
  if (done.faults?.length) throw { what: "The file has faults", cause: done.faults.join("; ") };
  return (done.changes ?? []).join(", ") || "Nothing has changed.";
}

function lead(row) {
  ask({
    title: "Change the target", text: `${row.public ?? row.name} keeps its address and its words. Who is in stays with the old target.`,
    fields: [{ name: "target", label: "Leads to", value: row.target, needed: true }],
    verb: "Change", run: async ({ target }) => changes(await command("lead", { entry: row.name, target: target.trim() })),
  });
}

function limit(row) {
  ask({
    title: "Limit", text: "Bytes per second each way, for all its visitors together; those that are in too.",
    fields: [{ name: "rate", label: "Rate", value: row.limit_per_s ? `${row.limit_per_s}B/s` : "5MB/s", hint: "As 5MB/s; none lifts it.", needed: true }],
    verb: "Limit",
    run: async (values) => {
      const done = await command("limit", { entry: row.name, rate: values.rate.trim() });
      return done.limit_per_s ? `${done.entry}: at most ${rate(done.limit_per_s)}` : `${done.entry}: no limit`;
    },
  });
}

function pause(row) {
  ask({
    title: "Pause", text: `New visitors of ${row.public ?? row.name} are refused until it is resumed. It keeps its address, and who is in stays.`,
    verb: "Pause", run: async () => (await command("pause", { entry: row.name }), `${row.name} is paused.`),
  });
}

function resume(row) {
  ask({
    title: "Resume", text: `Visitors of ${row.public ?? row.name} are served again.`,
    verb: "Resume", run: async () => (await command("resume", { entry: row.name }), `${row.name} is open.`),
  });
}

function remove(row) {
  ask({
    title: "Remove", text: `${row.public ?? row.name} is given up: somebody else may get it.`, danger: true,
    fields: [
      { name: "now", label: "Cut who is in, too", kind: "yes" },
      { name: "save", label: "Take it out of the client’s file too", kind: "yes" },
    ],
    verb: "Remove", run: async (values) => changes(await command("remove", { entry: row.name, ...values })),
  });
}

export default { name: "entries", icon: "entries", title: () => "Entries", shown: () => true, count: () => count(live.entries.size), make };
