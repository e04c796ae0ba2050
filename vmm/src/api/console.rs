//! GET `/console`: a connection that becomes the guest's serial console.
//!
//! The client asks for it by HTTP's `Upgrade`. After the answer 101 the connection carries bytes: what the guest says, from the
//! last 32 KiB of what it has said on; and what the client sends is typed. Output goes to standard output all the same, and to all who are
//! attached; one who does not read misses some of it, and holds nobody up.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::HeaderMap;
use hyper::header::{CONNECTION, UPGRADE};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use vmgenie_api::headers::CONSOLE_PROTOCOL;
use vmgenie_machine::console::history::{Follower, Piece};

use super::http10::Kept;
use super::wait::{Peer, gone};
use crate::controller::command::{Command, ControllerHandle};

/// The most bytes that are typed at once.
const TYPED: usize = 1 << 10;

/// Whether a request asks for the console.
pub(super) fn asked_for(headers: &HeaderMap) -> bool {
    let names = |header, wanted: &str| {
        headers.get_all(header).iter().any(|value| {
            let text = value.to_str().unwrap_or_default();
            text.split(',')
                .any(|token| token.trim().eq_ignore_ascii_case(wanted))
        })
    };
    names(CONNECTION, "upgrade") && names(UPGRADE, CONSOLE_PROTOCOL)
}

/// What goes on with a connection when it no longer speaks HTTP.
type Session = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection that a request may take over.
#[derive(Clone)]
pub(super) struct Takeover {
    session: Arc<Mutex<Option<Session>>>,
    peer: Option<Peer>,
    /// The API is shut down.
    stopped: watch::Receiver<bool>,
}

impl Takeover {
    pub(super) fn new(peer: Option<Peer>, stopped: watch::Receiver<bool>) -> Self {
        Self {
            session: Arc::default(),
            peer,
            stopped,
        }
    }

    /// What took the connection over.
    pub(super) fn take(&self) -> Option<Session> {
        self.session
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Has the connection be a console once the answer to its request is out.
    pub(super) fn attach(
        self,
        upgrade: OnUpgrade,
        follower: Follower,
        handle: ControllerHandle,
        place: OwnedSemaphorePermit,
    ) {
        let Self {
            session,
            peer,
            stopped,
        } = self;
        let attached = Box::pin(async move {
            let _place = place;
            match connection(upgrade).await {
                Ok((stream, typed)) => {
                    serve(&stream, typed, follower, &handle, peer.as_ref(), stopped).await;
                }
                Err(error) => tracing::debug!(%error, "a client did not attach to the console"),
            }
        });
        *session.lock().unwrap_or_else(PoisonError::into_inner) = Some(attached);
    }
}

/// The connection itself, and what the client has sent already.
async fn connection(upgrade: OnUpgrade) -> Result<(UnixStream, Vec<u8>), hyper::Error> {
    let upgraded = upgrade.await?;
    match upgraded.downcast::<TokioIo<Kept<UnixStream>>>() {
        Ok(parts) => Ok((parts.io.into_inner().into_inner(), parts.read_buf.to_vec())),
        // The server makes connections of one type.
        Err(_) => unreachable!("a connection of another type"),
    }
}

async fn serve(
    stream: &UnixStream,
    typed: Vec<u8>,
    mut follower: Follower,
    handle: &ControllerHandle,
    peer: Option<&Peer>,
    stopped: watch::Receiver<bool>,
) {
    let output = async {
        let mut stopped = stopped;
        loop {
            let piece = tokio::select! {
                biased;
                piece = follower.next() => piece,
                _ = stopped.wait_for(|stop| *stop) => break,
            };
            write(stream, piece).await?;
        }
        Ok::<_, io::Error>(())
    };
    let input = async {
        tokio::select! {
            // A client that has said all that it types may read on.
            _ = read(stream, typed, handle) => gone(peer).await,
            // What it has typed may wait for the guest for ever.
            () = gone(peer) => {}
        }
    };
    tokio::select! {
        _ = output => {}
        () = input => {}
    }
}

async fn write(stream: &UnixStream, piece: Piece) -> io::Result<()> {
    let Piece { missed, mut bytes } = piece;
    if missed > 0 {
        let told = format!("\r\n[vmgenie: {missed} bytes of output are missing]\r\n");
        bytes.splice(..0, told.into_bytes());
    }
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        stream.writable().await?;
        match stream.try_write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Types what the client sends, as fast as the guest takes it, until the client sends no more.
async fn read(
    stream: &UnixStream,
    mut typed: Vec<u8>,
    handle: &ControllerHandle,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut buffer = [0; TYPED];
    loop {
        if !typed.is_empty() {
            handle.call(Command::ConsoleInput(typed)).await?;
        }
        stream.readable().await?;
        typed = match stream.try_read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => buffer[..len].to_vec(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Vec::new(),
            Err(error) => return Err(error.into()),
        };
    }
}

#[cfg(test)]
#[path = "console_test.rs"]
mod tests;
