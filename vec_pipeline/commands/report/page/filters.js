/* The filters, the rows that pass them, and the form that sets them. */

"use strict";

const FILTERS = ["q", "where", "category", "keyword", "flag", "object", "text", "error", "group", "errors"];
const SORTS = {
  time: { column: "timestamp", name: "Time" },
  name: { column: "image_path", name: "Name" },
  category: { column: "categories", name: "Category" },
  confidence: { column: "text_confidence", name: "Confidence" },
  clip: { column: "clip_score", name: "CLIP score" },
};
const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

let results = [];
let resultsFor = "";
let positions = new Map(); // row -> its position among the results
let query = { text: "", holds: () => true }; // the last one that could be read
const orders = new Map(); // sort -> all rows in that order

const sortOf = () => {
  const name = state.sort.replace(/^-/, "");
  return Object.hasOwn(SORTS, name)
    ? { name, isDescending: state.sort.startsWith("-") }
    : { name: "time", isDescending: false };
};
const needsAll = () => state.sort !== "" || state.group !== "";

function findResults() {
  const key = JSON.stringify([available, plan !== null, state.sort, ...FILTERS.map((name) => state[name])]);
  if (key === resultsFor) return;
  resultsFor = key;
  readQuery();
  results = needsAll() && !(isComplete() && (plan || !state.group)) ? [] : ordered().filter(passes());
  positions = new Map(results.map((row, position) => [row, position]));
}

/** Take up the query; one that cannot be read is said, and leaves the rows as they are. */
function readQuery() {
  let mistake = "";
  try {
    if (query.text !== state.where) query = { text: state.where, holds: queryOf(state.where, head.types) };
  } catch (error) {
    if (!(error instanceof QueryError)) throw error;
    mistake = error.message;
  }
  if ($("where-error").textContent !== mistake) $("where-error").textContent = mistake;
  $("where-error").hidden = !mistake;
  $("where").setAttribute("aria-invalid", mistake !== "");
}

function ordered() {
  const { name, isDescending } = sortOf();
  if (!isComplete()) return Array.from({ length: available }, (_, row) => row);
  if (!orders.has(state.sort)) {
    const column = data[SORTS[name].column];
    const compare =
      typeof column.find((value) => value !== null) === "string" && name !== "time"
        ? collator.compare
        : (a, b) => (a < b ? -1 : a > b ? 1 : 0);
    const isMissing = (row) => column[row] === null || column[row] === "";
    const order = Array.from({ length: head.rows }, (_, row) => row);
    order.sort(
      (a, b) => isMissing(a) - isMissing(b) || compare(column[a], column[b]) * (isDescending ? -1 : 1) || a - b,
    );
    orders.set(state.sort, order);
  }
  return orders.get(state.sort);
}

/** The predicate for rows to be shown. */
function passes() {
  const words = folded(state.q).split(/\s+/).filter(Boolean);
  const group = Number(state.group);
  return (row) =>
    query.holds((name) => cellOf(row, name)) &&
    (!state.category || data.categories[row] === state.category) &&
    (!state.flag || flagsOf(row).includes(state.flag)) &&
    (!state.object || labelsOf(row).includes(state.object)) &&
    (!state.text || data.ocr_boxes[row]?.length > 0) &&
    (!state.keyword || keywordsOf(row).includes(state.keyword)) &&
    (!state.errors || data.error[row] !== "") &&
    (!state.error || errorKind(row) === state.error) &&
    (!group || plan.group[row] === group) &&
    words.every((word) => haystacks[row].includes(word));
}

const optionsOf = (pairs, all) => [
  element("option", { value: "" }, all),
  ...pairs.map(([value, number]) => element("option", { value }, `${value} (${count(number)})`)),
];

