"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
/* With more classes than these: no numbers in the matrix, no matrix, a select instead of buttons; cards before "show all". */
const MAX_NUMBERED = 30, MAX_MATRIX = 200, MAX_CHIPS = 24, SHOWN_CARDS = 8;
const PALETTE = ["#3b7dd8", "#e0782f", "#2fa36b", "#c64fa8", "#b39a1f", "#22a5b8", "#d34a4a", "#8a6ae0", "#7d8794", "#a0673a"];
let experiment = data.experiments[0];

const $ = (id) => document.getElementById(id);
const dataset = () => data.datasets[experiment.dataset];
const study = () => dataset().study;
const className = (number) => dataset().classes[number];
const count = (number) => number.toLocaleString("en");
const support = (label) => experiment.per_class[label][3];
const percent = (number, of) => (of ? (100 * number / of).toFixed(1) + "%" : "–");

/* All text goes in as text nodes, never as HTML: names of files and classes can be anything. */
function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "onclick") node.addEventListener("click", value);
    else if (value !== undefined && value !== null && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}
const name = (text, kind) => el("bdi", { class: kind, title: text }, text);
const fill = (id, ...children) => $(id).replaceChildren(...children.flat(Infinity).filter(Boolean));

/* Thumbnails: decoded when they come into view. */
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) show(entry.target);
}, { rootMargin: "300px" });

function show(frame) {
  seen.unobserve(frame);
  if (frame.firstChild) return;
  const image = el("img", { alt: "" });
  image.onload = () => image.classList.toggle("tiny", Math.max(image.naturalWidth, image.naturalHeight) <= 32);
  image.src = "data:image/jpeg;base64," + data.thumbnails[frame.dataset.thumb];
  frame.append(image);
}
function thumbnail(number, now) {
  if (!data.thumbnails[number]) return el("span", { class: "thumb" }, "no thumbnail");
  const frame = el("span", { class: "thumb", "data-thumb": number });
  if (now) show(frame); else seen.observe(frame);
  return frame;
}
const pathOf = (number) => data.images[number][0];
const labelOf = (number) => data.images[number][1];
const splitOf = (number) => data.images[number][2];

function neighbours(nearest, label) {
  if (!nearest.length) return null;
  return el("div", { class: "near" }, el("span", {}, "nearest training images, distance"), nearest.map(([number, distance]) =>
    el("figure", { title: `${pathOf(number)}\n${className(labelOf(number))}, distance ${distance}` }, thumbnail(number),
      el("figcaption", { class: labelOf(number) === label ? null : "other" }, name(className(labelOf(number))), el("br"), distance.toPrecision(2)))));
}
/* texts: what stands before the predicted class and before the confidence. */
function card(item, texts = {}) {
  const label = labelOf(item.image);
  return el("div", { class: "card" }, thumbnail(item.image), el("div", { class: "words" },
    el("div", {}, splitOf(item.image) === "test" ? "label " : `${splitOf(item.image)}, label `, el("b", {}, name(className(label)))),
    item.predicted === undefined ? null : el("div", {}, texts.predicted, " ", el("b", { class: item.predicted === label ? null : "other" }, name(className(item.predicted)))),
    item.confidence === undefined ? null : el("div", {}, texts.confidence, " ", String(item.confidence)),
    name(pathOf(item.image), "path")), neighbours(item.nearest || [], label));
}

/* A long gallery shows its first cards and a button that shows all; printing shows all. */
function gallery(cards) {
  const box = el("div", { class: cards.length > SHOWN_CARDS ? "gallery short" : "gallery" }, cards);
  if (cards.length <= SHOWN_CARDS) return [box];
  const all = el("button", { class: "small-button", onclick: () => { box.classList.remove("short"); all.remove(); } }, `show all ${cards.length}`);
  return [box, all];
}

/* Sorting: any table of the class "sortable". */
function sortBy(button) {
  const head = button.closest("th"), body = button.closest("table").tBodies[0];
  const column = [...head.parentNode.children].indexOf(head);
  const down = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : head.classList.contains("n");
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (row) => { const cell = row.cells[column]; return cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v); };
  const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
  const rows = [...body.rows].map((row) => [value(row), row]).sort(([a], [b]) => compare(a, b) * (down ? -1 : 1));
  body.append(...rows.map(([, row]) => row));
}
function sortable(heads, rows) {
  return el("div", { class: "scroll tall" }, el("table", { class: "sortable" },
    el("thead", {}, el("tr", {}, heads.map(([text, numeric]) => el("th", { scope: "col", class: numeric ? "n" : null }, text ? el("button", {}, text) : "")))),
    el("tbody", {}, rows)));
}
const number = (value, text) => el("td", { class: "n", "data-v": value }, text === undefined ? String(value) : text);

