//! Snapshots are written and restored.

use std::time::Instant;

use axum::Extension;
use axum::extract::State;
use axum::response::IntoResponse;
use hyper::header::HeaderValue;
use hyper::{HeaderMap, StatusCode};
use vmgenie_api::headers::{MEMORY_HEADER, STANDSTILL_HEADER, TOTAL_HEADER};
use vmgenie_api::wire;

use super::{Answer, Api, Json, NoBody, deprecated, ok};
use crate::api::convert::{Checked, created, microseconds, self_snapshots as shown};
use crate::api::fault::ApiFault;
use crate::api::wait::{Peer, gone};
use crate::controller::command::{Command, Reply};
use crate::metrics::METRICS;

/// Writes a full snapshot of a paused machine, or of one that runs, with `pause_vm` or `cooperative`.
#[utoipa::path(put, path = "/snapshot/create", request_body = wire::SnapshotCreate, responses(
    (status = 200, description = "The same, of a request with `cooperative`", body = wire::CooperativeCreated),
    (status = 204, description = "Both files are safe on disk", headers(
        ("x-vmgenie-standstill-us" = u64, description = "Microseconds that the guest stood still. Ours."),
        ("x-vmgenie-total-us" = u64, description = "Microseconds for everything. Ours."),
        ("x-vmgenie-memory-bytes" = u64, description = "Bytes of guest memory written. Ours."),
    )),
    (status = 400, body = wire::Fault)
))]
pub(super) async fn create_snapshot(
    State(api): Api,
    peer: Option<Extension<Peer>>,
    Json(body): Json<wire::SnapshotCreate>,
) -> Answer {
    let waits = body.cooperative.is_some();
    let command = Command::CreateSnapshot(body.checked()?);
    let begun = Instant::now();
    let reply = match waits {
        true => {
            let peer = peer.as_ref().map(|Extension(peer)| peer);
            api.handle.call_for(command, gone(peer)).await?
        }
        false => api.handle.call(command).await?,
    };
    match reply {
        Reply::SnapshotCreated(made) => {
            METRICS.latencies_us.full_create_snapshot.set_since(begun);
            let mut headers = HeaderMap::new();
            headers.insert(
                STANDSTILL_HEADER,
                HeaderValue::from(microseconds(made.standstill)),
            );
            headers.insert(TOTAL_HEADER, HeaderValue::from(microseconds(made.total)));
            headers.insert(MEMORY_HEADER, HeaderValue::from(made.memory_bytes));
            Ok(match &made.cooperation {
                None => (StatusCode::NO_CONTENT, headers).into_response(),
                Some(cooperation) => (headers, ok(&created(&made, cooperation))).into_response(),
            })
        }
        _ => Err(ApiFault::UnexpectedReply("PUT /snapshot/create")),
    }
}

/// Restores a snapshot into a VMM with nothing configured.
#[utoipa::path(put, path = "/snapshot/load", request_body = wire::SnapshotLoad, responses(
    (status = 204, description = "The machine is there"), (status = 400, body = wire::Fault)
))]
pub(super) async fn load_snapshot(State(api): Api, Json(body): Json<wire::SnapshotLoad>) -> Answer {
    let old = body.mem_file_path.is_some() || body.enable_diff_snapshots;
    let command = Command::LoadSnapshot(body.checked()?);
    let begun = Instant::now();
    let answer = api.done(command).await;
    if answer.is_ok() {
        METRICS.latencies_us.load_snapshot.set_since(begun);
    }
    deprecated(old, answer)
}

/// Lets the guest ask for snapshots of itself; before the start or a restore only. Ours.
#[utoipa::path(put, path = "/self-snapshot", request_body = wire::SelfSnapshot, responses(
    (status = 204, description = "Done"), (status = 400, body = wire::Fault)
))]
pub(super) async fn put_self_snapshot(
    State(api): Api,
    Json(body): Json<wire::SelfSnapshot>,
) -> Answer {
    api.done(Command::SetSelfSnapshot(body.checked()?)).await
}

/// What the guest may have of snapshots of itself, and those that it has had. Ours.
#[utoipa::path(get, path = "/self-snapshot", responses((status = 200, body = wire::SelfSnapshots), (status = 400, body = wire::Fault)))]
pub(super) async fn self_snapshots(State(api): Api, _: NoBody) -> Answer {
    match api.handle.call(Command::SelfSnapshots).await? {
        Reply::SelfSnapshots(allowed, taken) => Ok(ok(&shown(allowed, &taken))),
        _ => Err(ApiFault::UnexpectedReply("GET /self-snapshot")),
    }
}
