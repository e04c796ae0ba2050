//! The serial port COM1: a 16550 whose registers are vm-superio's.

use std::{
    fmt,
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use acpi_tables::{
    Aml, AmlSink,
    aml::{Device, EISAName, IO, Interrupt, Name, ResourceTemplate, ZERO},
};
use serde::{Deserialize, Serialize};
use vm_device::{
    MutDevicePio,
    bus::{PioAddress, PioAddressOffset},
};
use vm_superio::{
    Serial, SerialState, Trigger,
    serial::{Error as UartError, SerialEvents},
};

use crate::metrics::Counter;
use crate::{DeviceState, InterruptLine, Persist, Restore, metrics_group};

/// First I/O port.
pub const PORT_BASE: u16 = 0x3f8;
/// Number of I/O ports.
pub const PORT_LEN: u16 = 8;
/// GSI of the interrupt: edge-triggered, active high.
pub const GSI: u32 = 4;
/// How many bytes of input wait for the guest at most.
pub const INPUT_CAPACITY: usize = 64;

const MODEM_CONTROL: u16 = 4;
const LOOPBACK: u8 = 1 << 4;
/// Bit 0 of the interrupt identification register: nothing is pending.
const NO_INTERRUPT: u8 = 1 << 0;
/// What a port with nothing behind it reads as.
const NO_REGISTER: u8 = 0xff;

/// Why input or an interrupt did not reach the guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SerialError {
    /// The interrupt controller refused the interrupt. Input given at the same time has been taken.
    #[error("could not raise the serial port's interrupt")]
    Interrupt(#[source] io::Error),
}

/// Why a saved state was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("could not restore {len} bytes of serial input: at most {INPUT_CAPACITY} can wait")]
pub struct SerialRestoreError {
    /// How many bytes the state has.
    pub len: usize,
}

/// Told that the guest has taken all input, so that more may be given; called with the device's lock
/// held, so must not call back into it, and called again and again when the guest reads on.
pub type DrainedHandler = Box<dyn Fn() + Send + Sync>;

metrics_group! {
    /// The serial port's metrics. Those of Firecracker's that cannot count anything here are always 0.
    SerialMetrics {
        /// Interrupts that could not be raised.
        error_count: Counter,
        /// Not counted: each byte is flushed.
        flush_count: Counter,
        /// Not counted: each register can be read.
        missed_read_count: Counter,
        /// Bytes of the guest's that nobody took.
        missed_write_count: Counter,
        /// Bytes of input that the guest has read.
        read_count: Counter,
        /// Bytes of the guest's output.
        write_count: Counter,
        /// No rate limiter.
        rate_limiter_dropped_bytes: Counter,
    }
}

/// The registers' values and the waiting input in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialPortState {
    /// Divisor latch, low byte.
    pub baud_divisor_low: u8,
    /// Divisor latch, high byte.
    pub baud_divisor_high: u8,
    /// Interrupt enable register.
    pub interrupt_enable: u8,
    /// Interrupt identification register.
    pub interrupt_identification: u8,
    /// Line control register.
    pub line_control: u8,
    /// Line status register.
    pub line_status: u8,
    /// Modem control register.
    pub modem_control: u8,
    /// Modem status register.
    pub modem_status: u8,
    /// Scratch register.
    pub scratch: u8,
    /// Input that the guest has not read yet, at most [`INPUT_CAPACITY`] bytes.
    #[serde(deserialize_with = "crate::bounded::at_most::<_, _, INPUT_CAPACITY>")]
    pub input: Vec<u8>,
}

impl DeviceState for SerialPortState {
    const VERSION: u16 = 1;
}

/// The serial port. What the guest sends goes to `W`, byte by byte and flushed.
pub struct SerialPort<W: Write> {
    uart: Serial<EdgeTrigger, Arc<Events>, Output<W>>,
    trigger: EdgeTrigger,
    events: Arc<Events>,
    interrupt_errors: u64,
    last_error: Option<io::Error>,
}

