//! What one request may cost: its body is read here, whole, bounded in size and time, before a
//! route sees it.

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Bytes};
use hyper::header::{CONNECTION, EXPECT, HeaderValue};
use hyper::{Request, StatusCode};
use tower::ServiceExt;
use vmgenie_api::limits::BODY_TIMEOUT;

use super::fault::ApiFault;

/// How much of a body that is too long is read and thrown away before it is refused, in bytes. A
/// client that writes all of its body before it reads would otherwise find its connection closed
/// and never see the reason.
const DISCARD_LIMIT: usize = 1 << 20;

/// Reads the body of `request`, of `limit` bytes at most, and lets `router` answer. `in_service` is called when the body has
/// arrived: from then on what takes time is the machine, not the client.
pub(super) async fn answer<B>(
    router: Router,
    limit: usize,
    request: Request<B>,
    in_service: impl FnOnce(),
) -> Response
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let (head, body) = request.into_parts();
    let declared = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    let discarded = limit.saturating_add(DISCARD_LIMIT);
    if declared > limit && (head.headers.contains_key(EXPECT) || declared > discarded) {
        return refuse(ApiFault::BodyTooLarge(limit));
    }
    let body = match tokio::time::timeout(BODY_TIMEOUT, read(body, limit)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(fault)) => return refuse(fault),
        Err(_) => return refuse(ApiFault::BodySlow(BODY_TIMEOUT.as_secs())),
    };
    in_service();
    match router
        .oneshot(Request::from_parts(head, Body::from(body)))
        .await
    {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

async fn read<B>(mut body: B, limit: usize) -> Result<Bytes, ApiFault>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let mut bytes = Vec::new();
    let mut discarded = 0_usize;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiFault::BodyBroken(error.to_string()))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if discarded == 0 && bytes.len() + data.len() <= limit {
            bytes.extend_from_slice(&data);
            continue;
        }
        bytes = Vec::new();
        discarded += data.len();
        if discarded > DISCARD_LIMIT {
            break;
        }
    }
    if discarded > 0 {
        Err(ApiFault::BodyTooLarge(limit))
    } else {
        Ok(bytes.into())
    }
}

/// A refusal after which the connection is closed, because the rest of the body is not wanted.
fn refuse(fault: ApiFault) -> Response {
    let mut response = fault.into_response();
    debug_assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
