/* The gallery: rows arrive in pieces, the URL's hash says what is shown of them. Text becomes text nodes, never HTML. */

"use strict";

const gallery = (() => {
  const COLUMNS = [
    "image_path", "text", "description", "categories", "keywords", "image_text", "timestamp", "error", "flags",
    "text_confidence", "clip_score", "thumbnail", "link",
  ];
  const SORTS = { time: "timestamp", name: "image_path", category: "categories", confidence: "text_confidence", clip: "clip_score" };
  const SORT_NAMES = { time: "Time", name: "Name", category: "Category", confidence: "Confidence", clip: "CLIP score" };
  const PALETTE = ["#4269d0", "#e08a00", "#d6455d", "#2c9c91", "#7d57c1", "#3f9a46", "#c0569f", "#8a6242", "#1f8fc4", "#9a9a1f"];
  const OTHER_COLOUR = "#8a8f9a";
  const SMALLEST_TILE_PX = 190, SMALLEST_TILE_PHONE_PX = 145, OVERSCAN_ROWS = 2;
  const GROUPS_AT_ONCE = 30, TILES_OF_GROUP = 12, BARS = 20;

  const $ = (id) => document.getElementById(id);
  const script = document.currentScript.src;
  const base = script.slice(0, script.lastIndexOf("/") + 1);
  const thumbnails = base.replace(/[^/]+\/$/, "thumbnails/");
  const count = (number) => number.toLocaleString("en");
  const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;
  const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)}\u00a0%`;
  const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

  let head; // what the report says of the whole: see report.py
  const data = {}; // column -> array over all rows
  let haystacks = []; // what free text is looked for in, by row
  let available = 0; // rows that have arrived
  let plan = null; // x, y, group of every row, once it has arrived
  let members = new Map(); // group -> its rows; 0 are those in none

  // ---- Elements

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

  // ---- Rows

  function start(summary) {
    head = summary;
    for (const name of COLUMNS) data[name] = new Array(head.rows).fill(null);
    haystacks = new Array(head.rows);
    document.title = `${head.name} – gallery`;
    $("name").textContent = head.name;
    $("made").textContent = `${plural(head.rows, "image")}, made ${head.made.replace("T", " ")}`;
    fillFilters();
    listen();
    readHash();
    loadPiece(0);
  }

  function load(name, then) {
    document.head.append(
      element("script", {
        src: base + name,
        onload: then,
        onerror: () => notice(`A part of the gallery, ${name}, cannot be read: make the report again.`),
      }),
    );
  }

  function loadPiece(index) {
    if (index * head.rows_per_piece < head.rows) load(`rows-${index}.js`, () => loadPiece(index + 1));
    else load("map.js", () => {});
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
        [data.description[row], data.text[row], data.keywords[row], data.image_text[row], data.image_path[row], data.error[row]].join("\n"),
      );
    }
    available = first + number;
    renderSoon();
  }

  function addMap(values) {
    plan = values;
    const heights = plan.y.filter((y) => y >= 0);
    mapHeight = (heights.reduce((a, b) => Math.max(a, b), 0) - heights.reduce((a, b) => Math.min(a, b), head.map_steps)) / head.map_steps;
    plan.group.forEach((group, row) => {
      if (!members.has(group)) members.set(group, []);
      members.get(group).push(row);
    });
    renderSoon();
  }

  const isComplete = () => available === head.rows;

  /** Lower case, and without accents: "cafe" finds "Café". */
  function folded(text) {
    const lower = text.toLowerCase();
    return /[^\x00-\x7f]/.test(lower) ? lower.normalize("NFD").replace(/\p{M}/gu, "") : lower;
  }

  const nameOf = (row) => data.image_path[row].slice(data.image_path[row].lastIndexOf("/") + 1);
  const errorKind = (row) => data.error[row].split(": ").slice(0, 2).join(": ");
  const flagsOf = (row) => (data.flags[row] || "").split(" ").filter(Boolean);
  const keywordsOf = (row) => data.keywords[row].split(", ").filter(Boolean);
  const altOf = (row) => data.description[row] || data.text[row] || `${nameOf(row)}, not described`;
  const thumbnailOf = (row) => {
    const name = data.thumbnail[row];
    return name && `${thumbnails}${name.slice(0, 2)}/${name}.webp`;
  };
  const colours = new Map();
  function colourOf(category) {
    if (!colours.size) head.categories.slice(0, PALETTE.length).forEach(([name], i) => colours.set(name, PALETTE[i]));
    return colours.get(category) || OTHER_COLOUR;
  }

  // ---- State: all of it is in the hash

  const EMPTY = { view: "grid", q: "", category: "", keyword: "", flag: "", error: "", group: "", errors: "", sort: "", image: "", at: "", map: "" };
  const FILTERS = ["q", "category", "keyword", "flag", "error", "group", "errors"];
  let state = { ...EMPTY };

  function readHash() {
    const given = new URLSearchParams(location.hash.slice(1));
    state = { ...EMPTY };
    for (const name of Object.keys(EMPTY)) if (given.has(name)) state[name] = given.get(name);
    if (!$(`view-${state.view}`)) state.view = "grid";
    mapCamera = cameraOf(state.map);
    toRestore = Number(state.at) || 0;
    render();
  }

  function hashOf(changes) {
    const given = new URLSearchParams();
    for (const [name, value] of Object.entries({ ...state, ...changes })) {
      if (value !== EMPTY[name]) given.set(name, value);
    }
    return `#${given}`;
  }

  /** Change the state and show it; a step that Back undoes where `isStep`. */
  function go(changes, isStep = true, note = null) {
    if (FILTERS.some((name) => name in changes && changes[name] !== state[name]) || "sort" in changes) changes = { at: "", ...changes };
    const hash = hashOf(changes);
    Object.assign(state, changes);
    if (isStep) history.pushState(note, "", hash);
    else history.replaceState(note || history.state, "", hash);
    if (changes.at === "") {
      toRestore = 0;
      if (state.view === "grid") scrollToGridTop();
    }
    render();
  }

  // ---- Results: the rows that pass the filters, in order

  let results = [];
  let resultsFor = "";
  let positions = new Map(); // row -> its place among the results
  const orders = new Map(); // sort -> all rows in that order

  const sortOf = () => {
    const name = state.sort.replace(/^-/, "");
    return name in SORTS ? { name, isDescending: state.sort.startsWith("-") } : { name: "time", isDescending: false };
  };
  const needsAll = () => state.sort !== "" || state.group !== "";

  function find() {
    const key = JSON.stringify([available, plan !== null, state.sort, ...FILTERS.map((name) => state[name])]);
    if (key === resultsFor) return;
    resultsFor = key;
    results = needsAll() && !(isComplete() && (plan || !state.group)) ? [] : ordered().filter(passes());
    positions = new Map(results.map((row, position) => [row, position]));
  }

  function ordered() {
    const { name, isDescending } = sortOf();
    if (!isComplete()) return Array.from({ length: available }, (_, row) => row);
    if (!orders.has(state.sort)) {
      const column = data[SORTS[name]];
      const compare = typeof column.find((value) => value !== null) === "string" && name !== "time"
        ? collator.compare
        : (a, b) => (a < b ? -1 : a > b ? 1 : 0);
      const isMissing = (row) => column[row] === null || column[row] === "";
      const order = Array.from({ length: head.rows }, (_, row) => row);
      order.sort((a, b) => isMissing(a) - isMissing(b) || compare(column[a], column[b]) * (isDescending ? -1 : 1) || a - b);
      orders.set(state.sort, order);
    }
    return orders.get(state.sort);
  }

  /** The test that a row must pass to be shown. */
  function passes() {
    const words = folded(state.q).split(/\s+/).filter(Boolean);
    const group = Number(state.group);
    return (row) =>
      (!state.category || data.categories[row] === state.category) &&
      (!state.flag || flagsOf(row).includes(state.flag)) &&
      (!state.keyword || keywordsOf(row).includes(state.keyword)) &&
      (!state.errors || data.error[row] !== "") &&
      (!state.error || errorKind(row) === state.error) &&
      (!group || plan.group[row] === group) &&
      words.every((word) => haystacks[row].includes(word));
  }

  // ---- Rendering

  let isRenderDue = false;
  function renderSoon() {
    if (isRenderDue) return;
    isRenderDue = true;
    requestAnimationFrame(() => {
      isRenderDue = false;
      render();
    });
  }

  const VIEWS = { grid: renderGrid, groups: renderGroups, map: renderMap, summary: renderSummary };

  function render() {
    for (const name of Object.keys(VIEWS)) $(`view-${name}`).hidden = name !== state.view;
    for (const link of document.querySelectorAll("nav a")) {
      link.setAttribute("href", hashOf({ view: link.dataset.view, image: "" }));
      if (link.dataset.view === state.view) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    $("filters").hidden = document.querySelector(".status").hidden = state.view === "summary"; // which is of all images
    $("sort").closest(".field").hidden = state.view !== "grid";
    find();
    showFilters();
    showCount();
    VIEWS[state.view]();
    renderDetail();
  }

  function showCount() {
    let text = `${count(results.length)} of ${plural(head.rows, "image")}`;
    if (FILTERS.every((name) => !state[name])) text = plural(head.rows, "image");
    if (!isComplete()) {
      text = results.length ? `${text}, loading…` : `Loading, ${percent(available / Math.max(head.rows, 1))}…`;
    }
    if ($("count").textContent !== text) $("count").textContent = text;
  }

  // ---- Filters

  const optionsOf = (pairs, all) => [
    element("option", { value: "" }, all),
    ...pairs.map(([value, number]) => element("option", { value }, `${value} (${count(number)})`)),
  ];

  function fillFilters() {
    $("category").append(...optionsOf(head.categories, "All"));
    $("flag").append(...optionsOf(head.flags, "All"));
    $("flag").parentElement.hidden = !head.flags.length;
    $("keywords").append(...head.keywords.map(([value]) => element("option", { value })));
    const sorts = Object.keys(SORTS).filter((name) => !["confidence", "clip"].includes(name) || SORTS[name] in head.scores);
    $("sort").append(...sorts.map((value) => element("option", { value }, SORT_NAMES[value])));
    $("errors").parentElement.hidden = !head.errors.length;
  }

  const CHIPS = {
    q: (value) => `“${value}”`,
    category: (value) => `Category: ${value}`,
    keyword: (value) => `Keyword: ${value}`,
    flag: (value) => `Flag: ${value}`,
    error: (value) => `Error: ${value}`,
    group: (value) => `Near-duplicates, group ${value}`,
    errors: () => "Errors only",
  };

  function showFilters() {
    const { name, isDescending } = sortOf();
    for (const id of ["q", "category", "keyword", "flag"]) if ($(id) !== document.activeElement || $(id).tagName === "SELECT") $(id).value = state[id];
    $("errors").checked = state.errors !== "";
    $("sort").value = name;
    $("direction").textContent = isDescending ? "↓" : "↑";
    $("direction").setAttribute("aria-label", isDescending ? "Descending; sort ascending" : "Ascending; sort descending");
    $("direction").title = isDescending ? "Descending" : "Ascending";
    const used = FILTERS.filter((filter) => state[filter]);
    $("more").textContent = used.some((filter) => filter !== "q") ? `Filters (${used.filter((filter) => filter !== "q").length})` : "Filters";
    const chips = used.map((filter) =>
      element("li", {}, element("button", {
        type: "button",
        "aria-label": `Remove the filter ${CHIPS[filter](state[filter])}`,
        onclick: () => remove([filter]),
      }, element("bdi", {}, CHIPS[filter](state[filter])))),
    );
    if (used.length > 1) chips.push(element("li", {}, element("button", { type: "button", onclick: () => remove(used) }, "Clear all")));
    const wasFocused = $("chips").contains(document.activeElement);
    $("chips").replaceChildren(...chips);
    $("chips").hidden = !chips.length;
    if (wasFocused) ($("chips").querySelector("button") || $("q")).focus();
  }

  const remove = (filters) => {
    for (const name of filters) if ($(name) && "value" in $(name)) $(name).value = "";
    go(Object.fromEntries(filters.map((name) => [name, ""])));
  };

  function listen() {
    let typing;
    $("q").addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => go({ q: $("q").value.trim() }, false), 120);
    });
    $("keyword").addEventListener("change", () => go({ keyword: $("keyword").value.trim() }));
    $("category").addEventListener("change", () => go({ category: $("category").value }));
    $("flag").addEventListener("change", () => go({ flag: $("flag").value }));
    $("errors").addEventListener("change", () => go({ errors: $("errors").checked ? "1" : "" }));
    const sort = (name, isDescending) => go({ sort: (isDescending ? "-" : "") + (name === "time" && !isDescending ? "" : name) });
    $("sort").addEventListener("change", () => sort($("sort").value, sortOf().isDescending));
    $("direction").addEventListener("click", () => sort(sortOf().name, !sortOf().isDescending));
    $("filters").addEventListener("submit", (event) => event.preventDefault());
    $("more").addEventListener("click", () => {
      const isOpen = $("fields").classList.toggle("open");
      $("more").setAttribute("aria-expanded", isOpen);
    });
    $("skip").addEventListener("click", (event) => {
      event.preventDefault();
      (state.view === "grid" && $("grid").querySelector('[tabindex="0"]') || $("main")).focus();
    });
    history.scrollRestoration = "manual";
    addEventListener("popstate", readHash); // Back, Forward, and links to another hash
    addEventListener("resize", () => VIEWS[state.view]());
    addEventListener("scroll", onScroll, { passive: true });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", renderSoon);
    $("grid").addEventListener("keydown", onGridKey);
    $("grid").addEventListener("focusin", (event) => setCurrent(Number(event.target.dataset.position)));
    document.addEventListener("click", onTileClick);
    $("groups-more").addEventListener("click", showMoreGroups);
    listenToMap();
    listenToDetail();
  }

  // ---- Tiles

  function picture(row) {
    const source = thumbnailOf(row);
    return element("span", { class: "picture" }, source
      ? element("img", { src: source, alt: altOf(row), loading: "lazy", decoding: "async" })
      : element("span", { class: "none" }, element("span", { class: "unseen" }, altOf(row)), "No picture"));
  }

  function tile(row) {
    const flags = flagsOf(row);
    const confidence = data.text_confidence[row];
    const end = data.error[row]
      ? element("span", { class: "failed", title: data.error[row] }, errorKind(row))
      : flags.length
        ? element("span", { class: "flag", title: flags.join(", ") }, flags.length > 1 ? `${flags[0]} +${flags.length - 1}` : flags[0])
        : confidence === null ? null : element("span", {}, element("span", { class: "unseen" }, "confidence "), percent(confidence));
    const category = data.categories[row];
    const dot = element("span", { class: "dot" });
    dot.style.background = colourOf(category);
    return element("a", { class: "tile", href: hashOf({ image: row }), "data-row": row },
      picture(row),
      element("span", { class: "caption" },
        element("span", { class: "says", dir: "auto", "aria-hidden": "true" }, data.description[row] || nameOf(row)),
        element("span", { class: "meta" },
          category && dot, category && element("bdi", { class: "category" }, category),
          end && element("span", { class: "end" }, end))));
  }

  function onTileClick(event) {
    const link = event.target.closest("a[data-row]");
    if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    open(Number(link.dataset.row), link);
  }

  // ---- The grid: only the tiles near the window exist

  const shown = new Map(); // position -> its list item
  let columns = 1, rowHeight = 1;
  let current = 0; // the position that Tab leads to
  let toRestore = 0; // the position to scroll to once it has arrived

  function measureGrid() {
    const style = getComputedStyle(document.documentElement);
    const gap = parseFloat(style.getPropertyValue("--gap"));
    const caption = parseFloat(style.getPropertyValue("--caption")) * parseFloat(style.fontSize);
    const width = $("grid").clientWidth;
    const smallest = innerWidth <= 720 ? SMALLEST_TILE_PHONE_PX : SMALLEST_TILE_PX;
    columns = Math.max(1, Math.floor((width + gap) / (smallest + gap)));
    const tileWidth = (width - gap * (columns - 1)) / columns;
    const tileHeight = Math.round(tileWidth * 0.75 + caption);
    rowHeight = tileHeight + gap;
    return { gap, tileWidth, tileHeight };
  }

  function renderGrid() {
    const { gap, tileWidth, tileHeight } = measureGrid();
    const rows = Math.ceil(results.length / columns);
    $("grid").style.height = `${Math.max(0, rows * rowHeight - gap)}px`;
    current = Math.max(0, Math.min(current, results.length - 1));
    if (toRestore && toRestore < results.length) {
      scrollToPosition(toRestore);
      toRestore = 0;
    }
    const above = -$("grid").getBoundingClientRect().top;
    const first = Math.max(0, (Math.floor(above / rowHeight) - OVERSCAN_ROWS) * columns);
    const last = Math.min(results.length, (Math.ceil((above + innerHeight) / rowHeight) + OVERSCAN_ROWS) * columns);
    const wanted = new Set([current]); // it stays, so that focus does
    for (let position = first; position < last; position++) wanted.add(position);
    let hadFocus = false;
    for (const [position, item] of shown) {
      if (wanted.has(position) && Number(item.firstChild.dataset.row) === results[position]) continue;
      hadFocus ||= item.contains(document.activeElement);
      item.remove();
      shown.delete(position);
    }
    for (const position of [...wanted].sort((a, b) => a - b)) {
      if (position >= results.length) continue;
      const item = shown.get(position) || addTile(position);
      item.style.width = `${tileWidth}px`;
      item.style.height = `${tileHeight}px`;
      item.style.transform = `translate(${(position % columns) * (tileWidth + gap)}px, ${Math.floor(position / columns) * rowHeight}px)`;
      item.setAttribute("aria-setsize", results.length);
      item.firstChild.tabIndex = position === current ? 0 : -1;
      item.firstChild.setAttribute("href", hashOf({ image: results[position] }));
    }
    if (hadFocus && shown.has(current)) shown.get(current).firstChild.focus({ preventScroll: true });
    showEmpty();
  }

  function addTile(position) {
    const link = tile(results[position]);
    link.dataset.position = position;
    const item = element("li", { "aria-posinset": position + 1 }, link);
    shown.set(position, item);
    const later = [...$("grid").children].find((other) => Number(other.firstChild.dataset.position) > position);
    $("grid").insertBefore(item, later || null); // reading order is the order of the results
    return item;
  }

  function showEmpty() {
    const isEmpty = !results.length && isComplete();
    let text = $("view-grid").querySelector(".empty");
    if (isEmpty && !text) {
      text = element("p", { class: "empty" }, head.rows ? "No image passes these filters." : "The CSV has no rows yet.");
      $("view-grid").append(text);
    } else if (!isEmpty && text) text.remove();
  }

  const barHeight = () => $("filters").getBoundingClientRect().height + 10;

  function scrollToPosition(position) {
    const top = $("grid").getBoundingClientRect().top + scrollY;
    scrollTo(0, position < columns ? 0 : top + Math.floor(position / columns) * rowHeight - barHeight());
  }

  function scrollToGridTop() {
    const top = $("filters").offsetTop;
    if (scrollY > top) scrollTo(0, 0);
    current = 0;
  }

  let scrolled, isScrollDue = false;
  function onScroll() {
    if (state.view !== "grid") return;
    if (!isScrollDue) {
      isScrollDue = true;
      requestAnimationFrame(() => {
        isScrollDue = false;
        if (state.view === "grid") renderGrid();
      });
    }
    clearTimeout(scrolled);
    scrolled = setTimeout(noteScroll, 250);
  }

  /** Keep the first visible position in the hash, so that a bookmark and Back return to it. */
  function noteScroll() {
    if (state.view !== "grid" || state.image) return;
    const above = barHeight() - $("grid").getBoundingClientRect().top;
    const position = Math.max(0, Math.ceil(above / rowHeight - 0.5)) * columns;
    state.at = scrollY > 0 && position ? String(Math.min(position, results.length - 1)) : "";
    history.replaceState(history.state, "", hashOf({}));
  }

  function setCurrent(position) {
    if (Number.isNaN(position) || position === current) return;
    shown.get(current)?.firstChild.setAttribute("tabindex", "-1");
    current = position;
    shown.get(current)?.firstChild.setAttribute("tabindex", "0");
  }

  function focusPosition(position) {
    setCurrent(position);
    renderGrid();
    const link = shown.get(position).firstChild;
    const box = link.getBoundingClientRect();
    link.focus({ preventScroll: true });
    if (box.top < barHeight()) scrollBy(0, box.top - barHeight());
    else if (box.bottom > innerHeight) scrollBy(0, box.bottom - innerHeight + 10);
  }

  function onGridKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor((innerHeight - barHeight()) / rowHeight)) * columns;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -page, PageDown: page, Home: -results.length, End: results.length };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const next = Math.max(0, Math.min(results.length - 1, current + steps[event.key]));
    const isSideways = ["ArrowUp", "ArrowDown"].includes(event.key) && Math.abs(next - current) !== columns;
    if (next !== current && !isSideways) focusPosition(next);
  }

  // ---- Near-duplicates

  let groupsShown = GROUPS_AT_ONCE;
  let groupsFor = "";

  function renderGroups() {
    const key = `${resultsFor}`;
    if (key === groupsFor) return;
    groupsFor = key;
    $("groups").replaceChildren();
    $("groups-more").hidden = true;
    if (!plan) {
      $("groups-about").textContent = "Loading…";
      return;
    }
    const found = groupsOfResults();
    $("groups-about").textContent = head.groups
      ? `${plural(found.length, "group")} of images whose vectors have a cosine of at least ${head.duplicate_cosine}, directly or through others, the largest first.`
      : `No two images have vectors with a cosine of at least ${head.duplicate_cosine}.`;
    $("groups").append(...found.slice(0, groupsShown).map(groupSection));
    $("groups-more").hidden = found.length <= groupsShown;
  }

  const groupsOfResults = () => [...new Set(results.map((row) => plan.group[row]))].filter(Boolean).sort((a, b) => a - b);

  function showMoreGroups() {
    const added = groupsOfResults().slice(groupsShown, groupsShown + GROUPS_AT_ONCE).map(groupSection);
    groupsShown += GROUPS_AT_ONCE;
    $("groups").append(...added);
    $("groups-more").hidden = groupsOfResults().length <= groupsShown;
    added[0]?.querySelector("a").focus();
  }

  function groupSection(group) {
    const rows = members.get(group);
    const link = element("a", { href: hashOf({ ...EMPTY, view: "grid", group: String(group) }) },
      rows.length > TILES_OF_GROUP ? `Show all ${count(rows.length)}` : "Show in the grid");
    return element("section", { class: "group", "aria-label": `Group ${group}` },
      element("div", { class: "group-head" }, element("h3", {}, `Group ${group}: ${plural(rows.length, "image")}`), link),
      element("ul", { class: "strip" }, ...rows.slice(0, TILES_OF_GROUP).map((row) => element("li", {}, tile(row)))));
  }

  // ---- Map

  const THUMBNAILS_ON_MAP = 160, THUMBNAIL_PX = 64, LISTED = 18;
  let mapCamera = null; // x and y of the middle, within 0..1, and the zoom
  let mapHeight = 1; // its width is 1
  let mapDots = []; // what is drawn within the window: row, x, y
  const mapImages = new Map(); // row -> its thumbnail

  function cameraOf(text) {
    const [x, y, zoom] = text.split(",").map(Number);
    return zoom > 0 && Number.isFinite(x) && Number.isFinite(y) ? { x, y, zoom: Math.min(zoom, 400) } : { x: 0.5, y: 0.5, zoom: 1 };
  }

  /** Pixels that the map's whole width of 1 takes; at zoom 1 all of it is in view. */
  function mapUnit() {
    const { clientWidth, clientHeight } = $("map");
    return 0.9 * Math.min(clientWidth, clientHeight / Math.max(mapHeight, 0.05)) * mapCamera.zoom;
  }

  function toScreen(row) {
    const unit = mapUnit();
    return [
      (plan.x[row] / head.map_steps - mapCamera.x) * unit + $("map").clientWidth / 2,
      (plan.y[row] / head.map_steps - mapCamera.y) * unit + $("map").clientHeight / 2,
    ];
  }

  let legendFor = "";
  function renderMap() {
    drawMap();
    showLegend();
    listMiddle();
  }

  function showLegend() {
    const pairs = head.categories.slice(0, PALETTE.length);
    const key = state.category + resultsFor;
    if (legendFor === key) return;
    legendFor = key;
    const items = pairs.map(([category, number]) => {
      const dot = element("span", { class: "dot" });
      dot.style.background = colourOf(category);
      return element("li", {}, element("button", {
        type: "button", "aria-pressed": String(state.category === category), "data-category": category,
        onclick: () => go({ category: state.category === category ? "" : category }),
      }, dot, element("bdi", {}, category), element("span", { class: "number" }, count(number))));
    });
    if (head.categories.length > pairs.length) {
      const dot = element("span", { class: "dot" });
      dot.style.background = OTHER_COLOUR;
      items.push(element("li", { class: "others" }, dot, "others"));
    }
    const focused = document.activeElement?.dataset?.category;
    $("legend").replaceChildren(...items);
    if (focused !== undefined) [...$("legend").querySelectorAll("button")].find((button) => button.dataset.category === focused)?.focus();
  }

  function drawMap() {
    const canvas = $("map");
    const ratio = devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const context = canvas.getContext("2d");
    const style = getComputedStyle(document.documentElement);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.fillStyle = style.getPropertyValue("--muted");
    context.textAlign = "center";
    context.font = "15px system-ui, sans-serif";
    if (!plan || !isComplete()) {
      context.fillText("Loading…", width / 2, height / 2);
      return;
    }
    const placed = results.filter((row) => plan.x[row] >= 0);
    if (!placed.length) {
      context.fillText("No image to show", width / 2, height / 2);
      mapDots = [];
      return;
    }
    const size = Math.max(2.5, Math.min(9, (100 / Math.sqrt(head.rows)) * Math.sqrt(mapCamera.zoom) + 1.5));
    if (placed.length < head.rows) {
      context.fillStyle = style.getPropertyValue("--line");
      for (let row = 0; row < head.rows; row++) {
        if (plan.x[row] < 0 || positions.has(row)) continue;
        const [x, y] = toScreen(row);
        if (x > -size && y > -size && x < width + size && y < height + size) context.fillRect(x - size / 2, y - size / 2, size, size);
      }
    }
    mapDots = [];
    for (const row of placed) {
      const [x, y] = toScreen(row);
      if (x > -THUMBNAIL_PX && y > -THUMBNAIL_PX && x < width + THUMBNAIL_PX && y < height + THUMBNAIL_PX) mapDots.push({ row, x, y });
    }
    const isClose = mapDots.length <= THUMBNAILS_ON_MAP;
    for (const { row, x, y } of mapDots) {
      context.fillStyle = colourOf(data.categories[row]);
      context.beginPath();
      context.arc(x, y, size / 2, 0, 7);
      context.fill();
    }
    if (isClose) for (const dot of mapDots) drawThumbnail(context, dot, style);
  }

  function drawThumbnail(context, { row, x, y }, style) {
    let image = mapImages.get(row);
    if (!image && thumbnailOf(row)) {
      image = new Image();
      image.onload = renderSoon;
      image.src = thumbnailOf(row);
      mapImages.set(row, image);
      if (mapImages.size > 4 * THUMBNAILS_ON_MAP) mapImages.delete(mapImages.keys().next().value);
    }
    if (!image?.naturalWidth) return;
    const scale = THUMBNAIL_PX / Math.max(image.naturalWidth, image.naturalHeight);
    const width = image.naturalWidth * scale, height = image.naturalHeight * scale;
    context.fillStyle = colourOf(data.categories[row]);
    context.fillRect(x - width / 2 - 2, y - height / 2 - 2, width + 4, height + 4);
    context.drawImage(image, x - width / 2, y - height / 2, width, height);
  }

  let listed;
  function listMiddle() {
    clearTimeout(listed);
    listed = setTimeout(() => {
      if (state.view !== "map") return;
      const x = $("map").clientWidth / 2, y = $("map").clientHeight / 2;
      const nearest = [...mapDots].sort((a, b) => (a.x - x) ** 2 + (a.y - y) ** 2 - (b.x - x) ** 2 - (b.y - y) ** 2).slice(0, LISTED);
      const key = nearest.map((dot) => dot.row).join();
      if ($("map-list").dataset.rows === key) return;
      $("map-list").dataset.rows = key;
      $("map-list").replaceChildren(...nearest.map(({ row }) => element("li", {}, tile(row))));
    }, 200);
  }

  function moveMap(change) {
    Object.assign(mapCamera, change);
    mapCamera.zoom = Math.max(0.5, Math.min(400, mapCamera.zoom));
    mapCamera.x = Math.max(0, Math.min(1, mapCamera.x));
    mapCamera.y = Math.max(0, Math.min(1, mapCamera.y));
    hideTip();
    drawMap();
    listMiddle();
    clearTimeout(scrolled);
    scrolled = setTimeout(() => {
      const { x, y, zoom } = mapCamera;
      state.map = zoom === 1 && x === 0.5 && y === 0.5 ? "" : `${x.toFixed(4)},${y.toFixed(4)},${zoom.toFixed(2)}`;
      history.replaceState(history.state, "", hashOf({}));
    }, 250);
  }

  /** Zoom by a factor; what lies at (x, y) of the canvas stays there. */
  function zoomMap(factor, x = $("map").clientWidth / 2, y = $("map").clientHeight / 2) {
    const zoom = Math.max(0.5, Math.min(400, mapCamera.zoom * factor));
    const before = 1 / mapUnit(), after = (before * mapCamera.zoom) / zoom;
    moveMap({
      zoom,
      x: mapCamera.x + (x - $("map").clientWidth / 2) * (before - after),
      y: mapCamera.y + (y - $("map").clientHeight / 2) * (before - after),
    });
  }

  function nearestDot(x, y) {
    const reach = mapDots.length <= THUMBNAILS_ON_MAP ? THUMBNAIL_PX / 2 : 14;
    let best = null, least = reach ** 2;
    for (const dot of mapDots) {
      const distance = (dot.x - x) ** 2 + (dot.y - y) ** 2;
      if (distance <= least) [best, least] = [dot, distance];
    }
    return best;
  }

  const hideTip = () => ($("map-tip").hidden = true);

  function showTip(dot) {
    const tip = $("map-tip");
    if (!dot) return hideTip();
    if (Number(tip.dataset.row) !== dot.row || tip.hidden) {
      tip.dataset.row = dot.row;
      tip.replaceChildren(picture(dot.row), element("p", { dir: "auto" }, altOf(dot.row)));
      tip.hidden = false;
    }
    const left = dot.x + 14 + tip.offsetWidth > $("map").clientWidth ? dot.x - 14 - tip.offsetWidth : dot.x + 14;
    const top = Math.min(Math.max(4, dot.y - tip.offsetHeight / 2), $("map").clientHeight - tip.offsetHeight - 4);
    tip.style.transform = `translate(${Math.max(4, left)}px, ${top}px)`;
    tip.style.left = tip.style.top = "0";
  }

  function listenToMap() {
    const canvas = $("map");
    const pointers = new Map();
    let travelled = 0;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      zoomMap(Math.exp(-Math.max(-80, Math.min(80, event.deltaY)) / 250), ...at(event));
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, at(event));
      if (pointers.size === 1) travelled = 0;
    });
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = at(event);
      if (!pointers.has(event.pointerId)) return showTip(nearestDot(x, y));
      const [oldX, oldY] = pointers.get(event.pointerId);
      const others = [...pointers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
      travelled += Math.abs(x - oldX) + Math.abs(y - oldY);
      pointers.set(event.pointerId, [x, y]);
      if (others.length) {
        const [otherX, otherY] = others[0];
        const spread = Math.hypot(x - otherX, y - otherY) / Math.max(1, Math.hypot(oldX - otherX, oldY - otherY));
        zoomMap(spread, (x + otherX) / 2, (y + otherY) / 2);
      } else if (travelled > 4) {
        moveMap({ x: mapCamera.x - (x - oldX) / mapUnit(), y: mapCamera.y - (y - oldY) / mapUnit() });
      }
    });
    const lift = (event) => {
      const wasAlone = pointers.delete(event.pointerId) && !pointers.size;
      const dot = nearestDot(...at(event));
      if (event.type === "pointerup" && wasAlone && travelled <= 4 && dot) open(dot.row, canvas);
    };
    canvas.addEventListener("pointerup", lift);
    canvas.addEventListener("pointercancel", lift);
    canvas.addEventListener("pointerleave", hideTip);
    canvas.addEventListener("keydown", (event) => {
      const step = 60 / mapUnit();
      const moves = {
        ArrowLeft: () => moveMap({ x: mapCamera.x - step }), ArrowRight: () => moveMap({ x: mapCamera.x + step }),
        ArrowUp: () => moveMap({ y: mapCamera.y - step }), ArrowDown: () => moveMap({ y: mapCamera.y + step }),
        "+": () => zoomMap(1.4), "=": () => zoomMap(1.4), "-": () => zoomMap(1 / 1.4), 0: showWholeMap,
      };
      if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      moves[event.key]();
    });
    $("map-in").addEventListener("click", () => zoomMap(1.6));
    $("map-out").addEventListener("click", () => zoomMap(1 / 1.6));
    $("map-all").addEventListener("click", showWholeMap);
  }

  const showWholeMap = () => moveMap({ x: 0.5, y: 0.5, zoom: 1 });

  // ---- Summary

  let isSummaryDone = false;
  function renderSummary() {
    if (isSummaryDone) return;
    isSummaryDone = true;
    const errors = head.errors.reduce((sum, [, number]) => sum + number, 0);
    const share = (number) => (head.rows ? `, ${percent(number / head.rows)}` : "");
    const card = (value, name) => element("div", { class: "card" }, element("b", {}, count(value)), element("span", {}, name));
    $("summary").append(
      element("div", { class: "cards" },
        card(head.rows, "images"),
        card(errors, `with an error${share(errors)}`),
        card(head.with_text, `with text on the image${share(head.with_text)}`),
        card(head.categories.length, head.categories.length === 1 ? "category" : "categories"),
        card(head.groups, "groups of near-duplicates")),
      element("div", { class: "plots" }, ...[
        bars("Categories", head.categories, "category"),
        histogram("Confidence of the text", "text_confidence", "Mean probability of the tokens of the text."),
        bars("Keywords", head.keywords, "keyword"),
        histogram("Agreement of image and text", "clip_score", "Cosine of image and text in the space of CLIP."),
        bars("Errors", head.errors, "error") || element("section", { class: "plot" }, element("h3", {}, "Errors"), element("p", { class: "muted" }, "None.")),
        bars("Flags", head.flags, "flag"),
        stages(),
      ].filter(Boolean)));
  }

  function barRow(name, parts, most, number, filter) {
    const track = element("span", { class: "track", "aria-hidden": "true" }, ...parts.map((part, i) => {
      const bar = element("span", { class: i ? "bar second" : "bar" });
      bar.style.width = `${(100 * part) / most}%`;
      return bar;
    }));
    const label = element("bdi", { class: "name", title: name }, name);
    const cells = [label, track, element("span", { class: "number" }, number)];
    return element("li", {}, filter
      ? element("a", { href: `#${new URLSearchParams({ [filter]: name })}` }, ...cells)
      : element("span", {}, ...cells));
  }

  function bars(title, pairs, filter) {
    if (!pairs.length) return null;
    const top = pairs.slice(0, BARS);
    const list = element("ol", { class: "bars", "aria-label": title }, ...top.map(([name, number]) => barRow(name, [number], top[0][1], count(number), filter)));
    if (filter === "error") list.querySelectorAll(".name").forEach((name) => name.classList.add("wide"));
    const rest = pairs.length - top.length;
    return element("section", { class: "plot" }, element("h3", {}, title), list,
      rest > 0 ? element("p", { class: "note" }, `The ${BARS} most frequent of ${pairs.length === 500 ? "500 or more" : count(pairs.length)}.`) : null);
  }

  function stages() {
    if (!head.stages.length) return null;
    const most = Math.max(...head.stages.map(([, work, loading]) => work + loading), 1e-9);
    const seconds = (value) => `${value >= 100 ? count(Math.round(value)) : value.toFixed(1)}\u00a0s`;
    return element("section", { class: "plot" }, element("h3", {}, "Seconds per stage"),
      element("ol", { class: "bars", "aria-label": "Seconds per stage" },
        ...head.stages.map(([name, work, loading]) => barRow(name, [work, loading], most, `${seconds(work)} + ${seconds(loading)}`))),
      element("p", { class: "note" }, element("span", { class: "key" }), "work", element("span", { class: "key second" }), "loading the model; all runs in run.log"));
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
    const width = 440, height = 170, bottom = 24, top = 18;
    const most = Math.max(...bins.map(([, number]) => number));
    const step = width / bins.length;
    const every = Math.ceil(bins.length / 8);
    const marks = bins.flatMap(([low, number], i) => {
      const tall = ((height - bottom - top) * number) / most;
      const rect = svg("rect", { x: i * step + 1, y: height - bottom - tall, width: Math.max(1, step - 2), height: tall, rx: 2 },
        svg("title", {}, `${low.toFixed(2)} to ${(low + head.bin).toFixed(2)}: ${count(number)}`));
      const tick = i % every ? [] : [svg("text", { x: i * step, y: height - 6 }, low.toFixed(2))];
      const value = step > 34 && number ? [svg("text", { x: (i + 0.5) * step, y: height - bottom - tall - 5, "text-anchor": "middle" }, count(number))] : [];
      return [rect, ...tick, ...value];
    });
    const said = bins.filter(([, number]) => number).map(([low, number]) => `${low.toFixed(2)} to ${(low + head.bin).toFixed(2)}: ${number}`).join("; ");
    return element("section", { class: "plot" }, element("h3", {}, title),
      svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}. ${said}` },
        svg("line", { x1: 0, x2: width, y1: height - bottom, y2: height - bottom }), ...marks),
      element("p", { class: "note" }, about));
  }

  // ---- One image

  let opener = null; // what had the focus before
  let detailFor = "";

  function open(row, from) {
    opener = from;
    go({ image: String(row) }, true, { isOpened: true });
  }

  function close() {
    if (history.state?.isOpened) history.back(); // popstate shows the page without it
    else go({ image: "" }, false, {});
  }

  function renderDetail() {
    const dialog = $("detail");
    const row = Number(state.image);
    const isWanted = state.image !== "" && row >= 0 && row < available;
    if (!isWanted && dialog.open) {
      const last = Number(detailFor.split(" ")[0]);
      detailFor = "";
      dialog.close();
      returnFocus(last);
    }
    if (!isWanted) return;
    const position = positions.get(row);
    $("previous").disabled = !(position > 0);
    $("next").disabled = !(position < results.length - 1);
    $("detail-place").textContent = position === undefined ? "" : `${count(position + 1)} of ${count(results.length)}`;
    const key = `${row} ${plan !== null}`;
    if (detailFor !== key) {
      const isSame = detailFor.split(" ")[0] === String(row);
      detailFor = key;
      $("detail-title").replaceChildren(element("bdi", {}, nameOf(row)));
      if (!isSame) showPicture(row);
      $("detail-facts").replaceChildren(...factsOf(row));
      if (!isSame) $("detail-facts").scrollTop = 0;
    }
    if (!dialog.open) {
      dialog.showModal();
      $("next").disabled ? $("close").focus() : $("next").focus();
    }
  }

  /** Focus goes back to the tile of the image that was shown last, or else to where it came from. */
  function returnFocus(row) {
    if (state.view === "grid" && positions.has(row)) return focusPosition(positions.get(row));
    const again = document.querySelector(`section:not([hidden]) a[data-row="${row}"]`);
    (opener?.isConnected ? opener : again || $("main")).focus();
  }

  function showPicture(row) {
    const small = thumbnailOf(row), full = data.link[row];
    const say = (text) => element("figcaption", {}, text);
    const parts = [];
    if (small) parts.push(element("img", { src: small, alt: altOf(row) }));
    else parts.push(element("p", { class: "none" }, "No picture"));
    if (!full) parts.push(say("The image file was not there when this report was made."));
    $("detail-picture").replaceChildren(...parts);
    if (!full) return;
    const image = element("img", { alt: altOf(row) });
    image.onload = () => {
      if (state.image === String(row)) $("detail-picture").replaceChildren(image);
    };
    image.onerror = () => {
      if (state.image === String(row)) $("detail-picture").append(say("The browser cannot show the image file: it has moved, is damaged, or is of another kind."));
    };
    image.src = full;
  }

  function factsOf(row) {
    const facts = element("dl");
    const add = (name, ...values) => facts.append(element("div", {}, element("dt", {}, name), element("dd", { dir: "auto" }, ...values)));
    const link = (filter, value) => element("li", {}, element("a", { href: `#${new URLSearchParams({ [filter]: value })}` }, element("bdi", {}, value)));
    const links = (filter, values) => element("ul", { class: "chips" }, ...values.map((value) => link(filter, value)));
    const confidence = data.text_confidence[row];
    if (data.categories[row]) add("Category", links("category", [data.categories[row]]));
    if (data.keywords[row]) add("Keywords", links("keyword", keywordsOf(row)));
    if (data.image_text[row]) add("Text on the image", data.image_text[row]);
    if (flagsOf(row).length) add("Flags", links("flag", flagsOf(row)));
    if (confidence !== null) add("Confidence", confidence.toFixed(3), element("meter", { value: confidence, "aria-label": "Confidence" }));
    if (data.clip_score[row] !== null) add("CLIP score", data.clip_score[row].toFixed(3));
    if (data.text[row] && data.text[row] !== data.description[row]) add("Full text", data.text[row]);
    if (data.timestamp[row]) add("Annotated", data.timestamp[row].replace("T", " "));
    add("File", element("bdi", {}, data.image_path[row]));
    const group = plan?.group[row];
    const alike = group ? members.get(group).filter((other) => other !== row) : [];
    return [
      data.description[row] && element("p", { class: "lead", dir: "auto" }, data.description[row]),
      data.error[row] && element("p", { class: "error", dir: "auto" }, data.error[row]),
      facts,
      data.link[row] && element("p", {}, element("a", { href: data.link[row], target: "_blank", rel: "noopener" }, "Open the image file")),
      alike.length && element("section", { "aria-label": "Near-duplicates" },
        element("h3", {}, element("a", { href: `#${new URLSearchParams({ group })}` }, `${plural(alike.length, "near-duplicate")}`)),
        element("ul", { class: "strip" }, ...alike.slice(0, 8).map((other) => element("li", {}, tile(other))))),
    ].filter(Boolean);
  }

  function listenToDetail() {
    const step = (by) => {
      const next = results[positions.get(Number(state.image)) + by];
      if (next === undefined) return;
      const hadFocus = document.activeElement;
      go({ image: String(next) }, false);
      if (hadFocus?.disabled) (hadFocus === $("next") ? $("previous") : $("next")).focus();
    };
    $("previous").addEventListener("click", () => step(-1));
    $("next").addEventListener("click", () => step(1));
    $("close").addEventListener("click", close);
    $("detail").addEventListener("cancel", (event) => {
      event.preventDefault();
      close();
    });
    $("detail").addEventListener("click", (event) => {
      if (event.target === $("detail")) close(); // the backdrop
    });
    $("detail").addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "ArrowLeft") step(-1);
      else if (event.key === "ArrowRight") step(1);
      else return;
      event.preventDefault();
    });
  }

  return { start, addRows, addMap };
})();
