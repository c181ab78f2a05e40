"use strict";
// What the pointer does: look, paint membrane or cell, split, merge.

const HINTS = {  // by tool
  look: "drag: move · click: what is known of a cell · n: next decision · ?: all keys",
  membrane: "paint membrane · [ and ]: size · Shift and click: a straight line",
  cell: "paint cell interior · [ and ]: size · Shift and click: a straight line",
  split: "draw a line across a cell, from membrane to membrane",
  merge: "drag from one cell into another",
};
const TOOLS = Object.keys(HINTS), MERGE_SIZE = 3;  // px
let tool = "look", spaceHeld = false;
let stroke = null;  // the points of what is being drawn
let last = null;  // the last point, from which Shift draws a line
let pressed = null;  // the pointer that is down: of two fingers, or a pen and a palm, the first
let moved = null;  // how far the pointer has moved the slice since it was pressed, px
let cursor = null;  // the pixel under the cursor of the brush
let byKeys = false;  // whether the keys moved it

const brushSize = () => ({ split: 1, merge: MERGE_SIZE })[tool] ?? Number($("size").value);

// The pixel [x, y] under the pointer; it may lie outside.
function pixelAt(event) {
  const box = $("stage").getBoundingClientRect();
  return [Math.floor((event.clientX - box.left - left) / zoom),
    Math.floor((event.clientY - box.top - top_) / zoom)];
}

const isInside = ([x, y]) =>
  current !== null && x >= 0 && y >= 0 && x < current.width && y < current.height;
const keepInside = ([x, y]) => [clamp(x, 0, current.width - 1), clamp(y, 0, current.height - 1)];
const indexOf = ([x, y]) => y * current.width + x;

function chooseTool(wanted) {
  dropStroke();
  tool = wanted;
  last = null;
  for (const button of $("tools").children) {
    button.setAttribute("aria-pressed", button.dataset.tool === tool);
  }
  $("stage").classList.toggle("drawing", tool !== "look");
  if (tool === "look") cursor = null;
  placeCursor();
  if (asked === null) say(HINTS[tool]);
  if (tool === "look") return;
  if (broken.has(shown) || !DATA.slices[shown].editable) canEdit();
  else if (LAYERS[layer][1] !== "mask") show(shown, "overlay");
}

// Whether the slice shown can be corrected; says so where it cannot.
function canEdit() {
  if (current) return true;
  if (!DATA.slices[shown].editable || !DATA.key) {
    say("This slice can only be looked at: it is of a volume, thinned, or was not predicted here.");
  } else if (broken.has(shown)) {
    say("This slice can only be looked at: about/page is incomplete, or the browser hides pixels.");
  } else say("The mask of this slice is being read.");
  return false;
}

function setSize(size) {
  $("size").value = size;
  $("pixels").textContent = $("size").value;
  placeCursor();
}

// Puts the ring of the brush around its pixel.
function placeCursor() {
  const ring = $("cursor");
  ring.hidden = !cursor || tool === "look";
  if (ring.hidden) return;
  const side = Math.max(brushSize() * zoom, 4);
  ring.style.width = ring.style.height = `${side}px`;
  ring.style.left = `${left + zoom * (cursor[0] + 0.5)}px`;
  ring.style.top = `${top_ + zoom * (cursor[1] + 0.5)}px`;
  ring.classList.toggle("cross", byKeys);
}

// Draws on from the last point of the stroke to another, for now.
function drawOn(point) {
  if (String(stroke.at(-1)) === String(point)) return;
  stroke.push(point);
  if (tool === "membrane" || tool === "cell") drawPart(stroke.slice(-2));
  else showLine(tool === "merge" ? [stroke[0], point] : stroke);
}

// Paints a part of a stroke.
function drawPart(points) {
  const size = brushSize(), [x0, y0, x1, y1] = boxAround(points.map(([x, y]) => [x, y, x, y]));
  applyOperation({ kind: tool, size, points }, current.now, current);
  drawMask([...keepInside([x0 - size, y0 - size]), ...keepInside([x1 + size, y1 + size])]);
}

