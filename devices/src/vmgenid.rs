//! VMGENID: sixteen bytes in guest memory that name the guest's generation (Microsoft's "Virtual
//! Machine Generation ID", UAPI group specification 14).
//!
//! The host writes a new ID whenever the guest's life stops being unique, and then raises the
//! general-purpose event [`GPE`], whose method notifies `\_SB.VGEN`. The ID lies in memory that e820
//! reports as reserved, on an 8-byte boundary.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use acpi_tables::{
    Aml, AmlSink,
    aml::{Device, Method, Name, Package, Return},
};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use vmgenie_acpi::GpeNotify;

use crate::random::{self, RandomError};
use crate::{DeviceState, Persist, bounded};

/// Length of a generation ID in bytes.
pub const ID_LEN: usize = 16;
/// So many of the generations before the present one are known by their IDs.
pub const MAX_ANCESTORS: usize = 32;
/// The general-purpose event that is raised after a change.
pub const GPE: u8 = 5;
/// Path of the device in the guest's namespace.
pub const ACPI_PATH: &str = "\\_SB_.VGEN";
/// What the device's driver is notified of: the generation ID has changed.
pub const NOTIFY_CHANGED: u8 = 0x80;

const ALIGNMENT: u64 = 8;
const PAGE_SIZE: u64 = 4096;

/// What `\_GPE._E05` does, for the machine's description.
pub const fn gpe_notify() -> GpeNotify<'static> {
    GpeNotify {
        gpe: GPE,
        device: ACPI_PATH,
        value: NOTIFY_CHANGED,
    }
}

/// Why an ID could not be placed, made or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmGenIdError {
    /// The address is not one that the specification allows.
    #[error(
        "could not place the generation ID at gpa {gpa:#x}: it needs {ID_LEN} bytes on an \
         {ALIGNMENT}-byte boundary inside one page"
    )]
    Address {
        /// The guest physical address.
        gpa: u64,
    },
    /// The OS gave no random bytes.
    #[error("could not get {ID_LEN} random bytes for a generation ID")]
    Random(#[from] RandomError),
    /// The ID could not be written to guest memory.
    #[error("could not write the generation ID to guest memory at gpa {gpa:#x}")]
    Memory {
        /// The guest physical address.
        gpa: u64,
        /// What the guest memory said.
        source: GuestMemoryError,
    },
}

/// Sixteen random bytes that name a generation. All 128 bits are random: not a version-4 UUID.
///
/// Displayed as the GUID that Microsoft's and QEMU's tools print for these bytes: the first three
/// fields are little-endian.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GenerationId([u8; ID_LEN]);

impl GenerationId {
    /// A new ID from the OS's random number generator.
    ///
    /// # Errors
    /// When the OS has no random bytes to give.
    pub fn random() -> Result<Self, RandomError> {
        let mut bytes = [0; ID_LEN];
        random::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The ID whose bytes in guest memory are `bytes`.
    pub const fn from_bytes(bytes: [u8; ID_LEN]) -> Self {
        Self(bytes)
    }

    /// The bytes as they lie in guest memory.
    pub const fn to_bytes(self) -> [u8; ID_LEN] {
        self.0
    }

    /// The bytes in the order of guest memory, as 32 lower-case hexadecimal digits.
    pub fn to_hex(self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }

    /// The bytes as GUID text, such as `00112233-4455-6677-8899-aabbccddeeff`.
    pub fn to_guid(self) -> String {
        self.to_string()
    }
}

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, node @ ..] = self.0;
        let a = u32::from_le_bytes([a0, a1, a2, a3]);
        let b = u16::from_le_bytes([b0, b1]);
        let c = u16::from_le_bytes([c0, c1]);
        let d = u16::from_be_bytes([d0, d1]);
        write!(f, "{a:08x}-{b:04x}-{c:04x}-{d:04x}-")?;
        node.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GenerationId({self})")
    }
}

