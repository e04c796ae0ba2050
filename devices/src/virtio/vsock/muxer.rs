//! All connections of a guest: which packet belongs to which stream, and whose turn it is to send.

use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Instant;

use vm_memory::VolatileSlice;

use super::connection::{Connection, Key};
use super::gate::Shut;
use super::greeting::{Greeting, read_greeting};
use super::host::{Event, Host, LISTENER, Token};
use super::metrics::VsockMetrics;
use super::packet::{HOST_CID, Header, TYPE_STREAM, op};
use crate::throttle::Throttle;

/// The most connections, those included that have not said yet where they want to go. As many as Firecracker's.
pub const MAX_CONNECTIONS: usize = 1023;
/// The most resets that wait for a buffer of the guest's. A guest that provokes more without taking them gets no more.
const MAX_RESETS: usize = 1024;
/// Connections that get a large buffer; the others get a small one. Bounds what a guest can have us hold to 76 MiB.
const LARGE_BUFFERS: usize = 64;
const LARGE_BUFFER: u32 = 256 << 10;
const SMALL_BUFFER: u32 = 64 << 10;
/// Ports of the host for connections that the host wants, as Firecracker has them: 2^30 to 2^31 - 1.
const FIRST_PORT: u32 = 1 << 30;
const LAST_PORT: u32 = (1 << 31) - 1;
/// The most connections accepted in one turn.
const MAX_ACCEPTS: usize = 64;

/// Whose stream a token is.
#[derive(Debug)]
enum Peer<S> {
    /// It has been accepted, and has not said where it wants to go.
    Greeting(S),
    /// A connection's.
    Connection(Key),
}

/// What goes to the guest next.
#[derive(Debug)]
pub(super) enum Output {
    /// A packet without data.
    Packet(Header),
    /// Data, at most so many bytes: [`Muxer::read`].
    Data(Key, u32),
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Muxer<H: Host> {
    host: H,
    guest_cid: u64,
    /// The most connections; at most [`MAX_CONNECTIONS`].
    limit: usize,
    connections: HashMap<Key, Connection<H::Stream>>,
    peers: HashMap<Token, Peer<H::Stream>>,
    last_token: Token,
    last_port: u32,
    /// Connections that have something for the guest, each once.
    ready: VecDeque<Key>,
    /// Resets for what is no connection, with the type of the packet that they answer.
    resets: VecDeque<(Key, u16)>,
    /// There may be somebody to accept.
    accepting: bool,
    /// Who is refused, because the guest does not know yet who it is.
    pub(super) shut: Shut,
    /// Of what a guest or a program of the host's can provoke.
    complaints: Throttle,
    metrics: Arc<VsockMetrics>,
}

impl<H: Host> Muxer<H> {
    pub(super) fn new(host: H, guest_cid: u64) -> Self {
        Self {
            host,
            guest_cid,
            limit: MAX_CONNECTIONS,
            connections: HashMap::new(),
            peers: HashMap::new(),
            last_token: LISTENER,
            last_port: LAST_PORT,
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            accepting: true,
            shut: Shut::default(),
            complaints: Throttle::default(),
            metrics: Arc::default(),
        }
    }

    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit.min(MAX_CONNECTIONS);
    }

    pub(super) fn count_in(&mut self, metrics: Arc<VsockMetrics>) {
        self.metrics = metrics;
    }

    pub(super) fn guest_cid(&self) -> u64 {
        self.guest_cid
    }

    pub(super) fn host(&self) -> &H {
        &self.host
    }

    /// Ends all connections. Who waits at the listener goes on waiting.
    pub(super) fn clear(&mut self) {
        let ended = self.connections.len() as u64;
        self.metrics.conns_killed.add(ended);
        self.metrics.conns_removed.add(ended);
        self.connections.clear();
        self.peers.clear();
        self.ready.clear();
        self.resets.clear();
        self.accepting = true;
    }

    /// The last port that was given to a connection of the host's, and the ports of those connections which the guest does not know to be
    /// granted or refused. A key may be there twice.
    pub(super) fn save(&self) -> (u32, Vec<Key>) {
        let unanswered = self.connections.iter();
        let unanswered = unanswered.filter(|(_, connection)| connection.is_unanswered());
        let resets = self.resets.iter();
        let resets = resets.filter(|(_, kind)| *kind == TYPE_STREAM);
        let keys = unanswered.map(|(key, _)| *key);
        (
            self.last_port,
            keys.chain(resets.map(|(key, _)| *key)).collect(),
        )
    }

    /// Goes on with the ports, so that none is used again soon, and refuses what had been granted by a host that is not here.
    pub(super) fn restore(&mut self, last_port: u32, unanswered: &[Key]) {
        self.last_port = last_port.clamp(FIRST_PORT, LAST_PORT);
        for key in unanswered {
            self.push_reset(*key, TYPE_STREAM);
        }
    }

