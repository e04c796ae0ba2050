//! What a snapshot holds of SGEN.

use serde::{Deserialize, Serialize};

use crate::DeviceState;

use super::fork::ForkState;

/// The device's state in a snapshot. The counter itself is in guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SysGenState {
    /// Guest physical address of the page.
    pub gpa: u64,
    /// The counter as the host left it when the generation began; 0 at boot.
    pub base: u32,
    /// How far beyond `base` the driver has to come: 1 if it was there when the generation began, else 0.
    pub step: u8,
    /// The first four registers of the doorbell as they were last written, in the order of their ports.
    pub registers: [u32; 4],
    /// The driver has reached the generation.
    pub reached: bool,
    /// The kernel's random number generator has been reseeded for it.
    pub reseeded: bool,
    /// What the driver has of the later registers.
    pub later: LaterRegisters,
    /// The agent has given the machine its names in this generation.
    pub identity: bool,
    /// The fork point.
    pub fork: ForkState,
}

impl DeviceState for SysGenState {
    const VERSION: u16 = 3;
}

/// The registers behind the first four, and what they have told. A driver that does not know them
/// leaves all of it as it was at boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaterRegisters {
    /// FEATURES: what the driver has said that it uses.
    pub features: u32,
    /// The upper half of REALTIME, as of the last read of the lower one.
    pub realtime_high: u32,
    /// READY: last value written.
    pub ready_counter: u32,
    /// CHAIN: last value written.
    pub chain_counter: u32,
    /// REQUIRED: last value written.
    pub required: u32,
    /// The vmfork notifier chain has run for the generation.
    pub chain: bool,
    /// Agents that have finished in the generation.
    pub ready: u32,
    /// The most that have in one generation.
    pub agents: u32,
}

/// Version 1 of the state: of a device with four registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SysGenStateV1 {
    /// As in [`SysGenState`], as all of them.
    pub gpa: u64,
    /// The counter as the host left it.
    pub base: u32,
    /// How far beyond the driver has to come.
    pub step: u8,
    /// The registers.
    pub registers: [u32; 4],
    /// The driver has reached the generation.
    pub reached: bool,
    /// The random number generator has been reseeded for it.
    pub reseeded: bool,
}

impl DeviceState for SysGenStateV1 {
    const VERSION: u16 = 1;
}

/// Version 2 of the state: of a device without fork points.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SysGenStateV2 {
    /// What version 1 has.
    pub first: SysGenStateV1,
    /// What the driver has of the later registers.
    pub later: LaterRegisters,
}

impl DeviceState for SysGenStateV2 {
    const VERSION: u16 = 2;
}

impl From<SysGenStateV1> for SysGenState {
    fn from(first: SysGenStateV1) -> Self {
        SysGenStateV2 {
            first,
            later: LaterRegisters::default(),
        }
        .into()
    }
}

impl From<SysGenStateV2> for SysGenState {
    fn from(old: SysGenStateV2) -> Self {
        let SysGenStateV2 { first, later } = old;
        let SysGenStateV1 {
            gpa,
            base,
            step,
            registers,
            reached,
            reseeded,
        } = first;
        Self {
            gpa,
            base,
            step,
            registers,
            reached,
            reseeded,
            later,
            identity: false,
            fork: ForkState::default(),
        }
    }
}
