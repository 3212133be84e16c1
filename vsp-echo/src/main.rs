//! The smallest device: answers each in-band packet with the packet's own payload.
//!
//! It shows what a VSP is made of (`docs/writing-a-vsp.md` walks through it) and is the device that tests of
//! the core and of the runtime attach. It needs no guest RAM and touches nothing but its channel.

#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::process::ExitCode;

use clap::Parser;
use vsp::vmbus::guid::class;
use vsp::vmbus::packet::PacketType;
use vsp::{ChannelId, Channels, Device, Offer, OpenRequest, Packet, Program, Refused, Request};

// doc:begin program
const PROGRAM: Program = Program { name: "vsp-echo", policy: vsp::policies::VSP_ECHO };

/// A Bulkhead device that echoes packets
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    common: vsp::Common,
}

fn main() -> ExitCode {
    let args = Args::parse();
    vsp::serve(PROGRAM, &args.common, || Ok::<_, Infallible>(Echo::default()))
}
// doc:end program

// doc:begin device
/// The device. What it counts is for the log only.
#[derive(Debug, Default)]
struct Echo {
    echoed: u64,
}

impl Device for Echo {
    fn offer(&self) -> Offer {
        Offer { class: class::ECHO.to_string(), ..Offer::default() }
    }

    fn open(&mut self, _channel: ChannelId, request: &OpenRequest) -> Result<(), Refused> {
        // One channel is all that an echo needs.
        if request.subchannel == 0 { Ok(()) } else { Err(Refused::default()) }
    }

    fn packet(&mut self, packet: Packet<'_>, request: Request, channels: &mut Channels) {
        if packet.header.packet_type == PacketType::IN_BAND {
            self.echoed += 1;
            request.complete(channels, packet.header.payload(packet.bytes));
        } else {
            // A request always ends, whatever the guest has sent.
            request.complete(channels, &[]);
        }
    }

    fn closing(&mut self, _channel: ChannelId) {
        tracing::info!(echoed = self.echoed, "the guest closed the channel");
    }
}
// doc:end device

#[cfg(test)]
mod tests {
    use vsp::testing::Bench;
    use vsp::vmbus::packet::Outgoing;

    use super::*;

    #[test]
    fn a_packet_comes_back() {
        let mut bench = Bench::new(Echo::default(), 0);
        let mut guest = bench.open(1, 1);
        assert!(guest.send(&Outgoing::in_band(42, true), &[b"hello..."]));
        let (header, payload) = bench.wait(&mut guest);
        assert_eq!((header.packet_type, header.transaction_id), (PacketType::COMPLETION, 42));
        assert_eq!(payload, b"hello...");
    }

    #[test]
    fn what_is_not_in_band_is_answered_all_the_same() {
        let mut bench = Bench::new(Echo::default(), 0);
        let mut guest = bench.open(1, 1);
        assert!(guest.send(&Outgoing::gpa_direct(7, &[0; 8]), &[&[0; 8], b"whatever"]));
        let (header, payload) = bench.wait(&mut guest);
        assert_eq!(header.transaction_id, 7);
        assert!(payload.is_empty());
    }
}
