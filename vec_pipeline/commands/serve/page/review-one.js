/* One row: its picture beside its values, each of which is edited where it stands, above what the machine wrote. */

import { element, foreign, warnings } from "./results.js";
import { timeOf } from "./review-acts.js";
import { markOf } from "./review-grid.js";
import { Pictures } from "./review-pictures.js";
import { list, need, rowOf } from "./review-rows.js";
import { change, draftOf, flush, valueOf } from "./review-save.js";
import { ask } from "./server.js";
import { announce, languageOf, pageLanguage, say, translated } from "./words.js";

const SHOWN_PX = 1024;
const AHEAD = 6; // pictures that are loaded before they are asked for
const BEHIND = 2;
const ROWS_AHEAD = 60;
const MOST_PICTURES = 24;
const NAMES = {
  description: "Description",
  categories: "Category",
  keywords: "Keywords",
  text: "In full",
  image_text: "Text on the picture",
};
const SCORES = ["p_wrong", "text_confidence", "clip_score"];
const $ = (id) => document.getElementById(id);
const pictures = new Pictures(SHOWN_PX, MOST_PICTURES, (row) => row === shown && drawPicture());
const fields = new Map(); // column -> its Field
let shown; // the number of the row
let columnsOf = ""; // which fields there are

/** A column that can be edited. */
class Field {
  constructor(column) {
    this.column = column;
    const id = `field-${column}`;
    const label = element("label", { for: id });
    if (NAMES[column]) say(label, NAMES[column]);
    else label.append(column);
    this.input = element(column === "categories" || list.columns[column] === "number" ? "input" : "textarea", { id, rows: 1, dir: "auto", "aria-describedby": `${id}-error ${id}-machine` });
    if (column === "categories") this.input.setAttribute("list", "categories");
    this.error = element("p", { id: `${id}-error`, class: "error", hidden: "" });
    this.machine = element("span", { dir: "auto" });
    this.back = say(element("button", { type: "button", class: "small" }), "Back to the machine’s");
    this.back.setAttribute("aria-describedby", `${id}-machine`);
    this.below = element("p", { id: `${id}-machine`, class: "machine" }, say(element("span", { class: "muted" }), "The machine:"), " ", this.machine);
    this.corrected = element("div", { class: "below", hidden: "" }, this.below, this.back);
    this.node = element("div", { class: "field" }, label, this.input, this.error, this.corrected);
    this.input.addEventListener("input", () => this.note(this.input.value));
    this.input.addEventListener("change", flush);
    this.back.addEventListener("click", () => {
      this.note(null);
      this.input.focus();
      this.show(rowOf(shown));
      flush();
    });
  }

  note(value) {
    const row = rowOf(shown);
    if (!row) return;
    this.problem("");
    change(row, this.column, value);
    this.showMachine(row);
  }

  problem(sentence) {
    this.error.textContent = sentence;
    this.error.hidden = !sentence;
    this.input.setAttribute("aria-invalid", Boolean(sentence));
  }

  show(row) {
    const value = String(valueOf(row, this.column));
    if (this.input.value !== value) {
      const { selectionStart, selectionEnd } = this.input;
      this.input.value = value;
      if (document.activeElement === this.input) this.input.setSelectionRange(selectionStart, selectionEnd); // not to the end
    }
    this.input.lang = languageOf(value);
    const problem = draftOf(row, this.column)?.problem || "";
    this.problem(problem === "conflict" ? translated("Not saved: somebody else has changed this, too") : problem);
    this.showMachine(row);
  }

  showMachine(row) {
    const draft = draftOf(row, this.column);
    const machine = String(this.column in row.machine ? row.machine[this.column] : (row.values[this.column] ?? ""));
    const isCorrected = draft ? draft.value !== null && draft.value !== machine : this.column in row.machine;
    this.corrected.hidden = !isCorrected;
    this.machine.lang = languageOf(machine);
    this.machine.textContent = machine || "—";
  }
}

/** `press` has what the buttons do: previous, next, accept and reject. */
export function beginOne(press) {
  for (const [name, action] of Object.entries(press)) $(name).addEventListener("click", action);
  $("fields").addEventListener("submit", (event) => event.preventDefault());
  $("history").addEventListener("toggle", showHistory);
}

