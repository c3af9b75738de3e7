// Elements, and text from outside. All text enters the page through textContent: no
// module builds markup, so nothing that a visitor sends can become a part of the page.

// Characters that move a cursor, turn the direction of writing or cannot be seen. Those
// that join letters of Indic scripts and emoji (U+200C, U+200D) are letters here.
const UNSEEN =
  /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/g;
const SVG = "http://www.w3.org/2000/svg";

function escape(sign) {
  const code = sign.charCodeAt(0);
  if (sign === "\n") return "\\n";
  if (sign === "\t") return "\\t";
  if (sign === "\r") return "\\r";
  return code < 256
    ? `\\x${code.toString(16).padStart(2, "0")}`
    : `\\u${code.toString(16).padStart(4, "0")}`;
}

/** Text of one line, with what cannot be seen escaped. */
export function line(text) {
  return String(text ?? "").replace(UNSEEN, escape);
}

/** Text of several lines: ends of lines and tabs stay what they are. */
export function lines(text) {
  return String(text ?? "")
    .replace(/\r\n/g, "\n")
    .replace(UNSEEN, (sign) => (sign === "\n" || sign === "\t" ? sign : escape(sign)));
}

/** An element. Children are nodes or text; `on` has listeners; others are attributes. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) {
        element.addEventListener(event, listener);
      }
    } else if (name === "value" || name === "checked") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  add(element, children);
  return element;
}

function add(element, children) {
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : line(child));
  }
}

/** Have an element contain these children and no others. */
export function fill(element, ...children) {
  element.replaceChildren();
  add(element, children);
  return element;
}

/** Set text only where it has changed: an unchanged node is not laid out again. */
export function say(element, text) {
  const shown = line(text);
  if (element.textContent !== shown) element.textContent = shown;
}

/** Set an attribute only where it has changed; null takes it away. */
export function mark(element, name, value) {
  if (value === null || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

const ICONS = {
  overview: "M3 12h4l3-8 4 16 3-8h4",
  entries: "M4 7h9m-9 10h9M17 3l4 4-4 4M17 13l4 4-4 4",
  connections: "M3 8h14l-4-4M21 16H7l4 4",
  links: "M10 14a4 4 0 0 0 6 .4l3-3a4 4 0 0 0-5.7-5.7l-1 1M14 10a4 4 0 0 0-6-.4l-3 3a4 4 0 0 0 5.7 5.7l1-1",
  users: "M9 11a4 4 0 1 0 0-8 4 4 0 0 0 0 8M2 21a7 7 0 0 1 14 0M16 3.5a4 4 0 0 1 0 7M18 14.5a7 7 0 0 1 4 6.5",
  inspector: "M10.5 17a6.5 6.5 0 1 0 0-13 6.5 6.5 0 0 0 0 13M15.5 15.500 21 21",
  log: "M5 5h14M5 10h14M5 15h9M5 20h6",
  theme: "M12 4a8 8 0 1 0 0 16ZM12 4a8 8 0 0 1 0 16",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  open: "M14 4h6v6M20 4l-9 9M18 14v6H4V6h6",
  close: "M6 6l12 12M18 6 6 18",
  back: "M15 5l-7 7 7 7",
  warn: "M12 4 2.500 20h19ZM12 10v5M12 17.500v.500",
  good: "M4 12.500 9.500 18 20 6.500",
  brand: "M4 20v-7a8 8 0 0 1 16 0v7M9.500 20v-6.500a2.500 2.500 0 0 1 5 0V20",
};

/** A drawing that says nothing to a screen reader: a word always stands beside it. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** A button with a word; `name` is for screen readers where only a drawing is seen. */
export function button(label, press, { kind = "", drawing = null, name = null } = {}) {
  return h(
    "button",
    { type: "button", class: `button ${kind}`, "aria-label": name, title: name, on: { click: press } },
    drawing && icon(drawing),
    label && h("span", {}, label),
  );
}

/** Put text on the clipboard; false where the browser does not allow it. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Without TLS and not on loopback there is no clipboard but by a selection.
    const field = h("textarea", { class: "offscreen", value: text, "aria-hidden": "true" });
    (document.querySelector("dialog[open]") ?? document.body).append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }
}

/** Give a text to the browser as a file to keep. */
export function download(name, kind, text) {
  const url = URL.createObjectURL(new Blob([text], { type: kind }));
  const link = h("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000); // once it has been read
}
