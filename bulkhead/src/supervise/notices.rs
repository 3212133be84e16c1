//! What people are told, after everything has been done: the log, the operator at the terminal, operators that wait.

use std::time::Duration;

use super::Supervisor;
use super::fate::{Death, Seconds};
use super::machine::policy::WORTH_TELLING;
use super::machine::{Next, Notice, ProcessId};

impl Supervisor {
    /// Tells everything that is to be told.
    pub(super) fn publish(&mut self) {
        for notice in std::mem::take(&mut self.notices) {
            match notice {
                Notice::Died { device, spare, death, next, .. } => self.died(device, spare, &death, next),
                Notice::BacksOff { device, pause, in_a_row } => self.backs_off(device, pause, in_a_row),
                Notice::Serves { device, process, pause } => self.serves(device, process, pause),
                Notice::StandsBy { process, .. } => {
                    if let Some(process) = self.processes.get(&process) {
                        tracing::debug!(
                            process = process.member.name,
                            pid = process.member.pid(),
                            "stands by"
                        );
                    }
                }
            }
        }
        // Whoever has ended has been told of by now.
        self.processes.retain(|_, process| process.member.pid().is_some());
    }

    fn died(&self, device: usize, spare: bool, death: &Death, next: Next) {
        let name = &self.slots[device].plan.name;
        let role = if spare { "spare" } else { "serving" };
        let next = match next {
            Next::AtOnce => "a new one starts".to_owned(),
            Next::In(pause) => format!("a new one starts in {}", Seconds(pause)),
            Next::Spare => "its spare takes over".to_owned(),
            Next::Nobody => "the VM ends".to_owned(),
        };
        match death {
            Death::Exited(0) | Death::Restarted | Death::Recabled | Death::EndedWithVm => {
                tracing::info!(process = name, role, next, "{death}")
            }
            _ => tracing::warn!(process = name, role, next, "{death}"),
        }
    }

    fn backs_off(&mut self, device: usize, pause: Duration, in_a_row: u32) {
        let slot = &self.slots[device];
        tracing::error!(
            process = slot.plan.name,
            in_a_row,
            pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            "its processes keep dying before they can serve; the VM runs on and this device's I/O waits"
        );
        if pause >= WORTH_TELLING && !slot.in_trouble {
            let what = format!(
                "device {} does not come back: {in_a_row} processes have died one after the other. The VM runs on, and \
                 this device's I/O waits; `bulkhead device ls {}` tells more. Trying on, every {} at most",
                slot.plan.name,
                self.name,
                Seconds(super::machine::policy::LONGEST_DELAY)
            );
            self.slots[device].in_trouble = true;
            self.tell_terminal(&what);
        }
    }

    fn serves(&mut self, device: usize, process: ProcessId, pause: Option<Duration>) {
        let pid = self.processes.get(&process).and_then(|process| process.member.pid());
        let slot = &mut self.slots[device];
        let was_in_trouble = std::mem::take(&mut slot.in_trouble);
        let name = slot.plan.name.clone();
        let pause_us = pause.map(|pause| u64::try_from(pause.as_micros()).unwrap_or(u64::MAX));
        tracing::info!(process = name, pid, pause_us, "serves");
        if was_in_trouble {
            self.tell_terminal(&format!("device {name} serves again"));
        }
        self.answer_attached(device, pid);
        self.answer_restarts(device, process, pid, pause);
    }

    /// A line to the operator at the terminal, if there is one; others read the log.
    fn tell_terminal(&self, what: &str) {
        if self.terminal.is_some() {
            self.tell(what);
        }
    }
}
