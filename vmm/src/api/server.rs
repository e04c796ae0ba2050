//! The thread that serves the API, and what a connection may cost.
//!
//! A slow or silent client holds one of [`MAX_CONNECTIONS`] places. When all are taken, the one
//! that has been waiting for its client for the longest time is closed, so no client can keep
//! others out; places in which the machine is at work are left alone.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::Router;
use hyper::body::Incoming;
use hyper::header::{HeaderValue, SERVER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use vmgenie_api::limits::{HEAD_LIMIT, MAX_CONNECTIONS};
use vmgenie_machine::unix_socket::{ListeningSocket, SocketError};

use super::console::Takeover;
use super::http10::Kept;
use super::wait::Peer;
use super::{ApiInfo, limits, router};
use crate::controller::command::ControllerHandle;
use crate::metrics;

/// How long the head of a request may take to arrive, and how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The stack of the API thread in bytes.
const STACK_SIZE: usize = 256 << 10;
/// How long answers that are under way may take to leave when the API is shut down.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(500);
/// How long to wait when no connection can be accepted, for want of file descriptors for example: at first, and at most.
const ACCEPT_RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How often to complain of it.
const COMPLAINT_PERIOD: Duration = Duration::from_secs(10);
/// How often to look for an idle connection when all are busy.
const ROOM_RETRY: Duration = Duration::from_millis(20);

/// What a VMM asks itself when it starts; it concerns the API alone, not the machine.
const REHEARSAL: &[u8] = b"GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// Why the API cannot be served.
#[derive(Debug, Error)]
pub enum ApiError {
    /// The socket could not be made.
    #[error("could not open the API socket")]
    Socket(#[from] SocketError),
    /// The runtime or the thread could not be made.
    #[error("could not start the API thread for {0}")]
    Thread(PathBuf, #[source] io::Error),
}

/// The running API. Dropping it shuts the API down.
#[derive(Debug)]
pub struct ApiThread {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    socket: Option<ListeningSocket>,
}

impl ApiThread {
    /// Removes the socket, lets answers that are under way leave (for 500 ms at most), and ends the
    /// thread. A request that the controller has not answered yet is under way, too: drop the
    /// receiving end of the handle first, and its client learns at once that the microVM is
    /// shutting down.
    pub fn shutdown(mut self) {
        self.stop_and_join();
    }

    fn stop_and_join(&mut self) {
        drop(self.socket.take());
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the API thread has panicked");
        }
    }
}

impl Drop for ApiThread {
    fn drop(&mut self) {
        self.stop_and_join();
    }
}

/// Listens on `socket` (mode 0600) and serves the API there in a thread named `api` until the
/// result is dropped.
///
/// A socket that a dead VMM left at that path is replaced; one on which somebody listens is not.
pub fn spawn(
    socket: &Path,
    info: ApiInfo,
    handle: ControllerHandle,
) -> Result<ApiThread, ApiError> {
    let failed = |error| ApiError::Thread(socket.to_owned(), error);
    let (api_socket, listener) = ListeningSocket::bind(socket)?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let listener = {
        let _context = runtime.enter();
        UnixListener::from_std(listener).map_err(failed)?
    };
    let (stop, stopped) = watch::channel(false);
    let service = Service {
        body_limit: info.body_limit,
        counts: true,
        router: router(info, handle),
    };
    let thread = std::thread::Builder::new()
        .name("api".to_owned())
        .stack_size(STACK_SIZE)
        .spawn(move || run(&runtime, listener, service, stopped))
        .map_err(failed)?;
    Ok(ApiThread {
        stop,
        thread: Some(thread),
        socket: Some(api_socket),
    })
}

/// Who answers, and how long a body may be.
#[derive(Debug, Clone)]
struct Service {
    router: Router,
    body_limit: usize,
    /// Requests are counted in the metrics.
    counts: bool,
}

fn run(
    runtime: &Runtime,
    listener: UnixListener,
    service: Service,
    stopped: watch::Receiver<bool>,
) {
    runtime.block_on(async {
        tokio::spawn(rehearse(service.clone(), stopped.clone()));
        let mut connections = Connections::default();
        tokio::select! {
            () = accept_all(&listener, &service, &stopped, &mut connections) => {}
            () = stop(stopped.clone()) => {}
        }
        drop(listener);
        let _ = tokio::time::timeout(SHUTDOWN_GRACE, connections.all_done()).await;
    });
}

/// Serves one request that nobody has sent. The first request takes ten times as long as the second one, because none of the
/// code has run; the first client is to be a clone that shall be there at once, so this is done while the VMM waits for it.
async fn rehearse(service: Service, stopped: watch::Receiver<bool>) {
    let Ok((ours, client)) = UnixStream::pair() else {
        return;
    };
    let activity = Arc::new(Activity::new(Instant::now()));
    let service = Service {
        counts: false,
        ..service
    };
    let ask = async move {
        // Whatever goes wrong here, a real client is told of.
        let _ = client.writable().await;
        let _ = client.try_write(REHEARSAL);
        let _ = client.readable().await;
    };
    tokio::join!(serve(ours, service, activity, stopped), ask);
}

/// Returns when the API is shut down.
async fn stop(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn accept_all(
    listener: &UnixListener,
    service: &Service,
    stopped: &watch::Receiver<bool>,
    connections: &mut Connections,
) {
    let mut retry = ACCEPT_RETRY.0;
    let mut complained: Option<Instant> = None;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                retry = ACCEPT_RETRY.0;
                connections.make_room().await;
                let activity = Arc::new(Activity::new(connections.epoch));
                let serving = serve(
                    stream,
                    service.clone(),
                    Arc::clone(&activity),
                    stopped.clone(),
                );
                connections.start(serving, activity);
            }
            // That is told whether or not somebody waits, and no client makes room for nobody. One that leaves does.
            Err(error) if no_descriptors(&error) && !somebody_waits(listener) => {
                let _ = tokio::time::timeout(retry, connections.one_leaves()).await;
                retry = doubled(retry);
            }
            // A client that says nothing gives its descriptor to one that may.
            Err(error) if no_descriptors(&error) && connections.close_longest_idle() => {
                let _ = tokio::time::timeout(ROOM_RETRY, connections.tasks.join_next()).await;
            }
            Err(error) => {
                if complained.is_none_or(|last| last.elapsed() > COMPLAINT_PERIOD) {
                    tracing::warn!(%error, "could not accept a connection to the API");
                    complained = Some(Instant::now());
                }
                tokio::time::sleep(retry).await;
                retry = doubled(retry);
            }
        }
    }
}

