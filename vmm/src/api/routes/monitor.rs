//! What concerns the process and not its machine: who it is, its log, its metrics, the document of its API.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use vmgenie_api::headers::FIRECRACKER_DIALECT;
use vmgenie_api::wire;

use super::{Answer, Api, Json, NoBody, document, ok};
use crate::api::convert::{Checked, Convert};
use crate::api::fault::ApiFault;
use crate::controller::command::{Command, Reply};
use crate::metrics;

/// Who is there, and in which state.
#[utoipa::path(get, path = "/", responses((status = 200, body = wire::InstanceInfo), (status = 400, body = wire::Fault)))]
pub(super) async fn instance_info(State(api): Api, _: NoBody) -> Answer {
    match api.handle.call(Command::State).await? {
        Reply::State(state) => Ok(ok(&wire::InstanceInfo {
            app_name: "vmgenie".to_owned(),
            id: api.info.id.clone(),
            state: state.convert(),
            vmm_version: api.info.version.clone(),
        })),
        _ => Err(ApiFault::UnexpectedReply("GET /")),
    }
}

/// The version of the dialect, and vmgenie's.
#[utoipa::path(get, path = "/version", responses((status = 200, body = wire::Version), (status = 400, body = wire::Fault)))]
pub(super) async fn version(State(api): Api, _: NoBody) -> Response {
    ok(&wire::Version {
        firecracker_version: FIRECRACKER_DIALECT.to_owned(),
        vmgenie_version: api.info.version.clone(),
    })
}

/// This document. Ours.
#[utoipa::path(get, path = "/openapi.json", responses(
    (status = 200, description = "An OpenAPI document", body = serde_json::Value), (status = 400, body = wire::Fault)
))]
pub(super) async fn openapi(_: NoBody) -> Response {
    ok(&document())
}

/// Changes the log; before the start only.
#[utoipa::path(put, path = "/logger", request_body = wire::Logger, responses(
    (status = 204, description = "Done"), (status = 400, body = wire::Fault)
))]
pub(super) async fn put_logger(State(api): Api, Json(body): Json<wire::Logger>) -> Answer {
    api.done(Command::SetLog(body.checked()?)).await
}

/// Where the metrics go as lines of JSON; once, and before the start only.
#[utoipa::path(put, path = "/metrics", request_body = wire::Metrics, responses(
    (status = 204, description = "Done"), (status = 400, body = wire::Fault)
))]
pub(super) async fn put_metrics(State(api): Api, Json(body): Json<wire::Metrics>) -> Answer {
    api.done(Command::SetMetrics(body.checked()?)).await
}

/// Where the guest's serial console goes; before the start or a restore only.
#[utoipa::path(put, path = "/serial", request_body = wire::Serial, responses(
    (status = 204, description = "Done"), (status = 400, body = wire::Fault)
))]
pub(super) async fn put_serial(State(api): Api, Json(body): Json<wire::Serial>) -> Answer {
    api.done(Command::SetSerial(body.checked()?)).await
}

/// The metrics as Prometheus reads them. Ours.
#[utoipa::path(get, path = "/metrics", responses(
    (status = 200, description = "Prometheus' text format", content_type = "text/plain", body = String),
    (status = 400, body = wire::Fault)
))]
pub(super) async fn get_metrics(State(api): Api, _: NoBody) -> Response {
    let mut response = metrics::prometheus(&api.info.id).into_response();
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
