//! A guest that breaks the rules of the bus. What breaks is its own: afterwards the core serves it as before, and the
//! device of the second channel never noticed.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bulkhead_tests::{
    Vm,
    steps::{Dice, Guest, LIMIT, exercise},
};
use vmbus::{
    gpadl,
    message::{
        GpadlBody, GpadlHeader, GuestMessage, HostMessage, InitiateContact, ModifyChannel, OpenChannel,
    },
    protocol::Version,
};
use vsc::{Error, Platform, PostError};

const PAGE: u64 = 4096;

fn two_devices() -> anyhow::Result<(Vm, Guest)> {
    let vm = Vm::builder().quiet().echo("victim").echo("bystander").start()?;
    let guest = Guest::connect(&vm)?;
    Ok((vm, guest))
}

fn open_request(relid: u32, gpadl: u32) -> OpenChannel {
    OpenChannel {
        relid,
        open_id: gpadl,
        ring_gpadl: gpadl,
        target_vp: 0,
        downstream_page_offset: 4,
        user_data: [0; 120],
    }
}

/// A channel that was opened without anybody to use it.
struct Opened {
    relid: u32,
    gpadl: u32,
}

/// Asks for a channel over these pages; if that is refused, the pages are the guest's again.
fn try_open(guest: &mut Guest, relid: u32, pfns: &[u64]) -> anyhow::Result<Option<Opened>> {
    let gpadl = guest.client.establish_gpadl_of(relid, pfns)?;
    guest.client.post(&GuestMessage::OpenChannel(open_request(relid, gpadl)))?;
    loop {
        match guest.client.next_message(LIMIT)?.context("no open result")? {
            HostMessage::OpenResult(result) if (result.relid, result.open_id) == (relid, gpadl) => {
                if result.status == 0 {
                    return Ok(Some(Opened { relid, gpadl }));
                }
                guest.client.teardown_gpadl(relid, gpadl)?;
                return Ok(None);
            }
            _ => {}
        }
    }
}

fn open(guest: &mut Guest, relid: u32, pfns: &[u64]) -> anyhow::Result<Opened> {
    try_open(guest, relid, pfns)?.context("these pages are good")
}

fn close(guest: &mut Guest, opened: Opened) -> anyhow::Result<()> {
    guest.client.post(&GuestMessage::CloseChannel(opened.relid))?;
    Ok(guest.client.teardown_gpadl(opened.relid, opened.gpadl)?)
}

#[test]
fn messages_of_any_bytes_to_any_connection() -> anyhow::Result<()> {
    let (vm, mut guest) = two_devices()?;
    let mut bystander = guest.echo(1)?;
    let mut dice = Dice(1);
    for n in 0..4000u32 {
        let mut bytes = vec![0; dice.roll(260) as usize];
        dice.fill(&mut bytes);
        if n % 5 > 0
            && let Some(kind) = bytes.first_chunk_mut::<4>()
        {
            // Contact (14) and unload (16) would be obeyed: they have their own tests.
            *kind = [dice.roll(14), 15 + 2 * dice.roll(6)][dice.roll(2) as usize].to_le_bytes();
        }
        let connection = if n % 7 == 0 { dice.roll(100) } else { guest.client.connection() };
        match vm.platform().post_message(connection, &bytes) {
            Ok(()) | Err(PostError::Status(18 | 19)) => {}
            Err(e) => return Err(e.into()),
        }
        if n % 100 == 0 {
            guest.drain_quickly()?;
        }
    }
    guest.drain()?;
    exercise(&mut bystander)?;
    guest.prove(0)
}

#[test]
fn messages_before_there_is_a_connection() -> anyhow::Result<()> {
    let vm = Vm::builder().quiet().echo("victim").start()?;
    let mut messages = vec![
        GuestMessage::RequestOffers.encode(),
        GuestMessage::Unload.encode(),
        GuestMessage::OpenChannel(open_request(1, 1)).encode(),
        GuestMessage::CloseChannel(1).encode(),
        GuestMessage::RelidReleased(1).encode(),
        GuestMessage::ModifyChannel(ModifyChannel { relid: 1, target_vp: 0 }).encode(),
        GuestMessage::GpadlTeardown { relid: 1, gpadl: 1 }.encode(),
    ];
    messages.extend(gpadl::messages(1, 1, &[100; 50]));
    for message in &messages {
        vm.platform().post_message(4, message)?;
        vm.platform().post_message(1, message)?;
    }
    std::thread::sleep(Duration::from_millis(20));
    let heard = vm.platform().take_message(0).map_err(anyhow::Error::from_boxed)?;
    ensure!(heard.is_none(), "nobody is answered");
    Guest::connect(&vm)?.prove(0)
}

