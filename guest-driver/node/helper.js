// SPDX-License-Identifier: Apache-2.0
'use strict';
// A thread that talks to `sysgenctl participate`. The program's own thread stands still while it is
// parked: this one wakes it.

const { spawn } = require('node:child_process');
const readline = require('node:readline');
const { workerData } = require('node:worker_threads');
const { STATE, ROLE, GENERATION, GOES_ON, GONE, ORIGINAL, CLONE } = require('./words.js');

const { command, port, words } = workerData;
// The request that the program stands still for, and the generation it knew then.
let parked = 0;
let known;
let calledOff = 0;
let gone = false;

function goOn(role, state = GOES_ON) {
  parked = 0;
  Atomics.store(words, ROLE, role);
  Atomics.store(words, STATE, state);
  Atomics.notify(words, STATE);
}

// A program that was slow to come to rest may be in a clone by then.
function present() {
  return Atomics.load(words, GENERATION) === known ? ORIGINAL : CLONE;
}

const events = {
  ready(event) {
    port.postMessage(event);
    goOn(ORIGINAL);
  },
  pending: (event) => port.postMessage(event),
  generation: (event) => port.postMessage(event),
  'called-off'(event) {
    calledOff = Math.max(calledOff, event.request);
    port.postMessage(event);
    if (parked && parked <= calledOff) goOn(present());
  },
  forked: (event) => goOn(event.role === 'clone' ? CLONE : present()),
};

function end(why) {
  if (gone) return;
  gone = true;
  port.postMessage({ event: 'gone', why });
  // Nobody knows any more. A clone that is taken for the original is worse.
  goOn(CLONE, GONE);
  port.unref();
}

// Whatever it is: a program that stands still must go on.
process.on('uncaughtException', (error) => end(error.message));

const child = spawn(command[0], [...command.slice(1), 'participate'], {
  stdio: ['pipe', 'pipe', 'inherit'],
});
child.on('error', (error) => end(error.message));
child.on('close', (status) => end(`it ended with status ${status}`));
child.stdin.on('error', () => {});
readline.createInterface({ input: child.stdout }).on('line', (line) => {
  const event = JSON.parse(line);
  if (event.generation !== undefined) Atomics.store(words, GENERATION, event.generation);
  events[event.event]?.(event);
});

port.on('message', ({ answer, number, generation }) => {
  if (gone) return;
  if (answer === 'parked') {
    known = generation;
    if (number <= calledOff) {
      goOn(present());
      return;
    }
    parked = number;
  }
  child.stdin.write(`${answer} ${number}\n`);
});
