/* Confusions: a table with numbers, a canvas of many cells, or only the list of the largest cells; and each class. */
const MAX_NUMBERED = 30, MAX_MATRIX = 200, MAX_CONFUSIONS = 200;
const support = (label) => experiment.per_class[label][3];
const share = (images, label) => (support(label) ? percent(images / support(label), 0) : "–");

function openCell([label, predicted, images, shown]) {
  const dialog = $("cell"), correct = label === predicted;
  fill(dialog.querySelector("h3"), name(className(label)), correct ? " predicted correctly" : " predicted as ", correct ? "" : name(className(predicted)), `: ${count(images)}`);
  const order = `${correct ? "lowest" : "highest"} confidence first`;
  dialog.querySelector("p").textContent = !shown.length ? "None of these images is in this page." :
    shown.length < images ? `${shown.length} of ${count(images)} images, the ${order}.` : `The ${order}.`;
  fill(dialog.querySelector(".gallery"), shown.map((image) => card({ images: [image], predicted })));
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
    if (!cell) return el("td");
    const part = cell[2] / support(label), td = el("td");
    td.style.background = tint(label, predicted, part);
    if (part > 0.6) td.style.color = "#fff";
    td.append(el("button", { type: "button", "data-cell": `${label},${predicted}`, title: `${classes[label]} → ${classes[predicted]}: ${cell[2]} of ${support(label)}`, onclick: () => openCell(cell) }, count(cell[2])));
    return td;
  };
  return [el("p", { class: "side" }, "Rows: label; columns: predicted. Click a cell for its images."), el("div", { class: "scroll" }, el("table", { class: "matrix" + (upright ? " upright" : "") + (classes.length <= 5 ? " few" : "") },
    el("thead", {}, el("tr", {}, el("th"), classes.map((text) => el("th", { scope: "col" }, name(text))))),
    el("tbody", {}, classes.map((text, label) => el("tr", {}, el("th", { scope: "row" }, name(text)), classes.map((_, predicted) => box(label, predicted)))))))];
}
function confusionCanvas(classes, cells) {
  const size = Math.max(3, Math.min(16, Math.floor(Math.min(760, innerWidth - 30, $("confusion").clientWidth || 760) / classes.length)));
  const canvas = el("canvas", { class: "fields", width: classes.length * size, height: classes.length * size, role: "img", "aria-label": "confusion matrix; its largest cells are listed below" });
  const brush = canvas.getContext("2d");
  const cellAt = new Map(cells.map((cell) => [cell[0] * classes.length + cell[1], cell]));
  brush.fillStyle = colourOf("--raised");
  brush.fillRect(0, 0, canvas.width, canvas.height);
  for (const [label, predicted, images] of cells) {
    const alpha = 0.15 + 0.85 * Math.sqrt(images / support(label));
    brush.fillStyle = `rgb(${colourOf(label === predicted ? "--good" : "--bad")} / ${alpha})`;
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
    if (cell) tip(event.clientX, event.clientY, name(className(cell[0])), " → ", name(className(cell[1])), `: ${count(cell[2])}`); else hideTip();
  });
  canvas.addEventListener("pointerleave", hideTip);
  canvas.addEventListener("click", (event) => { const cell = at(event); hideTip(); if (cell) openCell(cell); });
  return [el("p", { class: "side" }, "Rows: label; columns: predicted, both in the order of the table below. Click a cell for its images."), el("div", { class: "scroll" }, canvas)];
}
function largestConfusions(classes, cells) {
  const wrong = cells.filter((cell) => cell[0] !== cell[1]);
  if (!wrong.length) return [el("p", {}, "No mistakes.")];
  const holder = el("div"), filter = el("input", { type: "search", placeholder: "a class", "aria-label": "show confusions of a class", class: "filter" });
  const list = () => {
    const text = filter.value.toLowerCase();
    const rows = wrong.filter((cell) => !text || classes[cell[0]].toLowerCase().includes(text) || classes[cell[1]].toLowerCase().includes(text)).slice(0, MAX_CONFUSIONS);
    fill(holder, sortable([["label"], ["predicted"], ["images", 1], ["share", 1], [""]], rows.map((cell) => el("tr", {},
      el("td", {}, name(classes[cell[0]])), el("td", {}, name(classes[cell[1]])), number(cell[2], count(cell[2])),
      number(cell[2] / support(cell[0]), share(cell[2], cell[0])),
      el("td", {}, button("images", { "data-listed": `${cell[0]},${cell[1]}`, onclick: () => openCell(cell) }))))));
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
  fill($("confusion"), top, largestConfusions(classes, cells));
}
function perClass() {
  fill($("per-class"), sortable([["class"], ["precision", 1], ["recall", 1], ["F1", 1], ["n", 1]], dataset().classes.map((text, place) => {
    const [precision, recall, f1, images] = experiment.per_class[place];
    return el("tr", {}, el("td", {}, name(text)), [precision, recall, f1].map((value) => number(value, percent(value, 0))), number(images, count(images)));
  })));
}
