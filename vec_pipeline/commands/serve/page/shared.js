/* What both pages have: the choice of their language, and the form that asks for the server's token. */

import { element } from "./results.js";
import { label, pageLanguage, say, setLanguage } from "./words.js";

const LANGUAGES = { en: "English", ru: "Русский" };

/** Put both where they belong, and begin with the language of the page; `onLanguage` is called when another is chosen. */
export function beginPage(onLanguage = () => {}) {
  document.querySelector("header").append(languages(onLanguage));
  document.getElementById("main").prepend(tokenForm());
  setLanguage(pageLanguage());
}

function languages(onLanguage) {
  const buttons = Object.entries(LANGUAGES).map(([lang, name]) => {
    const button = element("button", { type: "button", lang, "data-language": lang }, name);
    button.addEventListener("click", () => {
      localStorage.setItem("language", lang);
      setLanguage(lang);
      onLanguage();
    });
    return button;
  });
  return label(element("div", { class: "languages", role: "group" }, ...buttons), "Language of this page");
}

function tokenForm() {
  const described = { autocomplete: "off", spellcheck: "false", "aria-describedby": "token-help token-error" };
  const field = element(
    "div",
    { class: "field" },
    say(element("label", { for: "token" }), "Token"),
    element("input", { id: "token", type: "password", ...described }),
  );
  return element(
    "form",
    { id: "token-form", class: "panel", novalidate: "", hidden: "" },
    say(element("h2"), "This server needs a token"),
    field,
    say(element("p", { id: "token-help", class: "muted" }), "Who runs the server has it. It is forgotten when this tab is closed."),
    element("p", { id: "token-error", class: "error", hidden: "" }),
    say(element("button", { type: "submit", class: "main-button" }), "Use the token"),
  );
}
