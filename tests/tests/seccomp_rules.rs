//! No rule without a use: what device processes do for an honest guest uses every rule of their policies, but for
//! those marked `rare:`, and nothing that is not allowed.
//!
//! Each rule by itself is executed by `sandbox/tests/compartment`; the core's policies are audited in the lab,
//! because they need KVM (`cargo xtask test --only 'lab policies'`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use bulkhead_tests::{
    Vm,
    disk::Disk,
    guest::Interrupts,
    net::{
        Backend, Nic, Wire,
        bench::{
            bulk, ping,
            relay::Relay,
            town::{GUEST, HOST, Town},
        },
        rig::{DEVICE, exercise as net_exercise},
    },
    steps::{Guest, LIMIT, exercise, small},
};
use sandbox::policies::{self, Policy, Rule, audit::Usage};
use vsc::net::{Net, NetOptions};
use vsc::storage::{Storage, StorageOptions, scsi::read_10, wire::Direction};

const BLOCK: u32 = 512;
const SIZE: u64 = 16 << 20;

#[test]
fn a_guests_life_uses_every_rule_of_the_storage_policy() -> anyhow::Result<()> {
    if !may_trace() {
        return Ok(());
    }
    let (disk, second) = (Disk::new(SIZE)?, Disk::new(SIZE)?);
    let disks = [disk.argument(""), second.argument(",ro,serial=SECOND")];
    let vm = Vm::builder().storage("disk0", &disks).traced().start()?;
    // Twice over the same channel number, then once cut short by a reset, then once more.
    let mut guest = Guest::connect(&vm)?;
    for _ in 0..2 {
        let mut storage = open(&mut guest)?;
        use_disks(&mut storage)?;
        guest.client.close(storage.into_channel()?)?;
    }
    let mut storage = open(&mut guest)?;
    let buffer = storage.allocate(64 * BLOCK)?;
    for n in 0..8 {
        storage.submit(0, &read_10(n, 64), Direction::Read, buffer)?;
    }
    reset(&vm)?;
    let mut guest = Guest::connect(&vm)?;
    use_disks(&mut open(&mut guest)?)?;
    guest.client.unload()?;
    audit(vm, "disk0", &policies::VSP_STORAGE)
}

#[test]
fn a_guests_life_uses_every_rule_of_the_echo_policy() -> anyhow::Result<()> {
    if !may_trace() {
        return Ok(());
    }
    let vm = Vm::builder().echo("echo").traced().start()?;
    let mut guest = Guest::connect(&vm)?;
    guest.prove(0)?;
    guest.prove(0)?;
    let mut echo = guest.echo(0)?;
    echo.send(b"nobody waits for this", LIMIT)?;
    reset(&vm)?;
    let mut guest = Guest::connect(&vm)?;
    exercise(&mut guest.echo(0)?)?;
    guest.client.unload()?;
    audit(vm, "echo", &policies::VSP_ECHO)
}

#[test]
fn a_guests_life_uses_every_rule_of_the_policy_of_a_nic_on_a_stream() -> anyhow::Result<()> {
    if !may_trace() {
        return Ok(());
    }
    let (mut wire, theirs) = Wire::new()?;
    let vm = Vm::builder().net(DEVICE, &Nic::new(Backend::Stream(theirs))).traced().start()?;
    let mut guest = Guest::connect(&vm)?;
    for _ in 0..2 {
        let offer = guest.offer(0)?;
        let mut net = Net::open(&mut guest.client, &offer, &NetOptions::small())?;
        net_exercise(&mut net, &mut wire)?;
        net.close(&mut guest.client, Vec::new())?;
    }
    let offer = guest.offer(0)?;
    let mut net = Net::open(&mut guest.client, &offer, &NetOptions::small())?;
    net_exercise(&mut net, &mut wire)?;
    reset(&vm)?;
    let guest = Guest::connect(&vm)?;
    guest.client.unload()?;
    audit(vm, DEVICE, &policies::VSP_NET_STREAM)
}

