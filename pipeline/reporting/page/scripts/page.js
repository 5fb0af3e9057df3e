/* The page as a whole: which experiment is shown, and what clicks do. */
function fillLists(nodes, lists, kind, of) {
  for (const node of nodes) fillList(node, lists[node.dataset.list], kind, of);
}
function pick(place) {
  const other = !experiment || experiment.dataset !== views[place].dataset;
  experiment = views[place];
  $("picker").value = place;
  for (const row of document.querySelectorAll(".experiments tbody tr")) row.classList.toggle("picked", row.querySelector("[data-pick]").dataset.pick === String(place));
  if ($("mistakes")) $("mistakes").hidden = !experiment.per_class;
  if (experiment.per_class) showMistakes();
  map();
  if (other) showDataset();
}
function showMistakes() {
  const { mistakes } = experiment.lists, kind = experiment.confidence_kind;
  fill($("scores"), el("b", {}, name(experiment.name)), `: ${plural(mistakes.found, "mistake")} among ${count(experiment.images)} test images`,
    mistakes.found ? `, the highest ${CONFIDENCE[kind]} first${mistakes.cards.length < mistakes.found ? `; the first ${count(mistakes.cards.length)} are listed` : ""}.` : ".",
    experiment.note ? el("span", { class: "note" }, name(experiment.note)) : null);
  fillLists(document.querySelectorAll("#mistakes [data-list]"), experiment.lists, kind, dataset());
  confusion();
  perClass();
}
/* Of a section with a block for each dataset, the block of the picked one; without one the section is hidden. */
function showDataset() {
  for (const block of document.querySelectorAll("[data-dataset]")) {
    block.hidden = block.dataset.dataset !== experiment.dataset;
    if (!block.hidden) fillLists(block.querySelectorAll("[data-list]"), dataset().lists, "margin", dataset());
  }
  for (const section of document.querySelectorAll("section:has([data-dataset])")) section.hidden = !section.querySelector("[data-dataset]:not([hidden])");
  for (const link of document.querySelectorAll("nav a")) link.hidden = document.querySelector(link.hash).hidden;
}
document.addEventListener("click", (event) => {
  const at = (selector) => event.target.closest(selector);
  const sorter = at(".sortable th button"), picker = at("[data-pick]"), frame = at("button.thumb"), copier = at("[data-copy]");
  if (sorter) sortBy(sorter);
  if (picker) { pick(Number(picker.dataset.pick)); $("mistakes").scrollIntoView(); }
  if (at("[data-csv]")) downloadExperiments();
  if (frame) enlarge(frame);
  if (copier) copy(copier);
  if (event.target.matches("dialog")) event.target.close();
});
async function copy(copier) {
  const code = copier.parentNode.querySelector("code");
  getSelection().selectAllChildren(code);
  try { await navigator.clipboard.writeText(code.textContent); copier.textContent = "copied"; } catch { copier.textContent = "selected: press Ctrl+C"; }
}
$("picker").addEventListener("change", (event) => pick(Number(event.target.value)));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { redraw(); if (experiment?.per_class) confusion(); });
addEventListener("beforeprint", () => {
  redraw();
  for (const details of document.querySelectorAll("section:not(#provenance) details")) details.open = true;
  document.querySelectorAll("[data-thumb]").forEach(show);
});
for (const table of document.querySelectorAll("table.short")) {
  const all = button(`show all ${table.tBodies[0].rows.length}`, { onclick: () => { table.classList.remove("short"); all.remove(); } });
  table.parentNode.after(el("p", { class: "tools" }, all));
}
for (const block of document.querySelectorAll("[data-multi-label]")) {
  const of = data.multi_label[block.dataset.multiLabel];
  fillLists(block.querySelectorAll("[data-list]"), of.lists, "", of);
}
if (views.length) pick(0);
