// SPDX-License-Identifier: GPL-2.0

//! The time of day of a machine that has stood still, or was restored. Its clock goes on from where
//! it stood, whatever the clock source is: it is late by as long as that was.

use crate::sysgenid_page::CounterPage;
use kernel::{bindings, prelude::*};

const NSEC_PER_SEC: u64 = 1_000_000_000;

/// What a clock has to be late by to be set. One that differs by less is left to those who keep it
/// right.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lag {
    /// The machine was restored, or the hypervisor says that it has stood still.
    Any,
    /// It was asked for a snapshot, or has stood still for one: only what a pause makes of it.
    Pause,
}

impl Lag {
    fn nanoseconds(self) -> u64 {
        match self {
            Self::Any => 10_000_000,
            Self::Pause => NSEC_PER_SEC,
        }
    }
}

/// Sets `CLOCK_REALTIME` to the hypervisor's time, if it offers that. `CLOCK_MONOTONIC` goes on.
///
/// Process context; may sleep.
pub(crate) fn step(page: &CounterPage, lag: Lag) {
    let Some(wanted) = page.realtime() else {
        return;
    };
    let mut now = bindings::timespec64::default();
    // SAFETY: The call fills in `now`.
    unsafe { bindings::ktime_get_real_ts64(&mut now) };
    let now = (now.tv_sec as u64)
        .wrapping_mul(NSEC_PER_SEC)
        .wrapping_add(now.tv_nsec as u64);
    if now.abs_diff(wanted) < lag.nanoseconds() {
        return;
    }
    let time = bindings::timespec64 {
        tv_sec: (wanted / NSEC_PER_SEC) as i64,
        tv_nsec: (wanted % NSEC_PER_SEC) as _,
    };
    // SAFETY: `time` is valid; the call checks its values.
    match unsafe { bindings::do_settimeofday64(&time) } {
        0 => pr_info!("the clock was set to the hypervisor's time\n"),
        errno => pr_warn!("the clock could not be set to the hypervisor's time: {errno}\n"),
    }
}
