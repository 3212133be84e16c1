//! What operators ask over the supervisor's socket, and what they are answered.

use std::time::{Duration, Instant};

use ipc::operator::Device as KnownDevice;

use super::Supervisor;
use super::control::Wish;
use super::machine::{Event, ProcessId, State, View};
use crate::device::check_binary;
use crate::device::protocol::{self, Reply, Request, Row};

impl Supervisor {
    /// Deals with what operators ask.
    pub(super) fn hear_operators(&mut self) {
        let now = Instant::now();
        for (client, request, fds) in self.control.requests(now) {
            match request {
                Request::List {} if self.operator.ask_for_devices() => {
                    self.control.wait_for(client, Wish::List, now);
                }
                Request::List {} => {
                    let rows = Reply::Devices(self.rows(&[]));
                    self.control.answer(client, &rows, now);
                }
                Request::Disks { device } => {
                    let reply = self.number(&device).map_or_else(|reply| reply, |device| self.disks(device));
                    self.control.answer(client, &reply, now);
                }
                Request::Change { device, change, payload } => match self.number(&device) {
                    Ok(device) => self.change_disks(client, device, change, payload, &fds, now),
                    Err(reply) => self.control.answer(client, &reply, now),
                },
                Request::Attach { address, name, spare } => self.attach(client, &address, name, spare, now),
                Request::Detach { device, force } => match self.number(&device) {
                    Ok(device) => self.detach(client, device, force, now),
                    Err(reply) => self.control.answer(client, &reply, now),
                },
                Request::Restart { device } => match self.number(&device) {
                    Ok(device) => {
                        let old = self.vm.devices().nth(device).and_then(|(_, view)| view.main);
                        self.control.wait_for(client, Wish::Restart { device, old }, now);
                        self.events.push_back(Event::Restart(device));
                    }
                    Err(reply) => self.control.answer(client, &reply, now),
                },
                Request::Swap { device, binary } => {
                    let checked = match self.number(&device) {
                        Ok(_) if self.is_swapping(&device) => Err(Reply::Failed {
                            reason: format!("{device}: a swap is under way already; wait for its end"),
                        }),
                        Ok(number) => match binary.as_deref().map(check_binary).transpose() {
                            Ok(binary) => Ok((number, binary)),
                            Err(error) => Err(Reply::Failed { reason: error.to_string() }),
                        },
                        Err(reply) => Err(reply),
                    };
                    match checked {
                        Ok((device, binary)) => {
                            self.slots[device].candidate = binary;
                            self.control.wait_for(client, Wish::Swap { device }, now);
                            self.events.push_back(Event::Swap(device));
                        }
                        Err(reply) => self.control.answer(client, &reply, now),
                    }
                }
            }
        }
    }

    fn number(&self, name: &str) -> Result<usize, Reply> {
        let there = || self.slots.iter().enumerate().filter(|(_, slot)| slot.is_there());
        let known = || there().map(|(_, slot)| slot.plan.name.clone()).collect();
        let found = there().find(|(_, slot)| slot.plan.name == name).map(|(number, _)| number);
        found.ok_or_else(|| Reply::NoSuchDevice { known: known() })
    }

    pub(super) fn is_swapping(&self, name: &str) -> bool {
        let number = self.slots.iter().rposition(|slot| slot.plan.name == name);
        number.is_some_and(|device| {
            let view = self.vm.devices().nth(device).map(|(_, view)| view);
            self.control.is_wished(Wish::Swap { device }) || view.is_some_and(|view| view.is_swapping)
        })
    }

    /// A swap has come to its end.
    pub(super) fn answer_swap(&mut self, device: usize, outcome: Result<String, String>) {
        let slot = &mut self.slots[device];
        slot.candidate = None;
        let name = &slot.plan.name;
        let reply = match outcome {
            Ok(what) => {
                tracing::info!(process = name, program = %slot.program.display(), "swapped: {what}");
                Reply::Done { what: format!("{name}: {what}") }
            }
            Err(why) => {
                tracing::warn!(process = name, "not swapped: {why}");
                Reply::Failed { reason: format!("{name} was not swapped: {why}") }
            }
        };
        self.control.answer_all(|wish| wish == Wish::Swap { device }, &reply);
    }

