/* The map of the codes: a canvas. Pointing shows an image, dragging (or Shift and arrow keys) chooses images to list. */
const MAX_CHIPS = 24, MAX_CHOSEN = 60, MARGIN = 14, STEP = 40;
const PALETTE = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#9a7fd1", "#8c8c8c", "#b8a800", "#7a4a21"];
const colour = (group, of) => (group < 0 ? "#8c8c8c" : of <= PALETTE.length ? PALETTE[group] : `hsl(${(group * 137.5) % 360} 62% 52%)`);

/* What colours the map: the classes or, of a dataset without any, the clusters. */
function groupsOfMap() {
  const { classes, lists } = dataset();
  if (classes.length) return { kind: "class", names: classes, of: labelOf };
  const clusters = lists.clusters?.cards ?? [], clusterOf = new Map(clusters.flatMap(({ images }, place) => images.map((image) => [image, place])));
  return { kind: "cluster", names: clusters.map(({ cluster }) => `cluster ${cluster}`), of: (image) => clusterOf.get(image) ?? -1 };
}
const groupName = ({ kind, names, of }, image) => names[of(image)] ?? (kind === "class" ? "no label" : "no cluster");

let redraw = () => {};
addEventListener("resize", () => redraw());

function map() {
  if (!$("map-body")) return;
  const codeMap = dataset().study?.code_map;
  if (!codeMap) { redraw = () => {}; fill($("map-note")); fill($("map-body"), el("p", {}, "There are no codes for these scores, or too few images for a map.")); return; }
  const groups = groupsOfMap(), tested = dataset().classes.length > 0;
  $("map-note").textContent = `${codeMap.points.length < codeMap.total ? `A sample of ${count(codeMap.points.length)} of the ${count(codeMap.total)} images` : `All ${count(codeMap.total)} images`}` +
    `${groups.names.length ? `, coloured by ${groups.kind}` : ""}: codes of ${codeMap.backbone}, ${codeMap.layer}, reduced to 50 dimensions by PCA, then to two by t-SNE. ` +
    `${tested ? `Large dots are test images, small dots are other images${experiment.per_class ? `; a ring marks a mistake of ${experiment.name}` : ""}. ` : ""}Distances between groups far apart mean little.`;
  const canvas = el("canvas", { tabindex: 0, role: "img", "aria-label": "map of the codes; arrow keys move a pointer, with Shift they choose the images in a rectangle, Enter enlarges the image" });
  const plot = el("div", { class: "plot" }, canvas), chosen = el("div", { id: "chosen" });
  const state = { highlighted: null, outline: [], chosen: new Set(), pointer: null, corner: null };
  const view = mapView(codeMap, groups, canvas, plot, state);
  const chips = groupChips(groups, (group) => { state.highlighted = group; view.draw(); });
  const choose = (outline) => {
    state.outline = outline;
    state.chosen = new Set(outline.length > 2 ? codeMap.points.filter(([x, y]) => inside(x, y, outline)).map((point) => point[2]) : []);
    listChosen(chosen, groups, [...state.chosen], () => choose([]));
    view.draw();
  };
  listen(canvas, view, state, groups, choose);
  const finger = button("choose by finger", { "aria-pressed": "false", onclick: (event) => {
    const on = event.currentTarget.getAttribute("aria-pressed") === "false";
    event.currentTarget.setAttribute("aria-pressed", String(on));
    canvas.style.touchAction = on ? "none" : "";
  } });
  fill($("map-body"), chips, el("div", { class: "columns map" }, el("div", {}, plot, el("p", { class: "tools finger" }, finger)), chosen));
  listChosen(chosen, groups, []);
  view.draw();
  redraw = view.draw;
}

