//! Drives, network interfaces, vsock, entropy.

use axum::extract::State;
use vmgenie_api::wire;
use vmgenie_machine::virtio::kinds::DeviceConfig;

use super::{Answer, Api, Json, PathId, deprecated};
use crate::api::convert::Checked;
use crate::controller::command::Command;

/// Adds or replaces a drive; before the start only.
#[utoipa::path(put, path = "/drives/{drive_id}", params(("drive_id" = String, Path)), request_body = wire::Drive, responses(
    (status = 204, description = "Done"), (status = 400, body = wire::Fault)
))]
pub(super) async fn put_drive(
    State(api): Api,
    id: PathId,
    Json(body): Json<wire::Drive>,
) -> Answer {
    id.check(&body.drive_id)?;
    api.done(Command::SetDevice(DeviceConfig::Drive(body.checked()?)))
        .await
}

/// Puts another file behind a drive, or opens the present one anew; after the start only.
#[utoipa::path(patch, path = "/drives/{drive_id}", params(("drive_id" = String, Path)), request_body = wire::PartialDrive, responses(
    (status = 204, description = "Done"), (status = 400, body = wire::Fault)
))]
pub(super) async fn patch_drive(
    State(api): Api,
    id: PathId,
    Json(body): Json<wire::PartialDrive>,
) -> Answer {
    id.check(&body.drive_id)?;
    let (id, path) = body.checked()?;
    api.done(Command::UpdateDrive(id, path)).await
}

/// Adds or replaces a network interface; before the start only.
#[utoipa::path(put, path = "/network-interfaces/{iface_id}", params(("iface_id" = String, Path)),
    request_body = wire::NetworkInterface, responses((status = 204, description = "Done"), (status = 400, body = wire::Fault)
))]
pub(super) async fn put_network_interface(
    State(api): Api,
    id: PathId,
    Json(body): Json<wire::NetworkInterface>,
) -> Answer {
    id.check(&body.iface_id)?;
    api.done(Command::SetDevice(DeviceConfig::Net(body.checked()?)))
        .await
}

/// Plugs the guest's cable in or out; there are no rate limiters. After the start only.
#[utoipa::path(patch, path = "/network-interfaces/{iface_id}", params(("iface_id" = String, Path)),
    request_body = wire::PartialNetworkInterface, responses((status = 204, description = "Done"), (status = 400, body = wire::Fault)
))]
pub(super) async fn patch_network_interface(
    State(api): Api,
    id: PathId,
    Json(body): Json<wire::PartialNetworkInterface>,
) -> Answer {
    id.check(&body.iface_id)?;
    let (id, link_up) = body.checked()?;
    api.done(Command::UpdateNet(id, link_up)).await
}

/// Sets or replaces the vsock device; before the start only.
#[utoipa::path(put, path = "/vsock", request_body = wire::Vsock, responses(
    (status = 204, description = "Done"), (status = 400, body = wire::Fault)
))]
pub(super) async fn put_vsock(State(api): Api, Json(body): Json<wire::Vsock>) -> Answer {
    let old = body.vsock_id.is_some();
    let vsock = body.checked()?;
    deprecated(
        old,
        api.done(Command::SetDevice(DeviceConfig::Vsock(vsock)))
            .await,
    )
}

/// Sets or replaces the entropy device; before the start only.
#[utoipa::path(put, path = "/entropy", request_body = wire::EntropyDevice, responses(
    (status = 204, description = "Done"), (status = 400, body = wire::Fault)
))]
pub(super) async fn put_entropy(State(api): Api, Json(body): Json<wire::EntropyDevice>) -> Answer {
    api.done(Command::SetDevice(DeviceConfig::Entropy(body.checked()?)))
        .await
}
