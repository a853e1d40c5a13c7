/* The map of the image vectors: a canvas to zoom and pan, and a list of the images in its middle. */

"use strict";

const LARGEST_PX = 72; // of a picture on the map
const SMALLEST_PX = 32; // below that, dots are shown
const COVERED = 0.4; // share of the map that pictures cover
const IMAGES_KEPT = 1000;
const LISTED = 18;
let mapCamera = null; // x and y of the middle, within 0..1, and the zoom
let mapHeight = 1; // where the width is 1
let mapDots = []; // what is in view: row, x, y
const mapImages = new Map(); // row -> its thumbnail

function cameraOf(text) {
  const [x, y, zoom] = text.split(",").map(Number);
  return zoom > 0 && Number.isFinite(x) && Number.isFinite(y)
    ? { x, y, zoom: Math.min(zoom, 400) }
    : { x: 0.5, y: 0.5, zoom: 1 };
}

/** The height of the map where its width is 1. */
function heightOf(values) {
  const [low, high] = values
    .filter((y) => y >= 0)
    .reduce(([a, b], y) => [Math.min(a, y), Math.max(b, y)], [Infinity, 0]);
  return Math.max(0, high - low) / head.map_steps;
}

/** The map's width in pixels; at zoom 1 all of it is in view. */
function mapUnit() {
  const { clientWidth, clientHeight } = $("map");
  return 0.85 * Math.min(clientWidth, clientHeight / Math.max(mapHeight, 0.05)) * mapCamera.zoom;
}

/** The side of the pictures on the map in pixels, the smaller the more are in view; 0 where there are too many. */
function pictureSide() {
  const side = Math.min(
    LARGEST_PX,
    Math.sqrt((COVERED * $("map").clientWidth * $("map").clientHeight) / mapDots.length),
  );
  return side < SMALLEST_PX ? 0 : side;
}

/** A function from a row to its place on the canvas. */
function projection() {
  const unit = mapUnit();
  const left = $("map").clientWidth / 2 - mapCamera.x * unit;
  const top = $("map").clientHeight / 2 - mapCamera.y * unit;
  return (row) => [left + (plan.x[row] / head.map_steps) * unit, top + (plan.y[row] / head.map_steps) * unit];
}

let legendFor = "";
function renderMap() {
  drawMap();
  showLegend();
  listMiddle();
}

function showLegend() {
  const pairs = head.categories.slice(0, PALETTE.length);
  const key = state.category + resultsFor;
  if (legendFor === key) return;
  legendFor = key;
  const items = pairs.map(([category, number]) => {
    const dot = element("span", { class: "dot" });
    dot.style.background = colourOf(category);
    return element(
      "li",
      {},
      element(
        "button",
        {
          type: "button",
          "aria-pressed": String(state.category === category),
          "data-category": category,
          onclick: () => go({ category: state.category === category ? "" : category }),
        },
        dot,
        element("bdi", {}, category),
        element("span", { class: "number" }, count(number)),
      ),
    );
  });
  if (head.categories.length > pairs.length) {
    const dot = element("span", { class: "dot" });
    dot.style.background = OTHER_COLOUR;
    items.push(element("li", { class: "others" }, dot, "others"));
  }
  const focused = document.activeElement?.dataset?.category;
  $("legend").replaceChildren(...items);
  if (focused !== undefined)
    [...$("legend").querySelectorAll("button")].find((button) => button.dataset.category === focused)?.focus();
}

