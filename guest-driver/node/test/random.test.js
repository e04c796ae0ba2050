// SPDX-License-Identifier: Apache-2.0
'use strict';
const assert = require('node:assert/strict');
const { spawnSync } = require('node:child_process');
const crypto = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const { test } = require('node:test');
const { replace } = require('../random.js');

const { getRandomValues: web, randomUUID: uuid } = crypto.webcrypto;
const originals = { ...crypto, web, uuid };
replace();

// A process whose V8 has a chosen seed: two of them are like two clones.
function draw(code) {
  const random = JSON.stringify(path.join(__dirname, '../random.js'));
  const { stdout } = spawnSync(process.execPath, ['--random-seed=7', '-e', code], {
    env: { ...process.env, RANDOM: random },
  });
  return stdout.toString();
}

test('Math.random differs where V8 has the same state, and the control is equal', () => {
  const show = 'console.log(Math.random(), Math.random())';
  const stale = draw(show);
  assert.equal(draw(show), stale);
  const cured = `require(JSON.parse(process.env.RANDOM)).replace(); ${show}`;
  const drawn = [draw(cured), draw(cured), stale];
  assert.equal(new Set(drawn).size, 3);
});

test('Math.random is spread over [0, 1)', () => {
  const counts = new Array(16).fill(0);
  for (let n = 0; n < 16_000; n++) counts[Math.floor(Math.random() * 16)]++;
  assert.equal(counts.length, 16);
  // Sixteen deviations: no chance at all.
  for (const count of counts) assert.ok(Math.abs(count - 1000) < 16 * 31, `${counts}`);
});

test('every function of node:crypto that draws is another one, also as import', async () => {
  const names = ['randomBytes', 'randomFill', 'randomFillSync', 'randomInt', 'randomUUID'];
  const imported = await import('node:crypto');
  for (const name of names) {
    assert.notEqual(crypto[name], originals[name], name);
    assert.equal(imported[name], crypto[name], name);
  }
  const web = crypto.webcrypto;
  assert.notEqual(web.getRandomValues, originals.web);
  assert.notEqual(web.randomUUID, originals.uuid);
  if (globalThis.crypto) assert.equal(globalThis.crypto.randomUUID, web.randomUUID);
});

test('getRandomValues of the module follows that of webcrypto', () => {
  const web = crypto.webcrypto;
  const own = web.getRandomValues;
  web.getRandomValues = (target) => target.fill(7);
  assert.deepEqual([...crypto.getRandomValues(new Uint8Array(2))], [7, 7]);
  web.getRandomValues = own;
  assert.equal(crypto.getRandomValues(new Uint8Array(64)).length, 64);
});

test('bytes are as many as asked for', async () => {
  assert.equal(crypto.randomBytes(0).length, 0);
  assert.equal(crypto.randomBytes(70_000).length, 70_000);
  assert.notDeepEqual(crypto.randomBytes(16), crypto.randomBytes(16));
  const later = await new Promise((done) => crypto.randomBytes(5, (_, bytes) => done(bytes)));
  assert.equal(later.length, 5);
});

test('what is asked for with a callback is drawn when it is handed out', async () => {
  const { readSync } = fs;
  let reads = 0;
  fs.readSync = (...given) => {
    reads++;
    return readSync(...given);
  };
  try {
    for (const ask of [
      (done) => crypto.randomBytes(8, done),
      (done) => crypto.randomInt(9, done),
      (done) => crypto.randomFill(Buffer.alloc(8), done),
    ]) {
      const handed = new Promise((done) => ask(() => done(reads)));
      assert.equal(reads, 0, 'a fork may come here');
      assert.equal(await handed, 1);
      reads = 0;
    }
  } finally {
    fs.readSync = readSync;
  }
});

test('only the part that was asked for is filled', async () => {
  const words = new Uint32Array(8);
  assert.equal(crypto.randomFillSync(words, 2, 3), words);
  const set = [...words].map((word) => word !== 0);
  assert.deepEqual(set, [false, false, true, true, true, false, false, false]);
  const bytes = await new Promise((done) => {
    crypto.randomFill(Buffer.alloc(64), 32, (_, filled) => done(filled));
  });
  assert.ok(bytes.subarray(0, 32).every((byte) => byte === 0));
  assert.ok(bytes.subarray(32).some((byte) => byte !== 0));
  assert.ok(new Uint8Array(crypto.randomFillSync(new ArrayBuffer(64))).some((byte) => byte));
});

test('integers are in their range and reach its ends', async () => {
  const seen = new Set();
  for (let n = 0; n < 500; n++) seen.add(crypto.randomInt(-1, 3));
  assert.deepEqual([...seen].sort((a, b) => a - b), [-1, 0, 1, 2]);
  assert.equal(crypto.randomInt(1), 0);
  assert.ok(crypto.randomInt(2 ** 48 - 1) < 2 ** 48);
  const later = await new Promise((done) => crypto.randomInt(1, (_, number) => done(number)));
  assert.equal(later, 0);
});

test('UUIDs are of version 4', () => {
  const form = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;
  const made = Array.from({ length: 100 }, () => crypto.randomUUID());
  for (const uuid of made) assert.match(uuid, form);
  assert.equal(new Set(made).size, 100);
});

test('wrong arguments are refused as ever', () => {
  assert.throws(() => crypto.randomBytes(-1), { code: 'ERR_OUT_OF_RANGE' });
  assert.throws(() => crypto.randomBytes('1'), { code: 'ERR_INVALID_ARG_TYPE' });
  assert.throws(() => crypto.randomBytes(1, 2), { code: 'ERR_INVALID_ARG_TYPE' });
  assert.throws(() => crypto.randomInt(3, 3), { code: 'ERR_OUT_OF_RANGE' });
  assert.throws(() => crypto.randomInt(2 ** 50), { code: 'ERR_OUT_OF_RANGE' });
  assert.throws(() => crypto.randomFillSync(new Uint8Array(4), 5), { code: 'ERR_OUT_OF_RANGE' });
  assert.throws(() => crypto.randomFill(new Uint8Array(4)), { code: 'ERR_INVALID_ARG_TYPE' });
  assert.throws(() => crypto.randomUUID(7), { code: 'ERR_INVALID_ARG_TYPE' });
  const web = crypto.webcrypto;
  assert.throws(() => web.getRandomValues(new Float64Array(1)), { name: 'TypeMismatchError' });
  assert.throws(() => web.getRandomValues(new Uint8Array(65_537)), { name: 'QuotaExceededError' });
});
