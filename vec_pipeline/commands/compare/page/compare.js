/* A comparison: the table of figures, and the answers about one picture at a time with the votes on them. */

"use strict";

const TIE = null;
const Z = 1.959964; // of 95 % of a normal distribution
const $ = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
const plural = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;

let data; // what site.py says of the comparison
let votes = {}; // the name of the best configuration by picture; TIE for none
let current = 0; // position of the picture that is shown

/** An element with attributes and children; strings become text, never HTML. */
function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function start(found) {
  data = found;
  document.title = `${data.names.join(" / ")} – comparison`;
  $("title").textContent = data.names.join(" / ");
  $("made").textContent = `${plural(data.pictures.length, "picture")}, made ${data.made}`;
  const [names, ...lines] = data.table;
  $("figures").replaceChildren(
    element("caption", { class: "unseen" }, "Figures of each configuration, with 95 % confidence intervals"),
    element("thead", {}, element("tr", {}, ...names.map((name) => (name ? head(name, "col") : element("td"))))),
    element("tbody", {}, ...lines.map(([label, ...cells]) => element("tr", {}, head(label, "row"), ...cells.map(cell)))),
  );
  $("notes").replaceChildren(...data.notes.map((note) => element("li", {}, note)));
  const numbers = data.names.map((_, i) => element("kbd", {}, String(i + 1)));
  $("keys").replaceChildren(...numbers.flatMap((key) => [key, " "]), "best answer, ");
  $("keys").append(element("kbd", {}, "="), " tie, the same key again: no vote; ");
  for (const key of ["←", "→", "k", "j"]) $("keys").append(element("kbd", {}, key), " ");
  $("keys").append("previous and next picture");
  votes = readVotes();
  if (!data.pictures.length) return notice("No picture has a row of every configuration.");
  $("pictures").hidden = false;
  listen();
  show(positionOf(location.hash.slice(1)));
}

const head = (text, scope) => element("th", { scope }, element("bdi", {}, text));
const cell = (text) => element("td", {}, text);
const positionOf = (id) => Math.max(0, data.pictures.findIndex((picture) => picture.id === id));

/* One picture */

function show(position) {
  current = Math.max(0, Math.min(data.pictures.length - 1, position));
  const picture = data.pictures[current];
  history.replaceState(null, "", `#${picture.id}`);
  $("place").textContent = `Picture ${(current + 1).toLocaleString("en")} of ${data.pictures.length.toLocaleString("en")}`;
  $("disagreement").textContent = `disagreement ${picture.disagreement.toFixed(2)}`;
  $("previous").disabled = current === 0;
  $("next").disabled = current === data.pictures.length - 1;
  $("path").replaceChildren(element("bdi", {}, picture.image_path));
  showPicture(picture);
  render();
}

/** The thumbnail, and in its place the picture itself if it is a file that the browser can show. */
function showPicture(picture) {
  const alt = `Picture ${current + 1}`; // its description is what is to be judged
  const thumbnail = picture.thumbnail && `gallery/thumbnails/${picture.thumbnail.slice(0, 2)}/${picture.thumbnail}.webp`;
  const small = thumbnail ? element("img", { src: thumbnail, alt }) : element("span", { class: "none" }, "No picture");
  $("picture").replaceChildren(small);
  if (!picture.link.startsWith("file:")) return; // the page needs no network
  const full = element("img", { alt });
  full.onload = () => {
    if (data.pictures[current] === picture) small.replaceWith(full);
  };
  full.src = picture.link;
}

/** What depends on the votes. */
function render() {
  const picture = data.pictures[current];
  const isVoted = Object.hasOwn(votes, picture.id);
  const isNamed = isVoted || !$("blind").checked;
  $("answers").replaceChildren(...picture.answers.map((answer, i) => answerElement(answer, i, isNamed)));
  const buttons = picture.answers.map((answer, i) => voteButton(String(i + 1), `Answer ${i + 1}`, data.names[answer.configuration]));
  $("vote").replaceChildren(...buttons, voteButton("=", "Tie", TIE));
  $("rates").textContent = ratesText();
}

function answerElement(answer, i, isNamed) {
  const name = data.names[answer.configuration];
  const picture = data.pictures[current];
  const isChosen = Object.hasOwn(votes, picture.id) && votes[picture.id] === name;
  return element(
    "article",
    { class: isChosen ? "answer chosen" : "answer", "aria-labelledby": `answer-${i}` },
    element("h3", { id: `answer-${i}` }, `Answer ${i + 1}`, isNamed ? element("bdi", {}, name) : null),
    answer.text.length
      ? element("p", { class: "text", dir: "auto" }, ...answer.text.map(([text, isMarked]) => (isMarked ? marked(text) : text)))
      : element("p", { class: "muted" }, "No text"),
    answer.error ? element("p", { class: "error", dir: "auto" }, answer.error) : null,
    answer.facts.length ? element("dl", {}, ...answer.facts.flatMap(fact)) : null,
    isNamed && answer.scores.length ? element("p", { class: "muted" }, answer.scores.join(", ")) : null,
  );
}

