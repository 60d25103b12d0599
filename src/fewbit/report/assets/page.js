"use strict";

// Charts: figures come from the page's data; colour names in them are CSS variables of the theme.
const figures = JSON.parse(document.getElementById("charts-data").textContent);
const COLOURS = ["blue", "teal", "orange", "grey", "text"];

function themed(value, colours) {
  if (Array.isArray(value)) return value.map((item) => themed(item, colours));
  if (value === null || typeof value !== "object") return value;
  const result = {};
  for (const [key, item] of Object.entries(value)) {
    result[key] = key === "color" && colours[item] ? colours[item] : themed(item, colours);
  }
  return result;
}

function axis(own, css) {
  return {
    gridcolor: css("--grid"), zerolinecolor: css("--line"), linecolor: css("--line"), tickfont: { size: 11 }, ...own,
  };
}

function draw() {
  const style = getComputedStyle(document.documentElement);
  const css = (name) => style.getPropertyValue(name).trim();
  const colours = Object.fromEntries(COLOURS.map((name) => [name, css("--" + name)]));
  for (const [key, figure] of Object.entries(figures)) {
    const layout = themed(figure.layout, colours);
    Plotly.react(key, themed(figure.data, colours), {
      height: 380, margin: { l: 60, r: 12, t: 34, b: 40 }, hovermode: "closest", bargap: 0.2,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, color: css("--text"), size: 12.5 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--grey"), activecolor: css("--text") },
      ...layout,
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", ...layout.legend },
      xaxis: axis(layout.xaxis, css), yaxis: { automargin: true, ...axis(layout.yaxis, css) },
    }, { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });
  }
}

draw();
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

// The table: a click on a heading sorts, a second click turns the order round; missing values stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const difference = head.dataset.kind === "number" ? Number(x) - Number(y) : x.localeCompare(y);
      return (up ? 1 : -1) * (Number.isNaN(difference) ? 0 : difference);
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  }));
}

for (const search of document.querySelectorAll("input[data-filters]")) {
  const table = document.getElementById(search.dataset.filters);
  search.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase();
    for (const row of table.tBodies[0].rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}
