//! The kinds of devices as users see them, a module each, and the table of them: whatever lists all kinds is here.
//!
//! A kind has a path in the API, a field in GET `/vm/config` and in the configuration file, flags of `vmgenie run`, and a metric of its requests.
//! "How to add a device" in `docs/architecture.md` says what else.

pub mod drive;
pub mod entropy;
mod kind;
pub mod net;
pub mod vsock;

use clap::Args;
use utoipa::OpenApi;
use vmgenie_machine::config::ConfigError;
use vmgenie_machine::virtio::kinds::DevicesConfig;

pub use kind::{BodyError, Kind, Put, PutCounters};

/// All kinds, in the order of the devices' slots.
pub static KINDS: [&dyn Kind; 4] = [
    &drive::DriveKind,
    &net::NetKind,
    &vsock::VsockKind,
    &entropy::EntropyKind,
];

/// Their requests in the OpenAPI document.
#[derive(OpenApi)]
#[openapi(paths(
    drive::put_drive,
    net::put_network_interface,
    vsock::put_vsock,
    entropy::put_entropy
))]
pub(crate) struct Document;

/// The devices of `vmgenie run`.
#[derive(Debug, Args)]
pub struct DeviceFlags {
    /// Drives.
    #[command(flatten)]
    pub drives: drive::DriveFlags,
    #[command(flatten)]
    nets: net::NetFlags,
    #[command(flatten)]
    vsock: vsock::VsockFlags,
    #[command(flatten)]
    entropy: entropy::EntropyFlags,
}

impl DeviceFlags {
    /// The devices that the flags name.
    pub(crate) fn devices(&self) -> Result<DevicesConfig, ConfigError> {
        let mut devices = DevicesConfig::default();
        self.drives.add_to(&mut devices)?;
        self.nets.add_to(&mut devices)?;
        self.vsock.add_to(&mut devices);
        self.entropy.add_to(&mut devices);
        Ok(devices)
    }
}

/// Examples of these flags, for the help of `run`.
pub(crate) const EXAMPLES: &str = concat!(
    "  vmgenie run --kernel vmlinux --disk root.ext4 --net tap0,mac=06:00:ac:10:00:02 --entropy\n",
    "  vmgenie run --disk debian.ext4 --vsock vm.vsock"
);

#[cfg(test)]
mod tests {
    #[test]
    fn run_names_its_devices_in_their_order() {
        use clap::Parser;
        let line = "vmgenie run --kernel k --net tap0 --drive /b --disk /a,ro --drive /c,writeback --vsock /v --entropy";
        let cli = crate::cli::args::Cli::try_parse_from(line.split(' ')).unwrap();
        let crate::cli::args::Command::Run(args) = cli.command else {
            panic!("{line}");
        };
        let devices = args.devices.devices().unwrap();
        let drives: Vec<_> = devices
            .drives()
            .iter()
            .map(|drive| {
                (
                    drive.id.as_str(),
                    drive.path.to_str().unwrap(),
                    drive.is_root,
                )
            })
            .collect();
        assert_eq!(
            drives,
            [
                ("disk0", "/a", true),
                ("disk1", "/b", false),
                ("disk2", "/c", false)
            ]
        );
        assert_eq!(devices.nets()[0].id.as_str(), "net0");
        assert_eq!(devices.len(), 6);
    }
}
