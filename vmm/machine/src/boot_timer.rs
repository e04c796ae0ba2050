//! How long a guest takes to boot, by its own word.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use vmgenie_devices::BootTimer;

/// A device that logs the time since now when the guest says that it has booted, as Firecracker does, and at its level.
pub fn begun_now() -> BootTimer {
    let begun = Instant::now();
    let cpu_begun = cpu_time();
    let told = AtomicBool::new(false);
    BootTimer::new(Box::new(move || {
        // Once: a guest could fill the log.
        if told.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::info!(
            "{}",
            line(begun.elapsed(), cpu_time().saturating_sub(cpu_begun))
        );
    }))
}

/// Firecracker's line, which programs look for.
fn line(wall: Duration, cpu: Duration) -> String {
    format!(
        "Guest-boot-time = {:>6} us {} ms, {:>6} CPU us {} CPU ms",
        wall.as_micros(),
        wall.as_millis(),
        cpu.as_micros(),
        cpu.as_millis()
    )
}

/// The CPU time of all threads of this process.
fn cpu_time() -> Duration {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    // Neither is ever negative.
    Duration::new(
        spent.tv_sec.unsigned_abs(),
        u32::try_from(spent.tv_nsec).unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_firecrackers() {
        assert_eq!(
            line(Duration::from_micros(151_327), Duration::from_micros(9_876)),
            "Guest-boot-time = 151327 us 151 ms,   9876 CPU us 9 CPU ms"
        );
    }
}