function groupChips({ kind, names }, highlight) {
  if (names.length > MAX_CHIPS) {
    const select = el("select", { "aria-label": `highlight a ${kind}` }, el("option", { value: "" }, `highlight a ${kind}`), names.map((text, group) => el("option", { value: group }, text)));
    select.addEventListener("change", () => highlight(select.value === "" ? null : Number(select.value)));
    return el("div", { class: "chips" }, select);
  }
  const chips = names.map((text, group) => {
    const dot = el("i");
    dot.style.background = colour(group, names.length);
    return el("button", { type: "button", "data-class": group, "aria-pressed": "false", title: text, onclick: (event) => {
      const on = event.currentTarget.getAttribute("aria-pressed") === "false";
      for (const chip of chips) chip.setAttribute("aria-pressed", String(on && chip === event.currentTarget));
      highlight(on ? group : null);
    } }, dot, name(text));
  });
  return el("div", { class: "chips" }, chips);
}

/* Places on the map are in 0…1000, places on the canvas in CSS pixels. */
function mapView(codeMap, groups, canvas, plot, state) {
  let side = 0;
  const onCanvas = ([x, y]) => [MARGIN + x / 1000 * (side - 2 * MARGIN), MARGIN + y / 1000 * (side - 2 * MARGIN)];
  const onMap = (x, y) => [x, y].map((place) => (place - MARGIN) / (side - 2 * MARGIN) * 1000);
  function draw() {
    side = plot.clientWidth || 600;
    const scale = devicePixelRatio || 1, brush = canvas.getContext("2d"), ink = colourOf("--ink");
    canvas.width = canvas.height = side * scale;
    brush.scale(scale, scale);
    const circle = (x, y, radius) => { brush.beginPath(); brush.arc(x, y, radius, 0, 7); };
    for (const point of codeMap.points) {
      const [x, y] = onCanvas(point), group = groups.of(point[2]), test = splitOf(point[2]) === "test";
      const faint = (state.highlighted !== null && state.highlighted !== group) || (state.chosen.size && !state.chosen.has(point[2]));
      brush.globalAlpha = faint ? 0.12 : test ? 0.95 : 0.6;
      brush.fillStyle = colour(group, groups.names.length);
      circle(x, y, test ? 4 : 2.6); brush.fill();
      if (experiment.mistakes_on_map[point[2]] !== undefined) { brush.strokeStyle = ink; brush.lineWidth = 1.4; circle(x, y, 6); brush.stroke(); }
    }
    brush.globalAlpha = 1;
    brush.strokeStyle = ink;
    if (state.outline.length) {
      brush.setLineDash([4, 3]); brush.beginPath(); state.outline.forEach((place) => brush.lineTo(...onCanvas(place))); brush.closePath(); brush.stroke(); brush.setLineDash([]);
    }
    if (state.pointer) {
      const [x, y] = onCanvas(state.pointer);
      brush.beginPath(); brush.moveTo(x - 9, y); brush.lineTo(x + 9, y); brush.moveTo(x, y - 9); brush.lineTo(x, y + 9); brush.stroke();
    }
  }
  function nearest(x, y, reach) {
    let best = null, least = reach ** 2;
    for (const point of codeMap.points) {
      const [px, py] = onCanvas(point), distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least) [best, least] = [point[2], distance];
    }
    return best;
  }
  return { draw, nearest, onMap, onCanvas };
}

/* Whether a place lies inside a polygon: a ray from it crosses the outline an odd number of times. */
function inside(x, y, outline) {
  return outline.reduce((odd, [x1, y1], place) => {
    const [x2, y2] = outline[(place + 1) % outline.length];
    return (y1 > y) !== (y2 > y) && x < x1 + (y - y1) / (y2 - y1) * (x2 - x1) ? !odd : odd;
  }, false);
}

function mapTip(groups, image, x, y) {
  if (image === null) return hideTip();
  const predicted = experiment.mistakes_on_map[image];
  tip(x, y, thumbnail(image, true), el("div", {}, el("b", {}, name(groupName(groups, image))), ", ", splitOf(image), predicted === undefined ? null : [", predicted ", el("b", { class: "other" }, name(className(predicted)))]), name(pathOf(image)));
}

