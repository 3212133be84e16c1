use std::collections::HashMap;

use super::*;
use crate::programs::Programs;
use crate::spec::Disk;
use crate::spec::Net;
use crate::spec::net::{Backend, Exposure};
use crate::spec::{Boot, KernelKind, Machine, OnCrash};

fn disk(path: &str, readonly: bool) -> Disk {
    Disk { path: path.into(), bytes: 512, readonly, lun: 0, options: Default::default() }
}

fn spec() -> Spec {
    Spec {
        name: "debian".to_owned(),
        machine: Machine { vcpus: 2, memory: 1 << 30, hugepages: false, prefault: false },
        boot: Boot {
            kernel: "/boot/vmlinuz".into(),
            kernel_kind: KernelKind::BzImage,
            initrd: None,
            cmdline: "console=ttyS0 a=%i \"b c\"".to_owned(),
        },
        console: spec::Console::Terminal,
        on_crash: OnCrash::Exit,
        storage: vec![Storage {
            name: "disk0".to_owned(),
            disks: vec![disk("/srv/a.img", false)],
            spare: false,
        }],
        net: Vec::new(),
        pci: Vec::new(),
        screen: None,
    }
}

fn programs(directory: &Path) -> Programs {
    Programs {
        bulkhead: directory.join("bulkhead"),
        core_vmm: directory.join("core-vmm"),
        vsp_storage: directory.join("vsp-storage"),
        vsp_net: Some(directory.join("vsp-net")),
        passt: Some(directory.join("passt")),
        vsp_pci: Some(directory.join("vsp-pci")),
        vsp_video: Some(directory.join("vsp-video")),
        vsp_hid: Some(directory.join("vsp-hid")),
        console: Some(directory.join("bulkhead-console")),
    }
}

fn nic(name: &str, backend: Backend) -> Net {
    Net {
        name: name.to_owned(),
        mac: None,
        backend,
        queues: 2,
        memory: Exposure::Confined,
        antispoof: false,
        mtu: 1500,
        link: true,
        spare: false,
    }
}

/// Path to content.
fn written(spec: &Spec) -> HashMap<String, String> {
    let programs = programs(Path::new("/usr/bin"));
    let plan = Plan::new(spec, &programs, Some(ids::id(7, 0)));
    let files = files(spec, &plan, &programs.bulkhead, 7, |path| path.starts_with("/dev")).unwrap();
    files.into_iter().map(|file| (file.path.display().to_string(), file.content)).collect()
}

fn drop_in_of<'a>(files: &'a HashMap<String, String>, unit: &str) -> &'a str {
    &files[&format!("etc/systemd/system/{unit}.d/50-bulkhead.conf")]
}

#[test]
fn a_vm_is_a_target_a_core_and_two_units_a_device() {
    let files = written(&spec());
    let device = "vsp-storage@debian:disk0.service";
    assert_eq!(
        drop_in_of(&files, device).strip_prefix(HEADER).unwrap(),
        format!(
            "[Unit]\n{DEVICE_OF_CORE}Requisite=bulkhead-core@debian.service\n\
             StopPropagatedFrom=bulkhead-core@debian.service\nPartOf=bulkhead-vm@debian.target\n\
             After=bulkhead-core@debian.service bulkhead-core@debian.socket\n\
             [Service]\nUser=bulkhead-7-1\nExecStart=\n\
             ExecStart=\"/usr/bin/vsp-storage\" \"--core\" \"/run/bulkhead@debian/core.sock\" \"--device\" \"disk0\" \
             \"--disk\" \"lun=0,path=/srv/a.img\" \"--uid\" \"{id}\" \"--gid\" \"{id}\"\n\
             BindReadOnlyPaths=\"/usr/bin/vsp-storage\"\nBindPaths=\"/srv/a.img\"\n",
            id = ids::id(7, 1)
        )
    );
    assert_eq!(drop_in_of(&files, device), drop_in_of(&files, "vsp-storage@debian:disk0:b.service"));
    let target = drop_in_of(&files, "bulkhead-vm@debian.target");
    assert!(
        target.contains("Wants=bulkhead-core@debian.service vsp-storage@debian:disk0.service\n"),
        "{target}"
    );
}

