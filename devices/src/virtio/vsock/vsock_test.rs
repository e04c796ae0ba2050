//! The socket device as its driver and the host's programs see it.

use super::packet::{Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};
use super::testing::{GUEST_CID, Guest, answer, device, to_host};
use super::{MAX_CONNECTIONS, MAX_GUEST_CID, MIN_GUEST_CID, TX, Vsock, VsockError, VsockState};
use crate::virtio::testing::{Harness, readable};

fn op_of(packet: &(Header, Vec<u8>)) -> u16 {
    packet.0.op.get()
}

#[test]
fn a_reserved_cid_is_refused() {
    for cid in [0, 1, 2, u64::from(u32::MAX), 1 << 32, u64::MAX] {
        let (_, host) = device();
        assert_eq!(Vsock::new(cid, host).unwrap_err(), VsockError::Cid(cid));
    }
    for cid in [MIN_GUEST_CID, MAX_GUEST_CID] {
        assert!(Vsock::new(cid, device().1).is_ok());
    }
}

#[test]
fn the_configuration_space_has_the_cid_and_nothing_else() {
    let harness = Harness::new(device().0);
    assert_eq!(harness.config(0, 8), GUEST_CID.to_le_bytes());
    assert_eq!(harness.config(0, 4), [3, 0, 0, 0]);
    assert_eq!(harness.config(7, 4), [0; 4]);
    assert_eq!(harness.config(8, 8), [0; 8]);
}

#[test]
fn the_host_connects_to_a_port_of_the_guest() {
    let mut guest = Guest::ready();
    let (end, request) = guest.connected_from_host(52);
    assert_eq!(request.dst_port, 52);
    assert_eq!(request.dst_cid, GUEST_CID);
    assert_eq!(request.src_port, 1 << 30);
    end.write(b"to the guest");
    let (header, data) = guest.receive_one();
    assert_eq!((header.op.get(), &data[..]), (op::RW, &b"to the guest"[..]));
    let mut packet = answer(&request, op::RW);
    packet.len = 11.into();
    guest.send(packet, b"to the host");
    assert_eq!(end.read(100), b"to the host");
}

#[test]
fn bytes_packets_and_connections_are_counted() {
    let mut guest = Guest::ready();
    let (end, request) = guest.connected_from_host(52);
    end.write(b"to the guest");
    guest.receive_one();
    let mut packet = answer(&request, op::RW);
    packet.len = 11.into();
    guest.send(packet, b"to the host");
    guest.send(answer(&request, op::RST), &[]);
    let counted = guest.harness.transport.with_device(|device, _| {
        let metrics = &device.metrics;
        [
            metrics.rx_bytes_count.get(),
            metrics.rx_packets_count.get(),
            metrics.tx_bytes_count.get(),
            metrics.tx_packets_count.get(),
            metrics.conns_added.get(),
            metrics.conns_removed.get(),
            metrics.conns_killed.get(),
        ]
    });
    assert_eq!(counted, [12, 2, 11, 3, 1, 1, 0]);
}

#[test]
fn bytes_right_behind_the_greeting_reach_the_guest() {
    let mut guest = Guest::ready();
    let end = guest.host.dial(b"connect 7\nhello");
    end.end();
    let (request, _) = guest.receive_one();
    guest.send(answer(&request, op::RESPONSE), &[]);
    let packets = guest.receive();
    assert_eq!(packets[0].1, b"hello");
    assert_eq!(op_of(&packets[1]), op::SHUTDOWN);
    assert_eq!(packets[1].0.flags, SHUTDOWN_SEND);
}

#[test]
fn a_greeting_may_come_byte_by_byte() {
    let mut guest = Guest::ready();
    let end = guest.host.dial(b"");
    for byte in b"CONNECT 4096" {
        end.write(&[*byte]);
        assert!(guest.receive().is_empty());
    }
    end.write(b"\n");
    assert_eq!(guest.receive_one().0.dst_port, 4096);
}

#[test]
fn who_does_not_greet_properly_is_turned_away() {
    let mut guest = Guest::ready();
    for greeting in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"CONNECT\n",
        b"CONNECT 99999999999\n",
        &[b'x'; 33],
    ] {
        let end = guest.host.dial(greeting);
        assert!(guest.receive().is_empty());
        assert!(end.at_end());
    }
    let end = guest.host.dial(b"CONN");
    assert!(guest.receive().is_empty());
    assert!(!end.at_end());
    end.close();
    assert!(guest.receive().is_empty());
    assert!(end.at_end());
}

