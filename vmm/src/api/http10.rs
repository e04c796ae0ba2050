//! Clients that say HTTP/1.0 and mean to go on: Firecracker keeps their connections open, and some of its client libraries count
//! on it. hyper would close them, so it is told that they said HTTP/1.1. And where hyper answers by itself, our answer is written.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::malformed::Instead;

/// What stands before the digit that is changed.
const BEFORE: &[u8] = b" HTTP/1.";

/// A connection on which the first line of each request says HTTP/1.1.
#[derive(Debug)]
pub(super) struct Kept<S> {
    stream: S,
    /// What is read next is a new request.
    next: Arc<AtomicBool>,
    line: Option<Line>,
    instead: Instead,
}

impl<S> Kept<S> {
    /// Wraps a connection; whoever answers a request sets `next` afterwards. A request that was sent before the answer to the one
    /// before it is left as it is.
    pub(super) fn new(stream: S, next: Arc<AtomicBool>) -> Self {
        Self {
            stream,
            next,
            line: Some(Line::default()),
            instead: Instead::default(),
        }
    }

    /// The connection itself.
    pub(super) fn into_inner(self) -> S {
        self.stream
    }

    fn change(&mut self, bytes: &mut [u8]) {
        if self.next.swap(false, Ordering::Relaxed) {
            self.line = Some(Line::default());
        }
        if let Some(line) = &mut self.line
            && line.change(bytes)
        {
            self.line = None;
        }
    }
}

/// How far the first line of a request has been read.
#[derive(Debug, Default)]
struct Line {
    begun: bool,
    /// How many bytes of [`BEFORE`] have just been read.
    matched: usize,
}

impl Line {
    /// Changes the digit if it is among `bytes`; true if the line has ended.
    fn change(&mut self, bytes: &mut [u8]) -> bool {
        for byte in bytes {
            match *byte {
                // Empty lines before a request are skipped (RFC 9112 section 2.2).
                b'\r' | b'\n' if !self.begun => continue,
                b'\n' => return true,
                b'0' if self.matched == BEFORE.len() => *byte = b'1',
                _ => {}
            }
            self.begun = true;
            self.matched = match BEFORE.get(self.matched) {
                Some(expected) if expected == byte => self.matched + 1,
                _ => usize::from(*byte == BEFORE[0]),
            };
        }
        false
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Kept<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready() && buffer.filled().len() > before {
            self.change(&mut buffer.filled_mut()[before..]);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Kept<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self {
            stream, instead, ..
        } = &mut *self;
        let mut stream = Pin::new(stream);
        instead
            .poll_write(stream.as_mut(), context, bytes)
            .unwrap_or_else(|| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self {
            stream, instead, ..
        } = &mut *self;
        let mut stream = Pin::new(stream);
        let first = parts.first().map_or(&[][..], |part| part);
        instead
            .poll_write(stream.as_mut(), context, first)
            .unwrap_or_else(|| stream.poll_write_vectored(context, parts))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of requests that arrive in pieces of `size` bytes; each is answered before the next one comes.
    fn changed(requests: &[&str], size: usize) -> String {
        let next = Arc::new(AtomicBool::new(false));
        let mut kept = Kept::new((), Arc::clone(&next));
        let mut all = Vec::new();
        for request in requests {
            for piece in request.as_bytes().chunks(size) {
                let mut piece = piece.to_vec();
                kept.change(&mut piece);
                all.extend(piece);
            }
            next.store(true, Ordering::Relaxed);
        }
        String::from_utf8(all).unwrap()
    }

    #[test]
    fn the_version_is_changed_in_the_first_line_of_each_request_and_nowhere_else() {
        let requests = [
            "GET / HTTP/1.0\r\nX: a HTTP/1.0\r\n\r\n",
            "\r\nPUT /x HTTP/1.0\r\n\r\n{\"a\": \" HTTP/1.0\"}\n HTTP/1.0\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1. HTTP/1.0\n",
        ];
        let expected = [
            "GET / HTTP/1.1\r\nX: a HTTP/1.0\r\n\r\n",
            "\r\nPUT /x HTTP/1.1\r\n\r\n{\"a\": \" HTTP/1.0\"}\n HTTP/1.0\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1. HTTP/1.1\n",
        ];
        for size in [1, 2, 3, 7, 1000] {
            assert_eq!(changed(&requests, size), expected.concat(), "{size}");
        }
    }
}