/// The device's state in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmGenIdState {
    /// Guest physical address of the ID.
    pub gpa: u64,
    /// The ID; guest memory holds the same, but this is the one that counts.
    pub id: [u8; ID_LEN],
    /// How many times the ID has changed since the guest booted.
    pub changes: u64,
    /// When it did so last (or was made), as whole seconds since 1970-01-01 00:00 UTC ...
    pub changed_at_secs: u64,
    /// ... and the nanoseconds after that, less than 10^9.
    pub changed_at_nanos: u32,
    /// The IDs that came before, the oldest first: of this guest, and of those whose clone it is. The last
    /// [`MAX_ANCESTORS`] of them. Nothing but what is shown depends on them.
    #[serde(deserialize_with = "bounded::at_most::<_, _, MAX_ANCESTORS>")]
    pub ancestors: Vec<[u8; ID_LEN]>,
}

impl DeviceState for VmGenIdState {
    const VERSION: u16 = 2;
}

/// Version 1 of the state: of a device that did not know the IDs before its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmGenIdStateV1 {
    /// As in [`VmGenIdState`], as all of them.
    pub gpa: u64,
    /// The ID.
    pub id: [u8; ID_LEN],
    /// How many times it has changed.
    pub changes: u64,
    /// When it did so last, whole seconds ...
    pub changed_at_secs: u64,
    /// ... and nanoseconds.
    pub changed_at_nanos: u32,
}

impl DeviceState for VmGenIdStateV1 {
    const VERSION: u16 = 1;
}

impl From<VmGenIdStateV1> for VmGenIdState {
    fn from(old: VmGenIdStateV1) -> Self {
        Self {
            gpa: old.gpa,
            id: old.id,
            changes: old.changes,
            changed_at_secs: old.changed_at_secs,
            changed_at_nanos: old.changed_at_nanos,
            ancestors: Vec::new(),
        }
    }
}

/// The VMGENID device.
#[derive(Clone, Debug)]
pub struct VmGenId {
    gpa: u64,
    id: GenerationId,
    changes: u64,
    changed_at: Duration,
    ancestors: Vec<GenerationId>,
}

impl VmGenId {
    /// A device with a new ID, which it writes to guest memory at `gpa`. For the boot of a guest.
    ///
    /// # Errors
    /// [`VmGenIdError`].
    pub fn new<M>(memory: &M, gpa: u64) -> Result<Self, VmGenIdError>
    where
        M: Bytes<GuestAddress, E = GuestMemoryError> + ?Sized,
    {
        Self::with_id(memory, gpa, GenerationId::random()?)
    }

    /// A device with a given ID, which it writes to guest memory at `gpa`. For a reboot, over which
    /// the ID stays as it is.
    ///
    /// # Errors
    /// [`VmGenIdError`].
    pub fn with_id<M>(memory: &M, gpa: u64, id: GenerationId) -> Result<Self, VmGenIdError>
    where
        M: Bytes<GuestAddress, E = GuestMemoryError> + ?Sized,
    {
        check_address(gpa)?;
        let device = Self {
            gpa,
            id,
            changes: 0,
            changed_at: now(),
            ancestors: Vec::new(),
        };
        device.write_to(memory)?;
        Ok(device)
    }

    /// The device that was saved. Guest memory is left alone: the restored memory holds the ID, and
    /// what begins a new generation calls [`Self::regenerate`].
    ///
    /// # Errors
    /// [`VmGenIdError::Address`].
    pub fn from_state(state: &VmGenIdState) -> Result<Self, VmGenIdError> {
        check_address(state.gpa)?;
        let device = Self {
            gpa: state.gpa,
            id: GenerationId::from_bytes(state.id),
            changes: state.changes,
            // Too many nanoseconds, in a hostile file, must not carry over the end of the seconds.
            changed_at: Duration::from_secs(state.changed_at_secs)
                .saturating_add(Duration::from_nanos(state.changed_at_nanos.into())),
            ancestors: state
                .ancestors
                .iter()
                .copied()
                .map(GenerationId::from_bytes)
                .collect(),
        };
        Ok(device)
    }

