//! Tests of the power management block.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use vm_device::{
    bus::PioRange,
    device_manager::{IoManager, PioManager},
};

use super::*;
use crate::testing::TestLine;

/// The PM timer's most significant bit changes each 10 minutes: 2^31 / 3,579,545 Hz, rounded up.
const EDGE_NS: u64 = 599_932_015_941;

/// A block on a test bench.
struct Bench {
    pm: PowerManagement,
    line: TestLine,
    clock: Arc<AtomicU64>,
    requests: Arc<Mutex<Vec<PowerRequest>>>,
}

impl Bench {
    fn new() -> Self {
        Self::at(0)
    }

    /// A bench whose clock stands at `now`.
    fn at(now: u64) -> Self {
        let line = TestLine::default();
        let clock = Arc::new(AtomicU64::new(now));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (reader, log) = (Arc::clone(&clock), Arc::clone(&requests));
        let pm = PowerManagement::new(
            line.clone(),
            move || reader.load(Ordering::Relaxed),
            Box::new(move |request| log.lock().unwrap().push(request)),
        );
        Self {
            pm,
            line,
            clock,
            requests,
        }
    }

    fn write(&mut self, offset: usize, data: &[u8]) {
        self.pm
            .pio_write(PioAddress(PORT_BASE), offset as u16, data);
    }

    fn read(&mut self, offset: usize, len: usize) -> Vec<u8> {
        let mut data = vec![0xa5; len];
        self.pm
            .pio_read(PioAddress(PORT_BASE), offset as u16, &mut data);
        data
    }

    fn read_u16(&mut self, offset: usize) -> u16 {
        u16::from_le_bytes(self.read(offset, 2).try_into().unwrap())
    }

    fn timer(&mut self) -> u32 {
        u32::from_le_bytes(self.read(PM_TIMER, 4).try_into().unwrap())
    }

    fn advance(&self, ns: u64) {
        self.clock.fetch_add(ns, Ordering::Relaxed);
    }

    fn requests(&self) -> Vec<PowerRequest> {
        self.requests.lock().unwrap().clone()
    }
}

#[test]
fn the_sci_follows_pending_and_enabled_events_and_nothing_else() {
    let mut bench = Bench::new();
    bench.pm.raise_gpe(5).unwrap();
    assert!(!bench.line.level(), "pending but not enabled");
    bench.write(GPE0_ENABLE, &(1u16 << 4).to_le_bytes());
    assert!(!bench.line.level(), "another one is enabled");
    bench.write(GPE0_ENABLE, &(1u16 << 5).to_le_bytes());
    assert!(bench.line.level());
    bench.write(GPE0_STATUS, &(1u16 << 4).to_le_bytes());
    assert!(bench.line.level(), "another one was cleared");
    bench.write(GPE0_STATUS, &(1u16 << 5).to_le_bytes());
    assert!(!bench.line.level());
    assert_eq!(bench.line.rising_edges(), 1);
}

#[test]
fn an_event_raised_before_the_guest_enables_it_waits_through_a_snapshot() {
    let mut early = Bench::new();
    early.pm.raise_gpe(5).unwrap();

    let mut restored = Bench::new();
    restored.pm.restore(&early.pm.save()).unwrap();
    restored.pm.sync_line().unwrap();
    assert!(restored.pm.is_gpe_pending(5) && !restored.line.level());
    restored.write(GPE0_ENABLE, &(1u16 << 5).to_le_bytes());
    assert!(restored.line.level());
}

#[test]
fn restoring_leaves_the_line_alone_until_it_is_synchronised() {
    let mut saved = Bench::new();
    saved.write(GPE0_ENABLE, &[0xff, 0xff]);
    saved.pm.raise_gpe(15).unwrap();

    let mut restored = Bench::new();
    restored.pm.restore(&saved.pm.save()).unwrap();
    assert_eq!(restored.line.calls(), 0);
    restored.pm.sync_line().unwrap();
    assert!(restored.line.level());
    // The interrupt controller may have lost a level that the device thinks it has.
    restored.line.set_level(false).unwrap();
    restored.pm.sync_line().unwrap();
    assert!(restored.line.level());
}

#[test]
fn events_that_do_not_exist_are_refused() {
    let mut bench = Bench::new();
    for gpe in [16, 255] {
        assert!(matches!(bench.pm.raise_gpe(gpe), Err(PmError::NoSuchGpe { gpe: g }) if g == gpe));
        assert!(!bench.pm.is_gpe_pending(gpe));
    }
}

