// SPDX-License-Identifier: Apache-2.0
'use strict';
// Draws random numbers all the time, and shows 1,000 of each kind when it is told to.
//
//     draws.js [--cure] TRIGGER OUTPUT
//
// With --cure it takes part when its machine is cloned. When the file TRIGGER exists, it writes
// OUTPUT, a line "NAME HEX" for each number, and ends.
//
// In clones of one machine all of these numbers differ with --cure. Without it they are those of the
// original, from where each clone has come to. To see them equal one by one, make the file
// TRIGGER.hold before the snapshot: the program says "held", and draws nothing until TRIGGER is
// there.

const crypto = require('node:crypto');
const fs = require('node:fs');

const COUNT = 1000;
const PAUSE_MS = 2;

const given = process.argv.slice(2);
const cure = given[0] === '--cure' && Boolean(given.shift());
const [trigger, output] = given;
if (given.length !== 2) {
  console.error('usage: draws.js [--cure] TRIGGER OUTPUT');
  process.exit(2);
}

function double(number) {
  const bytes = Buffer.alloc(8);
  bytes.writeDoubleBE(number);
  return bytes.toString('hex');
}

// Each draws from the functions as they are at the time.
const kinds = {
  'math-random': () => double(Math.random()),
  'random-bytes': () => crypto.randomBytes(8).toString('hex'),
  'random-int': () => crypto.randomInt(2 ** 48 - 1).toString(16).padStart(12, '0'),
  'random-uuid': () => crypto.randomUUID().replaceAll('-', ''),
  'random-values': () => {
    const bytes = crypto.webcrypto.getRandomValues(new Uint8Array(8));
    return Buffer.from(bytes).toString('hex');
  },
};

function show() {
  const lines = [];
  for (const [name, draw] of Object.entries(kinds)) {
    for (let n = 0; n < COUNT; n++) lines.push(`${name} ${draw()}\n`);
  }
  fs.writeFileSync(`${output}.unfinished`, lines.join(''));
  fs.renameSync(`${output}.unfinished`, output);
}

let held = false;

// Draws and pauses for an instant, so that a snapshot comes anywhere in it.
function turn() {
  if (fs.existsSync(trigger)) {
    show();
    return;
  }
  if (fs.existsSync(`${trigger}.hold`)) {
    if (!held) console.log('held');
    held = true;
    setTimeout(turn, 50);
    return;
  }
  for (const draw of Object.values(kinds)) draw();
  setTimeout(turn, PAUSE_MS);
}

for (const draw of Object.values(kinds)) draw();
if (cure) require('sysgenid').install();
console.log('warm:', ...Object.keys(kinds));
turn();