    /// A process serves the device: whoever wanted it to be another one has that now.
    pub(super) fn answer_restarts(
        &mut self,
        device: usize,
        process: ProcessId,
        pid: Option<u32>,
        pause: Option<Duration>,
    ) {
        let name = &self.slots[device].plan.name;
        let who = pid.map_or("a new process".to_owned(), |pid| format!("process {pid}"));
        let after =
            pause.map_or(String::new(), |pause| format!(" after {:.1} ms", pause.as_secs_f64() * 1e3));
        let reply = Reply::Done { what: format!("{name}: {who} serves it{after}") };
        let is_it =
            |wish| matches!(wish, Wish::Restart { device: d, old } if d == device && old != Some(process));
        self.control.answer_all(is_it, &reply);
    }

    /// The core has said what it knows.
    pub(super) fn answer_lists(&mut self, known: &[KnownDevice]) {
        if self.control.is_wished(Wish::List) {
            let rows = Reply::Devices(self.rows(known));
            self.control.answer_all(|wish| wish == Wish::List, &rows);
        }
    }

    /// Answers those who have waited for too long.
    pub(super) fn answer_late(&mut self) {
        let now = Instant::now();
        if self.control.deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        let rows = self.rows(&[]);
        self.control.tick(now, |wish| match wish {
            Wish::Nothing => None,
            Wish::List => Some(Reply::Devices(rows.clone())),
            Wish::Restart { device, .. } => {
                let name = &self.slots.get(device)?.plan.name;
                let row = rows.iter().find(|row| row.name == *name)?;
                let death =
                    row.last_death.as_ref().map_or(String::new(), |death| format!("; the last one {death}"));
                let reason =
                    format!("{}: no new process serves it yet (it is {}{death})", row.name, row.state);
                Some(Reply::Failed { reason })
            }
            Wish::Change { .. } => Some(Reply::Again { reason: "the core does not answer".to_owned() }),
            Wish::Attach { .. } => Some(Reply::Failed {
                reason: "nobody serves the device yet; see `bulkhead device ls`, and the log".to_owned(),
            }),
            Wish::Detach { device } => {
                let name = self.slots.get(device).map_or("the device", |slot| slot.plan.name.as_str());
                Some(Reply::Failed { reason: format!("{name}: it is not gone yet; see the log") })
            }
            Wish::Swap { device } => {
                let name = self.slots.get(device).map_or("the device", |slot| slot.plan.name.as_str());
                Some(Reply::Failed {
                    reason: format!("{name}: the swap takes too long; see `bulkhead device ls`"),
                })
            }
        });
    }

    /// Every device, with what the core knows of it.
    fn rows(&self, known: &[KnownDevice]) -> Vec<Row> {
        let now = Instant::now();
        let devices = self.vm.devices().zip(&self.slots);
        devices
            .filter(|(_, slot)| slot.is_there())
            .map(|((name, view), slot)| {
                let known = known.iter().find(|known| known.name == name).cloned().unwrap_or_default();
                let pid = |id: Option<ProcessId>| self.processes.get(&id?)?.member.pid();
                Row {
                    name: name.to_owned(),
                    state: state(&view),
                    pid: pid(view.main),
                    spare: pid(view.spare),
                    spare_ready: view.spare_ready,
                    restarts: view.restarts,
                    uptime_ms: view.since.map(|since| millis(now, since)),
                    last_death: view.last_death.map(|(death, _)| death.to_string()),
                    last_death_ms: view.last_death.map(|(_, at)| millis(now, at)),
                    program: slot.program.clone(),
                    build: super::notify::printable(&known.build),
                    channels: known.channels,
                    exposed_bytes: known.exposed_bytes,
                    takeovers: known.takeovers,
                    disks: None,
                }
            })
            .collect()
    }
}

fn millis(now: Instant, then: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(then).as_millis()).unwrap_or(u64::MAX)
}

fn state(view: &View<'_>) -> protocol::State {
    match view.state {
        State::Starting => protocol::State::Starting,
        State::Serving => protocol::State::Serving,
        State::Hung => protocol::State::Hung,
        State::BackingOff => protocol::State::BackingOff,
        State::Failed => protocol::State::Failed,
    }
}
