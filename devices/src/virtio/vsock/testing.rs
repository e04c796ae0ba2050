//! For the tests of the socket device: a host without sockets, and a guest's driver.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_NEEDS_RESET;
use vm_memory::{Bytes, GuestAddress, VolatileSlice};
use zerocopy::{FromBytes, IntoBytes};

use super::packet::{self, HEADER_LEN, Header, TYPE_STREAM, op};
use super::{EVENTS, Event, Host, LISTENER, RX, Stream, TX, Token, Vsock};
use crate::virtio::testing::{Harness, readable, writable};

pub(super) const GUEST_CID: u64 = 3;

/// One direction of a stream.
#[derive(Debug, Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    /// The writer has ended.
    ended: bool,
    /// The reader has.
    refused: bool,
}

#[derive(Debug)]
struct Shared {
    to_guest: Pipe,
    to_host: Pipe,
    /// Room in `to_host`.
    capacity: usize,
    token: Option<Token>,
    watch_writable: bool,
}

/// Edges that nobody has been told of: readable, writable.
type Edges = Arc<Mutex<HashMap<Token, (bool, bool)>>>;

/// The device's end.
#[derive(Debug)]
pub(super) struct TestStream(Arc<Mutex<Shared>>);

/// The end of the host's program.
#[derive(Clone, Debug)]
pub(super) struct HostEnd(Arc<Mutex<Shared>>, Edges);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