function fillFilters() {
  $("category").append(...optionsOf(head.categories, "All"));
  for (const [name, pairs] of [
    ["flag", head.flags],
    ["object", head.objects],
  ]) {
    $(name).append(...optionsOf(pairs, "All"));
    $(name).parentElement.hidden = !pairs.length;
  }
  $("text").parentElement.hidden = !head.boxed.text;
  $("keywords").append(...head.keywords.map(([value]) => element("option", { value })));
  const sorts = Object.keys(SORTS).filter(
    (name) => !["confidence", "clip"].includes(name) || SORTS[name].column in head.scores,
  );
  $("sort").append(...sorts.map((value) => element("option", { value }, SORTS[value].name)));
  $("errors").parentElement.hidden = !head.errors.length;
}

const CHIPS = {
  q: (value) => `“${value}”`,
  where: (value) => `Query: ${value}`,
  category: (value) => `Category: ${value}`,
  keyword: (value) => `Keyword: ${value}`,
  flag: (value) => `Flag: ${value}`,
  object: (value) => `Object: ${value}`,
  text: () => "With text",
  error: (value) => `Error: ${value}`,
  group: (value) => `Near-duplicates, group ${value}`,
  errors: () => "Errors only",
};

function showFilters() {
  const { name, isDescending } = sortOf();
  for (const id of ["q", "where", "category", "keyword", "flag", "object"])
    if ($(id) !== document.activeElement || $(id).tagName === "SELECT") $(id).value = state[id];
  for (const id of ["text", "errors"]) $(id).checked = state[id] !== "";
  $("sort").value = name;
  $("direction").textContent = isDescending ? "↓" : "↑";
  $("direction").setAttribute("aria-label", isDescending ? "Descending; sort ascending" : "Ascending; sort descending");
  $("direction").title = isDescending ? "Descending" : "Ascending";
  const used = FILTERS.filter((filter) => state[filter]);
  $("more").textContent = used.some((filter) => filter !== "q")
    ? `Filters (${used.filter((filter) => filter !== "q").length})`
    : "Filters";
  const chips = used.map((filter) =>
    element(
      "li",
      {},
      element(
        "button",
        {
          type: "button",
          "aria-label": `Remove the filter ${CHIPS[filter](state[filter])}`,
          onclick: () => removeFilters([filter]),
        },
        element("bdi", {}, CHIPS[filter](state[filter])),
      ),
    ),
  );
  if (used.length > 1)
    chips.push(
      element("li", {}, element("button", { type: "button", onclick: () => removeFilters(used) }, "Clear all")),
    );
  const wasFocused = $("chips").contains(document.activeElement);
  $("chips").replaceChildren(...chips);
  $("chips").hidden = !chips.length;
  if (wasFocused) ($("chips").querySelector("button") || $("q")).focus();
}

const removeFilters = (filters) => {
  for (const name of filters) if ($(name) && "value" in $(name)) $(name).value = "";
  go(Object.fromEntries(filters.map((name) => [name, ""])));
};

function listenToFilters() {
  let typing;
  $("q").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => go({ q: $("q").value.trim() }, false), 120);
  });
  $("where").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => go({ where: $("where").value.trim() }, false), 300);
  });
  $("keyword").addEventListener("change", () => go({ keyword: $("keyword").value.trim() }));
  for (const name of ["category", "flag", "object"])
    $(name).addEventListener("change", () => go({ [name]: $(name).value }));
  for (const name of ["text", "errors"])
    $(name).addEventListener("change", () => go({ [name]: $(name).checked ? "1" : "" }));
  const sort = (name, isDescending) =>
    go({ sort: (isDescending ? "-" : "") + (name === "time" && !isDescending ? "" : name) });
  $("sort").addEventListener("change", () => sort($("sort").value, sortOf().isDescending));
  $("direction").addEventListener("click", () => sort(sortOf().name, !sortOf().isDescending));
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("more").addEventListener("click", () => {
    const isOpen = $("fields").classList.toggle("open");
    $("more").setAttribute("aria-expanded", isOpen);
  });
}
