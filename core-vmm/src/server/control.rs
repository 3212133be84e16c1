//! What operators want of devices: passed on to the process that serves, and its answer back. Nothing of either is read here.
//!
//! An operator is answered once, however the process ends. What a request did that nobody has answered, the core cannot know; whoever
//! asked has to ask the next process.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use ipc::{
    message::{CONTROL_VERSION, MAX_CONTROL, MAX_CONTROL_FDS, ToVsp},
    operator::Reply,
    socket::SocketError,
};

use super::{Server, device::shorten, slot::OperatorId};

/// How long a process may take to answer. It may have to wait for a disk; a disk that needs longer is about to be given up by the
/// guest anyway.
pub(super) const CONTROL_GRACE: Duration = Duration::from_secs(30);
/// Requests under way. Each operator waits for one; more than there are operators come only from operators that have left.
const CONTROLS_MAX: usize = 64;

#[derive(Debug)]
struct Control {
    id: u64,
    device: usize,
    operator: OperatorId,
    by: Instant,
}

/// All that are under way.
#[derive(Debug, Default)]
pub(super) struct Controls {
    list: Vec<Control>,
    last: u64,
}

impl Controls {
    /// When the next one is too late.
    pub fn deadline(&self) -> Option<Instant> {
        self.list.iter().map(|control| control.by).min()
    }
}

impl Server {
    /// An operator wants something of the device called `name`.
    pub(super) fn begin_control(&mut self, id: OperatorId, name: String, payload: String, fds: &[OwnedFd]) {
        match self.pass_on(id, &name, payload, fds) {
            Ok(()) => self.operators.wait(id),
            Err(reason) => self.operators.answer(id, &Reply::Failed { device: name, reason }),
        }
    }

    fn pass_on(
        &mut self,
        operator: OperatorId,
        name: &str,
        payload: String,
        fds: &[OwnedFd],
    ) -> Result<(), String> {
        let device = self.device_named(name).ok_or("this VM has no such device")?;
        if payload.len() > MAX_CONTROL || fds.len() > MAX_CONTROL_FDS {
            return Err(format!(
                "it is too long: {MAX_CONTROL} bytes and {MAX_CONTROL_FDS} descriptors are the most"
            ));
        }
        let (_, process) = self.devices[device].slot.taker().ok_or("no process serves it just now")?;
        if process.version < CONTROL_VERSION {
            return Err("the build of its process is too old for that: swap it for a newer one".into());
        }
        if self.controls.list.len() >= CONTROLS_MAX {
            return Err("too much is asked of the devices at a time".into());
        }
        let id = self.controls.last + 1;
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        match process.peer.send(&ToVsp::Control { id, payload }, &fds) {
            Ok(()) => {}
            // Its end has not been read yet.
            Err(SocketError::Closed) => return Err("its process has just died".into()),
            Err(error) => return Err(format!("its process cannot be asked: {error}")),
        }
        self.controls.last = id;
        self.controls.list.push(Control { id, device, operator, by: Instant::now() + CONTROL_GRACE });
        Ok(())
    }

    /// The process that has the device answers. `None`: it was not asked, or says too much.
    pub(super) fn control_done(
        &mut self,
        device: usize,
        id: u64,
        result: Result<String, String>,
    ) -> Option<()> {
        if id > self.controls.last || result.as_ref().is_ok_and(|text| text.len() > MAX_CONTROL) {
            return None;
        }
        // Or it is late, and has been answered for.
        let found = self.controls.list.iter().position(|c| c.id == id && c.device == device);
        if let Some(place) = found {
            let operator = self.controls.list.swap_remove(place).operator;
            let (device, result) = (self.devices[device].name.clone(), result.map_err(|why| shorten(&why)));
            self.operators.answer(operator, &Reply::Control { device, result });
        }
        Some(())
    }

    /// The process that was asked has the device no more.
    pub(super) fn lose_controls(&mut self, device: usize) {
        self.fail_controls(|control| control.device == device, "its process went before it answered");
    }

    /// Who has not answered in time will not be waited for.
    pub(super) fn tick_controls(&mut self, now: Instant) {
        self.fail_controls(|control| control.by <= now, "its process does not answer");
    }

    fn fail_controls(&mut self, which: impl Fn(&Control) -> bool, reason: &str) {
        let lost: Vec<Control> = self.controls.list.extract_if(.., |control| which(control)).collect();
        for Control { device, operator, .. } in lost {
            let device = self.devices[device].name.clone();
            self.operators.answer(operator, &Reply::Failed { device, reason: reason.into() });
        }
    }
}
