/* An image as a tile, and the grid of tiles: only those near the viewport exist. */

"use strict";

const PALETTE = [
  "#4269d0",
  "#e08a00",
  "#d6455d",
  "#2c9c91",
  "#7d57c1",
  "#3f9a46",
  "#c0569f",
  "#8a6242",
  "#1f8fc4",
  "#9a9a1f",
];
const OTHER_COLOUR = "#8a8f9a";
const SMALLEST_TILE_PX = 190;
const SMALLEST_TILE_PHONE_PX = 145;
const OVERSCAN_ROWS = 2;

const colours = new Map();
function colourOf(category) {
  if (!colours.size) head.categories.slice(0, PALETTE.length).forEach(([name], i) => colours.set(name, PALETTE[i]));
  return colours.get(category) || OTHER_COLOUR;
}

function picture(row) {
  const source = thumbnailOf(row);
  return element(
    "span",
    { class: "picture" },
    source
      ? element("img", { src: source, alt: altOf(row), loading: "lazy", decoding: "async" })
      : element("span", { class: "none" }, element("span", { class: "unseen" }, altOf(row)), "No picture"),
  );
}

/** What a tile shows at its end: the error, or what somebody has decided, or the first flag, or the confidence. */
function badge(row) {
  if (data.error[row]) return element("span", { class: "failed", title: data.error[row] }, errorKind(row));
  if (data.verified[row]) return element("span", { class: `verified ${data.verified[row]}` }, data.verified[row]);
  const [first, ...more] = flagsOf(row);
  if (first) {
    const title = [first, ...more].join(", ");
    return element("span", { class: "flag", title }, more.length ? `${first} +${more.length}` : first);
  }
  const confidence = data.text_confidence[row];
  if (confidence === null) return null;
  return element("span", {}, element("span", { class: "unseen" }, "confidence "), percent(confidence));
}

function tile(row) {
  const end = badge(row);
  const category = data.categories[row];
  const dot = element("span", { class: "dot" });
  dot.style.background = colourOf(category);
  return element(
    "a",
    { class: "tile", href: hashOf({ image: row }), "data-row": row },
    picture(row),
    element(
      "span",
      { class: "caption" },
      element("span", { class: "says", dir: "auto", "aria-hidden": "true" }, data.description[row] || nameOf(row)),
      element(
        "span",
        { class: "meta" },
        category && dot,
        category && element("bdi", { class: "category" }, category),
        end && element("span", { class: "end" }, end),
      ),
    ),
  );
}

function onTileClick(event) {
  const link = event.target.closest("a[data-row]");
  if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  openDetail(Number(link.dataset.row), link);
}

const shown = new Map(); // position -> its list item
let columns = 1;
let rowHeight = 1; // in pixels, including the gap
let current = 0; // the position that Tab leads to
let toRestore = 0; // the position to scroll to once it has been loaded

function measureGrid() {
  const style = getComputedStyle(document.documentElement);
  const gap = parseFloat(style.getPropertyValue("--gap"));
  const caption = parseFloat(style.getPropertyValue("--caption")) * parseFloat(style.fontSize);
  const width = $("grid").clientWidth;
  const smallest = innerWidth <= 720 ? SMALLEST_TILE_PHONE_PX : SMALLEST_TILE_PX;
  columns = Math.max(1, Math.floor((width + gap) / (smallest + gap)));
  const tileWidth = (width - gap * (columns - 1)) / columns;
  const tileHeight = Math.round(tileWidth * 0.75 + caption);
  rowHeight = tileHeight + gap;
  return { gap, tileWidth, tileHeight };
}

function renderGrid() {
  const { gap, tileWidth, tileHeight } = measureGrid();
  const rows = Math.ceil(results.length / columns);
  $("grid").style.height = `${Math.max(0, rows * rowHeight - gap)}px`;
  current = Math.max(0, Math.min(current, results.length - 1));
  if (toRestore && toRestore < results.length) {
    scrollToPosition(toRestore);
    toRestore = 0;
  }
  const above = -$("grid").getBoundingClientRect().top;
  const first = Math.max(0, (Math.floor(above / rowHeight) - OVERSCAN_ROWS) * columns);
  const last = Math.min(results.length, (Math.ceil((above + innerHeight) / rowHeight) + OVERSCAN_ROWS) * columns);
  const wanted = new Set([current]); // kept, or the focus would be lost
  for (let position = first; position < last; position++) wanted.add(position);
  let hadFocus = false;
  for (const [position, item] of shown) {
    if (wanted.has(position) && Number(item.firstChild.dataset.row) === results[position]) continue;
    hadFocus ||= item.contains(document.activeElement);
    item.remove();
    shown.delete(position);
  }
  for (const position of [...wanted].sort((a, b) => a - b)) {
    if (position >= results.length) continue;
    const item = shown.get(position) || addTile(position);
    item.style.width = `${tileWidth}px`;
    item.style.height = `${tileHeight}px`;
    const left = (position % columns) * (tileWidth + gap);
    item.style.transform = `translate(${left}px, ${Math.floor(position / columns) * rowHeight}px)`;
    item.setAttribute("aria-setsize", results.length);
    item.firstChild.tabIndex = position === current ? 0 : -1;
    item.firstChild.setAttribute("href", hashOf({ image: results[position] }));
  }
  if (hadFocus && shown.has(current)) shown.get(current).firstChild.focus({ preventScroll: true });
  showEmpty();
}

