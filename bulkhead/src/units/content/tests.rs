use std::collections::HashMap;

use super::*;
use crate::programs::Programs;
use crate::spec::{Boot, KernelKind, Machine, OnCrash};

fn disk(path: &str, readonly: bool) -> Disk {
    Disk { path: path.into(), bytes: 512, readonly, lun: 0 }
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
    }
}

/// Path to content.
fn written(spec: &Spec) -> HashMap<String, String> {
    let programs =
        Programs { core_vmm: "/usr/bin/core-vmm".into(), vsp_storage: "/usr/bin/vsp-storage".into() };
    let plan = Plan::new(spec, &programs, Some(ids::id(7, 0)));
    let files = files(spec, &plan, 7, |path| path.starts_with("/dev")).unwrap();
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
            "[Unit]\nBindsTo=bulkhead-core@debian.service\nPartOf=bulkhead-vm@debian.target\n\
             Requires=bulkhead-core@debian.socket\nAfter=bulkhead-core@debian.socket\n\
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
        core.contains("\"--config\" \"/etc/bulkhead/debian/core.json\" \"--listen-fd\" \"3\"\n"),
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
    let programs = Programs { core_vmm: "/c".into(), vsp_storage: "/v".into() };
    let plan = Plan::new(&spec, &programs, Some(1));
    assert!(super::files(&spec, &plan, 0, |_| false).is_err());
}

/// What systemd itself says of the units of a VM with hostile paths: nothing; and of their hardening.
#[test]
fn systemd_reads_the_units_without_a_word_and_likes_their_hardening() {
    let directory = std::env::temp_dir().join(format!("bulkhead-verify-{}", std::process::id()));
    let programs = Programs {
        core_vmm: directory.join("100% bin/core-vmm"),
        vsp_storage: directory.join("100% bin/vsp-storage"),
    };
    std::fs::create_dir_all(directory.join("100% bin")).unwrap();
    for program in [&programs.core_vmm, &programs.vsp_storage] {
        std::fs::copy("/bin/true", program).unwrap();
    }
    let mut spec = spec();
    spec.storage[0].disks =
        vec![disk("/srv/%i $HOME \"q\" 'a' \\n:y ; z.img", false), disk("/home/u/colon:rbind.img", true)];
    let plan = Plan::new(&spec, &programs, Some(ids::id(7, 0)));
    for file in super::files(&spec, &plan, 7, |_| false).unwrap() {
        let path = directory.join(&file.path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        // Users of this machine do not include the VM's.
        std::fs::write(path, file.content.replace("User=bulkhead-7-1", "User=daemon")).unwrap();
    }
    let units = directory.join(UNITS);
    let analyze = |arguments: &[&str]| {
        let mut command = std::process::Command::new("systemd-analyze");
        command.args(arguments).env("SYSTEMD_UNIT_PATH", format!("{}:", units.display())).current_dir(&units);
        command.output().map(|output| {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            (output.status.success(), said, String::from_utf8_lossy(&output.stdout).into_owned())
        })
    };
    let device = "./vsp-storage@debian:disk0.service";
    match analyze(&["verify", "--man=no", device, "./bulkhead-vm@debian.target"]) {
        Err(_) => eprintln!("SKIPPED: there is no systemd-analyze here"),
        Ok((_, said, _)) => {
            assert!(!said.contains("bulkhead") && !said.contains("vsp-storage"), "{said}");
            for (unit, threshold) in [(device, "15"), ("./bulkhead-core@debian.service", "22")] {
                let threshold = format!("--threshold={threshold}");
                let (good, _, table) = analyze(&["security", "--offline=true", &threshold, unit]).unwrap();
                assert!(good, "{table}");
            }
        }
    }
    std::fs::remove_dir_all(&directory).unwrap();
}