#[test]
fn a_guests_life_uses_every_rule_of_the_policy_of_a_nic_on_a_tap() -> anyhow::Result<()> {
    if !may_trace() {
        return Ok(());
    }
    let town = Town::new()?;
    let (host, stack) = (town.host.tap()?, town.guest.tap()?);
    let nic = Nic { mac: town.guest.address(), ..Nic::new(Backend::Taps(vec![host])) };
    let builder = Vm::builder().interrupts(Interrupts::Direct(Duration::ZERO)).net(DEVICE, &nic).traced();
    let mut relay = Relay::over(builder, &stack, 1500)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let between = scope.spawn(|| relay.forward(&stop));
        let moved = bulk::measure(&town.guest, &town.host, HOST, Duration::from_millis(200));
        let came = ping::measure(&town.host, &town.guest, GUEST, Duration::from_millis(100));
        stop.store(true, Ordering::SeqCst);
        between.join().map_err(|_| anyhow::anyhow!("no panic"))??;
        ensure!(moved? > 0.0 && came?.as_nanos() > 0);
        anyhow::Ok(())
    })?;
    audit(relay.end()?, DEVICE, &policies::VSP_NET)
}

/// The kernel lets nobody else look at the memory of a process in its compartment.
fn may_trace() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: only root may trace a process in its compartment; the policies were NOT audited");
    }
    root
}

fn reset(vm: &Vm) -> anyhow::Result<()> {
    vm.platform().reset()?;
    (0..2).try_for_each(|vp| vm.platform().set_synic(vp, true))
}

fn open(guest: &mut Guest) -> anyhow::Result<Storage<bulkhead_tests::SoftPlatform>> {
    let offer = guest.offer(0)?;
    let options = StorageOptions { open: small(), timeout: Duration::from_secs(60), ..Default::default() };
    Ok(Storage::open(&mut guest.client, &offer, &options)?)
}

/// What a kernel does that finds disks, mounts one, works on it and leaves.
fn use_disks(storage: &mut Storage<bulkhead_tests::SoftPlatform>) -> anyhow::Result<()> {
    storage.report_luns()?;
    for lun in 0..2 {
        storage.inquiry(lun)?;
        for page in storage.inquiry_page(lun, 0)?.into_iter().skip(4) {
            storage.inquiry_page(lun, page)?;
        }
        storage.test_unit_ready(lun)?;
        let capacity = storage.read_capacity(lun)?;
        ensure!(capacity.blocks * u64::from(capacity.block_size) == SIZE, "{capacity:?}");
    }
    let data: Vec<u8> = (0..256 * BLOCK).map(|n| (n / 7) as u8).collect();
    storage.write(0, 2048, &data, BLOCK)?;
    storage.flush(0)?;
    ensure!(storage.read(0, 2048, 256, BLOCK)? == data, "what was written is not what is read");
    ensure!(storage.write(1, 0, &data, BLOCK).is_err(), "a read-only disk was written to");
    storage.unmap(0, &[(2048, 128), (2304, 8)])?;
    ensure!(storage.read(0, 2048, 128, BLOCK)?.iter().all(|byte| *byte == 0), "unmapped blocks are not zero");
    let buffer = storage.allocate(8 * BLOCK)?;
    for n in 0..32 {
        storage.submit(0, &read_10(n * 8, 8), Direction::Read, buffer)?;
    }
    for _ in 0..32 {
        storage.completion(LIMIT)?.context("a read does not end")?.moved()?;
    }
    storage.release(buffer);
    Ok(())
}

/// Ends the VM and holds what the device process did against its policy.
fn audit(mut vm: Vm, device: &str, policy: &Policy) -> anyhow::Result<()> {
    vm.core().kill()?;
    vm.core().wait()?;
    let status = vm.device(device).wait()?;
    ensure!(status.success(), "the device process ended with {status}");
    let mut usage = Usage::default();
    usage.read(&vm.trace(device)?);
    ensure!(usage.policies().any(|seen| seen.name == policy.name), "{} was never in force", policy.name);
    ensure!(usage.denied().is_empty(), "denied: {:?}", usage.denied());
    let unused = usage.unused(policy);
    ensure!(unused.is_empty(), "nothing used these rules of {}: {}", policy.name, list(&unused));
    Ok(())
}

fn list(rules: &[&Rule]) -> String {
    let name = |rule: &&Rule| {
        let conditions = rule.conditions.iter().map(|condition| format!(" {}", condition.name));
        format!("{}{}", rule.syscall, conditions.collect::<String>())
    };
    rules.iter().map(name).collect::<Vec<_>>().join(", ")
}
