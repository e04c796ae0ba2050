//! Tests of the serial port.

use std::sync::atomic::AtomicU64;

use proptest::{collection::vec, prelude::*};
use vm_device::bus::PioRange;
use vm_device::device_manager::{IoManager, PioManager};

use super::*;
use crate::testing::TestLine;

const DATA: u16 = 0;
const INTERRUPT_ENABLE: u16 = 1;
const INTERRUPT_ID: u16 = 2;
const LINE_STATUS: u16 = 5;
const RECEIVED: u8 = 1;
const TRANSMITTED: u8 = 2;

/// A port on a test bench.
struct Bench<W: Write = Vec<u8>> {
    port: SerialPort<W>,
    line: TestLine,
    drained: Arc<AtomicU64>,
}

impl Bench {
    fn new() -> Self {
        Self::with_output(Vec::new())
    }
}

impl<W: Write> Bench<W> {
    fn with_output(output: W) -> Self {
        let line = TestLine::default();
        let drained = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&drained);
        let handler = Box::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let port = SerialPort::with_drained_handler(line.clone(), output, handler, Arc::default());
        Self {
            port,
            line,
            drained,
        }
    }

    fn write(&mut self, offset: u16, byte: u8) {
        self.port.pio_write(PioAddress(PORT_BASE), offset, &[byte]);
    }

    fn read(&mut self, offset: u16) -> u8 {
        let mut data = [0xa5];
        self.port.pio_read(PioAddress(PORT_BASE), offset, &mut data);
        data[0]
    }

    /// What the guest's driver does with its input.
    fn read_input(&mut self) -> Vec<u8> {
        let mut input = Vec::new();
        while self.read(LINE_STATUS) & 1 == 1 {
            input.push(self.read(DATA));
        }
        input
    }

    fn drained(&self) -> u64 {
        self.drained.load(Ordering::Relaxed)
    }
}

/// An output that is full.
struct Full;

