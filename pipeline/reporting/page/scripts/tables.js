/* Tables that a click on a heading sorts, and CSV files. */
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
const number = (value, text) => el("td", { class: "n", "data-v": value }, text);

/* A text that a spreadsheet would take for a formula gets an apostrophe; figures stay figures. */
function csvCell(value) {
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r\n＝＋－＠]/.test(value ?? "") ? `'${value}` : value ?? "";
  return /[",\n\r;]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
/* Columns without any value are left out. */
function csvText(columns, rows) {
  const kept = columns.map((_, place) => place).filter((place) => rows.some((row) => row[place] !== undefined && row[place] !== null));
  return [columns, ...rows].map((row) => kept.map((place) => csvCell(row[place])).join(",")).join("\r\n") + "\r\n";
}
function download(file, text) {
  const link = el("a", { href: URL.createObjectURL(new Blob(["\ufeff", text], { type: "text/csv" })), download: file });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
function downloadList(listed, cards, kind, { name, folder, classes }) {
  const groups = cards.some((item) => item.images.length > 1), ranks = [...Array(LISTED_NEAREST).keys()];
  const columns = ["group", "path", "label", "split", "predicted", "wrong labels", "missed labels", kind, "distance",
    ...ranks.flatMap((rank) => [`nearest image ${rank + 1}`, `distance to it ${rank + 1}`])];
  const named = (labels) => labels?.map((label) => classes[label]).join(";");
  const rows = cards.flatMap((item, place) => item.images.map((image) => [groups ? place + 1 : undefined, folder + pathOf(image), classes[labelOf(image)], splitOf(image),
    classes[item.predicted], named(item.wrong), named(item.missed), item.confidence, item.distance,
    ...ranks.flatMap((rank) => { const [near, distance] = item.nearest?.[rank] ?? []; return [near === undefined ? near : folder + pathOf(near), distance]; })]));
  download(`${name.replace(/[^\p{L}\p{N}._-]+/gu, "_")}-${listed}.csv`, csvText(columns, rows));
}
function downloadExperiments() {
  const columns = ["dataset", "backbone", "layer", "model", "top1", "top1_low", "top1_high", "top5", "balanced_accuracy", "n", "held_out_accuracy", "held_out_standard_deviation", "p", "differs"];
  const rows = data.experiments.map((row) => [row.dataset, row.backbone, row.layer, row.model, row.top1, row.top1_low, row.top1_high, row.top5, row.balanced_accuracy, row.n,
    row.validation?.accuracy, row.validation?.deviation, row.comparison.p, row.comparison.differs === null ? null : String(row.comparison.differs)]);
  download("experiments.csv", csvText(columns, rows));
}
