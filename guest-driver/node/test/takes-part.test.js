// SPDX-License-Identifier: Apache-2.0
'use strict';
const assert = require('node:assert/strict');
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { test } = require('node:test');
const sysgenid = require('../index.js');

// Runs the program: what it saw, and what its helper was told.
function run(scenario, kind = '', name = 'program.js') {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'sysgenid-'));
  const log = path.join(directory, 'log');
  const env = { ...process.env, FAKE_SCENARIO: scenario, FAKE_LOG: log };
  const program = path.join(__dirname, '../fixtures', name);
  // One that stands still for ever is ended at last.
  const options = { env, timeout: 300_000 };
  const { stdout, stderr, status } = spawnSync(process.execPath, [program, kind], options);
  const told = fs.existsSync(log) ? fs.readFileSync(log, 'utf8').split('\n').slice(0, -1) : [];
  fs.rmSync(directory, { recursive: true });
  assert.equal(status, 0, stderr.toString());
  const seen = JSON.parse(stdout.toString());
  if (name === 'program.js') assert.equal(seen.shift(), 'installed 4');
  return { seen, told: told.filter((line) => line !== 'end'), stderr: stderr.toString() };
}

test('the original is parked, runs nothing meanwhile, and acknowledges nothing', () => {
  const { seen, told } = run('original');
  assert.deepEqual(seen, [
    'before b',
    'before a',
    'after a original 4',
    'ticks 0',
    'after b original 4',
  ]);
  assert.deepEqual(told, ['parked 1']);
});

test('a clone calls what was registered, and acknowledges', () => {
  const { seen, told } = run('clone');
  assert.deepEqual(seen.slice(2), ['after a clone 6', 'ticks 0', 'after b clone 6']);
  assert.deepEqual(told, ['parked 1', 'adapted 6']);
});

test('one request after the other is answered', () => {
  assert.deepEqual(run('twice').told, ['parked 1', 'parked 2', 'adapted 6']);
});

test('a program that is not ready does not park, and runs on (the control of "ticks 0")', () => {
  const { seen, told, stderr } = run('called-off', 'unready');
  const ran = seen.splice(2, 1);
  assert.deepEqual(seen, ['before b', 'after a original 4', 'after b original 4']);
  assert.match(ran[0], /^ticks [1-9]/);
  assert.deepEqual(told, []);
  assert.match(stderr, /not now/);
});

test('a program that is ready too late is not held up', () => {
  const { seen, told } = run('called-off', 'slow');
  assert.deepEqual(seen.slice(0, 3), ['before b', 'before a', 'after a original 4']);
  assert.deepEqual(told, []);
});

test('one that is ready too late for two requests goes on', () => {
  const { seen } = run('called-off-twice', 'slow');
  assert.deepEqual(seen.slice(0, 3), ['before b', 'before a', 'after a original 4']);
});

test('a clone that was not ready in time is never told that it is the original', () => {
  for (const scenario of ['late', 'late-parked']) {
    const { seen, told } = run(scenario, 'slow');
    assert.deepEqual(seen, [
      'before b',
      'before a',
      'after a clone 6',
      'ticks 0',
      'after b clone 6',
    ]);
    assert.equal(told.at(-1), 'adapted 6');
  }
});

test('a restore that nobody asked for is told', () => {
  const { seen, told } = run('generation');
  assert.deepEqual(seen, ['after a clone 9', 'after b clone 9']);
  assert.deepEqual(told, ['adapted 9']);
});

test('a generation in which a callback fails is not acknowledged', () => {
  const { seen, told, stderr } = run('clone', 'unwell');
  assert.deepEqual(seen.at(-1), 'after b clone 6');
  assert.deepEqual(told, ['parked 1']);
  assert.match(stderr, /not well/);
});

test('a program whose helper dies goes on, as a clone: it may be one', () => {
  for (const [scenario, kind] of [
    ['dies-parked', ''],
    ['dies', 'slow'],
    ['dies', 'unready'],
  ]) {
    const { seen, stderr } = run(scenario, kind);
    assert.equal(seen.at(-1), 'after b clone 4', scenario + kind);
    assert.equal(seen.filter((line) => line.startsWith('after')).length, 2);
    assert.match(stderr, /takes part no more: it ended with status 7/);
  }
});

test('a clone that is asked to has connections of its own, the original keeps its own', () => {
  const connections = (scenario, kind) => run(scenario, kind, 'connections.js').seen;
  assert.deepEqual(connections('clone', 'close'), [2, 4]);
  assert.deepEqual(connections('clone', 'keep'), [2, 2]);
  assert.deepEqual(connections('original', 'close'), [2, 2]);
});

test('it can be there before the program, by an option or by the environment', () => {
  const register = path.join(__dirname, '../register.js');
  const show = ['-p', 'Math.random.name'];
  const node = (args, env) =>
    spawnSync(process.execPath, args, {
      env: { ...process.env, SYSGENCTL: fake, FAKE_SCENARIO: 'generation', ...env },
    });
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'sysgenid-'));
  const fake = path.join(directory, 'fake');
  const script = path.join(__dirname, '../fixtures/fake.js');
  fs.writeFileSync(fake, `#!/bin/sh\nNODE_OPTIONS= exec '${process.execPath}' '${script}'\n`);
  fs.chmodSync(fake, 0o755);
  const env = { FAKE_LOG: path.join(directory, 'log') };
  assert.match(node(['--require', register, ...show], env).stdout.toString(), /^random\n/);
  env.NODE_OPTIONS = `--require ${register}`;
  assert.match(node(show, env).stdout.toString(), /^random\n/);
  fs.rmSync(directory, { recursive: true });
});

test('without a device or a helper it says so, or goes on', () => {
  const missing = '/nonexistent/sysgenctl';
  assert.throws(() => sysgenid.install({ sysgenctl: missing }), /cannot take part.*ENOENT/);
  assert.throws(() => sysgenid.install({ sysgenctl: 'false' }), /it ended with status 1/);
  assert.equal(sysgenid.install({ sysgenctl: missing, required: false }), false);
});
