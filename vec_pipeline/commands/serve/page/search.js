/* The search among all rows of the server, by a text or for what is like a row. What is found stands in a list. */

import { item } from "./history.js";
import { ask, Failure } from "./server.js";
import { announce, phrase, say, translated } from "./words.js";

const MOST_FOUND = 12;
const COLUMNS = { image: "image_vector", dino: "dino_vector", text: "text_vector" };
const $ = (id) => document.getElementById(id);
let places = []; // that the server can search in
let searches = 0; // begun so far: the answer to an earlier one is not shown

export function beginSearch(offered) {
  places = offered;
  const forTexts = [...$("search-in").options].filter((option) => places.includes(option.value));
  for (const option of $("search-in").options) option.hidden = !forTexts.includes(option);
  $("search-in-field").hidden = forTexts.length < 2;
  $("search-form").hidden = !forTexts.length;
  $("search").hidden = !places.length;
  if (forTexts.length) $("search-in").value = forTexts[0].value;
  $("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = $("search-text").value.trim();
    $("search-text").setAttribute("aria-invalid", !text);
    if (text) return find({ text, in: $("search-in").value }, "Results for “{text}”: {count}", { text });
    showError("Enter what to look for.");
    $("search-text").focus();
  });
}

/** What finds rows that are like a row and moves the focus to them; undefined where the server cannot. */
export function searchLike(id, row, name) {
  const place = Object.keys(COLUMNS).find((each) => places.includes(each) && row[COLUMNS[each]]);
  return place && (async () => {
    if (await find({ like: id, in: place }, "Like “{text}”: {count}", { text: name })) $("found-title").focus();
  });
}

/** Show what is found under a title; whether it could be, and is still wanted. */
async function find(parameters, title, values) {
  const number = ++searches;
  showError("");
  announce(translated("Searching…"));
  try {
    const busy = (wait_s) => announce(translated("The server is busy. It is asked again in {wait_s} seconds.", { wait_s }));
    const query = new URLSearchParams({ ...parameters, limit: MOST_FOUND });
    const found = await (await ask(`/v1/search?${query}`, {}, busy)).json();
    const rows = await Promise.all(found.map((each) => (each.id ? rowOf(each) : each)));
    if (number !== searches) return false;
    say($("found-title"), title, { ...values, count: found.length }).hidden = false;
    $("found").replaceChildren(...found.map(({ id }, index) => item(id, rows[index])));
    if (parameters.text) announce(translated(countText(found.length), { count: found.length }));
    return true;
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    if (number === searches) showError(failure.text, failure.values);
    return false;
  }
}

/** The whole row of what was found, which has the description in the language of the answers; else what is known. */
const rowOf = (found) => ask(`/v1/annotations/${found.id}`).then((response) => response.json()).catch(() => found);

function countText(count) {
  if (!count) return "Nothing was found.";
  return count === 1 ? "1 result." : "{count} results.";
}

function showError(text, values) {
  say($("search-error"), text, values).hidden = !text;
  if (text) announce(phrase(text, values));
}