#[test]
fn a_guest_that_nobody_listens_in_ends_the_hosts_connection() {
    let mut guest = Guest::ready();
    let end = guest.host.dial(b"CONNECT 52\n");
    let (request, _) = guest.receive_one();
    guest.send(answer(&request, op::RST), &[]);
    assert!(end.at_end());
    assert_eq!(end.read(100), b"");
}

#[test]
fn a_host_that_changes_its_mind_resets_the_request() {
    let mut guest = Guest::ready();
    let end = guest.host.dial(b"CONNECT 52\n");
    guest.receive_one();
    end.close();
    assert_eq!(op_of(&guest.receive_one()), op::RST);
}

#[test]
fn the_guest_connects_to_a_port_of_the_host() {
    let mut guest = Guest::ready();
    guest.host.listen(80);
    guest.send(to_host(80, op::REQUEST, 0), &[]);
    let (response, _) = guest.receive_one();
    assert_eq!(response.op, op::RESPONSE);
    assert!(response.buf_alloc.get() > 0);
    let end = guest.host.accepted(80).remove(0);
    guest.send(to_host(80, op::RW, 5), b"hello");
    assert_eq!(end.read(100), b"hello");
    end.write(b"world");
    assert_eq!(guest.receive_one().1, b"world");
}

#[test]
fn a_port_of_the_host_without_a_listener_is_refused() {
    let mut guest = Guest::ready();
    guest.send(to_host(81, op::REQUEST, 0), &[]);
    let (reset, _) = guest.receive_one();
    assert_eq!((reset.op.get(), reset.src_port.get()), (op::RST, 81));
}

#[test]
fn an_unknown_type_or_connection_is_reset_and_a_reset_is_never_answered() {
    let mut guest = Guest::ready();
    let mut packet = to_host(80, op::REQUEST, 0);
    packet.kind = 2.into();
    guest.send(packet, &[]);
    let (reset, _) = guest.receive_one();
    assert_eq!((reset.op.get(), reset.kind.get()), (op::RST, 2));
    for stray in [op::RW, op::RESPONSE, op::SHUTDOWN, op::CREDIT_UPDATE, 99] {
        guest.send(to_host(80, stray, 0), &[]);
        assert_eq!(op_of(&guest.receive_one()), op::RST);
    }
    guest.send(to_host(80, op::RST, 0), &[]);
    packet.op = op::RST.into();
    guest.send(packet, &[]);
    assert!(guest.receive().is_empty());
}

#[test]
fn a_packet_to_another_cid_than_the_hosts_is_dropped() {
    let mut guest = Guest::ready();
    guest.host.listen(80);
    let mut packet = to_host(80, op::REQUEST, 0);
    packet.dst_cid = 1.into();
    guest.send(packet, &[]);
    assert!(guest.receive().is_empty());
    assert!(guest.host.accepted(80).is_empty());
}

#[test]
fn each_direction_is_closed_by_itself() {
    let mut guest = Guest::ready();
    let (end, request) = guest.connected_from_host(52);
    // The guest ends first; the host still sends.
    let mut shutdown = answer(&request, op::SHUTDOWN);
    shutdown.flags = SHUTDOWN_SEND.into();
    guest.send(shutdown, &[]);
    assert!(end.at_end());
    end.write(b"late");
    assert_eq!(guest.receive_one().1, b"late");
    // The host ends as well.
    end.end();
    let (header, _) = guest.receive_one();
    assert_eq!(
        (header.op.get(), header.flags.get()),
        (op::SHUTDOWN, SHUTDOWN_SEND)
    );
    shutdown.flags = SHUTDOWN_BOTH.into();
    guest.send(shutdown, &[]);
    assert_eq!(op_of(&guest.receive_one()), op::RST);
}

#[test]
fn a_host_that_closes_is_told_to_the_guest_after_its_last_byte() {
    let mut guest = Guest::ready();
    let (end, request) = guest.connected_from_host(52);
    end.write(b"the last word");
    end.close();
    let packets = guest.receive();
    assert_eq!(packets[0].1, b"the last word");
    assert_eq!(
        (op_of(&packets[1]), packets[1].0.flags.get()),
        (op::SHUTDOWN, SHUTDOWN_BOTH)
    );
    guest.send(answer(&request, op::RST), &[]);
    // The ports are free again.
    guest.send(answer(&request, op::RW), &[]);
    assert_eq!(op_of(&guest.receive_one()), op::RST);
}

