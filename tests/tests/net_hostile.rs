//! A hostile guest and its NIC: whatever it says, the process lives, the core lives, nothing invented goes out, and an
//! honest guest finds a device that works.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bulkhead_tests::{
    SoftPlatform,
    net::{
        Memory, Rig,
        frame::Series,
        load::PEER,
        rig::{DEVICE, ended, exercise, hoard, sent},
    },
    steps::{Dice, Guest, LIMIT},
};
use vmbus::packet::{Outgoing, PacketType, gpa_direct_header};
use vsc::{
    OpenOptions, Platform,
    net::{
        Event, Net, NetOptions, Offload, Room, TxInfo,
        control::oid,
        control::rss_parameters,
        rndis,
        wire::{self, CHANNEL_CONTROL, CHANNEL_DATA, NO_SECTION},
    },
};

/// How long nothing has to come out for it to mean that nothing comes.
const QUIET: Duration = Duration::from_millis(30);

fn small() -> NetOptions {
    NetOptions::small()
}

/// A machine whose errors are expected, with a NIC that is up.
fn rig() -> anyhow::Result<(Rig, Net<SoftPlatform>)> {
    let mut rig = Rig::with(|vm| vm.quiet(), |_| {})?;
    let net = rig.open(&small())?;
    Ok((rig, net))
}

/// Everybody is as well as before: for this guest, and for one that comes after a reset.
fn recover(mut rig: Rig, mut net: Net<SoftPlatform>) -> anyhow::Result<()> {
    while rig.wire.receive(QUIET)?.is_some() {}
    exercise(&mut net, &mut rig.wire).context("the device suffers")?;
    drop(net);
    lives(&mut rig)
}

fn lives(rig: &mut Rig) -> anyhow::Result<()> {
    ensure!(rig.vm.device(DEVICE).try_wait()?.is_none(), "the process has ended");
    rig.vm.platform().reset()?;
    (0..2).try_for_each(|vp| rig.vm.platform().set_synic(vp, true))?;
    rig.guest = Guest::connect(&rig.vm)?;
    while rig.wire.receive(QUIET)?.is_some() {}
    rig.prove().context("the device does not recover")?;
    ensure!(rig.vm.device(DEVICE).try_wait()?.is_none() && rig.vm.core().try_wait()?.is_none());
    Ok(())
}

/// Puts bytes into a section and sends so many of them; the status of the completion.
fn send_bytes(net: &mut Net<SoftPlatform>, bytes: &[u8], size: u32) -> anyhow::Result<u32> {
    let address = net.send_buffer().address;
    net.queue().channel().platform().write(address, bytes);
    let message = wire::rndis_packet(CHANNEL_DATA, 0, size);
    let id = sent(net.queue().push_raw(PacketType::IN_BAND, &[], &message)?)?;
    net.queue().flush()?;
    ended(net.queue(), id)
}

/// A good packet, to be spoiled.
fn packet(net: &Net<SoftPlatform>) -> Vec<u8> {
    let frame = Series { to: PEER, from: net.device().mac, name: 1, longest: 300 }.frame(3);
    let vlan = Some(vsc::net::Vlan { id: 5, priority: 0, cfi: false });
    let info = TxInfo { vlan, hash: Some(1), offload: Offload::None };
    let (headers, len) = rndis::packet(&info, frame.len() as u32, 0);
    [&headers[..len], &frame[..]].concat()
}

#[test]
fn lengths_and_offsets_that_lie() -> anyhow::Result<()> {
    let (mut rig, mut net) = rig()?;
    let good = packet(&net);
    let len = good.len() as u32;
    ensure!(send_bytes(&mut net, &good, len)? == wire::STATUS_SUCCESS);
    rig.wire.receive(LIMIT)?.context("a good one comes out")?;
    let values = [
        0,
        1,
        7,
        8,
        35,
        36,
        43,
        44,
        len - 8,
        len - 1,
        len + 1,
        0x7fff_ffff,
        0x8000_0000,
        u32::MAX - 7,
        u32::MAX,
    ];
    // Type, length, data offset and length, out-of-band, infos' offset and length; then the infos themselves.
    for at in (0..44).step_by(4).chain((44..76).step_by(4)) {
        for value in values {
            let mut bad = good.clone();
            bad[at..at + 4].copy_from_slice(&value.to_le_bytes());
            // Success or not: it is completed once, and the device lives.
            send_bytes(&mut net, &bad, len).with_context(|| format!("{value:#x} at {at}"))?;
        }
    }
    for size in [0, 1, 8, 43, 44, 75, 76, len - 1, len + 4, 65_536, 0x10_0000, u32::MAX] {
        send_bytes(&mut net, &good, size).with_context(|| format!("{size} bytes"))?;
    }
    while let Some(frame) = rig.wire.receive(QUIET)? {
        ensure!(frame.len() <= 1518, "a frame of {} bytes went out", frame.len());
    }
    recover(rig, net)
}

