//! The HTTP hooks of AWS Lambda MicroVMs: the program listens on a port of the loopback, and is told what happens
//! to its machine.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::client::conn::http1::handshake;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{sleep, timeout};

use super::{Contract, ContractError, Turn, uuid};
use crate::agent::cycle::Resumed;
use crate::contract_args::MicrovmHook;
use crate::output::report;

/// How long all requests of a turn may take: as on Lambda.
const MOST: Duration = Duration::from_secs(60);
/// How long the end of the agent may be put off. Its unit is given 10 s for it.
const LAST: Duration = Duration::from_secs(8);
/// How long a payload may be, in bytes: as on Lambda.
const PAYLOAD: usize = 16 << 10;
/// How soon to ask again who is not ready.
const AGAIN: Duration = Duration::from_millis(250);
/// Where the hooks are.
const PATH: &str = "/aws/lambda-microvms/runtime/v1/";

/// The agent's side of it: a client.
pub(super) struct Microvm {
    address: SocketAddr,
    enabled: Vec<MicrovmHook>,
    runtime: Runtime,
    /// Reads the string by which this machine knows who it is.
    instance: fn() -> io::Result<String>,
    /// The program may be suspended; it is not known of the time before this agent.
    due: Cell<bool>,
    /// In which generation the program has run its hook for a new machine.
    run: Cell<Option<u32>>,
    /// In which generation this machine has which ID.
    id: RefCell<(u32, String)>,
}

/// Why a hook has no good answer.
#[derive(Debug, thiserror::Error)]
enum HookError {
    #[error("could not connect")]
    Connect(#[source] io::Error),
    #[error("could not be asked")]
    Ask(#[source] hyper::Error),
    #[error("could not be written")]
    Request(#[source] hyper::http::Error),
    #[error("answered {0}")]
    Status(StatusCode),
}

impl HookError {
    /// Whether the program only needs more time.
    fn is_early(&self) -> bool {
        match self {
            Self::Connect(error) => error.kind() == io::ErrorKind::ConnectionRefused,
            Self::Status(status) => *status == StatusCode::SERVICE_UNAVAILABLE,
            Self::Ask(_) | Self::Request(_) => false,
        }
    }
}

impl Microvm {
    /// For the program that listens at `address`.
    ///
    /// # Errors
    /// When there are no file descriptors left.
    pub(super) fn new(
        address: SocketAddr,
        enabled: &[MicrovmHook],
        instance: fn() -> io::Result<String>,
    ) -> io::Result<Self> {
        Ok(Self {
            address,
            enabled: enabled.to_vec(),
            runtime: Builder::new_current_thread().enable_all().build()?,
            instance,
            due: Cell::new(true),
            run: Cell::new(None),
            id: RefCell::default(),
        })
    }

    /// Calls a hook, if it is enabled, as often as it asks for more time.
    fn call(&self, hook: MicrovmHook, body: &Value, turn: &Turn<'_>) -> Result<(), ContractError> {
        if !self.enabled.contains(&hook) {
            return Ok(());
        }
        let path = format!("{PATH}{}", hook.name());
        let hung = format!("POST {path}: no answer but 503, if any");
        let failed = |error: &HookError| format!("POST {path}: {}", report(error));
        let body = Bytes::from(body.to_string());
        let asked = async {
            loop {
                match self.post(&path, body.clone()).await {
                    Err(error) if hook.may_be_early() && error.is_early() => sleep(AGAIN).await,
                    ended => return ended,
                }
            }
        };
        let mut asked = pin!(asked);
        turn.wait(&hung, |slice| self.within(slice, asked.as_mut()))?
            .map_err(|error| ContractError::Failed(failed(&error)))
    }

    fn within<T>(&self, slice: Duration, asked: impl Future<Output = T>) -> Option<T> {
        self.runtime
            .block_on(async { timeout(slice, asked).await.ok() })
    }

    async fn post(&self, path: &str, body: Bytes) -> Result<(), HookError> {
        let stream = TcpStream::connect(self.address)
            .await
            .map_err(HookError::Connect)?;
        let (mut sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(HookError::Ask)?;
        tokio::spawn(connection);
        let request = Request::post(path)
            .header(HOST, self.address.to_string())
            .header(CONTENT_TYPE, "application/json")
            .header(CONNECTION, "close")
            .body(Full::new(body))
            .map_err(HookError::Request)?;
        let answer = sender.send_request(request).await.map_err(HookError::Ask)?;
        match answer.status() {
            StatusCode::OK => Ok(()),
            status => Err(HookError::Status(status)),
        }
    }

    /// A new machine begins.
    fn run(&self, turn: &Turn<'_>) -> Result<(), ContractError> {
        let payload = match (self.instance)() {
            Ok(payload) if payload.len() <= PAYLOAD => payload,
            Ok(_) => {
                let text = format!("the instance data is longer than {PAYLOAD} bytes");
                return Err(ContractError::Failed(text));
            }
            // A host that gives none has none to give.
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                let text = format!("could not read the instance data: {error}");
                return Err(ContractError::Failed(text));
            }
        };
        let body = json!({ "microvmId": self.id(turn), "runHookPayload": payload });
        self.call(MicrovmHook::Run, &body, turn)?;
        self.call(MicrovmHook::Validate, &json!({}), turn)
    }

    fn body(&self, turn: &Turn<'_>) -> Value {
        json!({ "microvmId": self.id(turn) })
    }

    /// The name of this machine: another one in each generation.
    fn id(&self, turn: &Turn<'_>) -> String {
        let mut id = self.id.borrow_mut();
        if id.0 != turn.new || id.1.is_empty() {
            *id = (turn.new, uuid::fresh().unwrap_or_default());
        }
        id.1.clone()
    }
}

impl Contract for Microvm {
    fn name(&self) -> &'static str {
        "microvm"
    }

    fn before(&self, turn: &Turn<'_>) -> Result<(), ContractError> {
        let turn = turn.at_most(MOST);
        self.due.set(false);
        self.call(MicrovmHook::Ready, &json!({}), &turn)?;
        self.due.set(true);
        self.call(MicrovmHook::Suspend, &self.body(&turn), &turn)
    }

    fn after(&self, outcome: Resumed, turn: &Turn<'_>) -> Result<(), ContractError> {
        let turn = turn.at_most(MOST);
        match outcome {
            Resumed::Clone if self.run.get() == Some(turn.new) => {}
            Resumed::Clone => {
                self.run(&turn)?;
                self.run.set(Some(turn.new));
            }
            Resumed::Original | Resumed::CalledOff if self.due.get() => {
                self.call(MicrovmHook::Resume, &self.body(&turn), &turn)?;
            }
            Resumed::Original | Resumed::CalledOff => {}
        }
        self.due.set(false);
        Ok(())
    }

    fn end(&self, turn: &Turn<'_>) -> Result<(), ContractError> {
        let turn = turn.at_most(LAST);
        self.call(MicrovmHook::Terminate, &self.body(&turn), &turn)
    }
}

#[cfg(test)]
#[path = "microvm_test.rs"]
mod tests;
