//! One connection: a stream on the host, a socket in the guest, and what each side has promised to the other.
//!
//! **Credit** (virtio 1.2 section 5.10.6.3). Each side tells the size of its buffer and how much it has taken out of it; the other never
//! sends more than fits. A guest that does is cut off; a guest whose numbers make no sense only starves itself.
//!
//! **Closing** (section 5.10.6.6). Each direction ends by itself. What the guest has sent before it closed still reaches the host,
//! however slowly the host reads.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::Shutdown;

use vm_memory::VolatileSlice;

use super::host::{Event, Stream, Token};
use super::metrics::VsockMetrics;
use super::packet::{
    self, HOST_CID, Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op,
};

/// The two ports that name a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The host wants it; the guest has not answered.
    Asked,
    /// Both want it.
    Open,
    /// The guest has closed it; bytes of the guest's are still on their way to the host.
    Draining,
    /// As before, and the guest has forgotten it.
    Forgotten,
    /// A reset is all that the guest has to be told.
    Dead,
    /// There is nothing left to tell.
    Gone,
}

/// What the guest has to be told, apart from data and a reset.
#[derive(Clone, Copy, Debug, Default)]
struct Pending {
    request: bool,
    response: bool,
    credit_update: bool,
    credit_request: bool,
    shutdown: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Connection<S> {
    stream: S,
    token: Token,
    state: State,
    pending: Pending,
    /// Is it in the muxer's list of those that have something for the guest?
    pub(super) queued: bool,
    /// Is the stream watched for room to write?
    pub(super) watching_writable: bool,

    /// Bytes of the guest's that the host has not taken yet. Never more than `buf_alloc`.
    held: VecDeque<u8>,
    buf_alloc: u32,
    /// Bytes from the guest, and how many of them are out of our buffer, modulo 2^32; the latter as the guest was last told.
    received: u32,
    forwarded: u32,
    announced: u32,

    /// The guest's buffer, what it has taken out of it, and what we have sent, modulo 2^32.
    guest_alloc: u32,
    guest_forwarded: u32,
    sent: u32,
    /// The guest has been asked for credit, and has given none since.
    credit_asked: bool,

    /// The stream may have something to read.
    readable: bool,
    /// The host sends no more than what can be read now.
    host_ended: bool,
    /// The host neither sends nor receives.
    host_closed: bool,
    /// What the guest has to know, or knows, of our ends.
    our_shutdown: u32,
    /// What we know of the guest's ends.
    guest_shutdown: u32,
    /// It was cut off.
    killed: bool,
}

impl<S: Stream> Connection<S> {
    fn new(stream: S, token: Token, state: State, buf_alloc: u32) -> Self {
        Self {
            stream,
            token,
            state,
            pending: Pending::default(),
            queued: false,
            watching_writable: false,
            held: VecDeque::new(),
            buf_alloc,
            received: 0,
            forwarded: 0,
            announced: 0,
            guest_alloc: 0,
            guest_forwarded: 0,
            sent: 0,
            credit_asked: false,
            readable: false,
            host_ended: false,
            host_closed: false,
            our_shutdown: 0,
            guest_shutdown: 0,
            killed: false,
        }
    }

    /// The guest's wish, which is granted: a stream is there.
    pub(super) fn from_guest(stream: S, token: Token, buf_alloc: u32, request: &Header) -> Self {
        let mut connection = Self::new(stream, token, State::Open, buf_alloc);
        connection.pending.response = true;
        connection.note_credit(request);
        connection
    }

    /// The host's wish, which the guest has to be told.
    pub(super) fn from_host(stream: S, token: Token, buf_alloc: u32, event: &Event) -> Self {
        let mut connection = Self::new(stream, token, State::Asked, buf_alloc);
        connection.pending.request = true;
        connection.readable = true; // bytes may have come right behind the request
        connection.host_ended = event.ended;
        connection.host_closed = event.closed;
        connection
    }

