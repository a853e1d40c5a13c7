/* What the page says, in English and in Russian. A text is found by its English words. */

const RUSSIAN = {
  "Skip to the results": "К результатам",
  "Describe pictures": "Описание картинок",
  "Language of this page": "Язык страницы",
  "This server needs a token": "Серверу нужен токен",
  "Token": "Токен",
  "Who runs the server has it. It is forgotten when this tab is closed.":
    "Он есть у того, кто запустил сервер. Он забывается, когда вкладка закрыта.",
  "Use the token": "Использовать токен",
  "Enter the token.": "Введите токен.",
  "The server does not accept this token. Check it and enter it again.":
    "Сервер не принимает этот токен. Проверьте его и введите снова.",
  "Give a picture": "Выберите картинку",
  "How much detail": "Подробность",
  "Brief": "Кратко",
  "Normal": "Обычно",
  "Full": "Подробно",
  "Language of the answer": "Язык ответа",
  "Choose pictures": "Выбрать картинки",
  "Take a photo": "Сделать снимок",
  "You can also paste a picture or its address, or drop files on this page. The answer begins at once.":
    "Можно также вставить картинку или её адрес либо перетащить файлы на эту страницу. Ответ начнётся сразу.",
  "Address of a picture": "Адрес картинки",
  "Describe it": "Описать",
  "Enter an address that begins with https:// or http://.": "Введите адрес, который начинается с https:// или http://.",
  "There is no picture in this, and no address of one: give pictures, or addresses such as https://…":
    "Здесь нет ни картинки, ни её адреса: дайте картинки или адреса вида https://…",
  "Lines that are no address were left out: {count}.": "Пропущено строк, в которых нет адреса: {count}.",
  "Results": "Результаты",
  "No picture has been given yet.": "Картинок ещё не было.",
  "Search": "Поиск",
  "What to look for": "Что найти",
  "Where": "Где",
  "in what can be seen": "в том, что видно",
  "in the descriptions": "в описаниях",
  "Find pictures": "Найти картинки",
  "Enter what to look for.": "Введите, что найти.",
  "Searching…": "Идёт поиск…",
  "Results for “{text}”: {count}": "Результаты по запросу «{text}»: {count}",
  "Like “{text}”: {count}": "Похожие на «{text}»: {count}",
  "Nothing was found.": "Ничего не найдено.",
  "1 result.": "Найдена одна картинка.",
  "{count} results.": "Найдено картинок: {count}.",
  "More like this": "Похожие картинки",
  "Earlier pictures": "Прежние картинки",
  "Find in the list": "Найти в списке",
  "Show older ones": "Показать более ранние",
  "For programs: the API": "Для программ: API",
  "Messages": "Сообщения",
  "Sending {count} pictures.": "Отправляется картинок: {count}.",
  "Sent: {percent} %.": "Отправлено: {percent} %.",
  "Sending…": "Отправляется…",
  "The server is busy. It is asked again in {wait_s} seconds.": "Сервер занят. Новая попытка через {wait_s} с.",
  "Waiting. Ahead of it: {ahead}.": "Ожидание. Впереди: {ahead}.",
  "Being described…": "Картинка описывается…",
  "Still at work: {name}.": "Работа продолжается: {name}.",
  "{done} of {total}.": "{done} из {total}.",
  "Text on the picture": "Текст на картинке",
  "Category": "Категория",
  "Keywords": "Ключевые слова",
  "Objects": "Предметы",
  "People": "Люди",
  "Person {number}:": "Человек {number}:",
  "perhaps a child ({percent} %)": "возможно, ребёнок ({percent} %)",
  "perhaps an adult ({percent} %)": "возможно, взрослый человек ({percent} %)",
  "perhaps an old person ({percent} %)": "возможно, пожилой человек ({percent} %)",
  "perhaps male ({percent} %)": "возможно, мужского пола ({percent} %)",
  "perhaps female ({percent} %)": "возможно, женского пола ({percent} %)",
  "perhaps aged {label} ({percent} %)": "возможно, возраст {label} ({percent} %)",
  "perhaps {label} ({percent} %)": "возможно, {label} ({percent} %)",
  "These are guesses by how people look, and often wrong.":
    "Это догадки по внешности, и они часто ошибочны.",
  "In full": "Полностью",
  "There is no description of this picture.": "Описания этой картинки нет.",
  "Take care:": "Осторожно:",
  "the model was not sure": "модель не уверена",
  "the description may not fit the picture": "описание может не подходить к картинке",
  "there is almost nothing to see": "на картинке почти ничего не видно",
  "the model said nothing": "модель ничего не ответила",
  "the description was cut off": "описание обрывается",
  "the description repeats itself": "описание повторяется",
  "words on the picture may be missing or misspelt": "слова с картинки могут быть пропущены или искажены",
  "some words may not be on the picture": "некоторых слов на картинке может не быть",
  "the picture was seen in low resolution": "картинка рассмотрена в низком разрешении",
  "a part of the picture is missing in the file": "в файле нет части картинки",
  "only the first page was seen": "рассмотрена только первая страница",
  "This picture could not be finished ({detail}). Try again, or choose another file.":
    "Картинку не удалось обработать ({detail}). Попробуйте ещё раз или выберите другой файл.",
  "The file is empty. Choose another one.": "Файл пуст. Выберите другой.",
  "The file is cut off: a part of the picture is missing. Send the whole file.":
    "Файл обрывается: части картинки нет. Отправьте файл целиком.",
  "The file is damaged, or not a picture of a known kind. Choose another file.":
    "Файл повреждён, или это не картинка известного вида. Выберите другой файл.",
  "The picture is too large: this server takes {most} megapixels at most. Choose a smaller one.":
    "Картинка слишком велика: этот сервер берёт не более {most} мегапикселей. Выберите картинку поменьше.",
  "The file is too large: this server takes {most} MB at most. Choose a smaller one.":
    "Файл слишком велик: этот сервер берёт не более {most} МБ. Выберите файл поменьше.",
  "This server cannot open pictures of this kind. Choose a JPEG, PNG or WebP file, for example.":
    "Этот сервер не умеет открывать такие картинки. Выберите, например, файл JPEG, PNG или WebP.",
  "The address is in a private network, from which this server takes nothing. Give another address, or send the picture itself.":
    "Адрес находится в частной сети, из которой этот сервер ничего не берёт. Дайте другой адрес или отправьте саму картинку.",
  "There is no picture at this address, but something else, such as a web page. Give the address of the picture itself.":
    "По этому адресу не картинка, а что-то другое, например веб-страница. Дайте адрес самой картинки.",
  "The picture was not found at this address. Check the address.": "По этому адресу картинка не найдена. Проверьте адрес.",
  "The site of this address does not let this server have the picture. Send the picture itself.":
    "Сайт по этому адресу не отдаёт картинку этому серверу. Отправьте саму картинку.",
  "The site of this address forbids the use of its pictures by AI. Choose another picture.":
    "Сайт по этому адресу запрещает использовать свои картинки для ИИ. Выберите другую картинку.",
  "The address is not complete, or has a mistake. Correct it.": "Адрес неполон, или в нём ошибка. Исправьте его.",
  "The site of this address cannot be reached, or does not answer as it should. Check the address, or try again later.":
    "Сайт по этому адресу недоступен или отвечает не так, как должен. Проверьте адрес или попробуйте позже.",
  "Speech": "Речь",
  "Speech in English": "Речь на английском",
  "Speech in Russian": "Речь на русском",
  "Read aloud": "Прочитать вслух",
  "Stop reading": "Остановить чтение",
  "This browser has no voice for the text. Install one in the system, or use a screen reader.":
    "В этом браузере нет голоса для такого текста. Установите голос в системе или используйте программу экранного доступа.",
  "Copy the text": "Скопировать текст",
  "Copied.": "Скопировано.",
  "The browser does not allow copying. Select the text and copy it with the keyboard.":
    "Браузер не разрешает копировать. Выделите текст и скопируйте его с клавиатуры.",
  "Download as JSON": "Скачать как JSON",
  "Try again": "Попробовать ещё раз",
  "{shown} of {loaded} loaded pictures": "Показано {shown} из {loaded} загруженных",
  "There are none yet.": "Их ещё нет.",
  "The list could not be loaded:": "Список не загружен:",
  "The server no longer has this picture. Send it again.": "На сервере больше нет этой картинки. Отправьте её снова.",
  "Sending the picture took too long. Try a smaller one, or a faster connection.":
    "Отправка заняла слишком много времени. Возьмите картинку поменьше или более быструю связь.",
  "This file is not a picture of a known kind. Choose a JPEG, PNG, WebP or HEIC file, for example.":
    "Этот файл не картинка известного вида. Выберите, например, файл JPEG, PNG, WebP или HEIC.",
  "The server cannot use this ({detail}). Change it and try again.":
    "Сервер не может это использовать ({detail}). Измените и попробуйте ещё раз.",
  "The server is still busy. Try again in a minute.": "Сервер всё ещё занят. Попробуйте через минуту.",
  "The server cannot answer now ({detail}). Try again in a minute.":
    "Сервер сейчас не может ответить ({detail}). Попробуйте через минуту.",
  "The server has no room for the picture ({detail}). Tell who runs it.":
    "На сервере нет места для картинки ({detail}). Сообщите тому, кто его запустил.",
  "The server answered with an error ({status} {detail}). Try again, or tell who runs it.":
    "Сервер ответил ошибкой ({status} {detail}). Попробуйте ещё раз или сообщите тому, кто его запустил.",
  "The server cannot be reached. Check the connection and that it runs, then try again.":
    "Сервер недоступен. Проверьте связь и то, что он запущен, и попробуйте ещё раз.",
};

