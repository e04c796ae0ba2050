//! Requests whose head hyper cannot read: its own answers, which have other status codes and no body, become what the API's are.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::header::SERVER;
use tokio::io::AsyncWrite;

use super::fault::ApiFault;

/// What an answer begins with, and what it means.
type Meaning = (&'static [u8], fn() -> ApiFault);

/// hyper's answers. Those of the routes name the server.
const ANSWERS: [Meaning; 3] = [
    (b"HTTP/1.1 400 ", || ApiFault::NoRequest),
    (b"HTTP/1.1 414 ", || ApiFault::HeadTooLarge),
    (b"HTTP/1.1 431 ", || ApiFault::HeadTooLarge),
];

/// What is written instead of one of hyper's answers, after which hyper closes the connection.
#[derive(Debug, Default)]
pub(super) struct Instead {
    bytes: Vec<u8>,
    written: usize,
}

impl Instead {
    /// Writes to `stream`, if `bytes` are one of hyper's own answers; it counts as written with the last byte of ours. None if they are
    /// something else.
    pub(super) fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        mut stream: Pin<&mut S>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Option<Poll<io::Result<usize>>> {
        if self.bytes.is_empty() {
            self.bytes = on_the_wire(&fault(bytes)?);
        }
        while self.written < self.bytes.len() {
            let rest = &self.bytes[self.written..];
            match stream.as_mut().poll_write(context, rest) {
                Poll::Ready(Ok(written)) if written > 0 => self.written += written,
                Poll::Ready(Ok(_)) => return Some(Poll::Ready(Ok(0))),
                other => return Some(other),
            }
        }
        *self = Self::default();
        Some(Poll::Ready(Ok(bytes.len())))
    }
}

/// What one of hyper's own answers says. It writes the head of an answer at once.
fn fault(answer: &[u8]) -> Option<ApiFault> {
    let (_, fault) = (ANSWERS.iter()).find(|(begin, _)| answer.starts_with(begin))?;
    let named = format!("\r\n{SERVER}: ");
    let named = answer.windows(named.len()).any(|at| at == named.as_bytes());
    (!named).then(fault)
}

fn on_the_wire(fault: &ApiFault) -> Vec<u8> {
    let body = fault.body();
    let head = format!(
        "HTTP/1.1 400 Bad Request\r\nserver: vmgenie\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        body.len()
    );
    [head.into_bytes(), body].concat()
}
