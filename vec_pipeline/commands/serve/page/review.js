/* The page to review rows: its state, all of which is in the address, and what its parts do with each other. */

import { beginActs, canUndo, openActs, undoLast } from "./review-acts.js";
import { beginBulk } from "./review-bulk.js";
import { addConflict, beginConflicts } from "./review-conflict.js";
import { beginGrid, currentPosition, deselect, drawSoon, focusPosition, redraw, resetGrid, selected, toggle } from "./review-grid.js";
import { beginKeys } from "./review-keys.js";
import { beginOne, editFirst, lookAhead, makeFields, sayRow, showOne, showValues } from "./review-one.js";
import { forget, isStale, json, list, loadList, noteAct, positionOf, refresh, rowOf, STALE } from "./review-rows.js";
import { beginSaving, change, flush, isRefused, isUnsaved, restore, valueOf } from "./review-save.js";
import { WORDS } from "./review-words.js";
import { ask, Failure } from "./server.js";
import { beginPage } from "./shared.js";
import { addRussian, announce, pageLanguage, say, translated } from "./words.js";

const POLL_MS = 4000; // between questions whether somebody else has changed something
const TYPED_MS = 400; // without a key, until a filter is asked for
const NOTED_MS = 200;
const ROWS_ASKED = 200; // again, at a time
const REFUSED_MS = 1000; // that a decision waits for what was typed to be refused
const POLLS_TO_COUNT = 2; // until rows are counted again
const STATES = {
  saving: "Saving…",
  waiting: "Not saved yet: the server does not answer. It is asked again, and nothing is lost.",
  saved: "Saved.",
  problem: "Not everything is saved.",
};
const $ = (id) => document.getElementById(id);
let state = { where: "", order: "worth", unique: "", view: "one", row: "" };
let position = 0;
let noting; // the timer of the address
let polls = 0;
let isDeciding = false;
let others = 0; // keys that were pressed since a decision
let loads = 0; // of the list, begun so far: the answer to an earlier one is not shown

const isGrid = () => state.view === "grid";

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  state = { where: "", order: "worth", unique: "", view: "one", row: "", ...Object.fromEntries(given) };
  if (![...$("order").options].some(({ value }) => value === state.order)) state.order = "worth";
  $("where").value = state.where;
  $("order").value = state.order;
  $("unique").checked = state.unique !== "";
}

/** Change the state; the address follows soon, since browsers count how often it is changed. */
function noteAddress(changes) {
  Object.assign(state, changes);
  clearTimeout(noting);
  noting = setTimeout(writeAddress, NOTED_MS);
}

function writeAddress() {
  const given = Object.entries(state).filter(([name, value]) => value !== "" && !(name === "view" && value === "one") && !(name === "order" && value === "worth"));
  history.replaceState(null, "", `#${new URLSearchParams(given)}`);
}

/** Load the list of the filter; the row that was shown stays, if it is in it. */
async function load() {
  const mine = ++loads;
  const before = list.csv;
  try {
    await loadList({ where: state.where, order: state.order, unique: state.unique !== "" });
    if (mine !== loads) return;
    showQueryError("");
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    if (mine === loads) showQueryError(failure.status === 422 ? failure.values.detail : failure.message);
    return;
  }
  const isKnown = !state.unique || list.grouped;
  if (!isKnown) say($("notice"), "Near-duplicates are not known yet, or there are no vectors: all pictures are listed.");
  $("notice").hidden = isKnown;
  $("to-new").hidden = true;
  makeFields();
  position = positionOf(Number(state.row || NaN)) ?? 0;
  resetGrid(position);
  for (const number of selected) if (positionOf(number) === undefined) selected.delete(number);
  show();
  announce(translated("Pictures: {count}.", { count: list.rows.length.toLocaleString(pageLanguage()) }));
  if (list.csv !== before) await takeUp();
}

/** Load the list again, since numbers of rows are others now. */
async function reload() {
  selected.clear();
  await load();
  failed(STALE);
}

async function takeUp() {
  const count = await restore();
  if (!count) return;
  announce(say($("saving"), "What was typed before is being saved. Values: {count}.", { count }).textContent);
  showValues();
}

