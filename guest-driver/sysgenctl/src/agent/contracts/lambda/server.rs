//! The thread that serves the runtime API. Whatever is in the guest may connect: what a connection may cost is
//! bounded, and what it says is believed for no more than it can spoil anyway.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::Semaphore;

use super::events::{self, Events};
use super::exchange::{BODY_TIMEOUT, Response, accepted, body, empty, refusal};
use super::fault::Fault;
use super::runtime::Runtime;
use super::state::Shared;

/// How many connections there may be.
const CONNECTIONS: usize = 64;
/// How long the head of a request may take, and a connection be idle. While a runtime is at work for an event, its
/// connection is idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });
/// How long a head may be, in bytes.
const HEAD_LIMIT: usize = 64 << 10;
/// How long a report of a failure may be, in bytes.
const FAULT_LIMIT: usize = 256 << 10;
/// How long to wait when no connection can be accepted.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Where the runtime's paths begin.
const API: &str = "/2018-06-01/runtime/";
/// Where the emulator of Amazon takes events.
const INVOKE: &str = "/2015-03-31/functions/function/invocations";
/// The header by which a runtime says what kind of failure it has.
pub(super) const ERROR_TYPE: &str = "lambda-runtime-function-error-type";

/// Listens and starts the thread. Returns where it listens.
pub(super) fn start(
    address: SocketAddr,
    shared: Arc<Shared>,
    timeout: Duration,
) -> io::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _context = runtime.enter();
        TcpListener::from_std(listener)?
    };
    let server = Arc::new(Server {
        address,
        timeout,
        events: Events::new(Arc::clone(&shared), timeout),
        shared,
    });
    thread::Builder::new()
        .name("lambda".into())
        .spawn(move || runtime.block_on(accept(&listener, &server)))?;
    Ok(address)
}

struct Server {
    address: SocketAddr,
    /// How long the runtime may take for an event.
    timeout: Duration,
    shared: Arc<Shared>,
    events: Events,
}

async fn accept(listener: &TcpListener, server: &Arc<Server>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        // One for which there is no place is closed.
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            let server = Arc::clone(server);
            tokio::spawn(async move {
                serve(stream, peer, server).await;
                drop(place);
            });
        }
    }
}

/// Serves one connection until its client is done with it, or gone: what it waits for is dropped then.
async fn serve(stream: TcpStream, peer: SocketAddr, server: Arc<Server>) {
    let idle = HEAD_TIMEOUT.saturating_add(server.timeout);
    let service = service_fn(move |request| {
        let server = Arc::clone(&server);
        async move { Ok::<_, Infallible>(server.answer(request, peer).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(HEAD_LIMIT)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    // A client that is cut off knows by itself.
    drop(served);
}

impl Server {
    async fn answer(&self, request: Request<Incoming>, peer: SocketAddr) -> Response {
        let path = request.uri().path().to_owned();
        let get = request.method() == Method::GET;
        let post = request.method() == Method::POST;
        if path == INVOKE && post {
            return self.events.invoke(request).await;
        }
        match path.strip_prefix(API) {
            Some("restore/next") if get => self.restore_next(peer).await,
            Some("invocation/next") if get => self.events.next().await,
            Some("restore/error") if post => {
                self.report(request, |state, fault| {
                    // Only of one that was let go, so that nobody else can spoil the next one.
                    if state.adapting.is_some() {
                        state.restore = Some(fault);
                    }
                })
                .await
            }
            Some("init/error") if post => {
                self.report(request, |state, fault| state.init = Some(fault))
                    .await
            }
            Some(rest) if post => match events::answered(rest) {
                Some((id, failed)) => self.events.answer(request, id, failed).await,
                None => not_found(&path),
            },
            _ => not_found(&path),
        }
    }

    /// A runtime has done what it does before a snapshot.
    async fn restore_next(&self, peer: SocketAddr) -> Response {
        let busy = |state: &mut super::State| !state.released && state.waiting.is_some();
        if self.shared.change(busy) {
            let text = "another runtime waits already";
            return refusal(StatusCode::CONFLICT, "Runtime.Busy", text);
        }
        let runtime = Runtime::at(peer, self.address);
        let waits = self.shared.change(|state| {
            // Whatever the former one had is lost.
            (state.init, state.restore) = (None, None);
            state.event.take_if(|event| event.taken);
            match state.released {
                true => state.let_go(runtime),
                false => state.waiting = Some(runtime),
            }
            !state.released
        });
        let _place = waits.then_some(Waiting(&self.shared));
        self.shared.seen(|state| state.released.then_some(())).await;
        empty(StatusCode::OK)
    }

    async fn report(
        &self,
        request: Request<Incoming>,
        note: impl FnOnce(&mut super::State, Fault),
    ) -> Response {
        let header = request.headers().get(ERROR_TYPE).cloned();
        match body(request, FAULT_LIMIT, BODY_TIMEOUT).await {
            Ok(body) => {
                let fault = Fault::of(&body, header.as_ref().map(HeaderValue::as_bytes));
                self.shared.change(|state| note(state, fault));
                accepted()
            }
            Err(refusal) => refusal,
        }
    }
}

/// A runtime's place while it waits, which it loses when its connection ends.
struct Waiting<'a>(&'a Shared);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.change(|state| {
            if !state.released {
                state.waiting = None;
            }
        });
    }
}

fn not_found(path: &str) -> Response {
    let text = format!("there is nothing at {}", super::fault::printable(path));
    refusal(StatusCode::NOT_FOUND, "NotFound", &text)
}
