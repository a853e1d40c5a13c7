/* The page to review rows: its state, all of which is in the address, and what its parts do with each other. */

import { beginActs, canUndo, openActs, undoLast } from "./review-acts.js";
import { beginBulk, openBulk } from "./review-bulk.js";
import { addConflict, beginConflicts } from "./review-conflict.js";
import { beginGrid, currentPosition, deselect, drawSoon, focusPosition, redraw, resetGrid, selected, toggle } from "./review-grid.js";
import { beginKeys } from "./review-keys.js";
import { beginOne, editFirst, lookAhead, makeFields, sayRow, showOne, showValues } from "./review-one.js";
import { forget, json, list, loadList, need, noteAct, positionOf, refresh, rowOf } from "./review-rows.js";
import { beginSaving, change, flush, restore, valueOf } from "./review-save.js";
import { WORDS } from "./review-words.js";
import { ask, Failure } from "./server.js";
import { addRussian, announce, pageLanguage, say, setLanguage, translated } from "./words.js";

const POLL_MS = 4000; // between questions whether somebody else has changed something
const TYPED_MS = 400; // without a key, until a filter is asked for
const NOTED_MS = 200;
const ROWS_ASKED = 200; // that a search for the next doubtful row knows at a time
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
let loads = 0; // of the list, begun so far: the answer to an earlier one is not shown

const isGrid = () => state.view === "grid";

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  state = { where: "", order: "worth", unique: "", view: "one", row: "", ...Object.fromEntries(given) };
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
  makeFields();
  position = positionOf(Number(state.row || NaN)) ?? 0;
  resetGrid(position);
  for (const number of selected) if (positionOf(number) === undefined) selected.delete(number);
  show();
  announce(translated("Pictures: {count}.", { count: list.rows.length.toLocaleString(pageLanguage()) }));
}

function showQueryError(sentence) {
  $("where-error").textContent = sentence;
  $("where-error").hidden = !sentence;
  $("where").setAttribute("aria-invalid", Boolean(sentence));
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

function failed(failure) {
  if (!(failure instanceof Failure)) throw failure;
  $("notice").textContent = failure.message;
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

/** The place of the next row after one that nobody has decided on; undefined for none. */
async function nextDoubtful(after) {
  for (let start = after + 1; start < list.rows.length; start += ROWS_ASKED) {
    const some = list.rows.slice(start, start + ROWS_ASKED);
    const known = some.findIndex((number) => !rowOf(number) || isOpen(number));
    if (known >= 0 && rowOf(some[known])) return start + known;
    if (known >= 0) await need(some);
    const found = some.findIndex(isOpen);
    if (found >= 0) return start + found;
  }
  return undefined;
}

const isOpen = (number) => rowOf(number) && valueOf(rowOf(number), "verified") === "";

/** Accept or reject what is shown or selected, and go on with the next that nobody has decided on. */
async function decide(verdict) {
  if (!list.rows.length) return;
  if (isGrid() && selected.size) return decideSelected(verdict);
  const at = isGrid() ? currentPosition() : position;
  const row = rowOf(list.rows[at]);
  if (!row) return;
  const isUndone = valueOf(row, "verified") === verdict;
  change(row, "verified", isUndone ? "" : verdict);
  flush();
  announce(translated(isUndone ? "no longer decided" : verdict));
  if (isGrid()) redraw([row.row]);
  else showValues();
  if (isUndone) return;
  const next = await nextDoubtful(at).catch(failed);
  if (next !== undefined) await goTo(next);
  else announce(translated("That was the last one that nobody has decided on."));
}

async function decideSelected(verdict) {
  const body = { rows: [...selected], operation: { kind: "set", column: "verified", value: verdict }, preview: false, who: localStorage.getItem("who") || "" };
  try {
    await bulkDone(await (await ask("/v1/review/bulk", json(body))).json());
  } catch (failure) {
    failed(failure);
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
  if (document.hidden || !list.rows.length) return;
  try {
    const [last] = await (await ask("/v1/review/acts?most=1")).json();
    if (!last || last.id === list.acts) return;
    list.acts = last.id;
    await showChanged();
    announce(translated("{who} has changed something.", { who: last.who || translated("somebody") }));
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure; // that the server does not answer is said when something is to be saved
  }
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
  $("who").value = localStorage.getItem("who") || "";
  $("who").addEventListener("change", () => localStorage.setItem("who", $("who").value.trim()));
  for (const button of document.querySelectorAll("dialog .close")) button.addEventListener("click", () => button.closest("dialog").close());
  addEventListener("hashchange", () => {
    readAddress();
    load();
  });
  for (const button of document.querySelectorAll("[data-language]")) {
    button.addEventListener("click", () => {
      localStorage.setItem("language", button.dataset.language);
      setLanguage(button.dataset.language);
      show();
    });
  }
  setInterval(poll, POLL_MS);
}

const step = (by) => () => goTo((isGrid() ? currentPosition() : position) + by);
const inOne = (act) => (event) => (isGrid() || event.target.closest("#grid") ? false : act(event));

const KEYS = [
  { names: ["J", "ArrowRight"], does: "next picture", act: (event) => (event.key === "ArrowRight" ? inOne(step(1))(event) : step(1)()) },
  { names: ["K", "ArrowLeft"], does: "previous picture", act: (event) => (event.key === "ArrowLeft" ? inOne(step(-1))(event) : step(-1)()) },
  { names: ["A"], does: "accept, and go on with the next that nobody has decided on", act: () => decide("accepted") },
  { names: ["R"], does: "reject, and go on", act: () => decide("rejected") },
  { names: ["E"], does: "edit the first field; Tab leads to the others", act: () => edit() },
  { names: ["Control+Enter"], does: "in a field: save, accept, and go on", act: inOne(() => decide("accepted")), isAnywhere: true },
  { names: ["Escape"], does: "leave a field; what was typed is saved", act: leave, isAnywhere: true },
  { names: ["U", "Control+Z"], does: "undo the last change of this tab", act: () => undo() },
  { names: ["G"], does: "grid, or one by one", act: () => setView(isGrid() ? "one" : "grid") },
  { names: ["X"], does: "in the grid: select; Shift with arrow keys selects several", act: () => isGrid() && toggle() },
  { names: ["/"], does: "filter", act: () => $("where").focus() },
  { names: ["B"], does: "change many pictures", act: () => openBulk() },
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
  setLanguage(pageLanguage());
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
    refused: (draft, sentence) => {
      announce(translated("Not saved: {reason}", { reason: sentence }));
      showValues();
    },
    conflict: (draft, now) => {
      showValues();
      addConflict(draft, now);
    },
  });
  beginConflicts(showValues);
  beginActs({ undone });
  beginBulk({ where: () => (state.unique ? null : state.where), done: bulkDone });
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
  beginOne({ previous: step(-1), next: step(1), accept: () => decide("accepted"), reject: () => decide("rejected") });
  beginKeys(KEYS);
  listen();
  readAddress();
  await load();
  const restored = await restore();
  if (restored) {
    announce(say($("saving"), "What was typed before is being saved. Values: {count}.", { count: restored }).textContent);
    showValues();
  }
}

begin();
