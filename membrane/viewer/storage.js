"use strict";
// What was corrected: kept in the browser at once, under the key of the slices.

const $ = (id) => document.getElementById(id);
const DATA = JSON.parse($("data").textContent), SCORES = JSON.parse($("scores").textContent);
const STORE = `membrane-${DATA.key}`;
const DECISIONS = ["join", "separate", "leave"];  // kinds of operations that decide about a border

// log: {slice, operation, decision} in the order made, the decision by its number, if it is one;
// saved: the checksum of a slice's operations when they were last saved; chosen: for training, or
// not, where the user said so; taken: slices whose earlier corrections are in the log.
let kept = { log: [], saved: {}, chosen: {}, taken: {} };
let undone = [], storageFails = false;
const ofSlice = new Map();  // entries of the log, by the slice's name
const decided = new Map();  // the numbers of decisions that are taken, likewise

// Sorts the log by slices.
function sortLog() {
  ofSlice.clear();
  decided.clear();
  for (const entry of kept.log) {
    if (!ofSlice.has(entry.slice)) ofSlice.set(entry.slice, []);
    ofSlice.get(entry.slice).push(entry);
    if (entry.decision === undefined) continue;
    if (!decided.has(entry.slice)) decided.set(entry.slice, new Set());
    decided.get(entry.slice).add(entry.decision);
  }
}

const operationsOn = (name) => (ofSlice.get(name) ?? []).map((entry) => entry.operation);
const checksumOf = (name) =>
  ofSlice.has(name) ? crc32(new TextEncoder().encode(JSON.stringify(operationsOn(name)))) : 0;
const isUnsaved = (name) => checksumOf(name) !== (kept.saved[name] ?? 0);
const isCorrected = ({ name }) => ofSlice.has(name);
const isChosen = (slice) => kept.chosen[slice.name] ?? isCorrected(slice);

// Takes what the browser has kept; says whether there was something.
function restore() {
  try {
    const text = DATA.key && localStorage.getItem(STORE);
    if (text) kept = { ...kept, ...JSON.parse(text) };
  } catch (error) {
    storageFails = true;
  }
  sortLog();
}

// Keeps everything in the browser.
function keep() {
  sortLog();
  try {
    localStorage.setItem(STORE, JSON.stringify(kept));
    storageFails = false;
  } catch (error) {
    storageFails = true;
  }
}

// Adds an operation.
function addOperation(slice, operation, decision) {
  kept.log.push({ slice, operation, decision });
  undone = [];
  keep();
}

// Takes back the last operation that `which` accepts; returns it.
function takeBack(which = () => true) {
  const place = kept.log.findLastIndex(which);
  if (place < 0) return null;
  const [entry] = kept.log.splice(place, 1);
  undone.push({ entry, after: kept.log.length - place });
  keep();
  return entry;
}

// Makes again what was taken back last, where it was among the others; returns it.
function makeAgain() {
  if (!undone.length) return null;
  const { entry, after } = undone.pop();  // from the end: others may be put before them all
  kept.log.splice(kept.log.length - after, 0, entry);
  keep();
  return entry;
}

// The number of the decision that an operation takes, if it takes one.
function findDecision(operation, decisions) {
  if (!DECISIONS.includes(operation.kind)) return undefined;
  const found = decisions.findIndex(({ at }) => String(at) === String(operation.at));
  return found < 0 ? undefined : found;
}

// Puts operations on a slice, made before those in the log.
function putBefore(slice, operations, decisions) {
  const entries = operations.map((operation) =>
    ({ slice, operation, decision: findDecision(operation, decisions) }));
  kept.log.unshift(...entries);
  sortLog();
}

// Takes the corrections that the masks of a slice were already made with.
function takeEarlier(slice, { operations, decisions }) {
  if (Object.hasOwn(kept.taken, slice)) return;
  kept.taken[slice] = true;
  if (!operations?.length) return;
  putBefore(slice, operations, decisions);
  kept.saved[slice] ??= checksumOf(slice);
  keep();
}

const isPoint = (value) => Array.isArray(value) && value.length === 2 && value.every(isNumber);
const isNumber = (value) => Number.isInteger(value) && value >= 0;
const areAll = (value, is) => Array.isArray(value) && value.length > 0 && value.every(is);

// Tells whether a value from a file is an operation.
function isOperation(value) {
  if (DECISIONS.includes(value?.kind)) {
    return isPoint(value.at) && areAll(value.sides, isPoint) && value.sides.length === 2 &&
      (value.kind === "leave" || (Array.isArray(value.pixels) && value.pixels.every(isNumber)));
  }
  if (!["membrane", "cell"].includes(value?.kind)) return false;
  const brush = isNumber(value.size) && value.size >= 1 && value.size <= 64;
  return value.points ? brush && areAll(value.points, isPoint)
    : Array.isArray(value.pixels) && value.pixels.every(isNumber);
}

// The slices and operations of a text that was saved here, and whether they were made on another
// prediction; throws a line on what is wrong.
function readCorrections(text) {
  let content;
  try {
    content = JSON.parse(text);
  } catch (error) {
    content = null;
  }
  const slices = Object.entries(content?.slices ?? {});
  if (!content?.slices || !slices.every(([, list]) => areAll(list, isOperation))) {
    throw new Error("not corrections as this page saves them; nothing was loaded");
  }
  const editable = DATA.slices.filter((slice) => slice.editable);
  const here = new Map(editable.map((slice) => [slice.name, slice]));
  for (const [name] of slices) {
    if (!here.has(name)) throw new Error(`no such slice here: ${name}; nothing was loaded`);
    if (here.get(name).key !== content.keys?.[name]) {
      throw new Error(`corrections of another slice ${name}; nothing was loaded`);
    }
  }
  return { slices, strange: Boolean(content.prediction) && content.prediction !== DATA.key };
}

// Corrections as they are saved.
function writeCorrections() {
  const corrected = DATA.slices.filter(isCorrected);
  const slices = corrected.map(({ name }) => [name, operationsOn(name)]);
  const keys = corrected.map(({ name, key }) => [name, key]);
  return JSON.stringify({
    slices: Object.fromEntries(slices), keys: Object.fromEntries(keys), prediction: DATA.key,
  });
}
