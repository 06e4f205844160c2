// The page of `esolm serve`: fills gaps through /v1/infill and shows every pass.
import { Panel } from "./panel.js";

const byId = (id) => document.getElementById(id);
const GAP = /\[\[(\d+)\]\]/;
const SETTINGS = [
  { name: "alpha_0", label: "alpha_0", type: "range", min: 0, max: 1, step: 0.05, value: 0.5 },
  { name: "steps", label: "steps", type: "range", min: 1, max: 128, step: 1, value: 8 },
  { name: "temperature", label: "temperature", type: "range", min: 0, max: 2, step: 0.05, value: 1 },
  { name: "top_p", label: "top-p", type: "range", min: 0.05, max: 1, step: 0.05, value: 1 },
  { name: "guesses", label: "speculation", type: "range", min: 0, max: 8, step: 1, value: 0 },
  { name: "schedule", label: "schedule", options: ["binomial", "fixed", "strided", "confidence"] },
  { name: "seed", label: "seed", type: "number", min: 0, step: 1, value: 0 },
];

function build(fieldset) {
  for (const setting of SETTINGS) {
    const row = document.createElement("div");
    const label = document.createElement("label");
    const field = document.createElement(setting.options ? "select" : "input");
    row.className = "setting";
    label.textContent = setting.label;
    field.id = `${fieldset.id}-${setting.name}`;
    label.htmlFor = field.id;
    field.name = setting.name;
    row.append(label, field);
    for (const option of setting.options ?? []) field.append(new Option(option, option));
    if (!setting.options) for (const key of ["type", "min", "max", "step", "value"])
      if (setting[key] !== undefined) field.setAttribute(key, setting[key]);
    if (setting.type === "range") {
      const shown = document.createElement("output");
      const show = () => { shown.textContent = field.value; };
      field.addEventListener("input", show);
      show();
      row.append(shown);
    }
    fieldset.append(row);
  }
}

function settingsOf(fieldset) {
  const found = {};
  for (const field of fieldset.querySelectorAll("input, select"))
    found[field.name] = field.tagName === "SELECT" ? field.value : Number(field.value);
  return found;
}

function segmentsOf(text) {
  return text.split(/(\[\[\d+\]\])/).filter((part) => part !== "")
    .map((part) => (GAP.test(part) ? { gap: Number(part.match(GAP)[1]) } : part));
}

function headers() {
  const key = byId("key").value;
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

async function* events(body, signal) {
  const answer = await fetch("v1/infill", {
    method: "POST", headers: headers(), body: JSON.stringify(body), signal,
  });
  if (answer.status === 401) byId("key-row").hidden = false;
  if (!answer.ok) throw new Error((await answer.json()).error.message);
  let rest = "";
  for await (const piece of answer.body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + piece).split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      const data = line.slice("data: ".length);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

async function fill(panel, fieldset, signal) {
  const body = { segments: segmentsOf(byId("text").value), ...settingsOf(fieldset),
    stream: true, stream_mode: "events" };
  panel.clear();
  for await (const event of events(body, signal)) panel.take(event);
}

const panels = ["a", "b"].map((name) => new Panel(byId(`panel-${name}`), byId("panel")));
const fieldsets = ["a", "b"].map((name) => byId(`settings-${name}`));
fieldsets.forEach(build);
let running = null;

byId("two").addEventListener("change", (event) => { fieldsets[1].hidden = !event.target.checked; });
byId("gap").addEventListener("click", () => {
  const text = byId("text");
  text.setRangeText(`[[${byId("gap-size").value}]]`, text.selectionStart, text.selectionEnd, "end");
  text.focus();
});
byId("stop").addEventListener("click", () => running?.abort());
byId("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  running?.abort();
  const own = running = new AbortController();
  const used = byId("two").checked ? [0, 1] : [0];
  panels[1].hide(used.length < 2);
  byId("error").textContent = "";
  byId("stop").disabled = false;
  byId("said").textContent = "Filling";
  try {
    await Promise.all(used.map((i) => fill(panels[i], fieldsets[i], own.signal)));
    byId("said").textContent = `Done: ${panels[0].text}`;
  } catch (error) {
    own.abort();
    const stopped = error.name === "AbortError";
    byId("error").textContent = stopped ? "stopped" : error.message;
    byId("said").textContent = "";
  }
  if (running === own) byId("stop").disabled = true;
});

try {
  const { data } = await (await fetch("v1/models", { headers: headers() })).json();
  byId("model").textContent = `${data[0].id}, ${data[0].objective}`;
  for (const fieldset of fieldsets) if (!data[0].objective.endsWith("B"))
    fieldset.querySelector("[name=guesses]").closest(".setting").hidden = true;
} catch {
  byId("key-row").hidden = false; // without its key the server does not say what it serves
}
