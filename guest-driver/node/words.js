// SPDX-License-Identifier: Apache-2.0
'use strict';
// What the program's thread and its helper share: places, and what is in them.

module.exports = {
  STATE: 0,
  ROLE: 1,
  GENERATION: 2,
  COUNT: 3,
  WAITS: 1,
  GOES_ON: 2,
  // Nobody is there who could wake it.
  GONE: 3,
  ORIGINAL: 1,
  CLONE: 2,
};