    /// Makes a new ID and writes it to guest memory.
    ///
    /// *Caller:* the VMM's one function that begins a new generation, and nobody else. *vCPUs:* not
    /// running. *Afterwards:* guest memory holds an ID that no machine had before; the caller raises
    /// [`GPE`]. After an error the device keeps its old ID, but guest memory may hold parts of a new
    /// one, so the guest must not run before another attempt has succeeded.
    ///
    /// # Errors
    /// [`VmGenIdError::Random`], [`VmGenIdError::Memory`].
    pub fn regenerate<M>(&mut self, memory: &M) -> Result<GenerationId, VmGenIdError>
    where
        M: Bytes<GuestAddress, E = GuestMemoryError> + ?Sized,
    {
        let forgotten = (self.ancestors.len() + 1).saturating_sub(MAX_ANCESTORS);
        let known = self.ancestors.iter().skip(forgotten).copied();
        let next = Self {
            gpa: self.gpa,
            id: GenerationId::random()?,
            changes: self.changes.saturating_add(1),
            changed_at: now(),
            ancestors: known.chain([self.id]).collect(),
        };
        next.write_to(memory)?;
        *self = next;
        Ok(self.id)
    }

    /// Writes the ID to guest memory, unchanged. *vCPUs:* not running.
    ///
    /// # Errors
    /// [`VmGenIdError::Memory`].
    pub fn write_to<M>(&self, memory: &M) -> Result<(), VmGenIdError>
    where
        M: Bytes<GuestAddress, E = GuestMemoryError> + ?Sized,
    {
        memory
            .write_slice(&self.id.to_bytes(), GuestAddress(self.gpa))
            .map_err(|source| VmGenIdError::Memory {
                gpa: self.gpa,
                source,
            })
    }

    /// The ID.
    pub fn id(&self) -> GenerationId {
        self.id
    }

    /// Guest physical address of the ID.
    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    /// How many times the ID has changed since the guest booted.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// When the ID changed last or was made, since 1970-01-01 00:00 UTC by the host's clock.
    pub fn changed_at(&self) -> Duration {
        self.changed_at
    }

    /// The IDs that came before, the oldest first: the last [`MAX_ANCESTORS`] of them at most. A hostile snapshot may hold any.
    pub fn ancestors(&self) -> &[GenerationId] {
        &self.ancestors
    }
}

impl Persist for VmGenId {
    type State = VmGenIdState;

    fn save(&self) -> VmGenIdState {
        VmGenIdState {
            gpa: self.gpa,
            id: self.id.to_bytes(),
            changes: self.changes,
            changed_at_secs: self.changed_at.as_secs(),
            changed_at_nanos: self.changed_at.subsec_nanos(),
            ancestors: self.ancestors.iter().map(|id| id.to_bytes()).collect(),
        }
    }
}

impl Aml for VmGenId {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        // The name that Linux looks for; before 6.10 it looked at _HID alone. It is no well-formed
        // ACPI ID (section 6.1.5: four characters, four hexadecimal digits), which iasl takes for
        // an error in a Name but leaves to a method.
        let name = Return::new(&"VMGENCTR");
        let hid = Method::new("_HID".into(), 0, false, vec![&name]);
        let cid = Name::new("_CID".into(), &"VM_Gen_Counter");
        let ddn = Name::new("_DDN".into(), &"VM_Gen_Counter");
        let low = self.gpa as u32;
        let high = (self.gpa >> 32) as u32;
        let addr = Name::new("ADDR".into(), &Package::new(vec![&low, &high]));
        Device::new("VGEN".into(), vec![&hid, &cid, &ddn, &addr]).to_aml_bytes(sink);
    }
}

fn check_address(gpa: u64) -> Result<(), VmGenIdError> {
    let fits = gpa % PAGE_SIZE <= PAGE_SIZE - ID_LEN as u64;
    if gpa.is_multiple_of(ALIGNMENT) && fits {
        Ok(())
    } else {
        Err(VmGenIdError::Address { gpa })
    }
}

/// The host's clock. One that stands before 1970 is as good as none.
fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

#[cfg(test)]
#[path = "vmgenid_test.rs"]
mod tests;