#[test]
fn a_guest_that_receives_no_more_is_sent_no_more() {
    let mut guest = Guest::ready();
    let (end, request) = guest.connected_from_host(52);
    let mut shutdown = answer(&request, op::SHUTDOWN);
    shutdown.flags = SHUTDOWN_RECEIVE.into();
    guest.send(shutdown, &[]);
    assert!(!end.write(b"for nobody"), "the host is not told");
    assert!(guest.receive().is_empty());
    let mut packet = answer(&request, op::RW);
    packet.len = 5.into();
    guest.send(packet, b"still");
    assert_eq!(end.read(10), b"still");
}

#[test]
fn what_the_guest_sent_before_it_closed_reaches_a_slow_host() {
    let mut guest = Guest::ready();
    let (end, request) = guest.connected_from_host(52);
    let bytes: Vec<u8> = (0..60_000u32).map(|n| n as u8).collect();
    let mut packet = answer(&request, op::RW);
    packet.len = (bytes.len() as u32).into();
    guest.send(packet, &bytes);
    let mut shutdown = answer(&request, op::SHUTDOWN);
    shutdown.flags = SHUTDOWN_BOTH.into();
    guest.send(shutdown, &[]);
    // Linux waits for 8 seconds, then it resets the connection.
    guest.send(answer(&request, op::RST), &[]);
    // Until the host has all of it, the guest cannot have the same ports again.
    guest.send(answer(&request, op::REQUEST), &[]);
    assert_eq!(op_of(&guest.receive_one()), op::RST);
    let mut read = Vec::new();
    while !end.at_end() {
        read.extend(end.read(1000));
        assert!(guest.receive().is_empty());
    }
    assert_eq!(read, bytes);
}

#[test]
fn a_guest_that_sends_more_than_there_is_room_for_is_cut_off() {
    let mut guest = Guest::ready();
    let (end, request) = guest.connected_from_host(52);
    end.set_capacity(0);
    let room = request.buf_alloc.get() as usize;
    let chunk = vec![0; 64 << 10];
    let mut packet = answer(&request, op::RW);
    packet.len = (chunk.len() as u32).into();
    for _ in 0..room / chunk.len() {
        guest.send(packet, &chunk);
        assert!(guest.receive().is_empty());
    }
    packet.len = 1.into();
    guest.send(packet, b"!");
    assert_eq!(op_of(&guest.receive_one()), op::RST);
}

#[test]
fn a_guest_that_fills_the_buffer_at_once_is_told_of_its_credit() {
    let mut guest = Guest::ready();
    let end = guest.host.dial(b"CONNECT 52\n");
    end.set_capacity(1 << 20);
    let (request, _) = guest.receive_one();
    let room = request.buf_alloc.get() as usize;
    let chunk = vec![7; 64 << 10];
    let mut packet = answer(&request, op::RW);
    packet.len = (chunk.len() as u32).into();
    // Nobody has looked yet whether the host has something to say: it has not.
    let mut packets: Vec<(Header, &[u8])> = vec![(answer(&request, op::RESPONSE), &[])];
    packets.extend((0..room / chunk.len()).map(|_| (packet, &chunk[..])));
    guest.send_at_once(&packets);
    let told = guest.receive();
    let forwarded = told.last().map_or(0, |(header, _)| header.fwd_cnt.get());
    assert_eq!(forwarded as usize, room);
}

#[test]
fn a_slow_host_gives_credit_only_for_what_it_has_read() {
    let mut guest = Guest::ready();
    let (end, request) = guest.connected_from_host(52);
    end.set_capacity(0);
    let room = request.buf_alloc.get() as usize;
    let chunk = vec![7; 64 << 10];
    let mut packet = answer(&request, op::RW);
    packet.len = (chunk.len() as u32).into();
    for _ in 0..room / chunk.len() {
        guest.send(packet, &chunk);
    }
    guest.send(answer(&request, op::CREDIT_REQUEST), &[]);
    let (header, _) = guest.receive_one();
    assert_eq!(
        (header.op.get(), header.fwd_cnt.get()),
        (op::CREDIT_UPDATE, 0)
    );
    // The host begins to read.
    end.set_capacity(4096);
    end.wake();
    let (mut read, mut forwarded) = (0, 0);
    while read < room {
        for (header, _) in guest.receive() {
            assert_eq!(header.op, op::CREDIT_UPDATE);
            forwarded = header.fwd_cnt.get() as usize;
        }
        assert!(forwarded <= read + 4096);
        read += end.read(1000).len();
    }
    assert!(
        forwarded > room / 2,
        "the guest is told of {forwarded} only"
    );
}

