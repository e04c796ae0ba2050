//! The place of a device: registers, interrupt, doorbells.

use std::io;
use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, VmFd};
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use vmgenie_devices::virtio::{MmioSlot, TransportState, VirtioMmio, Wires};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::VirtioError;
use super::device::Device;
use super::events::VirtioEvents;
use super::kinds::{Model, Place};
use crate::layout::{VIRTIO_GSIS, VIRTIO_MMIO};
use crate::memory::GuestMemory;
use crate::metrics::MACHINE;

/// A device in its place.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) place: MmioSlot,
    pub(super) device: Arc<dyn Device>,
    /// Held open: the event loop watches them, KVM writes them.
    _doorbells: Vec<EventFd>,
    pub(super) pending: Pending,
}

/// What has happened to a device and was not looked at yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pending {
    /// A bit for each queue whose doorbell was rung. No device has more than 64 queues.
    pub(super) queues: u64,
    /// The backend is ready.
    pub(super) backend: bool,
}

impl Pending {
    /// Everything, whether it is there or not.
    pub(super) const ALL: Self = Self {
        queues: u64::MAX,
        backend: true,
    };

    pub(super) fn is_empty(self) -> bool {
        self == Self::default()
    }

    pub(super) fn ring(&mut self, queue: u16) {
        self.queues |= 1 << (queue % 64);
    }
}

/// Connects a device to the guest and to the event loop.
#[derive(Debug)]
struct SlotWires {
    irqfd: EventFd,
    slot: usize,
    events: Arc<VirtioEvents>,
}

impl Wires for SlotWires {
    fn interrupt(&self) -> io::Result<()> {
        MACHINE.interrupts.triggers.inc();
        self.irqfd.write(1)
    }

    fn kick(&self) {
        self.events.kick(self.slot);
    }
}

/// Puts devices into slots, one after the other.
pub(super) struct Slots<'a> {
    vm: &'a VmFd,
    memory: &'a GuestMemory,
    events: &'a Arc<VirtioEvents>,
    /// The states of a restored machine's transports.
    saved: Option<&'a [TransportState]>,
    filled: Vec<Slot>,
}

impl<'a> Slots<'a> {
    /// The slots of an empty machine. The interrupt controllers are there, the vCPUs not yet.
    pub(super) fn new(
        vm: &'a VmFd,
        memory: &'a GuestMemory,
        events: &'a Arc<VirtioEvents>,
        saved: Option<&'a [TransportState]>,
    ) -> Self {
        Self {
            vm,
            memory,
            events,
            saved,
            filled: Vec::new(),
        }
    }

    /// The devices that were put into slots.
    pub(super) fn filled(self) -> Vec<Slot> {
        self.filled
    }

    fn doorbell(&self, slot: usize, place: MmioSlot, queue: u16) -> io::Result<EventFd> {
        let doorbell = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let notify = u64::from(place.gpa) + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY);
        self.vm
            .register_ioevent(&doorbell, &IoEventAddress::Mmio(notify), u32::from(queue))?;
        self.events.watch_doorbell(&doorbell, slot, queue)?;
        Ok(doorbell)
    }
}

impl Place for Slots<'_> {
    /// Puts `device` into the next slot, with the state of that slot if there are states.
    fn put<D: Model>(&mut self, device: D) -> Result<(), VirtioError> {
        let slot = self.filled.len();
        let place = place(slot)?;
        let at = |what| move |source| VirtioError::Connect { slot, what, source };
        let irqfd =
            EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(at("make the interrupt of"))?;
        self.vm
            .register_irqfd(&irqfd, place.gsi)
            .map_err(|error| at("connect the interrupt of")(error.into()))?;
        let wires = Box::new(SlotWires {
            irqfd,
            slot,
            events: Arc::clone(self.events),
        });
        let doorbells = (0..)
            .zip(device.queue_sizes())
            .map(|(queue, _)| {
                self.doorbell(slot, place, queue)
                    .map_err(at("connect a doorbell of"))
            })
            .collect::<Result<_, _>>()?;
        let memory = self.memory.clone();
        let transport = match self.saved {
            None => VirtioMmio::new(device, memory, wires),
            Some(saved) => {
                let state = saved.get(slot).ok_or(VirtioError::Missing("a transport"))?;
                VirtioMmio::from_state(device, state, memory, wires)
                    .map_err(|source| VirtioError::Restore { slot, source })?
            }
        };
        let device: Arc<dyn Device> = Arc::new(transport);
        if let Some(fd) = device.backend_fd() {
            let watched = self.events.watch_backend(fd, slot);
            watched.map_err(at("watch the backend of"))?;
        }
        self.filled.push(Slot {
            place,
            device,
            _doorbells: doorbells,
            pending: Pending::default(),
        });
        Ok(())
    }
}

/// Where slot number `slot` is.
pub(super) fn place(slot: usize) -> Result<MmioSlot, VirtioError> {
    let index = u16::try_from(slot).map_err(|_| VirtioError::TooMany)?;
    Ok(MmioSlot {
        index,
        gpa: VIRTIO_MMIO + u32::from(index) * MmioSlot::LEN,
        gsi: *VIRTIO_GSIS.get(slot).ok_or(VirtioError::TooMany)?,
    })
}
