/* Boxes of objects, people and text: over the picture of the detail view, and as lists beside it. */

"use strict";

const LAYERS = ["objects", "people", "text"];
const BOXES_SHOWN = 1000; // objects of one image, and lines of text
const MOST_HIDDEN = 0.2; // share of another box that a label may hide, of a text half as much
const LABEL_LETTERS = 120; // of a text over the picture; the list has all of it
const LABEL_COLOURS = [
  "#1f5fd0",
  "#b3261e",
  "#1a7a3c",
  "#8e3bc0",
  "#a85400",
  "#007380",
  "#b8206f",
  "#5f6300",
  "#6d4a2f",
  "#4a5568",
]; // white letters on each of them have a contrast above 5
const TEXT_COLOUR = "#24272e";

let boxes = []; // of the image that is shown
let boxesSize = null; // its width and height in pixels, upright, which boxes are measured in

const labelsOf = (row) => (data.objects[row] || []).map(([label]) => label).filter(Boolean);
const linesOf = (row) => (data.ocr_boxes[row] || []).map(([text]) => text);

/** A colour for each label of an image: that of its rank among all labels, or the next that is free in this image. */
function labelColours(labels) {
  const rankOf = (label) => head.objects.findIndex(([name]) => name === label);
  const ranked = [...new Set(labels)].map((label) => [label, rankOf(label)]).sort((a, b) => a[1] - b[1]);
  const colours = new Map();
  for (const [label, rank] of ranked) {
    const free = LABEL_COLOURS.map((_, i) => LABEL_COLOURS[(Math.max(0, rank) + i) % LABEL_COLOURS.length]);
    const taken = [...colours.values()];
    colours.set(label, free.find((colour) => !taken.includes(colour)) || free[0]);
  }
  return colours;
}

function boxesOf(row) {
  const colours = labelColours(labelsOf(row));
  const objects = (data.objects[row] || [])
    .slice(0, BOXES_SHOWN)
    .map(([label, score, left, top, right, bottom, traits]) => ({
      layers: [label && "objects", traits && "people"].filter(Boolean),
      name: label || "person",
      score,
      traits: (traits || []).map(([name, share]) => `${name} ${percent(share)}`).join(", "),
      colour: colours.get(label) || LABEL_COLOURS[0],
      corners: [left, top, right, top, right, bottom, left, bottom],
    }));
  const lines = (data.ocr_boxes[row] || [])
    .slice(0, BOXES_SHOWN)
    .map(([name, score, ...corners]) => ({ layers: ["text"], name, score, traits: "", colour: TEXT_COLOUR, corners }));
  return [...objects, ...lines].map((box) => ({ ...box, ...extentOf(box.corners) }));
}

function extentOf(corners) {
  const x = corners.filter((_, i) => i % 2 === 0);
  const y = corners.filter((_, i) => i % 2);
  return { left: Math.min(...x), top: Math.min(...y), right: Math.max(...x), bottom: Math.max(...y) };
}

const isLayerShown = (layer) => $(`layer-${layer}`).checked;

function fillLayers() {
  for (const layer of LAYERS) $(`layer-${layer}`).parentElement.hidden = !head.boxed[layer];
  $("layers").hidden = !LAYERS.some((layer) => head.boxed[layer]);
}

/** Read the boxes of an image, before its picture and its facts are shown. */
function readBoxes(row) {
  boxes = boxesOf(row);
  for (const layer of LAYERS) {
    const number = boxes.filter((box) => box.layers.includes(layer)).length;
    $(`layer-${layer}`).nextElementSibling.textContent = count(number);
  }
}

