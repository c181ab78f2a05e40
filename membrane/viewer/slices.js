"use strict";
// Slices that can be corrected: their masks, read from scripts, because a page that is opened as a
// file may not read the pixels of other files.

const KEEP = 6;  // slices in memory
const arrived = new Map();  // what a script called with, by its address
const opened = new Map();  // promises of slices, by their numbers, the last used at the end
const scriptPath = (file, end) => `about/page/${file}-${end}`;

function loadSlice(file, content) { arrived.set(scriptPath(file, "edit.js"), content); }
function loadObjects(file, content) { arrived.set(scriptPath(file, "objects.js"), content); }

// The picture of a kind, or nothing where it was not asked for.
function picturePath(slice, kind) {
  const end = slice.kinds.find((name) => name.startsWith(`${kind}.`));
  return end && `about/page/${slice.file}-${end}`;
}

// The number of the same place in the slice after (1) or before (-1) one; -1 where it is not shown.
const findBeside = (number, side) => DATA.slices[number][side > 0 ? "after" : "before"] ?? -1;

// Runs one of the scripts; the promise is of what it calls with, or of null.
function readScript(path) {
  return new Promise((resolve) => {
    const script = document.createElement("script");
    const finish = () => {
      const content = arrived.get(path) ?? null;
      arrived.delete(path);
      script.remove();
      resolve(content);
    };
    script.onload = script.onerror = finish;
    script.src = path;
    document.head.append(script);
  });
}

// Everything but the pictures' pixels that a slice is corrected with, or null.
async function readContent(number) {
  const slice = DATA.slices[number];
  if (!slice?.editable || !DATA.key) return null;
  const content = await readScript(scriptPath(slice.file, "edit.js"));
  if (content) takeEarlier(slice.name, content);
  return content;
}

// Takes the corrections that masks were already made with, where the browser has not. Where the
// page does not say how many a slice has (corrected), its script does, if all are wanted.
async function readEarlier(all) {
  for (const [number, slice] of DATA.slices.entries()) {
    const wanted = slice.editable && (slice.corrected ?? all);
    if (wanted && !Object.hasOwn(kept.taken, slice.name)) await readContent(number);
  }
  change(() => {});
}

// The grey values of a picture.
async function readGrey(url, { width, height }) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const grey = new Uint8Array(width * height);
  for (let n = 0; n < grey.length; n++) grey[n] = data[4 * n];
  return grey;
}

// A slice with its mask as it is now; null where it can only be looked at.
function openSlice(number) {
  const promise = opened.get(number) ?? readSlice(number).catch(() => null);
  opened.delete(number);
  opened.set(number, promise);
  for (const other of opened.keys()) {
    if (opened.size > KEEP && other !== shown) opened.delete(other);
  }
  return promise;
}

async function readSlice(number) {
  const content = await readContent(number);
  if (!content) return null;
  const [height, width] = content.shape, slice = { ...content, number, width, height };
  slice.base = await readGrey(content.mask, slice);
  if (slice.base.some((value) => value % 255)) return null;  // this browser hides what is there
  const { kinds, file } = DATA.slices[number];
  slice.objects = kinds.includes("labels.png") ?
    await readScript(scriptPath(file, "objects.js")) ?? [] : [];
  slice.now = new Uint8Array(width * height);
  remake(slice);
  return slice;
}

// Makes the mask of a slice again from what was predicted and what was corrected.
function remake(slice) {
  slice.now.set(slice.base);
  for (const operation of operationsOn(DATA.slices[slice.number].name)) {
    applyOperation(operation, slice.now, slice);
  }
}