#[test]
fn a_device_that_starts_again_cannot_start_its_vm_again() {
    let files = written(&spec());
    let template = &files["etc/systemd/system/vsp-storage@.service"];
    for text in [template.as_str(), drop_in_of(&files, "vsp-storage@debian:disk0.service")] {
        let pulls = |line: &&str| {
            ["Requires=", "BindsTo=", "Wants=", "Upholds=", "Sockets="]
                .iter()
                .any(|key| line.starts_with(key))
        };
        assert_eq!(text.lines().find(pulls), None);
    }
}

/// The command between a device's end and its next start, as systemd runs it.
#[test]
fn a_device_that_cannot_start_is_started_again_after_a_pause() {
    let template = TEMPLATES.iter().find(|(name, _)| *name == "vsp-storage@.service").unwrap().1;
    let command = template.lines().find_map(|line| line.strip_prefix("ExecStopPost=-+/bin/sh -c ")).unwrap();
    let script = command.trim_matches('\'').replace("$$", "$");
    let pauses = |result: &str, status: &str| {
        let mut shell = std::process::Command::new("/bin/sh");
        shell.args(["-c", &script]).env("SERVICE_RESULT", result).env("EXIT_STATUS", status);
        let start = std::time::Instant::now();
        assert!(shell.status().unwrap().success());
        start.elapsed() >= std::time::Duration::from_millis(200)
    };
    for (result, status) in
        [("exit-code", "1"), ("signal", "SEGV"), ("core-dump", "SYS"), ("protocol", "0"), ("", "")]
    {
        assert!(pauses(result, status), "{result} {status}");
    }
    for (result, status) in [("signal", "KILL"), ("success", "0"), ("watchdog", "ABRT"), ("timeout", "KILL")]
    {
        // The fastest of three: this machine may be busy.
        assert!((0..3).any(|_| !pauses(result, status)), "{result} {status}");
    }
}

#[test]
fn a_nic_has_a_unit_that_keeps_what_it_is_connected_to() {
    let mut spec = spec();
    spec.net = vec![nic("nic0", Backend::Passt), nic("nic1", Backend::Tap("tap0".into()))];
    let files = written(&spec);
    let device = drop_in_of(&files, "vsp-net@debian:nic0.service");
    assert!(device.contains("User=bulkhead-7-2\n"), "{device}");
    assert!(
        device.contains(
            "\"--stream-socket\" \"/run/bulkhead@debian/net1.sock\" \"--device\" \"nic0\" \"--mac\""
        ),
        "{device}"
    );
    assert!(
        device.contains("bulkhead-net@debian:nic0.socket bulkhead-net@debian:nic0.service\n"),
        "{device}"
    );
    let socket = drop_in_of(&files, "bulkhead-net@debian:nic0.socket");
    assert!(socket.contains("ListenSequentialPacket=/run/bulkhead@debian/net1.sock\n"), "{socket}");
    let passt = drop_in_of(&files, "bulkhead-net@debian:nic0.service");
    assert!(passt.contains("User=bulkhead-7-4\n") && passt.contains("AF_INET"), "{passt}");
    let line = format!("\"net\" \"hold\" \"--device\" \"nic0\" \"--user\" \"{}\" \"--passt\"", ids::id(7, 2));
    assert!(passt.contains(&line), "{passt}");
    // A TAP is the device's own, and its holder has no network.
    let tap = drop_in_of(&files, "bulkhead-net@debian:nic1.service");
    assert!(tap.contains("User=bulkhead-7-3\n") && !tap.contains("AF_INET"), "{tap}");
    let target = drop_in_of(&files, "bulkhead-vm@debian.target");
    for unit in
        ["vsp-net@debian:nic1.service", "bulkhead-net@debian:nic1.service", "bulkhead-net@debian:nic1.socket"]
    {
        assert!(target.contains(unit), "{target}");
    }
    let users = &files["etc/sysusers.d/bulkhead-debian.conf"];
    for (position, member) in
        ["core", "disk0", "nic0", "nic1", "what nic0 is connected to", "what nic1 is connected to"]
            .iter()
            .enumerate()
    {
        let line =
            format!("u bulkhead-7-{position} {} \"Bulkhead VM debian, {member}\"", ids::id(7, position));
        assert!(users.contains(&line), "{users}");
    }
}

