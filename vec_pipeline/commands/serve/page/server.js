/* Asks the server: with a token where it wants one, again where it is busy. A failure is a sentence. */

import { worded } from "./errors.js";
import { announce, say, translated } from "./words.js";

const MOST_ATTEMPTS = 20; // while the server is busy
const SENTENCES = {
  404: "The server no longer has this picture. Send it again.",
  408: "Sending the picture took too long. Try a smaller one, or a faster connection.",
  415: "This file is not a picture of a known kind. Choose a JPEG, PNG, WebP or HEIC file, for example.",
  422: "The server cannot use this ({detail}). Change it and try again.",
  429: "The server is still busy. Try again in a minute.",
  503: "The server cannot answer now ({detail}). Try again in a minute.",
  507: "The server has no room for the picture ({detail}). Tell who runs it.",
};
const OTHERWISE = "The server answered with an error ({status} {detail}). Try again, or tell who runs it.";
const UNREACHABLE = "The server cannot be reached. Check the connection and that it runs, then try again.";

/** Why there is no answer: a text of words.js and the values in it; `status` and `body` are those of a refusal. */
export class Failure extends Error {
  constructor(text, values = {}, body = {}) {
    super(translated(text, values));
    this.text = text;
    this.values = values;
    this.status = values.status || 0;
    this.body = body;
  }
}

function failureOf(status, body) {
  const reason = Array.isArray(body.detail) ? body.detail.map((each) => each.msg).join("; ") : String(body.detail);
  const { text, values } = worded(reason, SENTENCES[status] || OTHERWISE);
  return new Failure(text, { detail: reason, ...values, status }, body);
}

/** Send a form: like fetch, which does not tell how much of it has been sent. `onSent` gets that share. */
function send(path, { body, headers, onSent }) {
  const request = new XMLHttpRequest();
  request.open("POST", path);
  request.responseType = "blob";
  for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
  request.upload.addEventListener("progress", ({ loaded, total }) => onSent(loaded / total));
  return new Promise((resolve, reject) => {
    request.addEventListener("error", reject);
    request.addEventListener("load", () => {
      const { status, statusText, response } = request;
      const known = ["Location", "Retry-After"].map((name) => [name, request.getResponseHeader(name) || ""]);
      resolve(new Response(response, { status, statusText, headers: known }));
    });
    request.send(body);
  });
}

/** The response to a request. `onBusy` gets the seconds until the next attempt. Throws Failure. */
export async function ask(path, options = {}, onBusy = () => {}) {
  for (let attempt = 1; ; ) {
    const token = sessionStorage.getItem("token");
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const response = await (options.onSent ? send : fetch)(path, { ...options, headers }).catch(() => {
      throw new Failure(UNREACHABLE);
    });
    if (response.ok) return response;
    if (response.status === 401) await newToken(token);
    else if (response.status === 429 && attempt++ < MOST_ATTEMPTS) {
      const wait_s = Number(response.headers.get("Retry-After")) || 2;
      onBusy(wait_s);
      await new Promise((resolve) => setTimeout(resolve, wait_s * 1000));
    } else {
      const body = await response.json().catch(() => ({ detail: response.statusText }));
      throw failureOf(response.status, body);
    }
  }
}

let tokenAsked = null; // one form for all requests that wait for it

function newToken(refused) {
  if (refused !== sessionStorage.getItem("token")) return null; // there is another one by now
  tokenAsked ||= new Promise((resolve) => {
    const [form, input, error] = ["token-form", "token", "token-error"].map((id) => document.getElementById(id));
    const cameFrom = document.activeElement;
    const showError = (text) => {
      error.hidden = !text;
      input.setAttribute("aria-invalid", Boolean(text));
      if (text) announce(say(error, text).textContent);
    };
    form.hidden = false;
    document.getElementById("ask").hidden = true;
    showError(refused ? "The server does not accept this token. Check it and enter it again." : "");
    input.focus();
    form.onsubmit = (event) => {
      event.preventDefault();
      if (!input.value.trim()) {
        showError("Enter the token.");
        return input.focus();
      }
      sessionStorage.setItem("token", input.value.trim());
      input.value = "";
      form.hidden = true;
      document.getElementById("ask").hidden = false;
      tokenAsked = null;
      (cameFrom && cameFrom !== document.body ? cameFrom : document.querySelector("#files, #where")).focus();
      resolve();
    };
  });
  return tokenAsked;
}

/** The row of an upload, when it is there; `onWaiting` gets how it goes until then. Throws Failure. */
export async function rowOf(id, onWaiting) {
  const response = await ask(`/v1/annotations/${id}/events`);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read().catch(() => ({ done: true }));
    if (done) throw new Failure(UNREACHABLE);
    const events = (text + value).split("\n\n");
    text = events.pop();
    for (const each of events) {
      const [kind, data] = each.split("\n").map((line) => line.slice(line.indexOf(": ") + 2));
      const body = JSON.parse(data);
      if (kind === "done") return body;
      if (kind === "error") throw failureOf(503, body);
      onWaiting(body);
    }
  }
}

/** The address of what the server sends, for an img or audio element, which cannot send a token. Throws Failure. */
export async function loaded(path) {
  const response = await ask(path);
  const [width, height] = (response.headers.get("Picture-Size") || "").split("x").map(Number);
  return { address: URL.createObjectURL(await response.blob()), width, height };
}