    // From the guest

    /// A packet of the guest's. Its source CID is not looked at: nobody else sends packets here, and after a restore it may be the one from
    /// before.
    pub(super) fn receive(&mut self, header: &Header, data: &[VolatileSlice<'_>]) {
        let key = Key {
            host_port: header.dst_port.get(),
            guest_port: header.src_port.get(),
        };
        let op = header.op.get();
        if header.dst_cid.get() != HOST_CID {
            return; // to nobody that we know
        }
        let kind = header.kind.get();
        match self.connections.get_mut(&key) {
            Some(found) if kind == TYPE_STREAM && !found.is_forgotten() => {
                found.receive(key, header, data, &self.metrics);
                self.after(key);
            }
            None if kind == TYPE_STREAM && op == op::REQUEST => self.open(key, header),
            // Never answered, or both sides would go on for ever.
            _ if op == op::RST => {}
            _ => self.push_reset(key, kind),
        }
    }

    /// The guest wants to connect to the host.
    fn open(&mut self, key: Key, request: &Header) {
        if self.shut.to_guest || self.is_full() {
            let shut = self.shut.to_guest;
            tracing::debug!(shut, "the guest gets no other vsock connection");
            return self.push_reset(key, TYPE_STREAM);
        }
        let token = self.new_token();
        let stream = self.host.connect(key.host_port).and_then(|stream| {
            self.host.watch(&stream, token)?;
            Ok(stream)
        });
        match stream {
            Ok(stream) => {
                let connection = Connection::from_guest(stream, token, self.buffer(), request);
                self.insert(key, connection);
            }
            Err(error) => {
                tracing::debug!(port = key.host_port, %error, "nobody for a vsock connection of the guest's");
                self.push_reset(key, TYPE_STREAM);
            }
        }
    }

    // From the host

    /// Looks at what has happened on the host. True if there is more than fits into one turn.
    pub(super) fn poll(&mut self) -> bool {
        let mut events = Vec::new();
        let more = self.host.ready(&mut events);
        for event in &events {
            self.on_event(event);
        }
        self.accept() | more
    }

    fn on_event(&mut self, event: &Event) {
        if event.token == LISTENER {
            self.accepting = true;
            return;
        }
        match self.peers.get_mut(&event.token) {
            Some(Peer::Connection(key)) => {
                let key = *key;
                if let Some(connection) = self.connections.get_mut(&key) {
                    connection.on_event(event, &self.metrics);
                    self.after(key);
                }
            }
            Some(Peer::Greeting(stream)) => match read_greeting(stream) {
                Greeting::Partial if !event.closed && !event.ended => {}
                Greeting::Port(port) => self.greeted(event, port),
                Greeting::Partial | Greeting::Refused => {
                    self.peers.remove(&event.token);
                }
            },
            None => {} // it has gone meanwhile
        }
    }

    /// The host's program has said where it wants to go.
    fn greeted(&mut self, event: &Event, guest_port: u32) {
        let host_port = self.new_port();
        let buffer = self.buffer();
        let key = Key {
            host_port,
            guest_port,
        };
        if let Some(Peer::Greeting(stream)) = self.peers.remove(&event.token) {
            let connection = Connection::from_host(stream, event.token, buffer, event);
            self.insert(key, connection);
        }
    }

    /// True if there may be more to accept.
    fn accept(&mut self) -> bool {
        for _ in 0..MAX_ACCEPTS {
            if !self.accepting {
                return false;
            }
            match self.host.accept() {
                Ok(stream) if self.shut.to_host || self.is_full() => {
                    let shut = self.shut.to_host;
                    tracing::debug!(shut, "the host gets no other vsock connection");
                    drop(stream);
                }
                Ok(stream) => self.greet(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.accepting = false,
                Err(error) => {
                    // Out of file descriptors, most likely. Tried again when something happens next.
                    self.metrics.muxer_event_fails.inc();
                    complain(&mut self.complaints, &error, "accept");
                    return false;
                }
            }
        }
        self.accepting
    }

    fn greet(&mut self, stream: H::Stream) {
        let token = self.new_token();
        match self.host.watch(&stream, token) {
            Ok(()) => drop(self.peers.insert(token, Peer::Greeting(stream))),
            Err(error) => {
                self.metrics.conn_event_fails.inc();
                complain(&mut self.complaints, &error, "watch");
            }
        }
    }

    // To the guest

    /// Is there something for the guest?
    pub(super) fn has_output(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// What goes to the guest next. It is up to the caller that it does.
    pub(super) fn output(&mut self) -> Option<Output> {
        if let Some((key, kind)) = self.resets.pop_front() {
            return Some(Output::Packet(reset(key, kind, self.guest_cid)));
        }
        while let Some(key) = self.ready.pop_front() {
            let Some(connection) = self.connections.get_mut(&key) else {
                continue;
            };
            connection.queued = false;
            let mut what = connection.take_first();
            if what.is_none() {
                let credit = connection.credit_for_data();
                if credit > 0 {
                    return Some(Output::Data(key, credit));
                }
                what = connection.take_last();
            }
            let packet = what.map(|what| connection.header(key, self.guest_cid, what, 0));
            self.after(key);
            if let Some(header) = packet {
                return Some(Output::Packet(header));
            }
        }
        None
    }

    /// Reads data of a connection into guest memory. At most as many bytes as [`Output::Data`] has said.
    pub(super) fn read(&mut self, key: Key, into: &[VolatileSlice<'_>]) -> usize {
        let Some(connection) = self.connections.get_mut(&key) else {
            return 0;
        };
        connection.read(into, &self.metrics)
    }

    /// The header of a packet with data that were read.
    pub(super) fn data_header(&mut self, key: Key, len: u32) -> Option<Header> {
        let guest_cid = self.guest_cid;
        (self.connections.get_mut(&key))
            .map(|connection| connection.header(key, guest_cid, (op::RW, 0), len))
    }

    /// After each change of a connection: it may have something for the guest, wait for room, or be gone.
    pub(super) fn after(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        let on = connection.wants_writable();
        if on != connection.watching_writable {
            connection.watching_writable = on;
            let token = connection.token();
            if let Err(error) = (self.host).watch_writable(connection.stream(), token, on) {
                self.metrics.conn_event_fails.inc();
                complain(&mut self.complaints, &error, "watch");
                connection.kill();
            }
        }
        connection.check_credit();
        if connection.is_gone() {
            self.metrics.conns_removed.inc();
            if connection.was_killed() {
                self.metrics.conns_killed.inc();
            }
            // Else a guest that offers no buffers could have the list grow for ever.
            if connection.queued {
                self.ready.retain(|queued| *queued != key);
            }
            self.peers.remove(&connection.token());
            self.connections.remove(&key);
        } else if connection.has_output() && !connection.queued {
            connection.queued = true;
            self.ready.push_back(key);
        }
    }

    // Bookkeeping

    fn is_full(&self) -> bool {
        // Each connection has its token among the peers.
        self.peers.len() >= self.limit
    }

    fn buffer(&self) -> u32 {
        if self.connections.len() < LARGE_BUFFERS {
            LARGE_BUFFER
        } else {
            SMALL_BUFFER
        }
    }

    fn insert(&mut self, key: Key, connection: Connection<H::Stream>) {
        self.metrics.conns_added.inc();
        self.peers.insert(connection.token(), Peer::Connection(key));
        self.connections.insert(key, connection);
        self.after(key);
    }

    fn new_token(&mut self) -> Token {
        self.last_token += 1; // 64 bits do not run out
        self.last_token
    }

    /// A port of the host's that no connection has.
    fn new_port(&mut self) -> u32 {
        loop {
            self.last_port = match self.last_port {
                FIRST_PORT..LAST_PORT => self.last_port + 1,
                _ => FIRST_PORT,
            };
            let port = self.last_port;
            // Ends soon: there are many more ports than connections.
            if !self.connections.keys().any(|key| key.host_port == port) {
                return port;
            }
        }
    }

    fn push_reset(&mut self, key: Key, kind: u16) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back((key, kind));
        }
    }
}

/// A guest must not be able to fill the log.
fn complain(complaints: &mut Throttle, error: &std::io::Error, what: &str) {
    if let Some(more) = complaints.allows(Instant::now()) {
        tracing::warn!(%error, more, "could not {what} a vsock connection");
    }
}

fn reset(key: Key, kind: u16, guest_cid: u64) -> Header {
    Header {
        src_cid: HOST_CID.into(),
        dst_cid: guest_cid.into(),
        src_port: key.host_port.into(),
        dst_port: key.guest_port.into(),
        kind: kind.into(),
        op: op::RST.into(),
        ..Header::default()
    }
}

/// How much the guest and the host have us hold.
#[cfg(test)]
#[derive(Debug)]
pub(super) struct Held {
    pub(super) connections: usize,
    pub(super) resets: usize,
    /// Entries of the list of connections that have something for the guest.
    pub(super) ready: usize,
    /// The most bytes for one connection.
    pub(super) largest: usize,
}

#[cfg(test)]
impl<H: Host> Muxer<H> {
    pub(super) fn held(&self) -> Held {
        Held {
            connections: self.peers.len(),
            resets: self.resets.len(),
            ready: self.ready.len(),
            largest: (self.connections.values())
                .map(Connection::held)
                .max()
                .unwrap_or(0),
        }
    }
}
