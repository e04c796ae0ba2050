// SPDX-License-Identifier: GPL-2.0

//! The state, held by a backend that has the machine stand still: a lock that somebody else has can
//! not be taken then, because he stands as well.

use crate::{
    sysgenid_backend::{Backend, Report},
    sysgenid_core::Wake,
    sysgenid_device::{Device, State},
};

/// The device with its state locked, for a backend that has the machine stand still.
pub(crate) struct Held<'a> {
    device: &'a Device,
    state: &'a mut State,
    wake: Wake,
}

impl Held<'_> {
    /// The counter's value that was told to the watchers.
    pub(crate) fn told(&self) -> u32 {
        self.state.generations.told()
    }

    /// Begins a generation of the hypervisor's, if the counter still is `seen`. Does not sleep:
    /// those who have to know are told when the state is let go.
    pub(crate) fn begin(&mut self, seen: u32) -> bool {
        let word = self.state.counter;
        let Ok(wake) = self.state.generations.begin(&word, seen) else {
            return false;
        };
        self.wake = wake;
        self.device.show_in_own_page(self.told());
        true
    }
}

impl Device {
    /// Calls a function of the backend's with the state locked, and tells then of what it has
    /// begun. Returns whether it is the backend.
    pub(crate) fn hold(
        &self,
        backend: *const Backend,
        function: impl FnOnce(&mut Held<'_>),
    ) -> bool {
        let mut state = self.state.lock();
        if state.backend != backend {
            return false;
        }
        let mut held = Held {
            device: self,
            state: &mut state,
            wake: Wake::default(),
        };
        function(&mut held);
        let wake = held.wake;
        let event = if wake.readers {
            Report::BEGAN
        } else {
            Report::NUMBERS
        };
        self.finish(state, wake, event);
        true
    }
}
