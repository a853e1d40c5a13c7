/* The rows that are listed, and what is known of those near the one that is shown. */

import { ask } from "./server.js";

const AT_ONCE = 100; // rows in a request
const MOST_KNOWN = 3000;

/** What the server listed: numbers of rows in order, types of columns, which can be corrected, the last act, and which
 * CSV and which start of the server that is of. */
export const list = { rows: [], total: 0, columns: {}, correctable: [], categories: [], acts: 0, csv: "", server: "" };
const positions = new Map(); // number of a row -> its place in the list
const known = new Map(); // number -> the row
const asked = new Map(); // number -> the request that it is in

export const positionOf = (number) => positions.get(number);
export const rowOf = (number) => known.get(number);

/** Whether a request was refused because the numbers of rows are those of another CSV, or of an earlier server. */
export const isStale = ({ status, values }) => status === 409 && /load the page again/.test(values.detail);
export const STALE = "The server was started again, or has other rows: the list was loaded again.";

/** What sends a value as JSON. */
export const json = (body) => ({ method: "POST", body: new Blob([JSON.stringify(body)], { type: "application/json" }) });

/** Ask for the list of a filter. Throws Failure, and leaves the list as it was. */
export async function loadList({ where, order, unique }) {
  const query = new URLSearchParams({ where, order, unique });
  Object.assign(list, await (await ask(`/v1/review?${query}`)).json());
  positions.clear();
  list.rows.forEach((number, position) => positions.set(number, position));
  known.clear();
}

/** Make sure that rows are known. Throws Failure. */
export async function need(numbers) {
  const missing = numbers.filter((number) => number !== undefined && !known.has(number) && !asked.has(number));
  for (let start = 0; start < missing.length; start += AT_ONCE) request(missing.slice(start, start + AT_ONCE));
  await Promise.all(new Set(numbers.map((number) => asked.get(number))));
}

/** Ask for rows again that are known, those of a list or all: somebody has changed them. */
export async function refresh(numbers = [...known.keys()]) {
  numbers.forEach((number) => asked.delete(number)); // what is under way may be older
  for (let start = 0; start < numbers.length; start += AT_ONCE) request(numbers.slice(start, start + AT_ONCE));
  await Promise.all(new Set(numbers.map((number) => asked.get(number))));
}

function request(numbers) {
  const mine = ask("/v1/review/rows", json({ rows: numbers }))
    .then((response) => response.json())
    .then((found) => take(found.filter(({ row }) => asked.get(row) === mine)))
    .finally(() => numbers.forEach((number) => asked.get(number) === mine && asked.delete(number)));
  numbers.forEach((number) => asked.set(number, mine));
}

/** Rows as the server has them now. */
export function take(rows) {
  for (const row of rows) {
    known.delete(row.row);
    known.set(row.row, row);
  }
  for (const number of known.keys()) {
    if (known.size <= MOST_KNOWN) break;
    known.delete(number);
  }
}

/** Note an act of this page; return whether nobody else has done anything since the last that is known. */
export function noteAct(act) {
  const isNext = act <= list.acts + 1;
  list.acts = Math.max(list.acts, act);
  return isNext;
}

/** Forget what is known of rows, all but some. */
export function forget(kept) {
  for (const number of known.keys()) if (!kept.includes(number)) known.delete(number);
}
