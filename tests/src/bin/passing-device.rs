//! A device for tests of what passes a host device through: see [`bulkhead_tests::passer`]. Started by tests only.

#![forbid(unsafe_code)]

use std::{
    collections::VecDeque,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    process::ExitCode,
    sync::Arc,
};

use bulkhead_tests::passer::{BELLS, BYTES, Wish, register};
use clap::Parser;
use vsp::{
    Access, ChannelId, Channels, Device, Offer, OpenRequest, Packet, Program, Refused, Request, SharedMemory,
    ipc::{event::Doorbell, shm::Mapping},
    vmbus::guid::class,
};

const PROGRAM: Program = Program { name: "passing-device", policy: vsp::policies::VSP_ECHO };
/// Under which the core keeps things.
const MEMORY: u32 = 0;
const RINGERS: u32 = 1;

#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    common: vsp::Common,
}

fn main() -> ExitCode {
    let args = Args::parse();
    vsp::serve(PROGRAM, &args.common, || {
        let (memory, mapping) = map(SharedMemory::create("passing-device", BYTES)?)?;
        let bells =
            (0..BELLS).map(|_| Ok(Arc::new(OwnedFd::from(Doorbell::new()?)))).collect::<Result<_, _>>();
        let bells = bells.map_err(|source: std::io::Error| anyhow::Error::from(source))?;
        Ok::<_, anyhow::Error>(Passing {
            memory,
            mapping,
            bells,
            lives: 1,
            lost: 0,
            waiting: VecDeque::new(),
        })
    })
}

/// The host's device, for others and for us.
fn map(memory: SharedMemory) -> anyhow::Result<(Arc<OwnedFd>, Mapping)> {
    let mapping = Mapping::new(&memory, 0, BYTES)?;
    Ok((Arc::new(memory.into()), mapping))
}

#[derive(Debug)]
struct Passing {
    /// The host's device.
    memory: Arc<OwnedFd>,
    mapping: Mapping,
    bells: Vec<Arc<OwnedFd>>,
    /// Which process this is.
    lives: u64,
    lost: u64,
    /// What the core has been asked for, in order.
    waiting: VecDeque<Request>,
}

impl Passing {
    fn answer(&mut self, is_granted: bool, channels: &mut Channels) {
        if let Some(request) = self.waiting.pop_front() {
            request.complete(channels, &u64::from(is_granted).to_le_bytes());
        }
    }
}

impl Device for Passing {
    fn offer(&self) -> Offer {
        Offer { class: class::ECHO.to_string(), mmio_megabytes: 1, ..Offer::default() }
    }

    fn descriptors(&self) -> Vec<RawFd> {
        self.bells.iter().chain([&self.memory]).map(|fd| fd.as_fd().as_raw_fd()).collect()
    }

    fn kept(&mut self, key: u32, note: String, fds: Vec<OwnedFd>) {
        let mut fds = fds.into_iter();
        match key {
            MEMORY => {
                let found = fds.next().and_then(|fd| map(SharedMemory::from_fd(fd, BYTES).ok()?).ok());
                (self.memory, self.mapping) = found.expect("what the one before has kept");
            }
            _ => {
                self.bells = fds.map(Arc::new).collect();
                self.lives = note.parse().unwrap_or(0) + 1;
            }
        }
    }

    fn adopted(&mut self, channels: &mut Channels) {
        channels.keep(MEMORY, "memory", &[Arc::clone(&self.memory)]);
        channels.keep(RINGERS, &self.lives.to_string(), &self.bells);
    }

    fn open(&mut self, _: ChannelId, request: &OpenRequest) -> Result<(), Refused> {
        if request.subchannel == 0 { Ok(()) } else { Err(Refused::default()) }
    }

    fn packet(&mut self, packet: Packet<'_>, request: Request, channels: &mut Channels) {
        let bell = |id: u64| self.bells.get(usize::try_from(id).unwrap_or(BELLS));
        let mut value = 1u64;
        match Wish::parse(packet.header.payload(packet.bytes)) {
            None => value = 0,
            Some(Wish::Lives) => value = self.lives,
            Some(Wish::Lost) => value = self.lost,
            Some(Wish::Trap { gpa, bytes }) => {
                channels.trap(gpa, bytes);
                return self.waiting.push_back(request);
            }
            Some(Wish::Untrap { gpa }) => channels.untrap(gpa),
            Some(Wish::Region { gpa, bytes, offset }) => {
                channels.map_region(gpa, bytes, &self.memory, offset);
                return self.waiting.push_back(request);
            }
            Some(Wish::Unmap { gpa }) => channels.unmap_memory(gpa),
            Some(Wish::Interrupt { id, vector, vp }) => match bell(id) {
                Some(bell) => {
                    channels.interrupt(id as u32, vector as u8, vp as u32, bell);
                    return self.waiting.push_back(request);
                }
                None => value = 0,
            },
            Some(Wish::Delete { id }) => channels.delete_interrupt(id as u32),
            Some(Wish::Ring { id }) => {
                let rung = bell(id).is_some_and(|bell| nix::unistd::write(bell, &1u64.to_ne_bytes()).is_ok());
                value = u64::from(rung);
            }
        }
        request.complete(channels, &value.to_le_bytes());
    }

    fn memory_mapped(&mut self, _: u64, result: Result<(), String>, channels: &mut Channels) {
        self.answer(result.is_ok(), channels);
    }

    fn trapped(&mut self, _: u64, result: Result<(), String>, channels: &mut Channels) {
        self.answer(result.is_ok(), channels);
    }

    fn interrupt_ready(&mut self, _: u32, result: Result<(), String>, channels: &mut Channels) {
        self.answer(result.is_ok(), channels);
    }

    fn region_lost(&mut self, _: u64, _: &mut Channels) {
        self.lost += 1;
    }

    fn access(&mut self, access: Access, channels: &mut Channels) {
        let Access { id, gpa, bytes, write } = access;
        let place = gpa & 0xfff;
        let value = match (place, write) {
            (register::KEEPS, Some(value)) => {
                self.mapping.write(0, &value.to_le_bytes());
                0
            }
            (register::KEEPS, None) => {
                let mut value = [0; 8];
                self.mapping.read(0, &mut value);
                u64::from_le_bytes(value)
            }
            (register::KILLS, _) if self.lives == 1 => std::process::exit(9),
            (register::KILLS, _) => self.lives,
            (register::STALLS, _) => return,
            _ => place << 8 | u64::from(bytes),
        };
        channels.access_done(id, value);
    }

    fn closing(&mut self, _: ChannelId) {
        // What was asked has no answer any more.
        self.waiting.clear();
    }
}
