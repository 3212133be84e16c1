//! The guest: frames from its TAP go out by the NIC, what comes by the NIC goes to its TAP. It copies what a driver copies: a
//! frame into a section of the send buffer if it fits there, and out of the receive buffer. One that does not fit is sent by its pages.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile,
};
use vsc::Platform;
use vsc::net::{
    Delivery, Event, FramePages, Net, NetOptions, NetQueue, Offload, Room, RxFrame, Section, TxInfo,
};

use vsp_net::oid::MAX_LSO;

use super::{LOOK, VNET, offload};
use crate::guest::{Interrupts, SoftPlatform};
use crate::net::{Backend, Memory, Nic};
use crate::steps::Guest;
use crate::vm::{Vm, VmBuilder};

/// Frames from one side before the other one has its turn.
const TURN: usize = 64;
/// The guest's processor sleeps at once: one that looked out for an interrupt would take the time of those who are measured.
const INTERRUPTS: Interrupts = Interrupts::Direct(Duration::ZERO);
/// Name of the NIC.
pub const DEVICE: &str = "net0";

/// A guest with a NIC on the host's TAP.
pub struct Relay {
    net: Net<SoftPlatform>,
    platform: Arc<SoftPlatform>,
    /// The guest's stack.
    tap: File,
    tap_fd: Arc<OwnedFd>,
    mtu: usize,
    /// A frame that no section is large enough for, and has still to be sent.
    long: Option<(FramePages, u32, TxInfo)>,
    /// A section with frames for which there was no room in the ring.
    packed: Option<Section>,
    // In this order: the connection ends before the machine.
    guest: Guest,
    /// The machine.
    pub vm: Vm,
}

impl Relay {
    /// Starts everything: `host` is the TAP of the NIC's process, `guest` that of the guest's stack.
    pub fn start(
        host: Arc<OwnedFd>,
        guest: &Arc<OwnedFd>,
        mac: [u8; 6],
        memory: Memory,
        mtu: u32,
    ) -> anyhow::Result<Self> {
        let nic = Nic { mac, memory, mtu, ..Nic::new(Backend::Taps(vec![host])) };
        Self::over(Vm::builder().interrupts(INTERRUPTS).net(DEVICE, &nic), guest, mtu)
    }

    /// The same with a machine of the caller's, whose first device is the NIC and whose interrupts are direct.
    pub fn over(machine: VmBuilder, guest: &Arc<OwnedFd>, mtu: u32) -> anyhow::Result<Self> {
        let vm = machine.start()?;
        let mut connection = Guest::connect(&vm)?;
        let offer = connection.offer(0)?;
        let options = NetOptions { strict: false, depth: 512, mtu, ..NetOptions::default() };
        let net = Net::open(&mut connection.client, &offer, &options)?;
        let tap = File::from(guest.try_clone()?);
        let platform = vm.platform().clone();
        let (tap_fd, mtu) = (Arc::clone(guest), mtu as usize);
        Ok(Self { net, platform, tap, tap_fd, mtu, long: None, packed: None, guest: connection, vm })
    }

    /// The guest goes in order; the machine.
    pub fn end(mut self) -> anyhow::Result<Vm> {
        self.net.close(&mut self.guest.client, Vec::new())?;
        self.guest.client.unload()?;
        Ok(self.vm)
    }

    /// The queue.
    pub fn queue(&mut self) -> &mut NetQueue<SoftPlatform> {
        self.net.queue()
    }

    /// Passes frames on until it is stopped.
    pub fn forward(&mut self, stop: &AtomicBool) -> anyhow::Result<()> {
        while !stop.load(Ordering::Relaxed) {
            let came = self.take()?;
            let (went, room) = self.send_some()?;
            if came || went {
                continue;
            }
            if !self.net.queue().arm()? {
                let taps = [self.tap_fd.as_fd()];
                self.platform.wait_besides(0, if room { &taps } else { &[] }, LOOK);
            }
            self.net.queue().disarm();
        }
        self.settle()
    }

