/* The API's page: each request with its parameters, its answers and a line for curl, from the server's openapi.json. */

const token = sessionStorage.getItem("token");
const notice = document.getElementById("notice");

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter(Boolean));
  return node;
}

const resolved = (openapi, schema = {}) =>
  schema.$ref ? schema.$ref.slice(2).split("/").reduce((value, key) => value[key], openapi) : schema;

/** Name, place, type and default of what a request may have: of the address, and of the form. */
function parametersOf(openapi, operation) {
  const of = (name, where, isRequired, schema, about) => ({ name, where, isRequired, schema, about: about || schema.description });
  const form = resolved(openapi, operation.requestBody?.content["multipart/form-data"]?.schema);
  return [
    ...(operation.parameters || []).map((each) => of(each.name, each.in, each.required, each.schema, each.description)),
    ...Object.entries(form.properties || {}).map(([name, schema]) => of(name, "form", form.required?.includes(name), schema)),
  ];
}

function typeOf(schema) {
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(", ");
  const range = [schema.minimum, schema.maximum].filter((each) => each !== undefined).join(" to ");
  return [schema.type === "array" ? "one or several files" : schema.type, range].filter(Boolean).join(" ");
}

const defaultOf = ({ default: value }) => (value === undefined || Array.isArray(value) ? "" : `default ${JSON.stringify(value)}`);

function listed(pairs) {
  return element("dl", {}, ...pairs.flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)]));
}

function curl(path, method, operation) {
  const queries = (operation.parameters || []).filter(({ schema }) => schema.examples).map((each) => [each.name, each.schema.examples[0]]);
  const address = location.origin + path.replace("{name}", "ID") + (queries.length ? `?${new URLSearchParams(queries)}` : "");
  const types = Object.keys(operation.responses["200"]?.content || {});
  const isFile = types.some((type) => /^(image|audio)/.test(type));
  return [
    "curl",
    path.endsWith("/events") && "--no-buffer",
    token && '--header "Authorization: Bearer $TOKEN"',
    method === "post" && "--form file=@picture.jpg",
    isFile && "--output FILE",
    queries.length ? `'${address}'` : address,
  ]
    .filter(Boolean)
    .join(" ");
}

function section(openapi, path, method, operation) {
  const parameters = parametersOf(openapi, operation).map(({ name, where, isRequired, schema, about }) => [
    name,
    [where, typeOf(schema), isRequired ? "required" : defaultOf(schema), about].filter(Boolean).join("; "),
  ]);
  const answers = Object.entries(operation.responses).map(([status, { description, content }]) => [
    status,
    [description, Object.keys(content || {}).join(", ")].filter(Boolean).join("; "),
  ]);
  return element(
    "article",
    { class: "card operation" },
    element("h2", {}, `${method.toUpperCase()} ${path}`),
    element("p", {}, operation.description || operation.summary),
    parameters.length && element("h3", {}, "Parameters"),
    parameters.length && listed(parameters),
    element("h3", {}, "Answers"),
    listed(answers),
    element("pre", {}, element("code", {}, curl(path, method, operation))),
  );
}

async function begin() {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await fetch("/openapi.json", { headers });
  if (response.status === 401) {
    notice.textContent = "The server needs its token: enter it on the page for people, and come back in the same tab.";
    return;
  }
  const openapi = await response.json();
  for (const [path, methods] of Object.entries(openapi.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      document.getElementById("operations").append(section(openapi, path, method, operation));
    }
  }
  notice.hidden = true;
}

begin().catch(() => (notice.textContent = "The server cannot be reached: check that it runs, and load this page again."));
