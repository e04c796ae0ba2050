// SPDX-License-Identifier: GPL-2.0

//! `/dev/sysgenid`: an open file is a watcher.

use crate::{
    sysgenid_abi::{Abi, Command, ForkPoint, Refusal},
    sysgenid_backend::Backend,
    sysgenid_core::{ticks, Tracking, Watcher},
    sysgenid_cycle::{Member, Role},
    sysgenid_device::{release_backend, Device},
};
use kernel::{
    bindings,
    ffi::c_int,
    fs::{file::flags::O_NONBLOCK, File, Kiocb},
    iov::{IovIterDest, IovIterSource},
    miscdevice::{MiscDevice, MiscDeviceOptions, MiscDeviceRegistration},
    mm::virt::VmaNew,
    new_mutex, page,
    prelude::*,
    seq_file::SeqFile,
    seq_print,
    sync::{poll::PollTable, Mutex, SetOnce},
    types::{ForeignOwnable, Opaque},
    uaccess::{UserPtr, UserSlice},
};

/// Length of the counter in bytes.
const COUNTER_LEN: usize = 4;

/// An open file.
#[pin_data(PinnedDrop)]
pub(crate) struct WatcherFile {
    device: &'static Device,
    abi: Abi,
    maps_own_page: bool,
    #[pin]
    watcher: Mutex<Watcher>,
    #[pin]
    member: Mutex<Member>,
    /// The backend whose page a program has mapped. It is held until the file goes, and so the
    /// mapping, which keeps the file.
    mapped: SetOnce<HeldBackend>,
}

/// A backend that is released with this.
struct HeldBackend(*const Backend);

// SAFETY: A backend may be released by any thread.
unsafe impl Send for HeldBackend {}
// SAFETY: Nothing is done with a shared one.
unsafe impl Sync for HeldBackend {}

impl Drop for HeldBackend {
    fn drop(&mut self) {
        release_backend(self.0);
    }
}

#[pinned_drop]
impl PinnedDrop for WatcherFile {
    fn drop(self: Pin<&mut Self>) {
        self.device.leave(&self.member);
        self.device.close(&self.watcher);
    }
}

#[vtable]
impl MiscDevice for WatcherFile {
    type Ptr = Pin<KBox<Self>>;

    fn open(file: &File, misc: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
        let registration = Registration::of(misc);
        let (device, abi) = (registration.device, registration.abi);
        // The memory comes first: once the watcher counts, nothing may fail.
        let memory = KBox::<Self>::new_uninit(GFP_KERNEL)?;
        let watcher = device.open(tracking(abi.tracks_at_open(is_writable(file))))?;
        memory.write_pin_init(try_pin_init!(Self {
            device,
            abi,
            maps_own_page: registration.maps_own_page,
            watcher <- new_mutex!(watcher),
            member <- new_mutex!(Member::default()),
            mapped: SetOnce::new(),
        }))
    }

    fn read_iter(kiocb: Kiocb<'_, Self::Ptr>, iov: &mut IovIterDest<'_>) -> Result<usize> {
        if iov.is_empty() {
            return Ok(0);
        }
        if iov.len() < COUNTER_LEN {
            return Err(EINVAL);
        }
        let me = kiocb.file();
        loop {
            let counter = if is_nonblocking(&kiocb) {
                match me.device.look(&me.watcher) {
                    (true, counter) => counter,
                    (false, _) => return Err(EAGAIN),
                }
            } else {
                me.device.read(&me.watcher)?
            };
            let copied = iov.copy_to_iter(&counter.to_ne_bytes());
            if copied != COUNTER_LEN {
                return Err(EFAULT);
            }
            // The copying may have slept, and the machine been restored meanwhile.
            if me.device.look(&me.watcher).1 == counter {
                return Ok(COUNTER_LEN);
            }
            // SAFETY: So many bytes were copied just now.
            unsafe { iov.revert(copied) };
        }
    }

    fn write_iter(kiocb: Kiocb<'_, Self::Ptr>, iov: &mut IovIterSource<'_>) -> Result<usize> {
        let me = kiocb.file();
        if iov.len() != COUNTER_LEN {
            return Err(me.abi.wrong_length());
        }
        let mut counter = [0; COUNTER_LEN];
        if iov.copy_from_iter(&mut counter) != COUNTER_LEN {
            return Err(EFAULT);
        }
        me.device
            .acknowledge(&me.watcher, u32::from_ne_bytes(counter))?;
        Ok(COUNTER_LEN)
    }

    fn ioctl(me: Pin<&Self>, file: &File, cmd: u32, arg: usize) -> Result<isize> {
        match me.abi.command(cmd).ok_or(EINVAL)? {
            Command::WaitWatchers => {
                let limit = (arg != 0).then(|| ticks(arg, bindings::CONFIG_HZ as usize));
                me.device.wait(&me.watcher, limit)?;
            }
            Command::Force => {
                demand_privilege()?;
                me.device.force(arg.try_into().map_err(|_| EINVAL)?)?;
            }
            Command::SetTracking => {
                let tracked = arg != 0;
                if tracked && !me.abi.can_track(is_writable(file)) {
                    return Err(EBADF);
                }
                me.device.track(&me.watcher, tracking(tracked));
            }
            Command::Ready => {
                demand_privilege()?;
                let counter = arg.try_into().map_err(|_| EINVAL)?;
                me.device.ready(&me.watcher, counter)?;
            }
            command => return me.take_part(command, arg),
        }
        Ok(0)
    }

