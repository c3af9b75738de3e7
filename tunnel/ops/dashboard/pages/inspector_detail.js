// One request in detail: its two heads, its messages, and how long each phase took.

import { ask as command } from "./api.js";
import { facts, failure } from "./dialogs.js";
import { button, fill, h, lines, say } from "./dom.js";
import { body, dump, pretty } from "./inspector_body.js";
import { clock, count, ms, size } from "./words.js";

const TABS = [["request", "Request"], ["answer", "Answer"], ["messages", "Messages"], ["timing", "Timing"]];
const MOST_MESSAGES = 300; // in the page at once: the last ones
const MOST_MESSAGE = 4_000; // characters of one that are shown

let chosen = "answer"; // the tab stays when another request is looked at

/** Show a request in `pane`; return what shows it again after it has changed, without
losing the focus, what is scrolled to, or what is selected. */
export function detail(pane, whole, acts) {
  const tabs = TABS.filter(([name]) => name !== "messages" || whole.websocket);
  if (!tabs.some(([name]) => name === chosen)) chosen = "answer";
  if (whole.websocket && chosen === "answer" && whole.messages.length) chosen = "messages";
  const place = h("div", { class: "tab-body", role: "tabpanel", tabindex: "0", id: "tab-body" });
  const bar = h("div", { role: "tablist", class: "tabs", "aria-label": "Parts of the request", on: { keydown: arrows } });
  const draw = () => {
    fill(bar, ...tabs.map(([name, label]) => h("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-selected": String(name === chosen), "aria-controls": "tab-body", tabindex: name === chosen ? "0" : "-1", on: { click: () => choose(name) } }, label)));
    place.setAttribute("aria-labelledby", `tab-${chosen}`);
    fill(place, ...parts(whole));
  };
  function choose(name) {
    chosen = name;
    draw();
    bar.querySelector("[aria-selected=true]").focus();
  }
  function arrows(event) {
    const at = tabs.findIndex(([name]) => name === chosen);
    const to = { ArrowRight: tabs[at + 1], ArrowLeft: tabs[at - 1], Home: tabs[0], End: tabs.at(-1) }[event.key];
    if (to) (event.preventDefault(), choose(to[0]));
  }
  let revealed = false;
  async function reveal() {
    try {
      whole = await command("inspect.show", { number: whole.number, reveal: true });
      revealed = true;
      draw();
      shown.hidden = true;
    } catch (error) {
      fill(place, failure(error));
    }
  }
  const shown = button("Show what is hidden", reveal, { kind: "plain" });
  shown.hidden = !whole.hidden.length;
  const about = h("span", {});
  const tellAbout = () => say(about, `#${whole.number} · ${whole.status ?? (whole.failure ? "failed" : "no answer yet")} · ${clock(whole.at)} · ${whole.entry} · ${whole.visitor}`);
  tellAbout();
  fill(
    pane,
    h(
      "header",
      {},
      h("h2", { tabindex: "-1" }, `${whole.method} ${whole.path}`),
      button("", acts.close, { kind: "quiet", drawing: "close", name: "Close" }),
    ),
    h(
      "p",
      { class: "note" },
      about,
      whole.replay_of !== null && [" · again ", h("button", { type: "button", class: "link", on: { click: () => acts.show(whole.replay_of) } }, `#${whole.replay_of}`)],
    ),
    whole.failure && h("p", { class: "wrong" }, whole.failure),
    h(
      "div",
      { class: "actions" },
      !whole.websocket && button("Replay", () => acts.replay(whole.number), { kind: "main" }),
      !whole.websocket && button("Edit and replay", () => acts.edit(whole), { kind: "plain" }),
      button("Copy as curl", () => acts.curl(whole), { kind: "plain" }),
      button("HAR", () => acts.har(whole.number), { kind: "plain", name: "Export this request as HAR" }),
      shown,
    ),
    bar,
    place,
  );
  pane.onkeydown = (event) => event.key === "Escape" && acts.close();
  draw();
  return async (next) => {
    whole = revealed ? await command("inspect.show", { number: next.number, reveal: true }) : next;
    tellAbout();
    const selected = getSelection();
    if (!selected.isCollapsed && place.contains(selected.anchorNode)) return;
    if (place.contains(document.activeElement) && document.activeElement !== place) return;
    const { scrollTop } = place;
    fill(place, ...parts(whole));
    place.scrollTop = scrollTop;
  };
}

function parts(whole) {
  if (chosen === "timing") return [timing(whole)];
  if (chosen === "messages") return messages(whole);
  const part = whole[chosen];
  if (!part) return [h("p", { class: "empty" }, whole.failure || "There is no answer yet.")];
  return [
    h("pre", { class: "code first", tabindex: "0", "aria-label": "First line" }, part.line),
    facts(part.fields.map(([name, value]) => [name, value === "" ? "\u2205" : value])),
    ...body(part.body, chosen === "request" ? whole.form : null),
    ...(chosen === "answer" && whole.trailers.length ? [h("h3", {}, "Trailers"), facts(whole.trailers)] : []),
  ];
}

function messages(whole) {
  const shown = whole.messages.slice(-MOST_MESSAGES);
  const gone = whole.messages_dropped + whole.messages.length - shown.length;
  return [
    gone > 0 && h("p", { class: "note" }, `${count(gone)} older messages are not shown.`),
    h(
      "ol",
      { class: "messages" },
      ...shown.map((one) =>
        h(
          "li",
          { "data-from": one.from },
          h("span", { class: "from" }, one.from === "target" ? "← target" : "→ visitor"),
          h("time", {}, ms(one.at_ms)),
          said(one),
        ),
      ),
    ),
    !shown.length && h("p", { class: "empty" }, "No message yet."),
  ];
}

function said(one) {
  const pre = h("pre", {});
  if (one.text === null) pre.textContent = one.base64 ? dump(one.base64) : `(${one.kind}, ${size(one.size)})`;
  else {
    const short = one.text.length <= MOST_MESSAGE;
    pre.textContent = lines(short && /^\s*[[{]/.test(one.text) ? [...pretty(one.text)].join("") : one.text.slice(0, MOST_MESSAGE));
    if (one.cut || !short) pre.textContent += ` … ${size(one.size)} in all`;
  }
  return pre;
}

function timing({ connected_ms, first_byte_ms, ended_ms, state }) {
  const end = Math.max(ended_ms ?? 0, first_byte_ms ?? 0, connected_ms ?? 0, 0.1);
  const phases = [
    ["Target reached", 0, connected_ms],
    ["Target thinks", connected_ms ?? 0, first_byte_ms],
    ["Answer comes", first_byte_ms, ended_ms],
  ];
  const bars = h("div", { class: "timing" });
  for (const [name, from, to] of phases) {
    if (from === null || to === null || to === undefined) continue;
    const bar = h("i", { "aria-hidden": "true" });
    bar.style.marginLeft = `${(100 * from) / end}%`;
    bar.style.width = `${Math.max((100 * (to - from)) / end, 0.5)}%`;
    bars.append(h("div", {}, h("span", {}, name), h("span", { class: "track" }, bar), h("b", {}, ms(to - from))));
  }
  if (connected_ms === null) bars.append(h("p", { class: "note" }, "On a connection that was kept, or answered here."));
  bars.append(h("p", { class: "note" }, state === "done" || state === "failed" ? `${ms(ended_ms)} in all` : `not over: ${state}`));
  return bars;
}
