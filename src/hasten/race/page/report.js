"use strict";
// Each figure: {id, traces, layout, axes?: {name: {title, values: [per trace]}}}.
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function theme(layout) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = {
    gridcolor: colour("--line"), zeroline: false, linecolor: colour("--line"),
    tickfont: {color: colour("--soft"), size: 12}, automargin: true,
  };
  return Object.assign({}, layout, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: {family: getComputedStyle(document.body).fontFamily, color: colour("--ink"), size: 13},
    margin: {l: 62, r: 12, t: 34, b: 48}, hovermode: layout.hovermode || "closest",
    hoverlabel: {bgcolor: colour("--paper"), bordercolor: colour("--line"), font: {color: colour("--ink")}},
    legend: Object.assign({bgcolor: "rgba(0,0,0,0)", font: {size: 13}}, layout.legend),
    xaxis: Object.assign({}, axis, layout.xaxis), yaxis: Object.assign({}, axis, layout.yaxis),
  });
}

const config = {responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]};

function draw(figure) {
  Plotly.newPlot(figure.id, figure.traces, theme(figure.layout), config);
}

function connect(figure) {
  const buttons = document.querySelectorAll(`[data-figure="${figure.id}"] button`);
  buttons.forEach((button) => button.addEventListener("click", () => {
    const chosen = figure.axes[button.dataset.axis];
    buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    figure.layout.xaxis.title.text = chosen.title;
    figure.traces.forEach((trace, k) => { trace.x = chosen.values[k]; });
    Plotly.update(figure.id, {x: chosen.values}, {"xaxis.title.text": chosen.title, "xaxis.autorange": true});
  }));
}

figures.forEach((figure) => { draw(figure); if (figure.axes) connect(figure); });
dark.addEventListener("change", () => figures.forEach(
  (figure) => Plotly.relayout(figure.id, theme(document.getElementById(figure.id).layout))));
