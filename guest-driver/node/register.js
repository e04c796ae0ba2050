// SPDX-License-Identifier: Apache-2.0
'use strict';
// node --require sysgenid/register PROGRAM: before any module has taken a copy of what is replaced.
// The program is SYSGENCTL, if that is set.

const { workerData } = require('node:worker_threads');

// All threads have this, also the helper's.
if (!workerData?.sysgenid) {
  require('./index.js').install({ sysgenctl: process.env.SYSGENCTL || 'sysgenctl' });
}
