//! A NIC in a guest's hands: what it says about itself, frames both ways, and the ways to change it.

use std::time::Duration;

use anyhow::{Context, ensure};
use bulkhead_tests::{
    net::{
        Rig,
        frame::Series,
        load::PEER,
        rig::{DEVICE, completed, delivery, exercise, sent},
    },
    steps::LIMIT,
};
use vsc::net::{
    Event, NetOptions, RxInfo, TxInfo, Vlan,
    control::{FILTER_DIRECTED, FILTER_MULTICAST, FILTER_PROMISCUOUS, FILTER_UP, oid},
    wire,
};

/// How long nothing has to come for it to mean that nothing comes.
const QUIET: Duration = Duration::from_millis(60);

#[test]
fn every_version_is_spoken() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    for version in NetOptions::default().versions {
        let options = NetOptions { versions: vec![version], ..NetOptions::small() };
        let mut net = rig.open(&options).with_context(|| format!("{version:#x}"))?;
        ensure!(net.device().version == version);
        exercise(&mut net, &mut rig.wire).with_context(|| format!("{version:#x}"))?;
        net.close(&mut rig.guest.client, Vec::new())?;
    }
    let options = NetOptions { versions: vec![0x7_0000, 3, wire::VERSION_5], ..NetOptions::small() };
    let net = rig.open(&options)?;
    ensure!(net.device().version == wire::VERSION_5, "what it does not speak is refused");
    net.close(&mut rig.guest.client, Vec::new())?;
    Ok(())
}

#[test]
fn the_device_says_what_it_is() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut net = rig.open(&NetOptions::default())?;
    let device = net.device().clone();
    ensure!(device.version == wire::VERSION_6_1 && device.link && device.mtu == 1500, "{device:?}");
    ensure!(device.mac == [0x02, 0xb0, 0x1c, 0xe4, 0xad, 0x01], "{device:?}");
    // A stream has no offloads, so no frame is longer than that.
    ensure!(device.section_size >= 8 * 1514, "a batch of the largest frames fits a section: {device:?}");
    ensure!(net.sections().0 >= 10, "{:?}", net.sections());
    ensure!(net.query(oid::CURRENT_ADDRESS, &[])? == (0, device.mac.to_vec()));
    let (status, _) = net.query(0x0badcafe, &[])?;
    ensure!(status != 0, "there is no such object");
    ensure!(net.set(0x0badcafe, &[1, 2, 3, 4])? != 0, "there is no such object");
    exercise(&mut net, &mut rig.wire)?;
    ensure!((net.query_word(oid::XMIT_OK)?, net.query_word(oid::RCV_OK)?) == (20, 20), "it counts");
    Ok(net.close(&mut rig.guest.client, Vec::new())?)
}

#[test]
fn a_module_is_unloaded_and_loaded_again() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    for _ in 0..5 {
        rig.prove()?;
    }
    ensure!(rig.vm.device(DEVICE).try_wait()?.is_none());
    Ok(())
}

#[test]
fn a_guest_that_is_reset_finds_its_device() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut net = rig.open(&NetOptions::small())?;
    exercise(&mut net, &mut rig.wire)?;
    drop(net);
    rig.vm.platform().reset()?;
    (0..2).try_for_each(|vp| rig.vm.platform().set_synic(vp, true))?;
    rig.guest = bulkhead_tests::steps::Guest::connect(&rig.vm)?;
    rig.prove()
}

#[test]
fn jumbo_frames() -> anyhow::Result<()> {
    let mut rig = Rig::with(|vm| vm, |nic| nic.mtu = 9000)?;
    let mut net = rig.open(&NetOptions { mtu: 9000, ..NetOptions::small() })?;
    ensure!(net.device().mtu == 9000, "{:?}", net.device());
    exercise(&mut net, &mut rig.wire)?;
    net.close(&mut rig.guest.client, Vec::new())?;
    // Down and up again with another one, as `ip link set mtu` has it.
    let mut net = rig.open(&NetOptions { mtu: 1500, ..NetOptions::small() })?;
    ensure!(net.device().mtu == 1500, "{:?}", net.device());
    exercise(&mut net, &mut rig.wire)?;
    Ok(net.close(&mut rig.guest.client, Vec::new())?)
}

#[test]
fn several_frames_in_a_section_come_out_in_order() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut net = rig.open(&NetOptions::small())?;
    ensure!(net.device().batch.0 > 1, "{:?}", net.device());
    let series = Series { to: PEER, from: net.device().mac, name: 1, longest: 1514 };
    let mut next = 0;
    for _ in 0..10 {
        let mut section = net.queue().take_section().context("a section")?;
        let first = next;
        while net.queue().add(&mut section, &series.frame(next), &TxInfo::default()) {
            next += 1;
        }
        ensure!(next > first + 1);
        let id = sent(net.queue().push_section(section)?)?;
        net.queue().flush()?;
        for number in first..next {
            let frame = rig.wire.receive(LIMIT)?.context("it is lost")?;
            ensure!(series.check(&frame)? == Some(number));
        }
        completed(net.queue(), id)?;
    }
    Ok(net.close(&mut rig.guest.client, Vec::new())?)
}

