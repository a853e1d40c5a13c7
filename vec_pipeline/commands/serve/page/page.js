/* The page: takes pictures however they are given, sends them, and says what came of them. */

import { addToHistory, beginHistory } from "./history.js";
import { Card, descriptionOf, spoken, spokenFailure, timeOf } from "./results.js";
import { beginSearch, searchLike } from "./search.js";
import { ask, Failure, rowOf } from "./server.js";
import { beginPage } from "./shared.js";
import { announce, pageLanguage, say, translated } from "./words.js";

const AT_ONCE = 8; // uploads; the others wait in the page
const STEP_PERCENT = 25; // of what is sent, between messages
const STEP_S = 3; // at least
const STILL_S = 20; // between messages that it is still at work
const $ = (id) => document.getElementById(id);
const cards = new Map(); // id -> the card that shows its row
const atWork = new Set(); // cards without a row yet
let options = { details: ["normal"], languages: [], audio: [], search: [] };

/** Annotate pictures, each a File or an address, and let their cards have the focus. */
async function give(pictures) {
  const named = pictures.map((picture) => [picture, picture.name ?? picture]);
  const made = named.map(([picture, name]) => ({ picture, card: new Card(name) }));
  if (!made.length) return;
  showError("");
  $("no-results").hidden = true;
  $("cards").prepend(...made.map(({ card }) => card.node));
  made[0].card.heading.focus();
  if (made.length > 1) announce(translated("Sending {count} pictures.", { count: made.length }));
  const batch = { total: made.length, done: 0 };
  const left = made.values();
  const worker = async () => {
    for (const { picture, card } of left) await annotate(picture, card, batch);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
}

async function annotate(picture, card, batch) {
  const again = () => annotate(picture, card, { total: 1, done: 0 });
  const show = (text, values) => {
    card.showState(text, values);
    if (batch.total === 1) announce(translated(text, values));
  };
  atWork.add(card);
  try {
    show("Sending…");
    const { id, row } = await sent(picture, card, show);
    cards.set(id, card);
    card.showRow(row, id, options.audio, { again, like: searchLike(id, row, card.name) });
    announceDone(card, batch, spoken(row));
    if (!row.error) addToHistory(id, row);
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    card.showFailure(failure, again);
    announceDone(card, batch, [spokenFailure(failure)]);
  } finally {
    atWork.delete(card);
  }
}

function announceDone(card, batch, parts) {
  batch.done++;
  const { done, total } = batch;
  announce(...(total > 1 ? [translated("{done} of {total}.", { done, total })] : []), `${card.name}:`, ...parts);
}

/** Send a picture, and wait for its row. */
async function sent(picture, card, show) {
  const form = new FormData();
  form.append(typeof picture === "string" ? "url" : "file", picture);
  form.append("detail", $("ask").elements.detail.value);
  form.append("language", $("answer-language").value);
  const request = { method: "POST", body: form, onSent: sending(card, show) };
  const busy = (wait_s) => show("The server is busy. It is asked again in {wait_s} seconds.", { wait_s });
  const response = await ask("/v1/annotations?wait_s=0", request, busy);
  const id = response.headers.get("Location").split("/").pop();
  card.showPicture(id);
  if (response.status === 200) return { id, row: await response.json() };
  let before = "";
  const waiting = ({ status, ahead }) => {
    if (status !== before) show(...(status === "running" ? ["Being described…"] : ["Waiting. Ahead of it: {ahead}.", { ahead }]));
    before = status;
  };
  return { id, row: await rowOf(id, waiting) };
}

/** Shows how much of a picture has been sent, and says it at some steps, if it takes long. */
function sending(card, show) {
  let said = 0;
  let before = Date.now();
  return (share) => {
    const percent = Math.floor(100 * share);
    if (percent < 100 && percent >= said + STEP_PERCENT && Date.now() >= before + 1000 * STEP_S) {
      [said, before] = [percent, Date.now()];
      show("Sent: {percent} %.", { percent });
    }
    card.showShare(share);
  };
}

/** Show a row of the list as a card, which has the focus then. */
function open(id, row) {
  if (!cards.get(id)?.node.isConnected) {
    const card = new Card(descriptionOf(row).slice(0, 60) || timeOf(row) || id);
    cards.set(id, card);
    card.showRow(row, id, options.audio, { like: searchLike(id, row, card.name) });
    card.showPicture(id);
  }
  $("no-results").hidden = true;
  $("cards").prepend(cards.get(id).node);
  cards.get(id).heading.focus();
}

function listen() {
  for (const id of ["files", "camera"]) {
    $(id).addEventListener("change", () => {
      const files = [...$(id).files];
      $(id).value = ""; // the same file may be chosen again
      give(files);
    });
  }
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const address = $("url").value.trim();
    if (isAddress(address)) {
      $("url").value = "";
      return give([address]);
    }
    showError("Enter an address that begins with https:// or http://.");
    $("url").setAttribute("aria-invalid", true);
    $("url").focus();
  });
  document.addEventListener("paste", (event) => {
    if (!$("token-form").hidden) return;
    take(event, event.clipboardData, event.target.closest("input:not([type=file], [type=radio])") !== null);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget || $("drop").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    $("drop").classList.remove("over");
    take(event, event.dataTransfer, false);
  });
}

function sayStill() {
  for (const { name } of [...atWork].slice(0, 1)) announce(translated("Still at work: {name}.", { name }));
}

const isAddress = (text) => /^https?:\/\/\S+$/i.test(text);

/** Show and say why something that was given is not taken; nothing, if the text is empty. */
function showError(text, values) {
  const error = say($("url-error"), text, values);
  error.hidden = !text;
  $("url").setAttribute("aria-invalid", false);
  if (!text) return;
  error.scrollIntoView({ block: "nearest" });
  announce(error.textContent);
}

/** Take the pictures, or the addresses of some, one a line, that were pasted or dropped. */
function take(event, data, isInField) {
  const files = [...data.files]; // which are gone when this function has returned
  if (isInField && !files.length) return; // a text to type
  const text = data.getData("text/uri-list") || data.getData("text/plain");
  const lines = text.split("\n").map((line) => line.trim()).filter((line) => line && !line.startsWith("#")); // a comment
  const given = files.length ? files : lines.filter(isAddress);
  if (given.length || event.type === "drop") event.preventDefault();
  give(given);
  const count = lines.length - given.length;
  if (!given.length) showError("There is no picture in this, and no address of one: give pictures, or addresses such as https://…");
  else if (!files.length && count) showError("Lines that are no address were left out: {count}.", { count });
}

async function begin() {
  beginPage();
  listen();
  setInterval(sayStill, STILL_S * 1000);
  try {
    options = await (await ask("/v1/options")).json();
  } catch (failure) {
    announce(spokenFailure(failure));
  }
  for (const radio of $("ask").elements.detail) radio.parentNode.hidden = !options.details.includes(radio.value);
  $("details").hidden = options.details.length < 2;
  $("answer-language-field").hidden = options.languages.length < 2;
  for (const option of $("answer-language").options) option.hidden = !options.languages.includes(option.value);
  $("answer-language").value = options.languages.includes(pageLanguage()) ? pageLanguage() : options.languages[0] || "";
  beginSearch(options.search);
  await beginHistory(open);
}

begin();