#[test]
fn sections_that_are_not_there() -> anyhow::Result<()> {
    let (mut rig, mut net) = rig()?;
    let (sections, _) = net.sections();
    for (section, size) in [
        (sections, 100),
        (sections - 1, u32::MAX),
        (0, net.device().section_size + 1),
        (0xffff_fffe, 100),
        (0x8000_0000, 100),
        (NO_SECTION, 100),
        (NO_SECTION, 0),
    ] {
        for channel in [CHANNEL_DATA, CHANNEL_CONTROL, 7] {
            let message = wire::rndis_packet(channel, section, size);
            let id = sent(net.queue().push_raw(PacketType::IN_BAND, &[], &message)?)?;
            net.queue().flush()?;
            let status = ended(net.queue(), id).with_context(|| format!("section {section:#x}, {size}"))?;
            ensure!(status != wire::STATUS_SUCCESS, "section {section:#x} of {size} bytes succeeds");
        }
    }
    ensure!(rig.wire.receive(QUIET)?.is_none(), "something went out");
    recover(rig, net)
}

#[test]
fn pages_that_are_not_there() -> anyhow::Result<()> {
    for memory in [Memory::Confined, Memory::Full] {
        let mut rig = Rig::with(|vm| vm.quiet(), |nic| nic.memory = memory)?;
        let mut net = rig.open(&small())?;
        let message = wire::rndis_packet(CHANNEL_DATA, NO_SECTION, 0);
        let far = [u64::MAX >> 12, 0x10_0000, 0xffff_ffff_ffff];
        for pfn in far {
            for (offset, len) in [(0, 100), (4000, 96), (0, 4096)] {
                let header = gpa_direct_header(&[(offset, len, &[pfn])]);
                let id = sent(net.queue().push_raw(PacketType::GPA_DIRECT, &header, &message)?)?;
                net.queue().flush()?;
                ended(net.queue(), id).with_context(|| format!("page {pfn:#x}"))?;
            }
        }
        let raw = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        for header in [
            raw(&[0, 0]),
            raw(&[0, u32::MAX]),
            raw(&[0, 1, u32::MAX, 0]),
            raw(&[0, 1, 100, 4096, 1, 0]),
            raw(&[0, 2, 100, 0, 1, 0]),
            raw(&[0, 1, 1 << 20, 0, 1, 0]),
            Vec::new(),
        ] {
            let id = sent(net.queue().push_raw(PacketType::GPA_DIRECT, &header, &message)?)?;
            net.queue().flush()?;
            ended(net.queue(), id).with_context(|| format!("header {header:02x?}"))?;
        }
        ensure!(rig.wire.receive(QUIET)?.is_none(), "something went out");
        recover(rig, net)?;
    }
    Ok(())
}

#[test]
fn frames_longer_than_the_mtu_do_not_go_out() -> anyhow::Result<()> {
    let (mut rig, mut net) = rig()?;
    // A frame of the MTU may have two tags.
    for len in [1514 + 8 + 1, 2000, 9000, 13_000] {
        let frame = Series { to: PEER, from: net.device().mac, name: 1, longest: len }.frame(3);
        let id = sent(net.queue().send(&frame, &TxInfo::default())?)?;
        ended(net.queue(), id)?;
        let came = rig.wire.receive(QUIET)?;
        ensure!(came.is_none(), "{len} bytes went out as {:?}", came.map(|frame| frame.len()));
    }
    for len in [0, 1, 13] {
        let id = sent(net.queue().send(&[0x55; 14][..len], &TxInfo::default())?)?;
        ended(net.queue(), id)?;
    }
    // A stream has no offloads: nothing of the kind goes out as it is.
    let frame = Series { to: PEER, from: net.device().mac, name: 1, longest: 1514 }.frame(3);
    for offload in [
        Offload::Segment { ipv6: false, mss: 0, header: 1023 },
        Offload::Segment { ipv6: true, mss: 1, header: 54 },
        Offload::Segment { ipv6: false, mss: 0xf_ffff, header: 0 },
        Offload::Checksum { ipv6: false, udp: true, header: 1023 },
        Offload::Checksum { ipv6: true, udp: false, header: 0 },
    ] {
        let id = sent(net.queue().send(&frame, &TxInfo { offload, ..TxInfo::default() })?)?;
        ended(net.queue(), id).with_context(|| format!("{offload:?}"))?;
    }
    recover(rig, net)
}