impl Shared {
    fn edge(&self, edges: &Edges, readable: bool, writable: bool) {
        if let Some(token) = self.token {
            let mut edges = lock(edges);
            let edge = edges.entry(token).or_default();
            edge.0 |= readable;
            edge.1 |= writable && self.watch_writable;
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.to_host.refused {
            return Err(ErrorKind::BrokenPipe.into());
        }
        assert!(!self.to_host.ended, "written after the end");
        let room = self.capacity - self.to_host.bytes.len().min(self.capacity);
        if room == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        let n = room.min(bytes.len());
        self.to_host.bytes.extend(&bytes[..n]);
        Ok(n)
    }

    fn look(&self, len: usize) -> io::Result<Vec<u8>> {
        let pipe = &self.to_guest;
        if pipe.bytes.is_empty() && !pipe.ended && !pipe.refused {
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(pipe.bytes.iter().take(len).copied().collect())
    }
}

impl Stream for TestStream {
    fn read_vectored(&mut self, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
        assert!(packet::len(into) > 0);
        let bytes = lock(&self.0).look(packet::len(into))?;
        packet::copy_in(into, &bytes);
        lock(&self.0).to_guest.bytes.drain(..bytes.len());
        Ok(bytes.len())
    }

    fn write_vectored(&mut self, from: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut bytes = vec![0; packet::len(from)];
        assert!(!bytes.is_empty());
        packet::copy_out(from, &mut bytes);
        lock(&self.0).write(&bytes)
    }

    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        lock(&self.0).write(from)
    }

    fn peek(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let bytes = lock(&self.0).look(into.len())?;
        into[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.peek(into)?;
        lock(&self.0).to_guest.bytes.drain(..n);
        Ok(n)
    }

    fn shutdown(&mut self, how: Shutdown) -> io::Result<()> {
        let mut shared = lock(&self.0);
        match how {
            Shutdown::Read => shared.to_guest.refused = true,
            Shutdown::Write => shared.to_host.ended = true,
            Shutdown::Both => unreachable!(),
        }
        Ok(())
    }
}

impl Drop for TestStream {
    fn drop(&mut self) {
        let mut shared = lock(&self.0);
        shared.to_host.ended = true;
        shared.to_guest.refused = true;
        shared.token = None;
    }
}

impl HostEnd {
    /// Writes as much as the guest's side may still take; false if it takes no more.
    pub(super) fn write(&self, bytes: &[u8]) -> bool {
        let mut shared = lock(&self.0);
        shared.to_guest.bytes.extend(bytes);
        shared.edge(&self.1, true, false);
        !shared.to_guest.refused
    }

    /// Reads up to `len` bytes that are there.
    pub(super) fn read(&self, len: usize) -> Vec<u8> {
        let mut shared = lock(&self.0);
        let n = len.min(shared.to_host.bytes.len());
        shared.edge(&self.1, false, n > 0);
        shared.to_host.bytes.drain(..n).collect()
    }

    pub(super) fn set_capacity(&self, capacity: usize) {
        lock(&self.0).capacity = capacity;
    }

    /// There is room without anything having been read.
    pub(super) fn wake(&self) {
        lock(&self.0).edge(&self.1, false, true);
    }

    /// Everything was read, and nothing more comes.
    pub(super) fn at_end(&self) -> bool {
        let shared = lock(&self.0);
        shared.to_host.bytes.is_empty() && shared.to_host.ended
    }

    /// Half of a close.
    pub(super) fn end(&self) {
        let mut shared = lock(&self.0);
        shared.to_guest.ended = true;
        shared.edge(&self.1, true, false);
    }

    pub(super) fn close(&self) {
        let mut shared = lock(&self.0);
        shared.to_guest.ended = true;
        shared.to_host.refused = true;
        shared.edge(&self.1, true, true);
    }
}

/// The host: who listens, who wants to be accepted, and what happened.
#[derive(Clone, Debug, Default)]
pub(super) struct TestHost {
    streams: Arc<Mutex<HashMap<Token, Arc<Mutex<Shared>>>>>,
    edges: Edges,
    waiting: Arc<Mutex<VecDeque<TestStream>>>,
    listeners: Arc<Mutex<HashMap<u32, Vec<HostEnd>>>>,
}

impl TestHost {
    fn pair(&self) -> (TestStream, HostEnd) {
        let shared = Arc::new(Mutex::new(Shared {
            to_guest: Pipe::default(),
            to_host: Pipe::default(),
            capacity: 4096,
            token: None,
            watch_writable: false,
        }));
        let stream = TestStream(shared.clone());
        (stream, HostEnd(shared, self.edges.clone()))
    }

    /// A program connects to the listener and says `greeting`.
    pub(super) fn dial(&self, greeting: &[u8]) -> HostEnd {
        let (stream, end) = self.pair();
        lock(&self.waiting).push_back(stream);
        lock(&self.edges).insert(LISTENER, (true, false));
        end.write(greeting);
        end
    }

    fn has_events(&self) -> bool {
        !lock(&self.edges).is_empty()
    }

    /// A program listens for the guest at `port`.
    pub(super) fn listen(&self, port: u32) {
        lock(&self.listeners).insert(port, Vec::new());
    }

    /// The guest's connections to `port` since the last call.
    pub(super) fn accepted(&self, port: u32) -> Vec<HostEnd> {
        std::mem::take(lock(&self.listeners).get_mut(&port).unwrap())
    }
}

impl Host for TestHost {
    type Stream = TestStream;

    fn connect(&mut self, port: u32) -> io::Result<TestStream> {
        let (stream, end) = self.pair();
        match lock(&self.listeners).get_mut(&port) {
            Some(ends) => ends.push(end),
            None => return Err(ErrorKind::NotFound.into()),
        }
        Ok(stream)
    }

    fn accept(&mut self) -> io::Result<TestStream> {
        (lock(&self.waiting).pop_front()).ok_or_else(|| ErrorKind::WouldBlock.into())
    }

    fn watch(&mut self, stream: &TestStream, token: Token) -> io::Result<()> {
        let mut shared = lock(&stream.0);
        shared.token = Some(token);
        let readable = !shared.to_guest.bytes.is_empty() || shared.to_guest.ended;
        if readable {
            shared.edge(&self.edges, true, false);
        }
        lock(&self.streams).insert(token, stream.0.clone());
        Ok(())
    }

    fn watch_writable(&mut self, stream: &TestStream, _: Token, on: bool) -> io::Result<()> {
        let mut shared = lock(&stream.0);
        shared.watch_writable = on;
        let room = shared.to_host.bytes.len() < shared.capacity || shared.to_host.refused;
        shared.edge(&self.edges, false, room);
        Ok(())
    }

    fn ready(&mut self, events: &mut Vec<Event>) -> bool {
        for (token, (readable, writable)) in lock(&self.edges).drain() {
            let streams = lock(&self.streams);
            let shared = streams.get(&token).map(|shared| lock(shared));
            let ended = shared.as_ref().is_some_and(|s| s.to_guest.ended);
            events.push(Event {
                token,
                readable,
                writable,
                ended,
                closed: ended && shared.is_some_and(|s| s.to_host.refused),
            });
        }
        false
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Where the buffers lie: those to the guest, those from it, those for events.
const RX_BUFFERS: u64 = 0;
const TX_BUFFER: u64 = 0x8_0000;
const EVENT_BUFFERS: u64 = 0xf_0000;

/// A device in a machine, with a driver that knows packets.
pub(super) struct Guest {
    pub(super) harness: Harness<Vsock<TestHost>>,
    pub(super) host: TestHost,
    /// Length of a buffer to the guest, header included.
    rx_len: u32,
    rx_heads: HashMap<u32, u64>,
    event_heads: HashMap<u32, u64>,
    next_rx: u64,
}

pub(super) fn device() -> (Vsock<TestHost>, TestHost) {
    let host = TestHost::default();
    (Vsock::new(GUEST_CID, host.clone()).unwrap(), host)
}

impl Guest {
    /// A guest whose buffers for packets have `rx_len` bytes, and which has offered none.
    pub(super) fn new(rx_len: u32, without: u64) -> Self {
        let (device, host) = device();
        let mut guest = Self {
            harness: Harness::active(device, without),
            host,
            rx_len,
            rx_heads: HashMap::new(),
            event_heads: HashMap::new(),
            next_rx: 0,
        };
        for n in 0..8 {
            guest.offer_event(EVENT_BUFFERS + 8 * n);
        }
        guest.harness.doorbell(EVENTS);
        guest
    }

    /// A guest with plenty of buffers.
    pub(super) fn ready() -> Self {
        let mut guest = Self::new(2048, 0);
        guest.offer(128);
        guest
    }

    /// The guest with `device`, as after a restore.
    pub(super) fn restored(self, device: Vsock<TestHost>, host: TestHost) -> Self {
        Self {
            harness: self.harness.restore(device),
            host,
            ..self
        }
    }

    fn offer_event(&mut self, gpa: u64) {
        let head = self.harness.queues[usize::from(EVENTS)].send(&[writable(gpa, 8)]);
        self.event_heads.insert(head.into(), gpa);
    }

    /// Offers `n` buffers for packets.
    pub(super) fn offer(&mut self, n: usize) {
        for _ in 0..n {
            let slots = (TX_BUFFER - RX_BUFFERS) / u64::from(self.rx_len);
            let gpa = RX_BUFFERS + (self.next_rx % slots.min(256)) * u64::from(self.rx_len);
            self.next_rx += 1;
            let head = self.harness.queues[usize::from(RX)].send(&[writable(gpa, self.rx_len)]);
            self.rx_heads.insert(head.into(), gpa);
        }
        self.harness.doorbell(RX);
    }

    /// What the device has sent, and how many buffers came back for it. They are not offered again.
    pub(super) fn packets(&mut self) -> Vec<(Header, Vec<u8>)> {
        let used = self.harness.queues[usize::from(RX)].take_used();
        let mut packets = Vec::new();
        for (head, len) in used {
            let gpa = self
                .rx_heads
                .remove(&head)
                .expect("a head that was offered");
            if len == 0 {
                continue; // of no use to the device
            }
            let mut bytes = vec![0; len as usize];
            (self.harness.memory)
                .read_slice(&mut bytes, GuestAddress(gpa))
                .unwrap();
            let header = Header::read_from_bytes(&bytes[..HEADER_LEN]).unwrap();
            assert_eq!(header.len.get() as usize, bytes.len() - HEADER_LEN);
            packets.push((header, bytes.split_off(HEADER_LEN)));
        }
        packets
    }

    /// What the event loop does as long as something happens on the host.
    pub(super) fn run(&self) {
        self.harness.backend_ready();
        // A device whose driver has broken it is not called.
        while self.host.has_events() && self.harness.status() & VIRTIO_CONFIG_S_NEEDS_RESET == 0 {
            self.harness.backend_ready();
        }
    }

    /// As [`Self::packets`], and offers as many buffers again.
    pub(super) fn receive(&mut self) -> Vec<(Header, Vec<u8>)> {
        self.run();
        let packets = self.packets();
        self.offer(packets.len());
        packets
    }

    /// As [`Self::receive`], of which there is one.
    pub(super) fn receive_one(&mut self) -> (Header, Vec<u8>) {
        let mut packets = self.receive();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets.remove(0)
    }

    /// Sends a packet whose header may say anything, in pieces of `cut` bytes.
    pub(super) fn send_raw(&mut self, header: &Header, data: &[u8], cut: usize) {
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend(data);
        (self.harness.memory)
            .write_slice(&bytes, GuestAddress(TX_BUFFER))
            .unwrap();
        let mut buffers = Vec::new();
        let mut gpa = TX_BUFFER;
        for piece in bytes.chunks(cut) {
            buffers.push(readable(gpa, piece.len() as u32));
            gpa += piece.len() as u64;
        }
        self.harness.queues[usize::from(TX)].send(&buffers);
        self.harness.doorbell(TX);
        assert_eq!(self.harness.queues[usize::from(TX)].take_used().len(), 1);
    }

    /// Sends several packets by one doorbell.
    pub(super) fn send_at_once(&mut self, packets: &[(Header, &[u8])]) {
        let mut gpa = TX_BUFFER;
        for (header, data) in packets {
            let mut bytes = header.as_bytes().to_vec();
            bytes.extend(*data);
            (self.harness.memory)
                .write_slice(&bytes, GuestAddress(gpa))
                .unwrap();
            let buffer = readable(gpa, bytes.len() as u32);
            self.harness.queues[usize::from(TX)].send(&[buffer]);
            gpa += bytes.len() as u64;
        }
        assert!(gpa <= EVENT_BUFFERS);
        self.harness.doorbell(TX);
        let used = self.harness.queues[usize::from(TX)].take_used();
        assert_eq!(used.len(), packets.len());
    }

    /// Sends a packet.
    pub(super) fn send(&mut self, header: Header, data: &[u8]) {
        self.send_raw(&header, data, usize::MAX);
    }

    /// Takes the events that have come, and offers their buffers again.
    pub(super) fn events(&mut self, acknowledge: bool) -> Vec<u32> {
        let used = self.harness.queues[usize::from(EVENTS)].take_used();
        let mut events = Vec::new();
        for (head, len) in used {
            assert_eq!(len, 4);
            let gpa = self.event_heads.remove(&head).unwrap();
            events.push(self.harness.memory.read_obj(GuestAddress(gpa)).unwrap());
            if acknowledge {
                self.offer_event(gpa);
            }
        }
        if acknowledge {
            self.harness.doorbell(EVENTS);
        }
        events
    }

    /// A connection that the host wants, up to where it is there.
    pub(super) fn connected_from_host(&mut self, port: u32) -> (HostEnd, Header) {
        let end = self.host.dial(format!("CONNECT {port}\n").as_bytes());
        let (request, _) = self.receive_one();
        assert_eq!(request.op.get(), op::REQUEST);
        self.send(answer(&request, op::RESPONSE), &[]);
        let expected = format!("OK {}\n", request.src_port);
        assert_eq!(end.read(100), expected.as_bytes());
        (end, request)
    }
}

/// A packet from the guest's port 1000 to the host's `port`, with a buffer of 64 KiB.
pub(super) fn to_host(port: u32, op: u16, len: usize) -> Header {
    Header {
        src_cid: GUEST_CID.into(),
        dst_cid: 2.into(),
        src_port: 1000.into(),
        dst_port: port.into(),
        len: (len as u32).into(),
        kind: TYPE_STREAM.into(),
        op: op.into(),
        flags: 0.into(),
        buf_alloc: (64 << 10).into(),
        fwd_cnt: 0.into(),
    }
}

/// A packet of the connection that `header`, a packet to the guest, belongs to.
pub(super) fn answer(header: &Header, op: u16) -> Header {
    Header {
        src_port: header.dst_port,
        ..to_host(header.src_port.get(), op, 0)
    }
}
