//! A client of the API: typed calls over the Unix socket, for the command line and for tests.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

use crate::headers::{MEMORY_HEADER, STANDSTILL_HEADER, TOTAL_HEADER};
use crate::limits::MAX_PATH;
use crate::wire;

/// The longest answer that is read, in bytes.
const ANSWER_LIMIT: usize = 1 << 20;
/// A connection that has been idle longer is not used again: the VMM may be about to close it.
const REUSE_WITHIN: Duration = Duration::from_secs(5);

/// How long to try when others crowd the socket.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait between two attempts.
const CONNECT_RETRY: Duration = Duration::from_millis(2);

/// What writing a snapshot took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotCreated {
    /// How long the state and the memory took to be copied, while the vCPUs stood still.
    pub standstill: Duration,
    /// How long everything took, syncing and renaming included.
    pub total: Duration,
    /// How many bytes of guest memory were written.
    pub memory_bytes: u64,
    /// How the guest took part, if the request asked it to.
    pub cooperation: Option<wire::CooperativeCreated>,
}

/// Why a call failed.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nothing at that path.
    #[error("there is no socket {0}: is the path right, and was the VMM started with --api-sock?")]
    NoSocket(PathBuf),
    /// A socket whose owner is gone.
    #[error("nobody listens on {0}: the VMM that made it is not running any more")]
    NotRunning(PathBuf),
    /// The path is too long for a socket.
    #[error("could not connect to {0}: the path of a socket has {MAX_PATH} bytes at most, and this one has {len}", len = .0.as_os_str().len())]
    TooLong(PathBuf),
    /// The socket cannot be connected to.
    #[error("could not connect to {0}")]
    Connect(PathBuf, #[source] io::Error),
    /// The client's runtime could not be made.
    #[error("could not start a client")]
    Runtime(#[source] io::Error),
    /// The request is malformed: a path with a space, for example.
    #[error("could not build the request {0}")]
    Request(String, #[source] hyper::http::Error),
    /// The connection broke.
    #[error("the VMM at {socket} did not answer {request}")]
    Exchange {
        /// Where the VMM listens.
        socket: PathBuf,
        /// Method and path.
        request: String,
        /// What happened.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another process than the one that was expected listens there.
    #[error("another process listens on {socket}{}", .pid.map(|pid| format!(" ({pid})")).unwrap_or_default())]
    Stranger {
        /// Where it listens.
        socket: PathBuf,
        /// The process, as far as it is known.
        pid: Option<i32>,
    },
    /// The VMM took too long.
    #[error("the VMM at {socket} did not answer {request} within {timeout:?}")]
    Timeout {
        /// Where the VMM listens.
        socket: PathBuf,
        /// Method and path.
        request: String,
        /// The limit that was set.
        timeout: Duration,
    },
    /// The VMM refused, or tried and failed.
    #[error("{request} failed: {message}")]
    Fault {
        /// Method and path.
        request: String,
        /// The `fault_message`.
        message: String,
    },
    /// The answer is not what the API promises.
    #[error("the answer to {request} makes no sense (status {status}): {reason}")]
    Nonsense {
        /// Method and path.
        request: String,
        /// The HTTP status.
        status: u16,
        /// What is wrong with it.
        reason: String,
    },
}

/// The answer to a [`Client::request`].
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// A connection to one VMM. Connects at the first call and keeps the connection alive; blocks the
/// calling thread.
///
/// # Panics
/// All methods that connect or ask panic within a tokio runtime, whose threads must not be blocked, and so does dropping it there: use it in a
/// thread of its own, as `tokio::task::spawn_blocking` has them.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    runtime: Runtime,
    connection: Option<Connection>,
    timeout: Option<Duration>,
    /// The process that must be the VMM, if that is known.
    peer: Option<i32>,
}

#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    last_used: Instant,
}

impl Client {
    /// A client of the VMM that listens on `socket`. Does not connect yet.
    pub fn new(socket: impl Into<PathBuf>) -> Result<Self, ClientError> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ClientError::Runtime)?;
        Ok(Self {
            socket: socket.into(),
            runtime,
            connection: None,
            timeout: None,
            peer: None,
        })
    }

    /// Speaks only to this process from now on, whoever else may listen on the socket meanwhile.
    pub fn expect_peer(&mut self, pid: u32) {
        self.peer = i32::try_from(pid).ok();
    }

    /// Limits how long each call may take; by default a call waits for ever, because a large
    /// snapshot takes its time.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// Where the VMM listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Connects, if there is no connection yet.
    pub fn connect(&mut self) -> Result<(), ClientError> {
        let connection = self.connection.take().filter(Connection::is_usable);
        self.connection = Some(match connection {
            Some(connection) => connection,
            None => self.runtime.block_on(connect(&self.socket, self.peer))?,
        });
        Ok(())
    }

    /// Sends any request and returns whatever is answered, a refusal included.
    pub fn request(
        &mut self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<Answer, ClientError> {
        let name = format!("{method} {path}");
        let body = body.into();
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost");
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| ClientError::Request(name.clone(), error))?;
        self.connect()?;
        let Some(mut connection) = self.connection.take() else {
            return Err(ClientError::NotRunning(self.socket.clone())); // not reached: `connect` has just set it
        };
        let exchange = exchange(&mut connection.sender, request);
        let answer = self.runtime.block_on(async {
            match self.timeout {
                Some(limit) => tokio::time::timeout(limit, exchange)
                    .await
                    .map_err(|_| limit),
                None => Ok(exchange.await),
            }
        });
        let socket = self.socket.clone();
        match answer {
            Ok(Ok(answer)) => {
                connection.last_used = Instant::now();
                self.connection = Some(connection);
                Ok(answer)
            }
            Ok(Err(source)) => Err(ClientError::Exchange {
                socket,
                request: name,
                source,
            }),
            Err(timeout) => Err(ClientError::Timeout {
                socket,
                request: name,
                timeout,
            }),
        }
    }

    /// GET `/`.
    pub fn info(&mut self) -> Result<wire::InstanceInfo, ClientError> {
        self.get("/")
    }

    /// GET `/version`.
    pub fn version(&mut self) -> Result<wire::Version, ClientError> {
        self.get("/version")
    }

    /// GET `/vm/config`.
    pub fn config(&mut self) -> Result<wire::FullConfig, ClientError> {
        self.get("/vm/config")
    }

    /// GET `/machine-config`.
    pub fn machine_config(&mut self) -> Result<wire::MachineConfiguration, ClientError> {
        self.get("/machine-config")
    }

    /// PUT `/machine-config`: `memory` in MiB.
    pub fn set_machine_config(&mut self, vcpus: u64, memory: u64) -> Result<(), ClientError> {
        let body = wire::MachineConfiguration {
            vcpu_count: vcpus,
            mem_size_mib: memory,
            smt: false,
            track_dirty_pages: false,
            huge_pages: wire::HugePages::None,
            cpu_template: None,
        };
        self.send(Method::PUT, "/machine-config", &body).map(drop)
    }

    /// PUT `/boot-source`.
    pub fn set_boot_source(&mut self, body: &wire::BootSourceBody) -> Result<(), ClientError> {
        self.send(Method::PUT, "/boot-source", body).map(drop)
    }

    /// PUT `/actions`, InstanceStart.
    pub fn start(&mut self) -> Result<(), ClientError> {
        let body = wire::Action {
            action_type: wire::ActionType::InstanceStart,
        };
        self.action(&body)
    }

    /// PUT `/actions`.
    pub fn action(&mut self, body: &wire::Action) -> Result<(), ClientError> {
        self.send(Method::PUT, "/actions", body).map(drop)
    }

    /// PATCH `/vm`, Paused.
    pub fn pause(&mut self) -> Result<(), ClientError> {
        let body = wire::VmUpdate {
            state: wire::TargetState::Paused,
        };
        self.send(Method::PATCH, "/vm", &body).map(drop)
    }

    /// PATCH `/vm`, Resumed.
    pub fn resume(&mut self) -> Result<(), ClientError> {
        let body = wire::VmUpdate {
            state: wire::TargetState::Resumed,
        };
        self.send(Method::PATCH, "/vm", &body).map(drop)
    }

    /// PUT `/snapshot/create`; what the VMM tells about it.
    pub fn create_snapshot(
        &mut self,
        body: &wire::SnapshotCreate,
    ) -> Result<SnapshotCreated, ClientError> {
        let answer = self.send(Method::PUT, "/snapshot/create", body)?;
        Ok(SnapshotCreated {
            standstill: Duration::from_micros(number(&answer, &STANDSTILL_HEADER)?),
            total: Duration::from_micros(number(&answer, &TOTAL_HEADER)?),
            memory_bytes: number(&answer, &MEMORY_HEADER)?,
            cooperation: match body.cooperative {
                Some(_) => Some(decode("PUT /snapshot/create", &answer)?),
                None => None,
            },
        })
    }

    /// PUT `/snapshot/load`.
    pub fn load_snapshot(&mut self, body: &wire::SnapshotLoad) -> Result<(), ClientError> {
        self.send(Method::PUT, "/snapshot/load", body).map(drop)
    }

    /// GET `/instance-data`: the guest's identity string.
    pub fn instance_data(&mut self) -> Result<String, ClientError> {
        let answer: wire::InstanceData = self.get("/instance-data")?;
        Ok(answer.data)
    }

    /// PUT `/instance-data`.
    pub fn set_instance_data(&mut self, data: &str) -> Result<(), ClientError> {
        let body = wire::InstanceData {
            data: data.to_owned(),
        };
        self.send(Method::PUT, "/instance-data", &body).map(drop)
    }

    /// PUT `/self-snapshot`: lets the guest ask for snapshots of itself.
    pub fn set_self_snapshot(&mut self, body: &wire::SelfSnapshot) -> Result<(), ClientError> {
        self.send(Method::PUT, "/self-snapshot", body).map(drop)
    }

    /// GET `/self-snapshot`: what the guest may have of them, and has had.
    pub fn self_snapshots(&mut self) -> Result<wire::SelfSnapshots, ClientError> {
        self.get("/self-snapshot")
    }

    /// GET `/generation`.
    pub fn generation(&mut self) -> Result<wire::GenerationInfo, ClientError> {
        self.get("/generation")
    }

    /// PUT `/generation`: begins a new one.
    pub fn new_generation(&mut self) -> Result<wire::GenerationInfo, ClientError> {
        let answer = self.send(Method::PUT, "/generation", &wire::NewGeneration {})?;
        decode("PUT /generation", &answer)
    }

    /// PUT `/generation/wait`: waits until the guest has adapted to its generation, for `timeout` at most (whole milliseconds).
    /// At the deadline the answer says what is missing; that is no error.
    pub fn wait_for_generation(
        &mut self,
        timeout: Duration,
    ) -> Result<wire::GenerationWaited, ClientError> {
        self.wait_for(&wire::GenerationWait {
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            ..wire::GenerationWait::default()
        })
    }

    /// The same, where the wait says for what.
    pub fn wait_for(
        &mut self,
        wait: &wire::GenerationWait,
    ) -> Result<wire::GenerationWaited, ClientError> {
        let answer = self.send(Method::PUT, "/generation/wait", wait)?;
        decode("PUT /generation/wait", &answer)
    }

    /// GET `/ready`: whether the machine may be sent work, and if not, why.
    pub fn ready(&mut self) -> Result<wire::Ready, ClientError> {
        let answer = self.request(Method::GET, "/ready", Bytes::new())?;
        match answer.status {
            StatusCode::SERVICE_UNAVAILABLE => decode("GET /ready", &answer),
            _ => decode("GET /ready", &successful("GET /ready", answer)?),
        }
    }

    fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, ClientError> {
        let answer = self.request(Method::GET, path, Bytes::new())?;
        let name = format!("GET {path}");
        decode(&name, &successful(&name, answer)?)
    }

    fn send<T: Serialize>(
        &mut self,
        method: Method,
        path: &str,
        body: &T,
    ) -> Result<Answer, ClientError> {
        let name = format!("{method} {path}");
        // Only a path that is no UTF-8 cannot be said in JSON.
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Fault {
            request: name.clone(),
            message: format!("the request cannot be written as JSON: {error}"),
        })?;
        let answer = self.request(method, path, body)?;
        successful(&name, answer)
    }
}