#[test]
fn a_guest_that_never_gives_back() -> anyhow::Result<()> {
    let (mut rig, mut net) = rig()?;
    let series = Series { to: net.device().mac, from: PEER, name: 1, longest: 1514 };
    let mut wire = rig.wire.split()?;
    thread::scope(|scope| -> anyhow::Result<()> {
        let sender = scope.spawn(move || (0..3000).try_for_each(|n| wire.send(&series.frame(n))));
        let hoarded = hoard(net.queue())?;
        ensure!(!hoarded.is_empty());
        // Sending goes on, and so do questions as far as the device keeps something for them.
        let out = Series { to: PEER, from: net.device().mac, name: 2, longest: 1514 };
        for number in 0..50 {
            let id = sent(net.queue().send(&out.frame(number), &TxInfo::default())?)?;
            ensure!(ended(net.queue(), id)? == wire::STATUS_SUCCESS);
            ensure!(out.check(&rig.wire.receive(LIMIT)?.context("it is held back")?)? == Some(number));
        }
        ensure!(net.query_word(oid::MEDIA_CONNECT_STATUS)? == 0, "a question is not answered");
        // A reset frees everything, whoever has what.
        rig.vm.platform().reset()?;
        (0..2).try_for_each(|vp| rig.vm.platform().set_synic(vp, true))?;
        rig.guest = Guest::connect(&rig.vm)?;
        let mut next = rig.open(&small())?;
        let until = Instant::now() + LIMIT;
        while !sender.is_finished() || next.queue().deliveries_out() > 0 {
            ensure!(Instant::now() < until, "what was held back does not come");
            if let Some(Event::Delivery(delivery)) = next.queue().wait(Duration::from_millis(20))? {
                next.queue().give_back(delivery)?;
            }
        }
        sender.join().map_err(|_| anyhow::anyhow!("no panic"))??;
        while let Some(event) = next.queue().wait(QUIET)? {
            let Event::Delivery(delivery) = event else { anyhow::bail!("{event:?}") };
            next.queue().give_back(delivery)?;
        }
        exercise(&mut next, &mut rig.wire)?;
        Ok(next.close(&mut rig.guest.client, Vec::new())?)
    })?;
    ensure!(rig.vm.device(DEVICE).try_wait()?.is_none(), "the process has ended");
    rig.prove()
}

#[test]
fn what_was_never_lent_is_given_back() -> anyhow::Result<()> {
    let (mut rig, mut net) = rig()?;
    let series = Series { to: net.device().mac, from: PEER, name: 1, longest: 1514 };
    for id in [0, 1, 5, 15, 16, 255, 256, 0xffff_ffff, u64::MAX, 1 << 32] {
        net.queue().give_back_id(id)?;
    }
    // Twice, too.
    rig.wire.send(&series.frame(1))?;
    let first = bulkhead_tests::net::rig::delivery(net.queue())?;
    let id = first.id;
    net.queue().give_back(first)?;
    for _ in 0..5 {
        net.queue().give_back_id(id)?;
    }
    // Completions with odd payloads, and none.
    for payload in [&[][..], &[0xff; 3], &[0; 500]] {
        net.queue().channel().send(&Outgoing::completion(id), &[payload])?;
    }
    let mut wire = rig.wire.split()?;
    thread::scope(|scope| -> anyhow::Result<()> {
        let sender = scope.spawn(move || (0..200).try_for_each(|n| wire.send(&series.frame(n))));
        let mut came = 0;
        while came < 200 {
            let delivery = bulkhead_tests::net::rig::delivery(net.queue())?;
            came += delivery.frames.len();
            net.queue().give_back(delivery)?;
        }
        sender.join().map_err(|_| anyhow::anyhow!("no panic"))?
    })?;
    recover(rig, net)
}

