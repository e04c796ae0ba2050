//! Bodies of requests, and answers as the runtime API has them.

use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, StatusCode};
use serde_json::json;

pub(super) type Response = hyper::Response<Full<Bytes>>;

/// How much of a body that is too long is read, in bytes.
const DISCARDED: usize = 1 << 20;
/// How long a body may take, unless it is an event's answer.
pub(super) const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// All of a request's body.
pub(super) async fn body(
    request: Request<Incoming>,
    limit: usize,
    timeout: Duration,
) -> Result<Bytes, Response> {
    let read = tokio::time::timeout(timeout, read(request.into_body(), limit)).await;
    let (status, kind, text) = match read {
        Ok(Ok(Some(body))) => return Ok(body),
        Ok(Ok(None)) => (
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            format!("a body may have {limit} bytes"),
        ),
        Ok(Err(error)) => (
            StatusCode::BAD_REQUEST,
            "InvalidRequest",
            format!("the body is broken: {error}"),
        ),
        Err(_) => (
            StatusCode::REQUEST_TIMEOUT,
            "InvalidRequest",
            format!("the body took longer than {timeout:?}"),
        ),
    };
    Err(refusal(status, kind, &text))
}

/// Nothing if it is longer than `limit`. Some of what is too long is read nevertheless: a client that writes all
/// before it reads would else never see why.
async fn read(mut body: Incoming, limit: usize) -> hyper::Result<Option<Bytes>> {
    let most = limit.saturating_add(DISCARDED);
    if usize::try_from(body.size_hint().lower()).is_ok_and(|declared| declared > most) {
        return Ok(None);
    }
    let (mut bytes, mut length) = (Vec::new(), 0_usize);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        length = length.saturating_add(data.len());
        match length {
            length if length <= limit => bytes.extend_from_slice(&data),
            length if length <= most => bytes = Vec::new(),
            _ => break,
        }
    }
    Ok((length <= limit).then(|| bytes.into()))
}

pub(super) fn empty(status: StatusCode) -> Response {
    let mut response = Response::default();
    *response.status_mut() = status;
    response
}

pub(super) fn json(status: StatusCode, value: &serde_json::Value) -> Response {
    let mut response = Response::new(value.to_string().into());
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

pub(super) fn accepted() -> Response {
    json(StatusCode::ACCEPTED, &json!({ "status": "OK" }))
}

/// An error as the runtime API has it.
pub(super) fn refusal(status: StatusCode, kind: &str, message: &str) -> Response {
    json(
        status,
        &json!({ "errorType": kind, "errorMessage": message }),
    )
}
