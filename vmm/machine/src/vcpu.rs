//! One vCPU: its thread, what happens when the guest leaves it, and the state in which it first enters a kernel.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use thiserror::Error;
use vm_device::bus::{MmioAddress, PioAddress};
use vm_device::device_manager::{IoManager, MmioManager, PioManager};
use vmgenie_devices::metrics::{Counter, Durations};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler, unblock_signal};

use super::events::{EventSender, MachineEvent};
use super::gate::Gate;
use super::run_page::RunPage;
use crate::metrics::MACHINE;

/// The stack of a vCPU thread, in bytes.
const STACK_SIZE: usize = 128 << 10;

/// Why a vCPU could not be made.
#[derive(Debug, Error)]
pub enum VcpuError {
    /// KVM refused.
    #[error("could not {what} vCPU {index}")]
    Kvm {
        /// What was being done.
        what: &'static str,
        /// The number of the vCPU.
        index: u8,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The page that it shares with KVM could not be mapped.
    #[error("could not map the page of vCPU {index}")]
    Page {
        /// The number of the vCPU.
        index: u8,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The thread could not be started.
    #[error("could not start the thread of vCPU {index}")]
    Thread {
        /// The number of the vCPU.
        index: u8,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A vCPU without a thread.
#[derive(Debug)]
pub(super) struct Vcpu {
    pub(super) index: u8,
    pub(super) fd: VcpuFd,
    pub(super) cpuid: CpuId,
}

impl Vcpu {
    /// Makes vCPU number `index` with the CPUID that its guest shall see.
    pub(super) fn new(vm: &VmFd, index: u8, cpuid: CpuId) -> Result<Self, VcpuError> {
        let at = |what| {
            move |source| VcpuError::Kvm {
                what,
                index,
                source,
            }
        };
        let fd = vm.create_vcpu(u64::from(index)).map_err(at("create"))?;
        fd.set_cpuid2(&cpuid).map_err(at("set the CPUID of"))?;
        Ok(Self { index, fd, cpuid })
    }
}

/// A vCPU with its thread, which waits at the gate.
#[derive(Debug)]
pub(super) struct VcpuHandle {
    vcpu: Arc<Mutex<Vcpu>>,
    run_page: Arc<RunPage>,
    thread: Option<JoinHandle<()>>,
}

impl VcpuHandle {
    /// Starts the thread.
    pub(super) fn spawn(
        vcpu: Vcpu,
        gate: Arc<Gate>,
        bus: Arc<IoManager>,
        events: EventSender,
    ) -> Result<Self, VcpuError> {
        let index = vcpu.index;
        let run_page = RunPage::of(&vcpu.fd).map_err(|source| VcpuError::Page { index, source })?;
        let run_page = Arc::new(run_page);
        let vcpu = Arc::new(Mutex::new(vcpu));
        let runner = Runner {
            vcpu: Arc::clone(&vcpu),
            run_page: Arc::clone(&run_page),
            gate,
            bus,
            events,
        };
        let thread = Builder::new()
            .name(format!("vcpu{index}"))
            .stack_size(STACK_SIZE)
            .spawn(move || runner.run())
            .map_err(|source| VcpuError::Thread { index, source })?;
        Ok(Self {
            vcpu,
            run_page,
            thread: Some(thread),
        })
    }

    /// Makes the vCPU leave the guest and look at the gate.
    pub(super) fn kick(&self) {
        self.run_page.set_immediate_exit(1);
        if let Some(thread) = &self.thread {
            // SAFETY: the thread has not been joined, so its pthread_t is valid; the signal's handler does nothing.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGRTMIN()) };
        }
    }

    /// The vCPU, once its thread stands still. Waits for it otherwise: only called behind a closed gate.
    pub(super) fn lock(&self) -> MutexGuard<'_, Vcpu> {
        self.vcpu.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the thread's end; the gate has been dismissed.
    pub(super) fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a vCPU thread has panicked");
        }
    }
}

/// Installs the handler of the signal that kicks vCPU threads. Once for each process.
pub(super) fn install_kick_handler() -> Result<(), vmm_sys_util::errno::Error> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), nothing)?;
    // Whoever started us may have blocked it; the threads that start from now on inherit that it is not.
    if unblock_signal(SIGRTMIN()).is_err() {
        return Err(vmm_sys_util::errno::Error::new(libc::EINVAL));
    }
    Ok(())
}

/// What a vCPU thread owns.
struct Runner {
    vcpu: Arc<Mutex<Vcpu>>,
    run_page: Arc<RunPage>,
    gate: Arc<Gate>,
    bus: Arc<IoManager>,
    events: EventSender,
}

/// Why a vCPU has left the guest for good.
enum Stop {
    /// The gate was closed.
    Gate,
    /// The guest or KVM failed.
    Failed(MachineEvent),
}

impl Runner {
    fn run(self) {
        while self.gate.enter(|| self.run_page.set_immediate_exit(0)) {
            let stop = {
                let mut vcpu = self.vcpu.lock().unwrap_or_else(PoisonError::into_inner);
                loop {
                    if let Some(stop) = self.run_once(&mut vcpu) {
                        break stop;
                    }
                }
            };
            self.gate.leave();
            if let Stop::Failed(event) = stop {
                self.events.send(event);
                self.gate.wait_for_exit();
                return;
            }
        }
    }

