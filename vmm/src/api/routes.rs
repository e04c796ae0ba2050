//! The paths of the API. A handler checks and converts the body, sends one command to the
//! controller, and turns the reply into a response; it never touches the machine.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::Extension;
use axum::extract::{FromRequest, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch, put};
use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, StatusCode, Uri};
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, Semaphore};

use super::fault::{ApiFault, json_response};
use super::wait::{self, MAX_WAITS, Peer};
use super::{ApiInfo, wire};
use crate::config::{BootSource, MachineConfig};
use crate::controller::command::{
    Command, ControllerHandle, CreateSnapshot, LoadSnapshot, Reply, VmConfig,
};

/// The version of Firecracker whose requests and fields the API follows.
pub const FIRECRACKER_DIALECT: &str = "1.12.0";

/// In the answer to PUT `/snapshot/create`: how long the vCPUs stood still, in microseconds.
pub const STANDSTILL_HEADER: HeaderName = HeaderName::from_static("x-vmgenie-standstill-us");
/// In the answer to PUT `/snapshot/create`: how long everything took, in microseconds.
pub const TOTAL_HEADER: HeaderName = HeaderName::from_static("x-vmgenie-total-us");
/// In the answer to PUT `/snapshot/create`: how many bytes of guest memory were written.
pub const MEMORY_HEADER: HeaderName = HeaderName::from_static("x-vmgenie-memory-bytes");

/// What the handlers share.
struct Shared {
    info: ApiInfo,
    handle: ControllerHandle,
    /// Held while a PATCH reads and writes the machine configuration, so that two of them do not
    /// undo each other.
    machine_config: Mutex<()>,
    /// One for each request that waits for the guest.
    waits: Semaphore,
}

type Api = State<Arc<Shared>>;
type Answer = Result<Response, ApiFault>;

/// The routes of the API in front of the controller that `handle` leads to.
pub fn router(info: ApiInfo, handle: ControllerHandle) -> Router {
    let shared = Arc::new(Shared {
        info,
        handle,
        machine_config: Mutex::new(()),
        waits: Semaphore::new(MAX_WAITS),
    });
    Router::new()
        .route("/", get(instance_info))
        .route("/version", get(version))
        .route("/vm/config", get(full_config))
        .route(
            "/machine-config",
            get(machine_config)
                .put(put_machine_config)
                .patch(patch_machine_config),
        )
        .route("/boot-source", put(put_boot_source))
        .route("/actions", put(put_action))
        .route("/vm", patch(patch_vm))
        .route("/snapshot/create", put(create_snapshot))
        .route("/snapshot/load", put(load_snapshot))
        .route("/generation", get(generation).put(new_generation))
        .route("/generation/wait", put(wait_for_generation))
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_route)
        .with_state(shared)
}

async fn no_such_route(method: Method, uri: Uri) -> ApiFault {
    ApiFault::no_such_route(method, uri.path())
}

async fn instance_info(State(api): Api, _: NoBody) -> Answer {
    match api.handle.call(Command::State).await? {
        Reply::State(state) => Ok(ok(&wire::InstanceInfo {
            app_name: "vmgenie".to_owned(),
            id: api.info.id.clone(),
            state: state.into(),
            vmm_version: api.info.version.clone(),
        })),
        _ => Err(ApiFault::UnexpectedReply("GET /")),
    }
}

async fn version(State(api): Api, _: NoBody) -> Response {
    ok(&wire::Version {
        firecracker_version: FIRECRACKER_DIALECT.to_owned(),
        vmgenie_version: api.info.version.clone(),
    })
}

async fn full_config(State(api): Api, _: NoBody) -> Answer {
    Ok(ok(&wire::FullConfig::from(api.config().await?)))
}

async fn machine_config(State(api): Api, _: NoBody) -> Answer {
    Ok(ok(&wire::MachineConfiguration::from(
        api.config().await?.machine,
    )))
}

async fn put_machine_config(
    State(api): Api,
    Json(body): Json<wire::MachineConfiguration>,
) -> Answer {
    let config = MachineConfig::try_from(body)?;
    let _alone = api.machine_config.lock().await;
    api.done(Command::SetMachineConfig(config)).await
}

async fn patch_machine_config(
    State(api): Api,
    Json(body): Json<wire::MachineConfigurationPatch>,
) -> Answer {
    let _alone = api.machine_config.lock().await;
    let config = body.apply(api.config().await?.machine)?;
    api.done(Command::SetMachineConfig(config)).await
}

async fn put_boot_source(State(api): Api, Json(body): Json<wire::BootSourceBody>) -> Answer {
    api.done(Command::SetBootSource(BootSource::try_from(body)?))
        .await
}

async fn put_action(State(api): Api, Json(body): Json<wire::Action>) -> Answer {
    api.done(Command::try_from(body)?).await
}

async fn patch_vm(State(api): Api, Json(body): Json<wire::VmUpdate>) -> Answer {
    api.done(Command::from(body)).await
}

async fn create_snapshot(State(api): Api, Json(body): Json<wire::SnapshotCreate>) -> Answer {
    let command = Command::CreateSnapshot(CreateSnapshot::try_from(body)?);
    match api.handle.call(command).await? {
        Reply::SnapshotCreated(made) => {
            let mut headers = HeaderMap::new();
            headers.insert(
                STANDSTILL_HEADER,
                HeaderValue::from(microseconds(made.standstill)),
            );
            headers.insert(TOTAL_HEADER, HeaderValue::from(microseconds(made.total)));
            headers.insert(MEMORY_HEADER, HeaderValue::from(made.memory_bytes));
            Ok((StatusCode::NO_CONTENT, headers).into_response())
        }
        _ => Err(ApiFault::UnexpectedReply("PUT /snapshot/create")),
    }
}

async fn load_snapshot(State(api): Api, Json(body): Json<wire::SnapshotLoad>) -> Answer {
    api.done(Command::LoadSnapshot(LoadSnapshot::try_from(body)?))
        .await
}

async fn generation(State(api): Api, _: NoBody) -> Answer {
    api.generation(Command::Generation).await
}

async fn new_generation(State(api): Api, body: Bytes) -> Answer {
    if !body.is_empty() {
        serde_json::from_slice::<wire::NewGeneration>(&body)?;
    }
    api.generation(Command::NewGeneration).await
}

async fn wait_for_generation(
    State(api): Api,
    peer: Option<Extension<Peer>>,
    Json(body): Json<wire::GenerationWait>,
) -> Answer {
    let peer = peer.as_ref().map(|Extension(peer)| peer);
    let waited = wait::wait(&api.handle, &api.waits, body.try_into()?, peer).await?;
    Ok(ok(&waited))
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

    async fn generation(&self, command: Command) -> Answer {
        match self.handle.call(command).await? {
            Reply::Generation(generation) => Ok(ok(&wire::GenerationInfo::from(generation))),
            _ => Err(ApiFault::UnexpectedReply("the question for the generation")),
        }
    }
}

fn ok<T: serde::Serialize>(body: &T) -> Response {
    json_response(StatusCode::OK, body)
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The body as JSON of the type `T`, whatever the Content-Type says: Firecracker's clients do not
/// always send one.
struct Json<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiFault;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiFault> {
        let body = read(request, state).await?;
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

/// The whole body; [`super::limits`] has bounded it before it comes here.
async fn read<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, ApiFault> {
    Bytes::from_request(request, state)
        .await
        .map_err(|error| ApiFault::BodyBroken(error.to_string()))
}

#[cfg(test)]
#[path = "routes_test/mod.rs"]
mod tests;