    /// Sends the same frame again and again, as many in a message as the device takes, until it is stopped.
    pub fn flood(&mut self, frame: &[u8], stop: &AtomicBool) -> anyhow::Result<()> {
        while !stop.load(Ordering::Relaxed) {
            let mut went = false;
            for _ in 0..TURN {
                let Some(mut section) = self.net.queue().take_section() else { break };
                while self.net.queue().add(&mut section, frame, &TxInfo::default()) {}
                if !self.ship(section)? {
                    break;
                }
                went = true;
            }
            self.net.queue().flush()?;
            if !self.take()? && !went {
                self.pause()?;
            }
        }
        self.settle()
    }

    /// Counts what comes until it is stopped.
    pub fn count(&mut self, counter: &AtomicU64, stop: &AtomicBool) -> anyhow::Result<()> {
        while !stop.load(Ordering::Relaxed) {
            let mut any = false;
            for _ in 0..TURN {
                match self.net.queue().poll()? {
                    Some(Event::Delivery(delivery)) => {
                        counter.fetch_add(delivery.frames.len() as u64, Ordering::Relaxed);
                        self.net.queue().give_back(delivery)?;
                    }
                    Some(_) => {}
                    None => break,
                }
                any = true;
            }
            if !any {
                self.pause()?;
            }
        }
        self.settle()
    }

    fn pause(&mut self) -> anyhow::Result<()> {
        if !self.net.queue().arm()? {
            self.platform.wait_besides(0, &[], LOOK);
        }
        self.net.queue().disarm();
        Ok(())
    }

    /// Waits until nothing is under way.
    fn settle(&mut self) -> anyhow::Result<()> {
        // TCP sends these again.
        if let Some((pages, ..)) = self.long.take() {
            self.net.queue().drop_pages(pages);
        }
        if let Some(section) = self.packed.take() {
            self.net.queue().drop_section(section);
        }
        self.net.queue().flush()?;
        while self.net.queue().in_flight() > 0 {
            let event = self.net.queue().wait(crate::steps::LIMIT)?;
            if let Event::Delivery(delivery) = event.context("sends are not completed")? {
                self.net.queue().give_back(delivery)?;
            }
        }
        self.net.queue().disarm();
        Ok(())
    }

    /// Takes what has come; whether anything had.
    fn take(&mut self) -> anyhow::Result<bool> {
        for n in 0..TURN {
            match self.net.queue().poll()? {
                None => return Ok(n > 0),
                Some(Event::Delivery(delivery)) => self.deliver(delivery)?,
                Some(Event::Sent(sent)) if sent.status != vsc::net::wire::STATUS_SUCCESS => {
                    bail!("a frame is refused: {sent:?}")
                }
                Some(_) => {}
            }
        }
        Ok(true)
    }

    fn deliver(&mut self, delivery: Delivery) -> anyhow::Result<()> {
        for frame in &delivery.frames {
            self.up(frame)?;
        }
        Ok(self.net.queue().give_back(delivery)?)
    }

    /// A frame that came goes to the stack. What is before it in its block is the guest's too until it goes back.
    fn up(&mut self, frame: &RxFrame) -> anyhow::Result<()> {
        let mut head = [0; 64];
        let head = &mut head[..64.min(frame.len as usize)];
        self.platform.read(frame.address, head);
        let at = frame.address - VNET as u64;
        self.platform.write(at, &offload::to_stack(frame, head, self.mtu));
        let ram = self.platform.ram().map_ref();
        let slice = ram.get_slice(GuestAddress(at), frame.len as usize + VNET)?;
        // What the stack does not want is not our concern.
        let _ = self.tap.write_volatile(&slice);
        Ok(())
    }

    /// Frames of the stack go out: whether any did, and whether there is room for more.
    fn send_some(&mut self) -> anyhow::Result<(bool, bool)> {
        let mut any = false;
        for _ in 0..TURN {
            if let Some(section) = self.packed.take()
                && !self.pack_off(section)?
            {
                return Ok((any, false));
            }
            if let Some((pages, len, info)) = self.long.take() {
                if let Err(pages) = self.net.queue().send_frame(pages, len, &info)? {
                    self.long = Some((pages, len, info));
                    return Ok((any, false));
                }
                self.net.queue().flush()?;
                any = true;
            }
            let Some(mut section) = self.net.queue().take_section() else { return Ok((any, false)) };
            let more = self.fill(&mut section)?;
            if section.frames == 0 {
                self.net.queue().drop_section(section);
            } else if !self.pack_off(section)? {
                return Ok((any, false));
            } else {
                any = true;
            }
            if !more {
                return Ok((any, true));
            }
        }
        Ok((any, true))
    }