#[test]
fn status_bits_are_cleared_by_ones_and_kept_by_zeros_in_each_byte_alone() {
    let mut bench = Bench::new();
    bench.pm.raise_gpe(1).unwrap();
    bench.pm.raise_gpe(9).unwrap();
    bench.write(GPE0_STATUS, &[0x00, 0x00]);
    assert_eq!(bench.read_u16(GPE0_STATUS), 0x0202);
    bench.write(GPE0_STATUS + 1, &[0xff]);
    assert_eq!(bench.read_u16(GPE0_STATUS), 0x0002);
}

#[test]
fn the_machine_is_always_in_acpi_mode_and_write_only_bits_read_as_0() {
    let mut bench = Bench::new();
    assert_eq!(bench.read_u16(PM1_CONTROL), SCI_EN);
    bench.write(PM1_CONTROL, &[0xff, !(SLP_EN >> 8) as u8]);
    assert_eq!(bench.read_u16(PM1_CONTROL), SCI_EN | BM_RLD | SLP_TYP);
    bench.write(PM1_CONTROL, &[0, 0]);
    assert_eq!(bench.read_u16(PM1_CONTROL), SCI_EN);
}

#[test]
fn enable_bits_read_back_as_written_and_reserved_ones_as_0() {
    let mut bench = Bench::new();
    bench.write(PM1_ENABLE, &[0xff, 0xff]);
    assert_eq!(bench.read_u16(PM1_ENABLE), 0x0721);
    bench.write(PM1_ENABLE + 1, &[0]);
    assert_eq!(bench.read_u16(PM1_ENABLE), 0x0021);
    bench.write(PM1_STATUS, &[0, 0, 0x00, 0x01]);
    assert_eq!(
        bench.read_u16(PM1_ENABLE),
        0x0100,
        "status and enable in one dword"
    );
}

#[test]
fn only_s5_switches_the_machine_off_and_only_with_slp_en() {
    let mut bench = Bench::new();
    for sleep_type in 0..8u16 {
        bench.write(PM1_CONTROL, &(sleep_type << SLP_TYP_SHIFT).to_le_bytes());
        if sleep_type != u16::from(S5_SLEEP_TYPE) {
            let control = sleep_type << SLP_TYP_SHIFT | SLP_EN;
            bench.write(PM1_CONTROL, &control.to_le_bytes());
        }
    }
    assert_eq!(bench.requests(), []);
    let control = u16::from(S5_SLEEP_TYPE) << SLP_TYP_SHIFT | SLP_EN;
    bench.write(PM1_CONTROL, &control.to_le_bytes());
    assert_eq!(bench.requests(), [PowerRequest::PowerOff]);
    bench.write(PM1_CONTROL + 1, &[(control >> 8) as u8]);
    assert_eq!(bench.requests().len(), 2, "a byte does as well");
}

#[test]
fn only_the_reset_value_resets_the_machine() {
    let mut bench = Bench::new();
    for value in (0..=255).filter(|value| *value != RESET_VALUE) {
        bench.write(RESET, &[value]);
    }
    assert_eq!(bench.requests(), []);
    bench.write(RESET, &[RESET_VALUE]);
    assert_eq!(bench.requests(), [PowerRequest::Reset]);
    assert_eq!(bench.read(RESET, 1), [0]);
}

#[test]
fn the_timer_counts_at_its_frequency_and_wraps() {
    let mut bench = Bench::at(1 << 40);
    assert_eq!(bench.timer(), 0);
    bench.advance(1_000_000_000);
    assert_eq!(u64::from(bench.timer()), TIMER_HZ);
    bench.write(PM_TIMER, &[0; 4]);
    assert_eq!(u64::from(bench.timer()), TIMER_HZ, "it cannot be written");
    bench.advance(1_199_000_000_000);
    assert_eq!(bench.timer(), (TIMER_HZ * 1200) as u32);
    assert!(TIMER_HZ * 1200 > u64::from(u32::MAX));
}

#[test]
fn the_timer_event_comes_with_each_change_of_the_most_significant_bit() {
    let mut bench = Bench::new();
    for (edges, msb) in [(1, 1), (2, 0), (3, 1)] {
        bench
            .clock
            .store(edges * EDGE_NS - edges, Ordering::Relaxed);
        assert_eq!(bench.read_u16(PM1_STATUS), 0);
        bench.clock.store(edges * EDGE_NS, Ordering::Relaxed);
        assert_eq!(bench.read_u16(PM1_STATUS), TIMER_EVENT);
        assert_eq!(bench.timer() >> 31, msb);
        bench.write(PM1_STATUS, &TIMER_EVENT.to_le_bytes());
        assert_eq!(bench.read_u16(PM1_STATUS), 0);
    }
}