#[test]
fn requests_out_of_order_leave_the_channel_usable() -> anyhow::Result<()> {
    let (_vm, mut guest) = two_devices()?;
    let relid = guest.offer(0)?.relid;
    let mut bystander = guest.echo(1)?;
    let pfns: Vec<u64> = (0x1000..0x1008).collect();
    for _ in 0..20 {
        // Bodies without a header, closing what is not open, opening over nothing, releasing a relid in use.
        let body = GpadlBody { message_number: 0, gpadl: 77, data: &[0; 64] };
        guest.client.post(&GuestMessage::GpadlBody(body))?;
        guest.client.post(&GuestMessage::CloseChannel(relid))?;
        guest.client.post(&GuestMessage::OpenChannel(open_request(relid, 77)))?;
        guest.client.post(&GuestMessage::GpadlTeardown { relid, gpadl: 77 })?;
        guest.client.post(&GuestMessage::RelidReleased(relid))?;
        let opened = open(&mut guest, relid, &pfns)?;
        // Twice open, modified with nonsense, torn down while open.
        guest.client.post(&GuestMessage::OpenChannel(open_request(relid, 77)))?;
        guest.client.post(&GuestMessage::ModifyChannel(ModifyChannel { relid, target_vp: 99 }))?;
        guest.client.post(&GuestMessage::GpadlTeardown { relid, gpadl: 77 })?;
        guest.client.post(&GuestMessage::CloseChannel(relid))?;
        // Closed twice, and opened while it is being closed.
        guest.client.post(&GuestMessage::CloseChannel(relid))?;
        guest.client.post(&GuestMessage::OpenChannel(open_request(relid, 77)))?;
        guest.client.teardown_gpadl(relid, opened.gpadl)?;
        guest.drain_quickly()?;
    }
    exercise(&mut bystander)?;
    guest.prove(0)
}

#[test]
fn pages_that_are_not_the_guests_to_give_are_refused() -> anyhow::Result<()> {
    let (vm, mut guest) = two_devices()?;
    let relid = guest.offer(0)?.relid;
    let mut bystander = guest.echo(1)?;
    let ring = bystander.channel().gpadl().address / PAGE;
    let ram_pages = vm.platform().ram().len() / PAGE;
    let good: Vec<u64> = (0x2000..0x2008).collect();
    let with = |at: usize, pfn: u64| {
        let mut pfns = good.clone();
        pfns[at] = pfn;
        pfns
    };
    // VP 0's event-flag page is page 2, as the harness sets it up.
    let foreign = [ram_pages, 0xc_0000, 0xf_ffff, 0x10_0000, 1 << 39, (1 << 40) - 1, ring, ring + 7, 2];
    for pfn in foreign {
        for at in [0, 3, 7] {
            ensure!(try_open(&mut guest, relid, &with(at, pfn))?.is_none(), "page {pfn:#x} at {at}");
        }
    }
    ensure!(try_open(&mut guest, relid, &with(7, good[0]))?.is_none(), "a page twice");
    ensure!(try_open(&mut guest, relid, &[good[0]; 8])?.is_none(), "one page only");
    for pfn in [1 << 40, 1 << 52, u64::MAX] {
        let refused = guest.client.establish_gpadl_of(relid, &with(2, pfn));
        ensure!(matches!(refused, Err(Error::GpadlRefused { .. })), "{pfn:#x} is no address");
    }
    exercise(&mut bystander)?;
    // Page zero and backwards are odd but the guest's own.
    let backwards: Vec<u64> = good.iter().rev().copied().collect();
    let opened = open(&mut guest, relid, &backwards)?;
    close(&mut guest, opened)?;
    exercise(&mut bystander)?;
    guest.prove(0)
}

