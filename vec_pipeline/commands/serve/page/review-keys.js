/* The keys of the page: what each does, and the list of them. Single letters act outside of text fields only. */

import { element } from "./results.js";
import { say } from "./words.js";

const $ = (id) => document.getElementById(id);
const TERMS = [
  ["category:vehicle", "the value is this one; of keywords and flags, one of them is"],
  ["keyword:cat,dog", "either"],
  ['text~"for sale"', "contains this text"],
  ["text~/colou?r/", "matches this regular expression"],
  ["text_confidence<0.5", "a number below; also <=, >, >= and ="],
  ["timestamp>=2026-11", "a time from then on"],
  ["verified", "is not empty; also error and flags"],
  ["-verified", "a minus before any of them: the opposite"],
  ["sale", "some text of the row contains this word"],
];
let keys = []; // {names, does, act, isAnywhere}

/** `given`: for each key its names, such as "J" or "Control+Enter", what it does in words, and the function that does it;
 * isAnywhere: also in a text field. A function that returns false has left the key to the browser. */
export function beginKeys(given) {
  keys = given;
  document.addEventListener("keydown", onKey);
  $("keys-on").checked = localStorage.getItem("keys") !== "off";
  $("keys-on").addEventListener("change", () => localStorage.setItem("keys", $("keys-on").checked ? "on" : "off"));
  $("to-help").addEventListener("click", () => $("help").showModal());
  const row = (head, does) => element("tr", {}, element("th", { scope: "row" }, ...head), say(element("td"), does));
  const named = (names) => names.flatMap((name, index) => [index ? " " : "", element("kbd", {}, NAMES[name] || name.replace("Control", "Ctrl"))]);
  $("keys").tBodies[0].append(...keys.filter(({ does }) => does).map(({ names, does }) => row(named(names), does)));
  $("terms").tBodies[0].append(...TERMS.map(([term, does]) => row([element("code", {}, term)], does)));
}

const NAMES = { ArrowLeft: "←", ArrowRight: "→", Escape: "Esc" };

/** The name of a key; a letter by its place where the layout has no Latin ones. */
function nameOf(event) {
  const isLetter = /^[a-z]$/i.test(event.key);
  const letter = isLetter ? event.key : event.key.length === 1 && event.key > "\x7f" && /^Key([A-Z])$/.exec(event.code)?.[1];
  const name = letter ? letter.toUpperCase() : event.key;
  return event.ctrlKey || event.metaKey ? `Control+${name}` : name;
}

const isTextField = (node) => node.matches("input:not([type=checkbox], [type=radio]), textarea, select");

function onKey(event) {
  if (event.defaultPrevented || event.altKey || event.isComposing || document.querySelector("dialog[open]")) return;
  const name = nameOf(event);
  const isInField = isTextField(event.target);
  const found = keys.find((key) => key.names.includes(name) && (key.isAnywhere || !isInField));
  if (!found || (name.length === 1 && !$("keys-on").checked)) return;
  if (found.act(event) !== false) event.preventDefault();
}