function drawMap() {
  const canvas = $("map");
  const ratio = devicePixelRatio || 1;
  const width = canvas.clientWidth,
    height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  context.fillStyle = style.getPropertyValue("--muted");
  context.textAlign = "center";
  context.font = "15px system-ui, sans-serif";
  if (!plan || !isComplete()) {
    context.fillText("Loading…", width / 2, height / 2);
    return;
  }
  const placed = results.filter((row) => plan.x[row] >= 0);
  if (!placed.length) {
    context.fillText("No image to show", width / 2, height / 2);
    mapDots = [];
    return;
  }
  const size = Math.max(2.5, Math.min(9, (100 / Math.sqrt(head.rows)) * Math.sqrt(mapCamera.zoom) + 1.5));
  const project = projection();
  if (placed.length < head.rows) {
    context.fillStyle = style.getPropertyValue("--line");
    for (let row = 0; row < head.rows; row++) {
      if (plan.x[row] < 0 || positions.has(row)) continue;
      const [x, y] = project(row);
      if (x > -size && y > -size && x < width + size && y < height + size)
        context.fillRect(x - size / 2, y - size / 2, size, size);
    }
  }
  mapDots = [];
  for (const row of placed) {
    const [x, y] = project(row);
    if (x > -LARGEST_PX && y > -LARGEST_PX && x < width + LARGEST_PX && y < height + LARGEST_PX)
      mapDots.push({ row, x, y });
  }
  for (const { row, x, y } of mapDots) {
    context.fillStyle = colourOf(data.categories[row]);
    context.beginPath();
    context.arc(x, y, size / 2, 0, 7);
    context.fill();
  }
  const side = pictureSide();
  if (side) for (const dot of mapDots) drawThumbnail(context, dot, side);
}

function drawThumbnail(context, { row, x, y }, side) {
  let image = mapImages.get(row);
  if (!image && thumbnailOf(row)) {
    image = new Image();
    image.onload = renderSoon;
    image.src = thumbnailOf(row);
    mapImages.set(row, image);
    if (mapImages.size > IMAGES_KEPT) mapImages.delete(mapImages.keys().next().value);
  }
  if (!image?.naturalWidth) return;
  const scale = side / Math.max(image.naturalWidth, image.naturalHeight);
  const width = image.naturalWidth * scale,
    height = image.naturalHeight * scale;
  context.fillStyle = colourOf(data.categories[row]);
  context.fillRect(x - width / 2 - 2, y - height / 2 - 2, width + 4, height + 4);
  context.drawImage(image, x - width / 2, y - height / 2, width, height);
}

let listed;
function listMiddle() {
  clearTimeout(listed);
  listed = setTimeout(() => {
    if (state.view !== "map") return;
    const x = $("map").clientWidth / 2,
      y = $("map").clientHeight / 2;
    const nearest = [...mapDots]
      .sort((a, b) => (a.x - x) ** 2 + (a.y - y) ** 2 - (b.x - x) ** 2 - (b.y - y) ** 2)
      .slice(0, LISTED);
    const key = nearest.map((dot) => dot.row).join();
    if ($("map-list").dataset.rows === key) return;
    $("map-list").dataset.rows = key;
    $("map-list").replaceChildren(...nearest.map(({ row }) => element("li", {}, tile(row))));
  }, 200);
}

let moved;
function moveMap(change) {
  Object.assign(mapCamera, change);
  mapCamera.zoom = Math.max(0.5, Math.min(400, mapCamera.zoom));
  mapCamera.x = Math.max(0, Math.min(1, mapCamera.x));
  mapCamera.y = Math.max(0, Math.min(1, mapCamera.y));
  hideTip();
  drawMap();
  listMiddle();
  clearTimeout(moved);
  moved = setTimeout(() => {
    const { x, y, zoom } = mapCamera;
    state.map = zoom === 1 && x === 0.5 && y === 0.5 ? "" : `${x.toFixed(4)},${y.toFixed(4)},${zoom.toFixed(2)}`;
    history.replaceState(history.state, "", hashOf({}));
  }, 250);
}