// Shows the line along which is split or merged.
function showLine(points) {
  const line = [];
  eachOnStroke({ points, size: brushSize() }, current, (index) => line.push(index));
  drawMarks([line, colour(BRIGHT, 230)]);
}

function beginStroke(point) {
  stroke = [point];
  if (tool === "membrane" || tool === "cell") drawPart(stroke);
  else showLine(stroke);
}

// Forgets a stroke that is not finished.
function dropStroke() {
  if (!stroke) return;
  stroke = null;
  if (current) change(() => {});
}

// Makes an operation of what was drawn.
function endStroke() {
  const points = stroke, size = brushSize();
  stroke = null;
  last = points.at(-1);
  let operation = { kind: tool, size, points };
  change(() => {});  // what follows asks for the mask without the stroke
  if (tool === "split") operation = makeSplit(points);
  if (tool === "merge") operation = makeMerge(points[0], last);
  if (operation) change(() => addOperation(DATA.slices[shown].name, operation));
}

// The operation that splits a cell, or nothing.
function makeSplit(points) {
  const operation = splitAlong(points, current.now, current);
  if (!operation) {
    say("The line lies on membrane: draw it across a cell.");
    return null;
  }
  const after = current.now.slice();
  applyOperation(operation, after, current);
  const count = countCells(operation.pixels, after, current);
  say(count > 1 ? `Split into ${count} cells.` : "Still one cell: draw from membrane to membrane.");
  return operation;
}

// The operation that merges the cells of two pixels, or nothing.
function makeMerge(from, to) {
  const inCells = current.now[indexOf(from)] && current.now[indexOf(to)];
  const { owner } = growCells(current.now, [from], current);
  const line = [];
  eachOnStroke({ points: [from, to], size: MERGE_SIZE }, current, (index) => line.push(index));
  const inside = line.filter((index) => current.now[index]);
  if (inCells && countCells(inside, current.now, current) > 2) {
    say("That line crosses a third cell: drag straight from one into the other.");
    return null;
  }
  if (inCells && !owner[indexOf(to)]) {
    say("Merged.");
    return { kind: "cell", size: MERGE_SIZE, points: [from, to] };
  }
  say(inCells ? "That is one cell already." : "Drag from one cell into another.");
  return null;
}

// Uses the tool at a pixel, or up to it from the last point.
function paintAt(point, straight) {
  beginStroke(straight && last ? last : point);
  drawOn(point);
}

// Does at the cursor what the pointer does when it is pressed and released.
function paintAtCursor(straight) {
  if (tool === "look" || !cursor || !canEdit() || !isInside(cursor)) return;
  if (tool === "membrane" || tool === "cell") paintAt(cursor, straight);
  else if (!stroke) {
    beginStroke(cursor);
    say("Move to the other end and press p.");
    return;
  } else drawOn(cursor);
  endStroke();
}

// Moves the cursor by keys.
function moveCursor(dx, dy) {
  if (!canEdit()) return;
  const { clientWidth: width, clientHeight: height } = $("stage");
  const middle = [Math.floor((width / 2 - left) / zoom), Math.floor((height / 2 - top_) / zoom)];
  const [x, y] = cursor ?? middle;
  cursor = keepInside(cursor ? [x + dx, y + dy] : [x, y]);
  byKeys = true;
  const seen = [left + zoom * cursor[0], top_ + zoom * cursor[1]];
  left += clamp(seen[0], 20, width - 20) - seen[0];
  top_ += clamp(seen[1], 20, height - 20) - seen[1];
  place();
}