    fn mmap(me: Pin<&Self>, _file: &File, vma: &VmaNew) -> Result {
        // SAFETY: The area is being set up, so that its offset does not change.
        let offset = unsafe { (*vma.as_ptr()).vm_pgoff };
        if offset != 0 || vma.end() - vma.start() > page::PAGE_SIZE {
            return Err(EINVAL);
        }
        if vma.writable() {
            return Err(EPERM);
        }
        vma.try_clear_maywrite()?;
        let (frame, backend) = me.device.page();
        if backend.is_none() && !me.maps_own_page {
            return Err(ENODEV);
        }
        if let Some(backend) = backend {
            // Once is enough: the first one is held as long as the file lives. A second one is
            // released at once, by the value's drop.
            me.mapped.populate(HeldBackend(backend));
        }
        // SAFETY: The area is being set up. The frame's page outlives the mapping: the own page
        // lives as long as the module, which every open file holds; the backend's as long as that.
        kernel::error::to_result(unsafe {
            let area = vma.as_ptr();
            bindings::remap_pfn_range(
                area,
                vma.start(),
                frame,
                page::PAGE_SIZE,
                (*area).vm_page_prot,
            )
        })
    }

    fn show_fdinfo(me: Pin<&Self>, m: &SeqFile, _file: &File) {
        let (role, parked) = me.device.part(&me.member);
        seq_print!(m, "role:\t{}\n", role as u8);
        seq_print!(m, "parked:\t{}\n", u8::from(parked));
        // Of one instant, so that the lines fit together.
        me.device.show(|all| {
            let watcher = me.watcher.lock();
            let outdated = all.is_outdated(&watcher);
            seq_print!(m, "generation:\t{}\n", all.told());
            seq_print!(m, "acknowledged:\t{}\n", watcher.acknowledged());
            seq_print!(m, "tracked:\t{}\n", u8::from(watcher.is_tracked()));
            seq_print!(m, "outdated:\t{}\n", u8::from(outdated));
            seq_print!(m, "watchers:\t{}\n", all.watchers());
            seq_print!(m, "outdated_watchers:\t{}\n", all.outdated());
            let numbers = all.numbers();
            seq_print!(m, "required:\t{}\n", u8::from(watcher.is_required()));
            seq_print!(m, "required_watchers:\t{}\n", numbers.required);
            seq_print!(m, "ready_agents:\t{}\n", numbers.ready);
        });
    }
}

impl WatcherFile {
    /// The calls of the fork point.
    fn take_part(&self, command: Command, arg: usize) -> Result<isize> {
        let (device, member) = (self.device, &self.member);
        let user = UserPtr::from_addr(arg);
        match command {
            Command::SetRole => {
                // As for those who are tracked: anybody may take part and never park.
                let required = is_privileged(bindings::ns_capable_noaudit);
                device.set_role(member, role(arg)?, required)?;
            }
            Command::GetRequest => {
                let request = device.request(member)?;
                UserSlice::new(user, size_of_val(&request)).writer().write(&request)?;
            }
            Command::Park => return device.park(member).map(isize::from),
            Command::WaitParked => {
                let limit = match arg {
                    0 => 0,
                    limit => ticks(limit, bindings::CONFIG_HZ as usize),
                };
                let all = device.wait_parked(member, limit)?;
                return Ok(isize::from(!all));
            }
            Command::ForkPoint => {
                demand_privilege()?;
                let slice = || UserSlice::new(user, size_of::<ForkPoint>());
                let mut fork = slice().reader().read::<ForkPoint>()?;
                // Where nothing can be given back, nothing is taken.
                slice().writer().write(&fork)?;
                device.fork_point(member, &mut fork)?;
                slice().writer().write(&fork)?;
            }
            Command::Identity => {
                demand_privilege()?;
                device.identity(member, arg.try_into().map_err(|_| EINVAL)?)?;
            }
            Command::Refuse => {
                let refusal = UserSlice::new(user, size_of::<Refusal>()).reader().read()?;
                device.refuse(member, refusal)?;
            }
            _ => return Err(EINVAL),
        }
        Ok(0)
    }
}

/// The role that a number stands for, if the caller may have it.
fn role(number: usize) -> Result<Role> {
    match number {
        0 => Ok(Role::None),
        1 => Ok(Role::Participant),
        2 => {
            demand_privilege()?;
            Ok(Role::Agent)
        }
        _ => Err(EINVAL),
    }
}

