// What is so now: numbers, ten minutes of throughput, and what went wrong last.

import { fill, h, icon, say } from "./dom.js";
import { live } from "./live.js";
import { ago, count, day, entryState, fields, many, parts, rest, size } from "./words.js";

const MOST_FAULTS = 8;

function card(label, note = "") {
  const number = h("b", {});
  const unit = h("small", {});
  const about = h("p", {}, note);
  return {
    element: h("div", { class: "card" }, h("h2", {}, label), h("div", { class: "figure" }, number, unit), about),
    set(value, behind, said) {
      say(number, value);
      say(unit, behind);
      say(about, said);
    },
  };
}

function make() {
  const isUp = live.process.role === "up";
  const cards = { received: card("Received"), sent: card("Sent"), connections: card("Connections"), entries: card("Entries"), links: card(isUp ? "Link" : "Clients") };
  const place = h("div", { class: "charts" });
  let charts = [];
  let ended = false;
  // Behind the first paint: to read the library that draws them takes a while.
  import("./charts.js").then(({ connectionChart, rateChart }) => {
    if (ended) return;
    charts = [rateChart(), connectionChart()];
    fill(place, ...charts.map((one) => one.element));
  });
  const faults = h("section", { class: "panel", "aria-labelledby": "faults" });
  const certificates = h("section", { class: "panel", "aria-labelledby": "certificates", hidden: true });
  return {
    element: h("div", { class: "overview" }, h("div", { class: "cards" }, ...Object.values(cards).map((one) => one.element)), place, faults, certificates),
    update(changed) {
      const { passed, connections, waiting, kept_bytes } = live.process;
      cards.received.set(...parts(passed.received_per_s, "/s"), `${size(passed.received_bytes)} in all`);
      cards.sent.set(...parts(passed.sent_per_s, "/s"), `${size(passed.sent_bytes)} in all`);
      cards.connections.set(count(connections), "", waiting ? `${count(waiting)} wait for a link, ${size(kept_bytes)} kept` : "open now");
      drawEntries(cards.entries);
      drawLinks(cards.links, isUp);
      for (const chart of charts) chart.draw();
      if (changed.has("faults")) drawFaults(faults);
      if (changed.has("certificates")) drawCertificates(certificates);
    },
    end() {
      ended = true;
      for (const chart of charts) chart.end();
    },
  };
}

function drawEntries(card) {
  const states = new Map();
  for (const one of live.entries.values()) states.set(entryState(one), (states.get(entryState(one)) ?? 0) + 1);
  const others = [...states].filter(([state]) => state !== "open").map(([state, number]) => `${number} ${state}`);
  card.set(count(live.entries.size), "", others.join(", ") || (live.entries.size ? "all open" : "none yet"));
}

function drawLinks(card, isUp) {
  const links = [...live.links.values()];
  if (!isUp) {
    const waiting = links.filter((one) => one.state !== "linked").length;
    return card.set(count(links.length), "", waiting ? `${waiting} without a link` : "linked");
  }
  const [link] = links;
  if (!link) return card.set("–", "", "");
  const about = link.state === "linked" ? `${link.peer}${link.encrypted ? ", TLS" : ", not encrypted"}, resumed ${many(link.resumes, "time")}` : link.reason || link.state;
  card.set(link.rtt_ms === null ? "–" : link.rtt_ms.toFixed(link.rtt_ms < 10 ? 1 : 0), link.rtt_ms === null ? "" : "ms", about);
}

function drawFaults(panel) {
  const shown = live.faults.slice(-MOST_FAULTS).reverse();
  fill(
    panel,
    h("h2", { id: "faults" }, "Last faults"),
    shown.length
      ? h("ul", { class: "faults" }, ...shown.map(fault))
      : h("p", { class: "empty" }, "Nothing has gone wrong."),
  );
}

function fault(one) {
  const told = fields(rest(one.text)).filter(([name]) => name !== "fix");
  return h(
    "li",
    { "data-level": one.level },
    icon("warn"),
    h(
      "div",
      {},
      h("p", {}, h("strong", {}, one.event), " ", h("time", { title: day(one.at) }, ago(one.at, live.at))),
      told.length > 0 && h("p", { class: "told" }, told.map(([name, value]) => `${name} ${value}`).join(" · ")),
      one.fix && h("p", { class: "fix" }, h("b", {}, "What helps: "), one.fix),
    ),
  );
}

function drawCertificates(panel) {
  panel.hidden = live.certificates.length === 0;
  fill(
    panel,
    h("h2", { id: "certificates" }, "Certificates"),
    h("dl", { class: "facts" }, ...live.certificates.map((one) => h("div", {}, h("dt", {}, one.name), h("dd", {}, one.until ? `until ${day(one.until)}` : "none yet", one.reason && `: ${one.reason}`)))),
  );
}

export default {
  name: "overview",
  icon: "overview",
  title: () => "Overview",
  shown: () => true,
  make,
};
