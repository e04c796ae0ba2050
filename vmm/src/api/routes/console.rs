//! The guest's console. It is ours.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::IntoResponse;
use hyper::header::{CONNECTION, UPGRADE};
use hyper::upgrade::OnUpgrade;
use hyper::{HeaderMap, StatusCode};
use vmgenie_api::headers::CONSOLE_PROTOCOL;
use vmgenie_api::limits::MAX_ATTACHED;
use vmgenie_api::wire;

use super::{Answer, Api, NoBody};
use crate::api::console::{Takeover, asked_for};
use crate::api::fault::ApiFault;
use crate::controller::command::CommandError;

/// The connection becomes the guest's serial console. Ours.
#[utoipa::path(get, path = "/console", responses(
    (status = 101, description = "From here on the connection carries what the guest says, and what is typed"),
    (status = 400, body = wire::Fault)
))]
pub(super) async fn console(
    State(api): Api,
    headers: HeaderMap,
    takeover: Option<Extension<Takeover>>,
    upgrade: Option<Extension<OnUpgrade>>,
    _: NoBody,
) -> Answer {
    let (Some(Extension(takeover)), Some(Extension(upgrade)), true) =
        (takeover, upgrade, asked_for(&headers))
    else {
        return Err(ApiFault::NoUpgrade);
    };
    let place = Arc::clone(&api.attached)
        .try_acquire_owned()
        .map_err(|_| ApiFault::TooManyAttached(MAX_ATTACHED))?;
    let handle = api
        .handle
        .try_clone()
        .map_err(|error| CommandError(format!("there is no room for one more console: {error}")))?;
    let follower = handle.console().follow();
    takeover.attach(upgrade, follower, handle, place);
    let headers = [(CONNECTION, "Upgrade"), (UPGRADE, CONSOLE_PROTOCOL)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}
