// The frame around the views: the token, the way between views, and a lost process.

import { decoded, keepToken, onDenied, readToken } from "./api.js";
import { button, fill, h, icon, mark, say } from "./dom.js";
import { follow, live, subscribe, tryNow } from "./live.js";
import { many, span, tone } from "./words.js";
import connections from "./view_connections.js";
import entries from "./view_entries.js";
import inspector from "./view_inspector.js";
import links from "./view_links.js";
import log from "./view_log.js";
import overview from "./view_overview.js";
import users from "./view_users.js";

const VIEWS = [overview, entries, connections, links, users, inspector, log];
const THEMES = { "": "Theme: as the system", light: "Theme: light", dark: "Theme: dark" };

const main = document.getElementById("main");
const rail = document.getElementById("rail");
let view = null; // what is shown: {name, made}

// The token --------------------------------------------------------------------------

function askToken(why = "") {
  leaveView();
  document.body.classList.add("locked");
  const input = h("input", { id: "token", type: "password", autocomplete: "off", spellcheck: "false" });
  const form = h(
    "form",
    { class: "door", on: { submit: (event) => (event.preventDefault(), enter(input.value.trim())) } },
    h("div", { class: "brand" }, icon("brand"), "tunnel"),
    h("h1", {}, "Who are you?"),
    h("p", {}, "This page is for who has its token. ", h("code", {}, "tunnel dashboard"), " prints the URL with it, on the machine of this process."),
    why && h("p", { class: "wrong", role: "alert" }, why),
    h("label", { for: "token" }, "Token"),
    input,
    h("button", { type: "submit", class: "button main" }, "Open"),
  );
  fill(main, form);
  input.focus();
}

function enter(text) {
  const found = /#token=([^&\s]+)/.exec(text);
  const token = found ? decoded(found[1]) : text;
  if (token) begin(token);
}

function begin(token = null) {
  if (token !== null) keepToken(token);
  document.body.classList.remove("locked");
  fill(main);
  route();
  follow();
}

onDenied(() => askToken("That token is not right, or the process has begun anew and made another."));

// The way between views --------------------------------------------------------------

function shownViews() {
  return VIEWS.filter((one) => one.shown());
}

function wantedView() {
  const name = location.hash.slice(1).split("/")[0];
  return shownViews().find((one) => one.name === name) ?? overview;
}

function leaveView() {
  view?.made.end?.();
  view = null;
}

function route() {
  if (document.body.classList.contains("locked")) return;
  if (!live.process) return fill(main, h("p", { class: "waiting", role: "status" }, "Asking the process …"));
  const wanted = wantedView();
  if (view?.name !== wanted.name) {
    const moved = view !== null;
    leaveView();
    view = { name: wanted.name, made: wanted.make() };
    fill(main, h("header", { class: "title" }, h("h1", {}, wanted.title()), ...(view.made.tools ?? [])), view.made.element);
    document.title = `${wanted.title()} · ${live.process.name} · tunnel`;
    if (moved) main.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
  view.made.update(new Set(["begun", "links", "entries", "users", "process", "certificates", "faults", "shown"]));
  drawRail();
}

addEventListener("hashchange", () => (readToken(), route()));
document.getElementById("skip").addEventListener("click", (event) => (event.preventDefault(), main.focus()));

// The rail ---------------------------------------------------------------------------

const nav = h("nav", { "aria-label": "Views" });
const who = h("div", { class: "who" }, h("span", { class: "state" }, h("i", { "aria-hidden": "true" }), h("span")), h("small", {}));
const theme = button("", turnTheme, { kind: "quiet", drawing: "theme", name: "Theme" });
const banner = h("div", { class: "banner", hidden: true }, icon("warn"), h("span", { role: "alert" }), h("span", { class: "soft" }), button("Try now", tryNow, { kind: "plain" }));
fill(rail, h("div", { class: "brand" }, icon("brand"), "tunnel"), nav, who, theme);
document.body.prepend(banner);

function drawRail() {
  const names = shownViews().map((one) => one.name).join(" ");
  if (nav.dataset.names !== names) {
    nav.dataset.names = names;
    fill(
      nav,
      ...shownViews().map((one) => h("a", { href: `#${one.name}`, "data-view": one.name }, icon(one.icon), h("span", {}, one.title()), h("b", { class: "count" }))),
    );
  }
  for (const link of nav.children) {
    const here = link.dataset.view === view?.name;
    // Where the views stand in one line, the one that is shown is in sight.
    if (here && !link.hasAttribute("aria-current")) nav.scrollTo({ left: link.offsetLeft - nav.offsetLeft - 48 });
    mark(link, "aria-current", here ? "page" : null);
    say(link.lastChild, VIEWS.find((one) => one.name === link.dataset.view).count?.() ?? "");
  }
  if (!live.process) return;
  const { name, state, address, began_at } = live.process;
  mark(who.firstChild, "data-tone", live.state === "live" ? tone(state) : "bad");
  say(who.firstChild.lastChild, live.state === "live" ? state : "lost");
  say(who.lastChild, `${name} · ${address} · for ${span(live.at - began_at)}`);
}

function turnTheme() {
  const order = Object.keys(THEMES);
  const now = document.documentElement.dataset.theme ?? "";
  const next = order[(order.indexOf(now) + 1) % order.length];
  if (next) document.documentElement.dataset.theme = next;
  else delete document.documentElement.dataset.theme;
  try {
    if (next) localStorage.setItem("tunnel.theme", next);
    else localStorage.removeItem("tunnel.theme");
  } catch {
    // Then it lasts as long as the page.
  }
  nameTheme();
  document.dispatchEvent(new Event("themechange"));
}

function nameTheme() {
  const said = THEMES[document.documentElement.dataset.theme ?? ""];
  mark(theme, "aria-label", said);
  mark(theme, "title", said);
}

// A lost process ---------------------------------------------------------------------

function drawBanner() {
  banner.hidden = live.state !== "lost" || document.body.classList.contains("locked");
  if (banner.hidden) return;
  const left = Math.max(Math.ceil((live.retryAt - Date.now()) / 1000), 0);
  const what = live.process ? `${live.process.name} does not answer` : "The process does not answer";
  say(banner.children[1], `${what}; what you see is old.`); // read aloud once; the seconds are not
  say(banner.children[2], `Trying again${left ? ` in ${many(left, "second")}` : " …"}`);
}

setInterval(drawBanner, 500);

subscribe((changed) => {
  if (document.body.classList.contains("locked")) return;
  drawBanner();
  if (!view || changed.has("begun")) route();
  else {
    view.made.update(changed);
    drawRail();
  }
});

nameTheme();
if (readToken()) begin();
else askToken();