#[test]
fn frames_by_lists_of_pages_come_out_too() -> anyhow::Result<()> {
    use bulkhead_tests::net::Memory;
    for memory in [Memory::Confined, Memory::Full] {
        let mut rig = Rig::with(|vm| vm, |nic| nic.memory = memory)?;
        let mut net = rig.open(&NetOptions::small())?;
        let series = Series { to: PEER, from: net.device().mac, name: 1, longest: 1514 };
        for number in 0..50 {
            let id = sent(net.queue().send_pages(&series.frame(number), &TxInfo::default())?)?;
            let frame = rig.wire.receive(LIMIT)?.context("it is lost")?;
            ensure!(series.check(&frame)? == Some(number), "{memory:?}");
            completed(net.queue(), id)?;
        }
        net.close(&mut rig.guest.client, Vec::new())?;
    }
    Ok(())
}

#[test]
fn the_filter_says_what_comes() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut net = rig.open(&NetOptions::small())?;
    let mac = net.device().mac;
    let group = [0x01, 0x00, 0x5e, 1, 2, 3];
    let to = [mac, [0xff; 6], group, [0x01, 0, 0x5e, 9, 9, 9], [0x02, 9, 9, 9, 9, 9]];
    net.set_multicast(&[group])?;
    let expected = [
        (0, [false; 5]),
        (FILTER_DIRECTED, [true, false, false, false, false]),
        (FILTER_DIRECTED | FILTER_MULTICAST, [true, false, true, false, false]),
        (FILTER_UP, [true, true, true, true, false]),
        (FILTER_PROMISCUOUS, [true; 5]),
    ];
    for (filter, wanted) in expected {
        net.set_filter(filter)?;
        for (to, wanted) in to.into_iter().zip(wanted) {
            let series = Series { to, from: PEER, name: 5, longest: 200 };
            rig.wire.send(&series.frame(1))?;
            if wanted {
                let delivery = delivery(net.queue()).with_context(|| format!("{filter:#x} {to:02x?}"))?;
                net.queue().give_back(delivery)?;
            } else {
                let came = net.queue().wait(QUIET)?;
                ensure!(came.is_none(), "{filter:#x} {to:02x?}: {came:?}");
            }
        }
    }
    Ok(net.close(&mut rig.guest.client, Vec::new())?)
}

#[test]
fn tags_are_put_in_and_taken_out() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut net = rig.open(&NetOptions::small())?;
    let vlan = Vlan { id: 100, priority: 5, cfi: false };
    let series = Series { to: PEER, from: net.device().mac, name: 1, longest: 300 };
    let frame = series.frame(3);
    let id = sent(net.queue().send(&frame, &TxInfo { vlan: Some(vlan), ..TxInfo::default() })?)?;
    let came = rig.wire.receive(LIMIT)?.context("it is lost")?;
    completed(net.queue(), id)?;
    let tag = [0x81, 0x00, 5 << 5, 100];
    ensure!(came[12..16] == tag, "{:02x?}", &came[..20]);
    ensure!([&came[..12], &came[16..]].concat() == frame);
    let into = Series { to: net.device().mac, from: PEER, name: 2, longest: 300 }.frame(5);
    rig.wire.send(&[&into[..12], &tag, &into[12..]].concat())?;
    let delivery = delivery(net.queue())?;
    let (info, bytes) = (delivery.frames[0].info, net.queue().read(&delivery.frames[0]));
    ensure!(info == RxInfo { vlan: Some(vlan), ..info } && bytes == into, "{info:?} {:02x?}", &bytes[..20]);
    net.queue().give_back(delivery)?;
    Ok(net.close(&mut rig.guest.client, Vec::new())?)
}

#[test]
fn the_link_goes_down_and_up_by_command() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let mut net = rig.open(&NetOptions::small())?;
    for up in [false, true, false, true] {
        rig.control(if up { r#"{"link":"up"}"# } else { r#"{"link":"down"}"# })?;
        let event = net.queue().wait(LIMIT)?;
        ensure!(event == Some(Event::Link { up }), "{event:?}");
        ensure!((net.query_word(oid::MEDIA_CONNECT_STATUS)? == 0) == up);
    }
    exercise(&mut net, &mut rig.wire)?;
    rig.control(r#"{"pause":{}}"#)?;
    let series = Series { to: net.device().mac, from: PEER, name: 1, longest: 300 };
    rig.wire.send(&series.frame(1))?;
    ensure!(net.queue().wait(QUIET)?.is_none(), "it is paused");
    rig.control(r#"{"resume":{}}"#)?;
    let delivery = delivery(net.queue())?;
    net.queue().give_back(delivery)?;
    let stats = rig.control(r#"{"stats":{}}"#)?;
    ensure!(stats.contains("\"tx_packets\":20") && stats.contains("\"rx_packets\":21"), "{stats}");
    Ok(net.close(&mut rig.guest.client, Vec::new())?)
}

#[test]
fn nobody_sends_in_anothers_name() -> anyhow::Result<()> {
    let mut rig = Rig::with(|vm| vm, |nic| nic.antispoof = true)?;
    let mut net = rig.open(&NetOptions::small())?;
    exercise(&mut net, &mut rig.wire)?;
    let series = Series { to: PEER, from: [0x02, 6, 6, 6, 6, 6], name: 1, longest: 300 };
    let id = sent(net.queue().send(&series.frame(1), &TxInfo::default())?)?;
    completed(net.queue(), id)?;
    ensure!(rig.wire.receive(QUIET)?.is_none(), "it has sent it");
    exercise(&mut net, &mut rig.wire)?;
    Ok(net.close(&mut rig.guest.client, Vec::new())?)
}
