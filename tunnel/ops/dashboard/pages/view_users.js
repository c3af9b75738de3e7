// The users of a server: what they may, what they have, and what they use.

import { ask as command } from "./api.js";
import { ask, facts, sheet } from "./dialogs.js";
import { button, fill } from "./dom.js";
import { can, live } from "./live.js";
import { Table } from "./table.js";
import { count, size } from "./words.js";

const bytes = (row) => (row.sent_bytes ?? 0) + (row.received_bytes ?? 0);
const COLUMNS = [
  { name: "name", label: "User", width: "minmax(8em, 1fr)", sort: (row) => row.name, text: (row) => row.name },
  { name: "links", label: "Links", width: "5em", end: true, sort: (row) => row.links ?? 0, text: (row) => count(row.links ?? 0) },
  { name: "connections", label: "Open", width: "5em", from: 480, end: true, sort: (row) => row.connections ?? 0, text: (row) => count(row.connections ?? 0) },
  { name: "bytes", label: "Since start", width: "7em", from: 640, end: true, sort: bytes, text: (row) => size(bytes(row)) },
  { name: "month", label: "This month", width: "9em", from: 760, end: true, sort: (row) => row.month_bytes ?? 0, text: month },
  { name: "may", label: "May", width: "minmax(10em, 1.5fr)", from: 1020, sort: (row) => (row.may ?? []).join(" "), text: (row) => (row.may ?? ["everything"]).join(" ") || "nothing" },
  { name: "limits", label: "Limits", width: "minmax(8em, 1fr)", from: 820, sort: (row) => (row.limits ?? []).join(" "), text: (row) => (row.limits ?? []).join(" ") || "–" },
];

function month(row) {
  const used = size(row.month_bytes ?? 0);
  return row.month_limit ? `${used} of ${size(row.month_limit)}` : used;
}

function make() {
  const table = new Table({
    label: "Users", columns: COLUMNS, key: (row) => row.name, open, steady: true, sort: { name: "name", down: false }, empty: "There is no user.",
    brief: (row) => `${count(row.links ?? 0)} linked · ${size(bytes(row))} · ${(row.limits ?? []).join(" ") || "no limits"}`,
  });
  return {
    element: table.element,
    update: (changed) => (changed.has("users") || changed.has("begun")) && table.setRows([...live.users.values()]),
    end: () => table.end(),
  };
}

function open(row) {
  const { body, actions, dialog } = sheet(row.name, "user");
  fill(
    body,
    facts([
      ["May", (row.may ?? ["everything: the owner"]).join("\u2003") || "nothing"], ["Limits", (row.limits ?? []).join("\u2003") || "none of its own"],
      ["Until", row.expires], ["Token works once", row.once], ["Stands in", row.file],
      ["Links", count(row.links ?? 0)], ["Sessions", count(row.sessions ?? row.links ?? 0)], ["Open connections", count(row.connections ?? 0)], ["Opened since start", count(row.opened ?? 0)],
      ["Received from its machines", size(row.received_bytes ?? 0)], ["Sent to them", size(row.sent_bytes ?? 0)], ["This month", month(row)],
    ]),
  );
  const owner = row.may === undefined; // of no file, and not to be thrown out
  fill(
    actions,
    can("users.limit") && !owner && button("Limit", () => (dialog.close(), limit(row))),
    can("users.revoke") && !owner && button("Revoke", () => (dialog.close(), revoke(row)), { kind: "danger" }),
  );
}

function limit(row) {
  ask({
    title: `Limits of ${row.name}`, text: "They hold at once. What is not said stays as it is.",
    fields: [{ name: "limits", label: "Limits", value: (row.limits ?? []).join(" "), hint: "As rate=5MB/s connections=100 month=1TB; none lifts one.", needed: true }],
    verb: "Limit", run: async (values) => (await command("users.limit", { name: row.name, limits: values.limits.trim().split(/\s+/) }), `${row.name} is limited.`),
  });
}

function revoke(row) {
  ask({
    title: `Revoke ${row.name}`, danger: true, verb: "Revoke",
    text: `${row.name} is thrown out at once, with all its connections and ports, and its token is of no use any more.`,
    run: async () => (await command("users.revoke", { name: row.name }), `${row.name} is revoked.`),
  });
}

export default { name: "users", icon: "users", title: () => "Users", shown: () => live.process?.role === "serve" && live.users.size > 0, count: () => count(live.users.size), make };