impl<W: Write> fmt::Debug for SerialPort<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialPort")
            .field("state", &self.save())
            .field("lost_bytes", &self.lost_bytes())
            .field("interrupt_errors", &self.interrupt_errors)
            .finish_non_exhaustive()
    }
}

impl<W: Write> SerialPort<W> {
    /// A port as after power-on. `line` is the line to [`GSI`], `output` takes what the guest sends.
    pub fn new(line: impl InterruptLine + 'static, output: W) -> Self {
        Self::with_drained_handler(line, output, Box::new(|| ()), Arc::default())
    }

    /// As [`Self::new`], with a `drained` that hears when there is room for input again, and `metrics` to count in.
    pub fn with_drained_handler(
        line: impl InterruptLine + 'static,
        output: W,
        drained: DrainedHandler,
        metrics: Arc<SerialMetrics>,
    ) -> Self {
        let trigger = EdgeTrigger {
            line: Arc::new(line),
            muted: Arc::default(),
        };
        let events = Arc::new(Events { drained, metrics });
        Self {
            uart: Serial::with_events(trigger.clone(), Arc::clone(&events), Output(Some(output))),
            trigger,
            events,
            interrupt_errors: 0,
            last_error: None,
        }
    }

    /// How many bytes [`Self::enqueue`] would take now. While that is 0 (the guest has not read its
    /// input, or runs the port in loopback mode) there is no point in reading more for it; the drained
    /// handler says when to ask again.
    pub fn room(&self) -> usize {
        if self.uart.state().modem_control & LOOPBACK != 0 {
            0
        } else {
            self.uart.fifo_capacity()
        }
    }

    /// Gives the guest as much of `input` as fits; returns how many bytes that was.
    ///
    /// # Errors
    /// [`SerialError::Interrupt`]: the bytes that fit have been taken, and are there when the guest
    /// looks.
    pub fn enqueue(&mut self, input: &[u8]) -> Result<usize, SerialError> {
        match self.uart.enqueue_raw_bytes(input) {
            Ok(taken) => Ok(taken),
            Err(UartError::Trigger(error)) => Err(SerialError::Interrupt(error)),
            Err(UartError::FullFifo | UartError::IOError(_)) => Ok(0),
        }
    }

    /// Interrupts the guest again if an interrupt was pending.
    ///
    /// *Caller:* the restore code, when the interrupt controllers have their state. *vCPUs:* not
    /// running. *Afterwards:* an interrupt that was under way when the state was saved is not lost; the
    /// guest may get it twice, which a 16550's driver has to expect.
    ///
    /// # Errors
    /// [`SerialError::Interrupt`].
    pub fn sync_line(&mut self) -> Result<(), SerialError> {
        let state = self.uart.state();
        let waiting = !state.in_buffer.is_empty();
        if state.interrupt_enable != 0
            && (waiting || state.interrupt_identification & NO_INTERRUPT == 0)
        {
            self.trigger.trigger().map_err(SerialError::Interrupt)?;
        }
        Ok(())
    }

    /// What takes the guest's output.
    pub fn output_mut(&mut self) -> Option<&mut W> {
        self.uart.writer_mut().0.as_mut()
    }

    /// How many bytes of output were lost, because `W` refused them.
    pub fn lost_bytes(&self) -> u64 {
        self.events.metrics.missed_write_count.get()
    }

    /// How often raising the interrupt failed during an access by the guest, which cannot be told.
    pub fn interrupt_errors(&self) -> u64 {
        self.interrupt_errors
    }

    /// The last error counted in [`Self::lost_bytes`] or [`Self::interrupt_errors`].
    pub fn last_error(&self) -> Option<&io::Error> {
        self.last_error.as_ref()
    }

