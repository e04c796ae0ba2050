//! How long something is waited for: until it makes no more progress, on a clock that goes slower on a slow machine.
//!
//! A limit of wall time tells a busy machine from a guest that hangs only by luck. So each limit here is one of *stillness*, and is
//! counted in the time that a quiet machine would have taken: a short piece of work is timed now and then, and when it takes
//! four times as long as it should, four seconds count as one.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often one looks. What is waited for between two looks is free of charge.
pub const LOOK: Duration = Duration::from_millis(250);
/// The most that counts between two looks: a machine that stands still has not let anybody make progress.
const MOST: Duration = Duration::from_secs(5);
/// How many times its limit is waited for something that makes progress all the time.
const TOTAL: u32 = 8;
/// How many times slower the time of something that computes goes, although it shows nothing. That a guest computes says little: one that
/// is lost turns in a circle as a rule.
const WORKING: u32 = 2;
/// The steps of the piece of work.
const STEPS: u32 = 200_000;
/// How long the piece takes in an emulated host on a quiet machine.
const EMULATED: Duration = Duration::from_micros(600);
/// The slowest that a machine is believed to be.
const SLOWEST: f64 = 30.0;

/// Waiting for one thing.
#[derive(Debug, Clone)]
pub struct Patience {
    limit: Duration,
    total: Duration,
    still: Duration,
    spent: Duration,
    looked: Instant,
    seen: Progress,
}

/// What can be seen of somebody who is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// How much it has said, written or done, in any unit.
    pub done: u64,
    /// The processor time that it has used.
    pub worked: Duration,
}

impl Patience {
    /// Patience for something that shows nothing for up to `limit` on a quiet machine.
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            total: limit * TOTAL,
            still: Duration::ZERO,
            spent: Duration::ZERO,
            looked: Instant::now(),
            seen: Progress::default(),
        }
    }

    /// The same for something that may go on for ever, as long as it does.
    pub fn endless(limit: Duration) -> Self {
        Self {
            total: Duration::MAX,
            ..Self::new(limit)
        }
    }

    /// Whether something that cannot be seen has been waited for long enough.
    pub fn is_over(&mut self) -> bool {
        self.is_over_at(Progress::default)
    }

    /// Whether something that has come so far has been waited for long enough: because it has stood still for the limit, computed for
    /// twice the limit without a sign, or gone on for eight times the limit. `progress` is asked at each look alone.
    pub fn is_over_at(&mut self, progress: impl FnOnce() -> Progress) -> bool {
        let passed = self.looked.elapsed();
        if passed >= LOOK.min(self.limit) {
            self.look(passed.min(MOST).div_f64(slowness()), progress());
            self.looked = Instant::now();
        }
        self.still >= self.limit || self.spent >= self.total
    }

    /// `passed` went by, as on a quiet machine.
    fn look(&mut self, passed: Duration, now: Progress) {
        self.spent += passed;
        let worked = now.worked.saturating_sub(self.seen.worked);
        if now.done != self.seen.done {
            self.still = Duration::ZERO;
        } else if worked >= passed / 5 {
            self.still += passed / WORKING;
        } else {
            self.still += passed;
        }
        self.seen = now;
    }

    /// Waits until `there` says so, and looks again after each `pause`; whether it did in time.
    pub fn wait_until(mut self, pause: Duration, mut there: impl FnMut() -> bool) -> bool {
        while !there() {
            if self.is_over() {
                return false;
            }
            std::thread::sleep(pause);
        }
        true
    }
}

/// So much wall time as this machine takes now for what a quiet one does in `limit`: where a limit has to be told to somebody else.
pub fn stretched(limit: Duration) -> Duration {
    const PIECES: u32 = 20;
    let slowness: f64 = (0..PIECES).map(|_| timed_work()).sum();
    limit.mul_f64((slowness / f64::from(PIECES)).clamp(1.0, SLOWEST))
}

/// How many times slower than a quiet machine this one is, of late; at least 1.
fn slowness() -> f64 {
    /// What the newest piece of work counts.
    const NEWEST: f64 = 0.1;
    static OF_LATE: Mutex<f64> = Mutex::new(1.0);
    // One piece tells little: the processor was taken away in the midst of it, or not.
    let now = timed_work().min(SLOWEST);
    let mut of_late = OF_LATE.lock().unwrap_or_else(PoisonError::into_inner);
    *of_late += (now - *of_late) * NEWEST;
    of_late.clamp(1.0, SLOWEST)
}

