//! The paths of the API. A handler checks and converts the body, sends one command to the
//! controller, and turns the reply into a response; it never touches the machine.

mod console;
mod devices;
mod generation;
mod machine;
mod monitor;
mod snapshot;

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;
use hyper::header::HeaderValue;
use hyper::http::request::Parts;
use hyper::{Method, StatusCode, Uri};
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, Semaphore};
use utoipa::OpenApi;
use vmgenie_api::headers::DEPRECATION_HEADER;
use vmgenie_api::limits::{MAX_ATTACHED, MAX_WAITS};
use vmgenie_machine::config::ConfigError;

use super::ApiInfo;
use super::convert::WireError;
use super::fault::{ApiFault, json_response};
use crate::controller::command::{Command, ControllerHandle, Reply, VmConfig};
use crate::kinds::{self, KINDS};
use crate::metrics::METRICS;

/// What of Firecracker's API is not here: how its paths begin, and what it is.
const ABSENT: [(&str, &str); 5] = [
    ("/balloon", "the balloon device"),
    ("/cpu-config", "a CPU configuration"),
    ("/hotplug", "hot-plugging"),
    ("/mmds", "the metadata service (MMDS)"),
    ("/pmem", "a pmem device"),
];

/// What the handlers share.
struct Shared {
    info: ApiInfo,
    handle: ControllerHandle,
    /// Held while a PATCH reads and writes the machine configuration, so that two of them do not
    /// undo each other.
    machine_config: Mutex<()>,
    /// One for each request that waits for the guest.
    waits: Semaphore,
    /// One for each client that is attached to the console.
    attached: Arc<Semaphore>,
}

type Api = State<Arc<Shared>>;
type Answer = Result<Response, ApiFault>;

/// The table of routes: from it come the router, the OpenAPI document, and the list that a test compares both with.
macro_rules! routes {
    ($($path:literal: $($method:ident => $module:ident::$handler:ident),+;)*) => {
        fn served() -> Router<Arc<Shared>> {
            // HEAD is answered by the handler of GET otherwise.
            Router::new()$(.route($path, MethodRouter::new().head(no_such_route)$(.$method($module::$handler))+))*
        }

        /// The OpenAPI document of the API. It is built each time it is asked for: nobody pays for it who does not.
        #[derive(OpenApi)]
        #[openapi(
            paths($($($module::$handler),+),*),
            info(
                title = "vmgenie",
                description = "Firecracker's REST dialect on a Unix socket, and what is vmgenie's own. Success is 204 without a \
                    body or 200 with one; everything else is 400 with a fault_message, but for GET /ready."
            )
        )]
        struct Document;

        #[cfg(test)]
        const SERVED: &[(&str, &str)] = &[$($((stringify!($method), $path)),+),*];
    };
}

routes! {
    "/": get => monitor::instance_info;
    "/version": get => monitor::version;
    "/openapi.json": get => monitor::openapi;
    "/logger": put => monitor::put_logger;
    "/metrics": get => monitor::get_metrics, put => monitor::put_metrics;
    "/serial": put => monitor::put_serial;
    "/vm": patch => machine::patch_vm;
    "/vm/config": get => machine::full_config;
    "/machine-config": get => machine::machine_config, put => machine::put_machine_config, patch => machine::patch_machine_config;
    "/boot-source": put => machine::put_boot_source;
    "/actions": put => machine::put_action;
    "/drives/{drive_id}": patch => devices::patch_drive;
    "/network-interfaces/{iface_id}": patch => devices::patch_network_interface;
    "/instance-data": get => machine::instance_data, put => machine::put_instance_data;
    "/console": get => console::console;
    "/snapshot/create": put => snapshot::create_snapshot;
    "/snapshot/load": put => snapshot::load_snapshot;
    "/self-snapshot": get => snapshot::self_snapshots, put => snapshot::put_self_snapshot;
    "/generation": get => generation::generation, put => generation::new_generation;
    "/ready": get => generation::ready;
    "/generation/wait": put => generation::wait_for_generation;
}

/// The OpenAPI document of all requests.
fn document() -> utoipa::openapi::OpenApi {
    Document::openapi().merge_from(kinds::Document::openapi())
}