#[test]
fn the_device_never_sends_more_than_the_guest_has_room_for_and_asks_for_more_once() {
    let mut guest = Guest::ready();
    let (end, request) = guest.connected_from_host(52);
    end.write(&vec![1; 100_000]);
    let packets = guest.receive();
    let sent: usize = packets.iter().map(|(_, data)| data.len()).sum();
    assert_eq!(sent, 64 << 10);
    let asked = packets.iter().filter(|p| op_of(p) == op::CREDIT_REQUEST);
    assert_eq!(asked.count(), 1);
    end.write(b"more");
    assert!(guest.receive().is_empty());
    // The guest takes 10 bytes out.
    let mut update = answer(&request, op::CREDIT_UPDATE);
    update.fwd_cnt = 10.into();
    guest.send(update, &[]);
    let packets = guest.receive();
    assert_eq!(packets[0].1.len(), 10);
    assert_eq!(op_of(&packets[1]), op::CREDIT_REQUEST);
    // Numbers that make no sense give no credit.
    update.fwd_cnt = u32::MAX.into();
    guest.send(update, &[]);
    assert!(guest.receive().is_empty());
}

#[test]
fn a_packet_may_lie_in_many_pieces() {
    let mut guest = Guest::ready();
    let (end, request) = guest.connected_from_host(52);
    let mut packet = answer(&request, op::RW);
    packet.len = 200.into();
    let bytes: Vec<u8> = (0..200).collect();
    for cut in [1, 3, 43, 44, 45, 100] {
        guest.send_raw(&packet, &bytes, cut);
        assert_eq!(end.read(1000), bytes, "pieces of {cut} bytes");
    }
}

#[test]
fn a_packet_shorter_than_it_says_is_dropped() {
    let mut guest = Guest::ready();
    let (end, request) = guest.connected_from_host(52);
    let mut packet = answer(&request, op::RW);
    for len in [6, 1 << 20, u32::MAX] {
        packet.len = len.into();
        guest.send_raw(&packet, b"hello", usize::MAX);
        assert_eq!(end.read(100), b"");
    }
    packet.len = 4.into(); // a longer buffer is fine
    guest.send_raw(&packet, b"hello", usize::MAX);
    assert_eq!(end.read(100), b"hell");
    let queue = &mut guest.harness.queues[usize::from(TX)];
    queue.send(&[readable(0, 43)]);
    guest.harness.doorbell(TX);
    assert!(guest.receive().is_empty());
}

#[test]
fn data_wait_for_buffers_and_keep_their_order() {
    let mut guest = Guest::new(100, 0);
    guest.offer(1);
    let (end, _) = guest.connected_from_host(52);
    let bytes: Vec<u8> = (0..255).collect();
    end.write(&bytes);
    let mut read = Vec::new();
    for _ in 0..10 {
        let packets = guest.receive();
        read.extend(packets.into_iter().flat_map(|(_, data)| data));
    }
    assert_eq!(read, bytes);
}

#[test]
fn resets_that_the_guest_does_not_take_do_not_pile_up() {
    let mut guest = Guest::new(100, 0);
    for n in 0..5000 {
        guest.send(to_host(n, op::RW, 0), &[]);
    }
    let mut resets = 0;
    loop {
        guest.offer(64);
        match guest.packets().len() {
            0 => break,
            n => resets += n,
        }
    }
    assert_eq!(resets, 1024);
}

#[test]
fn there_are_only_so_many_connections() {
    let mut guest = Guest::ready();
    guest.host.listen(80);
    for n in 0..MAX_CONNECTIONS as u32 + 1 {
        let mut request = to_host(80, op::REQUEST, 0);
        request.src_port = n.into();
        guest.send(request, &[]);
        let expected = if n < MAX_CONNECTIONS as u32 {
            op::RESPONSE
        } else {
            op::RST
        };
        assert_eq!(op_of(&guest.receive_one()), expected);
    }
    let end = guest.host.dial(b"CONNECT 52\n");
    assert!(guest.receive().is_empty());
    assert!(end.at_end());
    // One ends, another comes.
    guest.send(
        Header {
            src_port: 5.into(),
            ..to_host(80, op::RST, 0)
        },
        &[],
    );
    guest.host.dial(b"CONNECT 52\n");
    assert_eq!(op_of(&guest.receive_one()), op::REQUEST);
}

