/* The summary: bars and histograms of what the report has counted. */

"use strict";

const BARS = 20; // of one plot

let isSummaryDone = false;
function renderSummary() {
  if (isSummaryDone) return;
  isSummaryDone = true;
  const errors = head.errors.reduce((sum, [, number]) => sum + number, 0);
  const share = (number) => (head.rows ? `, ${percent(number / head.rows)}` : "");
  const card = (value, name) =>
    element("div", { class: "card" }, element("b", {}, count(value)), element("span", {}, name));
  $("summary").append(
    element(
      "div",
      { class: "cards" },
      card(head.rows, head.rows === 1 ? "image" : "images"),
      card(errors, `with an error${share(errors)}`),
      card(head.with_text, `with text on the image${share(head.with_text)}`),
      card(head.different.categories, head.different.categories === 1 ? "category" : "categories"),
      card(head.groups, `${head.groups === 1 ? "group" : "groups"} of near-duplicates`),
    ),
    element(
      "div",
      { class: "plots" },
      ...[
        bars("Categories", head.categories, "category", head.different.categories),
        histogram("Confidence of the text", "text_confidence", "Mean probability of the tokens of the text."),
        bars("Keywords", head.keywords, "keyword", head.different.keywords),
        histogram("Agreement of image and text", "clip_score", "Cosine of image and text in the space of CLIP."),
        bars("Errors", head.errors, "error") ||
          element("section", { class: "plot" }, element("h3", {}, "Errors"), element("p", { class: "muted" }, "None.")),
        bars("Flags", head.flags, "flag"),
        objectBars(),
        stages(),
      ].filter(Boolean),
    ),
  );
}

function barRow(name, parts, most, number, filter) {
  const track = element(
    "span",
    { class: "track", "aria-hidden": "true" },
    ...parts.map((part, i) => {
      const bar = element("span", { class: i ? "bar second" : "bar" });
      bar.style.width = `${(100 * part) / most}%`;
      return bar;
    }),
  );
  const label = element("bdi", { class: "name", title: name }, name);
  const cells = [label, track, element("span", { class: "number" }, number)];
  return element(
    "li",
    {},
    filter
      ? element("a", { href: `#${new URLSearchParams({ [filter]: name })}` }, ...cells)
      : element("span", {}, ...cells),
  );
}

/** Bars of the most frequent values; each leads to its images. */
function bars(title, pairs, filter, different = pairs.length) {
  if (!pairs.length) return null;
  const top = pairs.slice(0, BARS);
  const list = element(
    "ol",
    { class: "bars", "aria-label": title },
    ...top.map(([name, number]) => barRow(name, [number], top[0][1], count(number), filter)),
  );
  if (filter === "error") list.querySelectorAll(".name").forEach((name) => name.classList.add("wide"));
  return element(
    "section",
    { class: "plot" },
    element("h3", {}, title),
    list,
    different > BARS ? element("p", { class: "note" }, `The ${BARS} most frequent of ${count(different)}.`) : null,
  );
}

/** The labels of most objects: how many images have one, and how many more objects there are in these. */
function objectBars() {
  if (!head.objects.length) return null;
  const top = [...head.objects].sort((a, b) => b[2] - a[2]).slice(0, BARS);
  const different = head.different.objects;
  return element(
    "section",
    { class: "plot" },
    element("h3", {}, "Objects"),
    element(
      "ol",
      { class: "bars", "aria-label": "Objects" },
      ...top.map(([label, images, objects]) =>
        barRow(label, [images, objects - images].filter(Boolean), top[0][2], `${count(objects)} in ${count(images)}`, "object"),
      ),
    ),
    element(
      "p",
      { class: "note" },
      element("span", { class: "key" }),
      "images",
      element("span", { class: "key second" }),
      "further objects in these images",
      different > BARS ? `; the ${BARS} most frequent of ${count(different)}` : null,
    ),
  );
}

function stages() {
  if (!head.stages.length) return null;
  const most = Math.max(...head.stages.map(([, work, loading]) => work + loading), 1e-9);
  const seconds = (value) => `${value >= 100 ? count(Math.round(value)) : value.toFixed(1)}\u00a0s`;
  return element(
    "section",
    { class: "plot" },
    element("h3", {}, "Seconds per stage"),
    element(
      "ol",
      { class: "bars", "aria-label": "Seconds per stage" },
      ...head.stages.map(([name, work, loading]) =>
        barRow(name, [work, loading], most, `${seconds(work)} + ${seconds(loading)}`),
      ),
    ),
    element(
      "p",
      { class: "note" },
      element("span", { class: "key" }),
      "work",
      element("span", { class: "key second" }),
      "loading the model; all runs in the log beside the CSV",
    ),
  );
}

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function histogram(title, column, about) {
  const bins = head.scores[column];
  if (!bins) return null;
  const width = 440,
    height = 170,
    bottom = 24,
    top = 18;
  const most = Math.max(...bins.map(([, number]) => number));
  const step = width / bins.length;
  const every = Math.ceil(bins.length / 8);
  const marks = bins.flatMap(([low, number], i) => {
    const tall = ((height - bottom - top) * number) / most;
    const rect = svg(
      "rect",
      { x: i * step + 1, y: height - bottom - tall, width: Math.max(1, step - 2), height: tall, rx: 2 },
      svg("title", {}, `${low.toFixed(2)} to ${(low + head.bin).toFixed(2)}: ${count(number)}`),
    );
    const tick = i % every ? [] : [svg("text", { x: i * step, y: height - 6 }, low.toFixed(2))];
    const value =
      step > 34 && number
        ? [svg("text", { x: (i + 0.5) * step, y: height - bottom - tall - 5, "text-anchor": "middle" }, count(number))]
        : [];
    return [rect, ...tick, ...value];
  });
  const said = bins
    .filter(([, number]) => number)
    .map(([low, number]) => `${low.toFixed(2)} to ${(low + head.bin).toFixed(2)}: ${number}`)
    .join("; ");
  return element(
    "section",
    { class: "plot" },
    element("h3", {}, title),
    svg(
      "svg",
      { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}. ${said}` },
      svg("line", { x1: 0, x2: width, y1: height - bottom, y2: height - bottom }),
      ...marks,
    ),
    element("p", { class: "note" }, about),
  );
}