/* Confusion: a table with numbers, a canvas of many cells, or only the list of the largest cells. */
function openCell([label, predicted, images, shown]) {
  const dialog = $("cell"), correct = label === predicted;
  dialog.querySelector("h3").replaceChildren(name(className(label)), correct ? " predicted correctly" : " predicted as ", correct ? "" : name(className(predicted)), `: ${count(images)}`);
  const order = `${correct ? "lowest" : "highest"} confidence first`;
  dialog.querySelector("p").textContent = !shown.length ? "None of these images is in this page." :
    shown.length < images ? `${shown.length} of ${count(images)} images, the ${order}.` : `The ${order}.`;
  dialog.querySelector(".gallery").replaceChildren(...shown.map((image) => card({ image, predicted }, { predicted: "predicted" })));
  dialog.showModal();
}
function tint(label, predicted, share) {
  return `rgb(var(--${label === predicted ? "good" : "bad"}) / ${(0.08 + 0.82 * Math.sqrt(share)).toFixed(3)})`;
}
function confusionTable(classes, cells) {
  const cellAt = new Map(cells.map((cell) => [cell[0] * classes.length + cell[1], cell]));
  const upright = classes.some((text) => [...text].length > 4) && classes.length > 4;
  const box = (label, predicted) => {
    const cell = cellAt.get(label * classes.length + predicted);
    if (!cell) return el("td", {});
    const part = cell[2] / support(label), td = el("td", {}, el("button", {
      title: `${className(label)} → ${className(predicted)}: ${cell[2]}, ${percent(cell[2], support(label))} of the class`,
      "data-cell": `${label},${predicted}`, onclick: () => openCell(cell) }, String(cell[2])));
    td.style.background = tint(label, predicted, part);
    if (part > 0.3) td.style.color = "#fff";
    return td;
  };
  return [el("p", { class: "side" }, "Rows: true class; columns: predicted. Click a number for its images."),
    el("div", { class: "scroll" }, el("table", { class: "matrix" + (upright ? " upright" : "") + (classes.length <= 5 ? " few" : "") },
    el("thead", {}, el("tr", {}, el("th"), classes.map((text) => el("th", { scope: "col" }, name(text))))),
    el("tbody", {}, classes.map((text, label) => el("tr", {}, el("th", { scope: "row" }, name(text)), classes.map((_, predicted) => box(label, predicted)))))))];
}
function confusionCanvas(classes, cells) {
  const size = Math.max(3, Math.min(16, Math.floor(Math.min(760, innerWidth - 30, $("confusion").clientWidth || 760) / classes.length)));
  const canvas = el("canvas", { class: "fields", width: classes.length * size, height: classes.length * size, role: "img", "aria-label": "confusion matrix; its largest cells are listed below" });
  const style = getComputedStyle(document.documentElement), brush = canvas.getContext("2d");
  const cellAt = new Map(cells.map((cell) => [cell[0] * classes.length + cell[1], cell]));
  brush.fillStyle = style.getPropertyValue("--raised");
  brush.fillRect(0, 0, canvas.width, canvas.height);
  for (const [label, predicted, images] of cells) {
    const alpha = 0.15 + 0.85 * Math.sqrt(images / support(label));
    brush.fillStyle = `rgb(${style.getPropertyValue(label === predicted ? "--good" : "--bad")} / ${alpha})`;
    brush.fillRect(predicted * size, label * size, size, size);
  }
  /* The cell under the pointer, or, as cells are small, the nearest one within 8 pixels that has images. */
  const at = (event) => {
    const row = Math.floor(event.offsetY / size), column = Math.floor(event.offsetX / size), reach = Math.floor(8 / size);
    let best, nearest = Infinity;
    for (let label = row - reach; label <= row + reach; label++) for (let predicted = column - reach; predicted <= column + reach; predicted++) {
      const cell = predicted >= 0 && predicted < classes.length && cellAt.get(label * classes.length + predicted), distance = (label - row) ** 2 + (predicted - column) ** 2;
      if (cell && distance < nearest) [best, nearest] = [cell, distance];
    }
    return best;
  };
  canvas.addEventListener("pointermove", (event) => {
    const cell = at(event);
    if (cell) tip(event, name(className(cell[0])), " → ", name(className(cell[1])), `: ${count(cell[2])}`); else hideTip();
  });
  canvas.addEventListener("pointerleave", hideTip);
  canvas.addEventListener("click", (event) => { const cell = at(event); hideTip(); if (cell) openCell(cell); });
  return [el("p", { class: "side" }, "Rows: true class; columns: predicted, both in the order of the table below. Click a cell for its images."), el("div", { class: "scroll" }, canvas)];
}
function largestConfusions(classes, cells) {
  const wrong = cells.filter((cell) => cell[0] !== cell[1]);
  if (!wrong.length) return [el("p", {}, "No mistakes.")];
  const holder = el("div"), filter = el("input", { type: "search", placeholder: "a class", "aria-label": "show confusions of a class", class: "filter" });
  const list = () => {
    const text = filter.value.toLowerCase();
    const rows = wrong.filter((cell) => !text || classes[cell[0]].toLowerCase().includes(text) || classes[cell[1]].toLowerCase().includes(text)).slice(0, 200);
    holder.replaceChildren(sortable([["true"], ["predicted"], ["images", 1], ["share", 1], [""]], rows.map((cell) => el("tr", {},
      el("td", {}, name(classes[cell[0]])), el("td", {}, name(classes[cell[1]])), number(cell[2], count(cell[2])),
      number(cell[2] / support(cell[0]), percent(cell[2], support(cell[0]))),
      el("td", {}, el("button", { class: "small-button", "data-listed": `${cell[0]},${cell[1]}`, onclick: () => openCell(cell) }, "images"))))));
  };
  filter.addEventListener("input", list);
  list();
  return [el("h3", {}, "The largest confusions"), classes.length > 12 ? el("p", { class: "filter" }, filter) : null, holder];
}
function confusion() {
  const classes = dataset().classes, cells = experiment.confusion_cells;
  document.querySelector(".columns").classList.toggle("broad", classes.length > 16 && classes.length <= MAX_MATRIX);
  const top = classes.length <= MAX_NUMBERED ? confusionTable(classes, cells) : classes.length <= MAX_MATRIX ? confusionCanvas(classes, cells) :
    el("p", { class: "small" }, `${count(classes.length)} classes are too many for a matrix with readable cells; the largest cells are listed.`);
  fill("confusion", top, largestConfusions(classes, cells));
}
function perClass() {
  fill("per-class", sortable([["class"], ["precision", 1], ["recall", 1], ["F1", 1], ["support", 1]], dataset().classes.map((text, place) => {
    const [precision, recall, f1, images] = experiment.per_class[place];
    return el("tr", {}, el("td", {}, name(text)), [precision, recall, f1].map((value) => number(value, value.toFixed(4))), number(images, count(images)));
  })));
}

