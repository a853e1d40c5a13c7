/* Values that somebody else has saved meanwhile: shows both, and lets the person decide, one after the other. */

import { timeOf } from "./review-acts.js";
import { giveUp, insist } from "./review-save.js";
import { announce, translated } from "./words.js";

const $ = (id) => document.getElementById(id);
const conflicts = []; // {draft, now} that wait for a decision
let settled = () => {};

/** `onSettled` is called after each decision. */
export function beginConflicts(onSettled) {
  settled = onSettled;
  $("keep").addEventListener("click", () => settle(true));
  $("take").addEventListener("click", () => settle(false));
  $("conflict").addEventListener("keydown", (event) => event.key === "Escape" && event.preventDefault()); // there is no third way
}

export function addConflict(draft, now) {
  const at = conflicts.findIndex(({ draft: { key, column } }) => key === draft.key && column === draft.column);
  conflicts.splice(at < 0 ? conflicts.length : at, 1, { draft, now });
  showFirst();
}

function showFirst() {
  const [first] = conflicts;
  if (!first) return;
  const { draft, now } = first;
  const text = (value) => (value === null ? translated("the machine’s") : value || "—");
  $("conflict-about").textContent = `${draft.key.split("/").pop()}: ${draft.column}`;
  $("mine").textContent = text(draft.value);
  $("theirs").textContent = text(now.value);
  const by = { who: now.who || translated("somebody"), time: timeOf(now.time) };
  $("theirs-by").textContent = now.time ? translated("By {who}, {time}", by) : translated("Undone meanwhile");
  if (!$("conflict").open) $("conflict").showModal();
}

function settle(isMine) {
  const { draft, now } = conflicts.shift();
  $("conflict").close();
  if (isMine) insist(draft, now.act);
  else giveUp(draft);
  announce(translated(isMine ? "Yours is kept." : "Theirs is kept."));
  settled();
  showFirst();
}
