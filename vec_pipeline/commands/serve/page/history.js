/* The list of earlier pictures, the newest first: a part of it at a time, and what is loaded can be filtered. */

import { element, spokenFailure, timeOf, titleOf, valueOf } from "./results.js";
import { ask, Failure, loaded } from "./server.js";
import { announce, say, translated } from "./words.js";

const AT_ONCE = 12;
const THUMBNAIL_PX = 160;
const TYPED_MS = 600; // without a key, until the number of rows is said
const $ = (id) => document.getElementById(id);
const rows = new Map(); // id -> what is loaded, in the order of the list
let open = () => {};
let typed; // the timer

/** Begin the list; `onOpen` gets the id and the row of what is chosen. */
export async function beginHistory(onOpen) {
  open = onOpen;
  $("filter").addEventListener("input", () => {
    filter();
    clearTimeout(typed);
    typed = setTimeout(() => announce($("history-count").textContent), TYPED_MS);
  });
  $("more").addEventListener("click", more);
  await load();
}

/** Put a new row at the top of the list. */
export function addToHistory(id, row) {
  rows.get(id)?.node.remove();
  rows.set(id, { row, node: item(id, row) });
  $("rows").prepend(rows.get(id).node);
  filter();
}

async function more() {
  const last = $("rows").lastElementChild;
  await load();
  last?.nextElementSibling?.querySelector("button").focus(); // the first that is new
}

async function load() {
  try {
    const last = $("rows").lastElementChild?.dataset.id || "";
    const ids = await (await ask(`/v1/annotations?limit=${AT_ONCE}&before=${last}`)).json();
    const found = await Promise.all(ids.map((id) => ask(`/v1/annotations/${id}`).then((each) => each.json(), () => null)));
    ids.forEach((id, index) => {
      if (!found[index] || rows.has(id)) return;
      rows.set(id, { row: found[index], node: item(id, found[index]) });
      $("rows").append(rows.get(id).node);
    });
    $("more").hidden = ids.length < AT_ONCE;
    filter();
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    say($("history-count"), failure.text, failure.values);
    announce(translated("The list could not be loaded:"), spokenFailure(failure));
  }
}

/** An entry of a list: a button that opens the row, or its text alone if it has no id, for it was not uploaded here. */
export function item(id, row) {
  const about = id ? timeOf(row) : row.image_path.split("/").pop();
  const words = element("span", {}, titleOf(row), " ", element("small", { class: "muted" }, about));
  if (!id) return element("li", {}, element("div", {}, words));
  const image = element("img", { alt: "", width: "80", height: "60" });
  loaded(`/v1/annotations/${id}/image?side_px=${THUMBNAIL_PX}`).then(({ address }) => (image.src = address), () => {});
  const button = element("button", { type: "button" }, image, words);
  button.addEventListener("click", () => open(id, row));
  return element("li", { "data-id": id }, button);
}

/** Show the rows that have every word of the filter somewhere. */
function filter() {
  const words = folded($("filter").value).split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const { row, node } of rows.values()) {
    const values = ["description", "text", "image_text", "categories", "keywords"].map((name) => valueOf(row, name));
    const text = folded([...values, node.textContent].join(" "));
    node.hidden = !words.every((word) => text.includes(word));
    shown += !node.hidden;
  }
  if (rows.size) say($("history-count"), "{shown} of {loaded} loaded pictures", { shown, loaded: rows.size });
  else say($("history-count"), "There are none yet.");
}

const folded = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