function listen(canvas, view, state, groups, choose) {
  let drawn = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button || (event.pointerType === "touch" && canvas.style.touchAction !== "none")) return mapTip(groups, view.nearest(event.offsetX, event.offsetY, 14), event.clientX, event.clientY);
    canvas.setPointerCapture(event.pointerId);
    state.pointer = state.corner = null;
    drawn = [view.onMap(event.offsetX, event.offsetY)];
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!drawn) return mapTip(groups, view.nearest(event.offsetX, event.offsetY, 14), event.clientX, event.clientY);
    hideTip();
    drawn.push(view.onMap(event.offsetX, event.offsetY));
    state.outline = drawn;
    view.draw();
  });
  canvas.addEventListener("pointerup", (event) => {
    if (!drawn) return;
    const outline = drawn, image = view.nearest(event.offsetX, event.offsetY, 14);
    drawn = null;
    if (outline.length > 3) choose(outline);
    else { choose([]); mapTip(groups, image, event.clientX, event.clientY); }
  });
  canvas.addEventListener("pointercancel", () => { drawn = null; choose([]); });
  canvas.addEventListener("pointerleave", hideTip);
  canvas.addEventListener("blur", hideTip);
  canvas.addEventListener("keydown", (event) => {
    const [dx, dy] = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] }[event.key] ?? [0, 0];
    if (!dx && !dy) return;
    event.preventDefault();
    const from = state.pointer ?? [500, 500], to = [from[0] + dx, from[1] + dy].map((place) => Math.max(-STEP, Math.min(1000 + STEP, place)));
    state.pointer = to;
    state.corner = event.shiftKey ? state.corner ?? from : null;
    if (state.corner) { const [[x1, y1], [x2, y2]] = [state.corner, to]; choose([[x1, y1], [x2, y1], [x2, y2], [x1, y2]]); } else view.draw();
    const [x, y] = view.onCanvas(to), box = canvas.getBoundingClientRect();
    mapTip(groups, view.nearest(x, y, 14), box.left + x, box.top + y);
  });
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { state.pointer = state.corner = null; hideTip(); choose([]); }
  });
}

/* The chosen images: how many of each class, their thumbnails, and a CSV file of all. */
function listChosen(node, groups, images, clear) {
  if (!images.length) { fill(node, el("p", { class: "small" }, "Drag around a group of points: its images are listed here. A click on a point shows its image.")); return; }
  const counts = new Map();
  for (const image of images) counts.set(groupName(groups, image), (counts.get(groupName(groups, image)) ?? 0) + 1);
  const wrong = images.filter((image) => experiment.mistakes_on_map[image] !== undefined);
  const parts = [...counts].sort((one, other) => other[1] - one[1]).slice(0, 12).map(([text, n]) => el("li", {}, name(text), `: ${count(n)}`));
  const cards = images.map((image) => ({ images: [image], predicted: experiment.mistakes_on_map[image] }));
  const ordered = [...wrong, ...images.filter((image) => !wrong.includes(image))];
  fill(node, el("h3", { role: "status" }, `${plural(images.length, "image")} chosen${experiment.per_class ? `, ${plural(wrong.length, "mistake")}` : ""}`),
    el("ul", { class: "parts" }, parts, counts.size > 12 ? el("li", {}, `and ${counts.size - 12} more`) : null),
    el("p", { class: "tools" }, button("CSV", { "aria-label": "chosen images as CSV", onclick: () => downloadList("chosen", cards, "", dataset()) }), button("clear", { onclick: clear })),
    el("div", { class: "thumbs" }, ordered.slice(0, MAX_CHOSEN).map((image) => el("figure", { class: experiment.mistakes_on_map[image] === undefined ? null : "wrong" }, thumbnail(image), el("figcaption", {}, name(groupName(groups, image)))))),
    images.length > MAX_CHOSEN ? el("p", { class: "small" }, `The first ${MAX_CHOSEN} are shown, mistakes first; the CSV file lists all.`) : null);
}
