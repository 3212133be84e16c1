//! What operators want of a device.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;

use ipc::message::{MAX_CONTROL, ToCore, ToVsp};
use vmbus::packet::Outgoing;
use vsp::testing::Bench;
use vsp::{ChannelId, Channels, Control, Device, Offer, OpenRequest, Packet, Refused, Request, ipc, vmbus};

/// Says what it is told to say to its guest; "later" is answered with the guest's next packet.
#[derive(Debug, Default)]
struct Parrot {
    primary: Option<ChannelId>,
    later: Vec<Control>,
}

impl Device for Parrot {
    fn offer(&self) -> Offer {
        Offer { class: vmbus::guid::class::ECHO.to_string(), ..Offer::default() }
    }

    fn open(&mut self, channel: ChannelId, _request: &OpenRequest) -> Result<(), Refused> {
        self.primary = Some(channel);
        Ok(())
    }

    fn packet(&mut self, _packet: Packet<'_>, request: Request, channels: &mut Channels) {
        request.complete(channels, &[]);
        self.later.drain(..).for_each(|control| control.answer(channels, Ok("at last".into())));
    }

    fn control(&mut self, mut control: Control, channels: &mut Channels) {
        match control.payload.as_str() {
            "later" => return self.later.push(control),
            "long" => return control.answer(channels, Ok("x".repeat(MAX_CONTROL + 1))),
            text => assert!(channels.send(self.primary.unwrap(), 0, text.as_bytes())),
        }
        let mut text = String::new();
        if let Some(fd) = control.fds.pop() {
            File::from(fd).read_to_string(&mut text).unwrap();
        }
        control.answer(channels, Ok(text));
    }
}

fn asks(bench: &Bench<Parrot>, id: u64, payload: &str) {
    bench.core.send(&ToVsp::Control { id, payload: payload.into() });
}

fn done(id: u64, text: &str) -> ToCore {
    ToCore::ControlDone { id, result: Ok(text.into()) }
}

#[test]
fn a_device_is_asked_and_answers_behind_what_it_has_told_its_guest() {
    let mut bench = Bench::new(Parrot::default(), 0);
    let mut guest = bench.open(1, 1);
    let file = File::open("Cargo.toml").unwrap();
    bench.core.peer().send(&ToVsp::Control { id: 1, payload: "hello".into() }, &[file.as_fd()]).unwrap();
    let ToCore::ControlDone { id: 1, result: Ok(text) } = bench.answer() else { panic!() };
    assert!(text.contains("name = \"vsp\""));
    let (_, packet) = guest.poll().expect("the guest has been told before");
    assert!(packet.windows(5).any(|part| part == b"hello"));
}

#[test]
fn an_answer_may_come_later_and_others_before_it() {
    let mut bench = Bench::new(Parrot::default(), 0);
    let mut guest = bench.open(1, 1);
    asks(&bench, 5, "later");
    asks(&bench, 6, "long");
    let ToCore::ControlDone { id: 6, result: Err(why) } = bench.answer() else { panic!() };
    assert!(why.contains("too long"));
    assert!(guest.send(&Outgoing::in_band(1, true), &[b"question"]));
    assert_eq!(bench.answer(), done(5, "at last"));
}

#[test]
fn who_does_not_serve_is_asked_nothing() {
    let mut bench = Bench::new(Parrot::default(), 0);
    bench.core.send(&ToVsp::Quiesce {});
    assert_eq!(bench.answer(), ToCore::Quiesced {});
    asks(&bench, 1, "hello");
    assert!(matches!(bench.answer(), ToCore::ControlDone { id: 1, result: Err(_) }));
}

#[test]
fn a_device_without_controls_says_so() {
    #[derive(Debug)]
    struct Mute;
    impl Device for Mute {
        fn offer(&self) -> Offer {
            Offer { class: vmbus::guid::class::ECHO.to_string(), ..Offer::default() }
        }
        fn packet(&mut self, _packet: Packet<'_>, request: Request, channels: &mut Channels) {
            request.complete(channels, &[]);
        }
    }
    let mut bench = Bench::new(Mute, 0);
    bench.core.send(&ToVsp::Control { id: 9, payload: "hello".into() });
    assert!(matches!(bench.answer(), ToCore::ControlDone { id: 9, result: Err(_) }));
}
