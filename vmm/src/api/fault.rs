//! What is answered when a request cannot be served: status 400 and a `fault_message`, as
//! Firecracker does it.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, StatusCode};
use thiserror::Error;
use vmgenie_api::headers::CONSOLE_PROTOCOL;
use vmgenie_api::limits::HEAD_LIMIT;
use vmgenie_api::wire::Fault;

use super::convert::WireError;
use crate::controller::command::CommandError;
use crate::kinds::BodyError;

/// How much of a path that does not exist is repeated in the message, in bytes.
const SHOWN_PATH_LEN: usize = 200;

/// Why a request was refused.
#[derive(Debug, Error)]
pub(super) enum ApiFault {
    /// No such path, or not with this method.
    #[error("Invalid request method and/or path: {0} {1}.")]
    NoSuchRoute(Method, String),
    /// Firecracker has it, vmgenie has not.
    #[error("{0} is not supported: vmgenie has nothing of the kind yet")]
    Absent(&'static str),
    /// The head is none of HTTP/1.1's.
    #[error(
        "The head of the request is not one of HTTP/1.1: its method, path, version or one of its headers cannot be read."
    )]
    NoRequest,
    /// The head is too long.
    #[error(
        "The head of the request is longer than {HEAD_LIMIT} bytes or has more than 100 headers."
    )]
    HeadTooLarge,
    /// A request that needs a body came without one.
    #[error("Empty {0} request.")]
    NoBody(Method),
    /// A GET request came with a body.
    #[error("GET request cannot have a body.")]
    GetBody,
    /// The body is longer than the limit.
    #[error("The body of the request is larger than the limit of {0} bytes.")]
    BodyTooLarge(usize),
    /// The body did not arrive in time.
    #[error("The body of the request did not arrive within {0} seconds.")]
    BodySlow(u64),
    /// The body could not be read.
    #[error("The body of the request could not be read: {0}")]
    BodyBroken(String),
    /// The body is not the JSON that the path takes.
    #[error("An error occurred when deserializing the json body of a request: {0}.")]
    Json(#[from] serde_json::Error),
    /// The body asks for what cannot be.
    #[error("{0}")]
    Wire(#[from] WireError),
    /// The controller refused or failed.
    #[error("{0}")]
    Command(#[from] CommandError),
    /// The machine stands still, so its guest cannot adapt.
    #[error(
        "the microVM is paused, so its guest cannot adapt to its generation: resume it first (PATCH /vm \
         {{\"state\": \"Resumed\"}})"
    )]
    WaitWhilePaused,
    /// Too many requests wait already.
    #[error("{0} requests wait for the guest to adapt already: wait for one of them to end")]
    TooManyWaits(usize),
    /// GET `/console` without the upgrade.
    #[error(
        "the console is a connection of its own: ask for it with the headers \"Connection: Upgrade\" and \"Upgrade: {CONSOLE_PROTOCOL}\""
    )]
    NoUpgrade,
    /// Too many clients are attached already.
    #[error("{0} clients are attached to the console already: wait for one of them to detach")]
    TooManyAttached(usize),
    /// The machine has gone while a request waited for it.
    #[error("the microVM is shutting down")]
    MachineGone,
    /// The client has gone while its request waited; nobody reads this.
    #[error("the client has gone")]
    ClientGone,
    /// The controller answered something else than what this command is answered with: a fault of
    /// ours.
    #[error("The microVM answered {0} in an unexpected way: this is a fault in vmgenie.")]
    UnexpectedReply(&'static str),
}

impl ApiFault {
    /// The fault for a method and path that nothing serves.
    pub(super) fn no_such_route(method: Method, path: &str) -> Self {
        let shown = match path.char_indices().nth(SHOWN_PATH_LEN) {
            Some((end, _)) => format!("{}...", &path[..end]),
            None => path.to_owned(),
        };
        Self::NoSuchRoute(method, shown)
    }
}

impl ApiFault {
    /// The body of its answer. Tells the log as well.
    pub(super) fn body(&self) -> Vec<u8> {
        let fault = Fault {
            fault_message: self.to_string(),
        };
        tracing::info!(fault = %fault.fault_message, "request refused");
        json(&fault)
    }
}

impl From<BodyError> for ApiFault {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Json(error) => error.into(),
            BodyError::Wire(error) => error.into(),
        }
    }
}

impl IntoResponse for ApiFault {
    fn into_response(self) -> Response {
        response(StatusCode::BAD_REQUEST, self.body())
    }
}

/// A response with a JSON body.
pub(super) fn json_response<T: serde::Serialize>(status: StatusCode, body: &T) -> Response {
    response(status, json(body))
}

fn json<T: serde::Serialize>(body: &T) -> Vec<u8> {
    // Serializing our wire types to memory cannot fail: string keys, no foreign Serialize.
    serde_json::to_vec(body).unwrap_or_default()
}

fn response(status: StatusCode, json: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(json));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