fn screen() -> spec::Screen {
    spec::Screen {
        vram: 32 << 20,
        spare: false,
        listen: Some("127.0.0.1:5900".parse().unwrap()),
        password_file: Some("/etc/vnc".into()),
        web: None,
        tls: None,
        novnc: None,
    }
}

#[test]
fn a_screen_has_a_unit_for_each_process_and_one_that_keeps_what_lies_between() {
    let mut spec = spec();
    spec.net = vec![nic("nic0", Backend::Passt)];
    spec.screen = Some(screen());
    let files = written(&spec);
    let video = drop_in_of(&files, "vsp-video@debian:video.service");
    assert!(
        video.contains(
            "\"--core\" \"/run/bulkhead@debian/core.sock\" \"--seat-socket\" \"/run/bulkhead@debian/video.sock\" \"--device\" \"video\" \"--vram\" \"32\""
        ),
        "{video}"
    );
    assert!(video.contains("User=bulkhead-7-4\n"), "{video}");
    assert!(video.contains("After=bulkhead-core@debian.service bulkhead-core@debian.socket bulkhead-seat@debian.socket bulkhead-seat@debian.service\n"));
    assert!(
        drop_in_of(&files, "vsp-hid@debian:mouse:b.service")
            .contains("mouse.sock\" \"--device\" \"mouse\" \"--mouse\"")
    );
    let console = drop_in_of(&files, "bulkhead-console@debian:console.service");
    assert!(!console.contains("--core"), "{console}");
    assert!(console.contains("\"--seat-socket\" \"/run/bulkhead@debian/console.seat.sock\" \"--device\" \"console\" \"--name\" \"debian\""));
    assert!(console.contains("BindReadOnlyPaths=\"/etc/vnc\"\n"), "{console}");
    assert!(
        !files
            .contains_key("etc/systemd/system/bulkhead-console@debian:console:b.service.d/50-bulkhead.conf")
    );
    let seat = drop_in_of(&files, "bulkhead-seat@debian.service");
    let ids: Vec<String> = (4..8).map(|number| format!("\"{}\"", ids::id(7, number))).collect();
    let users = format!("\"hold-seat\" \"--users\" {} \"--listen\" \"127.0.0.1:5900\"\n", ids.join(" "));
    assert!(seat.contains(&users) && seat.contains("User=bulkhead-7-8\n"), "{seat}");
    assert!(!seat.contains("IPAddressDeny"), "only this host can connect: {seat}");
    let users = &files["etc/sysusers.d/bulkhead-debian.conf"];
    for (number, member) in
        [(3, "what nic0 is connected to"), (4, "video"), (7, "console"), (8, "what lies between its screen")]
    {
        assert!(
            users.contains(&format!(
                "u bulkhead-7-{number} {} \"Bulkhead VM debian, {member}",
                ids::id(7, number)
            )),
            "{users}"
        );
    }
    let target = drop_in_of(&files, "bulkhead-vm@debian.target");
    for unit in [
        "bulkhead-seat@debian.socket",
        "vsp-hid@debian:keyboard.service",
        "bulkhead-console@debian:console.service",
    ] {
        assert!(target.contains(unit), "{target}");
    }
    let socket = &files["etc/systemd/system/bulkhead-seat@.socket"];
    let paths: Vec<&str> = socket
        .lines()
        .filter(|line| line.starts_with("Listen"))
        .filter_map(|line| line.rsplit('/').next())
        .collect();
    assert_eq!(paths, crate::screen::holder::SOCKETS, "the order in which systemd hands them over");
    assert!(!seat.contains("CAP_NET_BIND_SERVICE"), "everybody may have port 5900: {seat}");
    spec.screen = Some(spec::Screen { listen: None, web: Some("0.0.0.0:80".parse().unwrap()), ..screen() });
    let files = written(&spec);
    let seat = drop_in_of(&files, "bulkhead-seat@debian.service");
    assert!(seat.contains("\nIPAddressDeny=\n"), "{seat}");
    assert!(seat.contains("\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n"), "{seat}");
}

