/* Cards: a picture that was given, how its annotation goes, and what came of it. */

import { worded } from "./errors.js";
import { loaded } from "./server.js";
import { announce, label, languageOf, pageLanguage, phrase, say, translated } from "./words.js";

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
const GUESSES = {
  child: "perhaps a child ({percent} %)",
  adult: "perhaps an adult ({percent} %)",
  senior: "perhaps an old person ({percent} %)",
  male: "perhaps male ({percent} %)",
  female: "perhaps female ({percent} %)",
};
const DOUBT = "These are guesses by how people look, and often wrong.";

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
const UNFINISHED = "This picture could not be finished ({detail}). Try again, or choose another file.";

export const descriptionOf = (row) => valueOf(row, "description") || valueOf(row, "text");

/** What a row says in a list: its description, or why there is none. */
export function titleOf(row) {
  const description = descriptionOf(row);
  if (description) return foreign("span", description);
  const { text, values } = row.error ? worded(row.error, UNFINISHED) : { text: NO_DESCRIPTION };
  return say(element("span"), text, values);
}

/** One picture; empty at first. `again` sends it once more, and `like` finds those like it, where that can be. */
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

  /** How much of the picture has been sent. */
  showShare(share) {
    const bar = this.state.querySelector("progress");
    if (bar) bar.value = share;
  }

  showFailure(failure, again) {
    this.state.replaceChildren();
    this.body.replaceChildren(say(element("p", { class: "error" }), failure.text, failure.values));
    if (!again) return;
    this.body.append(
      button("Try again", () => {
        this.heading.focus();
        again();
      }),
    );
  }

  showRow(row, id, audioColumns, { again, like }) {
    const description = descriptionOf(row);
    this.state.replaceChildren();
    this.body.replaceChildren();
    if (row.error) this.showFailure(worded(row.error, UNFINISHED), again);
    if (row.error && !description) return;
    const audio = audioColumns.filter((column) => row[column] && [wanted(), ""].includes(spokenLanguage(row, column)));
    const buttons = [copyButton(row), downloadButton(row, id)];
    if (like) buttons.push(button("More like this", like));
    if (!audio.length && description && "speechSynthesis" in window) buttons.unshift(readButton(plainText(row)));
    this.body.append(
      description ? foreign("p", description, { class: "lead" }) : say(element("p"), NO_DESCRIPTION),
      ...warnings(row),
      ...audio.map((column) => player(id, column, spokenLanguage(row, column))),
      element("p", { class: "buttons" }, ...buttons),
      ...facts(row),
    );
    this.boxes = boxesOf(row);
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
    for (const { name, box } of this.boxes) {
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

/** What is outlined: objects, and people with the numbers that they have in the list. */
function boxesOf(row) {
  const people = (row.people || []).map(({ box }) => String(box));
  const objects = (row.objects || []).map(({ label: name, box }) => ({ name, box, person: people.indexOf(String(box)) }));
  const others = (row.people || []).map(({ box }, person) => ({ name: "", box, person }));
  return [...objects, ...others.filter(({ person }) => !objects.some((each) => each.person === person))].map(
    ({ name, box, person }) => ({ box, name: person < 0 ? name : `${name} ${person + 1}`.trim() }),
  );
}

function countsOf(objects) {
  const counts = {};
  for (const { label: name } of objects) counts[name] = (counts[name] || 0) + 1;
  return counts;
}

function facts(row) {
  const pairs = parts(row).map(([name, value]) => element("div", {}, say(element("dt"), name), foreign("dd", value)));
  if (row.people_count) pairs.push(element("div", {}, say(element("dt"), "People"), peopleOf(row)));
  return pairs.length ? [element("dl", {}, ...pairs)] : [];
}

/** How many people there are, and what was guessed about each, as a description in a list. */
function peopleOf(row) {
  const every = guesses(row).map((texts) => {
    const parts = texts.map(([text, values]) => say(element("span"), text, values));
    return element("li", {}, element("p", {}, ...joined(parts)));
  });
  return element(
    "dd",
    {},
    element("p", {}, String(row.people_count)),
    every.length && element("ul", {}, ...every),
    every.length && say(element("p", { class: "muted" }), DOUBT),
  );
}

/** For each person about whom there are guesses: texts and their values, the person's number first. */
function guesses(row) {
  return (row.people || []).flatMap(({ age, gender }, index) => {
    const found = [guessOf(age, "perhaps aged {label} ({percent} %)"), guessOf(gender, "perhaps {label} ({percent} %)")].filter(Boolean);
    return found.length ? [[["Person {number}:", { number: index + 1 }], ...found]] : [];
  });
}

function guessOf(probabilities, otherwise) {
  const [best] = Object.entries(probabilities || {}).sort(([, one], [, other]) => other - one);
  if (!best) return null;
  const [label, probability] = best;
  const known = Object.hasOwn(GUESSES, label.toLowerCase()) && GUESSES[label.toLowerCase()];
  return [known || otherwise, { label, percent: Math.round(100 * probability) }];
}

/** The number of a person, then guesses with commas between them. */
const joined = ([first, ...others]) => [first, ...others.flatMap((each, index) => [index ? ", " : " ", each])];

/** Why a row may be wrong, as sentences; flags of stages that this page does not know stay as they are. */
function reasons(row) {
  const flags = (row.flags || "").split(" ").filter(Boolean);
  return [...new Set(flags.map((flag) => (Object.hasOwn(FLAGS, flag) ? FLAGS[flag] : flag)))];
}

export function warnings(row) {
  const parts = reasons(row).flatMap((text) => [" ", FLAG_TEXTS.has(text) ? say(element("span"), text) : text, ";"]);
  return parts.length ? [element("p", { class: "warning" }, say(element("span"), "Take care:"), ...parts.slice(0, -1), ".")] : [];
}

function plainText(row) {
  const others = parts(row).filter(([name]) => name !== "In full");
  const people = guesses(row).map((texts) => joined(texts.map(([text, values]) => translated(text, values))).join(""));
  if (row.people_count) others.push(["People", row.people_count]);
  return [descriptionOf(row), ...others.map(([name, value]) => `${translated(name)}: ${value}`), ...people].join("\n");
}

/** What is said when a row is there: its description, the text on the picture, and why they may be wrong. */
export function spoken(row) {
  const [description, image_text, flags] = [descriptionOf(row), valueOf(row, "image_text"), reasons(row)];
  if (row.error && !description) return [spokenFailure(worded(row.error, UNFINISHED))];
  return [
    description ? foreign("span", description) : translated(NO_DESCRIPTION),
    ...(image_text ? [`${translated("Text on the picture")}:`, foreign("span", `${image_text}.`)] : []),
    ...(flags.length ? [`${translated("Take care:")} ${flags.map((text) => translated(text)).join("; ")}.`] : []),
  ];
}

/** What is said of a failure: of a request, or of a row. */
export const spokenFailure = ({ text, values }) => phrase(text, values);

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

function button(text, press) {
  const made = say(element("button", { type: "button" }), text);
  made.addEventListener("click", press);
  return made;
}

function copyButton(row) {
  return button("Copy the text", () =>
    navigator.clipboard.writeText(plainText(row)).then(
      () => announce(translated("Copied.")),
      () => announce(translated("The browser does not allow copying. Select the text and copy it with the keyboard.")),
    ),
  );
}

function downloadButton(row, id) {
  return button("Download as JSON", () => {
    const address = URL.createObjectURL(new Blob([JSON.stringify(row, null, 2)], { type: "application/json" }));
    element("a", { href: address, download: `${id}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  });
}

/** When a row was made, in the manner of the language of the page. */
export function timeOf(row) {
  const time = new Date(row.timestamp);
  return isNaN(time) ? "" : time.toLocaleString(pageLanguage(), { dateStyle: "medium", timeStyle: "short" });
}
