//! A VM made of fake programs, for tests of the supervisor.
#![allow(dead_code, reason = "each test program uses its part")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::Pid;

/// A core that lives until it is killed.
pub const FOREVER: &str = "exec -a core-vmm sleep 1000";
/// A device that does what a real one does: it ends when its socket to the core closes.
pub const UNTIL_EOF: &str = r#"
while [ $# -gt 0 ]; do [ "$1" = --core-fd ] && fd=$2; shift; done
eval "exec 5<&$fd"; cat <&5 > /dev/null 2>&1; exit 0"#;

/// A directory with a spec, what it names, and fake programs; removed when dropped.
pub struct World {
    pub path: PathBuf,
}

impl World {
    pub fn new(test: &str, core: &str, device: &str) -> Self {
        let path = std::env::temp_dir().join(format!("bulkhead-run-{}-{test}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("bin")).unwrap();
        let mut kernel = vec![0; 0x400];
        kernel[0x1fe..0x206].copy_from_slice(b"\x55\xaa\0\0HdrS");
        kernel[0x211] = 1;
        fs::write(path.join("vmlinuz"), kernel).unwrap();
        fs::write(path.join("root.img"), [0; 4096]).unwrap();
        fs::write(
            path.join("vm.toml"),
            "name = \"toy\"\n[machine]\nvcpus = 1\nmemory = \"64MiB\"\n[boot]\nkernel = \"vmlinuz\"\n\
             [[storage]]\nname = \"disk0\"\n[[storage.disk]]\npath = \"root.img\"\n",
        )
        .unwrap();
        let world = Self { path };
        for (name, body) in [("core-vmm", core), ("vsp-storage", device)] {
            world.program(name, "/bin/bash", &format!("PATH=/usr/bin:/bin\n{body}"));
        }
        world
    }

    /// Writes one of the fake programs.
    pub fn program(&self, name: &str, interpreter: &str, body: &str) -> PathBuf {
        let file = self.path.join("bin").join(name);
        // A script that is being executed cannot be written to.
        let _ = fs::remove_file(&file);
        fs::write(&file, format!("#!{interpreter}\n{body}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        file
    }

    /// Has a process stand by for the disk.
    pub fn with_spare(self) -> Self {
        let file = self.path.join("vm.toml");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace("name = \"disk0\"", "name = \"disk0\"\nspare = true")).unwrap();
        self
    }

    /// `bulkhead device ARGUMENTS` for this world's VMs.
    pub fn device(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
        command.arg("device").args(arguments).arg("--runtime-dir").arg(self.path.join("run"));
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// What `bulkhead device ls --json` says of the disk.
    pub fn disk0(&self) -> serde_json::Value {
        let output = self.device(&["ls", "toy", "--json"]);
        let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        rows[0].clone()
    }

    /// Waits until `bulkhead device ls` says this of the disk.
    pub fn until(&self, what: &str, condition: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let mut row = serde_json::Value::Null;
        eventually(what, || {
            row = self.disk0();
            condition(&row)
        });
        row
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bulkhead"));
        command.args(["run", "--skip-host-checks", "--overcommit"]).arg(self.path.join("vm.toml"));
        command.arg("--bin-dir").arg(self.path.join("bin")).arg("--runtime-dir").arg(self.path.join("run"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts the VM.
    pub fn start(&self) -> Running<'_> {
        Running { child: Some(self.command().spawn().unwrap()), world: self }
    }

    /// Runs the VM to its end; nothing may be left of it.
    pub fn run(&self) -> Output {
        let output = self.command().output().unwrap();
        assert!(!self.path.join("run").exists(), "the runtime directory is left");
        output
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// A VM that was started and has not ended yet.
pub struct Running<'w> {
    child: Option<Child>,
    world: &'w World,
}

impl Running<'_> {
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.as_ref().unwrap().id().try_into().unwrap())
    }

    /// The processes of the VM once all of them run: the core's and the device's.
    pub fn members(&self) -> [Pid; 2] {
        let [mut core, mut device] = [None, None];
        eventually("the processes run", || {
            for pid in children(self.pid()) {
                let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let command = String::from_utf8_lossy(&command).into_owned();
                // A script that has replaced itself has another name; it is known already.
                if command.contains("core-vmm") {
                    core = Some(pid);
                } else if command.contains("vsp-storage") {
                    device = Some(pid);
                }
            }
            core.is_some() && device.is_some()
        });
        [core.unwrap(), device.unwrap()]
    }

    pub fn wait(mut self) -> Output {
        self.child.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = self.world;
    }
}

pub fn children(pid: Pid) -> Vec<Pid> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect()
}

pub fn is_alive(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    !status.is_empty() && !status.contains("State:\tZ")
}

pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn last_line(output: &Output) -> String {
    stderr(output).lines().last().unwrap_or_default().to_owned()
}
