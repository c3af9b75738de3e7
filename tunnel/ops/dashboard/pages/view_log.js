// The last lines of the log, and those to come.

import { ask as command } from "./api.js";
import { failure } from "./dialogs.js";
import { fill, h } from "./dom.js";
import { born, can, live } from "./live.js";
import { clock, rest } from "./words.js";

const EVERY_MS = 1_000;
const MOST = 1_000; // lines in the page

function make() {
  let after = 0;
  let of = born();
  let ended = false;
  let timer = 0;
  const list = h("ol", { class: "log", tabindex: "0", "aria-label": "Log" });
  const told = h("div", { role: "status" });
  const search = h("input", { type: "search", class: "search", placeholder: "Filter the log", "aria-label": "Filter the log", on: { input: () => [...list.children].forEach(hide) } });
  const hide = (node) => (node.hidden = !node.textContent.toLowerCase().includes(search.value.trim().toLowerCase()));
  async function look() {
    if (!document.hidden && live.state === "live") {
      if (of !== born()) {
        of = born();
        after = 0;
        list.replaceChildren();
      }
      try {
        const { lines } = await command("logs", { after });
        const atEnd = list.scrollTop + list.clientHeight >= list.scrollHeight - 40;
        for (const line of lines) {
          const node = h("li", { "data-level": line.level }, h("time", {}, clock(line.at)), h("b", {}, line.level), h("span", {}, text(line)));
          hide(node);
          list.append(node);
          after = line.number;
        }
        while (list.childElementCount > MOST) list.firstChild.remove();
        if (atEnd && lines.length) list.scrollTop = list.scrollHeight;
        fill(told);
      } catch (error) {
        fill(told, failure(error));
      }
    }
    if (!ended) timer = setTimeout(look, EVERY_MS);
  }
  look();
  return {
    element: h("div", { class: "stack" }, told, list),
    tools: [search],
    update: () => {},
    end() {
      ended = true;
      clearTimeout(timer);
    },
  };
}

function text(line) {
  const event = /\bevent=(\S+)/.exec(line.text);
  return event ? `${event[1]} ${rest(line.text)}` : line.text;
}

export default { name: "log", icon: "log", title: () => "Log", shown: () => can("logs"), make };
