"use strict";
// Writes grey PNGs.

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

// The checksum that PNG and ZIP have.
function crc32(bytes) {
  let sum = 0xffffffff;
  for (const byte of bytes) sum = CRC_TABLE[(sum ^ byte) & 255] ^ (sum >>> 8);
  return (sum ^ 0xffffffff) >>> 0;
}

// A chunk of a PNG: length, name, content, checksum.
function pngChunk(name, content) {
  const chunk = new Uint8Array(content.length + 12), view = new DataView(chunk.buffer);
  view.setUint32(0, content.length);
  chunk.set(new TextEncoder().encode(name), 4);
  chunk.set(content, 8);
  view.setUint32(content.length + 8, crc32(chunk.subarray(4, content.length + 8)));
  return chunk;
}

// The bytes of an 8-bit grey PNG.
async function encodePng(grey, { width, height }) {
  const header = new Uint8Array(13), view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header[8] = 8;  // bits; the zeros after it: grey, deflate, no interlace
  const rows = new Uint8Array((width + 1) * height);  // each after a zero: not filtered
  for (let y = 0; y < height; y++) {
    rows.set(grey.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
  }
  const packed = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const content = new Uint8Array(await new Response(packed).arrayBuffer());
  const signature = Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10);
  const chunks = [["IHDR", header], ["IDAT", content], ["IEND", new Uint8Array(0)]];
  return new Uint8Array(await new Blob(
    [signature, ...chunks.map((chunk) => pngChunk(...chunk))]).arrayBuffer());
}
