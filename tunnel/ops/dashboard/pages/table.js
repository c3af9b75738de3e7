// A table of any number of rows, of which only those in sight are in the page.
//
// A column: {name, label, width, from, end, sort(row), text(row) | part()}
//   from   the narrowest table, in pixels, that shows it
//   end    its text stands at the right, as numbers do
//   part   makes {node, update(row)} for a cell that is more than text
// Keyboard: the table is one stop; arrows, Page Up/Down, Home and End move in it, Enter
// opens a row, the right arrow goes to the buttons of a row, Escape comes back.

import { h, icon, mark, say } from "./dom.js";

const ROW = 44;
const TALL_ROW = 62; // with a second line, where columns have no room
const NARROW = 640;
const AROUND = 8; // rows above and below what is in sight: scrolling shows no gap

export class Table {
  /** `brief(row)` is the second line of a narrow row; `steady` rows do not change places
  while a pointer or the focus is among them. */
  constructor({ label, columns, key, open = null, brief = null, steady = false, sort = null, empty = "" }) {
    Object.assign(this, { columns, key, open, brief, steady, sort });
    this.rows = [];
    this.places = new Map(); // key -> index
    this.nodes = new Map(); // key -> the row's node and its cells
    this.active = null; // key of the row that has, or would get, the focus
    this.width = 0;
    this.head = h("div", { class: "row head", role: "row" });
    this.space = h("div", { class: "space", role: "none" });
    this.body = h("div", { class: "rows", role: "rowgroup" }, this.space);
    this.empty = h("p", { class: "empty", hidden: true }, empty);
    this.grid = h(
      "div",
      { class: "table", role: "grid", "aria-label": label, "aria-rowcount": "1" },
      h("div", { role: "rowgroup", class: "heads" }, this.head),
      this.body,
    );
    this.element = h("div", { class: "table-frame" }, this.grid, this.empty);
    this.body.addEventListener("scroll", () => this.draw(), { passive: true });
    this.grid.addEventListener("keydown", (event) => this.pressed(event));
    this.body.addEventListener("pointerdown", (event) => (this.down = event.target.closest(".row")?.dataset.key));
    this.body.addEventListener("click", (event) => this.clicked(event));
    this.body.addEventListener("focusin", (event) => this.focused(event));
    this.body.addEventListener("pointerenter", () => (this.under = true));
    this.body.addEventListener("pointerleave", () => (this.under = false));
    this.watch = new ResizeObserver(() => this.measure());
    this.watch.observe(this.grid);
  }

  /** Let go of everything outside the table's own elements. */
  end() {
    this.watch.disconnect();
  }

  measure() {
    const width = this.grid.clientWidth;
    if (!width) return;
    const narrow = width < NARROW && this.brief !== null;
    const shown = this.columns.filter((one) => width >= (one.from ?? 0));
    const same = this.shown?.length === shown.length && this.narrow === narrow;
    this.height = narrow ? TALL_ROW : ROW;
    if (!same) {
      Object.assign(this, { shown, narrow });
      this.grid.style.setProperty("--columns", shown.map((one) => one.width).join(" "));
      this.grid.style.setProperty("--row", `${this.height}px`);
      mark(this.grid, "aria-colcount", shown.length);
      const focused = this.body.contains(document.activeElement);
      for (const { node } of this.nodes.values()) node.remove();
      this.nodes.clear();
      this.drawHead();
      this.draw();
      if (focused) this.nodes.get(this.active)?.node.focus({ preventScroll: true });
    } else this.draw();
  }

  drawHead() {
    this.head.replaceChildren(
      ...this.shown.map((one) => {
        const cell = h("div", { role: "columnheader", class: one.end ? "cell end" : "cell" });
        if (!one.sort) cell.append(h("span", { class: one.label ? "" : "offscreen" }, one.label || "Actions"));
        else {
          const by = this.sort?.name === one.name ? (this.sort.down ? "descending" : "ascending") : "none";
          mark(cell, "aria-sort", by);
          cell.append(h("button", { type: "button", class: "sort", tabindex: "-1", on: { click: () => this.sortBy(one) } }, one.label));
        }
        return cell;
      }),
    );
    // The head is one stop, and arrows move in it.
    this.head.querySelector("[aria-sort]:not([aria-sort=none]) button, button")?.setAttribute("tabindex", "0");
  }