#[test]
fn a_flood_of_control_messages() -> anyhow::Result<()> {
    let (mut rig, mut net) = rig()?;
    // The guest asks and asks, and takes no answer back.
    let mut asked = 0u32;
    let until = Instant::now() + Duration::from_secs(3);
    let query = |id: u32| rndis::control(rndis::QUERY, &[id, oid::LINK_SPEED, 0, 20, 0], &[]);
    let page = net.queue().channel().platform().allocate(1).map_err(anyhow::Error::from_boxed)?;
    while asked < 3000 && Instant::now() < until {
        let message = query(asked);
        net.queue().channel().platform().write(page, &message);
        let header = gpa_direct_header(&[(0, message.len() as u32, &[page / 4096])]);
        let payload = wire::rndis_packet(CHANNEL_CONTROL, NO_SECTION, 0);
        match net.queue().push_raw(PacketType::GPA_DIRECT, &header, &payload)? {
            Room::Sent(_) => asked += 1,
            Room::None => {
                net.queue().flush()?;
                // Completions are taken, or nothing would go on; answers come with them.
                ensure!(net.queue().wait(LIMIT)?.is_some(), "{asked} messages are stuck");
            }
        }
    }
    net.queue().flush()?;
    let until = Instant::now() + LIMIT;
    while net.queue().in_flight() > 0 && Instant::now() < until {
        net.queue().wait(QUIET)?;
    }
    while net.queue().wait(QUIET)?.is_some() {}
    ensure!(net.queue().in_flight() == 0, "{} of {asked} are not completed", net.queue().in_flight());
    let memory = resident(rig.vm.device(DEVICE).pid())?;
    ensure!(memory < 64 << 10, "the process has grown to {memory} KiB");
    recover(rig, net)
}

fn resident(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.split_whitespace().next().context("no number")?.parse()?)
}

#[test]
fn control_messages_that_lie() -> anyhow::Result<()> {
    let (rig, mut net) = rig()?;
    let mut dice = Dice(77);
    let rss = rss_parameters(0, &[1; 40], &[0; 128]);
    let good = [
        rndis::control(rndis::QUERY, &[9, oid::LINK_SPEED, 0, 20, 0], &[]),
        rndis::control(rndis::SET, &[9, oid::PACKET_FILTER, 4, 20, 0], &[15, 0, 0, 0]),
        rndis::control(rndis::SET, &[9, oid::RSS_PARAMETERS, rss.len() as u32, 20, 0], &rss),
        rndis::control(rndis::SET, &[9, oid::MULTICAST_LIST, 12, 20, 0], &[1; 12]),
        rndis::control(rndis::INITIALIZE, &[9, 1, 0, 0x4000], &[]),
        rndis::control(rndis::KEEPALIVE, &[9], &[]),
        rndis::control(rndis::RESET, &[0], &[]),
    ];
    for message in &good {
        let head = message.len().min(80);
        for at in (0..head).step_by(4) {
            for value in [0, 1, 3, 0x7fff_ffff, u32::MAX, dice.roll(200)] {
                let mut bad = message.clone();
                bad[at..at + 4].copy_from_slice(&value.to_le_bytes());
                net.send_control(&bad).with_context(|| format!("{value:#x} at {at} of {message:02x?}"))?;
            }
        }
        for len in [0, 1, 4, 7, 8, 11, 12, 20] {
            if let Some(bad) = message.get(..len).filter(|bad| !bad.is_empty()) {
                net.send_control(bad).with_context(|| format!("{len} bytes of {message:02x?}"))?;
            }
        }
    }
    net.send_control(&vec![0x5a; 60_000])?;
    // Whatever has been answered is taken; then it starts over.
    while net.queue().wait(Duration::from_millis(50))?.is_some() {}
    drop(net);
    let mut rig = rig;
    lives(&mut rig)
}

#[test]
fn messages_out_of_turn() -> anyhow::Result<()> {
    let mut rig = Rig::with(|vm| vm.quiet(), |_| {})?;
    let offer = rig.guest.offer(0)?;
    let messages: Vec<[u8; 40]> = (0..140)
        .chain([0x7fff_ffff, u32::MAX])
        .flat_map(|kind| [wire::message(kind, &[0; 4]), wire::message(kind, &[u32::MAX; 4])])
        .collect();
    for message in &messages {
        let channel = rig.guest.client.open(&offer, &OpenOptions::default())?;
        let mut channel = channel;
        channel.send(&Outgoing::in_band(1, true), &[message])?;
        channel.send(&Outgoing::in_band(2, false), &[message])?;
        let answer = channel.receive(LIMIT)?.with_context(|| format!("no answer to {message:02x?}"))?;
        ensure!(answer.header.transaction_id == 1, "{:?}", answer.header);
        rig.guest.client.close(channel)?;
    }
    // A device that is up hears them all as well.
    let mut net = rig.open(&small())?;
    for message in &messages {
        let kind = u32::from_le_bytes([message[0], message[1], message[2], message[3]]);
        // Those would take the buffers away, which an honest guest does not survive either.
        if (100..=107).contains(&kind) || kind == wire::INIT {
            continue;
        }
        net.queue().channel().send(&Outgoing::in_band(0xbad, false), &[message])?;
    }
    for len in 0..4 {
        net.queue().channel().send(&Outgoing::in_band(0xbad, false), &[&[0x6b; 4][..len]])?;
    }
    for kind in [0, 1, 5, 8, 10, 12, 0xffff] {
        let packet = Outgoing { packet_type: PacketType(kind), ..Outgoing::in_band(0xbad, false) };
        net.queue().channel().send(&packet, &[&wire::rndis_packet(CHANNEL_DATA, 0, 100)])?;
    }
    recover(rig, net)
}

