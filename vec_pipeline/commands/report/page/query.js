/* Which rows: the language of `--where`, as vec_pipeline/query.py has it; both are given the same tests. */

"use strict";

const ALIASES = {
  category: "categories",
  keyword: "keywords",
  flag: "flags",
  path: "image_path",
  ocr: "image_text",
};
const NOT_SEARCHED = ["image_path", "timestamp", "error", "flags", "verified", "llama_extracted"]; // by a word alone
const TERM =
  /(?<no>-)?(?:(?<name>[\p{L}\p{N}_][\p{L}\p{N}_.]*)(?<op>:|~|!=|<=|>=|<|>|=)(?<values>(?:"(?:[^"\\]|\\.)*"|\/(?:[^/\\]|\\.)*\/|[^\s"])*)|"(?<phrase>(?:[^"\\]|\\.)*)"|(?<word>[^\s"]+))(?=\s|$)/gu;
const VALUE = /"((?:[^"\\]|\\.)*)"(?=,|$)|\/((?:[^/\\]|\\.)*)\/(?=,|$)|([^,]+)|(?<=,)|^$/gu;
const TIME = /^\d{4}(-\d\d(-\d\d([T ]\d\d(:\d\d(:\d\d)?)?)?)?)?$/; // or the beginning of one
const OF_OTHERS = ["AND", "OR", "NOT", "&&", "||", "!"]; // how other languages join terms
const NUMBER = /^\s*[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf(inity)?|nan)\s*$/i;
const COMPARE = { "<": (a, b) => a < b, "<=": (a, b) => a <= b, ">": (a, b) => a > b, ">=": (a, b) => a >= b };
const LEAST_RATIO = 0.6; // of a name to one that may be meant

/** What is wrong with a query, as a sentence. */
class QueryError extends Error {}

/** A predicate for rows, which gets a function from the name of a column to the cell: a text, a number, or null.
 * types: of the columns, by name. Throws QueryError. */
function queryOf(text, types) {
  const holds = [];
  let place = 0;
  for (const found of text.matchAll(TERM)) {
    if (text.slice(place, found.index).trim()) break;
    place = found.index + found[0].length;
    const { word, op } = found.groups;
    if (OF_OTHERS.includes(word) || op === "!=")
      throw new QueryError(
        `query: ${quoted(found[0])} is not of this language: all terms hold, -TERM is not, NAME:A,B is either`,
      );
    holds.push(termOf(found.groups, types));
  }
  const rest = text.slice(place).trim();
  if (rest) throw new QueryError(`query ${quoted(text)}: ${quoted(rest)} cannot be read: put quotes around the whole value`);
  return (cell) => holds.every((each) => each(cell));
}

function termOf({ no, name, op, values, phrase, word }, types) {
  const columnOf = (each) => [each, ALIASES[each]].find((known) => Object.hasOwn(types, known ?? ""));
  const named = name ?? (word !== undefined && columnOf(word) ? word : "");
  let holds;
  if (!named) {
    const names = Object.keys(types).filter((each) => types[each] === "text" && !NOT_SEARCHED.includes(each));
    const contains = containing(word ?? unescaped(phrase));
    holds = (cell) => names.some((each) => contains(cell(each)));
  } else {
    const column = columnOf(named);
    if (!column) throw new QueryError(unknown(named, types));
    holds = conditionOf(column, column === "timestamp" ? "time" : types[column], op, valuesOf(values ?? ""));
  }
  return no ? (cell) => !holds(cell) : holds;
}

function conditionOf(name, kind, op, values) {
  if (op === undefined) return (cell) => !["", null].includes(cell(name));
  if (kind === "vector") throw new QueryError(`query: ${name} holds vectors, of which only their presence can be asked: ${name} or -${name}`);
  if (op !== ":" && op !== "~" && !["number", "time"].includes(kind))
    throw new QueryError(`query: ${name} is text, which '${op}' does not compare: use ${name}:VALUE or ${name}~TEXT`);
  const tests = values.map((value) => {
    if (kind === "number" && op !== "~") return comparing(op, numberOf(name, value));
    if (kind === "time" && op !== "~") return comparingTimes(op, timeOf(name, value));
    if (op === "~" && !value.isRegex) return containing(value.text);
    return matching(value.isRegex ? value.text : itemPattern(name, kind, value.text));
  });
  const read = kind === "time" && op === "~" ? (cell) => cell(name)?.replace("T", " ") ?? null : (cell) => cell(name);
  return (cell) => tests.some((each) => each(read(cell)));
}

