"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const NUMBERED = 30, CELLS = 200, CHIPS = 24, CARDS = 8;
const PALETTE = ["#3b7dd8", "#e0782f", "#2fa36b", "#c64fa8", "#b39a1f", "#22a5b8", "#d34a4a", "#8a6ae0", "#7d8794", "#a0673a"];
let picked = data.experiments[0];

const $ = (id) => document.getElementById(id);
const dataset = () => data.datasets[picked.dataset];
const className = (number) => dataset().classes[number];
const count = (number) => number.toLocaleString("en");
const share = (number, of) => (of ? (100 * number / of).toFixed(1) + "%" : "–");

/* All text goes in as text nodes, never as HTML: names of files and classes are anybody's. */
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
  image.src = "data:image/jpeg;base64," + data.thumbs[frame.dataset.thumb];
  frame.append(image);
}
function thumb(number, now) {
  if (!data.thumbs[number]) return el("span", { class: "thumb" }, "no thumbnail");
  const frame = el("span", { class: "thumb", "data-thumb": number });
  if (now) show(frame); else seen.observe(frame);
  return frame;
}
const pathOf = (number) => data.images[number][0];
const labelOf = (number) => data.images[number][1];
const splitOf = (number) => data.images[number][2];

function neighbours(near, label) {
  if (!near.length) return null;
  return el("div", { class: "near" }, el("span", {}, "nearest training images, distance"), near.map(([number, far]) =>
    el("figure", { title: `${pathOf(number)}\n${className(labelOf(number))}, distance ${far}` }, thumb(number),
      el("figcaption", { class: labelOf(number) === label ? null : "other" }, name(className(labelOf(number))), el("br"), far.toPrecision(2)))));
}
function card(item, said) {
  const label = labelOf(item.image);
  return el("div", { class: "card" }, thumb(item.image), el("div", { class: "words" },
    el("div", {}, splitOf(item.image) === "test" ? "label " : `${splitOf(item.image)}, label `, el("b", {}, name(className(label)))),
    item.said === undefined ? null : el("div", {}, said, " ", el("b", { class: item.said === label ? null : "other" }, name(className(item.said)))),
    item.sure === undefined ? null : el("div", {}, item.sureness || "", " ", String(item.sure)),
    name(pathOf(item.image), "path")), neighbours(item.near || [], label));
}