/** Make a field for each column that can be corrected, those of every CSV first. */
export function makeFields() {
  const names = list.correctable.filter((name) => name !== "verified");
  if (columnsOf === names.join()) return fillCategories();
  columnsOf = names.join();
  const usual = Object.keys(NAMES).filter((name) => names.includes(name));
  fields.clear();
  for (const name of new Set([...usual, ...names])) fields.set(name, new Field(name));
  const isText = ({ column }) => list.columns[column] === "text";
  const [texts, others] = [[...fields.values()].filter(isText), [...fields.values()].filter((field) => !isText(field))];
  const more = others.length && element("details", {}, say(element("summary"), "Numbers and JSON"), ...others.map(({ node }) => node));
  $("fields").replaceChildren(...texts.map(({ node }) => node), ...(more ? [more] : []), element("datalist", { id: "categories" }));
  fillCategories();
}

const fillCategories = () => $("categories").replaceChildren(...list.categories.map((value) => element("option", { value })));

/** Load what will be looked at next. */
export function lookAhead(position) {
  const at = (from, to) => list.rows.slice(Math.max(0, from), Math.max(0, to));
  pictures.want([...at(position, position + 1 + AHEAD), ...at(position - BEHIND, position).reverse()]);
  return need(at(position - BEHIND, position + ROWS_AHEAD));
}

/** Show the row at a position of the list; what is not here yet follows. */
export async function showOne(position) {
  shown = list.rows[position];
  const mine = shown;
  $("place").textContent = translated("{number} of {count}", { number: position + 1, count: list.rows.length.toLocaleString(pageLanguage()) });
  $("previous").disabled = position === 0;
  $("next").disabled = position === list.rows.length - 1;
  drawPicture();
  const coming = lookAhead(position);
  if (!rowOf(mine)) {
    $("one-view").setAttribute("aria-busy", "true");
    await coming;
  } else coming.catch(() => {});
  if (shown === mine) showValues();
}

/** Show the values of the row again: they may have changed. */
export function showValues() {
  const row = rowOf(shown);
  if (!row) return;
  $("one-view").removeAttribute("aria-busy");
  $("one-title").replaceChildren(element("bdi", {}, row.name));
  $("mark").replaceChildren(markOf(row));
  $("accept").setAttribute("aria-pressed", valueOf(row, "verified") === "accepted");
  $("reject").setAttribute("aria-pressed", valueOf(row, "verified") === "rejected");
  for (const field of fields.values()) field.show(row);
  const error = row.values.error && foreign("p", row.values.error, { class: "error" });
  $("doubts").replaceChildren(...[error, ...warnings(row.values), factsOf(row)].filter(Boolean));
  $("key").textContent = row.key;
  showHistory();
}

/** Numbers and flags, as they are called in the filter. */
function factsOf(row) {
  const found = SCORES.filter((name) => typeof row.values[name] === "number");
  const facts = found.map((name) => `${name} ${Number(row.values[name].toPrecision(3))}`);
  if (row.values.flags) facts.push(`flags ${row.values.flags}`);
  return facts.length ? element("p", { class: "muted" }, facts.join(" · ")) : null;
}

function drawPicture() {
  const image = pictures.of(shown);
  if (image) image.alt = rowOf(shown)?.name || "";
  if (image) $("picture").replaceChildren(image);
  else if (image === null) $("picture").replaceChildren(say(element("p", { class: "muted" }), "There is no picture any more."));
  else $("picture").replaceChildren();
}

/** What a screen reader says of the row that is shown. */
export function sayRow(position) {
  const row = rowOf(list.rows[position]);
  if (!row) return;
  const description = valueOf(row, "description") || valueOf(row, "text") || translated("There is no description of this picture.");
  const verified = valueOf(row, "verified");
  announce(`${$("place").textContent}:`, foreign("span", description), ...(verified ? [translated(verified)] : []));
}

export function editFirst() {
  const [first] = fields.values();
  first?.input.focus();
}

async function showHistory() {
  if (!$("history").open) return;
  const mine = shown;
  const response = await ask(`/v1/review/history/${mine}`).catch(() => null);
  const found = response ? await response.json() : [];
  if (shown !== mine) return;
  $("entries").replaceChildren(...found.map(entry));
  if (!found.length) $("entries").append(say(element("li", { class: "muted" }), "Nothing has been changed yet."));
}

function entry({ time, who, what, column, old, new: value }) {
  const text = (each) => (each === null ? translated("the machine’s") : each || "—");
  const about = `${timeOf(time)}, ${who || translated("somebody")}${what === "edit" ? "" : `, ${what}`}`;
  return element("li", {}, element("small", { class: "muted" }, `${about}: ${column} `), foreign("del", text(old)), " → ", foreign("ins", text(value)));
}