/** The values of a term: bare, "quoted" or /regular expressions/, with commas between. */
const valuesOf = (text) =>
  [...text.matchAll(VALUE)].map(([, inQuotes, regex, bare]) =>
    regex ? { text: regex, isRegex: true } : { text: bare || unescaped(inQuotes || ""), isRegex: false },
  );

const unescaped = (text) => text.replace(/\\(.)/gu, "$1");
const quoted = (text) =>
  text.includes("'") && !text.includes('"') ? `"${text.replace(/\\/g, "\\\\")}"` : `'${text.replace(/[\\']/g, "\\$&")}'`;

function numberOf(name, { text }) {
  if (!NUMBER.test(text)) throw new QueryError(`query: ${name} is compared with ${quoted(text)}, which is not a number`);
  const plain = text.trim().toLowerCase();
  return plain.includes("inf") ? (plain.startsWith("-") ? -Infinity : Infinity) : Number(plain);
}

function timeOf(name, { text }) {
  if (!TIME.test(text))
    throw new QueryError(`query: ${name} is compared with ${quoted(text)}, which is no time such as 2026-11-26T08:30`);
  return text.replace(" ", "T");
}

function comparing(op, number) {
  const compare = COMPARE[op] ?? ((a, b) => a === b);
  return (value) => value !== null && compare(value, number);
}

/** A time against the beginning of one, such as 2026-11; `:` and `=` ask for all within it. */
function comparingTimes(op, text) {
  const compare = COMPARE[op] ?? ((a, b) => a === b);
  return (value) => Boolean(value) && compare(value.slice(0, text.length), text);
}

const containing = (text) => matching(text.replace(/[\\.+*?()|[\]{}^$/]/g, "\\$&"));

/** Whether a cell matches, letter case aside. Expressions are those of RE2, as far as a browser knows them. */
function matching(pattern) {
  let regex;
  try {
    if (/\((?:\?<?[=!])|\\[1-9]/.test(pattern.replace(/\\[^1-9]/g, ""))) throw new SyntaxError(); // which RE2 does not know
    regex = new RegExp(pattern.replace(/\(\?P</g, "(?<").replace(/\\([^\p{L}\p{N}^$\\.*+?()[\]{}|/-])/gu, "$1"), "iu");
  } catch {
    throw new QueryError(`query: ${quoted(pattern)} is not a regular expression`);
  }
  return (value) => value !== null && regex.test(String(value));
}

/** What matches a cell that is `text`, or has it between commas, in flags between spaces, in JSON between quotes. */
function itemPattern(name, kind, text) {
  const escaped = text.replace(/[\\.+*?()|[\]{}^$/]/g, "\\$&");
  if (kind === "json") return `"${escaped}"\\s*(?:[,\\]}]|$)`; // the name of an entry has a colon after it
  const border = name === "flags" ? " " : ",";
  return text ? `(?:^|${border}) *${escaped} *(?:${border}|$)` : "^$";
}

function unknown(name, types) {
  const names = [...Object.keys(types), ...Object.keys(ALIASES)];
  const ratios = names.map((each) => [(2 * shared(each, name)) / (each.length + name.length), each]);
  const [[ratio, near]] = ratios.sort(([a, one], [b, other]) => b - a || (one < other ? 1 : -1));
  const hint = ratio >= LEAST_RATIO ? `did you mean '${near}'?` : `columns are ${Object.keys(types).join(", ")}`;
  return `query: unknown column ${quoted(name)} (${hint}); to look for the text itself, write it as "..."`;
}

/** How many letters two names have in common: those of the longest part that both have, and so on beside it. */
function shared(one, other) {
  let [length, start, place] = [0, 0, 0];
  for (let i = 0; i < one.length; i++) {
    for (let j = 0; j < other.length; j++) {
      let k = 0;
      while (i + k < one.length && j + k < other.length && one[i + k] === other[j + k]) k++;
      if (k > length) [length, start, place] = [k, i, j];
    }
  }
  if (!length) return 0;
  return shared(one.slice(0, start), other.slice(0, place)) + length + shared(one.slice(start + length), other.slice(place + length));
}
