//! What the processes of a screen, a keyboard, a mouse and a console hold: their rings, their own video memory, and not one
//! byte of the guest's RAM; and that a life uses every rule of their policies.

use anyhow::{Context, ensure};
use bulkhead_tests::{
    process::Process,
    screen::{
        Rig,
        console::Setup,
        rig::{DEVICES, KEYBOARD, MOUSE, VIDEO, VRAM},
    },
    steps::{Dice, LIMIT, small},
};
use sandbox::policies::{self, Policy, audit::Usage};
use vsc::video::{Situation, VideoOptions};

const PAGE: u64 = 4096;
const SMALL: Situation = Situation::of(640, 480);
/// Bytes of the event flags: a page of the core's, which the guest sees too.
const FLAGS: u64 = PAGE;

/// Mapped bytes of rings of so many pages each: data pages twice in a row, control pages once.
const fn ring_mappings(pages: u64) -> u64 {
    2 * (1 + 2 * (pages - 1)) * PAGE
}

#[test]
fn nobody_maps_guest_memory() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    let options = VideoOptions { open: small(), ..VideoOptions::default() };
    let video = rig.video(&options)?;
    let mut canvas = bulkhead_tests::screen::Canvas::new(video, SMALL)?;
    let (mut keyboard, mut mouse) = (rig.keyboard()?, rig.mouse()?);
    rig.console()?.wait("ready", |state| state["keyboard"] == true && state["mouse"] == true)?;
    let mut viewer = rig.viewer()?;
    canvas.scribble(&mut Dice(1))?;
    viewer.until_same(&canvas.picture)?;
    viewer.key(true, 0x61)?;
    keyboard.stroke(LIMIT)?.context("a stroke is lost")?;
    viewer.pointer(0, 3, 3)?;
    mouse.report(LIMIT)?.context("a move is lost")?;

    // What the core says of them: rings, and the page of event flags.
    let operator = rig.vm.operator()?;
    for (name, pages) in [(VIDEO, 4), (KEYBOARD, 10), (MOUSE, 10)] {
        let exposed = operator.device(name)?.exposed_bytes;
        ensure!(exposed == 2 * pages * PAGE + FLAGS, "{exposed} bytes are exposed to {name}");
    }

    let mut processes = Vec::new();
    for name in DEVICES {
        processes.push(Process::new(name, rig.vm.device(name).pid()));
    }
    let console = Process::new("the console", rig.console()?.process().pid());
    for process in processes.iter().chain([&console]) {
        process.has_no_privileges()?;
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: only root may look further into a compartment");
        return Ok(());
    }
    for process in processes.iter().chain([&console]) {
        process.is_alone()?;
    }
    let names = |process: &Process| -> anyhow::Result<Vec<String>> {
        Ok(process.shared_memory()?.into_keys().collect())
    };
    for (process, pages) in processes.iter().zip([4, 10, 10]) {
        let memory = process.shared_memory()?;
        let wanted = ["bulkhead-flags", "bulkhead-ledger", "bulkhead-ring"];
        // Video memory is not mapped even by the one whose it is.
        ensure!(names(process)? == wanted, "{process:?} has mapped {memory:?}");
        ensure!(memory["bulkhead-ring"].bytes == ring_mappings(pages), "{process:?} has mapped {memory:?}");
        ensure!(memory["bulkhead-flags"].bytes == FLAGS, "{process:?} has mapped {memory:?}");
    }
    // The console has the picture, to read, and nothing that has to do with the guest besides.
    let memory = console.shared_memory()?;
    ensure!(memory.len() == 1, "the console has mapped {memory:?}");
    ensure!(memory.values().all(|mapped| mapped.bytes <= VRAM), "the console has mapped {memory:?}");
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", rig.console()?.process().pid()))?;
    for line in maps.lines().filter(|line| line.contains("/memfd:")) {
        ensure!(line.contains(" r--s "), "the console may write: {line}");
    }

    // A screen that is closed exposes nothing, and shows nothing.
    rig.guest.client.close(canvas.video.into_channel())?;
    rig.guest.client.close(keyboard.into_channel())?;
    rig.guest.client.close(mouse.into_channel())?;
    for name in DEVICES {
        let exposed = operator.device(name)?.exposed_bytes;
        ensure!(exposed == 0, "{exposed} bytes are exposed to {name}, which is closed");
    }
    Ok(())
}

/// The kernel lets nobody else look at the memory of a process in its compartment.
fn may_trace() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: only root may trace a process in its compartment; the policies were NOT audited");
    }
    root
}