/* The map: one canvas; the point nearest to the pointer is the one that it shows. */
const colour = (label) => (dataset().classes.length <= PALETTE.length ? PALETTE[label] : `hsl(${(label * 137.5) % 360} 62% 52%)`);
function map() {
  const codeMap = study()?.code_map;
  if (!codeMap) { fill("map-note"); fill("map-body", el("p", {}, "There are no codes for these scores, or too few images for a map.")); return; }
  $("map-note").textContent = `${codeMap.points.length < codeMap.total ? `A sample of ${count(codeMap.points.length)} of the ${count(codeMap.total)} images` : `All ${count(codeMap.total)} images`}, ` +
    `coloured by class: codes of ${codeMap.backbone}, ${codeMap.layer}, reduced to 50 dimensions by PCA, then to two by t-SNE. Large dots are test images, small dots are other images; a ring marks a mistake of ${experiment.name}. Distances between groups far apart mean little.`;
  const canvas = el("canvas", { "aria-label": "map of the codes" }), plot = el("div", { class: "plot" }, canvas);
  const classes = dataset().classes;
  let highlighted = null;
  const highlight = (label) => { highlighted = highlighted === label ? null : label; for (const chip of chips.querySelectorAll("button")) chip.setAttribute("aria-pressed", String(Number(chip.dataset.class) === highlighted)); draw(); };
  const chips = el("div", { class: "chips" });
  if (classes.length <= MAX_CHIPS) chips.append(...classes.map((text, label) => {
    const dot = el("i");
    dot.style.background = colour(label);
    return el("button", { "data-class": label, "aria-pressed": "false", title: text, onclick: () => highlight(label) }, dot, name(text));
  }));
  else {
    const select = el("select", { "aria-label": "highlight a class" }, el("option", { value: "" }, "highlight a class"), classes.map((text, label) => el("option", { value: label }, text)));
    select.addEventListener("change", () => { highlighted = select.value === "" ? null : Number(select.value); draw(); });
    chips.append(select);
  }
  const margin = 14;
  let side = 0;
  const place = ([x, y]) => [margin + x / 1000 * (side - 2 * margin), margin + y / 1000 * (side - 2 * margin)];
  function draw() {
    side = plot.clientWidth || 600;
    const scale = devicePixelRatio || 1, brush = canvas.getContext("2d");
    canvas.width = canvas.height = side * scale;
    brush.scale(scale, scale);
    const ink = getComputedStyle(document.documentElement).getPropertyValue("--ink");
    for (const point of codeMap.points) {
      const [x, y] = place(point), label = labelOf(point[2]), test = splitOf(point[2]) === "test";
      brush.globalAlpha = highlighted !== null && highlighted !== label ? 0.08 : test ? 0.95 : 0.6;
      brush.fillStyle = colour(label);
      brush.beginPath(); brush.arc(x, y, test ? 4 : 2.6, 0, 7); brush.fill();
      if (experiment.mistakes_on_map[point[2]] !== undefined) { brush.strokeStyle = ink; brush.lineWidth = 1.4; brush.beginPath(); brush.arc(x, y, 6, 0, 7); brush.stroke(); }
    }
    brush.globalAlpha = 1;
  }
  function imageUnder(event) {
    let best = null, nearest = 14 ** 2;
    for (const point of codeMap.points) {
      const [x, y] = place(point), distance = (x - event.offsetX) ** 2 + (y - event.offsetY) ** 2;
      if (distance < nearest) [best, nearest] = [point[2], distance];
    }
    return best;
  }
  const hover = (event) => {
    const image = imageUnder(event);
    if (image === null) return hideTip();
    const predicted = experiment.mistakes_on_map[image];
    tip(event, thumbnail(image, true), el("div", {}, el("b", {}, name(className(labelOf(image)))), ", ", splitOf(image), predicted === undefined ? null : [", predicted ", el("b", { class: "other" }, name(className(predicted)))]), name(pathOf(image)));
  };
  canvas.addEventListener("pointermove", hover);
  canvas.addEventListener("pointerdown", hover);
  canvas.addEventListener("pointerleave", hideTip);
  fill("map-body", chips, plot);
  draw();
  redraw = draw;
}
let redraw = () => {};
addEventListener("resize", () => redraw());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { redraw(); confusion(); });

