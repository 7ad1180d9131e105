"use strict";
const PAGE = 50;
const byId = (id) => document.getElementById(id);
const chunks = new Map();
let index = { runs: [], timelines: [] }, shown = [], drawn = 0;

async function unpack(id) {
  const bytes = Uint8Array.from(atob(byId(id).textContent.trim()), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

function chunk(number) {
  if (!chunks.has(number)) {
    if (chunks.size > 40) chunks.clear();
    chunks.set(number, unpack(`chunk-${number}`));
  }
  return chunks.get(number);
}

// Whatever a data set or a model wrote comes in as text nodes alone.
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function filter() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const run = byId("run").value, order = byId("order").value;
  shown = index.timelines.filter((row) =>
    (run === "" || row[1] === Number(run)) && words.every((word) => row[5].includes(word)));
  const key = (row) => (row[4] === null ? Infinity : order === "best" ? -row[4] : row[4]);  // unscored ones last
  if (order !== "run") shown.sort((a, b) => key(a) - key(b) || 0);
  drawn = 0;
  byId("list").replaceChildren();
  const all = index.timelines.length.toLocaleString("en");
  byId("count").textContent = `${shown.length.toLocaleString("en")} of ${all} timelines`;
  more();
}

function more() {
  const items = shown.slice(drawn, drawn + PAGE).map((row) => {
    const [user, run, , , score] = row;
    const found = score === null ? "no liked target" : `NDCG@10 ${score.toFixed(2)}`;
    const about = index.runs.length > 1 ? `${index.runs[run]}, ${found}` : found;
    const details = make("details", {}, make("summary", {}, `User ${user} `, make("small", {}, about)));
    details.addEventListener("toggle", () => open(details, row), { once: true });
    return make("li", {}, details);
  });
  byId("list").append(...items);
  drawn += items.length;
  byId("more").hidden = drawn >= shown.length;
  return items[0];
}

async function open(details, row) {
  const body = make("div", { class: "timeline" }, "Unpacking …");
  details.append(body);
  const { titles, timelines } = await chunk(row[2]);
  const steps = timelines[row[3]];
  const lists = new Set(steps.map((step) => step.list)).size > 1;
  body.replaceChildren(...steps.map((step) => render(step, titles, lists)));
}

function render(step, titles, lists) {
  const all = step.ranking.length + step.unranked.length;
  const rank = step.rank === null ? "did not rank it" : `ranked it ${step.rank} of ${all}`;
  const parts = [
    make("h4", {}, `Turn ${step.turn}`, ...(lists ? [make("small", {}, ` list ${step.list}`)] : [])),
    make("p", {}, "The target is ", make("mark", {}, titles[step.target]), `, which the user ${step.liked ? "liked" : "disliked"}. `,
      `The agent ${rank}, which predicts ${step.predicted ? "liked" : "disliked"}; reward ${step.reward.toFixed(1)}.`),
  ];
  const invalid = step.problems.filter((problem) => !problem.startsWith("tied"));
  if (invalid.length) parts.push(make("p", { class: "problem" }, `Invalid answer: ${invalid.join("; ")}`));
  const tied = step.problems.find((problem) => problem.startsWith("tied"));
  if (tied) parts.push(make("p", {}, make("small", {}, `Tied scores, in the order shown: ${tied.replace("tied: ", "")}`)));
  const places = step.ranking.map((item) =>
    make("li", {}, item === step.target ? make("mark", {}, titles[item]) : titles[item]));
  parts.push(make("h5", {}, "Ranking"), make("ol", { class: "ranking" }, ...places));
  if (step.unranked.length) parts.push(make("p", {}, `Not ranked: ${step.unranked.map((item) => titles[item]).join("; ")}`));
  for (const [kind, text] of step.answers)
    parts.push(make("details", {}, make("summary", {}, `Model answer (${kind})`), make("pre", {}, text)));
  if (step.before || step.after)
    parts.push(make("h5", {}, step.before === step.after ? "Memory, unchanged" : "Memory after the turn, with changes"),
      make("p", { class: "memory" }, ...difference(step.before, step.after)));
  for (const event of step.events) parts.push(make("p", {}, make("small", {}, `event added: ${event}`)));
  return make("section", { class: "step" }, ...parts);
}

// Words of the longest common subsequence stay plain; the others are <del> or <ins>.
function difference(before, after) {
  const a = before.split(/\s+/).filter(Boolean), b = after.split(/\s+/).filter(Boolean);
  const n = a.length, m = b.length, runs = [];
  const add = (tag, word) => {
    if (runs.length && runs.at(-1)[0] === tag) runs.at(-1)[1].push(word);
    else runs.push([tag, [word]]);
  };
  if (n * m > 1e6) return [make("del", {}, before), " ", make("ins", {}, after)];
  const common = new Uint16Array((n + 1) * (m + 1));
  for (let i = n - 1; i >= 0; i--)
    for (let j = m - 1; j >= 0; j--)
      common[i * (m + 1) + j] = a[i] === b[j] ? common[(i + 1) * (m + 1) + j + 1] + 1
        : Math.max(common[(i + 1) * (m + 1) + j], common[i * (m + 1) + j + 1]);
  for (let i = 0, j = 0; i < n || j < m;) {
    if (i < n && j < m && a[i] === b[j]) { add("", a[i]); i++; j++; }
    else if (j >= m || (i < n && common[(i + 1) * (m + 1) + j] >= common[i * (m + 1) + j + 1])) add("del", a[i++]);
    else add("ins", b[j++]);
  }
  return runs.flatMap(([tag, words]) => [tag ? make(tag, {}, words.join(" ")) : words.join(" "), " "]);
}

function keys(event) {
  const typing = ["INPUT", "SELECT"].includes(event.target.tagName);
  if (event.key === "/" && !typing) {
    event.preventDefault();
    byId("search").focus();
  } else if (["ArrowDown", "ArrowUp"].includes(event.key) && event.target.tagName !== "SELECT") {
    const summaries = [...document.querySelectorAll("#list > li > details > summary")];
    const at = summaries.indexOf(event.target), inSearch = event.target === byId("search");
    if (at < 0 && !inSearch) return;
    const next = summaries[inSearch ? 0 : at + (event.key === "ArrowDown" ? 1 : -1)] || (at > 0 ? null : byId("search"));
    if (next) {
      event.preventDefault();
      next.focus();
    }
  }
}

async function start() {
  index = await unpack("index");
  if (!index.timelines.length) {
    byId("timelines").hidden = true;
    return;
  }
  byId("run").append(make("option", { value: "" }, "all"));
  index.runs.forEach((name, number) => byId("run").append(make("option", { value: number }, name)));
  for (const id of ["search", "run", "order"]) byId(id).addEventListener("input", filter);
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("more").addEventListener("click", () => more().querySelector("summary").focus());
  document.addEventListener("keydown", keys);
  filter();
}

start();
