//! The gate of a restored machine: its devices are kept from its peers, and let through later. When, `readiness` says.

use std::time::Instant;

use super::VirtioDevices;
use crate::request::Gate;

/// What is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Networks, and the guest's connections to the host.
    Networks,
    /// The host's connections to the guest.
    Host,
}

/// Devices that are to be opened and were not yet: a vCPU was in them. A bit for each slot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct GateWork {
    networks: u64,
    host: u64,
    /// Links come with the networks.
    links: bool,
}

impl VirtioDevices {
    /// Shuts the gate of a machine that has not run yet. *vCPUs:* standing still; before [`Self::restored`].
    pub(crate) fn shut_gate(&mut self, gate: Gate) {
        self.gate.links = gate.link;
        for slot in &self.slots {
            slot.device.shut_gate(gate);
        }
    }

    /// Opens one side of it. A device that a vCPU is in is opened when it has left.
    pub(crate) fn open_gate(&mut self, side: Side) {
        let all = (0..self.slots.len()).fold(0, |all, slot| all | 1 << (slot % 64));
        match side {
            Side::Networks => self.gate.networks |= all,
            Side::Host => self.gate.host |= all,
        }
        self.go_on_opening();
    }

    /// Opens what is to be opened, as far as no vCPU is in it: one that leaves has the event loop called, which calls this again.
    pub(super) fn go_on_opening(&mut self) {
        if self.gate.networks | self.gate.host == 0 {
            return;
        }
        for (number, slot) in self.slots.iter().enumerate() {
            let bit = 1 << (number % 64);
            for (work, side) in [
                (&mut self.gate.networks, Side::Networks),
                (&mut self.gate.host, Side::Host),
            ] {
                if *work & bit != 0 && slot.device.try_open_gate(side) {
                    *work &= !bit;
                    if side == Side::Networks && self.gate.links {
                        self.announcing.begin(number, Instant::now());
                    }
                    // What waits for it is looked at.
                    self.events.kick(number);
                }
            }
        }
    }
}