function tip(event, ...children) {
  const box = $("tip");
  box.replaceChildren(...children.flat().filter(Boolean));
  box.hidden = false;
  const { width, height } = box.getBoundingClientRect();
  box.style.left = Math.max(6, Math.min(event.clientX + 16, innerWidth - width - 6)) + "px";
  box.style.top = (event.clientY + 18 + height > innerHeight ? Math.max(6, event.clientY - height - 12) : event.clientY + 18) + "px";
}
function hideTip() { $("tip").hidden = true; }

/* Leakage, labels and outliers. */
function groupCard(numbers, fact) {
  const labels = new Set(numbers.map(labelOf));
  return el("div", { class: "card" }, el("div", { class: "pair" }, numbers.map((image) => el("figure", {}, thumbnail(image), el("figcaption", {},
    splitOf(image), ", ", el("b", { class: labels.size > 1 ? "other" : null }, name(className(labelOf(image)))), el("br"), name(pathOf(image), "path"))))),
    el("div", { class: "pair" }, fact, labels.size > 1 ? el("b", { class: "other" }, "labels differ") : null));
}
const shownOf = (shown, all) => (shown < all ? `, the first ${shown} are shown` : "");
function leakage() {
  const leaks = study()?.leaks;
  if (!leaks) { fill("leakage-body", el("p", {}, "There are no codes for these scores to compare the images by.")); return; }
  const part = leaks.checked < leaks.total ? `${count(leaks.checked)} of the ${count(leaks.total)} images outside the training split` : `all ${count(leaks.total)} images outside the training split that have no exact copy`;
  fill("leakage-body",
    el("h3", {}, `The same bytes in several splits: ${leaks.copies_total || "none"}`, shownOf(leaks.copies.length, leaks.copies_total)),
    gallery(leaks.copies.map((group) => groupCard(group, "same SHA-256"))),
    el("h3", {}, `Nearly the same codes in two splits: ${leaks.near_duplicates_total || "none"}`, shownOf(leaks.near_duplicates.length, leaks.near_duplicates_total)),
    el("p", { class: "small" }, `For ${part}, by the codes of ${study().layer}: pairs at a distance (1 − cosine) of at most ${leaks.distance_limits.join(" or ") || "–"}, a fiftieth of the median distance between two images.`),
    gallery(leaks.near_duplicates.map(([image, other, distance]) => groupCard([image, other], `distance ${distance}`))));
}
function labels() {
  const errors = study()?.label_errors;
  if (!errors) { fill("labels-body", el("p", {}, "There are no codes for these scores to predict labels from.")); return; }
  fill("labels-body",
    errors.conflicting_duplicates_total ? [el("h3", {}, `The same bytes with two labels: ${errors.conflicting_duplicates_total}`, shownOf(errors.conflicting_duplicates.length, errors.conflicting_duplicates_total)),
      gallery(errors.conflicting_duplicates.map((group) => groupCard(group, "same SHA-256")))] : null,
    el("h3", {}, `Training labels that the other images contradict: ${count(errors.suspected_total)} of ${count(errors.n_train)}`, shownOf(errors.suspected.length, errors.suspected_total)),
    el("p", { class: "small" }, `Each training image is predicted by a least-squares classifier trained on all the others (leave-one-out) from the codes of ${study().layer}; the contradictions of largest margin come first. Most are difficult images, some are wrong labels.`),
    gallery(errors.suspected.map((item) => card(item, { predicted: "predicted", confidence: "margin" }))));
}