function addTile(position) {
  const link = tile(results[position]);
  link.dataset.position = position;
  const item = element("li", { "aria-posinset": position + 1 }, link);
  shown.set(position, item);
  const later = [...$("grid").children].find((other) => Number(other.firstChild.dataset.position) > position);
  $("grid").insertBefore(item, later || null); // reading order is the order of the results
  return item;
}

function showEmpty() {
  const isEmpty = !results.length && isComplete();
  let text = $("view-grid").querySelector(".empty");
  if (isEmpty && !text) {
    text = element("p", { class: "empty" }, head.rows ? "No image matches these filters." : "The CSV has no rows yet.");
    $("view-grid").append(text);
  } else if (!isEmpty && text) text.remove();
}

const barHeight = () => $("filters").getBoundingClientRect().height + 10;

function scrollToPosition(position) {
  const top = $("grid").getBoundingClientRect().top + scrollY;
  scrollTo(0, position < columns ? 0 : top + Math.floor(position / columns) * rowHeight - barHeight());
}

function scrollToGridTop() {
  const top = $("filters").offsetTop;
  if (scrollY > top) scrollTo(0, 0);
  current = 0;
}

let scrolled;
let isScrollDue = false;
function onScroll() {
  if (state.view !== "grid") return;
  if (!isScrollDue) {
    isScrollDue = true;
    requestAnimationFrame(() => {
      isScrollDue = false;
      if (state.view === "grid") renderGrid();
    });
  }
  clearTimeout(scrolled);
  scrolled = setTimeout(noteScroll, 250);
}

/** Keep the first visible position in the hash, so that a bookmark and Back return to it. */
function noteScroll() {
  if (state.view !== "grid" || state.image) return;
  const above = barHeight() - $("grid").getBoundingClientRect().top;
  const position = Math.max(0, Math.ceil(above / rowHeight - 0.5)) * columns;
  state.at = scrollY > 0 && position ? String(Math.min(position, results.length - 1)) : "";
  history.replaceState(history.state, "", hashOf({}));
}

function setCurrent(position) {
  if (Number.isNaN(position) || position === current) return;
  shown.get(current)?.firstChild.setAttribute("tabindex", "-1");
  current = position;
  shown.get(current)?.firstChild.setAttribute("tabindex", "0");
}

function focusPosition(position) {
  setCurrent(position);
  renderGrid();
  const link = shown.get(position).firstChild;
  const box = link.getBoundingClientRect();
  link.focus({ preventScroll: true });
  if (box.top < barHeight()) scrollBy(0, box.top - barHeight());
  else if (box.bottom > innerHeight) scrollBy(0, box.bottom - innerHeight + 10);
}

function onGridKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const page = Math.max(1, Math.floor((innerHeight - barHeight()) / rowHeight)) * columns;
  const steps = {
    ArrowLeft: -1,
    ArrowRight: 1,
    ArrowUp: -columns,
    ArrowDown: columns,
    PageUp: -page,
    PageDown: page,
    Home: -results.length,
    End: results.length,
  };
  if (!(event.key in steps)) return;
  event.preventDefault();
  const next = Math.max(0, Math.min(results.length - 1, current + steps[event.key]));
  const leavesColumn = ["ArrowUp", "ArrowDown"].includes(event.key) && Math.abs(next - current) !== columns;
  if (next !== current && !leavesColumn) focusPosition(next);
}

function listenToGrid() {
  addEventListener("scroll", onScroll, { passive: true });
  $("grid").addEventListener("keydown", onGridKey);
  $("grid").addEventListener("focusin", (event) => setCurrent(Number(event.target.dataset.position)));
}
