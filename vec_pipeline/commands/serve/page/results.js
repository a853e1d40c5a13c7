/* Cards: a picture that was given, how its annotation goes, and what came of it. */

import { loaded } from "./server.js";
import { announce, label, languageOf, pageLanguage, say, translated } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const SHOWN_PX = 1024;
const FLAGS = {
  low_confidence: "the model was not sure",
  low_clip_score: "the description may not fit the picture",
  blank_image: "there is almost nothing to see",
  empty_text: "the model said nothing",
  truncated: "the description was cut off",
  repetitive: "the description repeats itself",
  text_mismatch: "words on the picture may be missing or misspelt",
  ocr_missing: "words on the picture may be missing or misspelt",
  ocr_invented: "some words may not be on the picture",
  pixels_lowered: "the picture was seen in low resolution",
  truncated_image: "a part of the picture is missing in the file",
  pages: "only the first page was seen",
};
const FLAG_TEXTS = new Set(Object.values(FLAGS));

/** An HTML element; texts among the children stay texts, whatever is in them. */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter(Boolean));
  return node;
}

/** A text that a model wrote, with its language. */
export const foreign = (tag, text, attributes = {}) =>
  element(tag, { lang: languageOf(text), dir: "auto", ...attributes }, text);

/** A column in the language of the answers, where a row has it. */
export const valueOf = (row, column) => row[`${column}_${wanted()}`] || row[column] || "";

const wanted = () => document.getElementById("answer-language").value;

const NO_DESCRIPTION = "There is no description of this picture.";
const UNFINISHED = "This picture could not be finished ({error}). Try again, or choose another file.";

export const descriptionOf = (row) => valueOf(row, "description") || valueOf(row, "text");

/** One picture; empty at first. Wherever `again` is a parameter, it sends the picture once more, where that can be. */
export class Card {
  constructor(name) {
    this.name = name;
    this.heading = element("h3", { tabindex: "-1" }, element("bdi", {}, name));
    this.state = element("p", { class: "state" });
    this.body = element("div", { class: "says" });
    this.figure = element("figure", {});
    this.node = element("article", { class: "card" }, this.heading, this.state, this.body, this.figure);
    this.audio = [];
  }

  showState(text, values) {
    this.body.replaceChildren();
    this.state.replaceChildren(element("progress", { "aria-hidden": "true" }), say(element("span"), text, values));
  }

  showFailure(failure, again) {
    this.state.replaceChildren();
    this.body.replaceChildren(say(element("p", { class: "error" }), failure.text, failure.values));
    if (!again) return;
    const button = say(element("button", { type: "button" }), "Try again");
    button.addEventListener("click", () => {
      this.heading.focus();
      again();
    });
    this.body.append(button);
  }

  showRow(row, id, audioColumns, again) {
    const description = descriptionOf(row);
    this.state.replaceChildren();
    this.body.replaceChildren();
    if (row.error) this.showFailure({ text: UNFINISHED, values: { error: row.error } }, again);
    if (row.error && !description) return;
    const audio = audioColumns.filter((column) => row[column] && [wanted(), ""].includes(spokenLanguage(row, column)));
    const buttons = [copyButton(row), downloadButton(row, id)];
    if (!audio.length && description && "speechSynthesis" in window) buttons.unshift(readButton(plainText(row)));
    this.body.append(
      description ? foreign("p", description, { class: "lead" }) : say(element("p"), NO_DESCRIPTION),
      ...warnings(row),
      ...audio.map((column) => player(id, column, spokenLanguage(row, column))),
      element("p", { class: "buttons" }, ...buttons),
      ...facts(row),
    );
    this.boxes = row.objects || [];
    this.drawBoxes();
  }

  /** The picture as the server keeps it; a kind that the browser does not know is shown, too. */
  async showPicture(id) {
    try {
      this.picture = await loaded(`/v1/annotations/${id}/image?side_px=${SHOWN_PX}`);
    } catch {
      return; // a row with an error says why
    }
    const image = element("img", { src: this.picture.address, alt: "" });
    this.figure.replaceChildren(image);
    this.drawBoxes();
  }

  /** Outlines over the picture; the same objects stand in a list for those who do not see them. */
  drawBoxes() {
    if (!this.boxes?.length || !this.picture?.width) return;
    const { width, height } = this.picture;
    const size = Math.max(width, height) / 24;
    const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    for (const { label: name, box } of this.boxes) {
      const [left, top, right, bottom] = box.map(Number);
      drawing.append(svg("rect", { x: left, y: top, width: right - left, height: bottom - top }));
      drawing.append(svg("text", { x: left + size / 4, y: top < size * 1.3 ? top + size : top - size / 4, "font-size": size }, name));
    }
    this.figure.querySelector("svg")?.remove();
    this.figure.append(drawing);
  }
}

function svg(tag, attributes, text = "") {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  return node;
}