/** Draw the boxes over the picture; `size` is that of the picture shown, for rows that do not tell the size. */
function drawBoxes(row, size = null) {
  boxesSize = data.size[row] || size;
  if (!boxes.length || !boxesSize) return;
  const shapes = boxes
    .map((box, i) => ({ box, i }))
    .sort((a, b) => areaOf(b.box) - areaOf(a.box)) // largest first: the smaller ones are drawn on top, where the pointer reaches them
    .map(({ box, i }) => {
      const points = box.corners.join(" ");
      const line = svg("polygon", { points });
      line.style.stroke = box.colour;
      return svg("g", { class: "box", "data-box": i }, svg("polygon", { points, class: "halo" }), line);
    });
  const tags = boxes.map((box, i) => {
    const tag = element(
      "div",
      { class: "tag", "data-box": i },
      element("bdi", {}, box.name.slice(0, LABEL_LETTERS)),
      box.layers.includes("text") ? null : ` ${percent(box.score)}`,
      box.traits && element("span", { class: "traits" }, box.traits.slice(0, LABEL_LETTERS)),
    );
    tag.style.background = box.colour;
    return tag;
  });
  $("detail-picture").append(
    svg("svg", { class: "boxes", viewBox: `0 0 ${boxesSize.join(" ")}`, "aria-hidden": "true" }, ...shapes),
    element("div", { class: "boxes", "aria-hidden": "true" }, ...tags),
  );
  showLayers();
  highlightBox(focusedBox());
}

/** Show the boxes of the layers that are switched on. */
function showLayers() {
  for (const node of $("detail-picture").querySelectorAll("[data-box]"))
    node.classList.toggle("off", !boxes[node.dataset.box].layers.some(isLayerShown));
  $("detail-picture").classList.toggle("without-traits", !isLayerShown("people"));
  placeTags();
}

/** Put each label where it hides no other and little of a box; one that has no such place is shown on demand. */
function placeTags() {
  const frame = $("detail-picture").querySelector("div.boxes");
  if (!frame?.clientWidth) return;
  const [width, height] = boxesSize;
  const scale = Math.min(frame.clientWidth / width, frame.clientHeight / height);
  const x = (value) => (frame.clientWidth - width * scale) / 2 + value * scale;
  const y = (value) => (frame.clientHeight - height * scale) / 2 + value * scale;
  const tags = [...frame.children].map((tag) => {
    const { left, top, right, bottom, layers } = boxes[tag.dataset.box];
    const box = { left: x(left), top: y(top), right: x(right), bottom: y(bottom) };
    const isText = layers.includes("text");
    const places = placesOf(box, tag.offsetWidth, tag.offsetHeight, frame, isText);
    return { tag, box, places, weight: isText ? 2 : 1, isShown: !tag.classList.contains("off") };
  });
  const shown = tags.filter(({ isShown }) => isShown);
  const taken = [];
  const hides = (place, box) => {
    if (taken.some((other) => common(place, other))) return Infinity;
    let share = 0;
    for (const other of shown) {
      if (other.box !== box) share += (other.weight * common(place, other.box)) / areaOf(other.box);
      if (share > MOST_HIDDEN) return Infinity;
    }
    return share;
  };
  for (const { tag, box, places, isShown } of tags) {
    const shares = places.map((place) => (isShown ? hides(place, box) : Infinity));
    const least = Math.min(...shares);
    const place = places[shares.indexOf(least)];
    if (least < Infinity) taken.push(place);
    tag.classList.toggle("crowded", least === Infinity);
    tag.style.transform = `translate(${place.left}px, ${place.top}px)`;
  }
}

const areaOf = (box) => Math.max(1, (box.right - box.left) * (box.bottom - box.top));

/** The area that two boxes share. */
const common = (a, b) =>
  Math.max(0, Math.min(a.right, b.right) - Math.max(a.left, b.left)) *
  Math.max(0, Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top));

/** Where a label may be, within the frame: over its box, under it, or in it where the box is large and no text. */
function placesOf(box, width, height, frame, isText) {
  const within = (value, most) => Math.max(0, Math.min(value, most));
  const isLarge = box.right - box.left > 1.5 * width && box.bottom - box.top > 3 * height;
  const corners = [
    [box.left, box.top - height],
    ...(isLarge && !isText ? [[box.left, box.top]] : []),
    [box.right - width, box.top - height],
    [box.left, box.bottom],
    [box.right - width, box.bottom],
  ];
  const inFrame = corners.filter(([, top]) => top >= 0 && top + height <= frame.clientHeight);
  return (inFrame.length ? inFrame : corners).map(([x, y]) => {
    const left = within(x, frame.clientWidth - width);
    const top = within(y, frame.clientHeight - height);
    return { left, top, right: left + width, bottom: top + height };
  });
}

