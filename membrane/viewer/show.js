"use strict";
// The slice that is shown, what lies over it, and where.

// What a button shows: the slice, and over it a picture, how opaque, on what background.
const LAYERS = {
  slice: ["slice", null, 0], mask: [null, "mask", 1], probability: [null, "probability", 1],
  labels: [null, "labels", 1], overlay: ["slice", "mask", null],
  "labels over slice": ["slice", "labels", null],
};
const RED = [213, 94, 0], WAIT = 120;  // of membrane; ms on a slice before its mask is read
const SIDES = [[86, 180, 233], [230, 159, 0]], BRIGHT = [240, 228, 66];  // of a decision
let shown = 0, layer = "overlay", zoom = 1, left = 0, top_ = 0;
let current = null;  // the slice shown, once it can be corrected
let waiting = 0;

// Tells the user a line.
function say(text) {
  $("status").textContent = text;
  if ($("saving").open) $("told").textContent = text;
}

// Shows a slice by its number.
function show(index, wanted = layer) {
  const number = clamp(index, 0, DATA.slices.length - 1), slice = DATA.slices[number];
  if (number !== shown) leaveSlice();
  [shown, layer] = [number, wanted];
  const [under, over, opacity] = LAYERS[layer], picture = picturePath(slice, over);
  $("under").src = picturePath(slice, "slice");
  $("under").style.visibility = under ? "visible" : "hidden";
  if (picture) $("over").src = picture;
  $("over").style.display = picture ? "block" : "none";
  const live = over === "mask" && current !== null;
  $("over").style.visibility = live ? "hidden" : "visible";
  $("mask").style.display = live ? "block" : "none";
  for (const image of [$("over"), $("mask")]) {
    image.style.opacity = opacity ?? $("opacity").value / 100;
    // a mask is red where membrane is, else clear; alone it is black on white
    image.style.filter = layer === "mask" ? "brightness(0)" : "none";
    image.style.background = layer === "mask" ? "#fff" : "none";
  }
  $("name").textContent = `${shown + 1}/${DATA.slices.length}  ${slice.name}`;
  $("name").title = slice.name;
  const scores = Object.entries(SCORES[slice.name] ?? {}).map(([k, v]) => `${k} ${v.toFixed(4)}`);
  const facts = [`membrane ${(100 * slice.membrane).toFixed(0)} %`, ...scores];
  $("facts").textContent = facts.join(" · ");
  for (const button of $("layers").children) {
    button.setAttribute("aria-pressed", button.textContent === layer);
  }
  for (const near of [DATA.slices[shown + 1], DATA.slices[shown - 1]]) {
    const ahead = near ? ["slice", over].map((kind) => picturePath(near, kind)) : [];
    for (const source of ahead) if (source) new Image().src = source;
  }
  markShown();
  if (!current) {
    clearTimeout(waiting);
    waiting = setTimeout(openShown, WAIT);
  }
}

// Forgets what belongs to the slice that is left.
function leaveSlice() {
  leaveQueue();
  dropStroke();
  current = last = null;
  clearMarks();
  say("");
}

// Reads the mask of the slice shown, then of the next.
async function openShown() {
  clearTimeout(waiting);
  const number = shown, slice = await openSlice(number);
  if (!slice) broken.add(number);
  if (number !== shown || !slice) return slice;
  if (current !== slice) {
    current = slice;
    for (const canvas of [$("mask"), $("marks")]) {
      [canvas.width, canvas.height] = [slice.width, slice.height];
    }
    drawMask();
    show(shown);
  }
  setTimeout(() => number === shown && DATA.slices[number + 1] && openSlice(number + 1));
  return slice;
}

