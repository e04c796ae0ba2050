//! The control queue (virtio 1.2, 5.1.6.5). Its one command is the driver's word that it has announced itself.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::Next;
use super::ring::{self, QueueError, Used};
use crate::virtio::GuestMemory;

/// What the driver has asked for.
#[derive(Debug, Default)]
pub(super) struct Commands {
    /// It has announced itself.
    pub(super) announced: bool,
}

/// Answers the driver's commands, `budget` of them at most.
///
/// Returns what was asked for, what is to be waited for, and whether the driver wants an interrupt.
pub(super) fn process(
    queue: &mut Queue,
    memory: &GuestMemory,
    mut budget: usize,
) -> Result<(Commands, Next, bool), QueueError> {
    let mut used = Used::new(queue);
    let mut commands = Commands::default();
    let next = loop {
        let Some(chain) = ring::next(queue, memory)? else {
            if queue.enable_notification(memory)? {
                continue;
            }
            break Next::Driver;
        };
        if budget == 0 {
            queue.go_to_previous_position();
            break Next::Again;
        }
        budget -= 1;
        let head = chain.head_index();
        let written = answer(queue.size(), memory, chain, &mut commands);
        used.put(queue, memory, head, written)?;
        used.publish(queue, memory)?;
    };
    Ok((commands, next, used.wants_interrupt(queue, memory)?))
}

/// Carries out one command and returns how many bytes were written: its class and number come first, a byte each; the
/// answer is the chain's last byte. A chain that is longer than the queue (virtio 1.2, 2.7.5.3.1) gets none.
fn answer(
    longest: u16,
    memory: &GuestMemory,
    chain: DescriptorChain<&GuestMemory>,
    commands: &mut Commands,
) -> u32 {
    let mut command = Vec::with_capacity(2);
    let mut place = None;
    for (number, descriptor) in chain.enumerate() {
        if number >= usize::from(longest) {
            return 0;
        }
        let (address, len) = (descriptor.addr(), descriptor.len());
        if descriptor.is_write_only() {
            if len > 0 {
                place = address.0.checked_add(u64::from(len) - 1).map(GuestAddress);
            }
            continue;
        }
        for offset in 0..u64::from(len).min(2) {
            if command.len() < 2
                && let Some(at) = address.0.checked_add(offset)
                && let Ok(byte) = memory.read_obj::<u8>(GuestAddress(at))
            {
                command.push(byte);
            }
        }
    }
    let announced = [VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK].map(|n| n as u8);
    let known = command == announced;
    commands.announced |= known;
    let status = if known { VIRTIO_NET_OK } else { VIRTIO_NET_ERR } as u8;
    match place {
        Some(address) if memory.write_obj(status, address).is_ok() => 1,
        _ => 0,
    }
}
