//! What the guest's driver has told of a generation, and what follows from it.

use std::time::Duration;

/// What the guest's driver has told since the generation began. It is the word of an untrusted guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverReport {
    /// Version of the driver's interface; 0 if there is no driver.
    pub version: u32,
    /// The driver has told its watchers of the generation.
    pub reached: bool,
    /// The kernel's random number generator has been reseeded for the generation.
    pub reseeded: bool,
    /// Those of the kernel who want to hear of a fork (its vmfork notifier chain, which has WireGuard drop
    /// its session keys) have heard of it. None: the driver is an older one, which does not tell.
    pub chain: Option<bool>,
    /// Tracked watchers that have not acknowledged yet.
    pub outdated: u32,
    /// Those of them that are privileged, and privileged ones that have gone without an acknowledgement.
    /// An older driver does not tell them apart: all are.
    pub required: u32,
    /// Agents that have finished their work for the generation.
    pub ready: u32,
    /// The most agents that have ever been ready in one generation of the machine: as many are expected.
    pub agents: u32,
    /// An agent has given the machine its names: the first of its two stages is over. An agent of old
    /// tells of its end alone.
    pub identity: bool,
    /// How long after the beginning of the generation the driver first told that it was reached; none
    /// if it has not, or not to this VMM.
    pub reached_after: Option<Duration>,
    /// The same for the reseeded random number generator.
    pub reseeded_after: Option<Duration>,
    /// The same for the guest as a whole: when [`Self::adapted`] first held.
    pub adapted_after: Option<Duration>,
}

/// Something that a guest which has not adapted lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// There is no driver. What else is missing nobody can tell.
    Driver,
    /// The kernel's random number generator has not been reseeded.
    Reseeded,
    /// The driver has not told its watchers.
    Reached,
    /// Those of the kernel who want to hear of a fork have not heard of it.
    Chain,
    /// Watchers have not acknowledged.
    Watchers,
    /// Fewer agents have finished than are expected, and none has told of its first stage.
    Agent,
    /// Fewer agents have finished than are expected. The first stage of one is over.
    Ready,
}

impl DriverReport {
    /// Whether there is a driver.
    pub fn present(&self) -> bool {
        self.version != 0
    }

    /// Whether the guest has adapted to its generation as a whole, with as many agents as it ever had.
    pub fn adapted(&self) -> bool {
        self.lacks(self.agents, self.required).next().is_none()
    }

    /// What is missing if `agents` agents are expected, and `outdated` watchers are still to be waited for.
    pub fn lacks(&self, agents: u32, outdated: u32) -> impl Iterator<Item = Lack> {
        let present = self.present();
        let unfinished = present && self.ready < agents;
        [
            (!present, Lack::Driver),
            (present && !self.reseeded, Lack::Reseeded),
            (present && !self.reached, Lack::Reached),
            (present && self.chain == Some(false), Lack::Chain),
            (present && outdated > 0, Lack::Watchers),
            (unfinished && !self.identity, Lack::Agent),
            (unfinished && self.identity, Lack::Ready),
        ]
        .into_iter()
        .filter_map(|(lacks, what)| lacks.then_some(what))
    }
}