impl Connection {
    fn is_usable(&self) -> bool {
        !self.sender.is_closed() && self.last_used.elapsed() < REUSE_WITHIN
    }
}

/// Whether a socket can have this path.
pub fn fits(socket: &Path) -> Result<(), ClientError> {
    match socket.as_os_str().len() > MAX_PATH {
        true => Err(ClientError::TooLong(socket.to_owned())),
        false => Ok(()),
    }
}

async fn connect(socket: &Path, peer: Option<i32>) -> Result<Connection, ClientError> {
    fits(socket)?;
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    let stream = loop {
        match UnixStream::connect(socket).await {
            // Too many others are waiting to be accepted.
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                tokio::time::sleep(CONNECT_RETRY).await;
            }
            other => break other,
        }
    };
    let stream = stream.map_err(|error| match error.kind() {
        ErrorKind::NotFound => ClientError::NoSocket(socket.to_owned()),
        ErrorKind::ConnectionRefused => ClientError::NotRunning(socket.to_owned()),
        _ => ClientError::Connect(socket.to_owned(), error),
    })?;
    // Who called listen().
    let pid = peer.and_then(|_| stream.peer_cred().ok()?.pid());
    if peer.is_some() && pid != peer {
        let socket = socket.to_owned();
        return Err(ClientError::Stranger { socket, pid });
    }
    let (sender, connection) = handshake(TokioIo::new(stream))
        .await
        .map_err(|error| ClientError::Connect(socket.to_owned(), io::Error::other(error)))?;
    // How it ends is told to whoever waits for an answer.
    tokio::spawn(connection);
    Ok(Connection {
        sender,
        last_used: Instant::now(),
    })
}

