// SPDX-License-Identifier: Apache-2.0
'use strict';
// Random numbers that are read from the kernel when they are asked for. Nothing is kept, so nothing
// can be the same in two clones.

const crypto = require('node:crypto');
const fs = require('node:fs');
const { syncBuiltinESMExports } = require('node:module');

const MOST_BYTES = 2 ** 31 - 1;
const MOST_RANGE = 2 ** 48 - 1;

let device;

function fill(target, offset = 0, length = target.byteLength - offset) {
  device ??= fs.openSync('/dev/urandom', 'r');
  const start = (target.byteOffset ?? 0) + offset;
  const bytes = new Uint8Array(target.buffer ?? target, start, length);
  for (let done = 0; done < length; ) {
    done += fs.readSync(device, bytes, done, length - done, null);
  }
  return target;
}

const small = Buffer.alloc(8);

// 53 bits, as many as a number has.
function random() {
  fill(small);
  return ((small.readUInt32LE(0) >>> 5) * 2 ** 26 + (small.readUInt32LE(4) >>> 6)) / 2 ** 53;
}

function below(range) {
  const limit = 2 ** 48 - (2 ** 48 % range);
  for (;;) {
    fill(small, 0, 6);
    const number = small.readUIntLE(0, 6);
    if (number < limit) return number % range;
  }
}

// Each has the original, which is asked where an argument is wrong, so that errors stay the same.
const replaced = {
  randomBytes: (original) =>
    function randomBytes(size, callback) {
      const takes = callback === undefined || typeof callback === 'function';
      if (!takes || !Number.isInteger(size) || size < 0 || size > MOST_BYTES) {
        return original(size, callback);
      }
      const bytes = Buffer.alloc(size);
      if (callback === undefined) return fill(bytes);
      // Drawn when it is handed out: the machine may be cloned before that.
      setImmediate(() => callback(null, fill(bytes)));
      return undefined;
    },
  randomFillSync: (original) =>
    function randomFillSync(target, offset = 0, size) {
      original(target, offset, size);
      return overwrite(target, offset, size);
    },
  randomFill: (original) =>
    function randomFill(target, ...rest) {
      const callback = rest.pop();
      if (typeof callback !== 'function') return original(target, ...rest, callback);
      return original(target, ...rest, (error) => {
        if (error) callback(error);
        else callback(null, overwrite(target, ...rest));
      });
    },
  randomInt: (original) =>
    function randomInt(...given) {
      const callback = typeof given.at(-1) === 'function' ? given.at(-1) : undefined;
      const bounds = callback ? given.slice(0, -1) : given.filter((value) => value !== undefined);
      const [min, max] = bounds.length < 2 ? [0, bounds[0]] : bounds;
      const fits = Number.isSafeInteger(min) && Number.isSafeInteger(max);
      if (!fits || bounds.length > 2 || max <= min || max - min > MOST_RANGE) {
        return original(...given);
      }
      const draw = () => min + below(max - min);
      if (!callback) return draw();
      setImmediate(() => callback(undefined, draw()));
      return undefined;
    },
  randomUUID: (original) =>
    function randomUUID(options) {
      original(options);
      const bytes = fill(Buffer.alloc(16));
      bytes[6] = (bytes[6] & 0x0f) | 0x40;
      bytes[8] = (bytes[8] & 0x3f) | 0x80;
      return bytes.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
    },
  getRandomValues: (original) =>
    function getRandomValues(target) {
      original(target);
      return fill(target);
    },
};

// Offset and size count elements.
function overwrite(target, offset = 0, size) {
  const width = target.BYTES_PER_ELEMENT ?? 1;
  const start = offset * width;
  return fill(target, start, size === undefined ? target.byteLength - start : size * width);
}

function put(object, name, value) {
  Object.defineProperty(object, name, {
    value,
    configurable: true,
    enumerable: true,
    writable: true,
  });
}

// Replaces what this thread draws with from now on.
function replace() {
  if (Math.random === random) return;
  put(Math, 'random', random);
  for (const [name, make] of Object.entries(replaced)) {
    for (const object of new Set([crypto, crypto.webcrypto, globalThis.crypto])) {
      // The module's getRandomValues, which cannot be replaced, calls that of webcrypto each time.
      const fixed = object && Object.getOwnPropertyDescriptor(object, name)?.configurable === false;
      if (!object || !(name in object) || fixed) continue;
      put(object, name, make(object[name].bind(object)));
    }
  }
  // What `import { randomBytes } from 'node:crypto'` has.
  syncBuiltinESMExports();
}

module.exports = { replace };
