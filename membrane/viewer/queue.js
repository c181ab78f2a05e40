"use strict";
// Decisions about borders, those first that are most worth a look.

const AROUND = 80, CLOSEST = 6;  // px around a border that are shown; zoom
let going = 0;  // how often the queue was entered or left: what loads meanwhile is not asked
let asked = null;  // the number of the decision, on the slice shown, that is to be taken
const broken = new Set();  // numbers of slices that cannot be opened

// The open decision of the highest gain: the numbers of its slice and its own.
function findNext() {
  let best = null;
  DATA.slices.forEach((slice, number) => {
    if (broken.has(number)) return;
    for (const decision of openDecisions(slice)) {
      if (!best || slice.gains[decision] > best.gain) {
        best = { number, decision, gain: slice.gains[decision] };
      }
    }
  });
  return best;
}

async function goToNext() {
  const next = findNext();
  if (!next) {
    leaveQueue();
    clearMarks();
    say("No decision is open.");
  } else await goTo(next.number, next.decision);
}

// Shows a decision.
async function goTo(number, decision) {
  asked = null;
  show(number);
  const mine = ++going, slice = await openShown();
  await $("under").decode().catch(() => {});  // else the slice before would still be seen
  if (mine !== going) return;
  if (!slice?.decisions[decision]) {
    broken.add(number);
    await goToNext();
    return;
  }
  dropStroke();
  asked = decision;
  if (LAYERS[layer][1] !== "mask") show(number, "overlay");
  $("decision").hidden = false;
  frameDecision();
  markDecision();
  const following = findNext();  // most often that after this; to have it at hand
  if (following && following.number !== number) {
    openSlice(following.number);
    new Image().src = picturePath(DATA.slices[following.number], "slice");
  }
}

// Where a decision is: its border's box and what is around it.
function decisionBox() {
  const { pixels, at: [x, y] } = current.decisions[asked];
  const box = boxOf(pixels.length ? pixels : [y * current.width + x]);
  return [box[0] - AROUND, box[1] - AROUND, box[2] + 1 + AROUND, box[3] + 1 + AROUND];
}

// Shows a decision in the middle, and its place in the slices before and after.
function frameDecision() {
  const box = decisionBox();
  frame(box, CLOSEST);
  drawNeighbour($("earlier"), DATA.slices[findBeside(shown, -1)], box);
  drawNeighbour($("later"), DATA.slices[findBeside(shown, 1)], box);
}

// Draws a place of a slice.
function drawNeighbour(canvas, slice, [x0, y0, x1, y1]) {
  const context = canvas.getContext("2d"), image = new Image(), side = canvas.width;
  context.clearRect(0, 0, side, side);
  canvas.parentElement.hidden = !slice;
  if (!slice) return;
  const scale = side / Math.max(x1 - x0, y1 - y0);
  canvas.wanted = image;  // a later one may be ready earlier
  image.onload = () => {
    if (canvas.wanted !== image) return;
    context.imageSmoothingEnabled = scale < 1;
    context.setTransform(scale, 0, 0, scale, side / 2 - scale * (x0 + x1) / 2,
      side / 2 - scale * (y0 + y1) / 2);
    context.drawImage(image, 0, 0);
    context.setTransform(1, 0, 0, 1, 0, 0);
  };
  image.src = picturePath(slice, "slice");
}

const isJoined = ({ pixels }) => pixels.some((index) => current.now[index]);

// Tints the two sides of a decision, draws its border, and says what it is about.
function markDecision() {
  const decision = current.decisions[asked];
  const { owner, found } = growCells(current.now, decision.sides, current, decision.pixels);
  drawMarks(...SIDES.map((tint, n) =>
    [found.filter((index) => owner[index] === n + 1), colour(tint, 110)]),
  [decision.pixels, colour(BRIGHT, 255)]);
  const { number, count, share } = measureProgress();
  say(`decision ${number} of ${count}: ${isJoined(decision) ? "joined" : "separate"} now, ` +
    `${decision.length} px of border, smaller side ${decision.smaller} px · ` +
    `${Math.round(100 * share)} % of the likely error is behind you, ${count - number} left`);
}

// Which of how many decisions is asked, and the share of the gain of all that is taken.
function measureProgress() {
  const slices = editableSlices().filter((slice) => slice.gains);
  const add = (list) => list.reduce((sum, value) => sum + value, 0);
  const all = add(slices.map((slice) => add(slice.gains)));
  const count = add(slices.map((slice) => slice.gains.length));
  const open = add(slices.map((slice) => openDecisions(slice).length));
  const share = all ? 1 - add(slices.map(openGain)) / all : 1;
  return { number: Math.min(count, count - open + 1), count, share };
}

// Takes the decision: "join", "separate" or "leave".
function decide(kind) {
  if (asked === null) {
    say("No decision is shown: press n for the next.");
    return;
  }
  const operation = makeOperation(kind, current.decisions[asked]), decision = asked;
  asked = null;
  change(() => addOperation(DATA.slices[shown].name, operation, decision));
  goToNext();
}

// The operation that a decision is. It is one, too, where the mask has it so already: another
// model's may have it otherwise. Two that are one cell already have no pixels to join: some may be
// of a border that was separated since.
function makeOperation(kind, { at, sides, pixels, joined }) {
  if (kind === "leave") return { kind, at, sides };
  const asPredicted = joined === (kind === "join");
  if (asPredicted && isJoined({ pixels }) !== joined) {  // painted over: painted again
    return { kind: joined ? "cell" : "membrane", pixels };
  }
  return { kind, at, sides, pixels: asPredicted && joined ? [] : pixels };
}

// Takes back the decision before, and asks it again.
function goBack() {
  const entry = change(() => takeBack((one) => one.decision !== undefined));
  if (entry) goToChanged(entry);
  else say("There is no decision before.");
}

// Shows where an operation was taken back or made again.
function goToChanged(entry, ask = true) {
  const number = DATA.slices.findIndex((slice) => slice.name === entry.slice);
  if (ask && entry.decision !== undefined) goTo(number, entry.decision);
  else if (number !== shown) show(number);
}

function leaveQueue() {
  going++;
  asked = null;
  $("decision").hidden = true;
}