function showQueryError(sentence) {
  $("where-error").textContent = sentence;
  $("where-error").hidden = !sentence;
  $("where").setAttribute("aria-invalid", Boolean(sentence));
  $("to-bulk").disabled = Boolean(sentence);
  if (sentence) announce(sentence);
}

function showCount() {
  const number = (each) => each.toLocaleString(pageLanguage());
  say($("count"), list.rows.length === list.total ? "{count} pictures" : "{count} of {total} pictures", { count: number(list.rows.length), total: number(list.total) });
  if (selected.size) $("count").append(" · ", translated("{count} selected", { count: number(selected.size) }));
}

function show() {
  showCount();
  $("empty").hidden = list.rows.length > 0;
  say($("empty"), list.total ? "No picture fits the filter." : "The CSV has no rows yet.");
  $("grid-view").hidden = !isGrid() || !list.rows.length;
  $("one-view").hidden = isGrid() || !list.rows.length;
  say($("to-grid"), isGrid() ? "One by one" : "Grid");
  if (!list.rows.length) return;
  if (isGrid()) drawSoon();
  else showOne(position).catch(failed);
}

/** Show a sentence, or that of a Failure, until another row is shown. */
function failed(failure) {
  if (typeof failure !== "string" && !(failure instanceof Failure)) throw failure;
  $("notice").textContent = failure.message || translated(failure);
  $("notice").hidden = false;
}

/** Show another row, and let a screen reader say it. */
async function goTo(next, { isSaid = true } = {}) {
  if (next < 0 || next >= list.rows.length) {
    if (isSaid) announce(translated(next < 0 ? "This is the first picture." : "This is the last picture."));
    return;
  }
  flush();
  position = next;
  noteAddress({ row: String(list.rows[position]) });
  if (isGrid()) return focusPosition(position);
  const shown = showOne(position);
  $("one-title").focus({ preventScroll: true });
  scrollTo(0, Math.min(scrollY, $("main").offsetTop));
  $("notice").hidden = true;
  try {
    await shown;
    if (isSaid && list.rows[position] === list.rows[next]) sayRow(position);
  } catch (failure) {
    failed(failure);
  }
}

async function setView(view) {
  if (isGrid()) position = currentPosition();
  noteAddress({ view, row: String(list.rows[position] ?? "") });
  show();
  if (!list.rows.length) return;
  if (isGrid()) focusPosition(position);
  else goTo(position);
}

/** The place of the next row after one that nobody has decided on, also before it; undefined for none. */
async function nextOpen(at) {
  let place = at + 1;
  while (rowOf(list.rows[place]) && !isOpen(list.rows[place])) place++;
  if (rowOf(list.rows[place])) return place;
  const { where, order, unique } = state;
  const query = new URLSearchParams({ where, order, unique: unique !== "", after: list.rows[place - 1] });
  const { row } = await (await ask(`/v1/review/next?${query}`)).json();
  return row === list.rows[at] ? undefined : positionOf(row); // what was just decided may not be saved yet
}

const isOpen = (number) => valueOf(rowOf(number), "verified") === "";

/** Accept or reject what is shown or selected, and go on with the next that nobody has decided on; "" takes that back. */
async function decide(verdict, event) {
  others = 0;
  if (!list.rows.length || isDeciding || event.repeat) return;
  isDeciding = true;
  try {
    await (isGrid() && selected.size ? decideSelected(verdict) : decideOne(verdict));
  } finally {
    isDeciding = false;
  }
}

async function decideOne(verdict) {
  const at = isGrid() ? currentPosition() : position;
  const row = rowOf(list.rows[at]);
  if (!row) return;
  const before = [loads, isGrid(), document.activeElement];
  const isTyped = isUnsaved(row);
  change(row, "verified", verdict);
  const saved = flush();
  announce(translated(verdict || "no longer decided"));
  if (isGrid()) redraw([row.row]);
  else showValues();
  if (!verdict) return;
  if (isTyped) await Promise.race([saved, new Promise((resolve) => setTimeout(resolve, REFUSED_MS))]);
  if (isRefused(row)) return;
  const next = await nextOpen(at).catch(failed);
  const isElsewhere = at !== (isGrid() ? currentPosition() : position) || others > 0;
  if (isElsewhere || [loads, isGrid(), document.activeElement].some((now, index) => now !== before[index])) return;
  if (next !== undefined) await goTo(next);
  else announce(translated("That was the last one that nobody has decided on."));
}

