//! Events for the runtime: one at a time, from a client that waits for the answer, as with Amazon's emulator.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, StatusCode};
use tokio::sync::{Semaphore, oneshot};

use super::super::uuid;
use super::exchange::{BODY_TIMEOUT, Response, accepted, body, empty, refusal};
use super::state::{Answer, Event, Shared};

/// How long an event or its answer may be, in bytes: as with Lambda.
pub(super) const EVENT_LIMIT: usize = 6 << 20;
/// How many clients may wait for their turn.
const LINE: usize = 16;
/// What the emulator says.
const ARN: &str = "arn:aws:lambda:us-east-1:012345678912:function:function";

pub(super) struct Events {
    shared: Arc<Shared>,
    /// How long a client waits for the answer.
    timeout: Duration,
    line: Semaphore,
    turn: Semaphore,
}

impl Events {
    pub(super) fn new(shared: Arc<Shared>, timeout: Duration) -> Self {
        Self {
            shared,
            timeout,
            line: Semaphore::new(LINE),
            turn: Semaphore::new(1),
        }
    }

    /// A client has an event. It is not read before it is its turn.
    pub(super) async fn invoke(&self, request: Request<Incoming>) -> Response {
        let Ok(_place) = self.line.try_acquire() else {
            let text = format!("{LINE} events wait already");
            return refusal(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", &text);
        };
        // Nobody closes it.
        let _turn = self.turn.acquire().await;
        let body = match body(request, EVENT_LIMIT, BODY_TIMEOUT).await {
            Ok(body) => body,
            Err(refusal) => return refusal,
        };
        let (Some(id), (answer, answered)) = (uuid::fresh(), oneshot::channel()) else {
            let text = "the kernel has no random numbers";
            return refusal(StatusCode::INTERNAL_SERVER_ERROR, "ServiceError", text);
        };
        let event = Event {
            id: id.clone(),
            body,
            deadline_ms: milliseconds_from_now(self.timeout),
            taken: false,
            answer,
        };
        self.shared.change(|state| state.event = Some(event));
        let _given = Given {
            id,
            shared: &self.shared,
        };
        match tokio::time::timeout(self.timeout, answered).await {
            Ok(Ok(answer)) => to_client(answer),
            Ok(Err(_)) => {
                let text = "the runtime ended before it answered";
                refusal(StatusCode::BAD_GATEWAY, "Runtime.ExitError", text)
            }
            Err(_) => {
                let text = format!("no answer within {:?}", self.timeout);
                refusal(StatusCode::GATEWAY_TIMEOUT, "Sandbox.Timedout", &text)
            }
        }
    }

    /// The runtime asks for an event: it has adapted.
    pub(super) async fn next(&self) -> Response {
        self.shared.change(|state| {
            state.adapting = None;
            state.pollers += 1;
        });
        let _poller = Poller(&self.shared);
        self.shared
            .seen(|state| {
                let event = state.event.as_mut().filter(|event| !event.taken)?;
                let response = to_runtime(event)?;
                event.taken = true;
                Some(response)
            })
            .await
    }

    /// The runtime's answer to an event.
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        id: String,
        failed: bool,
    ) -> Response {
        let content_type = request.headers().get(CONTENT_TYPE).cloned();
        let body = match body(request, EVENT_LIMIT, self.timeout.max(BODY_TIMEOUT)).await {
            Ok(body) => body,
            Err(refusal) => return refusal,
        };
        let (event, abandoned) = self.shared.change(|state| {
            let event = state.event.take_if(|event| event.taken && event.id == id);
            (event, state.abandoned.as_ref() == Some(&id))
        });
        match event {
            Some(event) => {
                // A client that has gone in this moment needs no answer.
                let _ = event.answer.send(Answer {
                    failed,
                    content_type,
                    body,
                });
                accepted()
            }
            // A runtime does not survive it if its answer is not taken.
            None if abandoned => accepted(),
            None => refusal(StatusCode::BAD_REQUEST, "InvalidRequestID", "no such event"),
        }
    }
}

/// The event and whether it failed, if that is the path of an answer.
pub(super) fn answered(path: &str) -> Option<(String, bool)> {
    let (id, what) = path.strip_prefix("invocation/")?.split_once('/')?;
    let failed = match what {
        "response" => false,
        "error" => true,
        _ => return None,
    };
    Some((id.to_owned(), failed))
}

fn to_runtime(event: &Event) -> Option<Response> {
    let mut response = Response::new(event.body.clone().into());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(
        "lambda-runtime-aws-request-id",
        HeaderValue::from_str(&event.id).ok()?,
    );
    headers.insert("lambda-runtime-deadline-ms", event.deadline_ms.into());
    headers.insert(
        "lambda-runtime-invoked-function-arn",
        HeaderValue::from_static(ARN),
    );
    Some(response)
}

fn to_client(answer: Answer) -> Response {
    let json = || HeaderValue::from_static("application/json");
    let mut response = empty(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, answer.content_type.unwrap_or_else(json));
    if answer.failed {
        headers.insert(
            "x-amz-function-error",
            HeaderValue::from_static("Unhandled"),
        );
    }
    *response.body_mut() = answer.body.into();
    response
}

fn milliseconds_from_now(timeout: Duration) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let then = now.unwrap_or_default().saturating_add(timeout);
    u64::try_from(then.as_millis()).unwrap_or(u64::MAX)
}

/// A request for an event that waits.
struct Poller<'a>(&'a Shared);

impl Drop for Poller<'_> {
    fn drop(&mut self) {
        self.0
            .change(|state| state.pollers = state.pollers.saturating_sub(1));
    }
}

/// An event whose client waits. When it goes, the event does.
struct Given<'a> {
    id: String,
    shared: &'a Shared,
}

impl Drop for Given<'_> {
    fn drop(&mut self) {
        self.shared.change(|state| {
            if state.event.take_if(|event| event.id == self.id).is_some() {
                state.abandoned = Some(std::mem::take(&mut self.id));
            }
        });
    }
}
