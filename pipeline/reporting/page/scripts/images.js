/* Images: thumbnails, the dialog that enlarges them, cards, and lists of cards. */
const SHOWN_CARDS = 8, CLUSTER_IMAGES = 12, LISTED_NEAREST = 5;
const CONFIDENCE = { probability: "probability", margin: "margin over the second class", score: "score of the predicted class" };

/* Thumbnails are decoded when they come into view. */
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) show(entry.target);
}, { rootMargin: "300px" });

function show(frame) {
  seen.unobserve(frame);
  if (!frame.firstChild) frame.append(picture(Number(frame.dataset.thumb)));
}
const described = (image) => (labelOf(image) < 0 ? pathOf(image) : `${className(labelOf(image))}: ${pathOf(image)}`);
function picture(image) {
  const node = el("img", { alt: described(image) });
  node.onload = () => node.classList.toggle("tiny", Math.max(node.naturalWidth, node.naturalHeight) <= 32);
  node.src = "data:image/jpeg;base64," + data.thumbnails[image];
  return node;
}
function thumbnail(image, now) {
  if (!data.thumbnails[image]) return el("span", { class: "thumb" }, "no thumbnail");
  const frame = el("button", { class: "thumb", type: "button", "data-thumb": image, "aria-label": `enlarge ${pathOf(image)}` });
  if (now) show(frame); else seen.observe(frame);
  return frame;
}

/* The dialog that enlarges an image; arrow keys go to the image before or after it in the same list. */
let enlarged = null;
function enlarge(frame) {
  const image = Number(frame.dataset.thumb), label = labelOf(image), block = frame.closest("[data-multi-label]");
  const card = frame.closest(".near") ? null : frame.closest("[data-predicted]");
  const predicted = card ? Number(card.dataset.predicted) : experiment?.mistakes_on_map[image];
  enlarged = frame;
  fill($("large").querySelector(".large-image"), picture(image));
  fill($("large").querySelector(".words"), el("p", {}, label < 0 ? null : [el("b", {}, name(className(label))), ", "], splitOf(image),
    predicted === undefined || predicted === label ? null : [", predicted ", el("b", { class: "other" }, name(className(predicted)))]),
  el("p", { class: "path" }, name((block ? data.multi_label[block.dataset.multiLabel] : dataset()).folder + pathOf(image))));
  if (!$("large").open) $("large").showModal();
}
function enlargeNeighbour(step) {
  const list = enlarged.closest(".near, .gallery, .thumbs"), frames = [...list.querySelectorAll("button.thumb")].filter((frame) => frame.closest(".near, .gallery, .thumbs") === list);
  const next = frames[frames.indexOf(enlarged) + step];
  if (next) enlarge(next);
}
$("large").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (step) { event.preventDefault(); enlargeNeighbour(step); }
});

function neighbours(nearest, label) {
  if (!nearest?.length) return null;
  const kind = nearest.every(([image]) => splitOf(image) === "train") ? "nearest training images" : "nearest images";
  return el("div", { class: "near" }, el("span", {}, `${kind}, distance`), nearest.map(([image, distance]) => {
    const other = labelOf(image);
    return el("figure", { title: `${described(image)}, distance ${distance}` }, thumbnail(image),
      el("figcaption", { class: label < 0 || other === label ? null : "other" }, other < 0 ? null : [name(className(other)), el("br")], distance.toPrecision(2)));
  }));
}
/* kind: what the card's confidence is; classes: of the dataset. */
function card(item, kind, classes) {
  if (item.cluster) return clusterCard(item);
  if (item.images.length > 1) return groupCard(item);
  const [image] = item.images, label = labelOf(image);
  return el("div", { class: "card", "data-predicted": item.predicted }, thumbnail(image), el("div", { class: "words" },
    item.missed ? labelMistakes(item, classes) : [
      item.predicted === undefined ? null : el("div", {}, el("b", { class: item.predicted === label ? null : "other" }, name(className(item.predicted))), " predicted"),
      label < 0 ? (dataset().classes.length ? el("div", {}, "no label") : null) : el("div", {}, el("b", {}, name(className(label))), splitOf(image) === "test" ? " is the label" : ` is the label, ${splitOf(image)}`)],
    item.confidence === undefined ? null : el("div", { class: "soft" }, `${kind} ${item.confidence}`),
    name(pathOf(image), "path")), neighbours(item.nearest, label));
}
function labelMistakes({ missed, wrong }, classes) {
  const line = (labels, text) => (labels.length ? el("div", {}, labels.flatMap((label, place) => [place ? ", " : "", el("b", {}, name(classes[label]))]), text) : null);
  return [line(wrong, wrong.length > 1 ? " are wrong" : " is wrong"), line(missed, missed.length > 1 ? " are missed" : " is missed")];
}
function groupCard(item) {
  const differ = new Set(item.images.map(labelOf).filter((label) => label >= 0)).size > 1;
  return el("div", { class: "card" }, el("div", { class: "pair" }, item.images.map((image) => el("figure", {}, thumbnail(image), el("figcaption", {},
    splitOf(image), labelOf(image) < 0 ? null : [", ", el("b", { class: differ ? "other" : null }, name(className(labelOf(image))))], el("br"), name(pathOf(image), "path"))))),
    el("div", { class: "pair" }, item.distance === undefined ? "same SHA-256" : `distance ${item.distance}`, differ ? el("b", { class: "other" }, "labels differ") : null));
}
function clusterCard({ cluster, images }) {
  return el("div", { class: "card cluster" }, el("h3", {}, `Cluster ${cluster}: ${plural(images.length, "image")}`),
    el("div", { class: "thumbs" }, images.slice(0, CLUSTER_IMAGES).map((image) => el("figure", { title: pathOf(image) }, thumbnail(image)))));
}

/* A list shows its first cards, then all on a click; its CSV file holds all. kind: of confidence; of: the dataset. */
function fillList(node, list, kind, of) {
  if (!list?.cards.length) { node.replaceChildren(); return; }
  const listed = node.dataset.list, box = el("div", { class: "gallery" });
  const cards = (items) => items.map((item) => card(item, kind, of.classes));
  fill(box, cards(list.cards.slice(0, SHOWN_CARDS)));
  const rest = list.cards.slice(SHOWN_CARDS);
  const all = rest.length ? button(`show all ${list.cards.length}`, { onclick: () => { box.append(...cards(rest)); all.remove(); } }) : null;
  const file = button("CSV", { "aria-label": `${listed.replaceAll("_", " ")} as CSV`, onclick: () => downloadList(listed, list.cards, kind, of) });
  fill(node, box, el("p", { class: "tools" }, all, file));
}