impl Write for Full {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_the_guest_sends_arrives_in_order() {
    let mut bench = Bench::new();
    for byte in *b"Linux version" {
        bench.write(DATA, byte);
    }
    assert_eq!(bench.port.output_mut().unwrap(), b"Linux version");
}

#[test]
fn input_is_taken_as_far_as_it_fits_and_interrupts_once() {
    let mut bench = Bench::new();
    bench.write(INTERRUPT_ENABLE, RECEIVED);
    let input: Vec<u8> = (0..100).collect();
    assert_eq!(bench.port.room(), INPUT_CAPACITY);
    assert_eq!(bench.port.enqueue(&input).unwrap(), INPUT_CAPACITY);
    assert_eq!(
        (bench.port.room(), bench.port.enqueue(&input).unwrap()),
        (0, 0)
    );
    assert_eq!((bench.line.rising_edges(), bench.line.level()), (1, false));
    assert_eq!(bench.read_input(), input[..INPUT_CAPACITY]);
}

#[test]
fn the_owner_hears_when_the_guest_has_drained_its_input() {
    let mut bench = Bench::new();
    bench.port.enqueue(b"ab").unwrap();
    bench.read(DATA);
    assert_eq!(bench.drained(), 0);
    bench.read(DATA);
    assert_eq!((bench.drained(), bench.port.room()), (1, INPUT_CAPACITY));
}

#[test]
fn a_port_in_loopback_mode_takes_no_input_until_it_leaves_it() {
    let mut bench = Bench::new();
    bench.write(MODEM_CONTROL, LOOPBACK);
    assert_eq!(
        (bench.port.room(), bench.port.enqueue(b"a").unwrap()),
        (0, 0)
    );
    assert_eq!(bench.drained(), 0);
    bench.write(MODEM_CONTROL, 0);
    assert_eq!((bench.port.room(), bench.drained()), (INPUT_CAPACITY, 1));
}

#[test]
fn output_that_is_refused_is_counted_and_the_guest_goes_on() {
    let mut bench = Bench::with_output(Full);
    bench.write(INTERRUPT_ENABLE, TRANSMITTED);
    bench.read(INTERRUPT_ID);
    let edges = bench.line.rising_edges();
    bench.write(DATA, b'a');
    assert_eq!(bench.port.lost_bytes(), 1);
    assert_eq!(
        bench.port.last_error().unwrap().kind(),
        io::ErrorKind::StorageFull
    );
    assert_eq!(
        bench.line.rising_edges(),
        edges + 1,
        "the guest's driver waits for this"
    );
}

#[test]
fn a_failing_interrupt_line_is_reported_and_counted() {
    let mut bench = Bench::new();
    bench.write(INTERRUPT_ENABLE, RECEIVED);
    bench.line.break_it(true);
    assert!(matches!(
        bench.port.enqueue(b"a"),
        Err(SerialError::Interrupt(_))
    ));
    assert_eq!(bench.port.interrupt_errors(), 0, "the caller has been told");
    bench.write(INTERRUPT_ENABLE, RECEIVED | TRANSMITTED);
    assert_eq!(bench.port.interrupt_errors(), 1);
    assert_eq!(bench.read_input(), b"a");
}

#[test]
fn a_restored_port_has_its_registers_and_its_input() {
    let mut saved = Bench::new();
    for (register, value) in [
        (3, 0x83),
        (0, 0x34),
        (1, 0x12),
        (3, 0x03),
        (7, 0x77),
        (4, 0x0b),
    ] {
        saved.write(register, value);
    }
    saved.port.enqueue(b"typed ahead").unwrap();

    let mut restored = Bench::new();
    restored.port.output_mut().unwrap().extend(b"kept");
    restored.port.restore(&saved.port.save()).unwrap();
    assert_eq!(restored.port.save(), saved.port.save());
    assert_eq!(restored.port.output_mut().unwrap(), b"kept");
    assert_eq!(restored.read_input(), b"typed ahead");
    assert_eq!(restored.drained(), 1, "the handler is the restored port's");
}

#[test]
fn restoring_leaves_the_line_alone_until_it_is_synchronised() {
    let mut saved = Bench::new();
    saved.write(INTERRUPT_ENABLE, RECEIVED);
    saved.port.enqueue(b"a").unwrap();

    let mut restored = Bench::new();
    restored.port.restore(&saved.port.save()).unwrap();
    assert_eq!(restored.line.calls(), 0);
    restored.port.sync_line().unwrap();
    assert_eq!(
        (restored.line.rising_edges(), restored.line.level()),
        (1, false)
    );
    restored.read_input();
    restored.port.enqueue(b"b").unwrap();
    assert_eq!(restored.line.rising_edges(), 2, "it still interrupts");
}

#[test]
fn a_port_with_nothing_pending_is_synchronised_in_silence() {
    let mut bench = Bench::new();
    bench.port.sync_line().unwrap();
    assert_eq!(bench.line.calls(), 0);
}

#[test]
fn a_state_with_too_much_input_is_refused_and_changes_nothing() {
    let mut bench = Bench::new();
    bench.port.enqueue(b"a").unwrap();
    let before = bench.port.save();
    let state = SerialPortState {
        input: vec![0; INPUT_CAPACITY + 1],
        ..before.clone()
    };
    assert_eq!(
        bench.port.restore(&state),
        Err(SerialRestoreError { len: 65 })
    );
    assert_eq!(bench.port.save(), before);
    bench.write(DATA, b'x');
    assert_eq!(bench.port.output_mut().unwrap(), b"x");
}

#[test]
fn a_wide_access_is_one_to_each_register() {
    let mut bench = Bench::new();
    bench
        .port
        .pio_write(PioAddress(PORT_BASE), 7, &[0x5a, 0xff, 0xff]);
    let mut data = [0; 3];
    bench.port.pio_read(PioAddress(PORT_BASE), 6, &mut data);
    assert_eq!(data[1..], [0x5a, NO_REGISTER]);
}

#[test]
fn the_port_plugs_into_the_io_manager() {
    let port = Arc::new(std::sync::Mutex::new(Bench::new().port));
    let mut bus = IoManager::new();
    let range = PioRange::new(PioAddress(PORT_BASE), PORT_LEN).unwrap();
    bus.register_pio(range, port.clone()).unwrap();
    bus.pio_write(PioAddress(PORT_BASE), b"!").unwrap();
    assert_eq!(port.lock().unwrap().output_mut().unwrap(), b"!");
}

proptest! {
    #[test]
    fn whatever_the_guest_does_the_port_survives_and_keeps_its_bounds(
        accesses in vec((any::<bool>(), prop_oneof![0..9u16, any::<u16>()], vec(any::<u8>(), 0..=8)), 0..200),
        input in vec(any::<u8>(), 0..100),
    ) {
        let mut bench = Bench::new();
        for (write, offset, mut data) in accesses {
            if write {
                bench.port.pio_write(PioAddress(PORT_BASE), offset, &data);
            } else {
                bench.port.pio_read(PioAddress(PORT_BASE), offset, &mut data);
            }
            let room = bench.port.room();
            prop_assert_eq!(bench.port.enqueue(&input).unwrap(), room.min(input.len()));
            let state = bench.port.save();
            prop_assert!(state.input.len() <= INPUT_CAPACITY);
            bench.port.restore(&state).unwrap();
            prop_assert_eq!(bench.port.save(), state);
            prop_assert!(!bench.line.level(), "edges only");
        }
    }

    #[test]
    fn any_state_is_restored_or_refused_without_a_panic(
        registers in any::<[u8; 9]>(), input in vec(any::<u8>(), 0..200), offset in 0..8u16,
    ) {
        let [baud_divisor_low, baud_divisor_high, interrupt_enable, interrupt_identification,
            line_control, line_status, modem_control, modem_status, scratch] = registers;
        let state = SerialPortState {
            baud_divisor_low, baud_divisor_high, interrupt_enable, interrupt_identification,
            line_control, line_status, modem_control, modem_status, scratch, input,
        };
        let mut bench = Bench::new();
        let fits = state.input.len() <= INPUT_CAPACITY;
        prop_assert_eq!(bench.port.restore(&state).is_ok(), fits);
        bench.port.sync_line().unwrap();
        bench.read(offset);
        bench.write(offset, 0xff);
    }
}