async function decideSelected(verdict) {
  const body = { rows: [...selected], server: list.server, operation: { kind: "set", column: "verified", value: verdict }, preview: false, who: localStorage.getItem("who") || "" };
  try {
    await bulkDone(await (await ask("/v1/review/bulk", json(body))).json());
  } catch (failure) {
    if (failure instanceof Failure && isStale(failure)) await reload();
    else failed(failure);
  }
}

async function bulkDone({ act, changes }) {
  if (act) canUndo(act);
  noteAct(act || 0);
  deselect();
  await showChanged();
  announce(translated("Changed values: {count}. Undo takes all of them back.", { count: changes.toLocaleString(pageLanguage()) }));
  if (isGrid()) focusPosition(currentPosition());
  else $("one-title").focus();
}

/** Ask again for the rows on the screen: all others are forgotten, and asked for when they are needed. */
async function showChanged(numbers) {
  const near = isGrid() ? [...document.querySelectorAll("#grid [data-position]")].map((node) => list.rows[Number(node.dataset.position)]) : [list.rows[position]];
  if (!numbers || numbers.length > ROWS_ASKED) forget(near);
  const wanted = numbers && numbers.length <= ROWS_ASKED ? numbers : near;
  await refresh(wanted.filter((number) => number !== undefined)).catch(failed);
  redraw(near);
  if (isGrid()) return;
  showValues();
  lookAhead(position).catch(() => {});
}

async function undo() {
  await flush();
  announce(await undoLast());
}

async function undone(act, rows) {
  await showChanged(noteAct(act) ? rows : undefined);
  const at = rows.length === 1 ? positionOf(rows[0]) : undefined;
  if (at !== undefined && at !== position && !$("acts").open) await goTo(at, { isSaid: false });
}

/** Look whether another tab, or somebody else, has changed something. */
async function poll() {
  if (!list.csv) return;
  if (!document.querySelector("dialog[open]")) await takeUp();
  if (document.hidden) return;
  try {
    if (++polls % POLLS_TO_COUNT === 0) await countNew();
    if (!list.rows.length) return;
    const [last] = await (await ask("/v1/review/acts?most=1")).json();
    if (!last || last.id === list.acts) return;
    list.acts = last.id;
    await showChanged();
    announce(translated("{who} has changed something.", { who: last.who || translated("somebody") }));
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure; // that the server does not answer is said when something is to be saved
  }
}

/** Say how many rows the CSV has got since the list was loaded. */
async function countNew() {
  const { csv, total } = await (await ask(`/v1/review?${new URLSearchParams({ where: 'path:""', order: "csv" })}`)).json();
  const count = csv === list.csv ? total - list.total : 0;
  if (count <= 0) return;
  const isNews = $("to-new").hidden;
  say($("to-new"), "New pictures: {count}. Load them", { count: count.toLocaleString(pageLanguage()) }).hidden = false;
  if (isNews) announce($("to-new").textContent);
}

function listen() {
  let typing;
  const askFor = (changes) => {
    clearTimeout(typing);
    noteAddress(changes);
    load();
  };
  $("where").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => askFor({ where: $("where").value.trim() }), TYPED_MS);
  });
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    askFor({ where: $("where").value.trim() });
  });
  $("order").addEventListener("change", () => askFor({ order: $("order").value, row: "" }));
  $("unique").addEventListener("change", () => askFor({ unique: $("unique").checked ? "1" : "" }));
  $("to-grid").addEventListener("click", () => setView(isGrid() ? "one" : "grid"));
  $("undo").addEventListener("click", undo);
  $("to-new").addEventListener("click", load);
  document.addEventListener("keydown", () => others++, true);
  $("who").value = localStorage.getItem("who") || "";
  $("who").addEventListener("change", () => localStorage.setItem("who", $("who").value.trim()));
  for (const button of document.querySelectorAll("dialog .close")) button.addEventListener("click", () => button.closest("dialog").close());
  addEventListener("hashchange", () => {
    readAddress();
    load();
  });
  setInterval(poll, POLL_MS);
}

