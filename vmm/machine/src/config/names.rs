//! Names and numbers that devices are configured with. Each type holds a checked value only, also when it is decoded from a
//! snapshot's state file.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// The longest name of a device, in bytes.
pub const MAX_DEVICE_ID_LEN: usize = 255;
/// The longest name of a host's network interface, in bytes (`IFNAMSIZ` less the terminating zero).
pub const MAX_INTERFACE_LEN: usize = 15;
/// The smallest MTU of a network interface, in bytes: what every IPv4 host takes (RFC 791).
pub const MIN_MTU: u16 = 68;
/// The smallest CID of a guest: 0 to 2 are reserved (virtio 1.x section 5.10.4).
pub const MIN_CID: u32 = 3;
/// The largest CID of a guest: `VMADDR_CID_ANY`, 2^32 - 1, is not an address.
pub const MAX_CID: u32 = u32::MAX - 1;

/// The name of a drive or a network interface: 1 to [`MAX_DEVICE_ID_LEN`] bytes of letters, digits and underscores.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceId(String);

impl DeviceId {
    /// Checks length and characters.
    pub fn new(text: &str) -> Result<Self, ConfigError> {
        if text.is_empty() {
            return Err(ConfigError::EmptyId);
        }
        if text.len() > MAX_DEVICE_ID_LEN {
            return Err(ConfigError::IdTooLong(text.len()));
        }
        if !text.chars().all(|c| c == '_' || c.is_alphanumeric()) {
            return Err(ConfigError::IdCharacter);
        }
        Ok(Self(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of a network interface of the host (a tap): 1 to [`MAX_INTERFACE_LEN`] bytes, as the kernel takes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(String);

impl InterfaceName {
    /// Checks what the kernel's `dev_valid_name` checks. A `%` is refused, too: the kernel would put a number in its place.
    pub fn new(text: &str) -> Result<Self, ConfigError> {
        let refused = |c: char| c.is_ascii_whitespace() || matches!(c, '/' | ':' | '%' | '\0');
        if text.is_empty()
            || text.len() > MAX_INTERFACE_LEN
            || matches!(text, "." | "..")
            || text.contains(refused)
        {
            return Err(ConfigError::InterfaceName(text.chars().take(64).collect()));
        }
        Ok(Self(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The MAC address of a guest's network interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// Any six bytes; whether they make a unicast address is the guest's business.
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// The bytes in the order in which they are sent.
    pub const fn bytes(&self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = ConfigError;

    /// Six pairs of hexadecimal digits, with a colon between.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let malformed = || ConfigError::Mac(text.chars().take(64).collect());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(malformed)?;
            // `from_str_radix` takes a sign, too.
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(malformed());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| malformed())?;
        }
        match parts.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(malformed()),
        }
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The largest packet of a network interface in bytes, [`MIN_MTU`] to 65,535, without the Ethernet header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Mtu(u16);

impl Mtu {
    /// Checks the range.
    pub fn new(bytes: u64) -> Result<Self, ConfigError> {
        u16::try_from(bytes)
            .ok()
            .filter(|mtu| *mtu >= MIN_MTU)
            .map(Self)
            .ok_or(ConfigError::Mtu(bytes))
    }

    /// Bytes.
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// The address of a guest on its vsock: [`MIN_CID`] to [`MAX_CID`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Cid(u32);

impl Cid {
    /// Checks the range.
    pub fn new(cid: u64) -> Result<Self, ConfigError> {
        u32::try_from(cid)
            .ok()
            .filter(|cid| (MIN_CID..=MAX_CID).contains(cid))
            .map(Self)
            .ok_or(ConfigError::Cid(cid))
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// What serde needs to decode a checked type from a plain one and to encode it.
macro_rules! checked {
    ($checked:ident, $plain:ty, |$value:ident| $check:expr) => {
        impl TryFrom<$plain> for $checked {
            type Error = ConfigError;

            fn try_from($value: $plain) -> Result<Self, ConfigError> {
                $check
            }
        }

        impl From<$checked> for $plain {
            fn from(checked: $checked) -> Self {
                checked.0.into()
            }
        }
    };
}

checked!(DeviceId, String, |text| Self::new(&text));
checked!(InterfaceName, String, |text| Self::new(&text));
checked!(Mtu, u64, |bytes| Self::new(bytes));
checked!(Cid, u64, |cid| Self::new(cid));

macro_rules! shown {
    ($($checked:ident),*) => {$(
        impl fmt::Display for $checked {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

shown!(DeviceId, InterfaceName, Mtu, Cid);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_id_is_letters_digits_and_underscores() {
        assert_eq!(DeviceId::new("rootfs_1").unwrap().as_str(), "rootfs_1");
        assert_eq!(DeviceId::new(""), Err(ConfigError::EmptyId));
        for text in ["a-b", "a b", "a/b", "a.b", "a\0"] {
            assert_eq!(DeviceId::new(text), Err(ConfigError::IdCharacter), "{text}");
        }
        assert!(DeviceId::new(&"x".repeat(MAX_DEVICE_ID_LEN)).is_ok());
        assert!(DeviceId::new(&"x".repeat(MAX_DEVICE_ID_LEN + 1)).is_err());
    }

    #[test]
    fn an_interface_name_is_one_that_the_kernel_takes() {
        assert!(InterfaceName::new("tap0").is_ok());
        assert!(InterfaceName::new(&"t".repeat(15)).is_ok());
        for text in ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "tap%d", "a\0b"] {
            assert!(InterfaceName::new(text).is_err(), "{text:?}");
        }
        assert!(InterfaceName::new(&"t".repeat(16)).is_err());
    }

    #[test]
    fn a_mac_address_is_six_pairs_of_hexadecimal_digits() {
        let mac: MacAddress = "06:00:aC:10:00:02".parse().unwrap();
        assert_eq!(mac.bytes(), [6, 0, 0xac, 0x10, 0, 2]);
        assert_eq!(mac.to_string(), "06:00:ac:10:00:02");
        for text in [
            "",
            "06:00:ac:10:00",
            "06:00:ac:10:00:02:",
            "06:00:ac:10:00:02:03",
            "6:0:ac:10:0:2",
            "+6:00:ac:10:00:02",
            "06-00-ac-10-00-02",
            "0g:00:ac:10:00:02",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert!(Mtu::new(67).is_err());
        assert_eq!(Mtu::new(68).unwrap().get(), 68);
        assert_eq!(Mtu::new(65_535).unwrap().get(), 65_535);
        assert!(Mtu::new(65_536).is_err());
        assert!(Cid::new(2).is_err());
        assert_eq!(Cid::new(3).unwrap().get(), 3);
        assert!(Cid::new(u64::from(u32::MAX)).is_err());
        assert!(Cid::new(1 << 32 | 3).is_err());
    }

    #[test]
    fn an_encoded_value_out_of_range_is_not_decoded() {
        let bytes = postcard::to_stdvec(&2_u64).unwrap();
        assert!(postcard::from_bytes::<Cid>(&bytes).is_err());
        let bytes = postcard::to_stdvec("../x").unwrap();
        assert!(postcard::from_bytes::<DeviceId>(&bytes).is_err());
        let id = DeviceId::new("x").unwrap();
        let bytes = postcard::to_stdvec(&id).unwrap();
        assert_eq!(postcard::from_bytes::<DeviceId>(&bytes).unwrap(), id);
    }
}
