//! Compartments of running processes, in the middle of serving a guest, as the rest of the machine sees them.

use anyhow::ensure;
use bulkhead_tests::{
    Vm,
    disk::Disk,
    net::{
        Backend, Nic, Wire,
        rig::{DEVICE, exercise as net_exercise},
    },
    process::Process,
    steps::{Guest, exercise, small},
};
use vsc::net::{Net, NetOptions};
use vsc::storage::{Storage, StorageOptions};

const MEMORY: u64 = 64 << 20;
const PAGE: u64 = 4096;
/// Pages of each ring: its data pages are mapped twice in a row, its control page once.
const RING: u64 = 4;
const RING_MAPPINGS: u64 = 2 * (1 + 2 * (RING - 1)) * PAGE;

#[test]
fn a_process_holds_what_it_serves_with_and_nothing_else() -> anyhow::Result<()> {
    let disk = Disk::in_memory(16 << 20)?;
    let mut vm = Vm::builder().memory(MEMORY).storage("disk0", &[disk.argument("")]).echo("echo").start()?;
    let mut guest = Guest::connect(&vm)?;
    let offer = guest.offer(0)?;
    let options = StorageOptions { open: small(), ..StorageOptions::default() };
    let mut storage = Storage::open(&mut guest.client, &offer, &options)?;
    storage.write(0, 0, &[7; PAGE as usize], 512)?;
    let mut echo = guest.echo(1)?;
    exercise(&mut echo)?;

    let core = Process::new("soft-core", vm.core().pid());
    let disk0 = Process::new("vsp-storage", vm.device("disk0").pid());
    let echo = Process::new("vsp-echo", vm.device("echo").pid());
    for process in [&core, &disk0, &echo] {
        process.has_no_privileges()?;
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: only root may look further into a compartment");
        return Ok(());
    }
    for process in [&core, &disk0, &echo] {
        process.is_alone()?;
    }

    // The disk is an ordinary descriptor: were it registered with the io_uring, its lock would outlive the process. And here, in
    // memory, where no request does, the lock has one of its own.
    let image = disk.path().display().to_string();
    let (events, to_core, heir) = ("anon_inode:[eventpoll]", "socket", "pipe");
    let (doorbell, disks) = ("anon_inode:[eventfd]", "anon_inode:[io_uring]");
    echo.has_descriptors(&[events, to_core, heir, doorbell, doorbell])?;
    disk0.has_descriptors(&[events, to_core, heir, doorbell, doorbell, disks, &image, &image])?;

    let (memory, theirs) = (echo.shared_memory()?, disk0.shared_memory()?);
    let names: Vec<_> = memory.keys().map(String::as_str).collect();
    ensure!(
        names == ["bulkhead-flags", "bulkhead-ledger", "bulkhead-ring"],
        "vsp-echo has mapped {memory:?}"
    );
    ensure!(memory["bulkhead-flags"].bytes == PAGE, "vsp-echo has mapped {memory:?}");
    ensure!(memory["bulkhead-ring"].bytes == RING_MAPPINGS, "vsp-echo has mapped {memory:?}");
    let names: Vec<_> = theirs.keys().map(String::as_str).collect();
    ensure!(
        names == ["bulkhead-flags", "bulkhead-ledger", "bulkhead-ram", "bulkhead-ring"],
        "vsp-storage has mapped {theirs:?}"
    );
    ensure!(theirs["bulkhead-ram"].bytes == MEMORY, "vsp-storage has mapped {theirs:?}");
    ensure!(theirs["bulkhead-ring"].bytes == RING_MAPPINGS, "vsp-storage has mapped {theirs:?}");
    for name in ["bulkhead-ring", "bulkhead-ledger"] {
        let (one, other) = (&memory[name].inodes, &theirs[name].inodes);
        ensure!(one.len() == 1 && other.len() == 1 && one != other, "one {name} is in two processes");
    }
    Ok(())
}

#[test]
fn a_nic_holds_its_rings_its_two_buffers_and_its_wire() -> anyhow::Result<()> {
    let (mut wire, theirs) = Wire::new()?;
    let nic = Nic::new(Backend::Stream(theirs));
    let mut vm = Vm::builder().memory(MEMORY).net(DEVICE, &nic).start()?;
    let mut guest = Guest::connect(&vm)?;
    let offer = guest.offer(0)?;
    let options = NetOptions { open: small(), ..NetOptions::small() };
    let mut net = Net::open(&mut guest.client, &offer, &options)?;
    net_exercise(&mut net, &mut wire)?;

    let process = Process::new("vsp-net", vm.device(DEVICE).pid());
    process.has_no_privileges()?;
    // What a packet names besides is fetched for it; it has neither the memory nor the right to ask for anything else.
    let exposed = vm.operator()?.device(DEVICE)?.exposed_bytes;
    let buffers = u64::from(net.receive_buffer().len + net.send_buffer().len);
    // The event flags are a page of the core's, which the guest sees too.
    ensure!(exposed == buffers + (2 * RING + 1) * PAGE, "{exposed} bytes of the guest's memory are exposed");
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: only root may look further into a compartment");
        return Ok(());
    }
    process.is_alone()?;
    let (events, socket, heir) = ("anon_inode:[eventpoll]", "socket", "pipe");
    let doorbell = "anon_inode:[eventfd]";
    process.has_descriptors(&[events, socket, socket, heir, doorbell, doorbell])?;
    let memory = process.shared_memory()?;
    let names: Vec<_> = memory.keys().map(String::as_str).collect();
    let wanted = [
        "bulkhead-fetch",
        "bulkhead-flags",
        "bulkhead-gpadl",
        "bulkhead-ledger",
        "bulkhead-net-frame",
        "bulkhead-ring",
    ];
    ensure!(names == wanted, "vsp-net has mapped {memory:?}");
    ensure!(memory["bulkhead-gpadl"].bytes == buffers, "vsp-net has mapped {memory:?}");
    ensure!(memory["bulkhead-ring"].bytes == RING_MAPPINGS, "vsp-net has mapped {memory:?}");
    // When the guest takes the buffers back, they are gone from here too.
    net.close(&mut guest.client, Vec::new())?;
    let exposed = vm.operator()?.device(DEVICE)?.exposed_bytes;
    ensure!(exposed == 0, "{exposed} bytes are exposed by a device that is closed");
    Ok(())
}
