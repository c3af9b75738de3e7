// What asks before something is done, and tells what came of it. Escape closes each of
// them, and the focus returns to where it was: <dialog> does both.

import { button, fill, h, icon, lines } from "./dom.js";

let count = 0;

function open(kind, title, ...children) {
  const id = `dialog-${(count += 1)}`;
  const close = button("", () => dialog.close(), { kind: "quiet", drawing: "close", name: "Close" });
  const dialog = h(
    "dialog",
    { class: kind, "aria-labelledby": id },
    h("div", { class: "top" }, h("h2", { id }, title), close), // a <header> would be a second banner
    ...children,
  );
  dialog.addEventListener("close", () => dialog.remove());
  // A press beside it closes it, as a press on Escape does.
  dialog.addEventListener("mousedown", (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** Ask for what a command needs, run it, and tell the outcome.
 *
 * fields: [{name, label, kind, value, hint, options, needed, shown(values)}]
 * run(values) returns the sentence that says what was done, or throws Failed; then the
 * dialog stays and says why. */
export function ask({ title, text = "", fields = [], verb, danger = false, run, wide = false }) {
  const made = fields.map(field);
  const outcome = h("div", { class: "outcome", role: "alert" });
  const submit = h("button", { type: "submit", class: danger ? "button danger" : "button main" }, verb);
  const form = h(
    "form",
    { novalidate: true },
    text && h("p", { class: "lead" }, text),
    ...made.map((one) => one.element),
    outcome,
    h("footer", {}, button("Cancel", () => dialog.close(), { kind: "plain" }), submit),
  );
  const values = () => Object.fromEntries(made.map((one) => [one.name, one.value()]));
  const arrange = () => made.forEach((one) => (one.element.hidden = one.shown ? !one.shown(values()) : false));
  form.addEventListener("input", arrange);
  const dialog = open(wide ? "ask wide" : "ask", title, form);
  arrange();
  const missing = () => made.find((one) => !one.element.hidden && one.needed && !String(one.value()).trim());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (submit.disabled) return;
    const lacking = missing();
    if (lacking) {
      fill(outcome, failure({ what: `${lacking.label} is needed` }));
      return lacking.focus();
    }
    submit.disabled = true;
    outcome.replaceChildren();
    try {
      const done = await run(values());
      dialog.close();
      if (done) toast(done);
    } catch (error) {
      submit.textContent = "Try again";
      fill(outcome, failure(error));
    } finally {
      submit.disabled = false;
    }
  });
  (made.find((one) => !one.element.hidden) ?? { focus: () => submit.focus() }).focus();
  return dialog;
}

function field({ name, label, kind = "text", value = "", hint = "", options = [], needed = false, shown = null, rows = 4 }) {
  const id = `field-${(count += 1)}`;
  const about = hint && h("p", { class: "hint", id: `${id}-hint` }, hint);
  const props = { id, name, "aria-describedby": hint ? `${id}-hint` : null, autocomplete: "off", spellcheck: "false" };
  let input;
  if (kind === "choice") {
    input = h("select", props, ...options.map(([key, said]) => h("option", { value: key }, said)));
    input.value = value;
  } else if (kind === "lines") {
    input = h("textarea", { ...props, rows });
    input.value = value;
  } else if (kind === "yes") input = h("input", { ...props, type: "checkbox", checked: value || null });
  else input = h("input", { ...props, type: kind, value });
  const said = h("label", { for: id }, label);
  return {
    name, label, shown, needed,
    element: h("div", { class: kind === "yes" ? "field yes" : "field" }, ...(kind === "yes" ? [input, said] : [said, input]), about),
    value: () => (kind === "yes" ? input.checked : input.value),
    focus: () => input.focus(),
  };
}

/** What failed, why, and what can be done. */
export function failure({ what, message, cause, fix }) {
  return h(
    "div",
    { class: "failure" },
    icon("warn"),
    h(
      "div",
      {},
      h("strong", {}, what ?? message ?? "It failed"),
      cause && h("p", {}, cause),
      fix && h("p", { class: "fix" }, h("b", {}, "What helps: "), fix),
    ),
  );
}

/** A sheet at the side with all about one thing. Returns {body, actions, dialog}. */
export function sheet(title, kicker = "") {
  const body = h("div", { class: "sheet-body", tabindex: "0", role: "group", "aria-label": `About ${title}` });
  const actions = h("footer", { class: "actions" });
  const dialog = open("sheet", title, kicker && h("p", { class: "kicker" }, kicker), body, actions);
  return { body, actions, dialog };
}

/** Names and values, one pair a row; a value is text or a node, null is left out. */
export function facts(pairs) {
  return h(
    "dl",
    { class: "facts" },
    ...pairs
      .filter(([, value]) => value !== null && value !== undefined && value !== "")
      .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );
}

/** Text to take away, with a button that copies it. */
export function showText(title, text, copy, note = "") {
  const told = h("span", { class: "hint", role: "status" });
  const press = button("Copy", async () => {
    told.textContent = (await copy(text)) ? "Copied." : "The browser does not allow it: select it and copy.";
  }, { kind: "main", drawing: "copy" });
  const pre = h("pre", { class: "code", tabindex: "0", "aria-label": title });
  pre.textContent = lines(text);
  open("ask wide", title, note && h("p", { class: "lead" }, note), pre, h("footer", {}, told, press));
  press.focus();
}

const TOAST_MS = 5_000;

/** Tell what was done; read aloud, and gone by itself. */
export function toast(text, bad = false) {
  const told = h("div", { class: bad ? "toast bad" : "toast" }, icon(bad ? "warn" : "good"), h("span", {}, text));
  const place = document.getElementById("toasts");
  place.append(told);
  while (place.childElementCount > 3) place.firstChild.remove();
  setTimeout(() => told.remove(), TOAST_MS);
}
