//! Complaints that a guest may provoke as often as it likes: one a second is enough.

use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_secs(1);

/// Says when to complain.
#[derive(Debug, Default)]
pub struct Throttle {
    last: Option<Instant>,
    silent: u64,
}

impl Throttle {
    /// Whether to complain at `now`; if so, how many complaints there were none of since the last one.
    pub fn allows(&mut self, now: Instant) -> Option<u64> {
        let early = self
            .last
            .is_some_and(|last| now.saturating_duration_since(last) < PERIOD);
        if early {
            self.silent += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.silent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_complaints_are_one_a_second_with_their_number() {
        let mut throttle = Throttle::default();
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        assert_eq!(throttle.allows(at(0)), Some(0));
        for ms in 1..1000 {
            assert_eq!(throttle.allows(at(ms)), None);
        }
        assert_eq!(throttle.allows(at(1000)), Some(999));
        assert_eq!(throttle.allows(at(5000)), Some(0));
    }
}
