/* The rows as a grid, of which only what is near the window exists; moves, selects, opens. */

import { element, foreign } from "./results.js";
import { Pictures } from "./review-pictures.js";
import { list, need, rowOf } from "./review-rows.js";
import { valueOf } from "./review-save.js";
import { say } from "./words.js";

const SMALLEST_PX = 180;
const SMALLEST_PHONE_PX = 140;
const CAPTION_PX = 84;
const GAP_PX = 12;
const OVERSCAN = 2; // rows of tiles above and below the window
const THUMBNAIL_PX = 256;
const MOST_PICTURES = 400;
const $ = (id) => document.getElementById(id);
const pictures = new Pictures(THUMBNAIL_PX, MOST_PICTURES, drawSoon);
const shown = new Map(); // position -> its tile
export const selected = new Set(); // numbers of rows
let columns = 1;
let tile = { width: 1, height: 1 };
let current = 0; // the position that has the focus, or would have it
let anchor = 0; // where a selection with Shift began
let hears = {};
let isDue = false;

/** `listener` has open(position), moved(position) for the focus, and selected(), called when the selection has changed. */
export function beginGrid(listener) {
  hears = listener;
  addEventListener("scroll", drawSoon, { passive: true });
  addEventListener("resize", drawSoon);
  $("grid").addEventListener("keydown", onKey);
  $("grid").addEventListener("click", onClick);
  $("grid").addEventListener("focusin", ({ target }) => setCurrent(Number(target.dataset.position)));
}

export const currentPosition = () => current;

/** Forget what was drawn: there is another list, or other rows. */
export function resetGrid(position = 0) {
  for (const each of shown.values()) each.remove();
  shown.clear();
  current = anchor = position;
}

/** Draw rows again, whose values have changed. */
export function redraw(numbers) {
  for (const [position, node] of shown) if (numbers.includes(list.rows[position])) fill(node, position);
}

export function drawSoon() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    if (!$("grid-view").hidden) draw();
  });
}

function measure() {
  const width = $("grid").clientWidth;
  const smallest = innerWidth <= 720 ? SMALLEST_PHONE_PX : SMALLEST_PX;
  columns = Math.max(1, Math.floor((width + GAP_PX) / (smallest + GAP_PX)));
  tile.width = (width - GAP_PX * (columns - 1)) / columns;
  tile.height = Math.round(tile.width * 0.75 + CAPTION_PX);
}

function draw() {
  measure();
  const step = tile.height + GAP_PX;
  const rows = Math.ceil(list.rows.length / columns);
  $("grid").style.height = `${Math.max(0, rows * step - GAP_PX)}px`;
  current = Math.max(0, Math.min(current, list.rows.length - 1));
  const above = -$("grid").getBoundingClientRect().top;
  const first = Math.max(0, (Math.floor(above / step) - OVERSCAN) * columns);
  const last = Math.min(list.rows.length, (Math.ceil((above + innerHeight) / step) + OVERSCAN) * columns);
  const wanted = new Set(list.rows.length ? [current] : []); // kept, or the focus would be lost
  for (let position = first; position < last; position++) wanted.add(position);
  for (const [position, node] of shown) {
    if (wanted.has(position)) continue;
    node.remove();
    shown.delete(position);
  }
  for (const position of [...wanted].sort((one, other) => one - other)) place(shown.get(position) || added(position), position, step);
  const near = [...wanted].map((position) => list.rows[position]);
  pictures.want(near);
  if (near.some((number) => !rowOf(number))) need(near).then(() => redraw(near), () => {});
}

function place(node, position, step) {
  node.style.width = `${tile.width}px`;
  node.style.height = `${tile.height}px`;
  node.style.transform = `translate(${(position % columns) * (tile.width + GAP_PX)}px, ${Math.floor(position / columns) * step}px)`;
  node.tabIndex = position === current ? 0 : -1;
  const image = pictures.of(list.rows[position]);
  const frame = node.firstChild;
  if (image && frame.firstChild !== image) frame.replaceChildren(image);
  if (image === null && !frame.textContent) frame.append(say(element("span", { class: "muted" }), "No picture"));
}

