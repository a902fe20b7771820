// Draws figures of measured shares: curves with a mark of their own, whiskers for intervals, names at their ends.
// Everything drawn is also in the legend and the table below it. Knows nothing of what a figure says.
"use strict";

(() => {
  const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3], [5, 2], [12, 4]];
  const NARROW = 420;
  const plots = new Map();

  function draw(figure) {
    const told = JSON.parse(figure.dataset.figure);
    const canvas = figure.querySelector(".canvas");
    const reading = figure.querySelector(".reading");
    plots.get(figure)?.destroy();
    const style = getComputedStyle(figure);
    const colour = (name) => style.getPropertyValue(name).trim();
    const place = (x) => (told.is_logarithmic ? Math.log10(x) : x);
    const marks = [...new Set(told.series.flatMap((s) => s.values.map((v) => v.x)))].sort((a, b) => a - b);
    if (marks.length === 0) return;
    canvas.hidden = false;
    reading.hidden = false;
    const xs = marks.map(place);
    const columns = told.series.map((s) => {
      const at = new Map(s.values.map((v) => [v.x, v]));
      return marks.map((x) => at.get(x) ?? null);
    });
    const width = Math.max(220, canvas.clientWidth);
    const isNarrow = width < NARROW;
    const unit = told.is_share ? "%" : "";
    const highest = Math.max(...told.series.flatMap((s) => s.values.map((v) => v.high ?? v.y)), told.limit ?? 0);
    const top = told.is_share ? Math.min(100, Math.ceil((highest + 2) / 10) * 10) : highest * 1.08 || 1;
    const span = xs.at(-1) - xs[0] || 1;
    const brief = briefly(told.series.map((s) => s.label));
    const font = `${isNarrow ? 10 : 11}px ${style.fontFamily}`;
    const axis = {
      stroke: colour("--quiet"), font, labelFont: font, labelSize: 16,
      grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false },
    };
    const summary = "Point at the curves to read them.";
    reading.textContent = summary;

    const options = {
      width,
      height: isNarrow ? 230 : 260,
      padding: [10, isNarrow ? 66 : 96, 0, 0],
      cursor: { y: false, drag: { x: false, y: false } },
      legend: { show: false },
      scales: {
        x: { time: false, range: [xs[0] - span * 0.03, xs.at(-1) + span * 0.03] },
        y: { range: [0, top] },
      },
      axes: [
        {
          ...axis, size: 24, label: told.x_label,
          splits: () => thinned(xs, isNarrow ? 5 : 8),
          values: (_, ticks) => ticks.map((tick) => said(marks[xs.indexOf(tick)])),
        },
        { ...axis, size: 44, values: (_, ticks) => ticks.map((tick) => `${+tick.toFixed(2)}${unit}`) },
      ],
      series: [
        {},
        ...told.series.map((s) => ({
          stroke: colour(`--s${s.place % 6}`),
          width: 1.75,
          dash: DASHES[s.place % 6],
          spanGaps: true,
          points: { show: false },
        })),
      ],
      hooks: {
        draw: [(plot) => decorate(plot, told, columns, colour, font, brief)],
        setCursor: [(plot) => {
          const index = plot.cursor.idx;
          reading.textContent = index === null || index === undefined ? summary
            : `${said(marks[index])}: ` + told.series
              .map((s, number) => [s, columns[number][index]])
              .filter(([, value]) => value)
              .map(([s, value]) => `${brief(s.label)} ${value.y.toFixed(told.is_share ? 1 : 3)}${unit}`)
              .join(", ");
        }],
      },
    };
    const data = [xs, ...columns.map((column) => column.map((value) => value?.y ?? null))];
    plots.set(figure, new uPlot(options, data, canvas));
  }

  // ── On top of the lines ────────────────────────────────────────────────────────────────────────
  function decorate(plot, told, columns, colour, font, brief) {
    const context = plot.ctx;
    const ratio = devicePixelRatio;
    const x = (value) => plot.valToPos(value, "x", true);
    const y = (value) => plot.valToPos(value, "y", true);
    context.save();
    context.lineWidth = ratio;
    if (told.limit !== null) {
      context.strokeStyle = colour("--bad");
      context.setLineDash([4 * ratio, 3 * ratio]);
      line(context, plot.bbox.left, y(told.limit), plot.bbox.left + plot.bbox.width, y(told.limit));
      context.setLineDash([]);
    }
    const ends = [];
    told.series.forEach((series, number) => {
      const shade = colour(`--s${series.place % 6}`);
      // Whiskers stand side by side where curves share their points.
      const aside = (number - (told.series.length - 1) / 2) * 3 * ratio;
      let last = null;
      columns[number].forEach((value, index) => {
        if (!value) return;
        const centre = x(plot.data[0][index]);
        context.strokeStyle = context.fillStyle = shade;
        if (value.low !== null) {
          line(context, centre + aside, y(value.low), centre + aside, y(value.high));
          line(context, centre + aside - 2.5 * ratio, y(value.low), centre + aside + 2.5 * ratio, y(value.low));
          line(context, centre + aside - 2.5 * ratio, y(value.high), centre + aside + 2.5 * ratio, y(value.high));
        }
        mark(context, series.place % 6, centre, y(value.y), 3.6 * ratio);
        last = { y: y(value.y), label: brief(series.label), shade };
      });
      if (last) ends.push(last);
    });
    context.font = font.replace(/^(\d+)px/, (_, size) => `${size * ratio}px`);
    context.textBaseline = "middle";
    context.textAlign = "left";
    const left = plot.bbox.left + plot.bbox.width + 8 * ratio;
    const room = plot.ctx.canvas.width - left;
    for (const end of spread(ends, 12 * ratio, plot.bbox.top, plot.bbox.top + plot.bbox.height)) {
      context.fillStyle = end.shade;
      context.fillText(fitted(context, end.label, room), left, end.at);
    }
    context.restore();
  }

  function line(context, x1, y1, x2, y2) {
    context.beginPath();
    context.moveTo(x1, y1);
    context.lineTo(x2, y2);
    context.stroke();
  }

  function mark(context, shape, x, y, r) {
    context.beginPath();
    if (shape === 0) context.arc(x, y, r, 0, 2 * Math.PI);
    else if (shape === 1) context.rect(x - r * 0.88, y - r * 0.88, r * 1.76, r * 1.76);
    else if (shape === 5) {
      context.rect(x - r * 0.35, y - r * 1.1, r * 0.7, r * 2.2);
      context.rect(x - r * 1.1, y - r * 0.35, r * 2.2, r * 0.7);
    } else {
      const corners = { 2: [[0, -1.2], [1.15, 0.9], [-1.15, 0.9]], 3: [[0, -1.25], [1.25, 0], [0, 1.25], [-1.25, 0]], 4: [[0, 1.2], [1.15, -0.9], [-1.15, -0.9]] }[shape];
      corners.forEach(([dx, dy], index) => context[index ? "lineTo" : "moveTo"](x + dx * r, y + dy * r));
      context.closePath();
    }
    context.fill();
  }

  // Names at the ends of their curves, moved apart just far enough to be read.
  function spread(ends, gap, top, bottom) {
    const sorted = ends.map((end) => ({ ...end, at: end.y })).sort((a, b) => a.y - b.y);
    let least = top + gap / 2;
    for (const end of sorted) { end.at = Math.max(end.at, least); least = end.at + gap; }
    let most = bottom - gap / 2;
    for (const end of sorted.reverse()) { end.at = Math.min(end.at, most); most = end.at - gap; }
    return sorted;
  }

  function fitted(context, label, room) {
    if (context.measureText(label).width <= room) return label;
    let kept = label;
    while (kept.length > 3 && context.measureText(`${kept}…`).width > room) kept = kept.slice(0, -1);
    return `${kept}…`;
  }

  // "mix 10%, 800 rows, continued" is "mix 10%", and "base-sft" beside "base-booster" is "sft": the legend says the rest.
  function briefly(labels) {
    const first = labels.map((label) => label.split(",")[0]);
    let same = 0;
    while (first.length > 1 && first.every((name) => name[same] && name[same] === first[0][same])) same += 1;
    const cut = first[0].slice(0, same).search(/[-/:][^-/:]*$/) + 1;
    return (label) => label.split(",")[0].slice(cut) || label;
  }

  function said(value) { return value >= 0.01 || value === 0 ? value.toLocaleString("en") : value.toExponential().replace("e-", "e−"); }

  function thinned(places, most) {
    if (places.length <= most) return places;
    const every = Math.ceil(places.length / most);
    return places.filter((_, index) => (places.length - 1 - index) % every === 0);
  }

  function drawAll() { for (const figure of document.querySelectorAll("[data-figure]")) draw(figure); }
  let waiting;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(drawAll, 150); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  drawAll();
})();