#[test]
fn buffers_that_are_none() -> anyhow::Result<()> {
    let mut rig = Rig::with(|vm| vm.quiet(), |_| {})?;
    let offer = rig.guest.offer(0)?;
    let platform = rig.vm.platform().clone();
    for pages in [1, 2, 16] {
        // Too small for a single frame.
        let options = NetOptions { receive_buffer: pages * 4096, ..small() };
        let refused = Net::open(&mut rig.guest.client, &offer, &options);
        ensure!(refused.is_err(), "a buffer of {pages} pages is taken");
        platform.reset()?;
        (0..2).try_for_each(|vp| platform.set_synic(vp, true))?;
        rig.guest = Guest::connect(&rig.vm)?;
    }
    let options = NetOptions { send_buffer: 4096, ..small() };
    if let Ok(mut net) = Net::open(&mut rig.guest.client, &offer, &options) {
        exercise(&mut net, &mut rig.wire)?;
    }
    platform.reset()?;
    (0..2).try_for_each(|vp| platform.set_synic(vp, true))?;
    rig.guest = Guest::connect(&rig.vm)?;
    // Names of nothing, and a ring's name.
    for gpadl in [0, 1, 0xffff_ffff] {
        let mut channel = rig.guest.client.open(&offer, &OpenOptions::default())?;
        let ring = channel.gpadl().id;
        for name in [gpadl, ring] {
            for kind in [wire::SEND_RECEIVE_BUFFER, wire::SEND_SEND_BUFFER] {
                let proposal = wire::message(wire::INIT, &[wire::VERSION_6_1; 2]);
                channel.send(&Outgoing::in_band(1, true), &[&proposal])?;
                channel.receive(LIMIT)?.context("no answer to a proposal")?;
                channel.send(&Outgoing::in_band(2, true), &[&wire::message(kind, &[name, 0xcafe])])?;
                let answer = channel.receive(LIMIT)?.with_context(|| format!("{kind}: {name:#x}"))?;
                let answer = wire::Answer::new(answer.payload())?;
                ensure!(answer.word(0)? != wire::STATUS_SUCCESS, "{kind}: {name:#x} is taken");
            }
        }
        rig.guest.client.close(channel)?;
    }
    lives(&mut rig)
}

/// The pages are taken back while the device uses them.
#[test]
fn buffers_that_go_away() -> anyhow::Result<()> {
    for which in [0, 1] {
        let (mut rig, mut net) = rig()?;
        exercise(&mut net, &mut rig.wire)?;
        let region = [net.receive_buffer(), net.send_buffer()][which];
        let relid = rig.guest.offer(0)?.relid;
        rig.guest.client.teardown_gpadl(relid, region.gpadl)?;
        let series = Series { to: net.device().mac, from: PEER, name: 1, longest: 1514 };
        for n in 0..20 {
            rig.wire.send(&series.frame(n))?;
            let _ = net.queue().send(&series.frame(n), &TxInfo::default())?;
        }
        let until = Instant::now() + Duration::from_millis(500);
        while Instant::now() < until {
            // What is in the pages now is the guest's own business: nonsense may be there.
            if net.queue().wait(QUIET).is_err() {
                break;
            }
        }
        drop(net);
        lives(&mut rig)?;
    }
    Ok(())
}

#[test]
fn noise() -> anyhow::Result<()> {
    let (mut rig, mut net) = rig()?;
    let mut dice = Dice(4242);
    let size = net.device().section_size;
    let mut bytes = vec![0; 2000];
    for _ in 0..1500 {
        dice.fill(&mut bytes);
        // Half of the time it looks like a packet for a moment.
        if dice.roll(2) == 0 {
            let good = packet(&net);
            let spoiled = dice.roll(good.len() as u32) as usize;
            bytes[..good.len()].copy_from_slice(&good);
            bytes[spoiled] ^= 1 << dice.roll(8);
        }
        let len = dice.roll(2000).min(size);
        send_bytes(&mut net, &bytes, len)?;
        // Some of it is a frame, and a wire that is full would hold the next ones back.
        while rig.wire.receive(Duration::ZERO)?.is_some() {}
    }
    while rig.wire.receive(QUIET)?.is_some() {}
    recover(rig, net)
}