/** Zoom by a factor; what lies at (x, y) of the canvas stays there. */
function zoomMap(factor, x = $("map").clientWidth / 2, y = $("map").clientHeight / 2) {
  const zoom = Math.max(0.5, Math.min(400, mapCamera.zoom * factor));
  const before = 1 / mapUnit(),
    after = (before * mapCamera.zoom) / zoom;
  moveMap({
    zoom,
    x: mapCamera.x + (x - $("map").clientWidth / 2) * (before - after),
    y: mapCamera.y + (y - $("map").clientHeight / 2) * (before - after),
  });
}

function nearestDot(x, y) {
  const reach = Math.max(14, pictureSide() / 2);
  let best = null,
    least = reach ** 2;
  for (const dot of mapDots) {
    const distance = (dot.x - x) ** 2 + (dot.y - y) ** 2;
    if (distance <= least) [best, least] = [dot, distance];
  }
  return best;
}

const hideTip = () => ($("map-tip").hidden = true);

function showTip(dot) {
  const tip = $("map-tip");
  if (!dot) return hideTip();
  if (Number(tip.dataset.row) !== dot.row || tip.hidden) {
    tip.dataset.row = dot.row;
    tip.replaceChildren(picture(dot.row), element("p", { dir: "auto" }, altOf(dot.row)));
    tip.hidden = false;
  }
  const left = dot.x + 14 + tip.offsetWidth > $("map").clientWidth ? dot.x - 14 - tip.offsetWidth : dot.x + 14;
  const top = Math.min(Math.max(4, dot.y - tip.offsetHeight / 2), $("map").clientHeight - tip.offsetHeight - 4);
  tip.style.transform = `translate(${Math.max(4, left)}px, ${top}px)`;
  tip.style.left = tip.style.top = "0";
}

function listenToMap() {
  const canvas = $("map");
  const pointers = new Map();
  let travelled = 0;
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      zoomMap(Math.exp(-Math.max(-80, Math.min(80, event.deltaY)) / 250), ...at(event));
    },
    { passive: false },
  );
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, at(event));
    if (pointers.size === 1) travelled = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = at(event);
    if (!pointers.has(event.pointerId)) return showTip(nearestDot(x, y));
    const [oldX, oldY] = pointers.get(event.pointerId);
    const others = [...pointers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
    travelled += Math.abs(x - oldX) + Math.abs(y - oldY);
    pointers.set(event.pointerId, [x, y]);
    if (others.length) {
      const [otherX, otherY] = others[0];
      const spread = Math.hypot(x - otherX, y - otherY) / Math.max(1, Math.hypot(oldX - otherX, oldY - otherY));
      zoomMap(spread, (x + otherX) / 2, (y + otherY) / 2);
    } else if (travelled > 4) {
      moveMap({ x: mapCamera.x - (x - oldX) / mapUnit(), y: mapCamera.y - (y - oldY) / mapUnit() });
    }
  });
  const lift = (event) => {
    const wasAlone = pointers.delete(event.pointerId) && !pointers.size;
    const dot = nearestDot(...at(event));
    if (event.type === "pointerup" && wasAlone && travelled <= 4 && dot) openDetail(dot.row, canvas);
  };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("pointerleave", hideTip);
  canvas.addEventListener("keydown", (event) => {
    const step = 60 / mapUnit();
    const moves = {
      ArrowLeft: () => moveMap({ x: mapCamera.x - step }),
      ArrowRight: () => moveMap({ x: mapCamera.x + step }),
      ArrowUp: () => moveMap({ y: mapCamera.y - step }),
      ArrowDown: () => moveMap({ y: mapCamera.y + step }),
      "+": () => zoomMap(1.4),
      "=": () => zoomMap(1.4),
      "-": () => zoomMap(1 / 1.4),
      0: showWholeMap,
    };
    if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    moves[event.key]();
  });
  $("map-in").addEventListener("click", () => zoomMap(1.6));
  $("map-out").addEventListener("click", () => zoomMap(1 / 1.6));
  $("map-all").addEventListener("click", showWholeMap);
}

const showWholeMap = () => moveMap({ x: 0.5, y: 0.5, zoom: 1 });
