//! Generations. All of it is ours.

use axum::body::Bytes;
use axum::extract::{Extension, State};
use axum::response::Response;
use hyper::StatusCode;
use vmgenie_api::wire;

use super::{Answer, Api, Json, NoBody, Shared, ok};
use crate::api::convert::{self, Convert};
use crate::api::fault::{ApiFault, json_response};
use crate::api::wait::{self, Peer};
use crate::controller::command::{Command, Reply};

/// The present generation. Ours.
#[utoipa::path(get, path = "/generation", responses((status = 200, body = wire::GenerationInfo), (status = 400, body = wire::Fault)))]
pub(super) async fn generation(State(api): Api, _: NoBody) -> Answer {
    api.generation(Command::Generation).await
}

/// Begins a new generation; the body may be empty. Ours.
#[utoipa::path(put, path = "/generation", request_body = Option<wire::NewGeneration>, responses(
    (status = 200, body = wire::GenerationInfo), (status = 400, body = wire::Fault)
))]
pub(super) async fn new_generation(State(api): Api, body: Bytes) -> Answer {
    if !body.is_empty() {
        serde_json::from_slice::<wire::NewGeneration>(&body)?;
    }
    api.generation(Command::NewGeneration).await
}

/// Waits until the guest has adapted to its generation. Ours.
#[utoipa::path(put, path = "/generation/wait", request_body = wire::GenerationWait, responses(
    (status = 200, body = wire::GenerationWaited), (status = 400, body = wire::Fault)
))]
pub(super) async fn wait_for_generation(
    State(api): Api,
    peer: Option<Extension<Peer>>,
    Json(body): Json<wire::GenerationWait>,
) -> Answer {
    let peer = peer.as_ref().map(|Extension(peer)| peer);
    let waited = wait::wait(&api.handle, &api.waits, &body, peer).await?;
    Ok(ok(&waited))
}

/// Whether the machine may be sent work: 200 if so, 503 if not. Asks neither the machine nor the event loop. Ours.
#[utoipa::path(get, path = "/ready", responses(
    (status = 200, body = wire::Ready), (status = 503, body = wire::Ready), (status = 400, body = wire::Fault)
))]
pub(super) async fn ready(State(api): Api, _: NoBody) -> Response {
    let told = api.handle.readiness().now();
    let answer = convert::ready(&told, &api.handle.reports().borrow());
    let status = match answer.ready {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    json_response(status, &answer)
}

impl Shared {
    async fn generation(&self, command: Command) -> Answer {
        match self.handle.call(command).await? {
            Reply::Generation(generation) => {
                Ok(ok(&Convert::<wire::GenerationInfo>::convert(generation)))
            }
            _ => Err(ApiFault::UnexpectedReply("the question for the generation")),
        }
    }
}