    fn write_byte(&mut self, register: u16, byte: u8) {
        let was_looping =
            register == MODEM_CONTROL && self.uart.read(MODEM_CONTROL as u8) & LOOPBACK != 0;
        // The bus has 8 ports: the register number fits.
        match self.uart.write(register as u8, byte) {
            Ok(()) | Err(UartError::FullFifo) => {}
            Err(UartError::IOError(error)) => self.last_error = Some(error),
            Err(UartError::Trigger(error)) => {
                self.interrupt_errors = self.interrupt_errors.saturating_add(1);
                self.events.metrics.error_count.inc();
                self.last_error = Some(error);
            }
        }
        if was_looping && byte & LOOPBACK == 0 {
            (self.events.drained)();
        }
    }
}

impl<W: Write> MutDevicePio for SerialPort<W> {
    fn pio_read(&mut self, _base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        // The registers are 8 bits wide: a wider access is one to several of them.
        let mut registers = offset..PORT_LEN;
        for byte in data {
            *byte = registers
                .next()
                .map_or(NO_REGISTER, |register| self.uart.read(register as u8));
        }
    }

    fn pio_write(&mut self, _base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        for (register, &byte) in (offset..PORT_LEN).zip(data) {
            self.write_byte(register, byte);
        }
    }
}

impl<W: Write> Persist for SerialPort<W> {
    type State = SerialPortState;

    fn save(&self) -> SerialPortState {
        let state = self.uart.state();
        SerialPortState {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            input: state.in_buffer,
        }
    }
}

impl<W: Write> Restore for SerialPort<W> {
    type Error = SerialRestoreError;

    fn restore(&mut self, state: &SerialPortState) -> Result<(), SerialRestoreError> {
        let refused = SerialRestoreError {
            len: state.input.len(),
        };
        if state.input.len() > INPUT_CAPACITY {
            return Err(refused);
        }
        let uart_state = SerialState {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.input.clone(),
        };
        let output = Output(self.uart.writer_mut().0.take());
        // from_state would interrupt; that is for sync_line to do.
        self.trigger.muted.store(true, Ordering::Relaxed);
        let uart = Serial::from_state(
            &uart_state,
            self.trigger.clone(),
            Arc::clone(&self.events),
            output,
        );
        self.trigger.muted.store(false, Ordering::Relaxed);
        // Muted and with an input that fits, it cannot fail.
        self.uart = uart.map_err(|_| refused)?;
        Ok(())
    }
}

impl<W: Write> Aml for SerialPort<W> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let hid = Name::new("_HID".into(), &EISAName::new("PNP0501"));
        let uid = Name::new("_UID".into(), &ZERO);
        let ddn = Name::new("_DDN".into(), &"COM1");
        let io = IO::new(PORT_BASE, PORT_BASE, 1, PORT_LEN as u8);
        let irq = Interrupt::new(true, true, false, false, GSI);
        let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&io, &irq]));
        Device::new("COM1".into(), vec![&hid, &uid, &ddn, &crs]).to_aml_bytes(sink);
    }
}

/// An edge on an interrupt line.
#[derive(Clone)]
struct EdgeTrigger {
    line: Arc<dyn InterruptLine>,
    /// Set while a state is being restored.
    muted: Arc<AtomicBool>,
}

impl Trigger for EdgeTrigger {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        if self.muted.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.line.set_level(true)?;
        self.line.set_level(false)
    }
}

/// What vm-superio reports.
struct Events {
    drained: DrainedHandler,
    metrics: Arc<SerialMetrics>,
}

impl SerialEvents for Events {
    fn buffer_read(&self) {
        self.metrics.read_count.inc();
    }

    fn out_byte(&self) {
        self.metrics.write_count.inc();
    }

    fn tx_lost_byte(&self) {
        self.metrics.missed_write_count.inc();
    }

    fn in_buffer_empty(&self) {
        (self.drained)();
    }
}

/// The output. It is taken out while the UART around it is replaced, and there at any other time.
struct Output<W>(Option<W>);

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .as_mut()
            .map_or(Ok(bytes.len()), |output| output.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.as_mut().map_or(Ok(()), Write::flush)
    }
}

#[cfg(test)]
#[path = "serial_test.rs"]
mod tests;