  sortBy(column) {
    const again = this.sort?.name === column.name;
    this.sort = { name: column.name, down: again ? !this.sort.down : Boolean(column.end) };
    this.drawHead();
    this.head.querySelector("[aria-sort]:not([aria-sort=none]) button")?.focus();
    this.places.clear(); // asked for by a person: the new order holds at once
    this.setRows(this.rows);
  }

  /** Show these rows; their order is that of the chosen column, or as they are. */
  setRows(rows) {
    const anchor = this.rows[Math.floor(this.body.scrollTop / this.height)];
    const before = anchor === undefined ? -1 : this.places.get(this.key(anchor));
    this.rows = this.ordered(rows);
    this.places = new Map(this.rows.map((row, index) => [this.key(row), index]));
    if (this.active !== null && !this.places.has(this.active)) this.leave();
    mark(this.grid, "aria-rowcount", this.rows.length + 1);
    this.empty.hidden = this.rows.length > 0;
    // What is read stays in its place when rows come above it.
    const after = before > 0 ? this.places.get(this.key(anchor)) : undefined;
    this.draw(!this.steady && after !== undefined && this.body.scrollTop > 0 ? after - before : 0);
  }

  ordered(rows) {
    const held = this.steady && this.places.size && (this.under || this.body.contains(document.activeElement));
    const column = this.columns.find((one) => one.name === this.sort?.name);
    const value = held
      ? (row) => this.places.get(this.key(row)) ?? Infinity
      : column && ((row) => column.sort(row));
    if (!value) return rows;
    const sign = !held && this.sort.down ? -1 : 1;
    const keyed = rows.map((row) => [value(row), row]);
    keyed.sort(([a], [b]) => (a === b ? 0 : a === null ? 1 : b === null ? -1 : a < b ? -sign : sign));
    return keyed.map(([, row]) => row);
  }

  draw(moved = 0) {
    if (!this.shown) return this.measure();
    this.space.style.height = `${this.rows.length * this.height}px`;
    if (moved) this.body.scrollTop += moved * this.height;
    const first = Math.max(Math.floor(this.body.scrollTop / this.height) - AROUND, 0);
    const last = first + Math.ceil(this.body.clientHeight / this.height) + 2 * AROUND;
    const wanted = new Map();
    for (let at = first; at <= last && at < this.rows.length; at += 1) {
      wanted.set(this.key(this.rows[at]), at);
    }
    // The row with the focus stays, even out of sight: else the focus would be lost.
    const pinned = this.places.get(this.active);
    if (pinned !== undefined) wanted.set(this.active, pinned);
    const free = [];
    for (const [key, made] of this.nodes) {
      if (!wanted.has(key)) {
        this.nodes.delete(key);
        free.push(made);
      }
    }
    for (const [key, at] of wanted) {
      let made = this.nodes.get(key);
      if (!made) {
        made = free.pop() ?? this.make();
        made.node.dataset.key = key;
        this.nodes.set(key, made);
      }
      this.place(made, at, key);
    }
    for (const { node } of free) node.remove();
  }

  make() {
    const node = h("div", { class: "row", role: "row" });
    const cells = this.shown.map((column, at) => {
      const { node: inner, update } = column.part?.() ?? words(column);
      const cell = h("div", { class: column.end ? "cell end" : "cell", role: "gridcell" }, inner);
      for (const press of cell.querySelectorAll("button, a")) press.tabIndex = -1;
      if (at || !this.narrow) return (node.append(cell), update);
      const second = h("span", { class: "brief" });
      cell.append(second);
      node.append(cell);
      return (row) => (update(row), say(second, this.brief(row)));
    });
    if (this.open) node.classList.add("opens");
    this.space.append(node);
    return { node, cells, at: -1, row: null };
  }

  place(made, at, key) {
    if (made.at !== at) {
      made.at = at;
      made.node.style.transform = `translateY(${at * this.height}px)`;
      mark(made.node, "aria-rowindex", at + 2);
      made.node.classList.toggle("odd", at % 2 === 1);
    }
    made.node.tabIndex = key === (this.active ?? this.key(this.rows[0])) ? 0 : -1;
    mark(made.node, "aria-selected", this.selected === undefined ? null : String(key === this.selected));
    for (const update of made.cells) update(this.rows[at]);
  }