    /// Enters the guest once. An access to a device that the guest had begun is completed by the *next* entry; that is why the
    /// gate is looked at only after `EINTR`, when nothing is left half done and the state may be saved.
    fn run_once(&self, vcpu: &mut Vcpu) -> Option<Stop> {
        let index = vcpu.index;
        let exits = &MACHINE.vcpu;
        match vcpu.fd.run() {
            Ok(VcpuExit::Shutdown) => Some(Stop::Failed(MachineEvent::TripleFault {
                vcpu: index,
                registers: registers(&vcpu.fd),
            })),
            Ok(VcpuExit::IoIn(port, data)) => {
                let _counted = Exit::begin(&exits.exit_io_in, &exits.exit_io_in_agg);
                for access in data.chunks_mut(self.run_page.access_width()) {
                    if self.bus.pio_read(PioAddress(port), access).is_err() {
                        access.fill(0xff);
                    }
                }
                None
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                let _counted = Exit::begin(&exits.exit_io_out, &exits.exit_io_out_agg);
                for access in data.chunks(self.run_page.access_width()) {
                    // Nobody home: the write is lost, as on a PC.
                    let _ = self.bus.pio_write(PioAddress(port), access);
                }
                None
            }
            #[cfg(feature = "fault-injection")]
            Ok(VcpuExit::Debug(_)) => {
                super::single_step::stepped(&vcpu.fd);
                None
            }
            Ok(VcpuExit::InternalError) => Some(failed(index, internal_error(&mut vcpu.fd))),
            Ok(exit) => self.handle(index, exit),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                if !self.gate.may_run() {
                    return Some(Stop::Gate);
                }
                self.run_page.set_immediate_exit(0);
                // The gate may have been closed between the two lines above.
                (!self.gate.may_run()).then(|| {
                    self.run_page.set_immediate_exit(1);
                    Stop::Gate
                })
            }
            Err(error) => Some(failed(index, format!("KVM_RUN failed: {error}"))),
        }
    }

    fn handle(&self, index: u8, exit: VcpuExit<'_>) -> Option<Stop> {
        let vcpu = &MACHINE.vcpu;
        match exit {
            VcpuExit::MmioRead(address, data) => {
                let _counted = Exit::begin(&vcpu.exit_mmio_read, &vcpu.exit_mmio_read_agg);
                if self.bus.mmio_read(MmioAddress(address), data).is_err() {
                    data.fill(0xff);
                }
                None
            }
            VcpuExit::MmioWrite(address, data) => {
                let _counted = Exit::begin(&vcpu.exit_mmio_write, &vcpu.exit_mmio_write_agg);
                let _ = self.bus.mmio_write(MmioAddress(address), data);
                None
            }
            VcpuExit::Intr => None,
            VcpuExit::SystemEvent(kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN, _) => {
                Some(Stop::Failed(MachineEvent::PowerOff))
            }
            VcpuExit::SystemEvent(kvm_bindings::KVM_SYSTEM_EVENT_RESET, _) => {
                Some(Stop::Failed(MachineEvent::Reset))
            }
            VcpuExit::FailEntry(reason, cpu) => Some(failed(
                index,
                format!("the CPU refused to enter the guest: reason {reason:#x} on host CPU {cpu}"),
            )),
            other => Some(failed(
                index,
                format!("unexpected exit from the guest: {other:?}"),
            )),
        }
    }
}

/// What KVM says that it could not do (KVM's API documentation, `KVM_EXIT_INTERNAL_ERROR`).
fn internal_error(fd: &mut VcpuFd) -> String {
    // SAFETY: the exit's reason is KVM_EXIT_INTERNAL_ERROR, for which the kernel has filled in this member; it is plain numbers.
    let told = unsafe { fd.get_kvm_run().__bindgen_anon_1.internal };
    let what = match told.suberror {
        kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => "emulate an instruction of the guest",
        kvm_bindings::KVM_INTERNAL_ERROR_SIMUL_EX => "deliver two exceptions at once",
        kvm_bindings::KVM_INTERNAL_ERROR_DELIVERY_EV => "deliver an event to the guest",
        _ => "go on",
    };
    let told_data = told.data.len().min(told.ndata as usize);
    format!(
        "KVM could not {what} (KVM_EXIT_INTERNAL_ERROR, suberror {}, data {:x?}; {})",
        told.suberror,
        &told.data[..told_data],
        registers(fd)
    )
}

/// What a post-mortem needs first; KVM keeps the registers as they were at the fault (Intel) or after the reset (AMD).
fn registers(fd: &VcpuFd) -> String {
    match (fd.get_regs(), fd.get_sregs()) {
        (Ok(regs), Ok(sregs)) => format!(
            "rip {:#x}, rsp {:#x}, cr0 {:#x}, cr2 {:#x}, cr3 {:#x}, cr4 {:#x}, efer {:#x}, idt limit {:#x}",
            regs.rip,
            regs.rsp,
            sregs.cr0,
            sregs.cr2,
            sregs.cr3,
            sregs.cr4,
            sregs.efer,
            sregs.idt.limit
        ),
        _ => "registers unknown".to_owned(),
    }
}

/// An exit that is being handled; counted when that is done.
struct Exit {
    begun: Instant,
    count: &'static Counter,
    took: &'static Durations,
}

impl Exit {
    fn begin(count: &'static Counter, took: &'static Durations) -> Self {
        Self {
            begun: Instant::now(),
            count,
            took,
        }
    }
}

impl Drop for Exit {
    fn drop(&mut self) {
        self.count.inc();
        self.took.record(self.begun.elapsed());
    }
}

fn failed(vcpu: u8, reason: String) -> Stop {
    MACHINE.vcpu.failures.inc();
    Stop::Failed(MachineEvent::VcpuFailed { vcpu, reason })
}