// Draws the mask, or the part of it in a box [left, top, right, bottom].
function drawMask([x0, y0, x1, y1] = [0, 0, current.width - 1, current.height - 1]) {
  const picture = new ImageData(x1 - x0 + 1, y1 - y0 + 1), red = colour(RED, 255);
  const pixels = new Uint32Array(picture.data.buffer);
  for (let y = y0, n = 0; y <= y1; y++) {
    for (let x = x0; x <= x1; x++, n++) if (!current.now[y * current.width + x]) pixels[n] = red;
  }
  $("mask").getContext("2d").putImageData(picture, x0, y0);
}

// A colour as canvases have it.
const colour = ([r, g, b], alpha) => new Uint32Array(Uint8Array.of(r, g, b, alpha).buffer)[0];

// Marks pixels: lists of indices, each with a colour.
function drawMarks(...lists) {
  const [x0, y0, x1, y1] = boxAround(lists.map(([list]) => boxOf(list)));
  clearMarks();
  if (x1 < x0) return;
  const picture = new ImageData(x1 - x0 + 1, y1 - y0 + 1);
  const pixels = new Uint32Array(picture.data.buffer);
  for (const [list, value] of lists) {
    for (const index of list) {
      const x = index % current.width, y = Math.floor(index / current.width);
      pixels[(y - y0) * picture.width + x - x0] = value;
    }
  }
  $("marks").getContext("2d").putImageData(picture, x0, y0);
}

function clearMarks() {
  $("marks").getContext("2d").clearRect(0, 0, $("marks").width, $("marks").height);
}

// The box of some pixels of the slice shown.
function boxOf(list) {
  const box = [Infinity, Infinity, -Infinity, -Infinity];
  for (const index of list) {
    const x = index % current.width, y = Math.floor(index / current.width);
    if (x < box[0]) box[0] = x;
    if (y < box[1]) box[1] = y;
    if (x > box[2]) box[2] = x;
    if (y > box[3]) box[3] = y;
  }
  return box;
}

// The box around boxes.
const boxAround = (boxes) => [0, 1, 2, 3].map((n) =>
  Math[n < 2 ? "min" : "max"](...boxes.map((box) => box[n])));

function place() {
  $("view").style.transform = `translate(${left}px, ${top_}px) scale(${zoom})`;
  placeCursor();
}

// Shows a box of the slice in the middle, at most at some zoom.
function frame([x0, y0, x1, y1], most = Infinity) {
  const { clientWidth: width, clientHeight: height } = $("stage");
  zoom = Math.min(width / (x1 - x0), height / (y1 - y0), most) || 1;
  left = width / 2 - zoom * (x0 + x1) / 2;
  top_ = height / 2 - zoom * (y0 + y1) / 2;
  place();
}

// Shows the whole slice.
function fit() {
  const { naturalWidth: width, naturalHeight: height } = $("under");
  if (width) frame([0, 0, width, height]);
}

// Zooms about a place of the stage.
function zoomBy(factor, x = $("stage").clientWidth / 2, y = $("stage").clientHeight / 2) {
  const whole = clamp(zoom * factor, 0.02, 64) / zoom;
  [left, top_, zoom] = [x - (x - left) * whole, y - (y - top_) * whole, zoom * whole];
  place();
}

// Does something to the corrections, then shows what has become of the slice shown.
function change(work) {
  const result = work();
  if (current) {
    remake(current);
    drawMask();
    if (asked !== null) markDecision();
    else clearMarks();
  }
  for (const [number, promise] of opened) {
    if (number !== shown || !current) promise.then((slice) => slice && remake(slice));
  }
  tellUnsaved();
  return result;
}

// Says how many slices are not saved, and whether the browser keeps them.
function tellUnsaved() {
  const count = DATA.slices.filter((slice) => isUnsaved(slice.name)).length;
  const slices = `${count} slice${count === 1 ? "" : "s"} with unsaved corrections`;
  $("unsaved").textContent = storageFails
    ? `${slices}; this browser keeps nothing: save before you close` : count ? slices : "";
  $("undo").disabled = !kept.log.length;
  $("redo").disabled = !undone.length;
  drawStrip();
}