/** What a row says, as pairs of a name and a text or a list of texts. */
function parts(row) {
  const text = valueOf(row, "text");
  const counts = row.object_counts || countsOf(row.objects || []);
  return [
    ["In full", text === descriptionOf(row) ? "" : text],
    ["Text on the picture", valueOf(row, "image_text")],
    ["Category", valueOf(row, "categories")],
    ["Keywords", valueOf(row, "keywords")],
    ["Objects", Object.entries(counts).map(([name, count]) => `${name}: ${count}`).join(", ")],
  ].filter(([, value]) => value);
}

function countsOf(objects) {
  const counts = {};
  for (const { label: name } of objects) counts[name] = (counts[name] || 0) + 1;
  return counts;
}

function facts(row) {
  const pairs = parts(row).map(([name, value]) => element("div", {}, say(element("dt"), name), foreign("dd", value)));
  return pairs.length ? [element("dl", {}, ...pairs)] : [];
}

/** Why a row may be wrong, as sentences; flags of stages that this page does not know stay as they are. */
function reasons(row) {
  const flags = (row.flags || "").split(" ").filter(Boolean);
  return [...new Set(flags.map((flag) => (Object.hasOwn(FLAGS, flag) ? FLAGS[flag] : flag)))];
}

function warnings(row) {
  const parts = reasons(row).flatMap((text) => [" ", FLAG_TEXTS.has(text) ? say(element("span"), text) : text, ";"]);
  return parts.length ? [element("p", { class: "warning" }, say(element("span"), "Take care:"), ...parts.slice(0, -1), ".")] : [];
}

function plainText(row) {
  const others = parts(row).filter(([name]) => name !== "In full");
  return [descriptionOf(row), ...others.map(([name, value]) => `${translated(name)}: ${value}`)].join("\n");
}

/** What is said when a row is there: its description, the text on the picture, and why they may be wrong. */
export function spoken(row) {
  const [description, image_text, flags] = [descriptionOf(row), valueOf(row, "image_text"), reasons(row)];
  if (row.error && !description) return [translated(UNFINISHED, { error: row.error })];
  return [
    description ? foreign("span", description) : translated(NO_DESCRIPTION),
    ...(image_text ? [`${translated("Text on the picture")}:`, foreign("span", `${image_text}.`)] : []),
    ...(flags.length ? [`${translated("Take care:")} ${flags.map((text) => translated(text)).join("; ")}.`] : []),
  ];
}

/** The language of an audio column by the text that it speaks; empty where the row does not have that. */
function spokenLanguage(row, column) {
  const text = row[column.replace(/_audio$/, "")];
  return column.endsWith("_audio") && text ? languageOf(text) : "";
}

function player(id, column, language) {
  const audio = label(element("audio", { controls: "" }), { en: "Speech in English", ru: "Speech in Russian" }[language] || "Speech");
  loaded(`/v1/annotations/${id}/audio?column=${encodeURIComponent(column)}`).then(
    ({ address }) => (audio.src = address),
    (failure) => audio.replaceWith(say(element("p", { class: "error" }), failure.text, failure.values)),
  );
  return audio;
}

function readButton(text) {
  const button = say(element("button", { type: "button" }), "Read aloud");
  button.addEventListener("click", () => {
    const isReading = button.dataset.reading;
    speechSynthesis.cancel();
    if (isReading) return;
    const speech = new SpeechSynthesisUtterance(text);
    speech.lang = languageOf(text.split("\n")[0]);
    const end = () => {
      delete button.dataset.reading;
      say(button, "Read aloud");
    };
    speech.onend = end;
    speech.onerror = ({ error }) => {
      end();
      if (error === "canceled" || error === "interrupted") return;
      announce(translated("This browser has no voice for the text. Install one in the system, or use a screen reader."));
    };
    button.dataset.reading = "1";
    say(button, "Stop reading");
    speechSynthesis.speak(speech);
  });
  return button;
}

function copyButton(row) {
  const button = say(element("button", { type: "button" }), "Copy the text");
  button.addEventListener("click", () =>
    navigator.clipboard.writeText(plainText(row)).then(
      () => announce(translated("Copied.")),
      () => announce(translated("The browser does not allow copying. Select the text and copy it with the keyboard.")),
    ),
  );
  return button;
}

function downloadButton(row, id) {
  const button = say(element("button", { type: "button" }), "Download as JSON");
  button.addEventListener("click", () => {
    const address = URL.createObjectURL(new Blob([JSON.stringify(row, null, 2)], { type: "application/json" }));
    element("a", { href: address, download: `${id}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  });
  return button;
}

/** When a row was made, in the manner of the language of the page. */
export function timeOf(row) {
  const time = new Date(row.timestamp);
  return isNaN(time) ? "" : time.toLocaleString(pageLanguage(), { dateStyle: "medium", timeStyle: "short" });
}
