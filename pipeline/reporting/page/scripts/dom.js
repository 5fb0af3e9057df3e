"use strict";
/* The page's data, what is shown of it (an experiment, or the images of a dataset without any), and how elements are made. */
const data = JSON.parse(document.getElementById("data").textContent);
let experiment;
for (const datasets of [data.datasets, data.multi_label]) for (const [name, dataset] of Object.entries(datasets)) dataset.name = name;

const scored = new Set(data.experiments.map((row) => row.dataset));
const imagesOnly = (name) => ({ dataset: name, name, lists: {}, mistakes_on_map: {} });
const views = [...data.experiments, ...Object.keys(data.datasets).filter((name) => !scored.has(name)).map(imagesOnly)];

const $ = (id) => document.getElementById(id);
const dataset = () => data.datasets[experiment.dataset];
const className = (number) => dataset().classes[number] ?? "no label";
const pathOf = (image) => data.images[image][0];
const splitOf = (image) => data.images[image][2];
const labelOf = (image) => (splitOf(image) === "unlabelled" ? -1 : data.images[image][1]);
const count = (number) => number.toLocaleString("en");
const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;
const percent = (share, n) => (100 * share).toFixed(n < 10000 ? 1 : 2) + "%";

/* All text goes in as text nodes, never as HTML: names of files and classes can be anything. */
function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "onclick") node.addEventListener("click", value);
    else if (value !== undefined && value !== null && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}
const name = (text, kind) => el("bdi", { class: kind, title: text }, text);
const fill = (node, ...children) => node.replaceChildren(...children.flat(Infinity).filter(Boolean));
const button = (text, attributes) => el("button", { class: "small-button", type: "button", ...attributes }, text);
const colourOf = (variable) => getComputedStyle(document.documentElement).getPropertyValue(variable);

/* The box beside the pointer. */
function tip(x, y, ...children) {
  const box = $("tip");
  fill(box, ...children);
  box.hidden = false;
  const { width, height } = box.getBoundingClientRect();
  box.style.left = Math.max(6, Math.min(x + 16, innerWidth - width - 6)) + "px";
  box.style.top = (y + 18 + height > innerHeight ? Math.max(6, y - height - 12) : y + 18) + "px";
}
function hideTip() { $("tip").hidden = true; }
