// The two live charts. Received stands above the line and sent below it, so both ways of
// one tunnel share a scale. Data are the bounded series of live.js: nothing is kept here.

import uPlot from "./uplot.js";
import { h, say } from "./dom.js";
import { live, SAMPLES } from "./live.js";
import { count, clock, rate, size } from "./words.js";

const LEAST_S = 60; // a process that has just begun is not a sliver at the edge
const LEAST_RATE = 1000; // bytes per second: silence is a flat line and no noise
const HEIGHT = 260;
const STEPS_S = [1, 5, 10, 30, 60, 120, 300]; // between times on the axis

/** Read a colour of the style sheet as the canvas wants it: light or dark is decided. */
function colour(name, alpha = 1) {
  const probe = h("i", { class: `probe probe-${name}` });
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return alpha === 1 ? found : found.replace(/^rgb\((.*)\)$/, `rgba($1, ${alpha})`);
}

function across() {
  const { at } = live.series;
  const end = at.at(-1) ?? Date.now() / 1000;
  return [Math.min(Math.max(at[0] ?? end, end - SAMPLES), end - LEAST_S), end];
}

const hourAndMinute = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", hour12: false });

function options(width, height, scale, series, values, cursor) {
  const faint = colour("faint");
  const grid = { stroke: colour("grid"), width: 1 };
  const font = "12px system-ui, sans-serif";
  return {
    width,
    height,
    pxAlign: 0,
    padding: [8, 4, 0, 0],
    legend: { show: false },
    cursor: { y: false, drag: { setScale: false, x: false }, points: { size: 7, width: 2 }, sync: { key: "tunnel" } },
    scales: { x: { time: true, range: across }, y: { range: scale } },
    axes: [
      {
        stroke: faint, font, size: 28, gap: 8, space: 64, incrs: STEPS_S, grid: { show: false }, ticks: { show: false },
        values: (_, splits) => splits.map((at, i) => (i && splits[1] - splits[0] < 60 ? clock(at) : hourAndMinute.format(at * 1000))),
      },
      { stroke: faint, font, side: 1, size: 72, gap: 8, space: 38, grid, ticks: { show: false }, values },
    ],
    series: [{}, ...series],
    hooks: { setCursor: [cursor] },
  };
}

function area(stroke, fill) {
  return {
    stroke, width: 1.75,
    points: { show: false },
    fill: (u) => {
      const { top, height } = u.bbox;
      const shade = u.ctx.createLinearGradient(0, top, 0, top + height);
      for (const [at, tint] of fill) shade.addColorStop(at, tint);
      return shade;
    },
    paths: uPlot.paths.spline(),
  };
}

/** A chart in a figure; `build(width, cursor)` gives its options, `data()` its numbers. */
class Chart {
  constructor(title, legend, build, data, told) {
    Object.assign(this, { build, data, told });
    this.legend = h("div", { class: "legend" }, ...legend);
    this.place = h("div", { class: "canvas", role: "img", "aria-label": title });
    this.element = h("figure", { class: "chart" }, h("figcaption", {}, h("h2", {}, title), this.legend), this.place);
    this.title = title;
    this.at = null;
    this.watch = new ResizeObserver(() => this.fit());
    this.watch.observe(this.place);
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    this.again = () => this.make();
    this.dark.addEventListener("change", this.again);
    document.addEventListener("themechange", this.again);
  }

  fit() {
    const width = Math.floor(this.place.clientWidth);
    if (!width) return;
    if (this.plot) this.plot.setSize({ width, height: this.plot.height });
    else this.make();
  }

  make() {
    this.plot?.destroy();
    const width = Math.floor(this.place.clientWidth);
    if (!width) return;
    this.plot = new uPlot(this.build(width, (u) => this.pointed(u.cursor.idx)), this.data(), this.place);
    this.draw();
  }

  pointed(at) {
    this.at = at;
    this.tell();
  }

  tell() {
    const { series } = live;
    this.told(this.legend, this.at === null || this.at === undefined ? series.at.length - 1 : this.at, this.at != null);
  }

  draw() {
    this.plot?.setData(this.data());
    this.tell();
  }

  end() {
    this.watch.disconnect();
    this.dark.removeEventListener("change", this.again);
    document.removeEventListener("themechange", this.again);
    this.plot?.destroy();
  }
}

function key(name, label) {
  return h("span", { class: `key key-${name}` }, h("i", { "aria-hidden": "true" }), `${label} `, h("b", {}));
}

export function rateChart() {
  const say_at = h("span", { class: "when" });
  return new Chart(
    "Throughput, last ten minutes",
    [key("received", "Received"), key("sent", "Sent"), say_at],
    (width, cursor) => {
      const [accent, ink] = ["accent", "second"];
      return options(
        width, HEIGHT,
        (_, low, high) => [Math.min((low ?? 0) * 1.15, -LEAST_RATE), Math.max((high ?? 0) * 1.15, LEAST_RATE)],
        [
          area(colour(accent), [[0, colour(accent, 0.34)], [0.6, colour(accent, 0.04)], [1, colour(accent, 0)]]),
          area(colour(ink), [[0, colour(ink, 0)], [0.4, colour(ink, 0.04)], [1, colour(ink, 0.3)]]),
        ],
        (_, splits) => splits.map((value) => (value ? `${size(Math.abs(value)).replace(".0 ", " ")}/s` : "0")),
        cursor,
      );
    },
    () => [live.series.at, live.series.received, live.series.sent],
    (legend, at, pointed) => {
      const [received, sent] = legend.querySelectorAll("b");
      say(received, rate(live.series.received[at] ?? 0));
      say(sent, rate(-(live.series.sent[at] ?? 0)));
      say(say_at, pointed && live.series.at[at] ? clock(live.series.at[at]) : "now");
    },
  );
}

export function connectionChart() {
  return new Chart(
    "Connections",
    [key("accent", "Open")],
    (width, cursor) =>
      options(
        width, HEIGHT,
        (_, low, high) => [0, Math.max((high ?? 0) * 1.2, 4)],
        [area(colour("accent"), [[0, colour("accent", 0.26)], [1, colour("accent", 0.02)]])],
        (_, splits) => splits.map((value) => (Number.isInteger(value) ? count(value) : "")),
        cursor,
      ),
    () => [live.series.at, live.series.connections],
    (legend, at) => say(legend.querySelector("b"), count(live.series.connections[at] ?? 0)),
  );
}
