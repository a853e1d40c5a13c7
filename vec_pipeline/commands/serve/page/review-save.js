/* Saves what is edited: a draft stays in the browser until the server has answered, so that neither may be killed. */

import { isStale, json, list, refresh, take } from "./review-rows.js";
import { ask, Failure } from "./server.js";

const TYPED_MS = 1000; // without a key, until what was typed is saved
const RETRY_MS = 2000;
const ALIVE_MS = 2000; // between signs of life, where the browser has no locks
const DEAD_MS = 10_000; // without one, until a tab counts as closed
const KEPT = "review "; // what names of drafts in the browser's storage begin with, before the CSV and the tab
const ALIVE = "alive "; // and those of signs of life
const drafts = new Map(); // name -> {csv, row, key, column, value, seen, problem}
const tab = crypto.getRandomValues(new Uint32Array(2)).join("");
let typed; // the timer
let flushed_ms = 0; // what was typed until then is not waited for any longer
let sending = null;
let isWaiting = false; // for a server that does not answer
let hears = {};

/** Begin; `listener` has what is called: state(how it goes: saving, waiting for a server that does not answer, saved, or
 * problem), saved(act, rows), refused(draft, sentence), conflict(draft, now), and moved(key, number), where the row of a
 * picture has another number than before, undefined for none. */
export function beginSaving(listener) {
  hears = listener;
  navigator.locks?.request(KEPT + tab, () => new Promise(() => {})); // held as long as this tab lives
  if (!navigator.locks) signLife(); // at an address without https
  addEventListener("pagehide", () => {
    flush();
    localStorage.removeItem(ALIVE + tab);
  });
  document.addEventListener("visibilitychange", () => document.hidden && flush());
}

function signLife() {
  try {
    localStorage.setItem(ALIVE + tab, Date.now());
  } catch {
    // then no draft can be stored either
  }
  setTimeout(signLife, ALIVE_MS);
}

const nameOf = (key, column) => `${key}\n${column}`;
const storedAs = ({ csv, key, column }, of = tab) => `${KEPT}${csv} ${of} ${nameOf(key, column)}`;
export const draftOf = (row, column) => drafts.get(nameOf(row.key, column));

/** The value that a column of a row has now, or is to have. */
export function valueOf(row, column) {
  const draft = draftOf(row, column);
  return draft ? (draft.value ?? row.machine[column] ?? "") : column === "verified" ? row.verified : (row.values[column] ?? "");
}

/** Note a new value, null for the machine's; it is saved soon, or by `flush`. */
export function change(row, column, value) {
  const name = nameOf(row.key, column);
  const before = drafts.get(name);
  const isAsItWas = value === null ? !(column in row.machine) : value === String(column === "verified" ? row.verified : (row.values[column] ?? ""));
  const seen = before ? before.seen : (row.acts[column] ?? 0);
  const draft = { csv: list.csv, row: row.row, key: row.key, column, value, seen, isSent: before?.isSent, typed_ms: performance.now() };
  if (isAsItWas && !before?.isSent) giveUp(draft);
  else keep({ ...draft, isFound: isWaiting ? false : before?.isFound });
  clearTimeout(typed);
  typed = setTimeout(send, TYPED_MS);
}

function keep(draft) {
  const { csv, row, key, column, value, seen } = draft;
  drafts.set(nameOf(key, column), draft);
  if (!isWaiting) hears.state("saving");
  try {
    localStorage.setItem(storedAs(draft), JSON.stringify({ csv, row, key, column, value, seen }));
  } catch {
    // the storage is full or forbidden: the draft lives as long as the tab
  }
}

/** Give up a draft: what the server has stays. */
export function giveUp(draft) {
  drafts.delete(nameOf(draft.key, draft.column));
  localStorage.removeItem(storedAs(draft));
}

/** Whether something of a row is not saved yet; whether that was refused. */
export const isUnsaved = (row) => [...drafts.values()].some(({ key }) => key === row.key);
export const isRefused = (row) => [...drafts.values()].some(({ key, problem }) => key === row.key && problem);

/** Save a draft over what somebody else has saved since. */
export function insist(draft, act) {
  const latest = drafts.get(nameOf(draft.key, draft.column)) || draft;
  keep({ ...latest, seen: act, problem: "" });
  return flush();
}

/** Save everything that can be; fulfilled when that is done. */
export function flush() {
  clearTimeout(typed);
  flushed_ms = performance.now();
  return send();
}

/** Save what is not being typed any more. */
function send() {
  sending ||= sendAll().finally(() => (sending = null));
  return sending;
}