#[test]
fn a_spare_is_wanted_too() {
    let mut spec = spec();
    spec.storage[0].spare = true;
    let files = written(&spec);
    assert!(drop_in_of(&files, "bulkhead-vm@debian.target").contains("vsp-storage@debian:disk0:b.service"));
}

#[test]
fn the_core_is_told_everything_by_its_file_and_listens_where_devices_connect() {
    let files = written(&spec());
    let config: ipc::config::CoreConfig =
        serde_json::from_str(&files["etc/bulkhead/debian/core.json"]).unwrap();
    assert_eq!(config.cmdline, spec().boot.cmdline, "JSON carries what units would have to escape");
    assert_eq!(config.console, Console::Socket("/run/bulkhead@debian/console.sock".into()));
    assert_eq!((config.uid, config.devices[0].uid), (Some(ids::id(7, 0)), Some(ids::id(7, 1))));
    let core = drop_in_of(&files, "bulkhead-core@debian.service");
    assert!(
        core.contains(
            "\"--config\" \"/etc/bulkhead/debian/core.json\" \"--listen-fd\" \"3\" \"--no-pid-namespace\"\n"
        ),
        "{core}"
    );
    let socket = files["etc/systemd/system/bulkhead-core@.socket"].replace("%i", "debian");
    assert!(socket.contains("ListenSequentialPacket=/run/bulkhead@debian/core.sock\n"));
}

#[test]
fn every_process_has_a_declared_user_with_the_id_that_the_core_expects() {
    let files = written(&spec());
    let users = &files["etc/sysusers.d/bulkhead-debian.conf"];
    for (position, name) in ["core", "disk0"].iter().enumerate() {
        let line =
            format!("u bulkhead-7-{position} {} \"Bulkhead VM debian, {name}\" - -\n", ids::id(7, position));
        assert!(users.contains(&line), "{users}");
    }
}

#[test]
fn a_process_can_write_to_its_disks_alone() {
    let mut spec = spec();
    spec.storage[0].disks =
        vec![disk("/dev/vg/data", false), disk("/dev/sr0", true), disk("/home/me/x.img", false)];
    let files = written(&spec);
    let device = drop_in_of(&files, "vsp-storage@debian:disk0.service");
    let (_, paths) = device.split_once("BindReadOnlyPaths=\"/usr/bin/vsp-storage\"\n").unwrap();
    assert_eq!(
        paths,
        "BindPaths=\"/dev/vg/data\"\nDeviceAllow=\"/dev/vg/data\" rw\nBindReadOnlyPaths=\"/dev/sr0\"\n\
         DeviceAllow=\"/dev/sr0\" r\nProtectHome=tmpfs\nBindPaths=\"/home/me/x.img\"\n"
    );
}

#[test]
fn a_console_of_the_operators_own_choice_stays_his() {
    let mut spec = spec();
    spec.console = spec::Console::Socket("/srv/vm/c.sock".into());
    let files = written(&spec);
    assert!(files["etc/bulkhead/debian/core.json"].contains("/srv/vm/c.sock"));
    assert!(drop_in_of(&files, "bulkhead-core@debian.service").contains("BindPaths=\"/srv/vm\"\n"));
}