/// `poll()`, which [`MiscDevice`] does not have.
///
/// # Safety
///
/// Called by the kernel alone, for a file of [`WatcherFile`].
unsafe extern "C" fn poll(
    file: *mut bindings::file,
    table: *mut bindings::poll_table_struct,
) -> bindings::__poll_t {
    // SAFETY: `MiscDevice` has put the pointer there, and takes it away when the file goes.
    let me = unsafe { <Pin<KBox<WatcherFile>> as ForeignOwnable>::borrow((*file).private_data) };
    // SAFETY: The kernel calls us with a file and a table that live for the call.
    let (file, table) = unsafe { (File::from_raw_file(file), PollTable::from_raw(table)) };
    // In this order: a generation that begins after the look wakes us.
    table.register_wait(file, me.device.readers());
    table.register_wait(file, &me.device.members);
    let mut events = 0;
    if me.device.look(&me.watcher).0 {
        events |= bindings::POLLIN | bindings::POLLRDNORM;
    }
    if me.device.is_urgent(&me.member) {
        events |= bindings::POLLPRI;
    }
    events
}

fn is_writable(file: &File) -> bool {
    // SAFETY: The mode of an open file does not change.
    let mode = unsafe { (*file.as_ptr()).f_mode };
    // FMODE_WRITE
    mode & 0x2 != 0
}

fn is_nonblocking(kiocb: &Kiocb<'_, Pin<KBox<WatcherFile>>>) -> bool {
    // SAFETY: The call has the file open.
    let file = unsafe { File::from_raw_file((*kiocb.as_raw()).ki_filp) };
    file.flags() & O_NONBLOCK != 0
}

/// Who waits for a file of the caller's that is `tracked`. Anybody may open the device and never
/// acknowledge, so the host waits only for those who could bring the machine down anyway.
fn tracking(tracked: bool) -> Tracking {
    match tracked {
        false => Tracking::Untracked,
        true if is_privileged(bindings::ns_capable_noaudit) => Tracking::Required,
        true => Tracking::Tracked,
    }
}

fn demand_privilege() -> Result {
    match is_privileged(bindings::ns_capable) {
        true => Ok(()),
        false => Err(EACCES),
    }
}

/// Whether the caller may begin a generation and speak for the machine: it may in the initial user
/// namespace, because the consequences are not those of a container alone.
fn is_privileged(
    capable: unsafe extern "C" fn(*mut bindings::user_namespace, c_int) -> bool,
) -> bool {
    let initial = &raw mut bindings::init_user_ns;
    // SAFETY: The initial user namespace lives for ever.
    [bindings::CAP_CHECKPOINT_RESTORE, bindings::CAP_SYS_ADMIN]
        .iter()
        .any(|capability| unsafe { capable(initial, *capability as c_int) })
}

/// The registered misc device, with what a `MiscDeviceRegistration` has not: `poll` and a mode.
///
/// The registration comes first: the kernel hands out a pointer to it.
#[pin_data(PinnedDrop)]
#[repr(C)]
pub(crate) struct Registration {
    #[pin]
    misc: Opaque<bindings::miscdevice>,
    fops: bindings::file_operations,
    device: &'static Device,
    abi: Abi,
    maps_own_page: bool,
}

// SAFETY: A misc device may be deregistered by any thread.
unsafe impl Send for Registration {}
// SAFETY: What is shared is not changed.
unsafe impl Sync for Registration {}

impl Registration {
    /// Makes the device known as `/dev/sysgenid`, which everybody may open. The driver's own page,
    /// which follows a new generation late, may be mapped or not.
    pub(crate) fn new(
        device: &'static Device,
        abi: Abi,
        maps_own_page: bool,
    ) -> impl PinInit<Self, Error> {
        let raw = MiscDeviceOptions { name: c"sysgenid" }.into_raw::<WatcherFile>();
        // SAFETY: The operations are a constant.
        let mut fops = unsafe { *raw.fops };
        fops.poll = Some(poll);
        try_pin_init!(&this in Self {
            fops,
            device,
            abi,
            maps_own_page,
            misc <- Opaque::try_ffi_init(move |slot: *mut bindings::miscdevice| {
                // SAFETY: The slot may be written. The operations are beside it, and pinned as it
                // is; no open file outlives them, because it holds the module.
                unsafe {
                    slot.write(raw);
                    (*slot).mode = 0o666;
                    (*slot).fops = &raw const (*this.as_ptr()).fops;
                }
                // SAFETY: The misc device has been filled, and is deregistered before it goes.
                kernel::error::to_result(unsafe { bindings::misc_register(slot) })?;
                // SAFETY: It has been registered.
                device.set_kobject(unsafe { &raw mut (*(*slot).this_device).kobj });
                Ok::<(), Error>(())
            }),
        })
    }

    /// The registration that the kernel gave to `open`.
    fn of(misc: &MiscDeviceRegistration<WatcherFile>) -> &Self {
        // SAFETY: The kernel's pointer is to the misc device that it was given, which is the first
        // field of a registration.
        unsafe { &*misc.as_raw().cast() }
    }
}

#[pinned_drop]
impl PinnedDrop for Registration {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: It has been registered.
        unsafe { bindings::misc_deregister(self.misc.get()) };
    }
}
