// SPDX-License-Identifier: Apache-2.0
'use strict';
// A thread that talks to `sysgenctl participate`. The program's own thread stands still while it is
// parked: this one wakes it.

const { spawn } = require('node:child_process');
const readline = require('node:readline');
const { workerData } = require('node:worker_threads');
const { STATE, ROLE, GENERATION, GOES_ON, ORIGINAL, CLONE } = require('./words.js');

const { command, port, words } = workerData;
let parked = 0;
let calledOff = 0;
let started = false;
let gone = false;

function goOn(role) {
  parked = 0;
  Atomics.store(words, ROLE, role);
  Atomics.store(words, STATE, GOES_ON);
  Atomics.notify(words, STATE);
}

const events = {
  ready(event) {
    started = true;
    port.postMessage(event);
    goOn(ORIGINAL);
  },
  pending: (event) => port.postMessage(event),
  generation: (event) => port.postMessage(event),
  'called-off'(event) {
    calledOff = event.request;
    port.postMessage(event);
    if (parked === calledOff) goOn(ORIGINAL);
  },
  forked: (event) => goOn(event.role === 'clone' ? CLONE : ORIGINAL),
};

function end(why) {
  if (gone) return;
  gone = true;
  port.postMessage({ event: 'gone', why });
  if (parked || !started) goOn(ORIGINAL);
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

port.on('message', ({ answer, number }) => {
  if (answer === 'parked') {
    if (gone || calledOff === number) {
      goOn(ORIGINAL);
      return;
    }
    parked = number;
  }
  child.stdin.write(`${answer} ${number}\n`);
});
