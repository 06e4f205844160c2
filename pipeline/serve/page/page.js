// The page of `esolm serve`: fills gaps through /v1/infill and shows every pass.
import { Api } from "./api.js";
import { Panel } from "./panel.js";

const byId = (id) => document.getElementById(id);
// A backslash in front makes text of a gap, or of another backslash.
const GAP = /(\\*)\[\[(\d+)\]\]/g;
const SETTINGS = [
  { name: "alpha_0", label: "alpha_0", type: "range", min: 0, max: 1, step: 0.05, value: 0.5 },
  { name: "steps", label: "steps", type: "range", min: 1, max: 128, step: 1, value: 8 },
  { name: "temperature", label: "temperature", type: "range", min: 0, max: 2, step: 0.05, value: 1 },
  { name: "top_p", label: "top-p", type: "range", min: 0.05, max: 1, step: 0.05, value: 1 },
  { name: "top_k", label: "top-k, 0: all", type: "number", min: 0, step: 1, value: 0 },
  { name: "guesses", label: "speculation", type: "range", min: 0, max: 8, step: 1, value: 0 },
  { name: "adaptive", label: "adaptive", type: "checkbox" }, // fewer guesses where they do not hold
  { name: "schedule", label: "schedule", options: ["binomial", "fixed", "strided", "confidence"],
    notes: { confidence: "confidence is not the model's own distribution" } },
  { name: "seed", label: "seed", type: "number", min: 0, step: 1, value: 0 },
];
// What means nothing to a network is not shown.
const OF_SOME = ["alpha_0", "steps", "guesses", "adaptive", "schedule"];
const HEEDED = { "esolm A": ["alpha_0", "steps", "schedule"], "esolm B": OF_SOME,
  mdlm: ["steps", "schedule"], bd3lm: ["steps", "schedule"], ar: [] };

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
    if (setting.notes) row.append(noteOf(field, setting.notes));
    fieldset.append(row);
  }
}

// What is to be known of the value that is chosen.
function noteOf(field, notes) {
  const note = document.createElement("p");
  note.className = "note";
  note.id = `${field.id}-note`;
  field.setAttribute("aria-describedby", note.id);
  const show = () => {
    note.textContent = notes[field.value] ?? "";
    note.hidden = !note.textContent;
  };
  field.addEventListener("input", show);
  show();
  return note;
}

// The bundle's defaults, but for what somebody has already set.
function begin(fieldset, defaults) {
  for (const field of fieldset.querySelectorAll("input, select")) {
    const value = defaults[field.name === "steps" ? "num_steps" : field.name];
    if (value === undefined || touched.has(field)) continue;
    if (field.type === "checkbox") {
      field.checked = value;
      continue;
    }
    if (field.type === "range" && value > Number(field.max)) field.max = value;
    field.value = value;
    if (field.type === "range" && Number(field.value) !== value) { // between two of its steps
      field.step = "any";
      field.value = value;
    }
    field.dispatchEvent(new Event("input"));
  }
}

function settingsOf(fieldset) {
  const found = {};
  for (const field of fieldset.querySelectorAll("input, select"))
    found[field.name] = field.type === "checkbox" ? field.checked
      : field.tagName === "SELECT" ? field.value : Number(field.value);
  return found;
}

function segmentsOf(text) {
  const found = [];
  let rest = "", end = 0;
  for (const { 0: all, 1: slashes, 2: size, index } of text.matchAll(GAP)) {
    rest += text.slice(end, index) + "\\".repeat(slashes.length >> 1);
    end = index + all.length;
    if (slashes.length % 2) {
      rest += `[[${size}]]`;
      continue;
    }
    if (rest) found.push(rest);
    found.push({ gap: Number(size) });
    rest = "";
  }
  rest += text.slice(end);
  return rest ? [...found, rest] : found;
}

async function fill(panel, fieldset, signal) {
  const body = { segments: segmentsOf(byId("text").value), ...settingsOf(fieldset),
    stream: true, stream_mode: "events", likelihood: true };
  panel.clear();
  for await (const event of api.infill(body, signal)) {
    signal.throwIfAborted(); // what had already arrived belongs to nobody
    panel.take(event);
  }
}

const panels = ["a", "b"].map((name) => new Panel(byId(`panel-${name}`), byId("panel")));
const fieldsets = ["a", "b"].map((name) => byId(`settings-${name}`));
fieldsets.forEach(build);
const touched = new Set();
for (const fieldset of fieldsets)
  fieldset.addEventListener("input", (event) => touched.add(event.target));
const api = new Api(() => byId("key").value);
let running = null;

// Says what went wrong beside the button; a missing key gets its field.
function tell(error) {
  byId("error").textContent = error.message;
  if (error.status !== 401) return;
  byId("key-row").hidden = false;
  byId("key").focus();
}

async function introduce() {
  const model = await api.model();
  byId("model").textContent = `${model.id}, ${model.objective}`;
  fieldsets.forEach((fieldset) => begin(fieldset, model.defaults));
  const heeded = HEEDED[model.objective];
  for (const name of heeded ? OF_SOME : []) for (const fieldset of fieldsets)
    fieldset.querySelector(`[name=${name}]`).closest(".setting").hidden = !heeded.includes(name);
}

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
    if (!byId("model").textContent) await introduce(); // the key was missing before
  } catch (error) {
    own.abort(); // the other side as well
    if (running !== own) return; // a newer request speaks now
    byId("said").textContent = "";
    tell(error.name === "AbortError" ? new Error("stopped") : error);
  }
  if (running === own) byId("stop").disabled = true;
});

await introduce().catch(tell);
