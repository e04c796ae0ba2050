//! The registers of every device: any access, of any length.

use vm_device::MutDevicePio;
use vm_device::bus::{MmioAddress, PioAddress};
use vmgenie_devices::fw_cfg::{self, FwCfg, InstanceData};
use vmgenie_devices::pm::{self, PowerManagement};
use vmgenie_devices::serial::{self, SerialPort};
use vmgenie_devices::sgen::{self, SysGen};
use vmgenie_devices::{Persist, Restore, VmClock, VmGenId};

use crate::Input;
use crate::backends::Shared;
use crate::machine::{self, Nowhere};
use crate::queues::Device;

const COUNTER: u64 = 0x1000;
const CLOCK: u64 = 0x2000;
const ID: u64 = 0x3000;

/// The devices that are no virtio devices.
#[allow(
    clippy::expect_used,
    reason = "whatever was saved can be restored: that is what is tested"
)]
fn ports(mut input: Input<'_>) {
    let memory = machine::memory();
    let clock = || 1_u64 << 40;
    let new_pm = || PowerManagement::new(Nowhere, clock, Box::new(|_| {}));
    let mut pm = new_pm();
    let mut serial = SerialPort::new(Nowhere, Vec::new());
    let mut sgen = SysGen::new(&memory, COUNTER, 0).expect("the counter's page");
    let data = InstanceData::new("the first guest").expect("a string");
    let mut fw_cfg = FwCfg::new(data);
    let mut vmclock = VmClock::new(&memory, CLOCK).expect("the clock's page");
    let mut vmgenid = VmGenId::new(&memory, ID).expect("the ID's place");
    while !input.is_empty() {
        let what = input.u8();
        let offset = input.u8();
        let mut read = vec![0; usize::from(input.u8() % 18)];
        let (device, base): (&mut dyn MutDevicePio, u16) = match what % 8 {
            4 => (&mut fw_cfg, fw_cfg::PORT_BASE),
            0 => (&mut pm, pm::PORT_BASE),
            1 => (&mut serial, serial::PORT_BASE),
            2 => (&mut sgen, sgen::PORT_BASE),
            _ => {
                match offset % 8 {
                    0 => drop(pm.raise_gpe(input.u8())),
                    1 => drop(serial.enqueue(input.short())),
                    2 => drop(sgen.begin(&memory)),
                    3 => drop(vmclock.begin(&memory)),
                    4 => drop(vmgenid.regenerate(&memory)),
                    5 => drop(pm.press_power_button()),
                    6 => drop(vmclock.disrupt(&memory)),
                    _ => drop(pm.tick()),
                }
                continue;
            }
        };
        // A word's offset, too: a bus may hand on any.
        let offset = u16::from(offset) | u16::from(what & 0x40) << 9;
        match what & 0x80 {
            0 => device.pio_read(PioAddress(base), offset, &mut read),
            _ => device.pio_write(PioAddress(base), offset, input.bytes(read.len())),
        }
    }
    let mut again = new_pm();
    again.restore(&pm.save()).expect("the saved block");
    assert_eq!(again.save(), pm.save());
    let mut again = FwCfg::new(fw_cfg.data().clone());
    again.restore(&fw_cfg.save()).expect("the saved device");
    assert_eq!(again.save(), fw_cfg.save());
    let mut again = SerialPort::new(Nowhere, Vec::new());
    again.restore(&serial.save()).expect("the saved port");
    assert_eq!(again.save(), serial.save());
    assert_eq!(
        SysGen::from_state(&sgen.save()).expect("it").save(),
        sgen.save()
    );
    assert_eq!(
        VmClock::from_state(&vmclock.save()).expect("it").save(),
        vmclock.save()
    );
    assert_eq!(
        VmGenId::from_state(&vmgenid.save()).expect("it").save(),
        vmgenid.save()
    );
}

/// Accesses to registers, of the device that the first byte names.
pub fn registers(data: &[u8]) {
    let mut input = Input(data);
    let kind = input.u8();
    if kind & 0x40 != 0 {
        return ports(input);
    }
    let memory = machine::memory();
    let shared = Shared::default();
    let mut device = Device::new(kind, &memory, &shared);
    while !input.is_empty() {
        let what = input.u8();
        let offset = match what & 3 {
            0 => input.u64(),
            1 => 0x100 + u64::from(input.u8()),
            _ => u64::from(input.u8()),
        };
        let len = match what & 0x0c {
            0 => usize::from(input.u8() % 18),
            _ => 4,
        };
        let transport = device.transport();
        match what & 0x30 {
            0 => transport.mmio_read(MmioAddress(0), offset, &mut vec![0; len]),
            0x30 if what & 0xc0 == 0xc0 => device = device.cloned(&memory, &shared),
            0x30 => drop(transport.backend_ready()),
            _ => transport.mmio_write(MmioAddress(0), offset, input.bytes(len)),
        }
    }
    device.cloned(&memory, &shared);
}
