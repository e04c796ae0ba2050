//! Guests that announce themselves when their links have come.
//!
//! Linux announces itself as soon as it is told to, and only then turns to its link, so that what it says right at the coming of a link is lost.
//! It is told again when the link has been there for a while. Who has heard it before hears it again, as on any network.

use std::time::{Duration, Instant};

use super::VirtioDevices;

/// How long after the coming of a link its guest is told once more.
const ROUNDS: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(600),
    Duration::from_millis(1500),
];

/// Who is to be told again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Announcing {
    /// A bit for each slot.
    slots: u64,
    /// Since when they have their links, and how often they were told since.
    began: Option<(Instant, usize)>,
}

impl Announcing {
    /// The link of a slot has come.
    pub(super) fn begin(&mut self, slot: usize, now: Instant) {
        self.slots |= 1 << (slot % 64);
        self.began = Some((now, 0));
    }

    /// When the next round is due.
    fn due(&self) -> Option<Instant> {
        let (began, told) = self.began?;
        Some(began + *ROUNDS.get(told)?)
    }

    /// The slots whose round is due, if one is; it is over then.
    fn take(&mut self, now: Instant) -> u64 {
        if self.due().is_none_or(|due| due > now) {
            return 0;
        }
        if let Some((_, told)) = &mut self.began {
            *told += 1;
        }
        let slots = self.slots;
        if self.due().is_none() {
            *self = Self::default();
        }
        slots
    }
}

impl VirtioDevices {
    /// How long the event loop may sleep before [`Self::announce`] has something to do.
    pub(crate) fn patience(&self) -> Option<Duration> {
        let due = self.announcing.due()?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    /// Tells those guests again that are due. *vCPUs:* running.
    pub(crate) fn announce(&mut self) {
        let slots = match self.announcing.due() {
            Some(_) => self.announcing.take(Instant::now()),
            None => return,
        };
        for (number, slot) in self.slots.iter().enumerate() {
            if slots & 1 << (number % 64) != 0
                && let Some(net) = slot.device.as_net()
            {
                // One that a vCPU is in has its next round.
                let _ = net.with_device_within(Duration::ZERO, |net, active| net.announce(active));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_round_is_due_once_and_a_link_that_comes_meanwhile_begins_them_anew() {
        let began = Instant::now();
        let mut announcing = Announcing::default();
        assert_eq!((announcing.due(), announcing.take(began)), (None, 0));
        announcing.begin(1, began);
        assert_eq!(announcing.take(began), 0);
        let late = began + ROUNDS[0];
        assert_eq!(announcing.due(), Some(late));
        assert_eq!((announcing.take(late), announcing.take(late)), (0b10, 0));
        announcing.begin(3, late);
        for round in ROUNDS {
            let due = late + round;
            assert_eq!(announcing.take(due - Duration::from_millis(1)), 0);
            assert_eq!(announcing.take(due), 0b1010);
        }
        assert_eq!(announcing, Announcing::default());
    }
}