const TITLE = document.title;
const texts = new WeakMap(); // node -> its English text and the values in it
let language = localStorage.getItem("language") || (navigator.language.startsWith("ru") ? "ru" : "en");

export const pageLanguage = () => language;

/** Add the texts of another page. */
export const addRussian = (more) => Object.assign(RUSSIAN, more);

/** A text in the language of the page; `{name}` in it is replaced by a value. */
export function translated(text, values = {}) {
  return filled(inPageLanguage(text), values);
}

const inPageLanguage = (text) => (language === "ru" && Object.hasOwn(RUSSIAN, text) ? RUSSIAN[text] : text);
const filled = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);

/** The same as nodes: the value `detail` is what the server says, in English, and a screen reader changes its voice. */
export function phrase(text, values = {}) {
  const nodes = document.createDocumentFragment();
  const [first, ...others] = inPageLanguage(text).split("{detail}");
  nodes.append(filled(first, values));
  for (const each of others) {
    const detail = document.createElement("span");
    detail.lang = "en";
    detail.textContent = values.detail;
    nodes.append(detail, filled(each, values));
  }
  return nodes;
}

/** Set the text of a node; it follows the language of the page from then on. */
export function say(node, text, values = {}) {
  texts.set(node, [text, values]);
  node.dataset.say = "";
  node.replaceChildren(phrase(text, values));
  return node;
}

