/* Changes many rows by one act: which, what, a preview with the number and examples, then the change. */

import { element, foreign } from "./results.js";
import { selected } from "./review-grid.js";
import { isStale, json, list, STALE } from "./review-rows.js";
import { flush } from "./review-save.js";
import { ask, Failure } from "./server.js";
import { pageLanguage, say, translated } from "./words.js";

const $ = (id) => document.getElementById(id);
const COLUMN = { name: "column", label: "Column", kind: "column" };
const OPERATIONS = {
  replace: {
    label: "Find and replace",
    options: [
      COLUMN,
      { name: "find", label: "Find" },
      { name: "with", label: "Replace with" },
      { name: "regex", label: "Regular expression (RE2); \\1 is the first group", kind: "check" },
      { name: "match_case", label: "Match case", kind: "check" },
    ],
  },
  add_keyword: { label: "Add a keyword", options: [{ name: "keyword", label: "Keyword" }] },
  remove_keyword: { label: "Remove a keyword", options: [{ name: "keyword", label: "Keyword" }] },
  rename_keyword: { label: "Rename a keyword", options: [{ name: "keyword", label: "Keyword" }, { name: "to", label: "New name" }] },
  unique_keywords: { label: "Remove duplicate keywords", options: [] },
  sort_keywords: { label: "Sort keywords", options: [] },
  trigger: { label: "Put a trigger word in front, once", options: [COLUMN, { name: "text", label: "Trigger word" }] },
  prefix: { label: "Put a text in front", options: [COLUMN, { name: "text", label: "Text" }] },
  suffix: { label: "Put a text at the end", options: [COLUMN, { name: "text", label: "Text" }] },
  case: { label: "Letter case", options: [COLUMN, { name: "to", label: "Case", kind: "case" }] },
  set: { label: "Set a value", options: [COLUMN, { name: "value", label: "Value" }] },
  accept: { label: "Accept", options: [], sent: { kind: "set", column: "verified", value: "accepted" } },
  reject: { label: "Reject", options: [], sent: { kind: "set", column: "verified", value: "rejected" } },
  reset: { label: "Back to the machine’s", options: [{ ...COLUMN, isAll: true }] },
};
const CASES = { lower: "lower case", upper: "UPPER CASE", sentence: "Sentence case" };
let listener = {};
let where = null;

/** `given` has where(), the filter of the list, or null where the list is not all that fits it; and done(answer), which
 * is called when rows were changed; and stale(), where their numbers are those of an earlier server. */
export function beginBulk(given) {
  listener = given;
  $("operation").append(...Object.entries(OPERATIONS).map(([value, { label }]) => say(element("option", { value }), label)));
  $("operation").addEventListener("change", showOptions);
  $("bulk-form").addEventListener("input", forgetPreview);
  $("bulk-form").addEventListener("submit", (event) => {
    event.preventDefault();
    send(true);
  });
  $("bulk-apply").addEventListener("click", () => send(false));
  $("to-bulk").addEventListener("click", openBulk);
}

function openBulk() {
  where = listener.where();
  const count = list.rows.length.toLocaleString(pageLanguage());
  say($("bulk-filter"), list.rows.length < list.total ? "the {count} rows of this filter" : "all {count} rows", { count });
  say($("bulk-selected"), "the {count} selected rows", { count: selected.size });
  const [filter, chosen] = $("bulk-form").elements.which;
  chosen.disabled = !selected.size;
  (selected.size ? chosen : filter).checked = true;
  showOptions();
  $("bulk").showModal();
  $("operation").focus();
}

function showOptions() {
  $("bulk-options").replaceChildren(...OPERATIONS[$("operation").value].options.map(option));
  forgetPreview();
}

function option({ name, label, kind, isAll }) {
  const id = `bulk-${name}`;
  if (kind === "check") return element("label", { class: "check" }, element("input", { id, name, type: "checkbox" }), say(element("span"), label));
  const choices = kind === "column" ? columns(isAll) : kind === "case" ? Object.entries(CASES).map(([value, text]) => say(element("option", { value }), text)) : null;
  const input = choices ? element("select", { id, name }, ...choices) : element("input", { id, name, autocomplete: "off", spellcheck: "false", dir: "auto" });
  return element("div", { class: "field" }, say(element("label", { for: id }), label), input);
}

function columns(isAll) {
  const texts = list.correctable.filter((name) => list.columns[name] === "text" && (isAll || name !== "verified"));
  const all = isAll ? [say(element("option", { value: "" }), "all columns")] : [];
  return [...all, ...texts.map((name) => element("option", { value: name }, name))];
}

function forgetPreview() {
  $("bulk-apply").disabled = true;
  $("bulk-error").hidden = $("bulk-examples").hidden = true;
  $("bulk-count").textContent = "";
}

function operation() {
  const kind = $("operation").value;
  const { options, sent } = OPERATIONS[kind];
  const inputs = options.map(({ name, kind: type }) => [name, $(`bulk-${name}`)[type === "check" ? "checked" : "value"]]);
  return sent || { kind, ...Object.fromEntries(inputs) };
}

async function send(isPreview) {
  const isSelected = $("bulk-form").elements.which.value === "selected";
  const rows = isSelected ? { rows: [...selected], server: list.server } : where === null ? { rows: list.rows, server: list.server } : { where };
  const body = { ...rows, operation: operation(), preview: isPreview, who: localStorage.getItem("who") || "" };
  say($("bulk-count"), isPreview ? "Looking…" : "Changing…");
  $("bulk-apply").disabled = true;
  $("bulk-error").hidden = true;
  try {
    await flush(); // what was typed is to be seen
    const found = await (await ask("/v1/review/bulk", json(body))).json();
    if (isPreview) return showPreview(found);
    $("bulk").close();
    await listener.done(found);
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    $("bulk-count").textContent = "";
    if (isStale(failure)) listener.stale();
    $("bulk-error").textContent = isStale(failure) ? translated(STALE) : failure.status === 422 ? failure.values.detail : failure.message;
    $("bulk-error").hidden = false;
  }
}

function showPreview({ rows, changes, examples }) {
  const number = (each) => each.toLocaleString(pageLanguage());
  say($("bulk-count"), changes ? "Values that would change: {changes}, of {rows} pictures." : "Nothing would change. Pictures looked at: {rows}.", { changes: number(changes), rows: number(rows) });
  const text = (value) => (value === null ? translated("the machine’s") : String(value) || "—");
  const items = examples.map(({ column, old, new: value }) =>
    element("li", {}, element("small", { class: "muted" }, `${column} `), foreign("del", text(old)), " → ", foreign("ins", text(value))),
  );
  $("bulk-examples").replaceChildren(element("ul", {}, ...items));
  $("bulk-examples").hidden = !items.length;
  $("bulk-apply").disabled = !changes;
  if (changes) $("bulk-apply").focus();
}
