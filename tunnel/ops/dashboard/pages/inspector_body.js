// The body of a request or an answer. Text is text, HTML is shown in a frame that may do
// nothing, images are pictures, and the rest is bytes: nothing becomes a part of the page.

import { facts } from "./dialogs.js";
import { button, h, lines } from "./dom.js";
import { count, size } from "./words.js";

const PICTURE = /^image\/(png|jpeg|gif|webp|avif|bmp|x-icon|vnd\.microsoft\.icon|svg\+xml)$/;
const AT_ONCE = 20_000; // characters laid out at once: more in one line holds the page up
const MOST_DEPTH = 40; // levels that are indented: deeper ones stand below one another
const DUMPED = 8_192; // characters of base64: six KiB as rows of hexadecimal digits

/** Show a body; `form` has the fields if it is one. */
export function body(of, form) {
  if (!of.size) return [h("p", { class: "empty" }, "No body.")];
  const about = [of.kind || "no type", size(of.size), of.coding, of.cut && `the first ${size(of.kept)} are kept`].filter(Boolean).join(" · ");
  const title = h("h3", {}, "Body ", h("small", {}, about));
  if (form?.length) return [title, facts(form), ...text(plain(of.text))];
  if (of.text !== null && /[/+]json$/.test(of.kind)) return [title, ...text(pretty(of.text))];
  if (of.text !== null && of.kind === "text/html") return [title, asPage(of.text), ...text(plain(of.text))];
  if (of.base64 !== null && PICTURE.test(of.kind)) return [title, h("img", { class: "picture", alt: `Image, ${size(of.size)}`, src: `data:${of.kind};base64,${of.base64}` })];
  if (of.kind === "image/svg+xml" && of.text !== null) return [title, h("img", { class: "picture", alt: "Image", src: `data:image/svg+xml,${encodeURIComponent(of.text.toWellFormed?.() ?? of.text)}` }), ...text(plain(of.text))];
  if (of.text !== null) return [title, ...text(plain(of.text))];
  if (of.base64 !== null) return [title, ...text(plain(dump(of.base64)))];
  return [title, h("p", { class: "empty" }, of.coding ? `It is packed with ${of.coding}, and not shown.` : "It is not shown.")];
}

/** Text of any length: a piece at once, and the next one at a press.
 * `pieces` is an iterator of text, and asked for no more than is shown. */
function text(pieces) {
  const pre = h("pre", { class: "code", tabindex: "0", "aria-label": "Body" });
  let next = pieces.next();
  const more = button("Show more", () => {
    let shown = "";
    for (; !next.done && shown.length < AT_ONCE; next = pieces.next()) shown += next.value;
    pre.append(document.createTextNode(lines(shown)));
    more.hidden = next.done;
  }, { kind: "plain" });
  more.click();
  return [pre, more];
}

function* plain(whole) {
  for (let at = 0; at < whole.length;) {
    let to = at + AT_ONCE;
    if (/[\ud800-\udbff]/.test(whole[to - 1] ?? "")) to += 1; // two surrogates are one sign
    yield whole.slice(at, to);
    at = to;
  }
}

/** JSON indented, as it was sent: no number loses a digit, and a key may be there twice.
 * What is no JSON is given as it is. */
export function* pretty(whole) {
  try {
    JSON.parse(whole);
  } catch {
    return yield* plain(whole);
  }
  let depth = 0;
  let opened = false; // an empty list or object stays on its line
  const turn = () => `\n${"  ".repeat(Math.min(depth, MOST_DEPTH))}`;
  for (const [token] of whole.matchAll(/"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g)) {
    const closes = token === "}" || token === "]";
    if (closes) depth -= 1;
    if (closes ? !opened : opened) yield turn();
    opened = token === "{" || token === "[";
    if (opened) depth += 1;
    // A string is read and written again: \u00e9 is shown as the letter that it is.
    if (token[0] === '"') yield* plain(JSON.stringify(JSON.parse(token)));
    else yield token;
    if (token === ",") yield turn();
    else if (token === ":") yield " ";
  }
}

/** A page in a frame without scripts, forms, files or its origin; made when it is opened. */
function asPage(whole) {
  const details = h("details", {}, h("summary", {}, "As a page"));
  details.addEventListener("toggle", () => {
    const frame = h("iframe", { sandbox: "", title: "The page, without its scripts and files", class: "page-frame", referrerpolicy: "no-referrer" });
    frame.srcdoc = whole;
    details.append(frame);
  }, { once: true });
  return details;
}

export function dump(base64) {
  const data = atob(base64.slice(0, DUMPED));
  const rows = [];
  for (let at = 0; at < data.length; at += 16) {
    const piece = [...data.slice(at, at + 16)];
    const hex = piece.map((sign) => sign.charCodeAt(0).toString(16).padStart(2, "0")).join(" ");
    rows.push(`${at.toString(16).padStart(6, "0")}  ${hex.padEnd(47)}  ${piece.map((sign) => (/[ -~]/.test(sign) ? sign : ".")).join("")}`);
  }
  return rows.join("\n") + (base64.length > DUMPED ? "\n…" : "");
}
