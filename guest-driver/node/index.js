// SPDX-License-Identifier: Apache-2.0
'use strict';
// This process takes part when its virtual machine is snapshotted, cloned or restored. README.md
// says what that makes safe, and what it cannot.

const http = require('node:http');
const https = require('node:https');
const path = require('node:path');
const { MessageChannel, Worker, receiveMessageOnPort } = require('node:worker_threads');
const random = require('./random.js');
const { STATE, ROLE, GENERATION, COUNT, WAITS, GOES_ON, CLONE } = require('./words.js');

const UNDICI = Symbol.for('undici.globalDispatcher.1');

const START_MS = 60_000;

const before = [];
const after = [];
const words = new Int32Array(new SharedArrayBuffer(4 * COUNT));
let helper;
let closes = false;
// The request that this thread came to rest for, and the generation it has adapted to.
let resting = 0;
let known;
let queue = Promise.resolve();

// The program's thread stands still until the helper wakes it: no JavaScript runs.
function stand(milliseconds) {
  return Atomics.wait(words, STATE, WAITS, milliseconds) !== 'timed-out';
}

function generation() {
  return Atomics.load(words, GENERATION) >>> 0;
}

function answer(word, number) {
  helper?.postMessage({ answer: word, number, generation: known });
}

async function callBefore() {
  for (const hook of [...before].reverse()) {
    try {
      await hook();
    } catch (error) {
      console.error('sysgenid: not parked, as a callback failed:', error);
      return false;
    }
  }
  return true;
}

async function callAfter(role) {
  let well = true;
  for (const hook of [...after]) {
    try {
      await hook(role, generation());
    } catch (error) {
      console.error('sysgenid: a callback failed:', error);
      well = false;
    }
  }
  return well;
}

async function adapt(number) {
  resting = 0;
  known = number | 0;
  if (closes) closeConnections();
  if (await callAfter('clone')) answer('adapted', number);
}

async function takePart(request) {
  resting = request;
  if (!(await callBefore())) return;
  // From here to the end of stand() nothing is awaited. If nobody is there any more, it is no wait.
  Atomics.compareExchange(words, STATE, GOES_ON, WAITS);
  answer('parked', request);
  stand();
  if (Atomics.load(words, ROLE) === CLONE) await adapt(generation());
  else await goOn(request);
}

// A request that is over, and that this process did not park for.
async function goOn(request) {
  if (!resting || request < resting) return;
  resting = 0;
  await callAfter('original');
}

const events = {
  pending: (event) => takePart(event.request),
  'called-off': (event) => goOn(event.request),
  async generation(event) {
    // One that was found on going on is adapted to by now.
    if ((event.generation | 0) !== known) await adapt(event.generation);
  },
  async gone(event) {
    helper = undefined;
    console.error('sysgenid: this process takes part no more:', event.why);
    if (resting) await adapt(generation());
  },
};

function closeConnections() {
  http.globalAgent.destroy();
  https.globalAgent.destroy();
  // That of fetch(), if it was used. It cannot be used again, so another one takes its place.
  const dispatcher = globalThis[UNDICI];
  if (dispatcher?.constructor?.name !== 'Agent') return;
  globalThis[UNDICI] = new dispatcher.constructor();
  dispatcher.destroy().catch(() => {});
}

/**
 * Replaces the generators of this thread, and starts to take part. Returns whether it does.
 *
 * @param {object} [options]
 * @param {string|string[]} [options.sysgenctl] the program that talks to the device
 * @param {boolean} [options.required] false: where this process cannot take part, say so and go on
 * @param {boolean} [options.closeConnections] in clones, of the global agents and of fetch
 */
function install(options = {}) {
  const { sysgenctl = 'sysgenctl', required = true, closeConnections: close = false } = options;
  if (helper) return true;
  random.replace();
  closes = close;
  const { port1, port2 } = new MessageChannel();
  Atomics.store(words, STATE, WAITS);
  new Worker(path.join(__dirname, 'helper.js'), {
    workerData: { sysgenid: true, command: [sysgenctl].flat(), port: port2, words },
    transferList: [port2],
    execArgv: [],
  }).unref();
  const first = stand(START_MS) && receiveMessageOnPort(port1)?.message;
  if (first?.event !== 'ready') {
    const text = `sysgenid: this process cannot take part: ${first?.why ?? 'no answer'}`;
    if (required) throw new Error(text);
    console.error(text);
    return false;
  }
  if (!first.parks) console.error('sysgenid: the driver tells of clones, not before snapshots');
  helper = port1;
  known = first.generation | 0;
  helper.on('message', (event) => {
    queue = queue.then(() => events[event.event]?.(event));
  });
  helper.unref();
  return true;
}

/** Calls hook() when the host asks; the last one first. It may return a promise. */
function beforeFork(hook) {
  before.push(hook);
}

/** Calls hook(role, generation) afterwards; 'original' or 'clone'. It may return a promise. */
function afterFork(hook) {
  after.push(hook);
}

module.exports = { install, beforeFork, afterFork, generation };
