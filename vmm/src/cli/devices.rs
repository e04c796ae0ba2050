//! Devices as they are named on the command line: a path or name, and options behind commas.

use std::path::{Path, PathBuf};

use vmgenie_machine::config::{
    CacheMode, Cid, ConfigError, DeviceId, InterfaceName, IoEngine, Mtu, VsockConfig, VsockPeers,
};

use super::words::Words;

/// The CID of a guest that is given none.
const DEFAULT_CID: u64 = 3;

pub(super) fn unknown<T>(name: &str, known: &str) -> Result<T, String> {
    Err(format!(
        "{name:?} is none of the options {known} (a comma that belongs to the value is written twice)"
    ))
}

fn told(error: ConfigError) -> String {
    error.to_string()
}

/// A drive without its name and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveArg {
    pub(super) path: PathBuf,
    pub(super) overlay: Option<PathBuf>,
    pub(super) read_only: bool,
    pub(super) cache: CacheMode,
    pub(super) io_engine: IoEngine,
}

/// `PATH[,ro][,writeback][,async][,overlay=PATH]`.
pub(super) fn parse_drive(text: &str) -> Result<DriveArg, String> {
    let words = Words::of(text);
    let (path, options) = words.parts();
    if path.is_empty() {
        return Err("the path is missing".to_owned());
    }
    let mut drive = DriveArg {
        path: path.into(),
        overlay: None,
        read_only: false,
        cache: CacheMode::Unsafe,
        io_engine: IoEngine::Sync,
    };
    for option in options {
        match option {
            ("ro", None) => drive.read_only = true,
            ("writeback", None) => drive.cache = CacheMode::Writeback,
            ("async", None) => drive.io_engine = IoEngine::Async,
            ("overlay", Some(path)) if !path.is_empty() => drive.overlay = Some(path.into()),
            (name, _) => return unknown(name, "ro, writeback, async, overlay=PATH"),
        }
    }
    Ok(drive)
}

/// A network interface without its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetArg {
    pub(super) tap: InterfaceName,
    pub(super) mac: Option<vmgenie_machine::config::MacAddress>,
    pub(super) mtu: Option<Mtu>,
}

/// `TAP[,mac=MAC][,mtu=MTU]`.
pub(super) fn parse_net(text: &str) -> Result<NetArg, String> {
    let words = Words::of(text);
    let (tap, options) = words.parts();
    let mut net = NetArg {
        tap: InterfaceName::new(tap).map_err(told)?,
        mac: None,
        mtu: None,
    };
    for option in options {
        match option {
            ("mac", Some(mac)) => net.mac = Some(mac.parse().map_err(told)?),
            ("mtu", Some(mtu)) => net.mtu = Some(Mtu::new(number(mtu)?).map_err(told)?),
            (name, _) => return unknown(name, "mac=MAC, mtu=MTU"),
        }
    }
    Ok(net)
}

/// `PATH[,cid=CID][,peers=own|any]`.
pub(super) fn parse_vsock(text: &str) -> Result<VsockConfig, String> {
    let words = Words::of(text);
    let (path, options) = words.parts();
    if path.is_empty() {
        return Err("the path is missing".to_owned());
    }
    let (mut cid, mut peers) = (DEFAULT_CID, VsockPeers::Own);
    for option in options {
        match option {
            ("cid", Some(value)) => cid = number(value)?,
            ("peers", Some(value)) => peers = peers_of(value)?,
            (name, _) => return unknown(name, "cid=CID, peers=own|any"),
        }
    }
    Ok(VsockConfig {
        guest_cid: Cid::new(cid).map_err(told)?,
        uds_path: path.into(),
        peers,
    })
}

pub(super) fn peers_of(text: &str) -> Result<VsockPeers, String> {
    match text {
        "own" => Ok(VsockPeers::Own),
        "any" => Ok(VsockPeers::Any),
        _ => Err(format!("peers={text}: it is own or any")),
    }
}