/// Does the piece of work. How many times longer it took than it should have: for want of a processor, and in an emulated host, where it
/// is known how long it takes, for any reason.
fn timed_work() -> f64 {
    let (begun, computed) = (Instant::now(), thread_time());
    let mut number = 1_u32;
    for step in 0..STEPS {
        number = std::hint::black_box(number.wrapping_mul(0x0101_0101).wrapping_add(step));
    }
    std::hint::black_box(number);
    let (wall, computed) = (begun.elapsed(), thread_time().saturating_sub(computed));
    let ratio = |to: Duration| wall.as_secs_f64() / to.as_secs_f64().max(1e-6);
    let emulated = std::env::var_os("VMGENIE_KVM").is_some_and(|kvm| kvm == "emulated");
    match emulated {
        true => ratio(computed).max(ratio(EMULATED)),
        false => ratio(computed),
    }
}

/// The processor time of this thread.
fn thread_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a live timespec. This clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// The processor time that a process has used; none if it is no more.
pub fn processor_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may hold anything. utime and stime, in ticks of 10 ms, are the 14th and 15th.
    let after = stat.rsplit(')').next().unwrap_or_default();
    let words = after.split_whitespace().skip(11).take(2);
    let ticks: u64 = words.filter_map(|word| word.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// After how many seconds patience of 10 is over, with somebody who makes this progress in each.
    fn over_after(mut progress: impl FnMut(u64) -> Progress) -> u64 {
        let mut patience = Patience::new(10 * SECOND);
        // It was looked at a moment ago, so that only what is told here counts.
        (1..)
            .find(|second| {
                patience.look(SECOND, progress(*second));
                patience.looked = Instant::now();
                patience.is_over()
            })
            .unwrap_or(0)
    }

    #[test]
    fn who_stands_still_is_waited_for_until_the_limit() {
        assert_eq!(over_after(|_| Progress::default()), 10);
        // From the last sign on.
        let done = |second: u64| Progress {
            done: second.min(20),
            ..Progress::default()
        };
        assert_eq!(over_after(done), 30);
    }

    #[test]
    fn who_computes_is_waited_for_longer_and_who_makes_progress_longest_but_nobody_for_ever() {
        let worked = |second: u64| Progress {
            done: 0,
            worked: SECOND * second as u32,
        };
        assert_eq!(over_after(worked), 20);
        let done = |second: u64| Progress {
            done: second,
            ..Progress::default()
        };
        assert_eq!(over_after(done), 80);
    }

    #[test]
    fn time_in_which_nobody_looked_is_not_held_against_anybody() {
        let mut patience = Patience::new(6 * SECOND);
        patience.looked -= 3600 * SECOND;
        assert!(!patience.is_over());
        patience.looked -= 3600 * SECOND;
        // It is as if the most had passed twice, unless the machine is slow just now.
        assert!(patience.is_over() || slowness() > 1.0);
    }

    #[test]
    fn a_busy_machine_is_slower_than_a_quiet_one_and_stretches_limits() {
        assert!(timed_work() >= 0.99);
        assert!((1.0..=SLOWEST).contains(&slowness()));
        assert!(stretched(SECOND) >= SECOND);
    }

    #[test]
    fn waiting_ends_with_what_is_waited_for_or_with_patience() {
        let mut looks = 0;
        let there = || {
            looks += 1;
            looks == 3
        };
        assert!(Patience::new(SECOND).wait_until(Duration::ZERO, there));
        assert_eq!(looks, 3);
        assert!(!Patience::new(Duration::from_millis(5)).wait_until(Duration::ZERO, || false));
    }

    #[test]
    fn a_process_has_used_the_time_that_it_has_computed() {
        let me = std::process::id();
        let before = processor_time(me);
        let begun = Instant::now();
        while processor_time(me) < before + Duration::from_millis(50) {
            assert!(begun.elapsed() < 60 * SECOND);
            timed_work();
        }
        assert_eq!(processor_time(0), Duration::ZERO);
    }
}