/// The routes of the API in front of the controller that `handle` leads to.
pub fn router(info: ApiInfo, handle: ControllerHandle) -> Router {
    let shared = Arc::new(Shared {
        info,
        handle,
        machine_config: Mutex::new(()),
        waits: Semaphore::new(MAX_WAITS),
        attached: Arc::new(Semaphore::new(MAX_ATTACHED)),
    });
    devices::served(served())
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_route)
        // `limits` has bounded the body already, as the command line says.
        .layer(axum::extract::DefaultBodyLimit::disable())
        .with_state(shared)
}

async fn no_such_route(method: Method, uri: Uri) -> ApiFault {
    let path = uri.path();
    let begins = |part: &str| {
        path.strip_prefix(part)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if let Some((_, what)) = ABSENT.iter().find(|(part, _)| begins(part)) {
        return ApiFault::Absent(what);
    }
    // Those of which there may be several.
    let mut several = KINDS.iter().filter(|kind| kind.place().1);
    let kind = several.find(|kind| begins(&format!("/{}", kind.place().0)));
    let named = path.trim_matches('/').contains('/');
    match method {
        Method::PUT | Method::PATCH if kind.is_some() && !named => {
            WireError::from(ConfigError::EmptyId).into()
        }
        Method::DELETE if kind.is_some() => ApiFault::Absent("hot-unplugging"),
        method => ApiFault::no_such_route(method, path),
    }
}

impl Shared {
    /// Sends a command that is answered with nothing but success: 204.
    async fn done(&self, command: Command) -> Answer {
        match self.handle.call(command).await? {
            Reply::Done => Ok(StatusCode::NO_CONTENT.into_response()),
            _ => Err(ApiFault::UnexpectedReply("the request")),
        }
    }

    async fn config(&self) -> Result<VmConfig, ApiFault> {
        match self.handle.call(Command::Config).await? {
            Reply::Config(config) => Ok(config),
            _ => Err(ApiFault::UnexpectedReply(
                "the question for the configuration",
            )),
        }
    }
}

fn ok<T: serde::Serialize>(body: &T) -> Response {
    json_response(StatusCode::OK, body)
}

/// Tells in the answer that the request had a deprecated field, if it had, whether it was granted or refused.
fn deprecated(there: bool, answer: Answer) -> Answer {
    if !there {
        return answer;
    }
    METRICS.deprecated_api.deprecated_http_api_calls.inc();
    let mut response = answer.into_response();
    let told = HeaderValue::from_static("true");
    response.headers_mut().insert(DEPRECATION_HEADER, told);
    Ok(response)
}

/// The body, which is not empty.
struct Body(Bytes);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = ApiFault;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiFault> {
        let method = request.method().clone();
        let body = read(request, state).await?;
        if body.is_empty() {
            return Err(ApiFault::NoBody(method));
        }
        Ok(Self(body))
    }
}

/// The body as JSON of the type `T`, whatever the Content-Type says: Firecracker's clients do not
/// always send one.
struct Json<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiFault;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiFault> {
        let Body(body) = Body::from_request(request, state).await?;
        Ok(Self(serde_json::from_slice(&body)?))
    }
}

/// Refuses a request that has a body.
struct NoBody;

impl<S: Send + Sync> FromRequest<S> for NoBody {
    type Rejection = ApiFault;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiFault> {
        if read(request, state).await?.is_empty() {
            Ok(Self)
        } else {
            Err(ApiFault::GetBody)
        }
    }
}

/// The name at the end of the path, the same as the one in the body.
struct PathId(String);

impl<S: Send + Sync> FromRequestParts<S> for PathId {
    type Rejection = ApiFault;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiFault> {
        let id: Result<Path<String>, PathRejection> = Path::from_request_parts(parts, state).await;
        let Path(id) =
            id.map_err(|_| ApiFault::no_such_route(parts.method.clone(), parts.uri.path()))?;
        // What is wrong with the name itself comes before what is wrong with the body.
        vmgenie_machine::config::DeviceId::new(&id).map_err(WireError::from)?;
        Ok(Self(id))
    }
}

/// The whole body; [`super::limits`] has bounded it before it comes here.
async fn read<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, ApiFault> {
    Bytes::from_request(request, state)
        .await
        .map_err(|error| ApiFault::BodyBroken(error.to_string()))
}

#[cfg(test)]
#[path = "../routes_test/mod.rs"]
mod tests;
