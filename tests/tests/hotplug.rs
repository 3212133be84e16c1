//! `bulkhead disk` and `bulkhead device ls --stats` under the real supervisor, while device processes die, are swapped and stood by for.

use std::{os::unix::fs::FileExt, process::Command};

use anyhow::{Context, bail, ensure};
use bulkhead_tests::{
    SoftPlatform,
    campaign::victim::{Kind, Victim},
    disk::Disk,
    load::{Load, Shape},
    steps::{LIMIT, small},
    supervised::{DEVICE, RETURNS_WITHIN, Setup, Supervised, row, served},
    vm,
};
use vsc::{
    Error,
    storage::{Storage, StorageOptions},
};

const SIZE: u64 = 8 << 20;
const BLOCK: u32 = 512;
/// CAPACITY DATA HAS CHANGED: UNIT ATTENTION, 2A/09.
const GREW: (u8, u8, u8) = (6, 0x2A, 9);

/// Types a command; what it prints.
fn bulkhead(vm: &Supervised, words: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(vm::program("bulkhead")?);
    let output = command.args(words).arg("--runtime-dir").arg(vm.directory().join("run")).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.success(), "{words:?}: {}", text(&output.stderr));
    Ok(text(&output.stdout))
}

fn disk(vm: &Supervised, act: &str, rest: &[&str]) -> anyhow::Result<String> {
    bulkhead(vm, &[&["disk", act, "soft", DEVICE], rest].concat())
}

fn add(vm: &Supervised, disk_to_add: &Disk, lun: u8) -> anyhow::Result<String> {
    disk(vm, "add", &[&disk_to_add.argument(&format!(",lun={lun}"))])
}

fn luns(storage: &mut Storage<SoftPlatform>) -> anyhow::Result<Vec<u8>> {
    Ok(storage.report_luns()?)
}

fn sense<T>(result: Result<T, Error>) -> Option<(u8, u8, u8)> {
    match result {
        Err(Error::Scsi { sense, .. }) if sense.len() > 13 => Some((sense[2] & 0xF, sense[12], sense[13])),
        _ => None,
    }
}

fn kill(vm: &Supervised) -> anyhow::Result<()> {
    let pid = row(&mut *vm.backend()?)?.pid.context("nobody serves")?;
    Victim::new(pid)?.end(Kind::Kill)?;
    Ok(())
}

#[test]
fn a_disk_outlives_every_process() -> anyhow::Result<()> {
    for spare in [false, true] {
        let (first, second) = (Disk::new(SIZE)?, Disk::new(SIZE)?);
        let vm = Supervised::start(&first, &Setup { spare, ..Setup::default() })?;
        let (mut client, offer) = vm.guest()?;
        let mut storage = Storage::open(
            &mut client,
            &offer,
            &StorageOptions { open: small(), ..StorageOptions::default() },
        )?;
        storage.test_unit_ready(0)?;
        served(&mut *vm.backend()?, spare)?;
        let said = disk(&vm, "add", &[&second.argument(",serial=SECOND")])?;
        ensure!(said.starts_with("disk0: LUN 1 is /") && said.contains("8 MiB"), "{said}");
        ensure!(luns(&mut storage)? == [0, 1]);
        storage.write(1, 0, &[7; 4096], BLOCK)?;
        let mut on_disk = [0; 4096];
        second.file.read_exact_at(&mut on_disk, 0)?;
        ensure!(on_disk == [7; 4096]);

        // Whoever comes next has it, by whichever way it comes.
        type Act = fn(&Supervised) -> anyhow::Result<()>;
        let acts: [Act; 3] = [
            kill,
            |vm| bulkhead(vm, &["device", "restart", "soft", DEVICE]).map(drop),
            |vm| bulkhead(vm, &["device", "swap", "soft", DEVICE]).map(drop),
        ];
        for act in acts {
            served(&mut *vm.backend()?, spare)?;
            act(&vm)?;
            ensure!(storage.read(1, 0, 8, BLOCK)? == [7; 4096]);
            ensure!(luns(&mut storage)? == [0, 1]);
        }

        served(&mut *vm.backend()?, spare)?;
        let said = disk(&vm, "resize", &["1", "16MiB"])?;
        ensure!(said.contains("16 MiB") && second.file.metadata()?.len() == 16 << 20, "{said}");
        ensure!(sense(storage.test_unit_ready(1)) == Some(GREW));
        ensure!(storage.read_capacity(1)?.blocks == (16 << 20) / u64::from(BLOCK));
        ensure!(disk(&vm, "resize", &["1", "8MiB"]).is_err(), "a disk in use is not made smaller");

        let stats: serde_json::Value =
            serde_json::from_str(&bulkhead(&vm, &["device", "ls", "soft", "--stats", "--json"])?)?;
        ensure!(stats[0]["disks"][1]["lun"] == 1 && stats[0]["disks"][1]["bytes"] == 16 << 20, "{stats}");
        let table = bulkhead(&vm, &["device", "ls", "soft", "--stats"])?;
        ensure!(table.lines().count() == 3 && table.contains("p50/p99"), "{table}");

        disk(&vm, "remove", &["1"])?;
        second.file.try_lock().context("somebody uses it still")?;
        ensure!(luns(&mut storage)? == [0] && storage.test_unit_ready(1).is_err());
        served(&mut *vm.backend()?, spare)?;
        kill(&vm)?;
        ensure!(luns(&mut storage)? == [0], "it does not come back");
        ensure!(disk(&vm, "ls", &[])?.lines().count() == 1);
    }
    Ok(())
}

