//! The few devices of a PC that a kernel cannot boot without: serial console, clock, power. No device that
//! a guest could be served by a process of its own belongs here.

pub mod console;
mod rtc;

use std::sync::Mutex;

use console::Console;

use crate::layout;

/// How a guest's run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The guest switched itself off (S5).
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest faulted three times over, which resets a PC.
    TripleFault,
    /// The guest reported a crash (TLFS, "Partition crash enlightenment"): P0 to P4.
    Crashed([u64; 5]),
    /// We or KVM failed.
    Failed(String),
}

/// All of them, shared by the VPs.
#[derive(Debug)]
pub struct Platform {
    console: Console,
    rtc: Mutex<rtc::Rtc>,
}

/// `SLP_EN` and the position of `SLP_TYP` in the sleep control register (ACPI 6.5, 4.8.3.7).
const SLP_EN: u8 = 1 << 5;
const SLP_TYP_SHIFT: u8 = 2;

impl Platform {
    /// All of them, with this console.
    pub fn new(console: Console) -> Self {
        Self { console, rtc: Mutex::default() }
    }

    /// The console.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// A guest's `out`. String instructions arrive as several bytes for one port.
    pub fn write(&self, port: u16, data: &[u8]) -> Option<Outcome> {
        const SERIAL_END: u16 = layout::SERIAL_PORT + 7;
        match (port, data) {
            (layout::SERIAL_PORT..=SERIAL_END, _) => {
                self.console.write((port - layout::SERIAL_PORT) as u8, data);
            }
            (layout::RTC_PORT, [index]) => self.rtc().select(*index),
            (layout::SLEEP_CONTROL_PORT, [value])
                if *value == SLP_EN | layout::S5_SLEEP_TYPE << SLP_TYP_SHIFT =>
            {
                return Some(Outcome::PowerOff);
            }
            (layout::RESET_PORT, [layout::RESET_VALUE]) => return Some(Outcome::Reset),
            _ => {}
        }
        None
    }

    /// A guest's `in`; ports where nothing answers read as ones.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        const SERIAL_END: u16 = layout::SERIAL_PORT + 7;
        const RTC_DATA: u16 = layout::RTC_PORT + 1;
        const SLEEP_STATUS: u16 = layout::SLEEP_CONTROL_PORT + 1;
        match port {
            layout::SERIAL_PORT..=SERIAL_END => {
                self.console.read((port - layout::SERIAL_PORT) as u8, data);
            }
            RTC_DATA => data.fill(self.rtc().read()),
            SLEEP_STATUS => data.fill(0),
            _ => data.fill(0xff),
        }
    }

    fn rtc(&self) -> std::sync::MutexGuard<'_, rtc::Rtc> {
        // A VP that panicked aborts the process, so a poisoned lock means nothing more than that.
        self.rtc.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