async function sendAll() {
  for (;;) {
    const until_ms = Math.max(flushed_ms, performance.now() - TYPED_MS + 50); // timers are early at times
    const ready = [...drafts.values()].filter(({ problem, typed_ms = 0 }) => !problem && typed_ms <= until_ms);
    const batch = ready.filter(({ key, isAlone }) => key === ready[0].key && !isAlone);
    if (!ready.length) return hears.state(stateOfAll());
    try {
      await sendBatch(batch.length ? batch : ready.slice(0, 1));
      isWaiting = false;
    } catch (failure) {
      if (!(failure instanceof Failure)) throw failure;
      if (!isWaiting && !isStale(failure)) hears.state("waiting");
      isWaiting = !isStale(failure);
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      for (const draft of drafts.values()) draft.isFound = false; // another CSV may be served by now
    }
  }
}

function stateOfAll() {
  if (!drafts.size) return "saved";
  return [...drafts.values()].some(({ problem }) => problem) ? "problem" : "saving";
}

/** Send the drafts of one row as one act. Throws Failure where the server does not answer, or the row is another. */
async function sendBatch(batch) {
  for (const draft of batch) {
    if (draft.isFound === false && !(await find(draft))) return;
    draft.isSent = true;
  }
  const changes = batch.map(({ row, key, column, value, seen }) => ({ row, key, column, value, seen }));
  try {
    const response = await ask("/v1/review/correct", json({ changes, csv: list.csv, who: localStorage.getItem("who") || "" }));
    const { act, rows } = await response.json();
    take(rows);
    for (const draft of batch) saved(draft, act);
    hears.saved(act, rows);
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    if (isStale(failure)) throw failure;
    if (failure.status === 409) await collide(batch, failure.body.conflicts);
    else if (![404, 422].includes(failure.status)) throw failure;
    else if (batch.length > 1) {
      for (const draft of batch) draft.column === "verified" ? giveUp(draft) : (draft.isAlone = true); // which of them is it?
    } else {
      batch[0].problem = failure.values.detail;
      hears.refused(batch[0], failure.values.detail);
    }
  }
}

function saved(draft, act) {
  const now = drafts.get(nameOf(draft.key, draft.column));
  if (now === draft || !now || now.value === draft.value) giveUp(draft);
  else keep({ ...now, seen: act, isSent: false }); // typed meanwhile
}

/** Somebody has saved other values since; where they are the same, all is well. */
async function collide(batch, conflicts) {
  await refresh([batch[0].row]);
  for (const now of conflicts) {
    const draft = batch.find(({ column }) => column === now.column);
    const latest = draft && (drafts.get(nameOf(draft.key, draft.column)) || draft);
    if (!latest) continue;
    if (now.value === latest.value) giveUp(latest);
    else {
      latest.problem = "conflict";
      hears.conflict(latest, now);
    }
  }
}

/** Find the row of a draft by its picture: rows may have other numbers than before, or be those of another CSV. */
async function find(draft) {
  const quoted = draft.key.replace(/["\\]/g, "\\$&");
  const found = await (await ask(`/v1/review?${new URLSearchParams({ where: `path:"${quoted}"`, order: "csv", unique: false })}`)).json();
  const rows = found.csv === draft.csv ? await (await ask("/v1/review/rows", json({ rows: found.rows }))).json() : [];
  const row = rows.find(({ key }) => key === draft.key);
  if (draft.row !== undefined && row?.row !== draft.row) hears.moved(draft.key, row?.row);
  draft.row = row?.row;
  draft.isFound = Boolean(row);
  if (row) take([row]);
  else drafts.delete(nameOf(draft.key, draft.column)); // it stays in the browser, for the CSV that has the picture
  return draft.isFound;
}

/** Take up what tabs that have ended had not saved of this CSV; return how many values. */
export async function restore() {
  const held = (await navigator.locks?.query())?.held.map(({ name }) => name);
  const isAlive = (of) => of === tab || (held ? held.includes(KEPT + of) : Date.now() - Number(localStorage.getItem(ALIVE + of)) < DEAD_MS);
  const names = Object.keys(localStorage).filter((name) => name.startsWith(`${KEPT}${list.csv} `));
  let found = 0;
  for (const name of names) {
    const draft = JSON.parse(localStorage.getItem(name));
    if (isAlive(name.split(" ")[2]) || drafts.has(nameOf(draft.key, draft.column))) continue;
    keep({ ...draft, row: undefined, isFound: false, isSent: true });
    localStorage.removeItem(name);
    found++;
  }
  if (found) flush();
  return found;
}
