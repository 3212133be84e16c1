//! Carries out what a device's [slot](super::slot) decides: who is told to serve, to hand over, to end.

use std::time::Instant;

use ipc::{message::ToVsp, operator::Reply, socket::SocketError};

use super::{
    Server,
    device::{Device, Process},
    slot::{Act, Acts, Leave, OperatorId, Order, Role},
};
use crate::partition::Partition;

impl Server {
    /// The process at `role` of a device serves no more.
    pub(super) fn leave<P: Partition>(&mut self, partition: &P, device: usize, role: Role, how: Leave) {
        let acts = self.devices[device].slot.leave(role, how, Instant::now());
        self.perform(partition, device, acts);
        self.forget_if_gone(device);
    }

    pub(super) fn perform<P: Partition>(&mut self, partition: &P, device: usize, acts: Acts<Process>) {
        for act in acts {
            match act {
                Act::Serve { role, predecessor } => {
                    // Who cannot be told is cut off, and another one stands in its place, which must hear nothing of this.
                    let is_told = self.give_kept(partition, device, role)
                        && self.order(partition, device, role, &ToVsp::Serve { predecessor });
                    if is_told {
                        self.give_early(partition, device, role);
                    }
                }
                Act::Quiesce => {
                    self.order(partition, device, Role::Old, &ToVsp::Quiesce {});
                }
                Act::Retire(process) => {
                    tracing::info!(device = %self.devices[device].name, "the old process has handed over");
                    // If it does not listen, it reads the end.
                    let _ = process.peer.send(&ToVsp::Retire {}, &[]);
                }
                Act::Dismiss(process, how) => self.dismiss(device, process, &how),
                Act::Discard(process, how) => {
                    say_end(&process, &how);
                    tracing::error!(device = %self.devices[device].name, ?how, "the old process is cut off; it has handed over");
                }
                Act::Release => {
                    self.release(partition, device);
                    self.lose_controls(device);
                }
                Act::Open => {
                    self.give_all(partition, device);
                    tracing::info!(device = %self.devices[device].name, "serves");
                }
                Act::Swapped(Order { operator, since, .. }) => {
                    let pause_us = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
                    let name = self.devices[device].name.clone();
                    self.operators.answer(operator, &Reply::Swapped { device: name, pause_us });
                }
                Act::Failed(operator, reason) => self.swap_failed(operator, device, reason),
                Act::Strays => {
                    self.report(
                        device,
                        "it broke its word while it handed over; the new one is lost".into(),
                        true,
                    );
                }
                Act::Lingers => self.linger(device),
            }
        }
    }

    fn swap_failed(&mut self, operator: OperatorId, device: usize, reason: String) {
        let name = self.devices[device].name.clone();
        tracing::warn!(device = %name, %reason, "hand-over failed");
        self.operators.answer(operator, &Reply::Failed { device: name, reason });
    }

    /// Tells a process what those before it have had kept. False: it is cut off.
    fn give_kept<P: Partition>(&mut self, partition: &P, device: usize, role: Role) -> bool {
        let Device { slot, kept, .. } = &self.devices[device];
        let Some(process) = slot.get(role) else { return false };
        let sent = kept.give(process);
        self.is_told(partition, (device, role), "what is kept for it", sent)
    }

    /// Tells a process what to do. False: it is cut off.
    fn order<P: Partition>(&mut self, partition: &P, device: usize, role: Role, message: &ToVsp) -> bool {
        let Some(process) = self.devices[device].slot.get(role) else { return false };
        let sent = process.peer.send(message, &[]);
        self.is_told(partition, (device, role), "what to do", sent)
    }

    /// A process that cannot be told, because it lets its socket fill up, is of no use.
    fn is_told<P: Partition>(
        &mut self,
        partition: &P,
        (device, role): (usize, Role),
        what: &str,
        sent: Result<(), SocketError>,
    ) -> bool {
        match sent {
            // If it has gone, its end will be read.
            Ok(()) | Err(SocketError::Closed) => true,
            Err(error) => {
                let reason = format!("it cannot be told {what}: {error}");
                self.leave(partition, device, role, Leave::CutOff(reason));
                false
            }
        }
    }

    /// A process is told to end. What it sends from now on is not heard.
    fn dismiss(&mut self, device: usize, process: Option<Process>, how: &Leave) {
        let slot = &self.devices[device].slot;
        let had_channels = process.is_none() && slot.has_ghost_served();
        if let Some(process) = process.as_ref().or(slot.get(Role::Ghost)) {
            say_end(process, how);
        }
        if let Leave::CutOff(reason) = how {
            self.report(device, reason.clone(), had_channels);
        }
    }

    /// Tells those who can end processes that one should be ended.
    fn report(&mut self, device: usize, reason: String, had_channels: bool) {
        let name = self.devices[device].name.clone();
        tracing::error!(device = %name, %reason, had_channels, "a process is cut off");
        self.operators.tell_all(&Reply::CutOff { device: name, reason, had_channels });
    }

    /// The same again, about one that had channels and does not end.
    fn linger(&mut self, device: usize) {
        let Device { name, lingers, .. } = &self.devices[device];
        let name = name.clone();
        if let Some(times) = lingers.another() {
            tracing::error!(device = %name, times, "a process that was dismissed does not end");
        }
        let reason = "it was dismissed and does not end".into();
        self.operators.tell_all(&Reply::CutOff { device: name, reason, had_channels: true });
    }

    /// A device without a process that no guest knows of is as if it had never attached.
    pub(super) fn forget_if_gone(&mut self, device: usize) {
        let device = &mut self.devices[device];
        if let (true, Some(offered)) = (device.slot.is_empty(), &device.offered)
            && self.bus.withdraw(offered.relid)
        {
            device.offered = None;
        }
    }

    /// What operators wait for may be due, or too late.
    pub(super) fn tick_slots<P: Partition>(&mut self, partition: &P, now: Instant) {
        for device in 0..self.devices.len() {
            let acts = self.devices[device].slot.tick(now);
            if !acts.is_empty() {
                self.perform(partition, device, acts);
                self.forget_if_gone(device);
            }
        }
    }
}

/// A process reads why, and the end. Should this fail, it has gone.
fn say_end(process: &Process, how: &Leave) {
    if let Leave::Refused(reason) = how {
        let _ = process.peer.send(&ToVsp::Refused { reason: reason.clone() }, &[]);
    }
    let _ = process.peer.finish();
}