#[test]
fn the_vmm_is_told_when_to_tick_for_a_timer_interrupt() {
    let mut bench = Bench::at(77);
    let edges = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&edges);
    bench
        .pm
        .on_timer_change(Box::new(move |edge| log.lock().unwrap().push(edge)));
    assert_eq!(bench.pm.next_timer_edge(), None);

    bench.write(PM1_ENABLE, &TIMER_EVENT.to_le_bytes());
    let edge = bench.pm.next_timer_edge().unwrap();
    bench.clock.store(edge - 1, Ordering::Relaxed);
    bench.pm.tick().unwrap();
    assert!(!bench.line.level());
    bench.clock.store(edge, Ordering::Relaxed);
    bench.pm.tick().unwrap();
    assert!(bench.line.level());
    assert_eq!(
        bench.pm.next_timer_edge(),
        None,
        "until the guest has cleared the event"
    );

    bench.write(PM1_STATUS, &TIMER_EVENT.to_le_bytes());
    assert!(!bench.line.level());
    let next = bench.pm.next_timer_edge().unwrap();
    bench.write(PM1_ENABLE, &[0, 0]);
    assert_eq!(*edges.lock().unwrap(), [Some(edge), Some(next), None]);
}

#[test]
fn the_timer_goes_on_where_it_was_after_a_restore_by_another_clock() {
    let mut saved = Bench::new();
    saved.advance(3 * EDGE_NS);
    saved.read(PM1_STATUS, 2);
    saved.write(PM1_STATUS, &[0xff, 0xff, TIMER_EVENT as u8, 0]);
    let value = saved.timer();

    let mut restored = Bench::at(5_000);
    restored.pm.restore(&saved.pm.save()).unwrap();
    assert_eq!(restored.timer(), value);
    assert_eq!(restored.read_u16(PM1_STATUS), 0, "no edge has passed");
    let edge = restored.pm.next_timer_edge().unwrap();
    assert!((5_000..=5_000 + EDGE_NS + 1).contains(&edge));
    restored.clock.store(edge, Ordering::Relaxed);
    restored.pm.tick().unwrap();
    assert!(restored.line.level());
}

#[test]
fn a_timer_that_stands_still_counts_nothing_and_goes_on_from_there() {
    let mut bench = Bench::new();
    bench.advance(EDGE_NS - 1000);
    bench.write(PM1_ENABLE, &TIMER_EVENT.to_le_bytes());
    let edges = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&edges);
    bench
        .pm
        .on_timer_change(Box::new(move |edge| log.lock().unwrap().push(edge)));
    let value = bench.timer();
    bench.pm.let_timer_run(false);
    bench.pm.let_timer_run(false);
    bench.advance(60_000_000_000);
    bench.pm.tick().unwrap();
    assert_eq!(bench.timer(), value);
    assert_eq!(bench.pm.save().timer_ns, EDGE_NS - 1000);
    assert_eq!(bench.pm.save().pm1_status, 0);
    assert_eq!(bench.pm.next_timer_edge(), None);

    bench.pm.let_timer_run(true);
    bench.pm.let_timer_run(true);
    assert_eq!(bench.timer(), value);
    let edge = bench.pm.next_timer_edge().unwrap();
    assert_eq!(edge, EDGE_NS - 1000 + 60_000_000_000 + 1000);
    assert_eq!(*edges.lock().unwrap(), [None, Some(edge)]);
    bench.clock.store(edge, Ordering::Relaxed);
    bench.pm.tick().unwrap();
    assert!(bench.line.level());
}

#[test]
fn a_timer_edge_that_nobody_has_looked_at_is_saved_as_pending() {
    let bench = Bench::new();
    bench.advance(EDGE_NS);
    assert_eq!(bench.pm.save().pm1_status, TIMER_EVENT);
}

