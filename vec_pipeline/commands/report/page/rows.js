/* The rows, which arrive in pieces, and how elements are made of them: text becomes text nodes, never HTML. */

"use strict";

const COLUMNS = [
  "image_path",
  "text",
  "edited_text",
  "description",
  "categories",
  "keywords",
  "image_text",
  "timestamp",
  "error",
  "flags",
  "verified",
  "text_confidence",
  "clip_score",
  "objects",
  "ocr_boxes",
  "size",
  "numbers",
  "texts",
  "machine",
  "thumbnail",
  "link",
  "request",
  "edited",
  "edited_link",
];
const script = document.currentScript.src;
const base = script.slice(0, script.lastIndexOf("/") + 1); // the data folder, which these scripts are in too
const thumbnails = base.replace(/[^/]+\/$/, "thumbnails/");

const $ = (id) => document.getElementById(id);
const count = (number) => number.toLocaleString("en");
const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;
const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)}\u00a0%`;

let head; // what report.py says of all rows together
const data = {}; // column -> array over all rows; `numbers` and `texts` hold arrays, of the columns head.numbers, head.texts
const haystacks = []; // what free text is searched in, by row
let available = 0; // rows that have arrived
let plan = null; // x, y and group of every row, once it has arrived
const members = new Map(); // group -> its rows; those of 0 are in no group

/** An element with attributes and children; strings become text. */
function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null && child !== ""));
  return node;
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function load(name, then) {
  document.head.append(
    element("script", {
      src: base + name,
      onload: then,
      onerror: () => notice(`A part of the gallery, ${name}, cannot be read: run the report command again.`),
    }),
  );
}

function loadPiece(index) {
  if (index * head.rows_per_piece < head.rows) load(`data-rows-${index}.js`, () => loadPiece(index + 1));
  else load("data-map.js", () => {});
}

function addRows(index, piece) {
  const first = index * head.rows_per_piece;
  const number = piece.image_path.length;
  for (const [name, values] of Object.entries(piece)) {
    const column = data[name];
    for (let i = 0; i < number; i++) column[first + i] = values[i];
  }
  for (let row = first; row < first + number; row++) {
    haystacks[row] = folded(
      [
        data.description[row],
        data.text[row],
        data.keywords[row],
        data.image_text[row],
        ...linesOf(row),
        data.image_path[row],
        data.error[row],
      ].join("\n"),
    );
  }
  available = first + number;
  renderSoon();
}

function addMap(values) {
  plan = values;
  mapHeight = heightOf(plan.y);
  plan.group.forEach((group, row) => {
    if (!members.has(group)) members.set(group, []);
    members.get(group).push(row);
  });
  renderSoon();
}

/** A column of a row, as queries see it: also one that the page does not show. */
function cellOf(row, name) {
  for (const kind of ["numbers", "texts"]) {
    const index = head[kind].indexOf(name);
    if (index >= 0) return data[kind][row][index];
  }
  return data[name]?.[row] ?? null;
}

const isComplete = () => available === head.rows;

/** Lower case, and without accents: "cafe" finds "Café". */
function folded(text) {
  const lower = text.toLowerCase();
  return /[^\x00-\x7f]/.test(lower) ? lower.normalize("NFD").replace(/\p{M}/gu, "") : lower;
}

const nameOf = (row) => {
  const path = data.image_path[row].replace(/#reddit\/[^#]*$/, ""); // which pair it is, behind the address of its original
  return path.slice(path.lastIndexOf("/") + 1);
};
const errorKind = (row) => data.error[row].split(": ").slice(0, 2).join(": ");
const flagsOf = (row) => (data.flags[row] || "").split(" ").filter(Boolean);
const keywordsOf = (row) => data.keywords[row].split(", ").filter(Boolean);
const altOf = (row) => data.description[row] || data.text[row] || `${nameOf(row)}, not described`;
const thumbnailNamed = (name) => name && `${thumbnails}${name.slice(0, 2)}/${name}.webp`;
const thumbnailOf = (row) => thumbnailNamed(data.thumbnail[row]);