async fn exchange(
    sender: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    sender.ready().await?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = Limited::new(body, ANSWER_LIMIT).collect().await?.to_bytes();
    Ok(Answer {
        status: head.status,
        headers: head.headers,
        body,
    })
}

fn successful(request: &str, answer: Answer) -> Result<Answer, ClientError> {
    if answer.status.is_success() {
        return Ok(answer);
    }
    let request = request.to_owned();
    Err(match serde_json::from_slice::<wire::Fault>(&answer.body) {
        Ok(fault) => ClientError::Fault {
            request,
            message: fault.fault_message,
        },
        Err(error) => {
            let status = answer.status.as_u16();
            ClientError::Nonsense {
                request,
                status,
                reason: error.to_string(),
            }
        }
    })
}

fn decode<T: DeserializeOwned>(request: &str, answer: &Answer) -> Result<T, ClientError> {
    serde_json::from_slice(&answer.body).map_err(|error| ClientError::Nonsense {
        request: request.to_owned(),
        status: answer.status.as_u16(),
        reason: error.to_string(),
    })
}

fn number(answer: &Answer, header: &HeaderName) -> Result<u64, ClientError> {
    let text = answer
        .headers
        .get(header)
        .and_then(|value| value.to_str().ok());
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| ClientError::Nonsense {
            request: "PUT /snapshot/create".to_owned(),
            status: answer.status.as_u16(),
            reason: format!("no number in the header {header}"),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_too_long_is_told_with_what_it_may_have() {
        let socket = PathBuf::from(format!("/{}", "x".repeat(MAX_PATH)));
        let error = Client::new(&socket).unwrap().connect().unwrap_err();
        let error = error.to_string();
        assert!(error.contains("107 bytes at most"), "{error}");
        assert!(error.contains("xxx") && error.ends_with("108"), "{error}");
        let socket = PathBuf::from(format!("/{}", "x".repeat(MAX_PATH - 1)));
        let error = Client::new(&socket).unwrap().connect().unwrap_err();
        assert!(matches!(error, ClientError::NoSocket(_)), "{error}");
    }

    /// As the documentation says.
    #[test]
    #[should_panic(expected = "runtime")]
    fn a_client_panics_within_a_runtime() {
        let mut client = Client::new("/nowhere").unwrap();
        let runtime = Builder::new_current_thread().build().unwrap();
        let _ = runtime.block_on(async { client.connect() });
    }

    #[test]
    fn a_client_speaks_to_no_other_process_than_the_one_it_expects() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let mut client = Client::new(&socket).unwrap();
        client.expect_peer(std::process::id());
        client.connect().unwrap();
        let mut client = Client::new(&socket).unwrap();
        client.expect_peer(1);
        let error = client.connect().unwrap_err();
        let this = i32::try_from(std::process::id()).unwrap();
        let is_it = matches!(error, ClientError::Stranger { pid: Some(pid), .. } if pid == this);
        assert!(is_it, "{error}");
    }
}