function added(position) {
  const attributes = { role: "option", class: "tile", "aria-posinset": position + 1, "aria-setsize": list.rows.length, "data-position": position };
  const node = element("div", attributes, element("span", { class: "frame" }), element("span", { class: "caption" }));
  shown.set(position, node);
  fill(node, position);
  const later = [...$("grid").children].find((other) => Number(other.dataset.position) > position);
  $("grid").insertBefore(node, later || null);
  return node;
}

function fill(node, position) {
  const row = rowOf(list.rows[position]);
  node.setAttribute("aria-selected", selected.has(list.rows[position]));
  if (!row) return;
  const text = valueOf(row, "description") || valueOf(row, "text") || row.values.error || row.name;
  node.lastChild.replaceChildren(foreign("span", text, { class: "says" }), " ", markOf(row));
}

const MARKS = { accepted: "accepted", rejected: "rejected" };

/** What has been decided on a row, or that it was corrected, or its flags. */
export function markOf(row) {
  const verified = valueOf(row, "verified");
  if (MARKS[verified]) return say(element("span", { class: `mark ${verified}` }), MARKS[verified]);
  if (Object.keys(row.machine).some((name) => name !== "verified")) return say(element("span", { class: "mark" }), "corrected");
  const flags = row.values.flags || "";
  return element("span", flags ? { class: "mark flagged" } : {}, flags.split(" ")[0]);
}

function setCurrent(position) {
  if (Number.isNaN(position) || position === current) return;
  shown.get(current)?.setAttribute("tabindex", "-1");
  current = position;
  shown.get(current)?.setAttribute("tabindex", "0");
  hears.moved(current);
}

/** Move the focus to a position, and scroll to it. */
export function focusPosition(position) {
  if (!list.rows.length) return;
  measure();
  const step = tile.height + GAP_PX;
  setCurrent(Math.max(0, Math.min(position, list.rows.length - 1)));
  const top = $("grid").getBoundingClientRect().top + Math.floor(current / columns) * step;
  if (top < 0) scrollBy(0, top - GAP_PX);
  else if (top + tile.height > innerHeight) scrollBy(0, top + tile.height - innerHeight + GAP_PX);
  draw();
  shown.get(current).focus({ preventScroll: true });
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const page = Math.max(1, Math.floor(innerHeight / (tile.height + GAP_PX)) - 1) * columns;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -page, PageDown: page };
  const ends = { Home: 0, End: list.rows.length - 1 };
  const next = ends[event.key] ?? (steps[event.key] ? current + steps[event.key] : undefined);
  if (next !== undefined) {
    event.preventDefault();
    if (next < 0 || next >= list.rows.length) return;
    if (event.shiftKey) extend(next);
    else anchor = next;
    return focusPosition(next);
  }
  if (event.key === "Enter") hears.open(current);
  else if (event.key === " ") toggle(current);
  else return;
  event.preventDefault();
}

function onClick(event) {
  const node = event.target.closest("[data-position]");
  if (!node) return;
  const position = Number(node.dataset.position);
  if (event.shiftKey) extend(position);
  else if (event.ctrlKey || event.metaKey) toggle(position);
  else return hears.open(position);
  focusPosition(position);
}

/** Select or deselect one row. */
export function toggle(position = current) {
  const number = list.rows[position];
  if (!selected.delete(number)) selected.add(number);
  anchor = position;
  selectionChanged();
}

/** Select the rows from where the selection began. */
function extend(position) {
  for (let each = Math.min(anchor, position); each <= Math.max(anchor, position); each++) selected.add(list.rows[each]);
  selectionChanged();
}

export function deselect() {
  selected.clear();
  selectionChanged();
}

function selectionChanged() {
  for (const [position, node] of shown) node.setAttribute("aria-selected", selected.has(list.rows[position]));
  hears.selected();
}