pub(super) fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is no number"))
}

/// A part of a request that changes the devices of a restored machine, in which `{n}` stands for the number of the clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(String);

impl DriveArg {
    /// The image.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Template {
    pub(super) fn of(&self, number: Option<u16>) -> String {
        match number {
            Some(number) => self.0.replace("{n}", &number.to_string()),
            None => self.0.clone(),
        }
    }

    /// The same of what is no text but a name: there, other things in braces are mistakes.
    pub(super) fn checked(&self, number: Option<u16>) -> Result<String, String> {
        let made = self.of(number);
        let mut braces = self.0.split('{').skip(1);
        match braces.find(|part| number.is_some() && !part.starts_with("n}")) {
            None => Ok(made),
            Some(_) => Err(format!(
                "{:?} has other braces than {{n}}, which stands for the number of the clone",
                self.0
            )),
        }
    }
}

/// `NAME=VALUE`, both there.
fn parse_override(text: &str) -> Result<(String, Template), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => {
            DeviceId::new(name).map_err(told)?;
            Ok((name.to_owned(), Template(value.to_owned())))
        }
        _ => Err("it reads NAME=VALUE".to_owned()),
    }
}

/// `NAME=VALUE[,OPTION]`, checked when the number of the clone is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    pub(super) name: String,
    pub(super) value: Template,
}

/// `DRIVE=PATH[,copy|,overlay]` or `INTERFACE=TAP[,mac=MAC]`.
pub(super) fn parse_device_override(text: &str) -> Result<Override, String> {
    let (name, value) = parse_override(text)?;
    Ok(Override { name, value })
}

/// Any text.
pub(super) fn parse_template(text: &str) -> Result<Template, String> {
    match text.is_empty() {
        true => Err("it is empty".to_owned()),
        false => Ok(Template(text.to_owned())),
    }
}

/// Any text, none included.
pub(super) fn parse_any_template(text: &str) -> Result<Template, String> {
    Ok(Template(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn devices_are_read_with_their_options() {
        let drive = parse_drive("/a/b.ext4,ro,async").unwrap();
        assert_eq!(
            (drive.path.as_path(), drive.read_only),
            (Path::new("/a/b.ext4"), true)
        );
        assert_eq!(
            (drive.io_engine, drive.cache),
            (IoEngine::Async, CacheMode::Unsafe)
        );
        assert!(parse_drive("").is_err() && parse_drive("/a,rw").is_err());
        let net = parse_net("tap0,mac=06:00:00:00:00:01,mtu=1400").unwrap();
        assert_eq!((net.tap.as_str(), net.mtu.unwrap().get()), ("tap0", 1400));
        for wrong in ["", "tap0,mac", "tap0,mtu=1", "tap0,mtu=x", "tap0,ip=1"] {
            assert!(parse_net(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_vsock("/v").unwrap().guest_cid.get(), 3);
        assert_eq!(parse_vsock("/v,cid=9").unwrap().guest_cid.get(), 9);
        assert!(parse_vsock("/v,cid=2").is_err() && parse_vsock(",cid=3").is_err());
        let uds_path = |text| parse_vsock(text).unwrap().uds_path;
        assert_eq!(uds_path("/a,,b,cid=9"), Path::new("/a,b"));
        // What a comma does that is not doubled is told.
        assert!(parse_vsock("/a,b").unwrap_err().contains("written twice"));
        let peers = |text| parse_vsock(text).map(|vsock| vsock.peers);
        assert_eq!(peers("/v"), Ok(VsockPeers::Own), "safe unless told");
        assert_eq!(peers("/v,peers=own,cid=4"), Ok(VsockPeers::Own));
        assert_eq!(peers("/v,cid=4,peers=any"), Ok(VsockPeers::Any));
        assert!(peers("/v,peers=all").is_err() && peers("/v,peers").is_err());
    }
}