    /// Sends a section, or keeps it until there is room.
    fn pack_off(&mut self, section: Section) -> anyhow::Result<bool> {
        if self.net.queue().push_section(section)? == Room::None {
            self.packed = Some(section);
            return Ok(false);
        }
        self.net.queue().flush()?;
        Ok(true)
    }

    fn ship(&mut self, section: Section) -> anyhow::Result<bool> {
        let sent = self.net.queue().push_section(section)? != Room::None;
        if !sent {
            self.net.queue().drop_section(section);
        }
        Ok(sent)
    }

    /// Puts frames of the stack into a section; false if the stack has no more.
    fn fill(&mut self, section: &mut Section) -> anyhow::Result<bool> {
        if section.size < MAX_LSO {
            return self.sort(section);
        }
        while let Some((address, room)) = self.net.queue().room_in(section) {
            // The stack may have a frame of any size, and one that does not fit would be cut off.
            if (room as usize) < if section.frames == 0 { self.mtu } else { super::LONGEST } {
                return Ok(true);
            }
            let Some((len, info)) = self.next_frame(address, room)? else { return Ok(false) };
            if !self.net.queue().enclose(section, len, &info) {
                bail!("a frame of {len} bytes does not fit where there was room for {room}");
            }
        }
        Ok(true)
    }

    /// The same with sections that do not take every frame: each is first in pages, as a driver gets it, and the first that does not fit stays there.
    fn sort(&mut self, section: &mut Section) -> anyhow::Result<bool> {
        while self.net.queue().room_in(section).is_some() {
            let pages = self.net.queue().take_pages()?;
            let Some((len, info)) = self.next_frame(pages.address, pages.room)? else {
                self.net.queue().drop_pages(pages);
                return Ok(false);
            };
            let place = self.net.queue().add_header(section, len, &info);
            let Some(place) = place else {
                self.long = Some((pages, len, info));
                return Ok(true);
            };
            let ram = self.platform.ram().map_ref();
            let from = ram.get_slice(GuestAddress(pages.address), len as usize)?;
            from.copy_to_volatile_slice(ram.get_slice(GuestAddress(place), len as usize)?);
            self.net.queue().drop_pages(pages);
        }
        Ok(true)
    }

    /// The stack's next frame, at an address with that much room: its length, and what to say about it.
    fn next_frame(&mut self, address: u64, room: u32) -> anyhow::Result<Option<(u32, TxInfo)>> {
        let at = address - VNET as u64;
        let ram = self.platform.ram().map_ref();
        let mut slice = ram.get_slice(GuestAddress(at), room as usize + VNET)?;
        let len = match read(&mut self.tap, &mut slice)? {
            Some(len) if len > VNET => len - VNET,
            _ => return Ok(None),
        };
        ensure!(len < room as usize, "the stack has sent more than it was told to send at once");
        let mut vnet = [0; VNET];
        self.platform.read(at, &mut vnet);
        let info = offload::to_send(&vnet);
        if matches!(info.offload, Offload::Segment { .. }) {
            let mut head = [0; 96];
            let head = &mut head[..96.min(len)];
            self.platform.read(address, head);
            offload::strip_lengths(head);
            self.platform.write(address, head);
        }
        Ok(Some((len as u32, info)))
    }
}

fn read(tap: &mut File, slice: &mut VolatileSlice<'_>) -> anyhow::Result<Option<usize>> {
    match tap.read_volatile(slice) {
        Ok(len) => Ok(Some(len)),
        Err(VolatileMemoryError::IOError(error))
            if error.raw_os_error() == Some(Errno::EAGAIN as i32)
                || error.raw_os_error() == Some(Errno::EINTR as i32) =>
        {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}