#[test]
fn what_cannot_be_is_refused_and_nothing_is_changed() -> anyhow::Result<()> {
    let (first, second) = (Disk::new(SIZE)?, Disk::new(SIZE)?);
    let vm = Supervised::start(&first, &Setup { spare: true, ..Setup::default() })?;
    let (mut client, offer) = vm.guest()?;
    let mut storage = Storage::open(&mut client, &offer, &StorageOptions::default())?;
    let before = disk(&vm, "ls", &[])?;
    let refused = |words: &[&str], why: &str| match disk(&vm, words[0], &words[1..]) {
        Err(error) if error.to_string().contains(why) => Ok(()),
        other => bail!("{words:?}: {other:?}"),
    };
    refused(&["add", "path=/nonexistent"], "/nonexistent")?;
    refused(&["add", "lun=3"], "path=FILE")?;
    refused(&["add", &second.argument(",lun=0")], "LUN 0 is taken")?;
    refused(&["add", &second.argument(",colour=red")], "colour")?;
    refused(&["add", &first.argument("")], "is LUN 0 of this device already")?;
    refused(&["remove", "9"], "has no LUN 9")?;
    refused(&["resize", "9"], "has no LUN 9")?;
    second.file.try_lock()?;
    refused(&["add", &second.argument("")], "in use")?;
    second.file.unlock()?;
    ensure!(disk(&vm, "ls", &[])? == before && luns(&mut storage)? == [0]);
    served(&mut *vm.backend()?, true)?;
    kill(&vm)?;
    ensure!(luns(&mut storage)? == [0]);
    add(&vm, &second, 4)?;
    ensure!(luns(&mut storage)? == [0, 4]);
    Ok(())
}

#[test]
fn disks_come_and_go_under_load_while_processes_die() -> anyhow::Result<()> {
    for spare in [false, true] {
        let (first, second) = (Disk::new(SIZE)?, Disk::new(SIZE)?);
        let vm = Supervised::start(&first, &Setup { spare, ..Setup::default() })?;
        let (mut client, offer) = vm.guest()?;
        let load = Load::start(&mut client, &offer, Shape::FULL, Load::blocks(SIZE), 9)?;
        ensure!(load.pulse.wait_beats(50, LIMIT), "the load does not get going");
        for round in 0..8u64 {
            served(&mut *vm.backend()?, false)?;
            // Just before it is told, and just after.
            if round % 2 == 0 {
                kill(&vm)?;
            }
            add(&vm, &second, 3).with_context(|| vm.log())?;
            if round % 4 == 1 {
                kill(&vm)?;
            }
            let size = (16 + round) << 20;
            disk(&vm, "resize", &["3", &size.to_string()]).with_context(|| vm.log())?;
            if round % 4 == 3 {
                kill(&vm)?;
            }
            disk(&vm, "remove", &["3"]).with_context(|| vm.log())?;
            second.file.try_lock().with_context(|| format!("round {round}: it is not free"))?;
            second.file.unlock()?;
            ensure!(load.pulse.wait_beats(20, RETURNS_WITHIN), "the load stands still after round {round}");
        }
        let (tally, _) = load.finish(&first)?;
        ensure!(tally.is_clean(), "{tally:#?}\n{}", vm.log());
    }
    Ok(())
}
