//! A device in the test's own process, whose turns are taken by hand.

use std::time::{Duration, Instant};

use ipc::message::{STATUS_OK, ToCore, ToVsp};
use ipc::socket::Peer;
use vmbus::packet::PacketHeader;

use super::{FakeCore, GuestEnd, PATIENCE};
use crate::device::Device;
use crate::notify::Notifier;
use crate::runtime::{Flow, Runtime, Setting};

/// A device in the test's own process, without compartment: turns are taken by hand.
pub struct Bench<D> {
    /// The core's end.
    pub core: FakeCore,
    /// The device in its runtime.
    pub runtime: Runtime<D>,
}

impl<D: Device> Bench<D> {
    /// Attaches `device` to a core for a VM with `ram` bytes of RAM and one VP.
    pub fn new(device: D, ram: u64) -> Bench<D> {
        let (core, vsp) = FakeCore::new(ram);
        Bench::attach(core, vsp, device, false)
    }

    /// The same with several VPs.
    pub fn with_vps(device: D, ram: u64, vps: u32) -> Bench<D> {
        let (core, vsp) = FakeCore::new(ram);
        Bench::attach(FakeCore { vps, ..core }, vsp, device, false)
    }

    /// Another process takes over what the core has; all channels are open then.
    pub fn take_over(mut core: FakeCore, device: D) -> Bench<D> {
        let (_, vsp) = core.successor();
        let mut bench = Bench::attach(core, vsp, device, true);
        bench.reopen_all();
        bench
    }

    /// Attaches `device` to a core that was made before.
    pub fn with_core(core: FakeCore, vsp: Peer, device: D) -> Bench<D> {
        Bench::attach(core, vsp, device, false)
    }

    fn attach(core: FakeCore, vsp: Peer, device: D, predecessor: bool) -> Bench<D> {
        let mut bench = Bench::greeted(core, vsp, device);
        bench.serve(predecessor);
        bench
    }

    /// Attaches `device` to such a core, which has not told it to serve yet.
    pub fn greeted(core: FakeCore, vsp: Peer, device: D) -> Bench<D> {
        let setting = Setting { name: "test".into(), ledger: true, notifier: Notifier::silent() };
        let mut runtime = Runtime::new(device, setting).expect("a runtime");
        runtime.greet(vsp).expect("attached");
        core.greet(false);
        Bench { core, runtime }
    }

    /// Has the device serve, and takes turns until it does.
    pub fn serve(&mut self, predecessor: bool) {
        self.core.send(&ToVsp::Serve { predecessor });
        assert_eq!(self.answer(), ToCore::Serving {});
    }

    /// Has the device hand over, and takes turns until it has.
    pub fn quiesce(&mut self) {
        self.core.send(&ToVsp::Quiesce {});
        assert_eq!(self.answer(), ToCore::Quiesced {});
    }

    /// Has the device take up all channels that were open, after another process or itself.
    pub fn reopen_all(&mut self) {
        for channel in self.core.open_channels() {
            self.core.reopen(channel);
            let opened = ToCore::OpenResult { channel, status: STATUS_OK, reason: None };
            assert_eq!(self.answer(), opened);
        }
    }

    /// The process dies between two turns: nothing of it is dropped, nothing is cleaned up.
    pub fn kill(self) -> FakeCore {
        std::mem::forget(self.runtime);
        self.core
    }

    /// The next message of the device, taking turns until it comes.
    pub fn answer(&mut self) -> ToCore {
        let start = Instant::now();
        loop {
            if let Some(message) = self.core.try_answer() {
                return message;
            }
            assert!(start.elapsed() < PATIENCE, "no answer came");
            self.turn(1);
        }
    }

    /// Opens a channel with `data_pages` data pages each way.
    pub fn open(&mut self, channel: u32, data_pages: u32) -> GuestEnd {
        self.open_subchannel(channel, 0, data_pages)
    }

    /// The same for a sub-channel.
    pub fn open_subchannel(&mut self, channel: u32, subchannel: u16, data_pages: u32) -> GuestEnd {
        let end = self.core.open_subchannel(channel, subchannel, data_pages);
        let opened = ToCore::OpenResult { channel, status: STATUS_OK, reason: None };
        assert_eq!(self.answer(), opened);
        self.settle();
        end
    }

    /// Closes a channel and waits until it is.
    pub fn close(&mut self, channel: u32) {
        self.core.close(channel);
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < PATIENCE, "channel {channel} did not close");
            self.turn(1);
            match self.core.try_answer() {
                Some(ToCore::Closed { channel: closed }) if closed == channel => return,
                Some(other) => panic!("{other:?}"),
                None => {}
            }
        }
    }

    /// One turn that waits at most `milliseconds` for something to do.
    pub fn turn(&mut self, milliseconds: u64) {
        let flow = self.runtime.turn(Some(Duration::from_millis(milliseconds))).expect("a turn");
        assert_eq!(flow, Flow::Continue);
        self.core.attend();
    }

    /// Some turns without waiting: enough for whatever can happen at once.
    pub fn settle(&mut self) {
        (0..4).for_each(|_| self.turn(0));
    }

    /// Takes turns until the device has answered; the packet and its payload.
    pub fn wait(&mut self, guest: &mut GuestEnd) -> (PacketHeader, Vec<u8>) {
        let start = Instant::now();
        loop {
            if let Some(packet) = guest.poll() {
                return packet;
            }
            assert!(start.elapsed() < PATIENCE, "no answer came");
            self.turn(1);
        }
    }
}
