/* One image in a dialog, with the previous and the next. */

"use strict";

let cameFrom = null; // the element that had the focus before
let detailFor = "";

function openDetail(row, from) {
  cameFrom = from;
  go({ image: String(row) }, true, { isOpened: true });
}

function closeDetail() {
  if (history.state?.isOpened)
    history.back(); // popstate shows the page without it
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
    if (!isSame) {
      readBoxes(row);
      readPair(row);
      showPicture(row);
    }
    $("detail-facts").replaceChildren(...factsOf(row));
    if (!isSame) $("detail-facts").scrollTop = 0;
  }
  if (!dialog.open) {
    dialog.showModal();
    $("next").disabled ? $("close").focus() : $("next").focus();
  }
}

/** Focus goes back to the tile of the image that was shown last, or else to where it was before. */
function returnFocus(row) {
  if (state.view === "grid" && positions.has(row)) return focusPosition(positions.get(row));
  const again = document.querySelector(`section:not([hidden]) a[data-row="${row}"]`);
  (cameFrom?.isConnected ? cameFrom : again || $("main")).focus();
}

function showPicture(row) {
  const small = thumbnailOf(row);
  const full = data.link[row];
  const say = (text) => element("figcaption", {}, text);
  const parts = [];
  if (small) parts.push(element("img", { src: small, alt: altOf(row) }));
  else parts.push(element("p", { class: "none" }, "No picture"));
  const notes = [
    !full && (small ? "This report has no link to the image." : "The image was not available when this report was made."),
    small && !full.startsWith("file:") && boxes.length && !data.size[row] &&
      "Its boxes cannot be drawn, since its size is not known.",
  ].filter(Boolean);
  if (notes.length) parts.push(say(notes.join(" ")));
  $("detail-picture").replaceChildren(...parts);
  drawPair();
  if (small) drawBoxes(row);
  if (!full.startsWith("file:")) return; // a report needs no network
  const image = element("img", { alt: altOf(row) });
  image.onload = () => {
    if (state.image !== String(row) || !isUpright(row, image)) return; // the thumbnail stays, which is upright
    $("detail-picture").replaceChildren(image);
    drawPair();
    drawBoxes(row, [image.naturalWidth, image.naturalHeight]);
  };
  image.onerror = () => {
    if (state.image === String(row))
      $("detail-picture").append(
        say("The browser cannot show the image: it has been moved, is damaged, or has an unsupported format."),
      );
  };
  image.src = full;
}

/** Whether the browser shows an image as its boxes see it: browsers ignore the orientation that some formats note. */
function isUpright(row, { naturalWidth, naturalHeight }) {
  if (!data.size[row]) return true;
  const [width, height] = data.size[row];
  return Math.abs((naturalWidth * height) / (naturalHeight * width) - 1) < 0.05;
}

function factsOf(row) {
  const facts = element("dl");
  const add = (name, ...values) =>
    facts.append(element("div", {}, element("dt", {}, name), element("dd", { dir: "auto" }, ...values)));
  const link = (filter, value) =>
    element(
      "li",
      {},
      element("a", { href: `#${new URLSearchParams({ [filter]: value })}` }, element("bdi", {}, value)),
    );
  const links = (filter, values) => element("ul", { class: "chips" }, ...values.map((value) => link(filter, value)));
  const confidence = data.text_confidence[row];
  if (data.verified[row]) add("Verified", data.verified[row]);
  if (data.request[row]) add("Request", data.request[row]);
  if (data.categories[row]) add("Category", links("category", [data.categories[row]]));
  if (data.keywords[row]) add("Keywords", links("keyword", keywordsOf(row)));
  if (data.image_text[row]) add("Text on the image", data.image_text[row]);
  const shown = [...boxes.entries()];
  const lines = shown.filter(([, box]) => box.layers.includes("text"));
  const objects = shown.filter(([, box]) => !box.layers.includes("text"));
  if (objects.length)
    add(
      "Objects",
      links("object", [...new Set(labelsOf(row))]),
      ...boxList("Objects, the surest first", objects, data.objects[row].length),
    );
  if (lines.length) add("Text read by OCR", ...boxList("Lines of text", lines, data.ocr_boxes[row].length));
  if (flagsOf(row).length) add("Flags", links("flag", flagsOf(row)));
  if (confidence !== null)
    add("Confidence", confidence.toFixed(3), element("meter", { value: confidence, "aria-label": "Confidence" }));
  if (data.clip_score[row] !== null) add("CLIP score", data.clip_score[row].toFixed(3));
  head.numbers.forEach((name, i) => {
    if (data.numbers[row][i] !== null) add(name, String(Number(data.numbers[row][i].toPrecision(6))));
  });
  if (data.text[row] && data.text[row] !== data.description[row]) add("Full text", data.text[row]);
  if (data.edited_text[row]) add("Text of the result", data.edited_text[row]);
  if (data.timestamp[row]) add("Annotated", data.timestamp[row].replace("T", " "));
  add("File", element("bdi", {}, data.image_path[row]));
  const group = plan?.group[row];
  const alike = group ? members.get(group).filter((other) => other !== row) : [];
  return [
    data.description[row] && element("p", { class: "lead", dir: "auto" }, data.description[row]),
    data.error[row] && element("p", { class: "error", dir: "auto" }, data.error[row]),
    facts,
    ...machineOf(row),
    ...[
      [data.link[row], "Open the image"],
      [data.edited_link[row], "Open the result"],
    ].map(
      ([href, text]) => href && element("p", {}, element("a", { href, target: "_blank", rel: "noopener" }, text)),
    ),
    alike.length &&
      element(
        "section",
        { "aria-label": "Near-duplicates" },
        element(
          "h3",
          {},
          element("a", { href: `#${new URLSearchParams({ group })}` }, `${plural(alike.length, "near-duplicate")}`),
        ),
        element("ul", { class: "strip" }, ...alike.slice(0, 8).map((other) => element("li", {}, tile(other)))),
      ),
  ].filter(Boolean);
}

/** What the models wrote where somebody has corrected it. */
function machineOf(row) {
  const values = Object.entries(data.machine[row] || {});
  if (!values.length) return [];
  const pairs = values.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", { dir: "auto" }, value === null || value === "" ? "—" : String(value))),
  );
  return [element("section", { class: "machine" }, element("h3", {}, "Corrected; the machine’s values"), element("dl", {}, ...pairs))];
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
  $("close").addEventListener("click", closeDetail);
  $("detail").addEventListener("cancel", (event) => {
    event.preventDefault();
    closeDetail();
  });
  $("detail").addEventListener("click", (event) => {
    if (event.target === $("detail")) closeDetail(); // the backdrop
  });
  $("detail").addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target === $("pair-share")) return;
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    else return;
    event.preventDefault();
  });
}