// Tells about a cell: what is known of it, and the cells over it in the slices before and after.
async function tellCell(point) {
  if (!isInside(point)) {
    if (!current) canEdit();
    return;
  }
  if (asked !== null) return;
  if (!current.now[indexOf(point)]) {
    clearMarks();
    say("Membrane.");
    return;
  }
  const here = current, { owner, found } = growCells(here.now, [point], here);
  drawMarks([found, colour(SIDES[0], 110)]);
  const own = here.cells.filter(([x, y]) => owner[y * here.width + x]);
  const area = own.reduce((sum, cell) => sum + cell[2], 0);
  const mean = own.reduce((sum, cell) => sum + cell[2] * cell[3], 0) / area;
  const text = `${nameCell(here, owner)}: ${found.length} px` +
    (area ? `, mean P(interior) ${mean.toFixed(2)}` : "");
  say(text);
  const over = [];
  for (const [n, word] of [[-1, "before"], [1, "after"]].map(
    ([side, word]) => [findBeside(here.number, side), word])) {
    const other = DATA.slices[n] && await openSlice(n);
    if (other) over.push(`${word}: ${describeOver(found, other, here)}`);
  }
  if (current === here && $("status").textContent === text) say([text, ...over].join(" · "));
}

// What to call a cell.
function nameCell({ objects, width }, owner) {
  const numbers = new Set(objects.filter(([x, y]) => owner[y * width + x]).map((one) => one[2]));
  return numbers.size ? `cell ${[...numbers].join(" and ")}` : "cell";
}

// The cell of another slice that most of some pixels lie on.
function describeOver(pixels, other, here) {
  if (other.width !== here.width || other.height !== here.height) return "another size";
  const rest = new Set(pixels.filter((index) => other.now[index]));
  let best = null;
  while (rest.size > (best?.shared ?? 0)) {
    const index = rest.values().next().value, x = index % here.width;
    const cell = growCells(other.now, [[x, (index - x) / here.width]], other), before = rest.size;
    for (const one of cell.found) rest.delete(one);
    const shared = before - rest.size;
    if (!best || shared > best.shared) best = { ...cell, shared };
  }
  return best ? `${nameCell(other, best.owner)}, ${best.found.length} px` : "membrane";
}

function listenToPointer() {
  const stage = $("stage");
  stage.onwheel = (event) => {
    event.preventDefault();
    const box = stage.getBoundingClientRect();
    zoomBy(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
  };
  stage.onpointerdown = (event) => {
    if (event.button > 1 || pressed !== null) return;
    pressed = event.pointerId;
    event.preventDefault();
    document.activeElement?.blur();
    stage.setPointerCapture(event.pointerId);
    const moves = tool === "look" || event.button === 1 || spaceHeld;
    if (moves) {
      moved = 0;
      stage.classList.add("moving");
    } else if (canEdit() && isInside(pixelAt(event))) paintAt(pixelAt(event), event.shiftKey);
  };
  stage.onpointermove = (event) => {
    if (pressed !== null && event.pointerId !== pressed) return;
    if (moved !== null) {
      moved += Math.abs(event.movementX) + Math.abs(event.movementY);
      [left, top_] = [left + event.movementX, top_ + event.movementY];
      place();
    }
    [cursor, byKeys] = [tool === "look" ? null : pixelAt(event), false];
    placeCursor();
    if (!stroke || !event.buttons) return;
    const steps = event.getCoalescedEvents?.() ?? [];
    for (const one of steps.length ? steps : [event]) drawOn(keepInside(pixelAt(one)));
  };
  stage.onpointerup = (event) => {
    if (event.pointerId !== pressed) return;
    pressed = null;
    stage.classList.remove("moving");
    const click = moved !== null && moved < 5 && event.button === 0 && !spaceHeld;
    if (moved === null && stroke) endStroke();
    moved = null;
    if (click && tool === "look") tellCell(pixelAt(event));
  };
  stage.onpointercancel = stage.onlostpointercapture = (event) => {
    if (event.pointerId !== pressed) return;
    pressed = moved = null;
    dropStroke();
  };
  stage.onpointerleave = () => {
    if (!byKeys && !stroke) cursor = null;
    placeCursor();
  };
  stage.ondblclick = () => { if (tool === "look") fit(); };
  for (const image of [$("under"), $("over")]) image.ondragstart = () => false;
}