/// How long to wait the next time.
fn doubled(retry: Duration) -> Duration {
    (retry * 2).min(ACCEPT_RETRY.1)
}

fn no_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Whether there is a connection to accept.
fn somebody_waits(listener: &UnixListener) -> bool {
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// Serves one connection until its client is done with it.
async fn serve(
    stream: UnixStream,
    answering: Service,
    activity: Arc<Activity>,
    stopped: watch::Receiver<bool>,
) {
    let peer = Peer::of(&stream);
    let answered = Arc::new(AtomicBool::new(false));
    let stream = Kept::new(stream, Arc::clone(&answered));
    let takeover = Takeover::new(peer.clone(), stopped.clone());
    let offered = takeover.clone();
    let service_activity = Arc::clone(&activity);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let Service {
            router,
            body_limit,
            counts,
        } = answering.clone();
        let activity = Arc::clone(&service_activity);
        let answered = Arc::clone(&answered);
        if let Some(peer) = &peer {
            request.extensions_mut().insert(peer.clone());
        }
        request.extensions_mut().insert(offered.clone());
        async move {
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            activity.idle();
            let started = Instant::now();
            let mut response =
                limits::answer(router, body_limit, request, || activity.busy()).await;
            response
                .headers_mut()
                .insert(SERVER, HeaderValue::from_static("vmgenie"));
            // What comes next on a connection that has become another one is no request.
            let taken_over = response.status() == StatusCode::SWITCHING_PROTOCOLS;
            answered.store(!taken_over, Ordering::Relaxed);
            activity.idle();
            let (status, took) = (response.status().as_u16(), started.elapsed());
            if counts {
                let succeeded = taken_over || response.status().is_success();
                metrics::count_request(&method, &path, succeeded);
            }
            tracing::debug!(%method, path, status, ?took, "API request");
            Ok::<_, Infallible>(response)
        }
    });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_LIMIT)
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop(stopped) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a client of the API was cut off");
    }
    if let Some(session) = takeover.take() {
        // It is not closed for others' sake: there are few of its kind.
        activity.busy();
        session.await;
    }
}

/// Since when a connection waits for its client.
#[derive(Debug)]
struct Activity {
    epoch: Instant,
    /// Milliseconds since `epoch`, or [`Activity::BUSY`].
    idle_since: AtomicU64,
}

impl Activity {
    /// The machine is at work for this connection.
    const BUSY: u64 = u64::MAX;

    fn new(epoch: Instant) -> Self {
        let activity = Self {
            epoch,
            idle_since: AtomicU64::new(0),
        };
        activity.idle();
        activity
    }

    fn idle(&self) {
        let now = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(Self::BUSY - 1);
        self.idle_since.store(now, Ordering::Relaxed);
    }

    fn busy(&self) {
        self.idle_since.store(Self::BUSY, Ordering::Relaxed);
    }

    fn idle_since(&self) -> Option<u64> {
        Some(self.idle_since.load(Ordering::Relaxed)).filter(|since| *since != Self::BUSY)
    }
}

/// The open connections, [`MAX_CONNECTIONS`] at most.
struct Connections {
    epoch: Instant,
    tasks: JoinSet<()>,
    open: VecDeque<(AbortHandle, Arc<Activity>)>,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            epoch: Instant::now(),
            tasks: JoinSet::new(),
            open: VecDeque::new(),
        }
    }
}

impl Connections {
    /// Returns when there is room for one more connection; closes the one that has been idle for
    /// the longest time if need be.
    async fn make_room(&mut self) {
        loop {
            self.forget_ended();
            if self.open.len() < MAX_CONNECTIONS {
                return;
            }
            self.close_longest_idle();
            // When the machine is at work for every one of them, look again soon.
            let _ = tokio::time::timeout(ROOM_RETRY, self.tasks.join_next()).await;
        }
    }

    /// Returns when a connection has ended; never, if there is none.
    async fn one_leaves(&mut self) {
        if self.tasks.join_next().await.is_none() {
            std::future::pending().await
        }
    }

    fn forget_ended(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|(task, _)| !task.is_finished());
    }

    /// Closes the connection that has been idle for the longest time; false if none is idle.
    fn close_longest_idle(&mut self) -> bool {
        self.forget_ended();
        let idle = self.open.iter();
        let longest_idle = idle
            .filter_map(|(task, activity)| activity.idle_since().map(|since| (since, task)))
            .min_by_key(|(since, _)| *since);
        let Some((_, task)) = longest_idle else {
            return false;
        };
        tracing::debug!("too many clients of the API: closing the one that is idle longest");
        task.abort();
        true
    }

    fn start(
        &mut self,
        serving: impl Future<Output = ()> + Send + 'static,
        activity: Arc<Activity>,
    ) {
        self.open.push_back((self.tasks.spawn(serving), activity));
    }

    async fn all_done(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
#[path = "server_test.rs"]
mod tests;
