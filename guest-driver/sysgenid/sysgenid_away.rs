// SPDX-License-Identifier: GPL-2.0

//! A task that is frozen with its control group while it is parked.

use kernel::{prelude::*, sync::aref::ARef, task::Task};

/// A task that has left the device to be frozen. When it is thawed it comes back with the same
/// call, unless it has a signal to handle: then its program goes on, and the device hears nothing.
pub(crate) struct Away {
    task: ARef<Task>,
    /// How often it had gone to sleep before.
    slept: usize,
}

impl Away {
    /// The caller, if it is about to be frozen. It is woken for that as by a signal.
    pub(crate) fn caller() -> Option<Self> {
        let task = ARef::from(&**current!());
        is_to_be_frozen(&task).then(|| Self {
            slept: slept(&task),
            task,
        })
    }

    /// Whether it has run no program since. It sleeps once in the freezer, and again only after it
    /// was thawed.
    pub(crate) fn is_frozen(&self) -> bool {
        is_to_be_frozen(&self.task) && slept(&self.task).wrapping_sub(self.slept) <= 1
    }
}

/// Whether a task is frozen with its control group, or runs no program before it is.
fn is_to_be_frozen(task: &Task) -> bool {
    const JOBCTL_TRAP_FREEZE: usize = 1 << 23;
    // SAFETY: The task is there; others change the word, by a store.
    unsafe { (&raw const (*task.as_ptr()).jobctl).read_volatile() & JOBCTL_TRAP_FREEZE != 0 }
}

fn slept(task: &Task) -> usize {
    // SAFETY: As above.
    unsafe { (&raw const (*task.as_ptr()).nvcsw).read_volatile() }
}