  /** Mark the row that is shown elsewhere. */
  select(key) {
    this.selected = key;
    this.draw();
  }

  leave() {
    this.active = null;
  }

  focused(event) {
    const key = event.target.closest(".row")?.dataset.key;
    const row = this.rowOf(key);
    if (row !== undefined) this.active = this.key(row);
  }

  rowOf(text) {
    for (const [key, { node }] of this.nodes) if (String(key) === text && node.isConnected) return this.rows[this.places.get(key)];
    return undefined;
  }

  clicked(event) {
    if (event.target.closest("button, a")) return;
    // Rows may move during a press: the one it began on is meant. Without a pointer
    // (detail is 0) no press has begun.
    const row = this.rowOf(event.detail ? this.down : event.target.closest(".row")?.dataset.key);
    if (row === undefined || !this.open || String(getSelection())) return;
    this.focusRow(this.places.get(this.key(row)));
    this.open(row);
  }

  focusRow(at) {
    const to = Math.min(Math.max(at, 0), this.rows.length - 1);
    if (to < 0) return;
    this.active = this.key(this.rows[to]);
    const top = to * this.height;
    const { scrollTop, clientHeight } = this.body;
    if (top < scrollTop) this.body.scrollTop = top;
    else if (top + this.height > scrollTop + clientHeight) this.body.scrollTop = top + this.height - clientHeight;
    this.draw();
    this.nodes.get(this.active)?.node.focus({ preventScroll: true });
  }

  pressed(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const cell = event.target.closest(".row");
    const move = this.head.contains(event.target) ? this.inHead(event) : cell && this.inRows(event, cell);
    if (move) {
      event.preventDefault();
      move();
    }
  }

  inHead(event) {
    const heads = [...this.head.querySelectorAll("button")];
    const at = heads.indexOf(event.target);
    const to = { ArrowRight: heads[at + 1], ArrowLeft: heads[at - 1], Home: heads[0], End: heads.at(-1) }[event.key];
    if (to) {
      return () => {
        for (const one of heads) one.tabIndex = one === to ? 0 : -1;
        to.focus();
      };
    }
    return event.key === "ArrowDown" ? () => this.focusRow(this.places.get(this.active) ?? 0) : null;
  }

  inRows(event, node) {
    const at = this.places.get(this.active) ?? 0;
    const page = Math.max(Math.floor(this.body.clientHeight / this.height) - 1, 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -this.rows.length, End: this.rows.length };
    if (event.key in steps) {
      if (event.key === "ArrowUp" && at === 0) return () => this.head.querySelector("[tabindex='0']")?.focus();
      return () => this.focusRow(at + steps[event.key]);
    }
    const presses = [node, ...node.querySelectorAll("button:not([hidden]), a:not([hidden])")];
    const in_row = presses.indexOf(event.target);
    if (event.key === "ArrowRight") return () => presses[in_row + 1]?.focus();
    if (event.key === "ArrowLeft") return () => presses[Math.max(in_row - 1, 0)].focus();
    if (event.key === "Escape" && in_row > 0) return () => node.focus();
    if ((event.key === "Enter" || event.key === " ") && in_row === 0 && this.open) return () => this.open(this.rows[at]);
    return null;
  }
}

function words(column) {
  const node = h("span", { class: column.mono ? "mono clip" : "clip" });
  return { node, update: (row) => say(node, column.text(row)) };
}

/** A word with a mark whose shape and colour say how good it is. */
export function state(of, tone) {
  return () => {
    const node = h("span", { class: "state" }, h("i", { "aria-hidden": "true" }), h("span"));
    return {
      node,
      update(row) {
        mark(node, "data-tone", tone(row));
        say(node.lastChild, of(row));
      },
    };
  };
}

/** A cell with a button of one drawing for each row. */
export function press(label, drawing, act, shown = () => true) {
  return () => {
    let now = null;
    const node = h("button", { type: "button", class: "icon-button", on: { click: () => act(now, node) } }, icon(drawing));
    return {
      node,
      update(row) {
        now = row;
        node.hidden = !shown(row);
        mark(node, "aria-label", label(row));
        mark(node, "title", label(row));
      },
    };
  };
}