function outliers() {
  const found = study()?.outliers;
  if (!found) { fill("outliers-body", el("p", {}, "There are no codes for these scores to compare the images by.")); return; }
  const part = found.checked < found.total ? `a sample of ${count(found.checked)} of the ${count(found.total)} images` : `all ${count(found.total)} images`;
  fill("outliers-body",
    found.rare_types.length ? [el("h3", {}, "Files of a rare type"), gallery(found.rare_types.map((image) => card({ image })))] : null,
    el("h3", {}, "Unlike all training images"),
    el("p", { class: "small" }, `Of ${part}, those whose nearest training image is farthest away, by the codes of ${study().layer}: files that are there by mistake, placeholders, rare views.`),
    gallery(found.images.map((item) => card(item))));
}

const CONFIDENCE = { probability: "probability", margin: "margin over the second class", score: "score of the predicted class" };
function pick(place) {
  experiment = data.experiments[place];
  $("picker").value = place;
  document.querySelectorAll("tr.picked").forEach((row) => row.classList.remove("picked"));
  document.querySelector(`[data-pick="${place}"]`).closest("tr").classList.add("picked");
  fill("scores", `Top-1 ${experiment.top1.toFixed(4)} (95% ${experiment.top1_low.toFixed(4)}–${experiment.top1_high.toFixed(4)}) on ${count(experiment.n)} test images of ${count(experiment.classes)} classes; ${count(experiment.mistakes_total)} mistakes.`,
    experiment.note ? el("span", { class: "note" }, name(experiment.note)) : null);
  confusion();
  perClass();
  predictions("mistakes", experiment.mistakes, "The mistakes with the highest");
  predictions("least-certain", experiment.least_certain, "The predictions with the lowest");
  map();
  leakage();
  labels();
  outliers();
}
function predictions(id, items, text) {
  const texts = { predicted: "predicted", confidence: experiment.confidence_kind };
  $(`${id}-note`).textContent = items.length ? `${text} ${CONFIDENCE[experiment.confidence_kind]}.` : "None.";
  fill(id, gallery(items.map((item) => card(item, texts))));
}
document.addEventListener("click", (event) => {
  const sorter = event.target.closest(".sortable th button"), picker = event.target.closest("[data-pick]");
  if (sorter) sortBy(sorter);
  if (picker) { pick(Number(picker.dataset.pick)); $("experiment").scrollIntoView(); }
  if (event.target === $("cell")) $("cell").close();
});
$("picker").addEventListener("change", (event) => pick(Number(event.target.value)));
addEventListener("beforeprint", () => {
  redraw();
  document.querySelectorAll("[data-thumb]").forEach(show);
  document.querySelectorAll("details").forEach((details) => { details.open = true; });
});
pick(0);
