/* Acts of everybody: undo, and the list of what was done. An act on many pictures is undone as one. */

import { isStale, json, list, STALE } from "./review-rows.js";
import { element, foreign } from "./results.js";
import { ACTS } from "./review-words.js";
import { ask, Failure } from "./server.js";
import { pageLanguage, say, translated } from "./words.js";

const AT_ONCE = 30;
const $ = (id) => document.getElementById(id);
let hears = {};

/** `listener` has undone(act, rows), which gets an undo and the numbers of the rows that it has changed, and stale(),
 * which is called where another CSV is served by now. */
export function beginActs(listener) {
  hears = listener;
  $("to-acts").addEventListener("click", openActs);
  $("acts-more").addEventListener("click", () => more(Number($("acts-list").lastElementChild?.dataset.act)));
}

/** Acts of this tab on this CSV that can be undone, the last one last. */
const mine = () => JSON.parse(sessionStorage.getItem(`acts ${list.csv}`) || "[]");
const keep = (acts) => sessionStorage.setItem(`acts ${list.csv}`, JSON.stringify(acts.slice(-1000)));

/** Note an act of this tab, for `undoLast`. */
export const canUndo = (act) => keep([...mine(), act]);

let undoing = Promise.resolve(); // the last undo: one after the other, or the second would meet what the first takes back

/** Undo the last act of this tab; return what there is to say. */
export const undoLast = () => (undoing = undoing.then(undoNext));

async function undoNext() {
  const acts = mine();
  if (!acts.length) return translated("There is nothing to undo. All changes are listed under “Changes…”.");
  const act = acts.pop();
  keep(acts);
  return undo(act);
}

async function undo(act) {
  try {
    const found = await (await ask("/v1/review/undo", json({ act, csv: list.csv, who: localStorage.getItem("who") || "" }))).json();
    await hears.undone(found.act, found.rows);
    return translated("Undone. Pictures: {count}.", { count: found.rows.length });
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    if (isStale(failure)) {
      hears.stale();
      return translated(STALE);
    }
    if (failure.status === 409) return translated(failure.body.conflicts.length ? "This cannot be undone: a value was changed after it." : "This is undone already.");
    if (![404, 422].includes(failure.status)) canUndo(act);
    return failure.message;
  }
}

export async function openActs() {
  $("acts-list").replaceChildren();
  $("acts-said").textContent = "";
  if (!$("acts").open) $("acts").showModal();
  await more();
}

async function more(before) {
  try {
    const query = new URLSearchParams({ most: AT_ONCE, ...(before ? { before } : {}) });
    const found = await (await ask(`/v1/review/acts?${query}`)).json();
    $("acts-list").append(...found.map(entry));
    $("acts-more").hidden = found.length < AT_ONCE;
    if (!$("acts-list").children.length) say($("acts-said"), "Nothing has been changed yet.");
  } catch (failure) {
    $("acts-said").textContent = failure.message;
  }
}

/** What an act was, in the language of the page; the server calls it by its English name. */
function nameOf(what) {
  for (const name of Object.keys(ACTS)) {
    const found = what.match(new RegExp(`^${name.replace(/\{(\w+)\}/g, "(?<$1>.*)")}$`, "s"));
    const parts = found?.groups || {};
    if (found) return translated(name, parts.act ? { act: nameOf(parts.act) } : parts);
  }
  return what;
}

function entry(act) {
  const about = translated("{time}, {who}; values: {count}", { time: timeOf(act.time), who: act.who || translated("somebody"), count: act.changes });
  const words = element("span", {}, foreign("span", nameOf(act.what)), " ", element("small", { class: "muted" }, about));
  if (act.undone_by) return element("li", { "data-act": act.id }, words, say(element("span", { class: "muted" }), "undone"));
  const button = say(element("button", { type: "button" }), "Undo");
  button.setAttribute("aria-label", `${translated("Undo")}: ${nameOf(act.what)}, ${about}`);
  button.addEventListener("click", async () => {
    const said = await undo(act.id);
    await openActs();
    $("acts-said").textContent = said;
    $("acts").querySelector("button").focus();
  });
  return element("li", { "data-act": act.id }, words, button);
}

export const timeOf = (text) => new Date(text).toLocaleString(pageLanguage(), { dateStyle: "short", timeStyle: "short" });