/* Of a long gallery the first cards are shown until all are asked for; on paper all of them are. */
function gallery(cards) {
  const box = el("div", { class: cards.length > CARDS ? "gallery short" : "gallery" }, cards);
  if (cards.length <= CARDS) return [box];
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

/* Confusion: cells with numbers, a picture of many cells, or only the list. */
function openCell([truth, said, images, shown]) {
  const dialog = $("behind"), same = truth === said;
  dialog.querySelector("h3").replaceChildren(name(className(truth)), same ? " predicted right" : " predicted as ", same ? "" : name(className(said)), `: ${count(images)}`);
  dialog.querySelector("p").textContent = !shown.length ? "None of these images is kept in this page." :
    shown.length < images ? `Shown are ${shown.length} of ${count(images)}, the ${same ? "least" : "most"} certain first.` : `The ${same ? "least" : "most"} certain first.`;
  dialog.querySelector(".gallery").replaceChildren(...shown.map((image) => card({ image, said }, "predicted")));
  dialog.showModal();
}
function tint(truth, said, part) {
  return `rgb(var(--${truth === said ? "good" : "bad"}) / ${(0.08 + 0.82 * Math.sqrt(part)).toFixed(3)})`;
}
function numbered(classes, cells) {
  const found = new Map(cells.map((cell) => [cell[0] * classes.length + cell[1], cell]));
  const upright = classes.some((text) => [...text].length > 4) && classes.length > 4;
  const box = (truth, said) => {
    const cell = found.get(truth * classes.length + said);
    if (!cell) return el("td", {});
    const part = cell[2] / picked.per_class[truth][3], td = el("td", {}, el("button", {
      title: `${className(truth)} → ${className(said)}: ${cell[2]}, ${share(cell[2], picked.per_class[truth][3])} of the class`,
      "data-cell": `${truth},${said}`, onclick: () => openCell(cell) }, String(cell[2])));
    td.style.background = tint(truth, said, part);
    if (part > 0.3) td.style.color = "#fff";
    return td;
  };
  return [el("p", { class: "side" }, "Rows: true class; columns: predicted. Click a number for its images."),
    el("div", { class: "scroll" }, el("table", { class: "matrix" + (upright ? " upright" : "") + (classes.length <= 5 ? " few" : "") },
    el("thead", {}, el("tr", {}, el("th"), classes.map((text) => el("th", { scope: "col" }, name(text))))),
    el("tbody", {}, classes.map((text, truth) => el("tr", {}, el("th", { scope: "row" }, name(text)), classes.map((_, said) => box(truth, said)))))))];
}
function painted(classes, cells) {
  const size = Math.max(3, Math.min(16, Math.floor(Math.min(760, innerWidth - 30, $("confusion").clientWidth || 760) / classes.length)));
  const canvas = el("canvas", { class: "fields", width: classes.length * size, height: classes.length * size, role: "img", "aria-label": "confusion matrix; its fullest cells are listed below" });
  const style = getComputedStyle(document.documentElement), brush = canvas.getContext("2d");
  const found = new Map(cells.map((cell) => [cell[0] * classes.length + cell[1], cell]));
  brush.fillStyle = style.getPropertyValue("--raised");
  brush.fillRect(0, 0, canvas.width, canvas.height);
  for (const [truth, said, images] of cells) {
    const alpha = 0.15 + 0.85 * Math.sqrt(images / picked.per_class[truth][3]);
    brush.fillStyle = `rgb(${style.getPropertyValue(truth === said ? "--good" : "--bad")} / ${alpha})`;
    brush.fillRect(said * size, truth * size, size, size);
  }
  /* The cell under the pointer; as cells are small, else the nearest one within 8 pixels that holds images. */
  const at = (event) => {
    const row = Math.floor(event.offsetY / size), column = Math.floor(event.offsetX / size), reach = Math.floor(8 / size);
    let best, nearest = Infinity;
    for (let truth = row - reach; truth <= row + reach; truth++) for (let said = column - reach; said <= column + reach; said++) {
      const cell = said >= 0 && said < classes.length && found.get(truth * classes.length + said), far = (truth - row) ** 2 + (said - column) ** 2;
      if (cell && far < nearest) [best, nearest] = [cell, far];
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
function fullest(classes, cells) {
  const wrong = cells.filter((cell) => cell[0] !== cell[1]);
  if (!wrong.length) return [el("p", {}, "No mistakes.")];
  const holder = el("div"), filter = el("input", { type: "search", placeholder: "a class", "aria-label": "show confusions of a class", class: "filter" });
  const list = () => {
    const text = filter.value.toLowerCase();
    const rows = wrong.filter((cell) => !text || classes[cell[0]].toLowerCase().includes(text) || classes[cell[1]].toLowerCase().includes(text)).slice(0, 200);
    holder.replaceChildren(sortable([["true"], ["predicted"], ["images", 1], ["share", 1], [""]], rows.map((cell) => el("tr", {},
      el("td", {}, name(classes[cell[0]])), el("td", {}, name(classes[cell[1]])), number(cell[2], count(cell[2])),
      number(cell[2] / picked.per_class[cell[0]][3], share(cell[2], picked.per_class[cell[0]][3])),
      el("td", {}, el("button", { class: "small-button", "data-listed": `${cell[0]},${cell[1]}`, onclick: () => openCell(cell) }, "images"))))));
  };
  filter.addEventListener("input", list);
  list();
  return [el("h3", {}, "The fullest confusions"), classes.length > 12 ? el("p", { class: "filter" }, filter) : null, holder];
}
function confusion() {
  const classes = dataset().classes, cells = picked.cells;
  document.querySelector(".columns").classList.toggle("broad", classes.length > 16 && classes.length <= CELLS);
  const top = classes.length <= NUMBERED ? numbered(classes, cells) : classes.length <= CELLS ? painted(classes, cells) :
    el("p", { class: "small" }, `${count(classes.length)} classes are too many for a matrix with readable cells: these are the fullest of its cells.`);
  fill("confusion", top, fullest(classes, cells));
}
function perClass() {
  fill("per-class", sortable([["class"], ["precision", 1], ["recall", 1], ["F1", 1], ["support", 1]], dataset().classes.map((text, place) => {
    const [precision, recall, f1, support] = picked.per_class[place];
    return el("tr", {}, el("td", {}, name(text)), [precision, recall, f1].map((value) => number(value, value.toFixed(4))), number(support, count(support)));
  })));
}

/* The map: one canvas; a grid finds the point under the pointer. */
const colour = (label) => (dataset().classes.length <= PALETTE.length ? PALETTE[label] : `hsl(${(label * 137.5) % 360} 62% 52%)`);
function map() {
  const flat = dataset().map;
  if (!flat) { fill("map-note"); fill("map-body", el("p", {}, "There are no codes beside these scores, or too few images for a map.")); return; }
  $("map-note").textContent = `${flat.points.length < flat.of ? `A sample of ${count(flat.points.length)} of the ${count(flat.of)} images` : `All ${count(flat.of)} images`}, ` +
    `coloured by class: codes of ${flat.backbone}, ${flat.layer}, reduced by PCA to 50 dimensions, then by t-SNE to two. Large dots are test images, small ones training images; a ring marks what ${picked.name} gets wrong. Distances between far groups mean little.`;
  const canvas = el("canvas", { "aria-label": "map of the codes" }), plot = el("div", { class: "plot" }, canvas);
  const classes = dataset().classes;
  let lit = null;
  const light = (label) => { lit = lit === label ? null : label; for (const chip of chips.querySelectorAll("button")) chip.setAttribute("aria-pressed", String(Number(chip.dataset.class) === lit)); draw(); };
  const chips = el("div", { class: "chips" });
  if (classes.length <= CHIPS) chips.append(...classes.map((text, label) => {
    const dot = el("i");
    dot.style.background = colour(label);
    return el("button", { "data-class": label, "aria-pressed": "false", title: text, onclick: () => light(label) }, dot, name(text));
  }));
  else {
    const select = el("select", { "aria-label": "highlight a class" }, el("option", { value: "" }, "highlight a class"), classes.map((text, label) => el("option", { value: label }, text)));
    select.addEventListener("change", () => { lit = select.value === "" ? null : Number(select.value); draw(); });
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
    for (const point of flat.points) {
      const [x, y] = place(point), label = labelOf(point[2]), test = splitOf(point[2]) === "test";
      brush.globalAlpha = lit !== null && lit !== label ? 0.08 : test ? 0.95 : 0.6;
      brush.fillStyle = colour(label);
      brush.beginPath(); brush.arc(x, y, test ? 4 : 2.6, 0, 7); brush.fill();
      if (picked.wrong[point[2]] !== undefined) { brush.strokeStyle = ink; brush.lineWidth = 1.4; brush.beginPath(); brush.arc(x, y, 6, 0, 7); brush.stroke(); }
    }
    brush.globalAlpha = 1;
  }
  function under(event) {
    let best = null, nearest = 14 ** 2;
    for (const point of flat.points) {
      const [x, y] = place(point), far = (x - event.offsetX) ** 2 + (y - event.offsetY) ** 2;
      if (far < nearest) [best, nearest] = [point[2], far];
    }
    return best;
  }
  const hover = (event) => {
    const image = under(event);
    if (image === null) return hideTip();
    const said = picked.wrong[image];
    tip(event, thumb(image, true), el("div", {}, el("b", {}, name(className(labelOf(image)))), ", ", splitOf(image), said === undefined ? null : [", predicted ", el("b", { class: "other" }, name(className(said)))]), name(pathOf(image)));
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

/* Leakage and labels. */
function together(numbers, facts) {
  const labels = new Set(numbers.map(labelOf));
  return el("div", { class: "card" }, el("div", { class: "pair" }, numbers.map((image) => el("figure", {}, thumb(image), el("figcaption", {},
    splitOf(image), ", ", el("b", { class: labels.size > 1 ? "other" : null }, name(className(labelOf(image)))), el("br"), name(pathOf(image), "path"))))),
    el("div", { class: "pair" }, facts, labels.size > 1 ? el("b", { class: "other" }, "labels differ") : null));
}
const more = (shown, all) => (shown < all ? `, the first ${shown} of them here` : "");
function leakage() {
  const leaks = dataset().leaks;
  if (!leaks) { fill("leakage-body", el("p", {}, "There are no codes beside these scores to compare images by.")); return; }
  const part = leaks.checked < leaks.of ? `${count(leaks.checked)} of the ${count(leaks.of)} images outside the training split` : `all ${count(leaks.of)} images outside the training split that have no exact copy`;
  fill("leakage-body",
    el("h3", {}, `The same bytes in several splits: ${leaks.copies_total || "none"}`, more(leaks.copies.length, leaks.copies_total)),
    gallery(leaks.copies.map((group) => together(group, "same SHA-256"))),
    el("h3", {}, `Nearly the same codes in two splits: ${leaks.pairs_total || "none"}`, more(leaks.pairs.length, leaks.pairs_total)),
    el("p", { class: "small" }, `Sought for ${part}, by the codes of ${dataset().layer}: pairs at a distance (1 − cosine) of at most ${leaks.limit.join(" or ") || "–"}, a fiftieth of the median between two images.`),
    gallery(leaks.pairs.map(([one, other, far]) => together([one, other], `distance ${far}`))));
}
function labels() {
  const found = dataset().labels;
  if (!found) { fill("labels-body", el("p", {}, "There are no codes beside these scores to predict labels from.")); return; }
  fill("labels-body",
    found.twins_total ? [el("h3", {}, `The same bytes under two labels: ${found.twins_total}`, more(found.twins.length, found.twins_total)),
      gallery(found.twins.map((group) => together(group, "same SHA-256")))] : null,
    el("h3", {}, `Training labels that the other images contradict: ${count(found.total)} of ${count(found.of)}`, more(found.items.length, found.total)),
    el("p", { class: "small" }, `Each training image is predicted by a least-squares classifier trained on all the others (leave-one-out) from the codes of ${dataset().layer}; the most decided contradictions come first. Most are hard images, some are wrong labels.`),
    gallery(found.items.map((item) => card({ ...item, sureness: "ahead by" }, "the others say"))));
}

function odd() {
  const found = dataset().odd;
  if (!found) { fill("odd-body", el("p", {}, "There are no codes beside these scores to compare images by.")); return; }
  const part = found.checked < found.of ? `a sample of ${count(found.checked)} of the ${count(found.of)} images` : `all ${count(found.of)} images`;
  fill("odd-body",
    found.types.length ? [el("h3", {}, "Files of a rare type"), gallery(found.types.map((image) => card({ image })))] : null,
    el("h3", {}, "Like no training image"),
    el("p", { class: "small" }, `Of ${part}, those whose nearest training image is farthest, by the codes of ${dataset().layer}: files that got in by mistake, placeholders, rare views.`),
    gallery(found.items.map((item) => card(item))));
}

const MEASURES = { probability: "probability", lead: "margin ahead of the runner-up", margin: "margin" };
function pick(place) {
  picked = data.experiments[place];
  $("picker").value = place;
  document.querySelectorAll("tr.picked").forEach((row) => row.classList.remove("picked"));
  document.querySelector(`[data-pick="${place}"]`).closest("tr").classList.add("picked");
  fill("said", `Top-1 ${picked.top1.toFixed(4)} (95% ${picked.top1_low.toFixed(4)}–${picked.top1_high.toFixed(4)}) on ${count(picked.n)} test images of ${count(picked.classes)} classes; ${count(picked.wrong_total)} mistakes.`,
    picked.note ? el("span", { class: "note" }, name(picked.note)) : null);
  confusion();
  perClass();
  for (const [id, said] of [["mistakes", "The mistakes"], ["doubts", "The predictions"]]) {
    $(`${id}-note`).textContent = picked[id].length ? `${said} with the ${id === "mistakes" ? "highest" : "lowest"} ${MEASURES[picked.measure]}.` : "None.";
    fill(id, gallery(picked[id].map((item) => card({ ...item, sureness: picked.measure === "lead" ? "ahead by" : picked.measure }, "predicted"))));
  }
  map();
  leakage();
  labels();
  odd();
}
document.addEventListener("click", (event) => {
  const sorter = event.target.closest(".sortable th button"), picker = event.target.closest("[data-pick]");
  if (sorter) sortBy(sorter);
  if (picker) { pick(Number(picker.dataset.pick)); $("closer").scrollIntoView(); }
  if (event.target === $("behind")) $("behind").close();
});
$("picker").addEventListener("change", (event) => pick(Number(event.target.value)));
addEventListener("beforeprint", () => {
  redraw();
  document.querySelectorAll("[data-thumb]").forEach(show);
  document.querySelectorAll("details").forEach((one) => { one.open = true; });
});
pick(0);