#[test]
fn two_channels_never_share_a_page() -> anyhow::Result<()> {
    let (_vm, mut guest) = two_devices()?;
    let (one, two) = (guest.offer(0)?.relid, guest.offer(1)?.relid);
    let pages = |first: u64| (first..first + 8).collect::<Vec<_>>();
    let first = open(&mut guest, one, &pages(0x2000))?;
    for first in [0x2000, 0x2001, 0x2007, 0x1ff9] {
        ensure!(try_open(&mut guest, two, &pages(first))?.is_none(), "{first:#x} overlaps");
    }
    let second = open(&mut guest, two, &pages(0x2008)).context("next to each other is well")?;
    close(&mut guest, first)?;
    close(&mut guest, second)?;
    guest.prove(0)?;
    guest.prove(1)
}

#[test]
fn lists_of_pages_that_lie_about_themselves() -> anyhow::Result<()> {
    let (_vm, mut guest) = two_devices()?;
    let relid = guest.offer(0)?.relid;
    let mut dice = Dice(7);
    for gpadl in 0..1500 {
        let mut data = vec![0; 8 * dice.roll(28) as usize];
        dice.fill(&mut data);
        if dice.roll(2) == 0
            && let Some(head) = data.first_chunk_mut::<8>()
        {
            *head = ((u64::from(dice.roll(20)) * 1024) | (u64::from(dice.roll(5000)) << 32)).to_le_bytes();
        }
        let lengths = (dice.number() as u16, dice.roll(3) as u16 * dice.roll(100) as u16);
        let exact = (data.len() as u16, 1);
        let (range_buffer_len, range_count) = if dice.roll(2) == 0 { lengths } else { exact };
        let header = GpadlHeader { relid, gpadl, range_buffer_len, range_count, data: &data };
        guest.client.post(&GuestMessage::GpadlHeader(header))?;
        let body = GpadlBody { message_number: dice.roll(9), gpadl, data: &data };
        guest.client.post(&GuestMessage::GpadlBody(body))?;
        guest.client.post(&GuestMessage::OpenChannel(open_request(relid, gpadl)))?;
        if gpadl % 50 == 0 {
            guest.drain_quickly()?;
        }
    }
    guest.client.post(&GuestMessage::CloseChannel(relid))?;
    guest.drain()?;
    guest.prove(1)?;
    guest.client.unload()?;
    Ok(())
}

#[test]
fn lists_without_end_are_bounded() -> anyhow::Result<()> {
    let (mut vm, mut guest) = two_devices()?;
    let relid = guest.offer(0)?.relid;
    let before = resident(vm.core().pid())?;
    for gpadl in 0..6_000 {
        let data = [0x1000u64.to_le_bytes(), 5u64.to_le_bytes()].concat();
        let header = GpadlHeader { relid, gpadl, range_buffer_len: 0xfff8, range_count: 1, data: &data };
        guest.client.post(&GuestMessage::GpadlHeader(header))?;
        if gpadl % 100 == 0 {
            guest.drain_quickly()?;
        }
    }
    guest.drain()?;
    let grown = resident(vm.core().pid())?.saturating_sub(before);
    ensure!(grown < 8 << 20, "the core grew by {grown} bytes");
    guest.client.unload()?;
    let mut guest = Guest::connect(&vm)?;
    guest.prove(0)?;
    guest.prove(1)
}

/// Resident anonymous memory of a process, in bytes.
fn resident(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|l| l.starts_with("RssAnon:")).context("no RssAnon")?;
    let kib: u64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib << 10)
}

#[test]
fn scattered_rings_do_not_use_up_the_cores_memory_map() -> anyhow::Result<()> {
    let builder = (0..8).fold(Vm::builder().quiet().memory(512 << 20), |b, n| b.echo(&format!("echo{n}")));
    let mut vm = builder.start()?;
    let mut guest = Guest::connect(&vm)?;
    let mut opened = Vec::new();
    for n in 0..7 {
        let relid = guest.offer(n)?.relid;
        let first = 0x400 + n * 16_000;
        let pfns: Vec<u64> = (0..8000).map(|p| first + p * 2).collect();
        opened.extend(try_open(&mut guest, relid, &pfns)?);
    }
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", vm.core().pid()))?.lines().count();
    ensure!(!opened.is_empty() && maps < 45_000, "{} channels, {maps} mappings", opened.len());
    guest.prove(7)?;
    for opened in opened {
        close(&mut guest, opened)?;
    }
    (0..8).try_for_each(|n| guest.prove(n))
}