fn audit(name: &str, trace: &str, policy: &Policy) -> anyhow::Result<()> {
    let mut usage = Usage::default();
    usage.read(trace);
    ensure!(usage.policies().any(|seen| seen.name == policy.name), "{} was never in force", policy.name);
    ensure!(usage.denied().is_empty(), "{name}: denied: {:?}", usage.denied());
    let unused: Vec<String> = usage.unused(policy).iter().map(|rule| rule.syscall.to_string()).collect();
    ensure!(unused.is_empty(), "nothing used these rules of {}: {}", policy.name, unused.join(", "));
    Ok(())
}

#[test]
fn a_life_uses_every_rule_of_the_policies() -> anyhow::Result<()> {
    if !may_trace() {
        return Ok(());
    }
    let setup = Setup { traced: true, password: Some("secret".into()), ..Setup::default() };
    let mut rig = Rig::with(|vm| vm.traced(), &setup)?;
    for round in 0..2 {
        let mut canvas = rig.canvas(SMALL)?;
        let (mut keyboard, mut mouse) = (rig.keyboard()?, rig.mouse()?);
        rig.console()?.wait("ready", |state| state["keyboard"] == true && state["mouse"] == true)?;
        let mut viewer = rig.viewer()?;
        let mut dice = Dice(round + 5);
        for _ in 0..5 {
            canvas.scribble(&mut dice)?;
            viewer.until_same(&canvas.picture)?;
        }
        canvas = canvas.change(Situation::of(1280, 1024))?;
        canvas.scribble(&mut dice)?;
        viewer.until_same(&canvas.picture)?;
        for keysym in 0x61..0x7b {
            viewer.key(true, keysym)?;
            viewer.key(false, keysym)?;
        }
        for _ in 0..52 {
            keyboard.stroke(LIMIT)?.context("a stroke is lost")?;
        }
        viewer.pointer(1, 9, 9)?;
        mouse.report(LIMIT)?.context("a click is lost")?;
        rig.console()?.ask(r#"{"screenshot":{}}"#)?;
        rig.console()?.ask(r#"{"key":"ctrl-alt-del"}"#)?;
        let port = rig.console()?.port()?;
        let stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
        let options =
            bulkhead_tests::screen::viewer::Options { password: Some("secret"), ..Default::default() };
        bulkhead_tests::screen::Viewer::over(stream, &options)?.until_same(&canvas.picture)?;
        if round == 0 {
            rig.guest.client.close(canvas.video.into_channel())?;
            rig.guest.client.close(keyboard.into_channel())?;
            rig.guest.client.close(mouse.into_channel())?;
        } else {
            rig.reset()?;
        }
    }
    // The console ends with nobody's death; its log is whole once it is dead.
    rig.console()?.process().kill()?;
    rig.console()?.process().wait()?;
    std::thread::sleep(std::time::Duration::from_millis(200));
    let console = rig.console()?.trace()?;
    rig.vm.core().kill()?;
    rig.vm.core().wait()?;
    let mut all = Ok(());
    let mut keep = |result: anyhow::Result<()>| {
        if let Err(error) = result {
            eprintln!("{error:#}");
            all = Err(error);
        }
    };
    for (name, policy) in [(VIDEO, "vsp-video"), (KEYBOARD, "vsp-hid"), (MOUSE, "vsp-hid")] {
        let status = rig.vm.device(name).wait()?;
        ensure!(status.success(), "{name} ended with {status}");
        let policy = policies::Policy::named(policy).with_context(|| format!("no policy {policy}"))?;
        keep(audit(name, &rig.vm.trace(name)?, &policy));
    }
    // That a console's life uses every rule is tested where browsers are (`console/tests`).
    let mut usage = Usage::default();
    usage.read(&console);
    ensure!(usage.policies().any(|seen| seen.name == "console"), "the console's policy was never in force");
    ensure!(usage.denied().is_empty(), "console: denied: {:?}", usage.denied());
    all
}

/// What issue 6 asks: at most 12 system calls for keyboard and mouse, 15 for the screen.
#[test]
fn policies_are_small() -> anyhow::Result<()> {
    for (name, most) in [("vsp-hid", 12), ("vsp-video", 15)] {
        let policy = policies::Policy::named(name).with_context(|| format!("no policy {name}"))?;
        let usual: std::collections::BTreeSet<_> = policy
            .rules()
            .iter()
            .filter(|rule| !rule.rare && !rule.refused)
            .map(|rule| rule.syscall)
            .collect();
        ensure!(usual.len() <= most, "{name} has {}: {usual:?}", usual.len());
    }
    Ok(())
}
