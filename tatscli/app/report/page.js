"use strict";
(() => {
  const calm = matchMedia("(prefers-reduced-motion: reduce)");

  // ---------------------------------------------------------------- curves

  const SVG = "http://www.w3.org/2000/svg";
  const LEFT = 46, RIGHT = 8, TOP = 8, BOTTOM = 22, EDGE = 5;
  const MARKED = 15; // a curve of no more points shows each of them, as it was measured
  const FAR = 0.02; // part of the steps shown, within which a point is near

  function draw(parent, name, attributes, text) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  }

  function element(name, className, text) {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  /** At most 4 significant digits, without zeros at the end. */
  function short(value) {
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e6)) {
      return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
    }
    return String(Number(value.toPrecision(4)));
  }

  function steps(value) {
    const size = Math.abs(value);
    if (size >= 1e6) return `${Number((value / 1e6).toPrecision(4))}M`;
    if (size >= 1e4) return `${Number((value / 1e3).toPrecision(4))}k`;
    return String(Number(value.toPrecision(6)));
  }

  /** Round numbers between two others. */
  function ticks(low, high, count) {
    const span = high - low;
    if (!(span > 0)) return [low];
    const rough = span / count, power = 10 ** Math.floor(Math.log10(rough));
    const unit = [1, 2, 5, 10].find((n) => n * power >= rough) * power;
    const found = [];
    for (let n = Math.ceil(low / unit - 1e-9); n * unit <= high + span * 1e-9; n++) {
      found.push(n * unit);
    }
    return found;
  }

  function logTicks(low, high) {
    const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
    const factors = last - first > 3 ? [1] : [1, 2, 5];
    const found = [];
    for (let n = first; n <= last; n++) {
      for (const factor of factors) found.push(factor * 10 ** n);
    }
    const inside = found.filter((v) => v >= low && v <= high);
    return inside.length > 1 ? inside : ticks(low, high, 4);
  }

  /** Exponential moving average that is not drawn to zero at its start; gaps stay gaps. */
  function smoothed(values, weight) {
    if (!weight) return values;
    let mean = 0, share = 0;
    return values.map((value) => {
      if (value === null) return null;
      mean = weight * mean + (1 - weight) * value;
      share = weight * share + (1 - weight);
      return mean / share;
    });
  }

  /** Index of the first number that is not below a value. */
  function firstAt(sorted, value) {
    let low = 0, high = sorted.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (sorted[middle] < value) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  function nearest(sorted, value) {
    const after = Math.min(firstAt(sorted, value), sorted.length - 1);
    return after > 0 && value - sorted[after - 1] < sorted[after] - value ? after - 1 : after;
  }

  /** Charts that share their steps, their smoothing and the place of the read-out. */
  class Panel {
    constructor(root) {
      const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
      this.runs = data.runs;
      this.shown = data.runs.map(() => true);
      this.weight = 0;
      this.log = false;
      this.at = null; // the step that is read out; null is the end of each curve
      const ends = data.charts.flatMap((c) => c.series.map((s) => s.x[s.x.length - 1]));
      this.whole = [0, Math.max(1, ...ends)];
      this.range = this.whole;
      this.charts = [...root.querySelectorAll(".chart")].map(
        (figure, number) => new Chart(this, figure, data.charts[number]),
      );
      this.tools(root);
      new ResizeObserver(() => this.redraw()).observe(root.querySelector(".charts"));
      this.redraw();
    }

    tools(root) {
      const find = (name) => root.querySelector(`[name="${name}"]`);
      const smooth = find("smoothing"), said = smooth.parentNode.querySelector("output");
      smooth.addEventListener("input", () => {
        this.weight = Number(smooth.value);
        said.textContent = this.weight.toFixed(2);
        this.redraw();
      });
      const log = find("log");
      log.addEventListener("change", () => {
        this.log = log.checked;
        this.redraw();
      });
      this.reset = find("reset");
      this.reset.addEventListener("click", () => this.zoom(this.whole));
      root.querySelectorAll(".legend button").forEach((button, run) => {
        button.addEventListener("click", () => {
          this.shown[run] = !this.shown[run];
          button.setAttribute("aria-pressed", this.shown[run]);
          this.redraw();
        });
      });
    }

    redraw() {
      this.reset.disabled = this.range === this.whole;
      for (const chart of this.charts) chart.redraw();
    }

    /** Show these steps, as far as there are any, and at least a few of them. */
    zoom([low, high]) {
      const [first, last] = this.whole;
      const least = Math.min(last - first, Math.max((last - first) / 1000, 1));
      const width = Math.min(Math.max(high - low, least), last - first);
      const start = Math.min(Math.max((low + high - width) / 2, first), last - width);
      this.range = width >= last - first ? this.whole : [start, start + width];
      this.redraw();
    }

    /** Zoom by a factor about a step, which keeps its place. */
    zoomAbout(step, factor) {
      const [low, high] = this.range;
      this.zoom([step - (step - low) * factor, step + (high - step) * factor]);
    }

    readAt(step) {
      this.at = step;
      for (const chart of this.charts) chart.read();
    }
  }

  class Chart {
    constructor(panel, figure, data) {
      this.panel = panel;
      this.series = data.series;
      this.svg = figure.querySelector("svg");
      this.readout = figure.querySelector(".readout");
      this.where = figure.querySelector(".at");
      this.fingers = new Map();
      this.listen();
    }

    listen() {
      const { svg, panel, fingers } = this;
      const at = (event) => this.stepAt(event.clientX - svg.getBoundingClientRect().left);
      svg.addEventListener("pointerdown", (event) => {
        if (event.button !== 0) return;
        svg.setPointerCapture(event.pointerId);
        const step = at(event);
        fingers.set(event.pointerId, { start: step, now: step, left: event.clientX });
        panel.readAt(step);
      });
      svg.addEventListener("pointermove", (event) => {
        const finger = fingers.get(event.pointerId);
        if (finger && fingers.size === 2) {
          this.pinch(event, finger);
          return;
        }
        panel.readAt(at(event));
        if (finger) {
          finger.now = at(event);
          finger.moved ||= Math.abs(event.clientX - finger.left) > 6;
          this.brush(finger.moved ? finger : null);
        }
      });
      const up = (event) => {
        const finger = fingers.get(event.pointerId);
        const alone = fingers.size === 1;
        fingers.delete(event.pointerId);
        this.brush(null);
        if (finger && finger.moved && alone && event.type === "pointerup") {
          panel.zoom([Math.min(finger.start, finger.now), Math.max(finger.start, finger.now)]);
        }
      };
      svg.addEventListener("pointerup", up);
      svg.addEventListener("pointercancel", up);
      svg.addEventListener("pointerleave", (event) => {
        if (event.pointerType === "mouse" && !fingers.size) panel.readAt(null);
      });
      svg.addEventListener("dblclick", () => panel.zoom(panel.whole));
      // Without Ctrl the wheel scrolls the page, unless this chart was clicked or tabbed to.
      // A pinch on a touch pad arrives as a wheel with Ctrl.
      svg.addEventListener("wheel", (event) => {
        const out = event.deltaY > 0 && panel.range === panel.whole;
        if (!(event.ctrlKey || event.metaKey || document.activeElement === svg) || out) return;
        event.preventDefault();
        panel.zoomAbout(at(event), Math.exp(Math.max(-50, Math.min(50, event.deltaY)) / 100));
      }, { passive: false });
      svg.addEventListener("keydown", (event) => this.key(event));
      // All charts read out the same step; only the one that is keyed is read aloud.
      svg.addEventListener("focus", () => this.readout.setAttribute("aria-live", "polite"));
      svg.addEventListener("blur", () => this.readout.removeAttribute("aria-live"));
    }

    key(event) {
      const { panel } = this;
      const [low, high] = panel.range, middle = panel.at ?? (low + high) / 2;
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (move && event.shiftKey) {
        const by = (move * (high - low)) / 4;
        panel.zoom([low + by, high + by]);
      } else if (move) {
        const steps = this.curves().flatMap((s) => s.x).sort((a, b) => a - b);
        const known = [...new Set(steps)].filter((s) => s >= low && s <= high);
        if (!known.length) return;
        const here = panel.at === null ? known.length : nearest(known, panel.at);
        panel.readAt(known[Math.max(0, Math.min(known.length - 1, here + move))]);
      } else if (event.key === "+" || event.key === "=") panel.zoomAbout(middle, 0.5);
      else if (event.key === "-") panel.zoomAbout(middle, 2);
      else if (event.key === "Escape" || event.key === "0") {
        panel.readAt(null);
        panel.zoom(panel.whole);
      } else return;
      event.preventDefault();
    }

    /** Two fingers keep the steps they were put on. */
    pinch(event, finger) {
      finger.left = event.clientX;
      const box = this.svg.getBoundingClientRect();
      const [one, two] = [...this.fingers.values()];
      const a = one.left - box.left, b = two.left - box.left;
      if (Math.abs(a - b) < 8 || one.start === two.start) return;
      const perPixel = (two.start - one.start) / (b - a);
      if (perPixel <= 0) return;
      const low = one.start - (a - LEFT) * perPixel;
      this.panel.zoom([low, low + (this.width - LEFT - RIGHT) * perPixel]);
    }

    brush(finger) {
      this.band?.remove();
      this.band = null;
      if (!finger) return;
      const [x, to] = [finger.start, finger.now].map((s) => this.x(s)).sort((a, b) => a - b);
      const height = this.height - TOP - BOTTOM;
      this.band = draw(this.svg, "rect", { class: "brush", x, y: TOP, width: to - x, height });
    }

    curves() {
      return this.series.filter((s) => this.panel.shown[s.run]);
    }

    x(step) {
      const [low, high] = this.panel.range;
      return LEFT + ((step - low) / (high - low)) * (this.width - LEFT - RIGHT);
    }

    stepAt(x) {
      const [low, high] = this.panel.range;
      const part = (x - LEFT) / (this.width - LEFT - RIGHT);
      return low + Math.min(1, Math.max(0, part)) * (high - low);
    }

    y(value) {
      const [low, high] = this.span;
      const part = this.isLog
        ? Math.log(value / low) / Math.log(high / low)
        : (value - low) / (high - low);
      return TOP + (1 - part) * (this.height - TOP - BOTTOM);
    }

    redraw() {
      const { svg, panel } = this;
      this.width = svg.clientWidth;
      this.height = svg.clientHeight;
      if (!this.width) return;
      svg.replaceChildren();
      this.band = null;
      svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
      const [low, high] = panel.range;
      const drawn = this.curves().map((series) => {
        // One point beyond each side, so that lines reach the edge.
        const first = Math.max(0, firstAt(series.x, low) - 1);
        const stop = Math.min(series.x.length, firstAt(series.x, high) + 1);
        const weight = series.x.length > MARKED ? panel.weight : 0;
        return { series, first, stop, weight, line: smoothed(series.y, weight) };
      });
      const values = drawn.flatMap(({ series, first, stop, line }) =>
        line.slice(first, stop).filter((v, n) => {
          const step = series.x[first + n];
          return v !== null && step >= low && step <= high;
        }));
      const positive = values.filter((v) => v > 0);
      this.isLog = panel.log && positive.length > 0;
      this.span = this.spanOf(this.isLog ? positive : values);
      this.drawAxes();
      // Its edge cuts the lines; a little beyond the axes, so that points on them stay whole.
      const x = LEFT - EDGE, y = TOP - EDGE, width = Math.max(0, this.width - x - RIGHT + EDGE);
      const height = this.height - y - BOTTOM + EDGE;
      const plot = draw(svg, "svg", { x, y, width, height, viewBox: `${x} ${y} ${width} ${height}` });
      for (const { series, first, stop, weight, line } of drawn) {
        const style = `${this.colour(series)} ${this.dashed(series) ? "val" : ""}`;
        if (weight) {
          draw(plot, "path", { class: `raw ${style}`, d: this.path(series, series.y, first, stop) });
        }
        draw(plot, "path", { class: `line ${style}`, d: this.path(series, line, first, stop) });
        if (stop - first <= MARKED) {
          for (let n = first; n < stop; n++) {
            if (line[n] === null || (this.isLog && line[n] <= 0)) continue;
            draw(plot, "circle", {
              class: `dot ${style}`, r: 3, cx: this.x(series.x[n]), cy: this.y(line[n]),
            });
          }
        }
      }
      this.drawn = drawn;
      this.read();
    }

    spanOf(values) {
      if (!values.length) return this.isLog ? [0.1, 1] : [0, 1];
      let low = Infinity, high = -Infinity;
      for (const v of values) {
        low = Math.min(low, v);
        high = Math.max(high, v);
      }
      if (this.isLog) return high > low ? [low / 1.08, high * 1.08] : [low / 2, low * 2];
      const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
      return [low - room, high + room];
    }

    drawAxes() {
      const { svg, width, height } = this;
      const marks = this.isLog ? logTicks(...this.span) : ticks(...this.span, 4);
      for (const value of marks) {
        const y = Math.round(this.y(value));
        draw(svg, "line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: y, y2: y });
        draw(svg, "text", { class: "y", x: LEFT - 9, y: y + 4, "text-anchor": "end" }, short(value));
      }
      const [low, high] = this.panel.range;
      for (const step of ticks(low, high, Math.max(3, Math.floor(width / 65)))) {
        const x = this.x(step);
        const anchor = x > width - 26 ? "end" : x < LEFT + 12 ? "start" : "middle";
        draw(svg, "text", { class: "x", x, y: height - 6, "text-anchor": anchor }, steps(step));
      }
    }

    path(series, values, first, stop) {
      let d = "", pen = "M";
      for (let n = first; n < stop; n++) {
        if (values[n] === null || (this.isLog && values[n] <= 0)) {
          pen = "M";
          continue;
        }
        d += `${pen}${this.x(series.x[n]).toFixed(1)} ${this.y(values[n]).toFixed(1)}`;
        pen = "L";
      }
      return d;
    }

    /** Alone, a run has a colour for each part; beside others, one for all of its curves. */
    colour(series) {
      return `c${this.panel.runs.length > 1 ? series.run % 8 : Number(series.part === "val")}`;
    }

    dashed(series) {
      return this.panel.runs.length > 1 && series.part === "val";
    }

    /** Whether a point tells about the step that is pointed at; a run that ended before does not. */
    isNear(series, step) {
      const { at, range } = this.panel;
      if (at === null) return true;
      const { x } = series, spacing = (x[x.length - 1] - x[0]) / Math.max(1, x.length - 1);
      return Math.abs(step - at) <= Math.max(spacing, FAR * (range[1] - range[0]));
    }

    /** The values at the step that is pointed at, or the last; smoothed ones before the measured. */
    read() {
      const { svg, panel } = this;
      if (!this.drawn) return;
      svg.querySelectorAll(".cursor, .here").forEach((node) => node.remove());
      const rows = [];
      let shownAt = null;
      for (const { series, weight, line } of this.drawn) {
        let n = panel.at === null ? series.x.length - 1 : nearest(series.x, panel.at);
        if (panel.at === null) while (n > 0 && line[n] === null) n--;
        const step = series.x[n], value = line[n], there = this.isNear(series, step);
        if (panel.at !== null && there && (shownAt === null
            || Math.abs(step - panel.at) < Math.abs(shownAt - panel.at))) shownAt = step;
        const row = element("span", this.colour(series));
        const name = [panel.runs.length > 1 ? panel.runs[series.run] : "", series.part]
          .filter(Boolean).join(" ");
        row.append(element("i", this.dashed(series) ? "val" : ""));
        if (name) row.append(name);
        row.append(element("b", "", !there ? "–" : value === null ? "not a number" : short(value)));
        if (weight && there && value !== null) row.append(`(${short(series.y[n])})`);
        rows.push(row);
        const [low, high] = panel.range;
        const visible = there && value !== null && step >= low && step <= high && (!this.isLog || value > 0);
        if (panel.at !== null && visible) {
          draw(svg, "circle", {
            class: `dot here ${this.colour(series)}`, r: 4, cx: this.x(step), cy: this.y(value),
          });
        }
      }
      this.readout.replaceChildren(...rows);
      this.where.textContent = panel.at === null ? "last" : `step ${shownAt ?? Math.round(panel.at)}`;
      if (panel.at !== null) {
        const x = this.x(Math.min(Math.max(panel.at, panel.range[0]), panel.range[1]));
        draw(svg, "line", { class: "cursor", x1: x, x2: x, y1: TOP, y2: this.height - BOTTOM });
      }
    }
  }

  document.querySelectorAll(".curves").forEach((root) => new Panel(root));

  // ---------------------------------------------------------------- pictures of each step

  document.querySelectorAll(".steps").forEach((root) => {
    const shown = [...root.querySelectorAll("[data-step]")];
    const slider = root.querySelector('[type="range"]');
    if (!slider) return;
    const said = root.querySelector("output");
    slider.addEventListener("input", () => {
      shown.forEach((part, number) => { part.hidden = number !== Number(slider.value); });
      const { step } = shown[Number(slider.value)].dataset;
      said.textContent = step;
      slider.setAttribute("aria-valuetext", `step ${step}`);
    });
  });

  // ---------------------------------------------------------------- videos

  const PLAY = "M4 2.5v11l9-5.5z", PAUSE = "M3.5 2.5h3v11h-3zM9.5 2.5h3v11h-3z";

  class Player {
    constructor(video) {
      this.video = video;
      this.visible = false;
      this.wanted = !calm.matches;
      video.muted = true;
      if ("sound" in video.dataset) this.obey();
      else this.addButton();
    }

    /** What has sound keeps the browser's controls: what they do is what is wanted. */
    obey() {
      const { video } = this;
      video.addEventListener("play", () => { this.wanted = true; });
      video.addEventListener("pause", () => { if (this.visible) this.wanted = false; });
    }

    addButton() {
      const { video } = this;
      video.controls = false;
      this.button = element("button", "play");
      this.button.type = "button";
      const icon = draw(this.button, "svg", { viewBox: "0 0 16 16", "aria-hidden": "true" });
      this.icon = draw(icon, "path", {});
      video.after(this.button);
      const toggle = () => {
        this.wanted = video.paused;
        this.visible = true;
        this.update();
      };
      this.button.addEventListener("click", toggle);
      video.addEventListener("click", toggle);
      video.addEventListener("play", () => this.show());
      video.addEventListener("pause", () => this.show());
      this.show();
    }

    /** Safari plays no video from a data: address; none is decoded before it is near. */
    prepare() {
      if (!this.video.src.startsWith("data:")) return;
      const [head, content] = this.video.src.split(",");
      const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
      const type = head.slice(5).split(";")[0];
      this.video.src = URL.createObjectURL(new Blob([bytes], { type }));
      this.video.preload = "auto";
    }

    update() {
      if (this.visible) this.prepare();
      if (this.visible && this.wanted) this.video.play().catch(() => this.show());
      else this.video.pause();
    }

    show() {
      if (!this.button) return;
      const { paused } = this.video;
      this.icon.setAttribute("d", paused ? PLAY : PAUSE);
      this.button.setAttribute("aria-label", `${paused ? "Play" : "Pause"}: ${this.video.title}`);
      this.video.parentNode.classList.toggle("still", paused);
    }
  }

  const players = new Map(
    [...document.querySelectorAll("video")].map((video) => [video, new Player(video)]),
  );
  const watch = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const player = players.get(target);
      player.visible = isIntersecting;
      player.update();
    }
  }, { rootMargin: "120px" });
  players.forEach((_, video) => watch.observe(video));

  const pause = document.getElementById("pause");
  if (players.size) {
    let playing = !calm.matches;
    const name = () => { pause.textContent = playing ? "Pause all videos" : "Play all videos"; };
    pause.hidden = false;
    name();
    const all = () => {
      name();
      for (const player of players.values()) {
        player.wanted = playing;
        player.update();
      }
    };
    pause.addEventListener("click", () => {
      playing = !playing;
      all();
    });
    calm.addEventListener("change", () => {
      playing = !calm.matches;
      all();
    });
  }
})();
