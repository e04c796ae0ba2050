//! Devices of all kinds.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::put;
use vmgenie_api::wire;

use super::{Answer, Api, Body, Json, PathId, Shared, deprecated};
use crate::api::convert::Checked;
use crate::checked::same_id;
use crate::controller::command::Command;
use crate::kinds::{KINDS, Kind};

/// Adds a PUT for each kind of device.
pub(super) fn served(mut router: Router<Arc<Shared>>) -> Router<Arc<Shared>> {
    for &kind in &KINDS {
        let (_, named) = kind.place();
        let handler = match named {
            true => put(
                move |State(api): Api, PathId(id): PathId, Body(body): Body| {
                    put_device(kind, api, id, body)
                },
            ),
            false => put(move |State(api): Api, Body(body): Body| {
                put_device(kind, api, String::new(), body)
            }),
        };
        router = router.route(kind.path(), handler);
    }
    router
}

async fn put_device(kind: &dyn Kind, api: Arc<Shared>, id: String, body: Bytes) -> Answer {
    let put = kind.put(&id, &body)?;
    let done = api.done(Command::SetDevice(put.device)).await;
    deprecated(put.deprecated, done)
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
    same_id(&id.0, &body.drive_id)?;
    let (id, path) = body.checked()?;
    api.done(Command::UpdateDrive(id, path)).await
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
    same_id(&id.0, &body.iface_id)?;
    let (id, link_up) = body.checked()?;
    api.done(Command::UpdateNet(id, link_up)).await
}
