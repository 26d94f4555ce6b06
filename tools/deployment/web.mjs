// Loads the model beside this file with onnxruntime-web, runs it on what the form says, and
// shows what it returns. index.html has the names, types and example sizes of the inputs.

const RUNTIME = "./runtime/ort.wasm.min.mjs";
const SHOWN = 8; // values of an output
const ARRAYS = {
  float32: Float32Array,
  float64: Float64Array,
  float16: globalThis.Float16Array,
  int64: BigInt64Array,
  uint64: BigUint64Array,
  int32: Int32Array,
  uint32: Uint32Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int8: Int8Array,
  uint8: Uint8Array,
  bool: Uint8Array,
};
const facts = JSON.parse(document.getElementById("facts").textContent);
const form = document.getElementById("inputs");
const button = document.getElementById("run");
const state = document.getElementById("state");
const answer = document.getElementById("answer");

function field(parent, said, kind, value) {
  const label = document.createElement("label");
  label.textContent = said;
  const entry = document.createElement(kind);
  entry.value = value;
  label.append(entry);
  parent.append(label);
  return entry;
}

// A field for the sizes of an input and one for its numbers.
function fields(input) {
  const box = document.createElement("fieldset");
  const legend = document.createElement("legend");
  legend.textContent = `${input.name}: ${input.type}`;
  box.append(legend);
  const sizes = field(box, "sizes", "input", input.shape.join(", "));
  const said = `numbers, separated by commas; without any, ${input.fill} everywhere`;
  const numbers = field(box, said, "textarea", input.values.join(", "));
  form.append(box);
  return { input, sizes, numbers };
}

function listed(text) {
  return text.split(/[\s,]+/).filter((word) => word !== "");
}

function tensor(ort, { input, sizes, numbers }) {
  const shape = listed(sizes.value).map(Number);
  const size = shape.reduce((product, axis) => product * axis, 1);
  const words = listed(numbers.value);
  const given = words.length > 0 ? words : Array(size).fill(input.fill);
  if (given.length !== size) {
    throw new Error(`${input.name}: ${given.length} numbers for sizes [${shape}]`);
  }
  const Kind = ARRAYS[input.type];
  if (Kind === undefined) throw new Error(`this browser has no ${input.type}`);
  const read = input.type.endsWith("int64") ? BigInt : Number;
  return new ort.Tensor(input.type, Kind.from(given, read), shape);
}

// The first numbers of an output, and the largest of its last row: what a classifier or a
// language model answers.
function shown(name, { dims, data }) {
  const numbers = Array.from(data.subarray(0, SHOWN), String).join(", ");
  const lines = [`${name}: [${dims.join(", ")}]`, numbers + (data.length > SHOWN ? ", ..." : "")];
  const width = dims.at(-1) ?? 1;
  const row = data.subarray(data.length - width);
  if (row.length > 1) {
    const best = row.reduce((found, value, at) => (value > row[found] ? at : found), 0);
    lines.push(`largest of the last row: ${row[best]}, at ${best}`);
  }
  const text = document.createElement("pre");
  text.textContent = lines.join("\n");
  return text;
}

async function run(ort, session, entries) {
  button.disabled = true;
  try {
    const feeds = Object.fromEntries(
      entries.map((entry) => [entry.input.name, tensor(ort, entry)]),
    );
    const begun = performance.now();
    const found = await session.run(feeds);
    state.textContent = `Done in ${(performance.now() - begun).toFixed(1)} ms.`;
    answer.replaceChildren(
      ...session.outputNames.map((name) => shown(name, found[name])),
    );
  } catch (error) {
    state.textContent = `Failed: ${error.message}`;
  }
  button.disabled = false;
}

async function load() {
  const ort = await import(RUNTIME).catch(() => {
    throw new Error("there is no onnxruntime-web in runtime/: README.md says how to put it there");
  });
  const externalData = facts.data.map((path) => ({ path, data: path }));
  const session = await ort.InferenceSession.create(facts.model, { externalData });
  const entries = facts.inputs.map(fields);
  button.addEventListener("click", () => run(ort, session, entries));
  await run(ort, session, entries);
}

load().catch((error) => {
  state.textContent = `Failed: ${error.message}`;
});
