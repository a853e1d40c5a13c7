/* The start of the page, its state, all of which is in the hash, and the rendering of one of the four views. */

"use strict";

const EMPTY = {
  view: "grid",
  q: "",
  where: "",
  category: "",
  keyword: "",
  flag: "",
  object: "",
  text: "",
  error: "",
  group: "",
  errors: "",
  sort: "",
  image: "",
  at: "",
  map: "",
};
let state = { ...EMPTY };

function readHash() {
  const given = new URLSearchParams(location.hash.slice(1));
  const before = state;
  state = { ...EMPTY };
  for (const name of Object.keys(EMPTY)) if (given.has(name)) state[name] = given.get(name);
  if (!$(`view-${state.view}`)) state.view = "grid";
  mapCamera = cameraOf(state.map);
  if (!available || ["view", "sort", ...FILTERS].some((name) => state[name] !== before[name])) {
    toRestore = Number(state.at) || 0;
    if (!toRestore) scrollTo(0, 0);
  }
  render();
}

function hashOf(changes) {
  const given = new URLSearchParams();
  for (const [name, value] of Object.entries({ ...state, ...changes })) {
    if (value !== EMPTY[name]) given.set(name, value);
  }
  return `#${given}`;
}

/** Change the state and show it; Back undoes it if `isStep`. */
function go(changes, isStep = true, note = null) {
  if (["sort", ...FILTERS].some((name) => name in changes)) changes = { at: "", ...changes };
  const hash = hashOf(changes);
  Object.assign(state, changes);
  if (isStep) history.pushState(note, "", hash);
  else history.replaceState(note || history.state, "", hash);
  if (changes.at === "") {
    toRestore = 0;
    if (state.view === "grid") scrollToGridTop();
  }
  render();
}

let isRenderDue = false;
function renderSoon() {
  if (isRenderDue) return;
  isRenderDue = true;
  requestAnimationFrame(() => {
    isRenderDue = false;
    render();
  });
}

const VIEWS = { grid: renderGrid, groups: renderGroups, map: renderMap, summary: renderSummary };

function render() {
  for (const name of Object.keys(VIEWS)) $(`view-${name}`).hidden = name !== state.view;
  for (const link of document.querySelectorAll("nav a")) {
    link.setAttribute("href", hashOf({ view: link.dataset.view, image: "" }));
    if (link.dataset.view === state.view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  $("filters").hidden = document.querySelector(".status").hidden = state.view === "summary"; // which covers all images
  $("sort").closest(".field").hidden = state.view !== "grid";
  findResults();
  showFilters();
  showCount();
  VIEWS[state.view]();
  renderDetail();
}

function showCount() {
  let text = `${count(results.length)} of ${plural(head.rows, "image")}`;
  if (FILTERS.every((name) => !state[name])) text = plural(head.rows, "image");
  if (!isComplete()) {
    text = results.length ? `${text}, loading…` : `Loading, ${percent(available / Math.max(head.rows, 1))}…`;
  }
  if ($("count").textContent !== text) $("count").textContent = text;
}

function start(summary) {
  head = summary;
  for (const name of COLUMNS) data[name] = new Array(head.rows).fill(null);
  document.title = `${head.name} – gallery`;
  $("name").textContent = head.name;
  $("made").textContent = `${plural(head.rows, "image")}, made ${head.made.replace("T", " ")}`;
  fillFilters();
  fillLayers();
  listen();
  readHash();
  loadPiece(0);
}

function listen() {
  history.scrollRestoration = "manual";
  addEventListener("popstate", readHash); // Back, Forward, and links to another hash
  addEventListener("resize", () => VIEWS[state.view]());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", renderSoon);
  $("skip").addEventListener("click", (event) => {
    event.preventDefault();
    ((state.view === "grid" && $("grid").querySelector('[tabindex="0"]')) || $("main")).focus();
  });
  document.addEventListener("click", onTileClick);
  listenToFilters();
  listenToGrid();
  $("groups-more").addEventListener("click", showMoreGroups);
  listenToMap();
  listenToDetail();
  listenToBoxes();
  listenToPair();
}

/** What the data scripts call. */
const gallery = { start, addRows, addMap };
