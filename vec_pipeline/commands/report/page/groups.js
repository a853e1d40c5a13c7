/* Near-duplicates, group by group. */

"use strict";

const GROUPS_AT_ONCE = 30;
const TILES_OF_GROUP = 12;

let groupsShown = GROUPS_AT_ONCE;
let groupsFor = "";

function renderGroups() {
  const key = `${resultsFor}`;
  if (key === groupsFor) return;
  groupsFor = key;
  $("groups").replaceChildren();
  $("groups-more").hidden = true;
  if (!plan) {
    $("groups-about").textContent = "Loading…";
    return;
  }
  const found = groupsOfResults();
  $("groups-about").textContent = head.groups
    ? `${plural(found.length, "group")} of images whose vectors have a cosine of at least ${head.duplicate_cosine}, directly or through others; the largest first.`
    : `No two images have vectors with a cosine of at least ${head.duplicate_cosine}.`;
  $("groups").append(...found.slice(0, groupsShown).map(groupSection));
  $("groups-more").hidden = found.length <= groupsShown;
}

const groupsOfResults = () => [...new Set(results.map((row) => plan.group[row]))].filter(Boolean).sort((a, b) => a - b);

function showMoreGroups() {
  const added = groupsOfResults()
    .slice(groupsShown, groupsShown + GROUPS_AT_ONCE)
    .map(groupSection);
  groupsShown += GROUPS_AT_ONCE;
  $("groups").append(...added);
  $("groups-more").hidden = groupsOfResults().length <= groupsShown;
  added[0]?.querySelector("a").focus();
}

function groupSection(group) {
  const rows = members.get(group);
  const link = element(
    "a",
    { href: hashOf({ ...EMPTY, view: "grid", group: String(group) }) },
    rows.length > TILES_OF_GROUP ? `Show all ${count(rows.length)}` : "Show in the grid",
  );
  return element(
    "section",
    { class: "group", "aria-label": `Group ${group}` },
    element("div", { class: "group-head" }, element("h3", {}, `Group ${group}: ${plural(rows.length, "image")}`), link),
    element("ul", { class: "strip" }, ...rows.slice(0, TILES_OF_GROUP).map((row) => element("li", {}, tile(row)))),
  );
}