const focusedBox = () => document.activeElement?.dataset?.box;

/** Highlight one box, its label and its entry in the list; none for undefined. */
function highlightBox(index) {
  for (const node of $("detail").querySelectorAll(".active")) node.classList.remove("active");
  const nodes = index === undefined ? [] : $("detail").querySelectorAll(`[data-box="${index}"]`);
  for (const node of nodes) node.classList.add("active");
  $("detail-picture").classList.toggle("has-active", nodes.length > 0);
}

/** The list of some boxes: one step of the Tab key, and arrow keys within it. */
function boxList(name, shown, all) {
  const entries = shown.map(([index, box], position) => {
    const swatch = element("span", { class: "swatch" });
    swatch.style.background = box.colour;
    return element(
      "li",
      {},
      element(
        "button",
        { type: "button", class: "entry", "data-box": index, tabindex: position ? -1 : 0 },
        swatch,
        element("bdi", { class: "name" }, box.name),
        " ",
        element("span", { class: "number" }, percent(box.score)),
        box.traits && element("span", { class: "traits" }, box.traits),
      ),
    );
  });
  return [
    element("ul", { class: "entries", "aria-label": name, "aria-describedby": "entries-keys" }, ...entries),
    all > shown.length && element("p", { class: "muted" }, `The first ${count(shown.length)} of ${count(all)}.`),
  ].filter(Boolean);
}

function onEntryKey(event) {
  const entries = [...(event.target.closest(".entries")?.querySelectorAll(".entry") || [])];
  const position = entries.indexOf(event.target);
  const next = { ArrowUp: position - 1, ArrowDown: position + 1, Home: 0, End: entries.length - 1 }[event.key];
  if (position < 0 || next === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  entries[next]?.focus();
}

function onEntryFocus(event) {
  const entry = event.target.closest(".entry");
  if (!entry) return;
  for (const other of entry.closest(".entries").querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
  entry.tabIndex = 0;
}

function listenToBoxes() {
  const boxAt = (event) => event.target.closest("[data-box]")?.dataset.box;
  for (const place of [$("detail-picture"), $("detail-facts")]) {
    place.addEventListener("pointerover", (event) => highlightBox(boxAt(event) ?? focusedBox()));
    place.addEventListener("pointerleave", () => highlightBox(focusedBox()));
  }
  $("detail-picture").addEventListener("pointerover", (event) => showEntry(boxAt(event)));
  $("detail-facts").addEventListener("focusin", (event) => {
    onEntryFocus(event);
    highlightBox(boxAt(event));
  });
  $("detail-facts").addEventListener("focusout", () => highlightBox());
  $("detail-facts").addEventListener("keydown", onEntryKey);
  $("detail-facts").addEventListener("click", (event) => {
    if (boxAt(event) === undefined) return;
    highlightBox(boxAt(event));
    $("detail-picture").scrollIntoView({ block: "nearest" }); // on a phone it may be out of view
  });
  for (const layer of LAYERS) $(`layer-${layer}`).addEventListener("change", showLayers);
  new ResizeObserver(placeTags).observe($("detail-picture"));
}

/** Scroll the list, and nothing but the list, to the entry of a box. */
function showEntry(index) {
  const entry = index !== undefined && $("detail-facts").querySelector(`[data-box="${index}"]`);
  if (!entry) return;
  const list = entry.closest(".entries");
  const { top, bottom } = entry.getBoundingClientRect();
  const view = list.getBoundingClientRect();
  if (top < view.top) list.scrollTop += top - view.top;
  else if (bottom > view.bottom) list.scrollTop += bottom - view.bottom;
}
