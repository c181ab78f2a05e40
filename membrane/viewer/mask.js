"use strict";
// Masks: a byte a pixel, row by row, 255 = cell interior, 0 = membrane. Cells are connected by the
// sides of their pixels. predict.py --corrections repeats all of this bit for bit.

const VALUES = { join: 255, cell: 255, separate: 0, membrane: 0 };  // of the kinds of operations

const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

// Calls use(index) for each pixel within size / 2 of the line through the points.
function eachOnStroke({ points, size }, { width, height }, use) {
  const reach = Math.ceil(size / 2);
  for (let n = Math.min(1, points.length - 1); n < points.length; n++) {
    const [px, py] = points[Math.max(0, n - 1)], [qx, qy] = points[n];
    const dx = qx - px, dy = qy - py, dd = dx * dx + dy * dy, limit = size * size * (dd || 1);
    const left = Math.max(0, Math.min(px, qx) - reach);
    const right = Math.min(width - 1, Math.max(px, qx) + reach);
    const bottom = Math.min(height - 1, Math.max(py, qy) + reach);
    for (let y = Math.max(0, Math.min(py, qy) - reach); y <= bottom; y++) {
      for (let x = left; x <= right; x++) {
        const wx = x - px, wy = y - py, along = wx * dx + wy * dy, t = clamp(along, 0, dd);
        const off = (wx * wx + wy * wy) * (dd || 1) - 2 * t * along + t * t;
        if (4 * off <= limit) use(y * width + x);
      }
    }
  }
}

// Calls use(index) for each pixel that an operation changes.
function eachChanged(operation, size, use) {
  if (operation.points) eachOnStroke(operation, size, use);
  else operation.pixels?.forEach((index) => use(index));
}

// Applies an operation to a mask.
function applyOperation(operation, mask, size) {
  const value = VALUES[operation.kind];  // that of "leave" is none
  if (value !== undefined) eachChanged(operation, size, (index) => { mask[index] = value; });
}

// Grows the cells of some pixels [x, y] at one pace, up to a barrier of indices. Returns whose each
// pixel is, 0 = nobody's, and the indices of all that are somebody's.
function growCells(mask, seeds, { width, height }, barrier = []) {
  const owner = new Uint8Array(mask.length), found = [];
  for (const index of barrier) owner[index] = 255;
  const visit = (index, who) => {
    if (!mask[index] || owner[index]) return;
    owner[index] = who;
    found.push(index);
  };
  seeds.forEach(([x, y], n) => visit(y * width + x, n + 1));
  for (let n = 0; n < found.length; n++) {
    const index = found[n], who = owner[index], x = index % width;
    if (x > 0) visit(index - 1, who);
    if (x < width - 1) visit(index + 1, who);
    if (index >= width) visit(index - width, who);
    if (index < width * (height - 1)) visit(index + width, who);
  }
  for (const index of barrier) owner[index] = 0;
  return { owner, found };
}

// The operation that splits a cell: the part of a thin stroke in the cell where it begins.
function splitAlong(points, mask, size) {
  const line = [];
  eachOnStroke({ points, size: 1 }, size, (index) => line.push(index));
  const place = (index) => [index % size.width, Math.floor(index / size.width)];
  const from = ([x, y]) => (x - points[0][0]) ** 2 + (y - points[0][1]) ** 2;
  const inside = line.filter((index) => mask[index]).map(place);
  if (!inside.length) return null;
  const first = inside.reduce((best, one) => from(one) < from(best) ? one : best);
  const { owner } = growCells(mask, [first], size);
  return { kind: "membrane", pixels: [...new Set(line.filter((index) => owner[index]))] };
}

// How many cells touch some pixels.
function countCells(pixels, mask, size) {
  let count = 0;
  const seen = new Uint8Array(mask.length);
  const beside = (i) => [i % size.width ? i - 1 : -1, (i + 1) % size.width ? i + 1 : -1,
    i - size.width, i + size.width];
  for (const index of pixels.flatMap(beside)) {
    if (!mask[index] || seen[index]) continue;
    count++;
    const seed = [index % size.width, Math.floor(index / size.width)];
    for (const other of growCells(mask, [seed], size).found) seen[other] = 1;
  }
  return count;
}

// Which pixels are at most `reach` from one that an operation is about: 1, the others 0.
function findNear(operations, { width, height }, reach) {
  const down = new Float64Array(width * height).fill(Infinity);  // px to the nearest in the column
  for (const operation of operations) {
    eachChanged(operation, { width, height }, (index) => { down[index] = 0; });
    if (operation.at) down[operation.at[1] * width + operation.at[0]] = 0;
  }
  for (let i = width; i < down.length; i++) down[i] = Math.min(down[i], down[i - width] + 1);
  for (let i = down.length - width - 1; i >= 0; i--) {
    down[i] = Math.min(down[i], down[i + width] + 1);
  }
  const near = new Uint8Array(down.length);
  for (let y = 0; y < height; y++) {
    const change = new Int32Array(width + 1);  // of the number of columns that reach a pixel
    for (let x = 0; x < width; x++) {
      const far = down[y * width + x];
      if (far > reach) continue;
      const across = Math.floor(Math.sqrt(reach * reach - far * far));
      change[Math.max(0, x - across)]++;
      change[Math.min(width, x + across + 1)]--;
    }
    for (let x = 0, open = 0; x < width; x++) {
      open += change[x];
      near[y * width + x] = open > 0 ? 1 : 0;
    }
  }
  return near;
}
