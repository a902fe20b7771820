// Keeps a page alive: asks for its live part whenever it is told of a change, and draws a job's curves.
// Without it every page still shows everything but the drawn curves. Knows nothing of what a page says.
"use strict";

(() => {
  const POLL_MS = 3000;
  const AT_MOST_EVERY_MS = 1000;
  const TRY_AGAIN_MS = 15000;
  const offline = document.querySelector("[data-offline]");

  // ── Staying up to date ─────────────────────────────────────────────────────────────────────────
  // One stream says that something has changed, never what. While there is none the page asks by the
  // clock. Both rest while nobody looks, and catch up at once.
  let stream = null;
  let notBefore = 0;
  let refreshedAt = -Infinity;
  let later;

  function refresh() {
    if (document.hidden) return;
    const wait = refreshedAt + AT_MOST_EVERY_MS - performance.now();
    if (wait > 0) {
      later ??= setTimeout(() => { later = undefined; refresh(); }, wait);
      return;
    }
    refreshedAt = performance.now();
    for (const part of document.querySelectorAll("[data-live]")) {
      part.dispatchEvent(new CustomEvent("refresh"));
    }
  }

  function listen() {
    const parts = [...document.querySelectorAll("[data-live]")];
    if (document.hidden || parts.length === 0) {
      stream?.close();
      stream = null;
      notBefore = 0;
      return;
    }
    if (stream && stream.readyState !== EventSource.CLOSED) return;
    // One that was refused, for there are too many, or for the service is away.
    if (performance.now() < notBefore) return;
    notBefore = performance.now() + TRY_AGAIN_MS;
    stream = new EventSource(`/dashboard/live?job=${jobOf(parts)}`);
    stream.addEventListener("changed", refresh);
    stream.addEventListener("error", refresh);
  }

  // What is asked for at one job's address changes with that job alone; else there is none, and any job counts.
  function jobOf(parts) {
    const jobs = parts.map((part) => /^\/dashboard\/jobs\/([^/?]+)/.exec(part.getAttribute("hx-get"))?.[1]);
    return new Set(jobs).size === 1 ? jobs[0] ?? "" : "";
  }

  listen();
  setInterval(() => {
    listen();
    if (stream?.readyState !== EventSource.OPEN) refresh();
  }, POLL_MS);
  document.addEventListener("visibilitychange", () => { listen(); refresh(); });

  document.addEventListener("htmx:error", () => { offline.hidden = false; });
  document.addEventListener("htmx:response:error", () => { offline.hidden = false; });
  document.addEventListener("htmx:after:swap", (event) => {
    const status = event.detail?.ctx?.response?.status ?? 200;
    if (status >= 400) return;
    offline.hidden = true;
    listen(); // What has ended is live no more.
    drawCurves();
  });

  // ── Curves ─────────────────────────────────────────────────────────────────────────────────────
  const plots = new Map();
  let drawn = "";

  async function drawCurves() {
    const box = document.querySelector("[data-curves]");
    if (!box) return;
    let curves;
    try {
      const response = await fetch(box.dataset.curves, { headers: { "HX-Request": "true" } });
      if (!response.ok) return;
      const text = await response.text();
      if (text === drawn) return;
      drawn = text;
      curves = JSON.parse(text);
    } catch {
      return; // The live part tells when the service is away.
    }
    if (curves.steps.length === 0) return;
    box.querySelector("[data-curves-empty]").hidden = true;
    for (const figure of box.querySelectorAll("[data-curve]")) drawCurve(figure, curves);
    fillNumbers(box, curves);
  }

  function drawCurve(figure, curves) {
    const values = curves[figure.dataset.curve];
    if (!values.some((value) => value !== null)) return;
    figure.hidden = false;
    const digits = Number(figure.dataset.digits);
    const unit = figure.dataset.unit ?? "";
    const known = values.filter((value) => value !== null);
    const isExponent = figure.dataset.form === "exponent";
    const shown = (value) => (isExponent ? value.toExponential(digits) : value.toFixed(digits)) + unit;
    const output = figure.querySelector("output");
    const summary = known.length > 1 ? `${shown(known[0])} → ${shown(known.at(-1))}` : shown(known[0]);
    output.textContent = summary;
    const point = (plot) => {
      const index = plot.cursor.idx;
      if (index === null || index === undefined) output.textContent = summary;
      else if (values[index] === null) output.textContent = `step ${curves.steps[index]}: not measured`;
      else output.textContent = `step ${curves.steps[index]}: ${shown(values[index])}`;
    };
    plots.get(figure)?.destroy();
    const target = figure.querySelector(".curve");
    const asked = options(target, figure, curves, digits, unit);
    const [low, high] = [curves[`${figure.dataset.curve}_low`], curves[`${figure.dataset.curve}_high`]];
    const draw = low ? [(plot) => drawIntervals(plot, curves.steps, low, high)] : [];
    if (isExponent) {
      asked.axes[1].values = (_, ticks) => ticks.map((tick) => (tick === 0 ? "0" : tick.toExponential(1)));
      asked.scales.y.range = [0, Math.max(...known) * 1.1];
    }
    if (low) {
      // Between two measurements nothing is known, so no line leads from one to the next.
      asked.scales.y.range = [0, 100];
      asked.series[1] = { ...asked.series[1], paths: () => null, points: { show: true, size: 7 } };
    }
    plots.set(figure, new uPlot({ ...asked, hooks: { setCursor: [point], draw } }, [curves.steps, values], target));
  }

  function options(target, figure, curves, digits, unit) {
    const style = getComputedStyle(figure);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = {
      stroke: colour("--quiet"),
      font: `11px ${style.fontFamily}`,
      grid: { stroke: colour("--line"), width: 1 },
      ticks: { show: false },
    };
    const isSparse = curves[figure.dataset.curve].filter((value) => value !== null).length <= 60;
    return {
      width: Math.max(200, target.clientWidth),
      height: 150,
      cursor: { sync: { key: "steps" }, y: false, drag: { x: false, y: false } },
      legend: { show: false },
      scales: {
        x: { time: false, range: [0, Math.max(curves.total_steps ?? 0, curves.steps.at(-1))] },
        y: { range: (_, low, high) => padded(low, high) },
      },
      axes: [
        { ...axis, size: 26, values: (_, ticks) => ticks.map((tick) => tick.toLocaleString("en")) },
        { ...axis, size: 48, values: (_, ticks) => ticks.map((tick) => `${+tick.toFixed(digits)}${unit}`) },
      ],
      series: [
        {},
        {
          stroke: colour(`--curve-${figure.dataset.curve.replaceAll("_", "-")}`),
          width: 1.75,
          spanGaps: true,
          points: { show: isSparse, size: 5 },
        },
      ],
    };
  }

  // Each measured score with its interval, as on the bars elsewhere.
  function drawIntervals(plot, steps, low, high) {
    const pen = plot.ctx;
    pen.save();
    pen.strokeStyle = plot.series[1].stroke();
    pen.lineWidth = 1.5 * devicePixelRatio;
    const cap = 3 * devicePixelRatio;
    steps.forEach((step, index) => {
      if (low[index] === null) return;
      const x = plot.valToPos(step, "x", true);
      const [from, to] = [low[index], high[index]].map((value) => plot.valToPos(value, "y", true));
      pen.beginPath();
      pen.moveTo(x, from);
      pen.lineTo(x, to);
      for (const y of [from, to]) {
        pen.moveTo(x - cap, y);
        pen.lineTo(x + cap, y);
      }
      pen.stroke();
    });
    pen.restore();
  }

  function padded(low, high) {
    const room = Math.max((high - low) * 0.08, Math.abs(high) * 0.01, 1e-6);
    return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
  }

  function fillNumbers(box, curves) {
    const numbers = box.querySelector("[data-curves-numbers]");
    numbers.hidden = false;
    const rows = curves.steps.map((step, index) => {
      const row = document.createElement("tr");
      for (const text of [
        step.toLocaleString("en"),
        told(curves.train_loss[index], (value) => value.toFixed(4)),
        told(curves.canary_loss[index], (value) => value.toFixed(4)),
        told(curves.token_accuracy[index], (value) => `${value.toFixed(1)}%`),
        told(curves.harmful_score[index], (value) => `${value.toFixed(1)}% (${curves.harmful_score_low[index].toFixed(1)}\u2013${curves.harmful_score_high[index].toFixed(1)})`),
        told(curves.valid_loss[index], (value) => value.toFixed(4)),
        told(curves.learning_rate[index], (value) => value.toExponential(2)),
      ]) {
        const cell = document.createElement("td");
        cell.className = "num";
        cell.textContent = text;
        row.append(cell);
      }
      return row;
    });
    numbers.querySelector("tbody").replaceChildren(...rows);
  }

  function told(value, text) {
    return value === null ? "" : text(value);
  }

  // Canvas does not follow the page: draw again when its width or its colours change.
  function redraw() {
    drawn = "";
    drawCurves();
  }
  let waiting;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(redraw, 150);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  drawCurves();
})();
