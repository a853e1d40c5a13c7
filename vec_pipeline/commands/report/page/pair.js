/* The edited picture of a pair: over its original in the detail view, as far as a slider says. */

"use strict";

const HALF = 50; // percent of the picture's width at which original and result meet

let edited = null; // the picture over the original of the image that is shown, if it has one

const editedThumbnailOf = (row) => thumbnailNamed(data.edited[row]);

/** Find the edited picture of an image, before its own is shown. */
function readPair(row) {
  const small = thumbnailOf(row) && editedThumbnailOf(row);
  edited = small ? element("img", { class: "edited", src: small, alt: resultOf(row), onload: placePair }) : null;
  $("pair").hidden = !edited;
  $("pair-share").value = HALF;
  const full = data.edited_link[row] || "";
  if (!edited || !full.startsWith("file:")) return; // a report needs no network
  const overlay = edited;
  element("img", { src: full, onload: () => (overlay.src = full) }); // where it cannot be shown, the thumbnail stays
}

const resultOf = (row) => `The result${data.request[row] ? ` of “${data.request[row]}”` : ""}`;

/** Put the edited picture over the original that is shown, and the line at which they meet. */
function drawPair() {
  if (!edited) return;
  const original = $("detail-picture").querySelector("img");
  original.addEventListener("load", placePair);
  $("detail-picture").append(edited, element("div", { class: "seam", "aria-hidden": "true" }));
  placePair();
}

/** Show the original up to the slider's share of its width, and the result from there on. */
function placePair() {
  const picture = $("detail-picture");
  const seam = picture.querySelector(".seam");
  if (!seam) return;
  const share = $("pair-share").value / 100;
  const { left, top, width, height } = extentShown(picture.querySelector("img"));
  const x = left + share * width;
  edited.style.clipPath = `inset(0 0 0 ${x}px)`;
  seam.style.transform = `translate(${x}px, ${top}px)`;
  seam.style.height = `${height}px`;
  seam.hidden = !height; // nothing is loaded yet
  $("pair-share").setAttribute("aria-valuetext", `original ${percent(share)}, result ${percent(1 - share)}`);
}

/** Where an image that fits into its box is within it, in pixels of the page. */
function extentShown(image) {
  const { paddingLeft: padding } = getComputedStyle(image);
  const inner = { width: image.clientWidth - 2 * parseFloat(padding), height: image.clientHeight - 2 * parseFloat(padding) };
  const scale = Math.min(inner.width / image.naturalWidth, inner.height / image.naturalHeight) || 0;
  const width = image.naturalWidth * scale;
  const height = image.naturalHeight * scale;
  return { left: (image.clientWidth - width) / 2, top: (image.clientHeight - height) / 2, width, height };
}

function listenToPair() {
  $("pair-share").addEventListener("input", placePair);
  new ResizeObserver(placePair).observe($("detail-picture"));
}