#[test]
fn hostile_paths_stay_values() {
    let path = "/srv/100% $HOME \"x\" \\n:y ; z.img";
    let mut spec = spec();
    spec.storage[0].disks[0].path = path.into();
    let files = written(&spec);
    let device = drop_in_of(&files, "vsp-storage@debian:disk0.service");
    assert!(device.contains(r#""lun=0,path=/srv/100%% $$HOME \"x\" \\n:y ; z.img""#), "{device}");
    assert!(device.contains(r#"BindPaths="/srv/100%% $HOME \"x\" \\n:y ; z.img""#), "{device}");
    spec.storage[0].disks[0].path = "/srv/a\nUser=root".into();
    let plan = Plan::new(&spec, &programs(Path::new("/")), Some(1));
    assert!(super::files(&spec, &plan, Path::new("/b"), 0, |_| false).is_err());
}

/// It asks the kernel for the interface before it opens the device file.
#[test]
fn what_opens_an_interface_may_ask_the_kernel_for_it() {
    for backend in [Backend::Tap("tap0".into()), Backend::Macvtap("macvtap0".into())] {
        let mut spec = spec();
        spec.net = vec![nic("nic0", backend)];
        let holder = drop_in_of(&written(&spec), "bulkhead-net@debian:nic0.service").to_owned();
        assert!(holder.contains("RestrictAddressFamilies=AF_NETLINK\n"), "{holder}");
    }
}

/// What systemd itself says of the units of a VM with hostile paths: nothing; and of their hardening.
#[test]
fn systemd_reads_the_units_without_a_word_and_likes_their_hardening() {
    let directory = std::env::temp_dir().join(format!("bulkhead-verify-{}", std::process::id()));
    let programs = programs(&directory.join("100% bin"));
    std::fs::create_dir_all(directory.join("100% bin")).unwrap();
    let more =
        [&programs.vsp_net, &programs.passt, &programs.vsp_video, &programs.vsp_hid, &programs.console];
    let more = more.into_iter().flatten();
    for program in [&programs.bulkhead, &programs.core_vmm, &programs.vsp_storage].into_iter().chain(more) {
        std::fs::copy("/bin/true", program).unwrap();
    }
    let mut spec = spec();
    spec.net = vec![
        nic("nic0", Backend::Passt),
        nic("nic1", Backend::Tap("tap0".into())),
        nic("nic2", Backend::Macvtap("macvtap0".into())),
    ];
    spec.screen = Some(spec::Screen { password_file: Some("/etc/hostname".into()), ..screen() });
    spec.storage[0].disks =
        vec![disk("/srv/%i $HOME \"q\" 'a' \\n:y ; z.img", false), disk("/home/u/colon:rbind.img", true)];
    let plan = Plan::new(&spec, &programs, Some(ids::id(7, 0)));
    for file in super::files(&spec, &plan, &programs.bulkhead, 7, |_| false).unwrap() {
        let path = directory.join(&file.path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        // Users of this machine do not include the VM's.
        let own = |line: &str| match line.strip_prefix("User=bulkhead-7-") {
            Some(_) => "User=daemon\n".to_owned(),
            None => format!("{line}\n"),
        };
        let content: String = file.content.lines().map(own).collect();
        // To `verify` a colon separates a file from the name that it is to have: it gets a twin of the device without one.
        if let Some((before, after)) = path.to_str().and_then(|path| path.split_once("@debian:"))
            && !after.contains(":b.")
        {
            let twin = PathBuf::from(format!("{before}@debian-{after}"));
            std::fs::create_dir_all(twin.parent().unwrap()).unwrap();
            std::fs::write(twin, content.replace("@debian:nic", "@debian-nic")).unwrap();
        }
        std::fs::write(path, content).unwrap();
    }
    let units = directory.join(UNITS);
    // As `systemctl enable` does.
    let wanted = units.join("multi-user.target.wants");
    std::fs::create_dir_all(&wanted).unwrap();
    std::os::unix::fs::symlink("../bulkhead-vm@.target", wanted.join("bulkhead-vm@debian.target")).unwrap();
    let analyze = |arguments: &[&str]| {
        let mut command = std::process::Command::new("systemd-analyze");
        command.args(arguments).env("SYSTEMD_UNIT_PATH", format!("{}:", units.display())).current_dir(&units);
        command.output().map(|output| {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            (output.status.success(), said, String::from_utf8_lossy(&output.stdout).into_owned())
        })
    };
    let device = "./vsp-storage@debian:disk0.service";
    let verified = [
        "./vsp-storage@debian-disk0.service",
        "./vsp-net@debian-nic0.service",
        "./bulkhead-net@debian-nic0.service",
        "./bulkhead-net@debian-nic0.socket",
        "./bulkhead-net@debian-nic1.service",
        "./bulkhead-net@debian-nic2.service",
        "./vsp-video@debian-video.service",
        "./vsp-hid@debian-mouse.service",
        "./bulkhead-console@debian-console.service",
        "./bulkhead-seat@debian.service",
        "./bulkhead-seat@debian.socket",
        "./bulkhead-core@debian.service",
        "./bulkhead-vm@debian.target",
    ];
    match analyze(&[&["verify", "--man=no"][..], &verified].concat()) {
        Err(_) => eprintln!("SKIPPED: there is no systemd-analyze here"),
        Ok((_, said, _)) => {
            assert!(!said.contains("aliases"), "it has read none of them: {said}");
            assert!(!said.contains("bulkhead") && !said.contains("vsp-"), "{said}");
            // All of it in one transaction with what a host boots: an order that is a circle shows only there.
            let (_, said, _) = analyze(&["verify", "--man=no", "multi-user.target"]).unwrap();
            assert!(!said.contains("bulkhead") && !said.contains("vsp-"), "{said}");
            for (unit, threshold) in [
                (device, "15"),
                ("./vsp-net@debian:nic0.service", "15"),
                ("./bulkhead-core@debian.service", "22"),
                ("./bulkhead-net@debian:nic0.service", "24"),
                ("./bulkhead-net@debian:nic1.service", "12"),
                ("./vsp-video@debian:video.service", "15"),
                ("./vsp-hid@debian:keyboard.service", "15"),
                ("./bulkhead-console@debian:console.service", "15"),
                ("./bulkhead-seat@debian.service", "15"),
            ] {
                let threshold = format!("--threshold={threshold}");
                let (good, _, table) = analyze(&["security", "--offline=true", &threshold, unit]).unwrap();
                assert!(good, "{table}");
            }
        }
    }
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn a_pci_device_has_the_nodes_of_its_group_and_no_others() {
    let mut spec = spec();
    spec.pci =
        vec![spec::Pci { name: "nic".into(), address: "03:00.0".parse().unwrap(), group: 7, spare: true }];
    let files = written(&spec);
    let unit = drop_in_of(&files, "vsp-pci@debian:nic.service");
    assert!(unit.contains("\"--device\" \"nic\" \"--address\" \"0000:03:00.0\" \"--group\" \"7\""), "{unit}");
    assert!(
        unit.contains(
            "BindPaths=\"-/dev/vfio/vfio\"\nDeviceAllow=\"/dev/vfio/vfio\" rw\nBindPaths=\"-/dev/vfio/7\"\nDeviceAllow=\"/dev/vfio/7\" rw\n"
        ),
        "{unit}"
    );
    assert_eq!(unit, drop_in_of(&files, "vsp-pci@debian:nic:b.service"));
    assert!(drop_in_of(&files, "bulkhead-vm@debian.target").contains("vsp-pci@debian:nic:b.service"));
    let users = &files["etc/sysusers.d/bulkhead-debian.conf"];
    assert!(users.contains("u bulkhead-7-2 ") && users.contains("u bulkhead-7-10 "), "{users}");
}
