// One request in detail. Nothing of it becomes a part of the page: text is text, HTML is
// shown in a frame that may do nothing, images are pictures.

import { ask as command } from "./api.js";
import { facts, failure } from "./dialogs.js";
import { button, fill, h, lines } from "./dom.js";
import { clock, count, ms, size } from "./words.js";

const TABS = [["request", "Request"], ["answer", "Answer"], ["messages", "Messages"], ["timing", "Timing"]];
const PICTURE = /^image\/(png|jpeg|gif|webp|avif|bmp|x-icon|vnd\.microsoft\.icon|svg\+xml)$/;
const MOST_TEXT = 200_000; // characters laid out at once: more would hold the page up
const MOST_MESSAGES = 1_000;

let chosen = "answer"; // the tab stays when another request is looked at

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
  async function reveal() {
    try {
      whole = await command("inspect.show", { number: whole.number, reveal: true });
      draw();
      shown.hidden = true;
    } catch (error) {
      fill(place, failure(error));
    }
  }
  const shown = button("Show what is hidden", reveal, { kind: "plain" });
  shown.hidden = !whole.hidden.length;
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
      `#${whole.number} · ${whole.status ?? (whole.failure || "no answer yet")} · ${clock(whole.at)} · ${whole.entry} · ${whole.visitor}`,
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
  ];
}

function body(of, form) {
  if (!of.size) return [h("p", { class: "empty" }, "No body.")];
  const about = [of.kind || "no type", size(of.size), of.coding, of.cut && `the first ${size(of.kept)} are kept`].filter(Boolean).join(" · ");
  const title = h("h3", {}, "Body ", h("small", {}, about));
  if (form?.length) return [title, facts(form), raw(of.text)];
  if (of.text !== null && /[/+]json$/.test(of.kind)) return [title, raw(pretty(of.text))];
  if (of.text !== null && of.kind === "text/html") return [title, ...html(of.text)];
  if (of.base64 !== null && PICTURE.test(of.kind)) return [title, h("img", { class: "picture", alt: `Image, ${size(of.size)}`, src: `data:${of.kind};base64,${of.base64}` })];
  if (of.kind === "image/svg+xml" && of.text !== null) return [title, h("img", { class: "picture", alt: "Image", src: `data:image/svg+xml,${encodeURIComponent(of.text)}` }), raw(of.text)];
  if (of.text !== null) return [title, raw(of.text)];
  if (of.base64 !== null) return [title, raw(dump(of.base64))];
  return [title, h("p", { class: "empty" }, of.coding ? `It is packed with ${of.coding}, and not shown.` : "It is not shown.")];
}

function raw(text) {
  const pre = h("pre", { class: "code", tabindex: "0", "aria-label": "Body" });
  pre.textContent = lines(text.slice(0, MOST_TEXT)) + (text.length > MOST_TEXT ? `\n… ${count(text.length - MOST_TEXT)} characters more` : "");
  return pre;
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch (error) {
    return `${text}\n\n(${error.message})`;
  }
}

/** A page as text, and in a frame without scripts, forms, links outside or its origin. */
function html(text) {
  const frame = h("iframe", { sandbox: "", title: "The page, without its scripts and files", class: "page-frame", referrerpolicy: "no-referrer" });
  frame.srcdoc = text.slice(0, MOST_TEXT);
  return [h("details", {}, h("summary", {}, "As a page"), frame), raw(text)];
}

function dump(base64) {
  const data = atob(base64.slice(0, 8192));
  const rows = [];
  for (let at = 0; at < data.length; at += 16) {
    const piece = [...data.slice(at, at + 16)];
    const hex = piece.map((sign) => sign.charCodeAt(0).toString(16).padStart(2, "0")).join(" ");
    rows.push(`${at.toString(16).padStart(6, "0")}  ${hex.padEnd(47)}  ${piece.map((sign) => (/[ -~]/.test(sign) ? sign : ".")).join("")}`);
  }
  return rows.join("\n") + (base64.length > 8192 ? "\n…" : "");
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
  else pre.textContent = lines(one.kind === "text" && /^\s*[[{]/.test(one.text) ? pretty(one.text).replace(/\n\n\(.*\)$/s, "") : one.text);
  if (one.cut) pre.textContent += ` … ${size(one.size)} in all`;
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