#[test]
fn a_saved_state_with_bits_that_do_not_exist_is_refused_and_changes_nothing() {
    let mut bench = Bench::new();
    bench.pm.raise_gpe(3).unwrap();
    let before = bench.pm.save();
    let all = u16::MAX;
    for (state, register) in [
        (
            PowerManagementState {
                pm1_status: all,
                ..before.clone()
            },
            "PM1 status",
        ),
        (
            PowerManagementState {
                pm1_enable: all,
                ..before.clone()
            },
            "PM1 enable",
        ),
        (
            PowerManagementState {
                pm1_control: SLP_EN,
                ..before.clone()
            },
            "PM1 control",
        ),
    ] {
        let error = bench.pm.restore(&state).unwrap_err();
        assert_eq!(error.register, register);
        assert_eq!(bench.pm.save(), before);
    }
}

#[test]
fn a_state_with_the_oldest_timer_there_can_be_is_harmless() {
    let mut bench = Bench::at(u64::MAX - 5);
    let oldest = PowerManagementState {
        timer_ns: u64::MAX,
        pm1_enable: TIMER_EVENT,
        ..PowerManagementState::default()
    };
    bench.pm.restore(&oldest).unwrap();
    bench.advance(3);
    bench.timer();
    assert!(bench.pm.next_timer_edge().is_some());
    assert!(bench.pm.save().timer_ns >= 1 << 62);
}

#[test]
fn a_failing_interrupt_line_is_reported_counted_and_tried_again() {
    let mut bench = Bench::new();
    bench.write(GPE0_ENABLE, &[0xff, 0xff]);
    bench.line.break_it(true);
    let error = bench.pm.raise_gpe(2).unwrap_err();
    assert!(
        matches!(error, PmError::Interrupt { asserted: true, .. }),
        "{error}"
    );
    assert!(bench.pm.is_gpe_pending(2));
    assert_eq!(bench.pm.line_errors(), 0, "the caller has been told");
    bench.read(GPE0_STATUS, 2);
    assert_eq!(bench.pm.line_errors(), 1);
    assert!(
        bench
            .pm
            .last_line_error()
            .unwrap()
            .to_string()
            .contains("broke")
    );
    bench.line.break_it(false);
    bench.read(GPE0_STATUS, 2);
    assert!(bench.line.level());
    assert_eq!(bench.pm.line_errors(), 1);
}

#[test]
fn the_block_plugs_into_the_io_manager_where_the_fadt_says() {
    let bench = Bench::new();
    let line = bench.line.clone();
    let pm = Arc::new(Mutex::new(bench.pm));
    let mut bus = IoManager::new();
    bus.register_pio(
        PioRange::new(PioAddress(PORT_BASE), PORT_LEN).unwrap(),
        pm.clone(),
    )
    .unwrap();

    let ports = ports();
    let enable = ports.gpe0 + u16::from(ports.gpe0_len / 2);
    bus.pio_write(PioAddress(enable), &[1 << 5, 0]).unwrap();
    pm.lock().unwrap().raise_gpe(5).unwrap();
    assert!(line.level());
    bus.pio_write(PioAddress(ports.gpe0), &[1 << 5]).unwrap();
    assert!(!line.level());
    bus.pio_write(PioAddress(ports.reset_port), &[ports.reset_value])
        .unwrap();
    assert_eq!(*bench.requests.lock().unwrap(), [PowerRequest::Reset]);
}

#[path = "pm_model_test.rs"]
mod model;

#[test]
fn a_timer_older_than_any_machine_still_has_a_next_edge() {
    let state = PowerManagementState {
        pm1_enable: 1,
        timer_ns: u64::MAX,
        ..Default::default()
    };
    let mut pm = PowerManagement::new(std::sync::Arc::new(NoLine), || 5u64, Box::new(|_| ()));
    pm.restore(&state).unwrap();
    assert!(pm.next_timer_edge().unwrap() > 5);
}

/// A wire to nowhere.
struct NoLine;

impl crate::InterruptLine for NoLine {
    fn set_level(&self, _: bool) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_power_button_interrupts_a_guest_that_wants_it_and_waits_for_one_that_does_not_yet() {
    let mut bench = Bench::new();
    bench.pm.press_power_button().unwrap();
    assert_eq!(bench.read(PM1_STATUS, 2), [0, 1]);
    assert!(!bench.pm.sci_wanted());
    bench.write(PM1_ENABLE, &[0, 1]);
    assert!(bench.pm.sci_wanted());
    bench.write(PM1_STATUS, &[0, 1]);
    assert!(!bench.pm.sci_wanted());
    bench.pm.press_power_button().unwrap();
    assert!(bench.pm.sci_wanted());
}