#[test]
fn a_reset_of_the_device_ends_the_connections_and_keeps_the_listener() {
    let mut guest = Guest::ready();
    let (end, _) = guest.connected_from_host(52);
    guest
        .harness
        .write(virtio_bindings::virtio_mmio::VIRTIO_MMIO_STATUS, 0);
    assert!(end.at_end());
    let waiting = guest.host.dial(b"CONNECT 53\n");
    guest.harness.backend_ready();
    assert!(!waiting.at_end());
}

fn restored(guest: Guest, state: &VsockState) -> Guest {
    let host = super::testing::TestHost::default();
    let device = Vsock::from_state(state, host.clone()).unwrap();
    guest.restored(device, host)
}

#[test]
fn a_guest_is_told_of_a_restore_and_nothing_goes_before_it_has_answered() {
    for without in [0, crate::virtio::F_EVENT_IDX] {
        let mut guest = Guest::new(2048, without);
        guest.offer(64);
        let (end, request) = guest.connected_from_host(52);
        let mut state = guest
            .harness
            .transport
            .with_device(|device, _| device.save());
        state.guest_cid = 77;
        let mut guest = restored(guest, &state);
        assert!(end.at_end(), "the old host's end");
        assert_eq!(guest.harness.config(0, 8), 77u64.to_le_bytes());
        guest.host.dial(b"CONNECT 52\n");
        guest.host.listen(80);
        assert!(guest.receive().is_empty());
        let kicks = guest.harness.wires.interrupts();
        assert!(kicks > 0);
        assert_eq!(guest.events(true), [0]);
        let (again, _) = guest.receive_one();
        assert_eq!((again.op.get(), again.dst_cid.get()), (op::REQUEST, 77));
        assert_ne!(again.src_port, request.src_port);
        // The old connection is gone.
        guest.send(answer(&request, op::RW), &[]);
        assert_eq!(op_of(&guest.receive_one()), op::RST);
        assert!(guest.events(true).is_empty());
    }
}

#[test]
fn a_guest_without_a_buffer_for_the_event_is_told_when_it_has_one() {
    let mut guest = Guest::ready();
    // All of the event's buffers are used up by restores that the guest does not answer.
    for _ in 0..9 {
        let state = guest
            .harness
            .transport
            .with_device(|device, _| device.save());
        guest = restored(guest, &state);
    }
    guest.host.dial(b"CONNECT 52\n");
    assert!(guest.receive().is_empty());
    assert_eq!(guest.events(true), [0; 8]);
    assert!(guest.receive().is_empty(), "the ninth is not answered yet");
    assert_eq!(guest.events(true), [0]);
    assert_eq!(op_of(&guest.receive_one()), op::REQUEST);
}

#[test]
fn a_connection_that_the_guest_still_waits_for_is_refused_after_a_restore() {
    let mut guest = Guest::new(2048, 0);
    guest.host.listen(80);
    guest.send(to_host(80, op::REQUEST, 0), &[]);
    let state = guest
        .harness
        .transport
        .with_device(|device, _| device.save());
    assert_eq!(state.unanswered, [(80, 1000)]);
    let mut guest = restored(guest, &state);
    guest.events(true);
    guest.offer(8);
    let (reset, _) = guest.receive_one();
    assert_eq!((reset.op.get(), reset.src_port.get()), (op::RST, 80));
}

#[test]
fn a_state_with_too_many_connections_is_refused() {
    let state = VsockState {
        guest_cid: 3,
        last_port: 0,
        unanswered: vec![(1, 1); MAX_CONNECTIONS + 1],
    };
    let error = Vsock::from_state(&state, device().1).unwrap_err();
    assert_eq!(error, VsockError::TooManyConnections(MAX_CONNECTIONS + 1));
}

#[test]
fn a_refusal_that_the_guest_has_not_taken_yet_is_repeated_after_a_restore() {
    let mut guest = Guest::new(2048, 0);
    for _ in 0..2 {
        guest.send(to_host(81, op::REQUEST, 0), &[]);
    }
    let save = |guest: &Guest| {
        let transport = &guest.harness.transport;
        transport.with_device(|device, _| device.save())
    };
    let state = save(&guest);
    assert_eq!(state.unanswered, [(81, 1000)]);
    let mut guest = restored(guest, &state);
    guest.events(true);
    guest.offer(8);
    let (reset, _) = guest.receive_one();
    assert_eq!((reset.op.get(), reset.src_port.get()), (op::RST, 81));
    // As many as there can be are no impossible state.
    for port in 0..1100 {
        guest.send(to_host(100_000 + port, op::RW, 0), &[]);
    }
    assert_eq!(save(&guest).unanswered.len(), MAX_CONNECTIONS);
}
