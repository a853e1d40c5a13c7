/* Saves what is edited: a draft stays in the browser until the server has answered, so that neither may be killed. */

import { json, refresh, rowOf, take } from "./review-rows.js";
import { ask, Failure } from "./server.js";

const TYPED_MS = 1000; // without a key, until what was typed is saved
const RETRY_MS = 2000;
const KEPT = "review "; // what names of drafts in the browser's storage begin with
const drafts = new Map(); // name -> {row, key, column, value, seen, problem}
const tab = crypto.getRandomValues(new Uint32Array(2)).join("");
let typed; // the timer
let sending = null;
let isWaiting = false; // for a server that does not answer
let hears = {};

/** Begin; `listener` has what is called: state(how it goes: saving, waiting for a server that does not answer, saved, or
 * problem), saved(act, rows), refused(draft, sentence) and conflict(draft, now). */
export function beginSaving(listener) {
  hears = listener;
  navigator.locks?.request(KEPT + tab, () => new Promise(() => {})); // held as long as this tab lives
  addEventListener("pagehide", flush);
  document.addEventListener("visibilitychange", () => document.hidden && flush());
}

const nameOf = (key, column) => `${KEPT}${key}\n${column}`;
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
  if (isAsItWas && !before?.isSent) drop(name);
  else keep(name, { row: row.row, key: row.key, column, value, seen, isSent: before?.isSent });
  clearTimeout(typed);
  typed = setTimeout(flush, TYPED_MS);
}

function keep(name, draft) {
  drafts.set(name, draft);
  if (!isWaiting) hears.state("saving");
  const { row, key, column, value, seen } = draft;
  try {
    localStorage.setItem(name, JSON.stringify({ row, key, column, value, seen, tab }));
  } catch {
    // the storage is full or forbidden: the draft lives as long as the tab
  }
}

function drop(name) {
  drafts.delete(name);
  localStorage.removeItem(name);
}

/** Give up a draft: what the server has stays. */
export const giveUp = (draft) => drop(nameOf(draft.key, draft.column));

/** Save a draft over what somebody else has saved since. */
export function insist(draft, act) {
  keep(nameOf(draft.key, draft.column), { ...draft, seen: act, problem: "" });
  return flush();
}

/** Save everything that can be; fulfilled when that is done. */
export function flush() {
  clearTimeout(typed);
  sending ||= sendAll().finally(() => (sending = null));
  return sending;
}

async function sendAll() {
  for (;;) {
    const ready = [...drafts.values()].filter((draft) => !draft.problem);
    const batch = ready.filter(({ key, isAlone }) => key === ready[0].key && !isAlone);
    if (!ready.length) return hears.state(drafts.size ? "problem" : "saved");
    try {
      await send(batch.length ? batch : ready.slice(0, 1));
      isWaiting = false;
    } catch (failure) {
      if (!(failure instanceof Failure)) throw failure;
      if (!isWaiting) hears.state("waiting");
      isWaiting = true;
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      for (const draft of ready) draft.isFound = false; // another CSV may be served by now
    }
  }
}

/** Send the drafts of one row as one act. Throws Failure where the server does not answer. */
async function send(batch) {
  for (const draft of batch) {
    if (draft.isFound === false && !(await find(draft))) return;
    draft.isSent = true;
  }
  const changes = batch.map(({ row, column, value, seen }) => ({ row, column, value, seen }));
  try {
    const response = await ask("/v1/review/correct", json({ changes, who: localStorage.getItem("who") || "" }));
    const { act, rows } = await response.json();
    take(rows);
    for (const draft of batch) saved(draft, act);
    hears.saved(act, rows);
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    if (failure.status === 409) await collide(batch, failure.body.conflicts);
    else if (![404, 422].includes(failure.status)) throw failure;
    else if (batch.length > 1) batch.forEach((draft) => (draft.isAlone = true)); // which of them is it?
    else {
      batch[0].problem = failure.values.detail;
      hears.refused(batch[0], failure.values.detail);
    }
  }
}

function saved(draft, act) {
  const name = nameOf(draft.key, draft.column);
  const now = drafts.get(name);
  if (now === draft || !now || now.value === draft.value) drop(name);
  else keep(name, { ...now, seen: act, isSent: false }); // typed meanwhile
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

/** Find the row of a draft by its picture: rows may have other numbers than before. */
async function find(draft) {
  await refresh([draft.row]).catch((failure) => {
    if (failure.status !== 404 && failure.status !== 422) throw failure;
  });
  if (rowOf(draft.row)?.key !== draft.key) {
    const quoted = draft.key.replace(/["\\]/g, "\\$&");
    const found = await (await ask(`/v1/review?${new URLSearchParams({ where: `path:"${quoted}"`, order: "csv", unique: false })}`)).json();
    await refresh(found.rows);
    draft.row = found.rows.find((number) => rowOf(number)?.key === draft.key);
    if (draft.row === undefined) {
      draft.problem = "gone"; // it is of another CSV, and stays in the browser for that
      drafts.delete(nameOf(draft.key, draft.column));
      return false;
    }
  }
  draft.isFound = true;
  return true;
}

/** Take up what tabs that have ended had not saved; return how many values. */
export async function restore() {
  const held = (await navigator.locks?.query())?.held.map(({ name }) => name) || [];
  const names = Object.keys(localStorage).filter((name) => name.startsWith(KEPT));
  let found = 0;
  for (const name of names) {
    const draft = JSON.parse(localStorage.getItem(name));
    if (held.includes(KEPT + draft.tab)) continue;
    drafts.set(name, { ...draft, isFound: false, isSent: true });
    found++;
  }
  if (found) flush();
  return found;
}