    pub(super) fn stream(&self) -> &S {
        &self.stream
    }

    pub(super) fn token(&self) -> Token {
        self.token
    }

    /// The guest has not agreed to this connection, or does not know that the host has.
    pub(super) fn is_unanswered(&self) -> bool {
        self.pending.response
    }

    /// The guest knows nothing of this connection any more.
    pub(super) fn is_forgotten(&self) -> bool {
        self.state == State::Forgotten
    }

    /// It did not end because both sides wanted so.
    pub(super) fn was_killed(&self) -> bool {
        self.killed
    }

    pub(super) fn is_gone(&self) -> bool {
        self.state == State::Gone
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    pub(super) fn wants_writable(&self) -> bool {
        !self.held.is_empty()
    }

    /// Is there something for the guest?
    pub(super) fn has_output(&self) -> bool {
        let pending = self.pending;
        self.state == State::Dead
            || pending.request
            || pending.response
            || self.credit_for_data() > 0
            || pending.credit_update
            || pending.credit_request
            || pending.shutdown
    }

    /// The guest gets a reset, the host the end of the stream.
    pub(super) fn kill(&mut self) {
        self.killed = true;
        self.state = match self.state {
            State::Forgotten | State::Gone => State::Gone,
            // The guest has not heard of it yet.
            State::Asked if self.pending.request => State::Gone,
            _ => State::Dead,
        };
        self.pending = Pending::default();
        self.held = VecDeque::new();
        self.readable = false;
    }

    // From the guest

    /// A packet of the guest's for this connection.
    pub(super) fn receive(
        &mut self,
        key: Key,
        header: &Header,
        data: &[VolatileSlice<'_>],
        metrics: &VsockMetrics,
    ) {
        self.note_credit(header);
        match (self.state, header.op.get()) {
            (State::Draining, op::RST) => self.state = State::Forgotten,
            (State::Draining, op::SHUTDOWN | op::CREDIT_UPDATE | op::CREDIT_REQUEST) => {}
            (State::Forgotten | State::Dead | State::Gone, _) => {}
            (_, op::RST) => self.state = State::Gone,
            (State::Asked, op::RESPONSE) => self.agree(key),
            (State::Open, op::RW) if self.guest_shutdown & SHUTDOWN_SEND == 0 => {
                self.take(data, metrics);
            }
            (State::Open, op::SHUTDOWN) => self.guest_ends(header.flags.get()),
            (State::Open | State::Asked, op::CREDIT_UPDATE) => {}
            (State::Open, op::CREDIT_REQUEST) => self.pending.credit_update = true,
            _ => self.kill(),
        }
    }

    /// The guest has agreed to what the host wished.
    fn agree(&mut self, key: Key) {
        self.state = State::Open;
        let answer = format!("OK {}\n", key.host_port);
        // So few bytes, and the first ones, always have room; a stream without is a broken one.
        if self.stream.write(answer.as_bytes()).ok() != Some(answer.len()) {
            self.kill();
        }
    }

    fn take(&mut self, data: &[VolatileSlice<'_>], metrics: &VsockMetrics) {
        let total = packet::len(data);
        let Some(len) = u32::try_from(total).ok().filter(|len| *len <= self.free()) else {
            return self.kill(); // more than we had room for
        };
        if total == 0 {
            return;
        }
        self.received = self.received.wrapping_add(len);
        if self.our_shutdown & SHUTDOWN_RECEIVE != 0 {
            // It was under way when the guest was told that nobody reads it.
            return self.forward(total);
        }
        let written = match self.held.is_empty() {
            false => 0,
            true => match self.stream.write_vectored(data) {
                Ok(written) => written.min(total),
                Err(error) if would_block(&error) => 0,
                Err(_) => {
                    metrics.tx_write_fails.inc();
                    return self.host_takes_no_more();
                }
            },
        };
        self.hold(data, written);
        self.forward(written);
    }

    /// Keeps what is behind the first `skip` bytes.
    fn hold(&mut self, data: &[VolatileSlice<'_>], mut skip: usize) {
        for piece in data {
            let now = skip.min(piece.len());
            skip -= now;
            if let Ok(rest) = piece.offset(now) {
                let mut bytes = vec![0; rest.len()];
                rest.copy_to(&mut bytes);
                self.held.extend(bytes);
            }
        }
    }

    /// So many bytes more have left our buffer.
    fn forward(&mut self, len: usize) {
        self.forwarded = self.forwarded.wrapping_add(len as u32); // at most buf_alloc
        // Telling of a quarter at a time lets the guest send on while it is told.
        if self.forwarded.wrapping_sub(self.announced) >= self.buf_alloc / 4 {
            self.pending.credit_update = true;
        }
    }

    /// Room in our buffer, in bytes.
    fn free(&self) -> u32 {
        let used = self.received.wrapping_sub(self.forwarded);
        self.buf_alloc.saturating_sub(used)
    }

    fn guest_ends(&mut self, flags: u32) {
        let new = flags & SHUTDOWN_BOTH & !self.guest_shutdown;
        self.guest_shutdown |= new;
        if new & SHUTDOWN_RECEIVE != 0 {
            self.readable = false;
            // Fails if the host has gone: then there is nothing to end.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        if new & SHUTDOWN_SEND != 0 && self.held.is_empty() {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        if self.guest_shutdown == SHUTDOWN_BOTH {
            self.pending = Pending::default();
            self.state = State::Draining;
            self.finish_draining();
        }
    }

    fn finish_draining(&mut self) {
        if self.held.is_empty() {
            match self.state {
                State::Draining => self.state = State::Dead,
                State::Forgotten => self.state = State::Gone,
                _ => {}
            }
        }
    }

    // From the host

    /// Something has become possible on the stream.
    pub(super) fn on_event(&mut self, event: &Event, metrics: &VsockMetrics) {
        if matches!(self.state, State::Dead | State::Gone) {
            return;
        }
        self.host_ended |= event.ended;
        self.host_closed |= event.closed;
        let guest_reads = self.guest_shutdown & SHUTDOWN_RECEIVE == 0;
        let at_end = self.our_shutdown & SHUTDOWN_SEND != 0;
        self.readable |= (event.readable || event.closed) && guest_reads && !at_end;
        if event.writable {
            self.flush(metrics);
        }
        if self.host_closed {
            match self.state {
                State::Asked => self.kill(), // the host does not want it any more
                // What can still be read comes first.
                State::Open if at_end || !guest_reads => self.tell(SHUTDOWN_BOTH),
                _ => {}
            }
        }
    }

    /// Writes what was held back.
    fn flush(&mut self, metrics: &VsockMetrics) {
        while !self.held.is_empty() {
            let (front, _) = self.held.as_slices();
            match self.stream.write(front) {
                Ok(written) => {
                    let written = written.min(front.len());
                    self.held.drain(..written);
                    self.forward(written);
                }
                Err(error) if would_block(&error) => return,
                Err(_) => {
                    metrics.tx_flush_fails.inc();
                    return self.host_takes_no_more();
                }
            }
        }
        self.held = VecDeque::new();
        if self.guest_shutdown & SHUTDOWN_SEND != 0 {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        self.finish_draining();
    }

    /// Nobody reads what the guest sends. What the host has sent still goes to the guest.
    fn host_takes_no_more(&mut self) {
        self.held = VecDeque::new();
        self.forwarded = self.received;
        match self.state {
            State::Open => self.tell(SHUTDOWN_RECEIVE),
            _ => self.finish_draining(),
        }
    }

    /// The guest has to know that an end of ours is closed.
    fn tell(&mut self, ends: u32) {
        self.pending.shutdown |= ends & !self.our_shutdown != 0;
        self.our_shutdown |= ends;
        if self.our_shutdown == SHUTDOWN_BOTH {
            self.held = VecDeque::new();
        }
    }

    // To the guest

    /// How many bytes of data may go to the guest now; 0 as well if the host has none.
    pub(super) fn credit_for_data(&self) -> u32 {
        let wanted = self.state == State::Open && self.readable && !self.pending.response;
        if wanted { self.credit() } else { 0 }
    }

    fn credit(&self) -> u32 {
        // Whatever the guest says, never more than the buffer that it claims to have.
        let in_flight = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_alloc.saturating_sub(in_flight)
    }

    fn note_credit(&mut self, header: &Header) {
        self.guest_alloc = header.buf_alloc.get();
        self.guest_forwarded = header.fwd_cnt.get();
        if self.credit() > 0 {
            self.credit_asked = false;
        }
    }

    /// Asks for credit, once for each time that there is none.
    pub(super) fn check_credit(&mut self) {
        let stuck = self.state == State::Open && self.readable && self.credit() == 0;
        if stuck && !self.credit_asked {
            self.credit_asked = true;
            self.pending.credit_request = true;
        }
    }

    /// Reads from the host into guest memory, which is not empty and no longer than [`Self::credit_for_data`].
    pub(super) fn read(&mut self, into: &[VolatileSlice<'_>], metrics: &VsockMetrics) -> usize {
        let room = packet::len(into);
        match self.stream.read_vectored(into) {
            Ok(0) => {
                self.readable = false;
                // A host that has closed both ways would not see another byte of the guest's.
                self.tell(if self.host_closed {
                    SHUTDOWN_BOTH
                } else {
                    SHUTDOWN_SEND
                });
                0
            }
            Ok(read) => {
                let read = read.min(room);
                // Less than there was room for: there is no more. But the end of the stream must be read, too.
                self.readable = read == room || self.host_ended || self.host_closed;
                self.sent = self.sent.wrapping_add(read as u32); // at most `credit`
                read
            }
            Err(error) if would_block(&error) => {
                self.readable = false;
                0
            }
            Err(_) => {
                metrics.rx_read_fails.inc();
                self.kill();
                0
            }
        }
    }

    /// The packet that goes before all data, if any: its operation and flags.
    pub(super) fn take_first(&mut self) -> Option<(u16, u32)> {
        if self.state == State::Dead {
            self.state = State::Gone;
            return Some((op::RST, 0));
        }
        if std::mem::take(&mut self.pending.request) {
            return Some((op::REQUEST, 0));
        }
        std::mem::take(&mut self.pending.response).then_some((op::RESPONSE, 0))
    }

    /// The packet that goes when there is no data, if any.
    pub(super) fn take_last(&mut self) -> Option<(u16, u32)> {
        if std::mem::take(&mut self.pending.credit_update) {
            return Some((op::CREDIT_UPDATE, 0));
        }
        if std::mem::take(&mut self.pending.credit_request) {
            return Some((op::CREDIT_REQUEST, 0));
        }
        std::mem::take(&mut self.pending.shutdown).then_some((op::SHUTDOWN, self.our_shutdown))
    }

    /// The header of a packet to the guest, which tells of our buffer in passing.
    pub(super) fn header(
        &mut self,
        key: Key,
        guest_cid: u64,
        what: (u16, u32),
        len: u32,
    ) -> Header {
        self.announced = self.forwarded;
        self.pending.credit_update = false;
        let (op, flags) = what;
        Header {
            src_cid: HOST_CID.into(),
            dst_cid: guest_cid.into(),
            src_port: key.host_port.into(),
            dst_port: key.guest_port.into(),
            len: len.into(),
            kind: TYPE_STREAM.into(),
            op: op.into(),
            flags: flags.into(),
            buf_alloc: self.buf_alloc.into(),
            fwd_cnt: self.forwarded.into(),
        }
    }
}

fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
