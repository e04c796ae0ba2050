//! QEMU's firmware configuration device (`docs/specs/fw_cfg.rst` in QEMU), with one file: the string by which a guest
//! knows who it is among the clones of a snapshot.
//!
//! | port offset | |
//! |---|---|
//! | 0x0 | written, 16 bits, little-endian: selects an item and its first byte |
//! | 0x1 | read, 8 bits: the next byte of the item; zero behind its end |
//!
//! All other accesses are ignored, and read as ones. There is the traditional interface alone, no DMA. Items: the
//! signature, the interface's ID, the directory, and the file, whose length never changes because guests ask for it
//! once, when their driver starts. They ask for its content each time: after a restore the first read has the new one.
//! A read that had begun before goes on in the new one.

use acpi_tables::{
    Aml, AmlSink,
    aml::{Device, IO, Name, ResourceTemplate},
};
use serde::{Deserialize, Serialize};
use vm_device::{
    MutDevicePio,
    bus::{PioAddress, PioAddressOffset},
};

use crate::{DeviceState, Persist, Restore};

/// First I/O port, which the specification gives.
pub const PORT_BASE: u16 = 0x510;
/// Number of I/O ports.
pub const PORT_LEN: u16 = 2;
/// The file's name. Linux shows it in `/sys/firmware/qemu_fw_cfg/by_name/`; names below `opt/` that begin with a domain
/// are for everybody.
pub const FILE_NAME: &str = "opt/org.vmgenie.instance";
/// The file's length in bytes: what the string leaves is zero.
pub const FILE_LEN: usize = 4096;

const SELECTOR: u16 = 0;
const DATA: u16 = 1;

const KEY_SIGNATURE: u16 = 0x00;
const KEY_ID: u16 = 0x01;
const KEY_DIRECTORY: u16 = 0x19;
const KEY_FILE: u16 = 0x20;

const SIGNATURE: [u8; 4] = *b"QEMU";
/// Bit 0: the traditional interface.
const ID: [u8; 4] = 1_u32.to_le_bytes();
/// The number of files, and one file: length, key, two reserved bytes, name; big-endian.
const DIRECTORY: [u8; 68] = directory();

const fn directory() -> [u8; 68] {
    let mut bytes = [0; 68];
    bytes[3] = 1;
    let [_, _, high, low] = (FILE_LEN as u32).to_be_bytes();
    (bytes[6], bytes[7]) = (high, low);
    bytes[9] = KEY_FILE as u8;
    let name = FILE_NAME.as_bytes();
    let mut index = 0;
    while index < name.len() {
        bytes[12 + index] = name[index];
        index += 1;
    }
    bytes
}

/// Why a string cannot be given to a guest.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum InstanceDataError {
    /// Too long.
    #[error("the instance data has {0} bytes: it may have {FILE_LEN} at most")]
    TooLong(usize),
    /// Guests take a zero for the end.
    #[error("the instance data has a zero byte at offset {0}")]
    Zero(usize),
}

/// The string: at most [`FILE_LEN`] bytes of UTF-8 without a zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceData(String);

impl InstanceData {
    /// Checks length and content.
    ///
    /// # Errors
    /// [`InstanceDataError`].
    pub fn new(text: impl Into<String>) -> Result<Self, InstanceDataError> {
        let text = text.into();
        if text.len() > FILE_LEN {
            return Err(InstanceDataError::TooLong(text.len()));
        }
        match text.bytes().position(|byte| byte == 0) {
            Some(offset) => Err(InstanceDataError::Zero(offset)),
            None => Ok(Self(text)),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for InstanceData {
    type Error = InstanceDataError;

    fn try_from(text: String) -> Result<Self, InstanceDataError> {
        Self::new(text)
    }
}

impl From<InstanceData> for String {
    fn from(data: InstanceData) -> Self {
        data.0
    }
}

/// The device's state in a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FwCfgState {
    /// The item that was selected last.
    pub selector: u16,
    /// The byte of it that is read next.
    pub offset: u32,
    /// What the machine that was saved had been given; another machine has its own.
    pub data: InstanceData,
}

impl DeviceState for FwCfgState {
    const VERSION: u16 = 1;
}

/// The device.
#[derive(Debug, Default)]
pub struct FwCfg(FwCfgState);

impl FwCfg {
    /// The device after power-on, with this string.
    pub fn new(data: InstanceData) -> Self {
        Self(FwCfgState {
            data,
            ..FwCfgState::default()
        })
    }

    /// The string.
    pub fn data(&self) -> &InstanceData {
        &self.0.data
    }

    /// Gives the guest another string, which its next read has.
    pub fn set_data(&mut self, data: InstanceData) {
        self.0.data = data;
    }

    /// The next byte of the selected item; zero where there is none.
    fn next(&mut self) -> u8 {
        let item = match self.0.selector {
            KEY_SIGNATURE => &SIGNATURE[..],
            KEY_ID => &ID,
            KEY_DIRECTORY => &DIRECTORY,
            KEY_FILE => self.0.data.as_str().as_bytes(),
            _ => &[],
        };
        let byte = item.get(self.0.offset as usize).copied().unwrap_or(0);
        // No item is so long that it would matter where this ends.
        self.0.offset = self.0.offset.saturating_add(1);
        byte
    }
}

impl MutDevicePio for FwCfg {
    fn pio_read(&mut self, _base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        match (offset, data) {
            (DATA, [byte]) => *byte = self.next(),
            (_, data) => data.fill(0xff),
        }
    }

    fn pio_write(&mut self, _base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let (SELECTOR, &[low, high]) = (offset, data) {
            self.0.selector = u16::from_le_bytes([low, high]);
            self.0.offset = 0;
        }
    }
}

impl Persist for FwCfg {
    type State = FwCfgState;

    fn save(&self) -> FwCfgState {
        self.0.clone()
    }
}

impl Restore for FwCfg {
    type Error = std::convert::Infallible;

    /// Takes the registers alone: whether the string of the saved machine is this one's, the caller knows.
    fn restore(&mut self, state: &FwCfgState) -> Result<(), Self::Error> {
        (self.0.selector, self.0.offset) = (state.selector, state.offset);
        Ok(())
    }
}

impl Aml for FwCfg {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let ports = IO::new(PORT_BASE, PORT_BASE, 1, PORT_LEN as u8);
        Device::new(
            "FWCF".into(),
            vec![
                &Name::new("_HID".into(), &"QEMU0002"),
                // Present, enabled, working, and nothing to show to people (ACPI 6.5 section 6.3.7).
                &Name::new("_STA".into(), &0x0b_u8),
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports])),
            ],
        )
        .to_aml_bytes(sink);
    }
}

#[cfg(test)]
#[path = "fw_cfg_test.rs"]
mod tests;