#[test]
fn synic_pages_of_all_kinds() -> anyhow::Result<()> {
    let (vm, mut guest) = two_devices()?;
    let mut bystander = guest.echo(1)?;
    let ring = bystander.channel().gpadl().address;
    let ram = vm.platform().ram().len();
    let platform = vm.platform();
    // On VP 1, which the bystander does not use: outside of RAM, over the ring, over VP 0's pages, one page for
    // both, everything at once.
    let pages = [ram, ram - PAGE, 0xc000_0000, 1 << 52, !0xfff, ring, ring + PAGE, PAGE, 2 * PAGE, 0];
    for message_page in pages {
        for event_page in pages {
            platform.write_synic(1, 1, message_page | 1, event_page | 1)?;
        }
    }
    platform.set_synic(1, true)?;
    exercise(&mut bystander)?;
    guest.client.retarget(bystander.channel(), 1)?;
    exercise(&mut bystander)?;
    // The flags page goes away and comes back while the device interrupts.
    platform.write_synic(1, 1, (3 * PAGE) | 1, 0)?;
    let _ = bystander.send(b"nobody hears the answer", Duration::from_secs(1))?;
    std::thread::sleep(Duration::from_millis(20));
    platform.set_synic(1, true)?;
    let answered = bystander.channel().poll()?.is_some();
    ensure!(answered, "the answer is in the ring all the same");
    exercise(&mut bystander)?;
    guest.client.close(bystander.into_channel())?;
    guest.prove(0)
}

#[test]
fn messages_to_a_page_that_is_no_ram() -> anyhow::Result<()> {
    let (vm, mut guest) = two_devices()?;
    let mut bystander = guest.echo(1)?;
    for page in [vm.platform().ram().len(), 0xc000_0000, !0xfff] {
        vm.platform().write_synic(0, 1, page | 1, (2 * PAGE) | 1)?;
        for _ in 0..50 {
            guest.client.post(&GuestMessage::RequestOffers)?;
        }
        exercise(&mut bystander)?;
    }
    vm.platform().set_synic(0, true)?;
    guest.drain()?;
    guest.ask_offers()?;
    guest.prove(0)
}

#[test]
fn storms_of_messages() -> anyhow::Result<()> {
    let (mut vm, mut guest) = two_devices()?;
    let relid = guest.offer(0)?.relid;
    let victim = guest.echo(0)?;
    let mut bystander = guest.echo(1)?;
    let before = resident(vm.core().pid())?;
    let storm = [
        GuestMessage::RequestOffers,
        GuestMessage::ModifyChannel(ModifyChannel { relid, target_vp: 1 }),
        GuestMessage::CloseChannel(99),
        GuestMessage::OpenChannel(open_request(99, 1)),
        GuestMessage::GpadlTeardown { relid, gpadl: 12345 },
        GuestMessage::RelidReleased(relid),
    ];
    for (n, message) in storm.iter().enumerate() {
        let bytes = message.encode();
        for _ in 0..4000 {
            match vm.platform().post_message(guest.client.connection(), &bytes) {
                Ok(()) => {}
                Err(PostError::Status(19)) => drop(guest.drain_quickly()?),
                Err(e) => return Err(e.into()),
            }
        }
        let start = Instant::now();
        exercise(&mut bystander).with_context(|| format!("storm {n}"))?;
        ensure!(start.elapsed() < Duration::from_secs(5), "the bystander waited {:?}", start.elapsed());
    }
    guest.drain()?;
    let grown = resident(vm.core().pid())?.saturating_sub(before);
    ensure!(grown < 16 << 20, "the core grew by {grown} bytes");
    guest.client.close(victim.into_channel())?;
    guest.prove(0)
}

#[test]
fn storms_of_contacts_and_unloads() -> anyhow::Result<()> {
    let (vm, mut guest) = two_devices()?;
    let mut dice = Dice(3);
    for round in 0..300 {
        if round % 3 == 0 {
            guest.ask_offers()?;
            let relid = guest.offer(0)?.relid;
            let pfns: Vec<u64> = (0x1000..0x1008).collect();
            open(&mut guest, relid, &pfns)?;
        }
        let version = Version::ALL[dice.roll(8) as usize];
        if dice.roll(2) == 0 {
            guest.client.post(&GuestMessage::Unload)?;
        }
        guest.client.post(&GuestMessage::InitiateContact(InitiateContact::new(version, 77)))?;
        guest = Guest::connect(&vm)?;
    }
    guest.prove(0)?;
    guest.prove(1)
}