const step = (by) => () => goTo((isGrid() ? currentPosition() : position) + by);
/** What the button of a decision does: pressed again, it takes the decision back. */
const press = (verdict) => (event) => {
  const isPressed = event.currentTarget.getAttribute("aria-pressed") === "true";
  decide(isPressed && event.detail < 2 ? "" : verdict, event);
};
const inOne = (act) => (event) => (isGrid() || event.target.closest("#grid") ? false : act(event));

const KEYS = [
  { names: ["J", "ArrowRight"], does: "next picture", act: (event) => (event.key === "ArrowRight" ? inOne(step(1))(event) : step(1)()) },
  { names: ["K", "ArrowLeft"], does: "previous picture", act: (event) => (event.key === "ArrowLeft" ? inOne(step(-1))(event) : step(-1)()) },
  { names: ["A"], does: "accept, and go on with the next that nobody has decided on", act: (event) => decide("accepted", event) },
  { names: ["R"], does: "reject, and go on", act: (event) => decide("rejected", event) },
  { names: ["E"], does: "edit the first field; Tab leads to the others", act: () => edit() },
  { names: ["Control+Enter"], does: "in a field: save, accept, and go on", act: inOne((event) => decide("accepted", event)), isAnywhere: true },
  { names: ["Escape"], does: "leave a field; what was typed is saved", act: leave, isAnywhere: true },
  { names: ["U", "Control+Z"], does: "undo the last change of this tab", act: () => undo() },
  { names: ["G"], does: "grid, or one by one", act: () => setView(isGrid() ? "one" : "grid") },
  { names: ["X"], does: "in the grid: select; Shift with arrow keys selects several", act: () => isGrid() && toggle() },
  { names: ["/"], does: "filter", act: () => $("where").focus() },
  { names: ["B"], does: "change many pictures", act: () => $("to-bulk").click() },
  { names: ["C"], does: "list of changes, each with undo", act: () => openActs() },
  { names: ["?"], does: "this list", act: () => $("help").showModal() },
];

async function edit() {
  if (isGrid()) await setView("one");
  editFirst();
}

/** From a field back to the picture; in the grid, forget the selection. */
function leave(event) {
  const isInField = event.target.closest("#fields, #ask, .who");
  if (!isInField && isGrid()) return deselect();
  if (!isInField || !list.rows.length) return false;
  flush();
  if (isGrid()) focusPosition(currentPosition());
  else $("one-title").focus();
}

async function begin() {
  addRussian(WORDS);
  beginPage(show);
  beginSaving({
    saved: (act, rows) => {
      canUndo(act);
      if (!noteAct(act)) showChanged();
      redraw(rows.map(({ row }) => row));
      if (rows.some(({ row }) => row === list.rows[position])) showValues();
    },
    state: (name) => {
      if (name === "saved" && !$("saving").textContent) return; // nothing was to be saved
      const text = say($("saving"), STATES[name]).textContent;
      if ($("saving").classList.toggle("warning", name === "waiting")) announce(text);
    },
    refused: (draft, reason) => {
      const said = translated("Not saved: {name}: {reason}", { name: draft.key.split("/").pop(), reason });
      if (draft.row === list.rows[position]) announce(said);
      else failed(said);
      showValues();
    },
    conflict: (draft, now) => {
      showValues();
      addConflict(draft, now);
    },
    moved: (key, number) => {
      if (number !== undefined && key === rowOf(list.rows[position])?.key) noteAddress({ row: String(number) });
      else if (!isGrid()) $("one-title").focus(); // not to type into another picture
      reload();
    },
  });
  beginConflicts(showValues);
  beginActs({ undone, stale: reload });
  beginBulk({ where: () => (state.unique ? null : state.where), done: bulkDone, stale: reload });
  beginGrid({
    open: (at) => {
      noteAddress({ view: "one" });
      position = at;
      show();
      goTo(at);
    },
    moved: (at) => {
      position = at;
      noteAddress({ row: String(list.rows[at]) });
    },
    selected: showCount,
  });
  beginOne({ previous: step(-1), next: step(1), accept: press("accepted"), reject: press("rejected") });
  beginKeys(KEYS);
  listen();
  readAddress();
  await load();
}

begin();