const fact = ([label, value, differs]) => [
  element("dt", {}, label),
  element("dd", { dir: "auto" }, differs ? marked(value) : value),
];

/** Words that another answer lacks: underlined, and said to be so by a screen reader. */
const marked = (text) =>
  element("mark", {}, element("span", { class: "unseen" }, "[differs: "), text, element("span", { class: "unseen" }, "]"));

/* Votes */

function voteButton(key, label, winner) {
  const { id } = data.pictures[current];
  const isPressed = Object.hasOwn(votes, id) && votes[id] === winner;
  return element(
    "button",
    { type: "button", "aria-pressed": isPressed, "aria-keyshortcuts": key, onclick: () => vote(key) },
    element("kbd", { "aria-hidden": "true" }, key),
    ` ${label}`,
  );
}

/** Vote with a key: the number of an answer, or "=". The vote that is there already is taken back. */
function vote(key) {
  const { id, answers } = data.pictures[current];
  const winner = key === "=" ? TIE : data.names[answers[Number(key) - 1].configuration];
  const isBack = Object.hasOwn(votes, id) && votes[id] === winner;
  const hadFocus = $("vote").contains(document.activeElement);
  votes = readVotes(); // another window may have the same page open
  if (isBack) delete votes[id];
  else votes[id] = winner;
  keepVotes();
  render();
  if (hadFocus) [...$("vote").children].find((button) => button.getAttribute("aria-keyshortcuts") === key).focus();
  const names = answers.map((answer, i) => `answer ${i + 1} is ${data.names[answer.configuration]}`).join(", ");
  const said = key === "=" ? "Tie" : `Vote for answer ${key}`;
  $("said").textContent = isBack ? "Vote taken back" : `${said}: ${names}`;
}

const storageKey = () => `vec_pipeline compare ${data.id}`;

function readVotes() {
  try {
    return { ...JSON.parse(localStorage.getItem(storageKey())) };
  } catch {
    return votes; // no storage, or not ours
  }
}

function keepVotes() {
  try {
    localStorage.setItem(storageKey(), JSON.stringify(votes));
  } catch {
    notice("This browser does not keep the votes: download them before the page is closed.");
  }
}

/** The votes on answers that are on this page, in its order. */
const counted = () =>
  data.pictures
    .filter(({ id }) => Object.hasOwn(votes, id) && [TIE, ...data.names].includes(votes[id]))
    .map(({ id, image_path }) => ({ id, image_path, winner: votes[id] }));

/** Wilson's interval of a share, as figures.py has it. */
function wilson(successes, number) {
  const share = successes / number;
  const middle = share + Z ** 2 / (2 * number);
  const half = Z * Math.sqrt((share * (1 - share)) / number + Z ** 2 / (4 * number ** 2));
  return [(middle - half) / (1 + Z ** 2 / number), (middle + half) / (1 + Z ** 2 / number)];
}

function ratesText() {
  const cast = counted();
  if (!cast.length) return "No votes yet.";
  const ties = cast.filter(({ winner }) => winner === TIE).length;
  const rates = data.names.map((name) => {
    const wins = cast.filter(({ winner }) => winner === name).length + ties / data.names.length;
    const [low, high] = wilson(wins, cast.length);
    return `${name} ${percent(wins / cast.length)} (${percent(low)} to ${percent(high)})`;
  });
  return `Votes won: ${rates.join(", ")}. ${plural(cast.length, "vote")}, ${plural(ties, "tie")}.`;
}

function exportVotes() {
  const text = JSON.stringify({ configurations: data.names, votes: counted() }, null, 1);
  const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  element("a", { href: address, download: "votes.json" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/* Events */

function step(by, isByKey) {
  if (!data.pictures[current + by]) return;
  show(current + by);
  $("said").textContent = "";
  const { disabled } = document.activeElement;
  if (isByKey || disabled) $("place").focus(); // from where a screen reader goes on
  else $("said").textContent = $("place").textContent;
}

function onKey(event) {
  if (!$("shortcuts").checked || event.ctrlKey || event.metaKey || event.altKey || event.target.closest(".scroll")) return;
  const steps = { ArrowLeft: -1, k: -1, ArrowRight: 1, j: 1 };
  const isVote = event.key === "=" || (/^[1-9]$/.test(event.key) && Number(event.key) <= data.names.length);
  if (event.key in steps) step(steps[event.key], true);
  else if (isVote) vote(event.key);
  else return;
  event.preventDefault();
}

function listen() {
  $("previous").addEventListener("click", () => step(-1, false));
  $("next").addEventListener("click", () => step(1, false));
  $("blind").addEventListener("change", render);
  $("export").addEventListener("click", exportVotes);
  document.addEventListener("keydown", onKey);
  addEventListener("hashchange", () => {
    if (data.pictures.some(({ id }) => `#${id}` === location.hash)) show(positionOf(location.hash.slice(1)));
  });
  addEventListener("storage", () => {
    votes = readVotes();
    render();
  });
}

/** What the data script calls, by the name that the report's has. */
const gallery = { start };