/** The same for the name that a screen reader says. */
export function label(node, text) {
  texts.set(node, [text, {}]);
  node.dataset.sayLabel = "";
  node.setAttribute("aria-label", translated(text));
  return node;
}

export function setLanguage(name) {
  language = name;
  document.documentElement.lang = name;
  document.title = translated(TITLE);
  for (const node of document.querySelectorAll("[data-say]")) {
    say(node, ...(texts.get(node) || [node.textContent.trim()]));
  }
  for (const node of document.querySelectorAll("[data-say-label]")) {
    label(node, (texts.get(node) || [node.getAttribute("aria-label")])[0]);
  }
  for (const button of document.querySelectorAll("[data-language]")) {
    button.setAttribute("aria-pressed", button.dataset.language === name);
  }
}

/** The language of a text by its letters, so that a screen reader reads it with the right voice. */
export const languageOf = (text) => (/[а-яё]/i.test(text) ? "ru" : "en");

const MOST_SAID = 30;

/** Let a screen reader say something, after what it says now. Parts are nodes, or texts in the language of the page. */
export function announce(...parts) {
  const log = document.getElementById("said");
  const line = document.createElement("p");
  line.append(...parts.flatMap((part) => [part, " "]));
  log.append(line);
  while (log.children.length > MOST_SAID) log.firstChild.remove();
}
