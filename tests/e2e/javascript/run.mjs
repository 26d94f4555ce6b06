// Runs a model once with one of ONNX Runtime's packages for JavaScript.
//
//   node run.mjs PACKAGE MODEL INPUTS OUTPUTS
//
// INPUTS and OUTPUTS are JSON: name -> {type, dims, data}, the data in base64.
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";

const [name, model, inputs, outputs] = process.argv.slice(2);
const ort = await import(name);

const arrays = {
  float32: Float32Array,
  int64: BigInt64Array,
  int32: Int32Array,
  bool: Uint8Array,
};

function tensor({ type, dims, data }) {
  const bytes = Buffer.from(data, "base64");
  const whole = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
  return new ort.Tensor(type, new arrays[type](whole), dims);
}

function plain({ type, dims, data }) {
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  return { type, dims, data: bytes.toString("base64") };
}

// A browser has no folders: there, a page hands over the files beside the model.
function beside(path) {
  return readdirSync(dirname(path))
    .filter((file) => file.startsWith(basename(path)) && file !== basename(path))
    .map((file) => ({ path: file, data: readFileSync(join(dirname(path), file)) }));
}

const session =
  name === "onnxruntime-web"
    ? await ort.InferenceSession.create(readFileSync(model), { externalData: beside(model) })
    : await ort.InferenceSession.create(model);
const given = JSON.parse(readFileSync(inputs, "utf8"));
const feeds = Object.fromEntries(Object.entries(given).map(([key, one]) => [key, tensor(one)]));
const found = await session.run(feeds);
const written = Object.fromEntries(Object.entries(found).map(([key, one]) => [key, plain(one)]));
writeFileSync(outputs, JSON.stringify(written));
process.exit(0);
